"""Run by a test in an environment that has d3rlpy and not guerdon: trains on an exported dataset for a few steps."""

from __future__ import annotations

import json

import d3rlpy
import minari
import numpy as np

stock = minari.load_dataset("doors-both-v0")
episodes = list(stock.iterate_episodes())
ends = [np.r_[np.zeros(len(episode.rewards) - 1), 1.0] for episode in episodes]
dataset = d3rlpy.dataset.MDPDataset(
    observations=np.concatenate([np.moveaxis(episode.observations["image"][:-1], -1, 1) for episode in episodes]),
    actions=np.concatenate([episode.actions for episode in episodes]),
    rewards=np.concatenate([episode.rewards for episode in episodes]),
    terminals=np.concatenate(ends),
    action_space=d3rlpy.ActionSpace.DISCRETE,
    action_size=int(stock.action_space.n),
)
results = {}
for config in (d3rlpy.algos.DiscreteBCConfig, d3rlpy.algos.DiscreteCQLConfig):
    algorithm = config(batch_size=16, observation_scaler=d3rlpy.preprocessing.PixelObservationScaler()).create(device="cpu")
    silent = d3rlpy.logging.NoopAdapterFactory()
    history = algorithm.fit(dataset, n_steps=6, n_steps_per_epoch=3, logger_adapter=silent, show_progress=False)
    results[config.__name__] = [float(metrics["loss"]) for _, metrics in history]
    actions = algorithm.predict(dataset.episodes[0].observations[:4])
print(
    json.dumps(
        {
            "transitions": dataset.transition_count,
            "return_of_last_episode": float(dataset.episodes[-1].compute_return()),
            "losses": results,
            "actions": sorted({int(action) for action in actions}),
        }
    )
)

"""How fast policies learn from pictures and words on one thread, and where the time goes.

    python benchmarks/training.py [--updates 20] [--sequences 8]

Prints, for each algorithm: milliseconds of processor time per update, transitions per second, parameters; for acting: decisions per second
with 1 and with 60 episodes side by side. There are two kinds of data: random pictures of 11x6 tiles of 8 pixels in episodes of 10 to 40
steps, in which nothing repeats, and demonstrations in the BabyAI world (1 to 6 sub-tasks), in which half of the pictures do and which are
made of few tiles. Processor time, not wall time, so that a busy neighbour disturbs less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from guerdon import discover
from guerdon.recipes.collect_babyai import Config, demonstrations
from guerdon.records import Task
from guerdon.training.offline import use_one_thread
from guerdon.training.policy import Policy
from guerdon.transitions import ObservationSpec, Sampler, Trajectory, Transitions, Vocabulary

HEIGHT, WIDTH = 48, 88
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
CLAUSES = ("go to the red ball", "pick up the blue key", "open the yellow door", "put the green box next to the grey ball")


def random_transitions(episodes: int, random: np.random.Generator) -> Transitions:
    lengths = random.integers(10, 41, episodes)
    texts = [", then ".join(random.choice(CLAUSES, random.integers(1, 4))) for _ in lengths]
    spec = ObservationSpec({"full": (HEIGHT, WIDTH)}, ACTIONS, Vocabulary.of(texts))
    steps, rows = int(lengths.sum()), int((lengths + 1).sum())
    ends = lengths.cumsum()
    trajectories = [
        Trajectory(number, 0, int(end - length) + number, int(end - length), int(length))
        for number, (end, length) in enumerate(zip(ends, lengths, strict=True))
    ]
    terminal = np.zeros(steps, dtype=np.bool_)
    terminal[ends - 1] = True
    frames = {"full": random.integers(0, 256, (rows, HEIGHT, WIDTH, 3), dtype=np.uint8)}
    action, reward = random.integers(0, len(ACTIONS), steps), random.random(steps).astype(np.float32)
    return Transitions(spec, trajectories, frames, action, reward, terminal, texts, "benchmark")


def recorded_transitions(tasks: int) -> Transitions:
    """Demonstrations as `guerdon collect-babyai` records them, with the contribution of each action as its reward."""
    episodes = list(demonstrations(Config(level="small", tasks=tasks, demonstrations=2, lengths=(1, 6))))
    lengths = np.array([len(episode.actions) for episode in episodes])
    texts = [episode.annotations[0].instruction for episode in episodes]
    frames = {"full": np.concatenate([episode.frames["full"] for episode in episodes])}
    spec = ObservationSpec({"full": frames["full"].shape[1:3]}, ACTIONS, Vocabulary.of(texts))
    ends = lengths.cumsum()
    trajectories = [
        Trajectory(number, 0, int(end - length) + number, int(end - length), int(length))
        for number, (end, length) in enumerate(zip(ends, lengths, strict=True))
    ]
    terminal = np.zeros(int(lengths.sum()), dtype=np.bool_)
    terminal[ends - 1] = [episode.terminated for episode in episodes]
    action = np.concatenate([episode.actions for episode in episodes])
    reward = np.concatenate([episode.privileged["contribution"] for episode in episodes]).astype(np.float32)
    return Transitions(spec, trajectories, frames, action, reward, terminal, texts, "benchmark")


def seconds_each(work: Callable[[], object], repeats: int) -> float:
    work()
    began = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - began) / repeats


def benchmark(name: str, transitions: Transitions, *, updates: int, sequences: int) -> None:
    chosen = discover.load("algorithms", name)
    algorithm = chosen(transitions, chosen.Config(), seed=0, updates=updates)
    sampler = Sampler(transitions, sequences=sequences, context=64, seed=0)
    each = seconds_each(lambda: algorithm.update(sampler.draw()), updates)
    rate = sequences * len(transitions) / len(transitions.trajectories) / each
    parameters = sum(parameter.numel() for parameter in algorithm.policy.parameters())
    print(f"{name:5} {1000 * each:7.1f} ms/update {rate:8.0f} transitions/s {parameters:9} parameters to act")
    for episodes in (1, 60):
        policy = Policy(algorithm.policy, transitions.spec)
        policy.reset([Task(str(k), "benchmark", transitions.instructions[k], 1, "fixed", 1) for k in range(episodes)])
        frames = {"full": transitions.frames["full"][:episodes]}
        active = np.ones(episodes, dtype=np.bool_)
        each = seconds_each(lambda policy=policy, frames=frames, active=active: policy.act(frames, active), updates)
        print(f"      {episodes:3} episodes side by side: {episodes / each:8.0f} decisions/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=8)
    arguments = parser.parse_args()
    use_one_thread()
    print(f"torch {torch.__version__}, 1 thread, {arguments.sequences} episodes a batch")
    data = {"random": random_transitions(200, np.random.default_rng(0)), "BabyAI": recorded_transitions(60)}
    for kind, transitions in data.items():
        _, height, width, _ = transitions.frames["full"].shape
        print(f"{kind}: {len(transitions.frames['full'])} pictures {height}x{width}")
        for name in discover.names("algorithms"):
            benchmark(name, transitions, updates=arguments.updates, sequences=arguments.sequences)


if __name__ == "__main__":
    main()

"""Rewards for recorded behaviour from vision-language models.

The names here are the commands of the same names, as functions; they take the commands' settings by name:

    import guerdon

    guerdon.plan(dataset="data", vlm=("google:gemini-2.5-flash", "openai:gpt-5.4-mini"))
    guerdon.label(dataset="data", run="runs/a", vlm=("google:gemini-2.5-flash",))
    guerdon.reward(run="runs/a", compose="rg_vlm - 1", name="dense")
    guerdon.fit(run="runs/b", labels=("rating",), name="erl_vlm")
    guerdon.relabel(run="runs/b", model="erl_vlm")
    guerdon.train(run="runs/a", rewards=("dense",))
    policy = guerdon.load_policy("runs/a/policies/dense/seed-0")

Everything is imported when it is first used: `import guerdon` costs nothing, and labelling needs neither torch nor a simulator.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guerdon.datasets import open_dataset
    from guerdon.datasets.check import check
    from guerdon.errors import GuerdonError
    from guerdon.recipes.commands import report
    from guerdon.recipes.consistency import raters_consistency
    from guerdon.recipes.demo import demo
    from guerdon.recipes.embedded import train_embedded
    from guerdon.recipes.evaluate import evaluate
    from guerdon.recipes.export import export
    from guerdon.recipes.fit import fit
    from guerdon.recipes.label import label
    from guerdon.recipes.online import online
    from guerdon.recipes.online_babyai import online_babyai
    from guerdon.recipes.plan import plan
    from guerdon.recipes.record_babyai import collect_babyai
    from guerdon.recipes.record_metaworld import collect_metaworld
    from guerdon.recipes.relabel import relabel
    from guerdon.recipes.reward import reward
    from guerdon.recipes.train import train
    from guerdon.training.policy import load_policy

_HOME = {
    "GuerdonError": "guerdon.errors",
    "check": "guerdon.datasets.check",
    "collect_babyai": "guerdon.recipes.record_babyai",
    "collect_metaworld": "guerdon.recipes.record_metaworld",
    "demo": "guerdon.recipes.demo",
    "evaluate": "guerdon.recipes.evaluate",
    "export": "guerdon.recipes.export",
    "fit": "guerdon.recipes.fit",
    "label": "guerdon.recipes.label",
    "load_policy": "guerdon.training.policy",
    "online": "guerdon.recipes.online",
    "online_babyai": "guerdon.recipes.online_babyai",
    "open_dataset": "guerdon.datasets",
    "plan": "guerdon.recipes.plan",
    "raters_consistency": "guerdon.recipes.consistency",
    "relabel": "guerdon.recipes.relabel",
    "report": "guerdon.recipes.commands",
    "reward": "guerdon.recipes.reward",
    "train": "guerdon.recipes.train",
    "train_embedded": "guerdon.recipes.embedded",
}

__all__ = [
    "GuerdonError", "check", "collect_babyai", "collect_metaworld", "demo", "evaluate", "export", "fit", "label", "load_policy",
    "online", "online_babyai", "open_dataset", "plan", "raters_consistency", "relabel", "report", "reward", "train", "train_embedded",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'guerdon' has no attribute '{name}'; there are: {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOME)

"""A reward column: one number per transition, beside the dataset, never inside it.

`rewards/NAME.parquet` has the columns episode, annotation, step, reward (float32; null = unknown). An episode with several annotations
has one reward per annotation, because a reward says how far an action serves one instruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from guerdon.labels import read_table, write_table
from guerdon.records import array_digest, canonical_json, digest

Values = dict[tuple[int, int], npt.NDArray[np.float32]]
"""(episode, annotation) -> (T,) float32, NaN where the reward is unknown."""


_SCHEMA = pa.schema([("episode", pa.int64()), ("annotation", pa.int64()), ("step", pa.int64()), ("reward", pa.float32())])


@dataclass(frozen=True)
class RewardColumn:
    """Rewards of a dataset.

    `metadata` holds: "expression", "dataset" (fingerprint), and of a composed column "gamma" (the discount that it is meant for), "labels"
    and "columns" (name -> fingerprint of each label set and each column used; "columns" only if there are any). A column that a reward
    model gave holds "model" (fingerprint) and "model_name", "reads" (whether the model reads instructions), "scale" [low, high] (null if
    standardised), "transform", "pessimism" and "kind" (of labels: "rating", "preference" or "score") instead.
    """

    values: Values
    metadata: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Digest of all values and of what they mean: the same before and after writing, which knows one NaN and no empty trajectory."""
        known = {key: np.where(np.isnan(array), np.float32(np.nan), array) for key, array in sorted(self.values.items()) if array.size}
        parts = [f"{episode}/{annotation}/{array_digest(array)}" for (episode, annotation), array in known.items()]
        return digest("guerdon rewards 1", canonical_json(dict(self.metadata)), *parts)

    @property
    def by_model(self) -> bool:
        """Whether a reward model gave the rewards; other columns are composed by an expression."""
        return "model" in self.metadata

    @property
    def of_single_actions(self) -> bool:
        """Whether a reward model learned it from scores of single actions."""
        return self.metadata.get("kind") == "score"

    @property
    def scale(self) -> tuple[float, float] | None:
        """Lowest and highest reward that the model can give (a pessimistic one may fall below); None if there are no such bounds."""
        bounds = self.metadata.get("scale")
        return None if bounds is None else (float(bounds[0]), float(bounds[1]))

    @property
    def discount(self) -> float | None:
        """The discount factor that it was composed for; None for a column that says nothing of it."""
        gamma = self.metadata.get("gamma")
        return None if gamma is None else float(gamma)

    @property
    def coverage(self) -> float:
        """Share of the transitions whose reward is known; 0.0 for an empty column."""
        total = sum(array.size for array in self.values.values())
        return sum(int(np.isfinite(array).sum()) for array in self.values.values()) / total if total else 0.0

    def write(self, path: Path) -> None:
        """Writes Parquet, whole or not at all. Raises WriteFailed."""
        items = sorted(self.values.items())
        rewards = np.concatenate([array for _, array in items]) if items else np.zeros(0, np.float32)
        sizes = [array.size for _, array in items]
        steps = np.concatenate([np.arange(size) for size in sizes]) if items else np.zeros(0, np.int64)
        columns = {
            "episode": np.repeat([key[0] for key, _ in items], sizes),
            "annotation": np.repeat([key[1] for key, _ in items], sizes),
            "step": steps,
            "reward": pa.array(rewards, mask=np.isnan(rewards)),
        }
        write_table(path, pa.table(columns, schema=_SCHEMA), self.metadata)

    @classmethod
    def read(cls, path: Path) -> RewardColumn:
        """Reads what `write` wrote. Raises RunError for a missing, damaged or foreign file."""
        table, metadata = read_table(path, "reward column", _SCHEMA)
        episode, annotation, step = (table[name].to_numpy() for name in ("episode", "annotation", "step"))
        reward = table["reward"].to_numpy(zero_copy_only=False).astype(np.float32)
        values: Values = {}
        starts = np.flatnonzero(step == 0)
        for start, stop in zip(starts, [*starts[1:], len(step)], strict=True):
            values[int(episode[start]), int(annotation[start])] = reward[start:stop]
        return cls(values, metadata)

"""A reward model from scores: numbers that raters gave to single transitions (RG-VLM) become a reward of any transition.

Scores are scaled to [0, 1]; the reward of a transition lies there too, and is fitted by squared error. A score that was given to several
transitions at once is compared with the mean of their rewards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from guerdon.losses import score_loss
from guerdon.metrics import spearman
from guerdon.rewards._ensemble import EnsembleModel, Loss
from guerdon.rewards._settings import Config


class ScoreModel(EnsembleModel):
    """Rewards in [0, 1] from scores."""

    name: ClassVar[str] = "score"
    scale = (0.0, 1.0)
    per_step = True

    def squash(self, raw: Tensor) -> Tensor:
        return raw.sigmoid()

    def loss(self, predicted: Tensor, target: Tensor, config: Config, weights: Tensor | None) -> Loss:
        del config
        return Loss(score_loss(predicted, target, weights), 0.0)

    def calibrate(self, predicted: npt.NDArray[np.float64], target: npt.NDArray[np.float32]) -> None:
        """Nothing is kept: predictions are on the scale of the labels."""

    def measure(self, predicted: npt.NDArray[np.float64], target: npt.NDArray[np.float32]) -> dict[str, float | None]:
        """The root of the mean squared error, and Spearman's rank correlation (None where it is not defined)."""
        if not len(target):
            return {"error": None, "correlation": None}
        correlation = spearman(predicted, target)
        error = float(np.sqrt(np.mean((predicted - target) ** 2)))
        return {"error": error, "correlation": None if math.isnan(correlation) else correlation}

    @staticmethod
    def quality(measured: Mapping[str, float | None]) -> tuple[float, float]:
        return -(measured["error"] or 0.0), 0.0

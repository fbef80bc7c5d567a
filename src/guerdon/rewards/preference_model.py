"""A reward model from preferences: which of two is better becomes a reward of single transitions.

RL-VLM-F (Wang et al., ICML 2024), after "Deep Reinforcement Learning from Human Preferences" (Christiano et al., NeurIPS 2017): the second
of two is preferred with a probability that is the logistic function of the difference of their returns (Bradley and Terry, 1952). The
reward of a transition is a number in [-1, 1]. Preferences of single pictures are therefore never more certain than 0.88.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from guerdon.losses import CONTRADICTED, preference_loss
from guerdon.rewards._ensemble import EnsembleModel, Loss
from guerdon.rewards._settings import Config


class PreferenceModel(EnsembleModel):
    """Rewards in [-1, 1] from preferences."""

    name: ClassVar[str] = "preference"
    scale = (-1.0, 1.0)

    def squash(self, raw: Tensor) -> Tensor:
        return raw.tanh()

    def loss(self, predicted: Tensor, target: Tensor, config: Config, weights: Tensor | None) -> Loss:
        first, second = predicted[::2], predicted[1::2]
        probability = (second - first).detach().sigmoid()
        own = target * probability + (1 - target) * (1 - probability)
        loss = preference_loss(first, second, target, config.loss, config.noise, weights)
        return Loss(loss, float((own < CONTRADICTED).float().mean()))

    def calibrate(self, predicted: npt.NDArray[np.float64], target: npt.NDArray[np.float32]) -> None:
        """Nothing is kept: returns are compared with each other."""

    def measure(self, predicted: npt.NDArray[np.float64], target: npt.NDArray[np.float32]) -> dict[str, float | None]:
        """Over the pairs of which one is preferred: accuracy, the mean of the shares found right among those whose first and whose second
        one is (None if there are none); over all pairs: mean absolute error, and the share held to be all but impossible."""
        advantage = predicted[1::2] - predicted[::2]
        probability = 1 / (1 + np.exp(-np.clip(advantage, -50, 50)))
        own = target * probability + (1 - target) * (1 - probability)
        decided = target != 0.5
        right = (advantage > 0) == (target > 0.5)
        found = [right[side].mean() for side in (decided & (target > 0.5), decided & (target < 0.5)) if side.any()]
        return {
            "accuracy": float(right[decided].mean()) if decided.any() else None,
            "balanced_accuracy": float(np.mean(found)) if found else None,
            "loss": float(2 * np.abs(target - probability).mean()) if len(target) else None,
            "contradicted": float((own < CONTRADICTED).mean()) if len(target) else None,
        }

    @staticmethod
    def quality(measured: Mapping[str, float | None]) -> tuple[float, float]:
        return measured["balanced_accuracy"] or 0.0, -(measured["loss"] or 0.0)

"""A reward model from absolute ratings: "bad", "average" and "good" become a reward that orders what was rated.

ERL-VLM ("Enhancing Rating-Based Reinforcement Learning to Effectively Leverage Feedback from Large Vision-Language Models", Luu et al.,
ICML 2025), after rating-based reinforcement learning (White et al., AAAI 2024). The reward of a transition is a number in [-1, 1]; an item
of several transitions is judged by its return, their sum. What loss that makes is said in `guerdon.losses`.

How predictions become classes afterwards: the returns of the ensemble for the ratings that it learned from are put in order, every class
weighing the same in sum, and class i ends where i + 1 of so many classes' weight lies below (halfway to the next return). For two classes
that is where as large a share of the bad ones lies above as of the good ones below. Held-out ratings are compared with those boundaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from guerdon.losses import CONTRADICTED, contradicted_share, normalise_returns, rating_boundaries, rating_loss, rating_probabilities
from guerdon.rewards._ensemble import Ensemble, EnsembleModel, Loss
from guerdon.rewards._settings import Config

_TOLERANCE = 1e-9


class RatingModel(EnsembleModel):
    """Rewards in [-1, 1] from ratings."""

    name: ClassVar[str] = "rating"
    scale = (-1.0, 1.0)

    def __init__(self, ensemble: Ensemble, *, levels: int, training: Mapping[str, Any] | None = None) -> None:
        super().__init__(ensemble, levels=levels, training=training)
        self.boundaries: npt.NDArray[np.float64] = np.zeros(levels - 1)
        """(levels - 1,): class i ends at return i; infinite where no class lies beyond."""
        self._range = (-1.0, 1.0)

    def squash(self, raw: Tensor) -> Tensor:
        return raw.tanh()

    def loss(self, predicted: Tensor, target: Tensor, config: Config, weights: Tensor | None) -> Loss:
        scores = normalise_returns(predicted)
        boundaries = rating_boundaries(scores, target, self.levels, config.boundary)
        probabilities = rating_probabilities(scores, boundaries, config.sharpness)
        loss = rating_loss(probabilities, target, config.loss, weights, config.smoothing)
        return Loss(loss, float(contradicted_share(probabilities, target)))

    def classes(self, predicted: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The class of each predicted return."""
        return np.searchsorted(self.boundaries, predicted, side="right").astype(np.int64)

    def calibrate(self, predicted: npt.NDArray[np.float64], target: npt.NDArray[np.float32]) -> None:
        self.boundaries = class_boundaries(predicted, shares(target, self.levels))
        self._range = (float(predicted.min()), float(predicted.max()))

    def measure(self, predicted: npt.NDArray[np.float64], target: npt.NDArray[np.float32]) -> dict[str, float | None]:
        """Accuracy, balanced accuracy (the mean over the classes that occur of the share found right), mean absolute error with every
        class weighing the same (as in the loss), and the share of labels whose class is held to be all but impossible."""
        if not len(target):
            return dict.fromkeys(("accuracy", "balanced_accuracy", "loss", "contradicted"))
        said = shares(target, self.levels)
        actual, right = said.argmax(1), said.argmax(1) == self.classes(predicted)
        found = [right[actual == level].mean() for level in np.unique(actual)]
        probability = self._probabilities(predicted)
        own = (said * probability).sum(1)
        distance = np.abs(said - probability).sum(1)
        return {
            "accuracy": float(right.mean()),
            "balanced_accuracy": float(np.mean(found)),
            "loss": float(np.mean([distance[actual == level].mean() for level in np.unique(actual)])),
            "contradicted": float((own < CONTRADICTED).mean()),
        }

    def _probabilities(self, predicted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(B, levels): how likely each class is, by the boundaries and the range of the returns that were learned from."""
        low, high = self._range
        width = max(high - low, _TOLERANCE)
        inner = np.clip((self.boundaries - low) / width, 0.0, 1.0)
        scores = np.clip((predicted - low) / width, 0.0, 1.0)
        boundaries = torch.from_numpy(np.concatenate([[0.0], inner, [1.0]]))
        return rating_probabilities(torch.from_numpy(scores), boundaries).numpy()

    @staticmethod
    def quality(measured: Mapping[str, float | None]) -> tuple[float, float]:
        return measured["balanced_accuracy"] or 0.0, -(measured["loss"] or 0.0)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {
            "boundaries": torch.from_numpy(self.boundaries),
            "range": torch.tensor(self._range, dtype=torch.float64),
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        own = dict(tensors)
        self.boundaries = own.pop("boundaries").numpy().copy()
        low, high = own.pop("range").tolist()
        self._range = (low, high)
        super().load_tensors(own)


def shares(target: npt.NDArray[np.float32], levels: int) -> npt.NDArray[np.float64]:
    """Class numbers (B,) or shares (B, levels) -> shares (B, levels)."""
    return np.eye(levels)[target.astype(np.int64)] if target.ndim == 1 else target.astype(np.float64)


def class_boundaries(predicted: npt.NDArray[np.float64], said: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where classes end if each of them weighs the same in sum (see the module's docstring).

    Args:
        predicted: (B,) returns; B >= 1.
        said: (B, levels) shares of the classes.

    Returns:
        (levels - 1,) ascending; -inf where all lower classes are empty, inf where all higher ones are.
    """
    counts = said.sum(0)
    present = counts > 0
    weight = (said[:, present] / counts[present]).sum(1)
    order = np.argsort(predicted, kind="stable")
    ordered = np.concatenate([[-np.inf], predicted[order], [np.inf]])
    below = np.cumsum(weight[order])
    ends = np.cumsum(present)[:-1]
    place = np.searchsorted(below, ends + _TOLERANCE, side="right")
    inner = (ordered[place] + ordered[place + 1]) / 2
    return np.where(ends == 0, -np.inf, np.where(ends == present.sum(), np.inf, inner))

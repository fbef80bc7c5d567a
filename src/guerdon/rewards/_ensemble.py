"""What all reward models have in common: independent members, one score of their mean and spread, and two files on disk.

The problem: the members of an ensemble must differ by more than their first weights, scoring must take little memory, and weights alone
are useless. Members are gone through one after the other (grouped convolutions and vmap are slower on processors), pictures stay uint8
in the layout that they were recorded in, and a batch goes through a network in pieces that fit into the processor's cache.

Reads and writes two files in a folder: `model.safetensors` (weights, and how vectors are standardised) and `model.json` (what the model
looks at, what it is made of, how it was fitted, and the digest of the weights). No pickle is ever read.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from guerdon.errors import RewardModelError
from guerdon.interfaces import RewardModel
from guerdon.losses import SMALLEST_SPREAD
from guerdon.networks import seeded
from guerdon.records import digest
from guerdon.rewards._settings import Config
from guerdon.rewards.encoders import Architecture, Network
from guerdon.rewards.steps import Look, StepArrays, Steps, gather
from guerdon.runs import write_json, writing

FORMAT = 1
WEIGHTS, RECORD = "model.safetensors", "model.json"

PICTURES_AT_ONCE = {"float32": 32, "bfloat16": 64}
"""Pictures that go through a network together: more overflow the processor's cache, which is slower."""
VECTORS_AT_ONCE = 4096
_SMALLEST_DEVIATION = 1e-6
"""Components of vectors that vary less are not scaled."""

Precision = Literal["float32", "bfloat16"]


class Ensemble(nn.Module):
    """Networks with first weights of their own, and how vectors are standardised before they see them."""

    mean: Tensor
    deviation: Tensor
    shift: Tensor
    stretch: Tensor

    def __init__(self, look: Look, architecture: Architecture, members: int, *, seed: int) -> None:
        super().__init__()
        self.look, self.architecture = look, architecture
        networks = []
        for member in range(members):
            with seeded(seed, "reward model", str(member)):
                networks.append(Network(look, architecture))
        self.members = nn.ModuleList(networks)
        self.register_buffer("mean", torch.zeros(look.vector_size))
        self.register_buffer("deviation", torch.ones(look.vector_size))
        self.register_buffer("shift", torch.zeros(members))
        self.register_buffer("stretch", torch.ones(members))

    def standardise(self, vector: npt.NDArray[np.float32]) -> None:
        """Fixes mean and deviation to those of `vector` (N, D); components that hardly vary are only shifted."""
        if vector.shape[1]:
            deviation = vector.std(0, dtype=np.float64)
            self.mean.copy_(torch.from_numpy(vector.mean(0, dtype=np.float64)))
            self.deviation.copy_(torch.from_numpy(np.where(deviation > _SMALLEST_DEVIATION, deviation, 1.0)))

    def raw(self, member: int, steps: Steps, precision: Precision = "float32") -> Tensor:
        """What one member says of N transitions, (N,) float32, not yet squashed into the model's scale."""
        with _arithmetic(precision):
            said: Tensor = self.members[member](steps, (steps.vector - self.mean) / self.deviation)
        return said.float()


def _arithmetic(precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()


@dataclass(frozen=True)
class Loss:
    """What a batch says of one member."""

    loss: Tensor
    """Scalar, to be minimised."""
    contradicted: float
    """Share of the labels that the member holds to be all but impossible; 0 where that has no meaning."""


class EnsembleModel(RewardModel):
    """A reward model that is an ensemble of networks. Its subclasses say what the numbers mean: their scale, and the loss."""

    per_step: bool = False
    """Whether what is predicted of an item is the mean over its transitions; else it is their sum, the return."""

    def __init__(self, ensemble: Ensemble, *, levels: int = 0, training: Mapping[str, Any] | None = None) -> None:
        """Args: ensemble: fresh or fitted networks; levels: classes of ratings; training: how it came about, for the reader."""
        self.ensemble, self.look, self.levels = ensemble, ensemble.look, levels
        self.training: Mapping[str, Any] = dict(training or {})
        self.precision: Precision = "float32"
        """Of the networks' arithmetic; bfloat16 is faster on processors that have it, and coarser."""

    @property
    def members(self) -> int:
        """Number of networks."""
        return len(self.ensemble.members)

    @abstractmethod
    def squash(self, raw: Tensor) -> Tensor:
        """Numbers without bounds -> numbers on the model's scale."""

    @abstractmethod
    def loss(self, predicted: Tensor, target: Tensor, config: Config, weights: Tensor | None) -> Loss:
        """How far what one member predicts of a batch of items is from what raters said.

        Args:
            predicted: (I,) of each item (return or mean); of pairs 2 B, the first ones at even places.
            target: (B,) or (B, levels), see `guerdon.rewards.steps.Judgements`.
            config: how it is fitted.
            weights: (B,), or None if all count alike.
        """

    @abstractmethod
    def calibrate(self, predicted: npt.NDArray[np.float64], target: npt.NDArray[np.float32]) -> None:
        """Keeps what is needed to compare later predictions with labels, from the predictions for the labels learned from."""

    @abstractmethod
    def measure(self, predicted: npt.NDArray[np.float64], target: npt.NDArray[np.float32]) -> dict[str, float | None]:
        """How well predictions of the ensemble agree with labels, JSON-ready; None where that is not defined. Shapes as in `loss`."""

    @staticmethod
    @abstractmethod
    def quality(measured: Mapping[str, float | None]) -> tuple[float, float]:
        """What is to be largest of a measurement, first things first: decides when to stop and which weights to keep."""

    def tensors(self) -> dict[str, Tensor]:
        """All that a file must hold: weights, and what `calibrate` kept."""
        return dict(self.ensemble.state_dict())

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`. Raises RuntimeError or KeyError for those of another model."""
        self.ensemble.load_state_dict(dict(tensors))

    @property
    def fingerprint(self) -> str:
        """Digest of what decides the scores."""
        held = self.tensors()
        parts = [name.encode() + held[name].detach().contiguous().numpy().tobytes() for name in sorted(held)]
        return digest("guerdon reward model 1", json.dumps(self._described(), sort_keys=True), *parts)

    def at_once(self) -> int:
        """Transitions that go through a network together."""
        return PICTURES_AT_ONCE[self.precision] if self.look.views else VECTORS_AT_ONCE

    def member_values(self, member: int, arrays: StepArrays, rows: npt.NDArray[np.int64]) -> Tensor:
        """What one member gives the transitions `rows` (N,): (N,) float32 on the model's scale, with gradient if that is on."""
        size = self.at_once()
        parts = [self.ensemble.raw(member, gather(arrays, rows[i : i + size]), self.precision) for i in range(0, len(rows), size)]
        return self.squash(torch.cat(parts)) if parts else torch.zeros(0)

    @torch.inference_mode()
    def score(self, steps: Steps) -> tuple[Tensor, Tensor]:
        values = self._scores(steps)
        return values.mean(0), values.std(0, correction=0)

    def _scores(self, steps: Steps) -> Tensor:
        """What each member gives N transitions: (members, N), stretched, and kept on the model's scale."""
        low, high = self.scale
        shift, stretch = self.ensemble.shift[:, None], self.ensemble.stretch[:, None]
        return ((self._said(steps) - shift) * stretch).clamp(low, high)

    def _said(self, steps: Steps) -> Tensor:
        """What each member says of N transitions before it is stretched: (members, N)."""
        return torch.stack([self.squash(self.ensemble.raw(member, steps, self.precision)) for member in range(self.members)])

    @torch.inference_mode()
    def stretch_to_scale(self, arrays: StepArrays, rows: npt.NDArray[np.int64], *, shift: bool) -> None:
        """Lets every member use the model's whole scale for the transitions `rows`.

        What is learned from ratings has an order and no size: the likelihood of a rating is the same if all returns are shifted or
        stretched together, so a network that has ordered everything may still say 0.0006 of the best and 0.0005 of the worst. One that
        says the same of everything, but for rounding errors, is left as it is: stretched, they would pass for a reward.

        Args:
            arrays, rows: transitions; their lowest value becomes the lowest of the scale, their highest the highest.
            shift: False only stretches, so that zero stays zero and the largest size becomes 1: for items of different lengths, whose
                returns a shift would put into another order.
        """
        size = self.at_once()
        values = torch.cat([self._said(gather(arrays, rows[i : i + size])) for i in range(0, len(rows), size)], 1)
        low, high = values.amin(1), values.amax(1)
        middle, half = ((low + high) / 2, (high - low) / 2) if shift else (torch.zeros_like(low), torch.maximum(low.abs(), high.abs()))
        says_something = high - low > SMALLEST_SPREAD
        self.ensemble.shift.copy_(torch.where(says_something, middle, torch.zeros_like(middle)))
        self.ensemble.stretch.copy_(torch.where(says_something, 1 / half, torch.ones_like(half)))

    @torch.inference_mode()
    def predictions(self, arrays: StepArrays, offsets: npt.NDArray[np.int64], members: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """What the ensemble predicts of items, (I,), by what it gives their transitions (`score`). Looks at each of them once; carries no
        gradient.

        Args:
            arrays: all transitions.
            offsets: (I + 1,), item i is `members[offsets[i] : offsets[i + 1]]`.
            members: rows of `arrays`.
        """
        rows, place = np.unique(members, return_inverse=True)
        size = self.at_once()
        values = [self._scores(gather(arrays, rows[i : i + size])).mean(0).numpy() for i in range(0, len(rows), size)]
        step = np.concatenate([*values, np.zeros(0, np.float32)]).astype(np.float64)[place.reshape(-1)]
        lengths = np.diff(offsets)
        total = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=step, minlength=len(lengths))
        return np.asarray(total / lengths if self.per_step else total, np.float64)

    def save(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Writes the two files of a model, the record last.

        Args:
            folder: where; made if absent.
            training: how it came about (settings, seed, data, measures), JSON-ready; kept for the reader, not needed to score.

        Raises:
            WriteFailed: if the disk is full or not writable.
        """
        self.training = dict(training)
        weights = folder / WEIGHTS
        copies = {name: tensor.detach().contiguous().clone() for name, tensor in self.tensors().items()}
        with writing(weights) as temporary:
            temporary.write_bytes(save(copies, {"format": str(FORMAT)}))
        record = {"format": FORMAT, **self._described(), "weights": digest(weights.read_bytes()), "training": self.training}
        write_json(folder / RECORD, record)

    def _described(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "looks_at": self.look.to_record(),
            "network": asdict(self.ensemble.architecture),
            "members": self.members,
            "levels": self.levels,
        }

    @classmethod
    def load(cls, folder: Path, record: Mapping[str, Any]) -> Self:
        """The model of a folder whose record has been read (`read_record`). Raises RewardModelError."""
        weights, cure = folder / WEIGHTS, "Fit the model again."
        try:
            if digest(weights.read_bytes()) != record["weights"]:
                raise RewardModelError("is damaged or belongs to another model (its digest differs)", where=str(weights), cure=cure)
            with safe_open(weights, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            look = Look.from_record(record["looks_at"])
            ensemble = Ensemble(look, Architecture(**record["network"]), int(record["members"]), seed=0)
            model = cls(ensemble, levels=int(record["levels"]), training=record["training"])
            model.load_tensors(tensors)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RewardModelError(f"cannot be opened ({type(error).__name__})", where=str(folder), cure=cure) from error
        ensemble.requires_grad_(False)
        return model


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a saved model. Raises RewardModelError if there is none or it cannot be read."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            what = f"is a reward model of format {record['format']}, this version reads {FORMAT}"
            raise RewardModelError(what, where=str(path), cure="Fit it again.")
        str(record["name"])
    except FileNotFoundError:
        raise RewardModelError(f"holds no reward model (no {RECORD})", where=str(folder), cure="Make one with: guerdon fit RUN") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RewardModelError(f"is damaged ({type(error).__name__})", where=str(path), cure="Fit the model again.") from error
    return dict(record)

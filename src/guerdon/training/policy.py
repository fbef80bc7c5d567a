"""Trained policies on disk and in action.

The problem: weights alone are useless, and weights fed with the wrong picture are worse, since they act without complaint. A saved policy
carries what it was trained to see (views, picture sizes, vectors, actions, words) and refuses anything else.

    policy = load_policy("runs/demo/policies/iql/seed-0")
    policy.start("go to the red ball")
    action = policy.step(frame)                  # (H, W, 3) uint8, or a vector (D,), or {name: picture or vector}

An action is the index of a named one, or (A,) floats in [-1, 1].

For evaluation the same object acts in many environments at once (`guerdon.interfaces.Actor`). It remembers each of its episodes from the
start.

Reads and writes two files in a folder: `policy.safetensors` (weights) and `policy.json` (what the policy sees, the size of its network,
how it was trained, and the digest of the weights). No pickle is ever read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from guerdon.errors import PolicyError, RunError
from guerdon.interfaces import Actor
from guerdon.networks import PolicyNetwork
from guerdon.records import Task, digest
from guerdon.runs import write_json, writing
from guerdon.seeding import stream_seed
from guerdon.transitions import ObservationSpec, Rows

FORMAT = 1
WEIGHTS, RECORD = "policy.safetensors", "policy.json"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON record as one safetensors file, whole or not at all. Raises WriteFailed."""
    with writing(path) as temporary:
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        temporary.write_bytes(save(copies, {"record": json.dumps(record)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a file that `write_tensors` wrote. Raises RunError if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["record"])
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118
    except FileNotFoundError:
        raise RunError("there is no such file", where=str(path)) from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(f"is damaged ({type(error).__name__})", where=str(path), cure="Delete it and train again.") from error


def save_policy(folder: Path, network: PolicyNetwork, spec: ObservationSpec, training: Mapping[str, Any]) -> None:
    """Writes the two files of a policy, the record last.

    Args:
        folder: where; made if absent.
        network: the trained network.
        spec: what it sees and does.
        training: how it came about (algorithm, settings, seed, data), JSON-ready; kept for the reader, not needed to act.

    Raises:
        WriteFailed: if the disk is full or not writable.
    """
    weights = folder / WEIGHTS
    write_tensors(weights, network.state_dict(), {"format": FORMAT})
    write_json(
        folder / RECORD,
        {
            "format": FORMAT,
            "sees": spec.to_record(),
            "network": asdict(network.config),
            "weights": digest(weights.read_bytes()),
            "training": dict(training),
        },
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a saved policy. Raises PolicyError if there is none or it cannot be read."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            what = f"is a policy of format {record['format']}, this version reads {FORMAT}"
            raise PolicyError(what, where=str(path), cure="Train it again.")
    except FileNotFoundError:
        raise PolicyError(f"holds no policy (no {RECORD})", where=str(folder), cure="Make one with: guerdon train RUN") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"is damaged ({type(error).__name__})", where=str(path), cure="Train the policy again.") from error
    return dict(record)


def load_policy(path: Path | str, *, sample: bool = False, seed: int = 0) -> Policy:
    """Opens a saved policy.

    Args:
        path: the folder that training wrote, e.g. "policies/iql/seed-0".
        sample: draw actions from the policy's distribution instead of taking the likeliest.
        seed: of those draws.

    Raises:
        PolicyError: if there is no policy, or its files are damaged or do not belong together.
    """
    folder = Path(path)
    record = read_record(folder)
    weights = folder / WEIGHTS
    cure = "Train the policy again."
    try:
        if digest(weights.read_bytes()) != record["weights"]:
            raise PolicyError("is damaged or belongs to another policy (its digest differs)", where=str(weights), cure=cure)
        tensors, _ = read_tensors(weights)
        spec = ObservationSpec.from_record(record["sees"])
        network = network_for(spec, PolicyNetwork.Config(**record["network"]))
        network.load_state_dict(tensors)
    except (RunError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PolicyError(f"cannot be opened ({type(error).__name__})", where=str(folder), cure=cure) from error
    return Policy(network, spec, sample=sample, seed=seed)


def network_for(spec: ObservationSpec, config: PolicyNetwork.Config) -> PolicyNetwork:
    """A network with fresh weights for what `spec` describes."""
    return PolicyNetwork.of(spec, config)


class Policy(Actor):
    """A trained network that acts, one step at a time, in one or several episodes at once."""

    def __init__(self, network: PolicyNetwork, spec: ObservationSpec, *, sample: bool = False, seed: int = 0) -> None:
        """Args: network: trained; spec: what it sees; sample: draw actions instead of taking the likeliest; seed: of the draws."""
        self.spec = spec
        self.views = tuple(spec.views)
        self._network = network.eval().requires_grad_(False)
        self._random = torch.Generator().manual_seed(stream_seed(seed, "policy")) if sample else None
        self._begin([])

    def reset(self, tasks: Sequence[Task]) -> None:
        self._begin([task.instruction for task in tasks])

    def start(self, instruction: str) -> None:
        """Begins a single episode."""
        self._begin([instruction])

    def step(self, seen: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]) -> Any:
        """The action for what is seen now in the episode begun with `start`.

        Args:
            seen: a picture (H, W, 3) uint8 RGB, a vector (D,) of floats, or name -> picture or vector. What has no name is the first of the
                views, or the first of the vectors of a policy that looks through no camera.

        Returns:
            The action's index in `spec.action_names`, or (A,) float32 in [-1, 1].

        Raises:
            PolicyError: if no single episode has begun, or what is seen is not what the policy was trained on.
        """
        if len(self._previous_action) != 1:
            raise PolicyError("the policy has no single episode under way", cure="Call start(instruction) first.")
        named = seen if isinstance(seen, Mapping) else {next(iter([*self.spec.views, *self.spec.vectors])): seen}
        self.spec.check_seen(named)
        action = self.act({name: np.asarray(values)[None] for name, values in named.items()}, np.ones(1, dtype=np.bool_))[0]
        return action if self.spec.action_size else int(action)

    def act(self, seen: Mapping[str, npt.NDArray[Any]], active: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        self.spec.check_seen(seen)
        slots = len(self._previous_action)
        for kind, names in (("pictures", self.spec.views), ("vectors", self.spec.vectors)):
            for name in names:
                if seen[name].shape[0] != slots or active.shape != (slots,):
                    raise PolicyError(f"{slots} episodes are under way, but {len(seen[name])} {kind} and {len(active)} flags were given")
        chosen = torch.from_numpy(np.flatnonzero(active))
        if len(chosen):
            self._previous_action[chosen] = self._choose(self._look(seen, chosen))
        return self._previous_action.numpy().copy()

    def _begin(self, instructions: Sequence[str]) -> None:
        count, size = len(instructions), self.spec.action_size
        self._previous_action = torch.zeros(count, size) if size else torch.full((count,), len(self.spec.action_names))
        self._memory = torch.zeros(count, self._network.trunk.memory_size)
        self._tokens = self.spec.vocabulary.batch(instructions) if count else torch.zeros(0, 1, dtype=torch.int64)
        self._words = self._network.trunk.read(self._tokens) if count else None

    def _look(self, seen: Mapping[str, npt.NDArray[Any]], chosen: Tensor) -> Any:
        """What the network's head says of the slots `chosen`: logits (n, actions), or mean (n, A) and log deviation (A,)."""
        slots = chosen.numpy()
        rows = Rows(
            frames={view: torch.from_numpy(np.ascontiguousarray(seen[view][slots])) for view in self.spec.views},
            previous_action=self._previous_action[chosen],
            lengths=torch.ones_like(chosen),
            instruction=chosen,
            tokens=self._tokens,
            vectors={name: torch.from_numpy(seen[name][slots].astype(np.float32)) for name in self.spec.vectors},
        )
        features, self._memory[chosen] = self._network.trunk(rows, self._memory[chosen], self._words)
        return self._network.head(features)

    def _choose(self, said: Any) -> Tensor:
        if self.spec.action_size:
            mean, log_deviation = said
            return mean if self._random is None else self._draw(mean, log_deviation)
        if self._random is None:
            likeliest: Tensor = said.argmax(-1)
            return likeliest
        return torch.multinomial(said.softmax(-1), 1, generator=self._random).squeeze(-1)

    def _draw(self, mean: Tensor, log_deviation: Tensor) -> Tensor:
        return (mean + log_deviation.exp() * torch.randn(mean.shape, generator=self._random)).clamp(-1, 1)

"""The embedded rater's network, for use: pictures of a BabyAI world, words and actions in; what the actions did for the words out.

Two parts:

- the look: one picture and the words of one sub-task -> what each action would do for that sub-task, how far it is from done, and whether
  its goal holds. Tiles are embedded; residual 3 x 3 convolutions, scaled and shifted by the words and by what is carried, spread what a
  tile shows over the grid; the answer is read where the agent stands, beside the most that any cell holds ("FiLM: Visual Reasoning with a
  General Conditioning Layer", Perez et al., AAAI 2018, without normalisation);
- the reasoning: a hidden Markov model over a window, whose state is how many sub-tasks are done. Which one is due is inferred from all
  pictures and actions of the window, forwards and backwards ("A tutorial on hidden Markov models", Rabiner, 1989); the verdict on an
  action is the mean over what could be due.

A picture is (height, width, 3) uint8 of 8 x 8 tiles. Its last row of tiles is no part of the world: its first tile shows what is carried.
The same network in torch, with its training, is `guerdon.recipes._embedded_torch`; the two agree to 1e-5. Needs NumPy only. In shapes: N
pictures, L sub-tasks, T = N - 1 actions, C channels, B blocks, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided
from safetensors import numpy as storage

Array = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]

ACTIONS: tuple[str, ...] = ("turn left", "turn right", "move forward", "pick up", "drop", "toggle", "done")
"""The actions that the network knows; the index is the action."""

TILE = 8
"""Edge of a tile in pixels."""
LONGEST = 6
"""Greatest number of sub-tasks in an instruction."""
CLASSES = 3
"""What an action does for a sub-task: hinders, does not matter, serves."""

EMBEDDING, WORDS, HIDDEN, PRIOR = 32, 64, 128, 32
"""Widths: of a word, of a sub-task's words, of the hidden layers of the look's head and of the reasoning's prior."""
OUTPUTS = len(ACTIONS) * CLASSES + len(ACTIONS) + 2
"""Of the look's head: classes, completions, distance, done."""
PRIOR_INPUTS = 2 * (2 + WORDS) + 1

LARGEST_LOGIT = 50.0
"""Logits are cut here before reasoning, so that no finite input gives an infinite one."""
LARGEST_DISTANCE = 500.0
"""Distances are cut here; no way in these worlds is as long."""
_CELLS = 640
"""Cells convolved at a time: their neighbourhoods then stay in the processor's cache."""


@dataclass(frozen=True)
class Looks:
    """What each picture says about each sub-task."""

    classes: Array
    """(L, N, 7, 3) logits: an action there hinders, does not matter, serves."""
    completes: Array
    """(L, N, 7) logits: an action there completes the sub-task."""
    distance: Array
    """(L, N) actions to go until the sub-task is completed, 0 to 500."""
    done: Array
    """(L, N) logits: the sub-task's goal holds already."""
    words: Array
    """(L, 64) the sub-tasks' words, as the network reads them."""


@dataclass(frozen=True)
class Judgement:
    """What a window's actions did for an instruction."""

    verdict: Array
    """(T, 3) probabilities that the action hindered, did not matter, served."""
    due: Array
    """(T + 1, L + 1) probabilities of the number of sub-tasks done at each picture, given the whole window."""
    progress: Array
    """(T + 1,) expected share of the instruction that is done at each picture, 0 to 1."""
    reached: Array
    """(T + 1, L + 1) that share if so many sub-tasks are done."""


def shapes(channels: int, blocks: int, words: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of a network. Matrices are (inputs, outputs); the rows of a convolution are ordered by row, column and
    channel; the gates of the word network are reset, update, new."""
    actions, condition = len(ACTIONS), WORDS + channels
    return {
        "tiles.weight": (3 * TILE * TILE, channels),
        "tiles.bias": (channels,),
        "words.embedding": (words, EMBEDDING),
        "words.input.weight": (EMBEDDING, 3 * WORDS),
        "words.input.bias": (3 * WORDS,),
        "words.state.weight": (WORDS, 3 * WORDS),
        "words.state.bias": (3 * WORDS,),
        "blocks.weight": (blocks, 9 * channels, channels),
        "blocks.bias": (blocks, channels),
        "film.weight": (blocks, condition, 2 * channels),
        "film.bias": (blocks, 2 * channels),
        "agent.weight": (channels,),
        "head.hidden.weight": (2 * channels, HIDDEN),
        "head.hidden.bias": (HIDDEN,),
        "head.output.weight": (HIDDEN, OUTPUTS),
        "head.output.bias": (OUTPUTS,),
        "prior.hidden.weight": (PRIOR_INPUTS, PRIOR),
        "prior.hidden.bias": (PRIOR,),
        "prior.output.weight": (PRIOR,),
        "prior.bias": (LONGEST, LONGEST + 1),
        "advance": (2,),
        "emission.classes": (actions, CLASSES),
        "emission.finished": (actions,),
        "verdict.temperature": (1,),
        "verdict.change": (CLASSES,),
        "verdict.bias": (actions, CLASSES),
        "progress": (2,),
    }


class EmbeddedNetwork:
    """A trained network. Made by `from_tensors` or `load`."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors
        self.channels = len(tensors["tiles.bias"])
        self.blocks = len(tensors["blocks.bias"])
        self.words = len(tensors["words.embedding"])
        """Number of tokens that it knows."""
        self.parameters = sum(tensor.size for tensor in tensors.values())
        """Number of weights."""
        self._reasoning = {name: tensors[name].astype(np.float64) for name in shapes(1, 1, 1) if _reasons(name)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> EmbeddedNetwork:
        """A network with these weights, named and shaped as in `shapes`.

        Raises:
            KeyError: if a tensor is missing.
            ValueError: if there is one too many, or if a shape, a type or a number is wrong.
        """
        expected = shapes(tensors["tiles.bias"].size, len(tensors["blocks.bias"]), len(tensors["words.embedding"]))
        if unknown := sorted(set(tensors) - set(expected)):
            raise ValueError(f"the embedded network has no tensor {unknown[0]!r}")
        for name, shape in expected.items():
            if tensors[name].shape != shape:
                raise ValueError(f"the embedded network's {name!r} has shape {shape}, not {tensors[name].shape}")
            if tensors[name].dtype != np.float32 or not np.isfinite(tensors[name]).all():
                raise ValueError(f"the embedded network's {name!r} is not made of finite float32 numbers")
        return cls({name: np.ascontiguousarray(tensors[name]) for name in expected})

    @classmethod
    def load(cls, path: Path) -> EmbeddedNetwork:
        """Reads a safetensors file. Raises OSError, safetensors.SafetensorError, or what `from_tensors` raises."""
        return cls.from_tensors(storage.load(path.read_bytes()))

    # --- looking --------------------------------------------------------------------------------------------------------------------

    def look(self, pictures: npt.NDArray[np.uint8], clauses: Sequence[Sequence[int]]) -> Looks:
        """Looks at every picture with every sub-task in mind.

        Args:
            pictures: (N, height, width, 3), N >= 1, edges multiples of 8 pixels, at least two rows of tiles.
            clauses: tokens of each sub-task, from 1 to V - 1; at least one sub-task with at least one token.

        Raises:
            ValueError: if an argument is not like that.
        """
        words = self._read(clauses)
        tiles, of_picture = _distinct(_tiles(pictures))
        embedded = np.maximum(tiles @ self._tensors["tiles.weight"] + self._tensors["tiles.bias"], 0)
        grid, carried = embedded[:, :-1], embedded[:, -1, 0]
        agent = _softmax((grid @ self._tensors["agent.weight"]).reshape(len(grid), -1))
        scale, shift = self._film(words, carried)
        at_once = max(1, _CELLS // agent[0].size)
        seen = np.empty((len(words), len(grid), 2 * self.channels), np.float32)
        for start in range(0, len(grid), at_once):
            some = slice(start, start + at_once)
            for clause in range(len(words)):
                seen[clause, some] = self._convolve(grid[some], scale[:, clause, some], shift[:, clause, some], agent[some])
        return self._answer(seen[:, of_picture], words)

    def _read(self, clauses: Sequence[Sequence[int]]) -> Array:
        """(L, 64): the last state of a gated recurrent network that reads the tokens."""
        if not clauses or not all(0 < token < self.words for clause in clauses for token in clause) or not all(map(len, clauses)):
            raise ValueError(f"sub-tasks are one or more, each of one or more tokens from 1 to {self.words - 1}")
        return np.stack([self._read_one(clause) for clause in clauses])

    def _read_one(self, clause: Sequence[int]) -> Array:
        tensors, state = self._tensors, np.zeros(WORDS, np.float32)
        inputs = tensors["words.embedding"][list(clause)] @ tensors["words.input.weight"] + tensors["words.input.bias"]
        for word in inputs:
            before = state @ tensors["words.state.weight"] + tensors["words.state.bias"]
            reset, update = (_sigmoid(word[gate] + before[gate]) for gate in (slice(0, WORDS), slice(WORDS, 2 * WORDS)))
            new = np.tanh(word[2 * WORDS :] + reset * before[2 * WORDS :])
            state = (1 - update) * new + update * state
        return state.astype(np.float32)

    def _film(self, words: Array, carried: Array) -> tuple[Array, Array]:
        """What multiplies and what is added to the channels: each (B, L, N, C)."""
        weight, bias = self._tensors["film.weight"], self._tensors["film.bias"]
        film = (words @ weight[:, :WORDS])[:, :, None] + (carried @ weight[:, WORDS:] + bias[:, None])[:, None]
        scale = 1 + film[..., : self.channels]
        # The convolution's bias is scaled as well: one addition less for every cell.
        return scale, film[..., self.channels :] + scale * self._tensors["blocks.bias"][:, None, None]

    def _convolve(self, grid: Array, scale: Array, shift: Array, agent: Array) -> Array:
        """What is seen where the agent stands, and the most that is seen anywhere, side by side after all blocks: (pictures, 2 C).

        All neighbourhoods are laid out side by side, so that a convolution is a single product of matrices.
        """
        pictures, rows, columns, channels = grid.shape
        padded = np.zeros((pictures, rows + 2, columns + 2, channels), np.float32)
        inside = padded[:, 1:-1, 1:-1]
        inside[...] = grid
        a, b, c, d = padded.strides
        # Three neighbours in a row lie next to each other in memory, whatever their place.
        neighbours = as_strided(padded, (pictures, rows, columns, 3, 3 * channels), (a, b, c, b, d), writeable=False)
        laid_out = np.empty(neighbours.shape, np.float32)
        changed = np.empty((pictures, rows * columns, channels), np.float32)
        for block, weight in enumerate(self._tensors["blocks.weight"]):
            np.copyto(laid_out, neighbours)
            np.matmul(laid_out.reshape(-1, 9 * channels), weight, out=changed.reshape(-1, channels))
            np.multiply(changed, scale[block, :, None], out=changed)
            np.add(changed, shift[block, :, None], out=changed)
            np.maximum(changed, 0, out=changed)
            inside += changed.reshape(inside.shape)
        np.copyto(changed.reshape(inside.shape), inside)
        return np.concatenate([(agent[:, None] @ changed)[:, 0], changed.max(1)], 1)

    def _answer(self, seen: Array, words: Array) -> Looks:
        hidden = np.maximum(seen @ self._tensors["head.hidden.weight"] + self._tensors["head.hidden.bias"], 0)
        outputs: Array = hidden @ self._tensors["head.output.weight"] + self._tensors["head.output.bias"]
        actions, classes = len(ACTIONS), len(ACTIONS) * CLASSES
        return Looks(
            classes=outputs[..., :classes].reshape(*outputs.shape[:2], actions, CLASSES),
            completes=outputs[..., classes : classes + actions],
            distance=np.expm1(np.clip(outputs[..., -2], 0, np.log1p(np.float32(LARGEST_DISTANCE)))),
            done=outputs[..., -1],
            words=words,
        )

    # --- reasoning ------------------------------------------------------------------------------------------------------------------

    def judge(self, looks: Looks, actions: Sequence[int]) -> Judgement:
        """What each action did for the instruction, given all pictures and actions of the window.

        Args:
            looks: of T + 1 successive pictures, with the sub-tasks in order, at most six.
            actions: T indices into `ACTIONS`, between the pictures; none for a single picture.

        Raises:
            ValueError: if an argument is not like that.
        """
        length, pictures = looks.done.shape
        if not 1 <= length <= LONGEST:
            raise ValueError(f"an instruction has 1 to {LONGEST} sub-tasks, not {length}")
        if pictures != len(actions) + 1 or not all(0 <= action < len(ACTIONS) for action in actions):
            raise ValueError(f"{len(actions)} actions from 0 to {len(ACTIONS) - 1} lie between {len(actions) + 1} pictures, not {pictures}")
        made, steps = np.array(actions, np.intp), np.arange(len(actions))
        classes, completes = _cut(looks.classes)[:, steps, made], _cut(looks.completes)[:, steps, made]
        distance = np.clip(looks.distance.astype(np.float64), 0, LARGEST_DISTANCE)
        due = self._due(classes, completes, distance, _cut(looks.done), looks.words.astype(np.float64), made)
        verdict = np.einsum("tk,ktc->tc", due[:-1], self._verdicts(classes, distance, made))
        share = _sigmoid(self._reasoning["progress"][0] + self._reasoning["progress"][1] * distance)
        reached = (np.arange(length + 1)[:, None] + np.concatenate([share, np.zeros((1, pictures))])) / length
        progress = np.clip(np.einsum("tk,kt->t", due, reached), 0, 1)
        return Judgement(verdict.astype(np.float32), due.astype(np.float32), progress.astype(np.float32), reached.T.astype(np.float32))

    def _due(self, classes: Exact, completes: Exact, distance: Exact, done: Exact, words: Exact, made: npt.NDArray[np.intp]) -> Exact:
        """(T + 1, L + 1) posterior of the number of sub-tasks done, by a forward and a backward pass over the window."""
        tensors = self._reasoning
        advance = tensors["advance"][0] + tensors["advance"][1] * completes
        on, stay = _log_sigmoid(advance), _log_sigmoid(-advance)
        finished = np.broadcast_to(tensors["emission.finished"][made], (1, len(made)))
        emission = np.concatenate([_log_sum(tensors["emission.classes"][made] + _log_softmax(classes)), finished])
        stay = np.concatenate([stay, np.zeros((1, len(made)))])
        forward = np.empty((len(made) + 1, len(emission)))
        backward = np.zeros_like(forward)
        forward[0] = self._prior(distance, done, words)
        for t in range(len(made)):
            seen = forward[t] + emission[:, t]
            forward[t + 1] = seen + stay[:, t]
            forward[t + 1, 1:] = np.logaddexp(forward[t + 1, 1:], seen[:-1] + on[:, t])
        for t in reversed(range(len(made))):
            later = stay[:, t] + backward[t + 1]
            later[:-1] = np.logaddexp(later[:-1], on[:, t] + backward[t + 1, 1:])
            backward[t] = later + emission[:, t]
        return _softmax(forward + backward)

    def _prior(self, distance: Exact, done: Exact, words: Exact) -> Exact:
        """(L + 1,) scores of the number of sub-tasks done at the first picture, from what it shows of each and of the next one."""
        tensors, length = self._reasoning, len(words)
        each = np.concatenate([done[:, :1], np.log1p(distance[:, :1]), words], 1)
        following = np.concatenate([each[1:], np.zeros_like(each[:1])])
        inputs = np.concatenate([each, following, np.arange(length)[:, None] == length - 1], 1)
        hidden = np.maximum(inputs @ tensors["prior.hidden.weight"] + tensors["prior.hidden.bias"], 0)
        scores = np.concatenate([[0.0], np.cumsum(hidden @ tensors["prior.output.weight"])])
        prior: Exact = scores + tensors["prior.bias"][length - 1, : length + 1]
        return prior

    def _verdicts(self, classes: Exact, distance: Exact, made: npt.NDArray[np.intp]) -> Exact:
        """(L + 1, T, 3) probabilities of the classes if so many sub-tasks were done before the action."""
        tensors = self._reasoning
        change = np.clip(np.diff(distance, axis=1), -2, 2)
        logits = classes * tensors["verdict.temperature"] + change[..., None] * tensors["verdict.change"] + tensors["verdict.bias"][made]
        nothing_left = np.broadcast_to(np.array([0.0, 1.0, 0.0]), (1, len(made), CLASSES))
        return np.concatenate([_softmax(logits), nothing_left])


def _reasons(name: str) -> bool:
    return name.split(".")[0] in ("prior", "advance", "emission", "verdict", "progress")


def _tiles(pictures: npt.NDArray[np.uint8]) -> Array:
    """(N, rows, columns, 192) pixels of each tile, from 0 to 1. Raises ValueError for anything but pictures made of tiles."""
    if pictures.ndim != 4 or pictures.dtype != np.uint8 or pictures.shape[3] != 3 or not pictures.size:
        raise ValueError(f"pictures are (N, height, width, 3) uint8, not {pictures.shape} {pictures.dtype}")
    count, height, width, _ = pictures.shape
    if height % TILE or width % TILE or height < 2 * TILE:
        raise ValueError(f"pictures are made of tiles of {TILE} pixels, in two rows or more; {height} x {width} pixels are not")
    cut = pictures.reshape(count, height // TILE, TILE, width // TILE, TILE, 3).swapaxes(2, 3)
    return cut.reshape(count, height // TILE, width // TILE, 3 * TILE * TILE).astype(np.float32) / np.float32(255)


def _distinct(pictures: Array) -> tuple[Array, list[int]]:
    """The pictures that differ, and which of them each one is: an action that does nothing leaves the same picture."""
    places: dict[bytes, int] = {}
    first: list[int] = []
    for place, picture in enumerate(pictures):
        if places.setdefault(picture.tobytes(), len(first)) == len(first):
            first.append(place)
    return pictures[first], [places[picture.tobytes()] for picture in pictures]


def _cut(logits: Array) -> Exact:
    return np.clip(logits.astype(np.float64), -LARGEST_LOGIT, LARGEST_LOGIT)


def _sigmoid(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Written with tanh, which never overflows."""
    return 0.5 * (1 + np.tanh(0.5 * values))


def _log_sigmoid(values: Exact) -> Exact:
    return -np.logaddexp(0.0, -values)


def _log_sum(values: Exact) -> Exact:
    """The logarithm of the sum of exponentials over the last axis."""
    highest = values.max(-1)
    total: Exact = highest + np.log(np.exp(values - highest[..., None]).sum(-1))
    return total


def _log_softmax(values: Exact) -> Exact:
    return values - _log_sum(values)[..., None]


def _softmax(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    raised = np.exp(values - values.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)  # type: ignore[no-any-return]

"""A small vision-language rater for BabyAI pictures that comes with the package: no key, no download, no cost, and no picture leaves the
machine.

A network of less than two million weights looks at the pictures of a request, reads the instruction and the names of the actions,
and says of each action whether it hindered, did not matter or served, and of each picture how much of the instruction is done (see
`_embedded_network`). It was trained on the labels of the simulator that draws these pictures (`guerdon train-embedded`), and its card says
how well it does on worlds that it never met. It never sees the simulator itself, and it says nothing about what general models can do.

It answers what every method asks:

    Text          what changed at each action, and what it did for the instruction, in sentences made from what was seen
    Scores        the expectation of 0, 3 and 10 (hinders, does not matter, serves), on the scale asked for, rounded half up
    Choice        the progress after each action, or its mean, cut into equal widths; the best class is kept for what is fulfilled
    Preference    the one with the higher mean progress; "neither" if they differ by less than 0.02

It declines whatever it was not trained for, with the final failure "unsupported" and a reason: other pictures than full views of a BabyAI
world that it knows, other words, other actions, more than one camera. Of a thing that an instruction names and that is nowhere to be seen
it says just that, and that no action serves it. Where a method shows only some of the observations of long behaviour, pictures are judged
one by one, by what they show, because several actions lie between them.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from guerdon.answers import Choice, Preference, Scores, Text
from guerdon.errors import UsageError
from guerdon.interfaces import Provider
from guerdon.providers import _embedded_file as file
from guerdon.providers import _embedded_prose as prose
from guerdon.providers._embedded_evidence import Seen, Unsupported, parts_of, see
from guerdon.providers._errors import digitise
from guerdon.records import Failure, Quote, Rater, Reply, Request, Usage, canonical_json, digest

SCORES = (0.0, 3.0, 10.0)
"""What an action scores on 0..10 that certainly hinders, does not matter, serves."""
FULFILLED = 0.9
"""Progress from which an instruction counts as fulfilled, "or nearly so", where a picture, a segment or an episode is rated."""
EQUAL = 0.02
"""Two whose mean progress differs by less are called equally good: of an instruction that takes 25 actions, half an action."""
WORLD = "babyai"
"""Name of the environment whose pictures it was trained on."""
OTHERS = (
    "Name another rater: --vlm google:MODEL, openai:MODEL or anthropic:MODEL, openai-compatible:MODEL@URL, hf:FOLDER for a model on this "
    "machine; or scripted, which needs recordings with their ground truth."
)
"""Whom to ask about other data."""
ANSWERS = 1
"""Raised whenever the same evidence and weights would be answered otherwise: answers of the one and of the other are not to be mixed."""

_SCORED = "analyse"
"""Purpose of a first turn that asks what each action did. Any other first turn is told how far the instruction is fulfilled."""
_SHIPPED = "babyai.safetensors"
_LOOKING, _LIBRARIES = Lock(), ThreadpoolController()
"""Matrix products here are small: spread over all cores they take longer than on one, and twenty times as long where others use the cores,
too. The number of cores is a setting of the whole process, so one rater at a time changes it and puts it back."""
_REMEMBERED = 256
"""Pieces of evidence whose judgement is kept: every turn of a conversation, and every repeat, is about the same."""
_DECIMALS = 4
_FREE = Usage(input_tokens=0, output_tokens=0, dollars=0.0)


class Embedded(Provider):
    """The rater that comes with the package, for pictures of BabyAI worlds."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the embedded rater."""

        weights: Path | None = None
        """File that `guerdon train-embedded` wrote; the one that comes with the package if not given."""

    def __init__(self, config: Config | None = None) -> None:
        """Reads the weights.

        Raises:
            ProviderError: if the file of the weights is not there, damaged or of another version.
        """
        self.config = config or self.Config()
        self._weights = _read(self.config.weights)
        self._remembered: OrderedDict[str, tuple[Seen, ...] | Failure] = OrderedDict()
        # One thread: conversations in flight wait for one another, and never the event loop for them.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guerdon-embedded")
        self.rater = Rater("embedded", self._weights.name, settings={"weights": self._weights.digest, "answers": ANSWERS})

    @classmethod
    def build(cls, argument: str = "", *, config: Config | None = None, world: Mapping[str, Any] | None = None) -> Embedded:
        """The rater called `embedded` or `embedded:WEIGHTS_FILE`.

        Args:
            argument: file of the weights.
            config: settings.
            world: what the recorder of the data wrote about it (`Dataset.environment`); None if there is no data yet.

        Raises:
            UsageError: if the data are of another world than BabyAI, or if two files are named.
            ProviderError: as the constructor.
        """
        if world is not None:
            cls.check_world(world)
        if argument and config is not None and config.weights is not None:
            raise UsageError(f"both '{argument}' and '{config.weights}' are to be its weights", where="embedded", cure="Name one of them.")
        return cls(cls.Config(weights=Path(argument).expanduser()) if argument else config)

    @staticmethod
    def check_world(world: Mapping[str, Any]) -> None:
        """Raises UsageError if data are of another world than BabyAI, by what their recorder wrote (`Dataset.environment`)."""
        if world.get("name") != WORLD:
            named = f"this dataset is of '{world['name']}'" if world.get("name") else "this dataset does not say that it is one"
            what = f"the rater that comes with the package reads recordings of BabyAI worlds only, and {named}"
            raise UsageError(what, where="embedded", cure=OTHERS)

    def quote(self, request: Request) -> Quote:
        """Nothing: it costs nothing."""
        del request
        return Quote(0, 0, 0.0)

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        """Answers one request from its evidence; every repeat is answered alike. What the network was not trained for gives the final
        failure "unsupported", whose code says why."""
        del repeat
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answered, request)

    async def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # --- in the thread --------------------------------------------------------------------------------------------------------------

    def _answered(self, request: Request) -> Reply | Failure:
        began = time.perf_counter()
        seen = self._seen(request)
        if isinstance(seen, Failure):
            return seen
        try:
            text = _answer(request, seen)
        except Unsupported as error:
            return _unsupported(error)
        return Reply(text, model=self.rater.model, usage=_FREE, seconds=time.perf_counter() - began)

    def _seen(self, request: Request) -> tuple[Seen, ...] | Failure:
        """What is seen in the evidence, or why nothing is. Of the latest requests it is remembered."""
        key = _identity(request)
        if key not in self._remembered:
            evidence = request.evidence
            try:
                parts = parts_of(evidence, request.subject)
                with _LOOKING, _LIBRARIES.limit(limits=1, user_api="blas"):
                    self._remembered[key] = tuple(see(self._weights, evidence.instruction, part) for part in parts)
            except Unsupported as error:
                self._remembered[key] = _unsupported(error)
        self._remembered.move_to_end(key)
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return self._remembered[key]


def _read(path: Path | None) -> file.Weights:
    if path is not None:
        return file.read(path, cure="Name a file that 'guerdon train-embedded' wrote, or none for the one that comes with the package.")
    with as_file(files("guerdon.providers") / "weights" / _SHIPPED) as shipped:
        return file.read(shipped, cure="Install the package again, or make weights of your own with: guerdon train-embedded")


def _unsupported(error: Unsupported) -> Failure:
    return Failure("unsupported", final=True, code=str(error), usage=_FREE)


def _identity(request: Request) -> str:
    """Digest of the evidence."""
    evidence = request.evidence
    frames = [frame.id for frame in evidence.frames]
    lengths = [part.stop - part.start for part in request.subject.parts]
    return digest(canonical_json([evidence.instruction, evidence.actions, evidence.other_actions, frames, lengths]))


# --- answers ------------------------------------------------------------------------------------------------------------------------


def _answer(request: Request, seen: Sequence[Seen]) -> str:
    """The reply's text. Raises Unsupported if the evidence is not what such an answer is about."""
    answer = request.answer
    if isinstance(answer, Text):
        return _words(request, seen)
    if isinstance(answer, Preference):
        return _preferred(answer, seen)
    if len(seen) != 1:
        raise Unsupported("a_pair")
    return _scored(answer, seen[0]) if isinstance(answer, Scores) else _rated(answer, seen[0])


def _scored(answer: Scores, seen: Seen) -> str:
    if len(seen.verdict) != answer.n:
        raise Unsupported("not_every_observation_is_shown" if not seen.actions else "numbers_do_not_fit")
    expected = seen.verdict.astype(np.float64) @ np.array(SCORES) / SCORES[-1]
    scores = [math.floor(answer.low + share * (answer.high - answer.low) + 0.5) for share in expected.tolist()]
    return _with(answer.render(scores), {"probabilities": _rounded(seen.verdict)})


def _rated(answer: Choice, seen: Seen) -> str:
    """Classes by progress: equal widths of 0 to 1, but for the best one.

    One class for a picture, a segment or an episode, by the mean progress over what its actions led to. Its best class means "fulfilled, or
    nearly so" and begins at 0.9; with four classes the edges are 1/4, 1/2 and 0.9. One class for each of several actions, by the progress
    after it: the best one means that the instruction is completed, and is given if that is more likely than not.

    How likely each class is stands beside it: the numbers of sub-tasks that may be done at a picture, each in the class of the progress
    that goes with it; of a segment or an episode the mean over its pictures.
    """
    levels = len(answer.options)
    if answer.n == 1:
        progress = [seen.mean_progress]
        best = [progress[0] >= FULFILLED]
        shares = _class_shares(seen, levels, seen.reached >= FULFILLED).mean(0, keepdims=True)
    elif len(seen.actions) == answer.n:
        progress = seen.progress[1:].tolist()
        completed = np.zeros_like(seen.reached, np.bool_)
        completed[:, -1] = seen.possible == len(seen.phrases)
        best = ((seen.due * completed).sum(1)[1:] > 0.5).tolist()
        shares = _class_shares(seen, levels, completed)
    else:
        raise Unsupported("numbers_do_not_fit")
    below = np.minimum(digitise(progress, levels), levels - 2).tolist()
    classes = [levels - 1 if done else lower for done, lower in zip(best, below, strict=True)]
    return _with(answer.render(classes), {"probabilities": _rounded(shares), "progress": _rounded(np.array(progress))})


def _class_shares(seen: Seen, levels: int, best: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(P', levels) how likely each class is, for the pictures that actions led to. `best` (P, K + 1): where the best class is due."""
    classes = np.where(best, levels - 1, np.minimum(digitise(np.clip(seen.reached, 0, 1), levels), levels - 2))
    shares = np.einsum("pk,pkc->pc", seen.due.astype(np.float64), np.eye(levels)[classes])
    return np.asarray(shares[seen.outcomes] / shares[seen.outcomes].sum(1, keepdims=True))


def _preferred(answer: Preference, seen: Sequence[Seen]) -> str:
    if len(seen) != 2:
        raise Unsupported("no_pair")
    return _with(answer.render(_better(seen)), {"progress": _rounded(np.array([each.mean_progress for each in seen]))})


def _better(seen: Sequence[Seen]) -> float:
    """0 for the first one, 0.5 for neither, 1 for the second one."""
    first, second = (each.mean_progress for each in seen)
    return 0.5 if abs(second - first) < EQUAL else float(second > first)


def _with(reply: str, more: Mapping[str, Any]) -> str:
    """A reply in JSON with more in it, which is stored with the reply, and which nobody who reads the answer has to know."""
    return json.dumps({**json.loads(reply), **more})


def _rounded(values: npt.NDArray[np.floating[Any]]) -> Any:
    return np.round(values.astype(np.float64), _DECIMALS).tolist()


def _words(request: Request, seen: Sequence[Seen]) -> str:
    """What was seen. Where pictures are rated or compared, the words end in a sign of what was seen: who is given the words alone must not
    take the pictures of one question for those of another."""
    if request.purpose == _SCORED:
        if len(seen) != 1 or not seen[0].actions:
            raise Unsupported("not_every_observation_is_shown")
        return "\n".join(prose.action_lines(seen[0], verdicts=True))
    if len(seen) == 2:
        better = {0.0: "The first one serves", 0.5: "Neither of the two serves", 1.0: "The second one serves"}[_better(seen)]
        told = [f"{name}: {prose.summary(each)}" for name, each in zip(("The first one", "The second one"), seen, strict=True)]
        told.append(f"{better} the instruction better than the other.")
    else:
        (one,) = seen
        several = len(one.scenes) > 1
        lines = prose.action_lines(one, verdicts=False) if one.actions else prose.picture_lines(one) if several else []
        told = [*lines, prose.summary(one)]
    return "\n".join([*told, f"[seen: {_identity(request)[-12:]}]"])

"""A rater that answers from the ground truth, with the errors of a real one: for tests, demonstrations and studies of label noise.

Reads no picture and opens no connection. Built with a table of the true contribution of every action, it scores actions that serve the
instruction high and the others low, then errs at the rates of its `Config`: wrong verdicts, scores off by one or two, optimism, refusals,
answers in a form that was not asked for, outages. (Error models after the scripted teachers of B-Pref, Lee et al. 2021, arXiv 2111.03026,
carried over from preferences to ratings.)

What is said about a window depends on the seed, the evidence and `repeat`, and not on the turn: an analysis and the scores that follow it
agree. The form of a reply depends on the seed, the question and `repeat`. Neither depends on the order in which questions are asked.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from guerdon import seeding
from guerdon.answers import Scores
from guerdon.errors import UnknownName, UsageError
from guerdon.interfaces import Provider
from guerdon.records import Cause, Failure, Quote, Rater, Reply, Request, Subject, Usage, canonical_json, digest

Truth = Callable[[Subject], npt.NDArray[np.floating[Any]]]
"""True contribution of each action of a subject: (n,), 1 serves the instruction, 0 does not matter, -1 hinders it, NaN is not known (and
answered like 0). Raises LookupError for a subject it knows nothing of."""

LOW, HIGH = 0, 10
"""Scale of the base scores; carried over to the scale that a request asks for."""
_TRANSIENT: tuple[Cause, ...] = ("timeout", "rate_limit", "overload", "network")
_RATES = ("flip", "adjacent", "optimism", "refusal", "malformed", "failure")
_FREE = Usage(input_tokens=0, output_tokens=0, dollars=0.0)


class Scripted(Provider):
    """Answers from a table of the ground truth, with errors at chosen rates."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Scores and error rates of the scripted rater. Rates are probabilities in [0, 1].

        Raises:
            UsageError: if a rate is no probability, a score lies outside 0..10, or the delay is negative.
        """

        seed: int = 0
        """Seed of all errors."""
        served: int = 9
        """Score of an action that serves the instruction."""
        neutral: int = 3
        """Score of an action that does not matter."""
        hindered: int = 1
        """Score of an action that works against the instruction."""
        jitter: int = 1
        """Every score moves by a whole number drawn evenly from -jitter..jitter."""
        flip: float = 0.12
        """Rate at which an action is misjudged: one that serves is scored as neutral, any other as one that serves."""
        adjacent: float = 0.25
        """Rate at which a score moves up or down by one or two more."""
        optimism: float = 0.1
        """Rate at which a score is raised by two."""
        refusal: float = 0.002
        """Rate of questions that are refused for good."""
        malformed: float = 0.02
        """Rate of replies in a form that was not asked for (wrong length, "8/10", prose, broken JSON)."""
        failure: float = 0.01
        """Rate of attempts that fail for a passing cause (timeout, rate limit, overload, network)."""
        delay: float = 0.0
        """Seconds before each reply."""

        def __post_init__(self) -> None:
            for name in _RATES:
                if not 0 <= getattr(self, name) <= 1:
                    raise UsageError(f"{name} is a probability from 0 to 1, got {getattr(self, name)}", where="scripted")
            for name in ("served", "neutral", "hindered"):
                if not LOW <= getattr(self, name) <= HIGH:
                    raise UsageError(f"{name} is a score from {LOW} to {HIGH}, got {getattr(self, name)}", where="scripted")
            if self.jitter < 0 or not 0 <= self.delay < float("inf"):
                raise UsageError(f"jitter and delay are not negative, got {self.jitter} and {self.delay}", where="scripted")

    PRESETS: ClassVar[dict[str, Config]] = {
        "realistic": Config(),
        "perfect": Config(jitter=0, flip=0, adjacent=0, optimism=0, refusal=0, malformed=0, failure=0),
        "noisy": Config(flip=0.3, adjacent=0.5),
        "optimist": Config(flip=0.05, optimism=0.6),
        "unreliable": Config(refusal=0.05, malformed=0.2, failure=0.2),
    }
    """Name -> settings, for `--vlm scripted:NAME`; plain `scripted` is "realistic"."""

    def __init__(self, config: Config | None = None, *, truth: Truth, truth_id: str = "", name: str = "") -> None:
        """`truth_id` identifies the table (e.g. a fingerprint of the dataset), `name` the preset: both are part of the rater's identity."""
        self.config = config or self.Config()
        self._truth = truth
        self._attempts: Counter[str] = Counter()
        self.rater = Rater("scripted", name, settings={**asdict(self.config), "truth": truth_id})

    @classmethod
    def build(cls, argument: str = "", *, config: Config | None = None, truth: Truth | None = None, truth_id: str = "") -> Scripted:
        """The rater called `scripted:ARGUMENT`.

        Args:
            argument: name of a preset; "" for "realistic".
            config: settings instead of a preset's.
            truth: the table to answer from.
            truth_id: see `__init__`.

        Raises:
            UnknownName: if no preset has that name.
            UsageError: if there is no table to answer from, or both a preset and settings are given.
        """
        if argument and argument not in cls.PRESETS:
            raise UnknownName("preset of the scripted rater", argument, cls.PRESETS)
        if argument and config is not None:
            raise UsageError(f"both the preset '{argument}' and settings of its own are given", where="scripted", cure="Give one of them.")
        if truth is None:
            cure = "Use a dataset that carries its ground truth (such as one from 'guerdon collect babyai'), or another --vlm."
            raise UsageError("the scripted rater answers from the ground truth, and there is none", where="scripted", cure=cure)
        name = argument or ("realistic" if config is None else "")
        return cls(config or cls.PRESETS[name], truth=truth, truth_id=truth_id, name=name)

    def quote(self, request: Request) -> Quote:
        """Nothing: it costs nothing."""
        del request
        return Quote(0, 0, 0.0)

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        """Answers one request. A subject without ground truth gives the final failure "unsupported"."""
        began = time.perf_counter()
        if self.config.delay:
            await asyncio.sleep(self.config.delay)
        outage = self._outage(request, repeat)
        if outage is not None:
            return outage
        try:
            truth = np.asarray(self._truth(request.subject), dtype=np.float64)
        except LookupError:
            return Failure("unsupported", final=True, code="no_ground_truth", usage=_FREE)
        if truth.shape != (len(request.evidence.actions),):
            return Failure("unsupported", final=True, code="ground_truth_of_other_length", usage=_FREE)
        form = seeding.generator(self.config.seed, "form", request.question, repeat)
        if form.random() < self.config.refusal:
            return Failure("refusal", final=True, code="scripted", usage=_FREE)
        text = self._answer(request, self._scores(request, truth, repeat), form)
        return Reply(text, model=self.rater.name, usage=_FREE, seconds=time.perf_counter() - began)

    def _outage(self, request: Request, repeat: int) -> Failure | None:
        """An outage, perhaps. Each attempt at a question is drawn anew, so that it passes."""
        config, question = self.config, f"{request.question}/{repeat}"
        attempt = self._attempts[question]
        if config.failure and seeding.generator(config.seed, "failure", question, attempt).random() < config.failure:
            self._attempts[question] = attempt + 1
            cause = _TRANSIENT[int(seeding.generator(config.seed, "cause", question, attempt).integers(len(_TRANSIENT)))]
            return Failure(cause, final=False, code="scripted", usage=_FREE)
        return None

    def _scores(self, request: Request, truth: npt.NDArray[np.float64], repeat: int) -> npt.NDArray[np.int64]:
        """One score per action on 0..10, errors included: the same in every turn about the same evidence."""
        config, evidence = self.config, request.evidence
        seen = digest(canonical_json([evidence.instruction, evidence.actions, [frame.id for frame in evidence.frames]]))
        random = seeding.generator(config.seed, "scores", seen, repeat)
        count = len(truth)
        serves = (truth > 0) ^ (random.random(count) < config.flip)
        wrong = serves != (truth > 0)
        base = np.where(serves, config.served, np.where((truth < 0) & ~wrong, config.hindered, config.neutral))
        jitter = random.integers(-config.jitter, config.jitter + 1, count)
        nudge = random.choice([-2, -1, 1, 2], count) * (random.random(count) < config.adjacent)
        raised = 2 * (random.random(count) < config.optimism)
        scores: npt.NDArray[np.int64] = np.clip(base + jitter + nudge + raised, LOW, HIGH).astype(np.int64)
        return scores

    def _answer(self, request: Request, scores: npt.NDArray[np.int64], form: np.random.Generator) -> str:
        malformed = bool(form.random() < self.config.malformed)
        if not isinstance(request.answer, Scores):
            return "The agent moves around." if malformed else _analysis(request.evidence.actions, scores)
        specification = request.answer
        share = (scores - LOW) / (HIGH - LOW)
        asked = np.rint(specification.low + share * (specification.high - specification.low)).astype(int).tolist()
        return _malformed(asked, form) if malformed else specification.render(asked)


def _analysis(actions: tuple[str, ...], scores: npt.NDArray[np.int64]) -> str:
    """One line per action, "number: action - words", whose words agree with the scores."""
    pairs = zip(actions, scores.tolist(), strict=True)
    return "\n".join(f"{number}: {action} - {_words(score)}" for number, (action, score) in enumerate(pairs))


def _words(score: int) -> str:
    if score >= 8:
        return "gets closer to what the instruction asks for"
    if score >= 6:
        return "probably gets a little closer to what the instruction asks for"
    if score >= 2:
        return "does not matter for the instruction"
    return "leads away from what the instruction asks for"


def _malformed(scores: list[int], random: np.random.Generator) -> str:
    """A reply that carries `scores` in a form that must not be read."""
    whole = json.dumps({"scores": scores})
    forms = (
        json.dumps({"scores": scores[:-1]}),
        json.dumps({"scores": [*scores, scores[-1]]}),
        json.dumps({"scores": [f"{score}/10" for score in scores]}),
        json.dumps({"scores": [score + 0.5 for score in scores]}),
        whole[: len(whole) // 2],
        "Overall the agent does well: " + ", ".join(f"about {score}" for score in scores),
        "",
    )
    return forms[int(random.integers(len(forms)))]

"""A rater that answers from the ground truth, with the errors of a real one: for tests, demonstrations and studies of label noise.

Reads no picture and opens no connection. Built with a table of the true contribution of every action, it scores actions that serve the
instruction high and the others low. Built with a table of the true quality of every observation (how far the instruction is fulfilled, 0 to
1), it puts pictures, transitions and segments into classes, and says which of two is better:

    a picture       the class of its quality: the number of edges that it reaches
    a transition    that of the observation it leads to
    a segment       that of the mean quality of the observations that its transitions lead to
    two of them     the one with the higher (mean) quality

Then it errs at the rates of its `Config`: wrong verdicts, scores off by one or two, optimism, refusals, answers in a form that was not
asked for, outages. (Error models after the scripted teachers of B-Pref, Lee et al. 2021, arXiv 2111.03026, carried over from preferences to
ratings; see `_errors.py`.)

What is said about a window depends on the seed, the evidence and `repeat`, and not on the turn: an analysis and the scores that follow it
agree. The form of a reply depends on the seed, the question and `repeat`. Neither depends on the order in which questions are asked.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from guerdon import seeding
from guerdon.answers import Choice, Preference, Scores, Text
from guerdon.errors import ProviderError, UnknownName, UsageError
from guerdon.interfaces import Provider
from guerdon.providers._errors import confuse, draw_classes, myopic_return, prefer
from guerdon.records import Cause, Evidence, Failure, Quote, Rater, Reply, Request, Subject, Usage, canonical_json, digest

Truth = Callable[[Subject], npt.NDArray[np.floating[Any]]]
"""True contribution of each action of a subject: (n,), 1 serves the instruction, 0 does not matter, -1 hinders it, NaN is not known (and
answered like 0). Raises LookupError for a subject it knows nothing of."""

Qualities = Callable[[Subject], npt.NDArray[np.floating[Any]]]
"""How far the instruction is fulfilled at each observation of a subject, in [0, 1]: (n+1,) for n transitions, (1,) for a single picture;
NaN is not known. Asked for each of the two of a pair. Raises LookupError for a subject it knows nothing of."""

LOW, HIGH = 0, 10
"""Scale of the base scores; carried over to the scale that a request asks for."""
_TRANSIENT: tuple[Cause, ...] = ("timeout", "rate_limit", "overload", "network")
_RATES = ("flip", "adjacent", "optimism", "mistake", "adjacent_class", "optimist_class", "skip", "refusal", "malformed", "failure")
_NOT_NEGATIVE = ("jitter", "delay", "rating_temperature", "preference_temperature", "equal")
_SCORED = "analyse"
"""Purpose of a first turn that asks what each action did. Any other first turn is told how far the instruction is fulfilled."""
_FREE = Usage(input_tokens=0, output_tokens=0, dollars=0.0)


class Scripted(Provider):
    """Answers from tables of the ground truth, with errors at chosen rates."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Scores and error rates of the scripted rater. Rates are probabilities in [0, 1].

        Raises:
            UsageError: if a rate is no probability, a score lies outside 0..10, the edges do not rise within [0, 1], or a number is
                negative that cannot be.
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
        edges: tuple[float, ...] = ()
        """Qualities at which the next class begins, one fewer than there are classes; equal widths if not given."""
        mistake: float = 0.05
        """Rate at which a class is replaced by another one, drawn evenly, and at which a preference is turned round."""
        adjacent_class: float = 0.1
        """Rate at which a class moves up or down by one."""
        optimist_class: float = 0.05
        """Rate at which a class is raised by one."""
        rating_temperature: float = 0.0
        """How unsure classes are near the edges: the softmax of -(distance to the middle of a class) / this. 0 for not at all."""
        preference_temperature: float = 0.0
        """How unsure preferences are: the second one is called better with the logistic function of (difference of quality) / this."""
        equal: float = 0.0
        """Two whose qualities differ by no more than this are called equally good."""
        discount: float = 1.0
        """In preferences between segments, each observation counts this times as much as the next one (1: all the same)."""
        skip: float = 0.0
        """Rate of things that the rater declines to rate or to compare."""
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
            for name in _NOT_NEGATIVE:
                if not 0 <= getattr(self, name) < float("inf"):
                    raise UsageError(f"{name} is a number from 0 on, got {getattr(self, name)}", where="scripted")
            if not 0 < self.discount <= 1:
                raise UsageError(f"discount is a number above 0 and up to 1, got {self.discount}", where="scripted")
            rising = all(low < high for low, high in zip((0.0, *self.edges), (*self.edges, 1.0), strict=True))
            if self.edges and not rising:
                raise UsageError(f"edges rise and lie between 0 and 1, got {self.edges}", where="scripted")

    PRESETS: ClassVar[dict[str, Config]] = {
        "realistic": Config(),
        "perfect": Config(
            jitter=0, flip=0, adjacent=0, optimism=0, mistake=0, adjacent_class=0, optimist_class=0, refusal=0, malformed=0, failure=0
        ),
        "noisy": Config(flip=0.3, adjacent=0.5, mistake=0.2, adjacent_class=0.3),
        "optimist": Config(flip=0.05, optimism=0.6, mistake=0.02, optimist_class=0.5),
        "unreliable": Config(refusal=0.05, malformed=0.2, failure=0.2),
    }
    """Name -> settings, for `--vlm scripted:NAME`; plain `scripted` is "realistic"."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        truth: Truth | None = None,
        qualities: Qualities | None = None,
        truth_id: str = "",
        name: str = "",
    ) -> None:
        """`truth_id` identifies the tables (e.g. a fingerprint of the dataset), `name` the preset: both belong to the rater's identity."""
        self.config = config or self.Config()
        self._truth, self._qualities = truth, qualities
        self._attempts: Counter[str] = Counter()
        self.rater = Rater("scripted", name, settings={**asdict(self.config), "edges": list(self.config.edges), "truth": truth_id})

    @classmethod
    def build(
        cls,
        argument: str = "",
        *,
        config: Config | None = None,
        truth: Truth | None = None,
        qualities: Qualities | None = None,
        truth_id: str = "",
    ) -> Scripted:
        """The rater called `scripted:ARGUMENT`.

        Args:
            argument: name of a preset; "" for "realistic".
            config: settings instead of a preset's.
            truth: the table that scores are answered from.
            qualities: the table that ratings and preferences are answered from.
            truth_id: see `__init__`.

        Raises:
            UnknownName: if no preset has that name.
            UsageError: if there is no table to answer from, or both a preset and settings are given.
        """
        if argument and argument not in cls.PRESETS:
            raise UnknownName("preset of the scripted rater", argument, cls.PRESETS)
        if argument and config is not None:
            raise UsageError(f"both the preset '{argument}' and settings of its own are given", where="scripted", cure="Give one of them.")
        if truth is None and qualities is None:
            cure = "Use a dataset that carries its ground truth (such as one from 'guerdon collect babyai'), or another --vlm."
            raise UsageError("the scripted rater answers from the ground truth, and there is none", where="scripted", cure=cure)
        name = argument or ("realistic" if config is None else "")
        return cls(config or cls.PRESETS[name], truth=truth, qualities=qualities, truth_id=truth_id, name=name)

    def quote(self, request: Request) -> Quote:
        """Nothing: it costs nothing."""
        del request
        return Quote(0, 0, 0.0)

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        """Answers one request. A subject without ground truth gives the final failure "unsupported". Raises ProviderError if there is no
        table for this kind of question."""
        began = time.perf_counter()
        if self.config.delay:
            await asyncio.sleep(self.config.delay)
        outage = self._outage(request, repeat)
        if outage is not None:
            return outage
        said = self._judged(request, repeat)
        if isinstance(said, Failure):
            return said
        form = seeding.generator(self.config.seed, "form", request.question, repeat)
        if form.random() < self.config.refusal:
            return Failure("refusal", final=True, code="scripted", usage=_FREE)
        text = said.malformed(form) if form.random() < self.config.malformed else said.good
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

    def _judged(self, request: Request, repeat: int) -> _Said | Failure:
        """What is to be said to a request, errors included: the same in every turn about the same evidence."""
        answer, evidence, count = request.answer, request.evidence, request.subject.stop - request.subject.start
        seen = sign_of(evidence)
        by_action = count > 0 and request.subject.other is None and (request.purpose == _SCORED or self._qualities is None)
        if isinstance(answer, Scores) or (by_action and isinstance(answer, Text) and self._truth):
            return self._scored(request, seen, repeat)
        try:
            parts = [self._known(part) for part in request.subject.parts]
        except LookupError:
            return _unsupported("no_ground_truth")
        except ValueError:
            return _unsupported("ground_truth_of_other_length")
        if not isinstance(answer, Text) and seeding.generator(self.config.seed, "skip", seen, repeat).random() < self.config.skip:
            return Failure("refusal", final=True, code="skip", usage=_FREE)
        if isinstance(answer, Choice):
            return self._rated(answer, parts, seen, repeat)
        if isinstance(answer, Preference):
            return self._preferred(answer, parts, seen, repeat)
        return self._described(evidence.actions, parts, seen, repeat)

    # --- scores ---------------------------------------------------------------------------------------------------------------------

    def _scored(self, request: Request, seen: str, repeat: int) -> _Said | Failure:
        try:
            truth = np.asarray(_asked(self._truth, request.subject, "whether actions serve the instruction"), dtype=np.float64)
        except LookupError:
            return _unsupported("no_ground_truth")
        if truth.shape != (len(request.evidence.actions),):
            return _unsupported("ground_truth_of_other_length")
        scores = self.scores(truth, seen, repeat)
        if not isinstance(request.answer, Scores):
            return _Said(_analysis(request.evidence.actions, scores), _vague)
        specification = request.answer
        share = (scores - LOW) / (HIGH - LOW)
        asked = np.rint(specification.low + share * (specification.high - specification.low)).astype(int).tolist()
        return _Said(specification.render(asked), partial(_malformed, asked))

    def scores(self, truth: npt.NDArray[np.floating[Any]], seen: str, repeat: int = 0) -> npt.NDArray[np.int64]:
        """One score per action on 0..10, errors included: what is answered about the evidence with the sign `seen` (`sign_of`).

        Args:
            truth: (n,) contribution of each action, as `Truth` gives it.

        Returns:
            (n,)
        """
        config = self.config
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

    # --- ratings and preferences ----------------------------------------------------------------------------------------------------

    def _known(self, part: Subject) -> npt.NDArray[np.float64]:
        """True qualities of the observations that count, (n,) for n transitions, (1,) for a picture. Raises LookupError, ValueError."""
        found = np.asarray(_asked(self._qualities, part, "how far the instruction is fulfilled"), dtype=np.float64)
        if found.shape != (part.stop - part.start + 1,):
            raise ValueError("a quality for each observation is needed")
        outcomes = found[1:] if part.stop > part.start else found
        if np.isnan(outcomes).any():
            raise LookupError("a quality is not known")
        return outcomes

    def _rated(self, answer: Choice, parts: Sequence[npt.NDArray[np.float64]], seen: str, repeat: int) -> _Said | Failure:
        levels, outcomes = len(answer.options), np.concatenate(parts)
        if self.config.edges and len(self.config.edges) != levels - 1:
            return _unsupported("edges_of_another_number_of_classes")
        if answer.n == 1:
            outcomes = outcomes.mean(keepdims=True)
        if len(outcomes) != answer.n:
            return _unsupported("ground_truth_of_other_length")
        classes = self._classes(outcomes, levels, seen, repeat)
        return _Said(answer.render(classes), partial(_malformed_choices, answer, classes))

    def _classes(self, qualities: npt.NDArray[np.float64], levels: int, seen: str, repeat: int) -> list[int]:
        """The class of each quality (n,), errors included."""
        config = self.config
        random = seeding.generator(config.seed, "classes", seen, repeat)
        edges = config.edges if len(config.edges) == levels - 1 else None
        drawn = draw_classes(qualities, levels, random, temperature=config.rating_temperature, edges=edges)
        rates = {"mistake": config.mistake, "adjacent": config.adjacent_class, "optimism": config.optimist_class}
        return [int(each) for each in confuse(drawn, levels, random, **rates)]

    def _preferred(self, answer: Preference, parts: Sequence[npt.NDArray[np.float64]], seen: str, repeat: int) -> _Said | Failure:
        if len(parts) != 2:
            return _unsupported("no_pair")
        value = self._better(parts, seen, repeat)
        return _Said(answer.render(value), partial(_malformed_preference, answer, value))

    def _better(self, parts: Sequence[npt.NDArray[np.float64]], seen: str, repeat: int) -> float:
        """0 for the first one, 0.5 for neither, 1 for the second one, errors included."""
        config = self.config
        means = [myopic_return(part, config.discount) / myopic_return(np.ones(len(part)), config.discount) for part in parts]
        random = seeding.generator(config.seed, "preference", seen, repeat)
        first, second = (np.array([mean]) for mean in means)
        rates = {"temperature": config.preference_temperature, "equal": config.equal, "mistake": config.mistake}
        return float(prefer(first, second, random, **rates)[0])

    def _described(self, actions: tuple[str, ...], parts: Sequence[npt.NDArray[np.float64]], seen: str, repeat: int) -> _Said:
        """How far the instruction is fulfilled, in words that agree with what is answered afterwards. They end in a sign of what was seen:
        who is given the words alone must not take the pictures of one question for those of another."""
        if len(parts) == 2:
            better = {0.0: "The first one serves", 0.5: "Neither of the two serves", 1.0: "The second one serves"}
            lines = [f"{better[self._better(parts, seen, repeat)]} the instruction better than the other."]
        else:
            fulfilled = [_FULFILLED[each] for each in self._classes(parts[0], len(_FULFILLED), seen, repeat)]
            several = len(actions) == len(fulfilled)
            lines = [f"{number}: {actions[number]} - {each}" if several else each for number, each in enumerate(fulfilled)]
        return _Said("\n".join([*lines, f"[seen: {seen[-12:]}]"]), _vague)


def sign_of(evidence: Evidence) -> str:
    """Digest of what is seen: the errors made about it depend on nothing else."""
    return digest(canonical_json([evidence.instruction, evidence.actions, [frame.id for frame in evidence.frames]]))


class _Said(NamedTuple):
    """What is said, and the same in a form that was not asked for."""

    good: str
    malformed: Callable[[np.random.Generator], str]


_FULFILLED = ("the instruction is hardly fulfilled", "the instruction is partly fulfilled", "the instruction is all but fulfilled")


def _unsupported(code: str) -> Failure:
    return Failure("unsupported", final=True, code=code, usage=_FREE)


def _asked(table: Truth | None, subject: Subject, what: str) -> npt.NDArray[np.floating[Any]]:
    """Asks a table. Raises ProviderError if there is none: no question of this kind can be answered."""
    if table is None:
        cure = "Use a method that asks for what the dataset records, another dataset, or another --vlm."
        raise ProviderError(f"the ground truth does not say {what}", where="scripted", cure=cure)
    return table(subject)


def _vague(random: np.random.Generator) -> str:
    del random
    return "The agent moves around."


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


def _malformed_choices(answer: Choice, choices: Sequence[int], random: np.random.Generator) -> str:
    """A reply that carries `choices` in a form that must not be read."""
    names, whole = [answer.options[choice] for choice in choices], answer.render(choices)
    forms = (
        json.dumps({"ratings": names[:-1]}),
        json.dumps({"ratings": [*names, names[-1]]}),
        json.dumps({"ratings": [f"fairly {name}" for name in names]}),
        json.dumps({"ratings": [choice + 0.5 for choice in choices]}),
        whole[: len(whole) // 2],
        "Overall the agent does well: " + ", ".join(f"about {name}" for name in names),
        "",
    )
    return forms[int(random.integers(len(forms)))]


def _malformed_preference(answer: Preference, value: float, random: np.random.Generator) -> str:
    """A reply that carries `value` in a form that must not be read."""
    whole = answer.render(value)
    forms = (
        json.dumps({"better": "both"}),
        json.dumps({"better": value}),
        whole[: len(whole) // 2],
        "Both have something to be said for them, the first one as well as the second.",
        "",
    )
    return forms[int(random.integers(len(forms)))]

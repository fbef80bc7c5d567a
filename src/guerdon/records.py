"""The vocabulary of the package: frozen records that check themselves.

Time is written once, here. An episode has T actions a_0 .. a_{T-1} and T+1 observations o_0 .. o_T. `t` names the transition
(o_t, a_t, o_{t+1}). A segment [start, stop) holds the transitions start .. stop-1 and touches the observations start .. stop; an empty one
(start = stop) is the single observation `start`.

"Unknown" is a state, never a number. A label in the states `labelled`, `interpolated` or `human` carries a value; in the states
`unreadable` (the rater answered, but not what was asked), `refused`, `failed` and `skipped` it carries a cause and no value.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from guerdon.answers import AnswerSpec, answer_from_record

Frames = npt.NDArray[np.uint8]
"""Pictures: (N, H, W, 3) or (H, W, 3), uint8 RGB, upright."""

State = Literal["labelled", "interpolated", "human", "unreadable", "refused", "failed", "skipped"]
STATES: tuple[State, ...] = get_args(State)
STATES_WITH_VALUE: frozenset[State] = frozenset({"labelled", "interpolated", "human"})

Cause = Literal[
    "timeout", "rate_limit", "quota", "overload", "network", "authentication", "bad_request",
    "blocked", "refusal", "truncated", "empty", "unreadable", "unsupported",
]  # fmt: skip
CAUSES: tuple[Cause, ...] = get_args(Cause)


@dataclass(frozen=True)
class Pieces:
    """Bytes that are too many to be held at once."""

    give: Callable[[], Iterable[bytes]]
    """Gives them in order, piece by piece, as often as it is called."""


def digest(*parts: bytes | str | Pieces) -> str:
    """SHA-256 over `parts` (each preceded by its length, so that no two lists of parts collide), tagged with the algorithm."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, Pieces):
            state.update(sum(map(len, part.give())).to_bytes(8, "little"))
            for piece in part.give():
                state.update(piece)
            continue
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return "s256:" + state.hexdigest()


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no white space: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def array_digest(array: npt.NDArray[Any]) -> str:
    """Digest of an array's dtype, shape and values."""
    return digest(array.dtype.str, repr(array.shape), np.ascontiguousarray(array).tobytes())


# --- recorded behaviour -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """The transitions [start, stop) of an episode that carry out one sub-task, and the words for it."""

    start: int
    stop: int
    text: str

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a span needs 0 <= start <= stop, got [{self.start}, {self.stop})")


@dataclass(frozen=True)
class Annotation:
    """One wording of what an episode does: the whole instruction and, where known, the spans of its sub-tasks in order of time."""

    instruction: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class EpisodeInfo:
    """What is known of a recorded episode without reading its pictures.

    Raises:
        ValueError: if a span ends after the last transition.
    """

    index: int
    """Position in the dataset, 0-based."""
    length: int
    """T, the number of transitions; there are T+1 observations."""
    terminated: bool
    """The environment ended the episode (here: the instruction was carried out)."""
    truncated: bool
    """Recording stopped for another reason, such as a time limit."""
    annotations: tuple[Annotation, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the recorder wrote about the episode, e.g. its task and seed. Never shown to a rater."""

    def __post_init__(self) -> None:
        for annotation in self.annotations:
            for span in annotation.spans:
                if span.stop > self.length:
                    what = f"the span of '{span.text}' ends at {span.stop}"
                    raise ValueError(f"episode {self.index} has {self.length} transitions, but {what}")


@dataclass(frozen=True)
class Subject:
    """What a request is about. It travels with the request, but is neither rendered nor hashed."""

    episode: int
    start: int
    stop: int
    annotation: int = 0
    other: tuple[int, int, int, int] | None = None
    """Episode, start, stop and annotation of the second one of a pair."""

    @property
    def parts(self) -> tuple[Subject, ...]:
        """The subject itself, or each of the two of a pair."""
        return (self,) if self.other is None else (replace(self, other=None), Subject(*self.other))


@dataclass(frozen=True)
class Segment:
    """Transitions [start, stop) of one episode, seen through `views`; with start = stop the single observation `start`."""

    episode: int
    start: int
    stop: int
    views: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a segment needs 0 <= start <= stop, got [{self.start}, {self.stop})")

    @property
    def length(self) -> int:
        """Number of transitions."""
        return self.stop - self.start

    @property
    def observations(self) -> range:
        """The observations that the segment touches: one more than it has transitions."""
        return range(self.start, self.stop + 1)


@dataclass(frozen=True)
class Sample:
    """One thing to be judged: a segment (or a pair of them), the instruction it is judged by, and the names of its actions."""

    segment: Segment
    instruction: str
    actions: tuple[str, ...]
    """Names of the actions of the segment's transitions, in order."""
    annotation: int = 0
    """Which of the episode's annotations the instruction comes from."""
    frames: Callable[[], Mapping[str, Frames]] = field(default=dict, compare=False, repr=False)
    """Reads the pictures: view name -> (length + 1, H, W, 3) uint8."""
    other: Sample | None = None
    """The second one of a pair; it has the same instruction and views."""

    def __post_init__(self) -> None:
        if len(self.actions) != self.segment.length:
            raise ValueError(f"a sample of {self.segment.length} transitions needs as many action names, got {len(self.actions)}")
        if self.other is not None and (self.other.instruction, self.other.segment.views) != (self.instruction, self.segment.views):
            raise ValueError("the two of a pair are judged by the same instruction, seen through the same views")

    @property
    def subject(self) -> Subject:
        other = None
        if self.other is not None:
            second = self.other.segment
            other = second.episode, second.start, second.stop, self.other.annotation
        return Subject(self.segment.episode, self.segment.start, self.segment.stop, self.annotation, other)


# --- asking -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PictureFormat:
    """How pictures travel to a rater.

    Raises:
        ValueError: for a quality outside 1..100.
    """

    name: Literal["png", "jpeg"] = "png"
    """PNG changes no pixel; JPEG is smaller for camera pictures and blurs them a little."""
    quality: int = 90
    """Of JPEG, 1..100; means nothing for PNG."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"the quality of JPEG is 1 to 100, got {self.quality}")

    @property
    def media_type(self) -> str:
        return f"image/{self.name}"

    @property
    def text(self) -> str:
        """For a rater's settings: "png" or "jpeg 90"."""
        return self.name if self.name == "png" else f"{self.name} {self.quality}"


@dataclass(frozen=True)
class Picture:
    """A picture in a request: identity and pixels.

    `id` is the digest of the source frames and of the drawing recipe; two pictures are equal if their ids are.
    """

    id: str
    pixels: Frames = field(compare=False, repr=False)
    """(H, W, 3) uint8 RGB."""

    def encoded(self, form: PictureFormat) -> bytes:
        """The picture as the bytes of a file."""
        from PIL import Image

        stream = BytesIO()
        # A mosaic of 976 x 1030: enlarged pixel art takes 11 ms and 14 kB by run lengths (13 ms and 10 kB at level 6, 9 ms and 23 kB at
        # level 1); noise of 940 x 940 takes 49 ms and 1,190 kB (424 ms and 1,207 kB; 58 ms and 1,425 kB). Repeated pixels are all there is.
        options = {"compress_type": zlib.Z_RLE} if form.name == "png" else {"quality": form.quality}
        Image.fromarray(self.pixels).save(stream, format=form.name.upper(), **options)
        return stream.getvalue()


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What a rater may look at, before it is rendered into a prompt."""

    instruction: str
    actions: tuple[str, ...]
    frames: tuple[Picture, ...]
    """The single frames, in order of time: one more than there are actions for a segment of transitions. Of a pair, those of the first
    one and then those of the second."""
    other_actions: tuple[str, ...] = ()
    """Of a pair, the actions of the second one."""


@dataclass(frozen=True)
class Request:
    """One question to one rater: the whole conversation so far, ending in a user turn, and the kind of answer wanted."""

    evidence: Evidence
    messages: tuple[Message, ...]
    answer: AnswerSpec
    purpose: str
    """Which step of the method asks, e.g. "analyse", "score", "repair"."""
    subject: Subject = field(compare=False)
    rater: int = 0
    """Index into the raters given by the user (a second stage may use another one)."""
    system: str = ""
    """System prompt; empty for none."""

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].role != "user":
            raise ValueError("a request is a conversation that ends in a user turn")

    @cached_property
    def question(self) -> str:
        """Digest of everything that can change the answer, and of nothing else: rendered texts (earlier replies are among the messages),
        picture ids, answer specification. Neither subject nor privileged data."""
        turns = [[message.role, message.text, [picture.id for picture in message.pictures]] for message in self.messages]
        return digest("guerdon question 1", canonical_json([self.system, turns, self.answer.to_record()]))

    @property
    def pictures(self) -> dict[str, Picture]:
        """Every picture in the request by id."""
        found = {picture.id: picture for message in self.messages for picture in message.pictures}
        return found | {frame.id: frame for frame in self.evidence.frames}

    def with_pictures(self, change: Callable[[Picture], Picture]) -> Request:
        """The same request with every picture changed, e.g. into one that takes no memory."""
        messages = tuple(replace(message, pictures=tuple(map(change, message.pictures))) for message in self.messages)
        return replace(self, messages=messages, evidence=replace(self.evidence, frames=tuple(map(change, self.evidence.frames))))

    def to_record(self) -> dict[str, Any]:
        """The request as JSON-ready data; pictures appear by id."""
        return {
            "evidence": {
                "instruction": self.evidence.instruction,
                "actions": list(self.evidence.actions),
                "frames": [frame.id for frame in self.evidence.frames],
            }
            | ({"other_actions": list(self.evidence.other_actions)} if self.evidence.other_actions else {}),
            "messages": [{"role": m.role, "text": m.text, "pictures": [p.id for p in m.pictures]} for m in self.messages],
            "answer": self.answer.to_record(),
            "purpose": self.purpose,
            "subject": [self.subject.episode, self.subject.start, self.subject.stop, self.subject.annotation, *(self.subject.other or ())],
            "rater": self.rater,
            "system": self.system,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], pictures: Mapping[str, Picture]) -> Request:
        """The inverse of `to_record`; `pictures` resolves the ids. Raises KeyError for a picture that is not there."""
        evidence = record["evidence"]
        return cls(
            evidence=Evidence(
                evidence["instruction"],
                tuple(evidence["actions"]),
                tuple(pictures[name] for name in evidence["frames"]),
                tuple(evidence.get("other_actions", ())),
            ),
            messages=tuple(Message(m["role"], m["text"], tuple(pictures[name] for name in m["pictures"])) for m in record["messages"]),
            answer=answer_from_record(record["answer"]),
            purpose=record["purpose"],
            subject=_subject(record["subject"]),
            rater=record["rater"],
            system=record["system"],
        )


def _subject(record: Sequence[int]) -> Subject:
    episode, start, stop, annotation, *other = record
    return Subject(episode, start, stop, annotation, (other[0], other[1], other[2], other[3]) if other else None)


@dataclass(frozen=True)
class Rater:
    """Who answers: everything about a provider that can change its answers. Never a key."""

    provider: str
    """Name of the provider file, or the vendor's prefix: "scripted", "google", "openai-compatible"."""
    model: str
    base_url: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Effective settings (temperature, seed, ...), JSON-ready."""

    @cached_property
    def key(self) -> str:
        """Digest of the rater."""
        return digest("guerdon rater 1", canonical_json([self.provider, self.base_url, self.model, dict(self.settings)]))

    @property
    def name(self) -> str:
        """Short text for tables, in the form of a `--vlm` flag."""
        text = f"{self.provider}:{self.model}" if self.model else self.provider
        return f"{text}@{self.base_url}" if self.base_url else text


@dataclass(frozen=True)
class Usage:
    """What one attempt consumed. None means the provider did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    """Includes thinking tokens."""
    dollars: float | None = None
    """Price in US dollars; None if no price is known. Zero is a price."""
    thinking_tokens: int | None = None
    """Those of the output tokens that were spent on thinking."""
    cached_tokens: int | None = None
    """Those of the input tokens that the vendor read from its cache."""


@dataclass(frozen=True)
class Price:
    """What a model costs, in US dollars per million tokens.

    Raises:
        ValueError: for a price that is negative or not finite.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        if not all(np.isfinite(value) and value >= 0 for value in (self.input, self.output)):
            raise ValueError(f"prices are finite and not negative, got {self.input} and {self.output}")

    def dollars(self, input_tokens: int, output_tokens: int) -> float:
        """Price of so many tokens."""
        return (self.input * input_tokens + self.output * output_tokens) / 1e6


@dataclass(frozen=True)
class Quote:
    """The most that one attempt at a request can consume and cost. What is reserved before it is sent."""

    input_tokens: int
    output_tokens: int
    """The whole allowance, thinking included."""
    dollars: float | None
    """None if no price is known. Zero is a price."""


@dataclass(frozen=True)
class Reply:
    """An answer of a rater, as it came."""

    text: str
    model: str = ""
    """The model string that the provider returned."""
    usage: Usage = Usage()
    seconds: float = 0.0
    """Wall time of the attempt."""


@dataclass(frozen=True)
class Failure:
    """An attempt without an answer. Only cause, code and status are kept: an error's text may hold a key."""

    cause: Cause
    final: bool
    """True if asking the same again would give the same failure."""
    code: str = ""
    """The provider's own short code or the exception's class name."""
    status: int | None = None
    """HTTP status, if there was one."""
    retry_after: float | None = None
    """Seconds the provider asked to wait."""
    usage: Usage = Usage()
    seconds: float = 0.0


@dataclass(frozen=True)
class Exchange:
    """A request and what became of it."""

    request: Request
    outcome: Reply | Failure
    asked_now: bool = field(default=False, compare=False)
    """True if this run sent the request; False if the answer lay in the store."""


@dataclass(frozen=True)
class Transcript:
    """All that was said about one sample, in order."""

    sample: Sample
    exchanges: tuple[Exchange, ...]
    repeat: int = 0

    @property
    def failure(self) -> Failure | None:
        """The failure that ended the conversation, if one did."""
        last = self.exchanges[-1].outcome if self.exchanges else None
        return last if isinstance(last, Failure) else None


# --- labels -------------------------------------------------------------------------------------------------------------------------

Unit = Literal["observation", "transition", "segment", "pair"]


@dataclass(frozen=True, slots=True)
class Label:
    """One judgement, or the reason why there is none.

    Raises:
        ValueError: if a state with a value lacks one, or a state without a value has one.
    """

    unit: Unit
    episode: int
    start: int
    """First transition (or the observation, for unit "observation", where `stop` is the same)."""
    stop: int
    instruction: str
    state: State
    annotation: int = 0
    value: float | None = None
    """On the method's own scale, e.g. 0..10."""
    cause: Cause | None = None
    spread: float | None = None
    """Standard deviation over repeats; None for a single answer."""
    probabilities: tuple[float, ...] | None = None
    asked: int = 0
    """Requests sent or found for the sample this label comes from."""
    answered: int = 0
    rationale: str = ""
    """This unit's own line of the rater's analysis."""
    question: str = ""
    """Key of the request whose reply was read (the last one asked, if none could be read)."""
    views: tuple[str, ...] = ()
    episode_b: int | None = None
    """Of unit "pair", where the second one is; the value is the probability that it is the better one (0, 0.5 or 1 for one answer)."""
    start_b: int | None = None
    stop_b: int | None = None

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"no state is called {self.state!r}")
        if (self.value is not None) != (self.state in STATES_WITH_VALUE):
            raise ValueError(f"a label in state '{self.state}' {'needs a' if self.value is None else 'carries no'} value")
        if self.value is not None and not np.isfinite(self.value):
            raise ValueError(f"a label's value is a finite number, got {self.value}")
        if len({self.unit == "pair", *(place is not None for place in (self.episode_b, self.start_b, self.stop_b))}) > 1:
            raise ValueError("a label of a pair, and no other, says where the second one is")


# --- tasks --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Something to be done in an environment, from a stated start, within a number of steps."""

    id: str
    """Stable name, the same for every method compared."""
    environment: str
    """Name of the environment file, e.g. "babyai"."""
    instruction: str
    length: int
    """Number of sub-tasks."""
    start: Literal["fixed", "randomised"]
    step_limit: int
    wording: Literal["seen", "held-out"] = "seen"
    spec: Mapping[str, Any] = field(default_factory=dict)
    """What the environment needs to build it (JSON-ready): level, seed, clauses, start pose."""

    def to_record(self) -> dict[str, Any]:
        return {
            "id": self.id, "environment": self.environment, "instruction": self.instruction, "length": self.length,
            "start": self.start, "step_limit": self.step_limit, "wording": self.wording, "spec": dict(self.spec),
        }  # fmt: skip

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Task:
        return cls(**record)

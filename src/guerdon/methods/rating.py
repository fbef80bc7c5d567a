"""Ratings: a rater looks at what an agent did, says what it sees, and then puts it into a class from bad to good.

Source: ERL-VLM, "Enhancing Rating-Based Reinforcement Learning to Effectively Leverage Feedback from Large Vision-Language Models" (arXiv
2506.12822), sections on querying and its appendix: single pictures (Meta-World, a real robot), or each transition of a segment (ALFRED).
Whole segments and episodes are rated as in rating-based reinforcement learning (White et al. 2024).

Two stages. The first sees the pictures and answers in words; the second is a conversation of its own, gets those words and no picture, and
names a class. So the second rater may be a cheaper one that reads text only, and equal words are paid for once. The wording is our own
(`prompts/rating_*.txt`, versioned by content; replace it with `--prompt FILE`). An answer that is not exactly one class for each thing
rated gets one repair turn that quotes the error; after that it is `unreadable`. A failure at any stage is a label without a value, never
the lowest class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from guerdon.answers import Choice, Text, Unreadable
from guerdon.errors import UsageError
from guerdon.frames import MosaicRecipe, frame_picture, mosaic, tile
from guerdon.interfaces import Kind, Method
from guerdon.methods._prompts import (
    Prompt,
    answered,
    between,
    cameras,
    check_tile,
    evenly_spaced,
    first_reply,
    lines_by_number,
    next_turn,
    numbered,
    outcome,
    what_is_shown,
)
from guerdon.records import Evidence, Exchange, Label, Message, Picture, Reply, Request, Sample, Transcript, Unit, canonical_json, digest

Item = Literal["picture", "transition", "segment", "episode"]
"""What gets a rating."""

CLASSES: dict[int, tuple[str, ...]] = {
    2: ("Bad", "Good"),
    3: ("Bad", "Average", "Good"),
    4: ("Very Bad", "Bad", "Good", "Very Good"),
    5: ("Very Bad", "Bad", "Average", "Good", "Very Good"),
}
"""Number of classes -> their names, the worst first, as ERL-VLM names them."""

_FULFILLED = "the instruction is fulfilled, or nearly so"
FULFILMENT: dict[int, tuple[str, ...]] = {
    2: ("little or nothing of the instruction is done", _FULFILLED),
    3: ("little or nothing of the instruction is done", "the instruction is fulfilled in part", _FULFILLED),
    4: (
        "nothing of the instruction is done",
        "less than half of the instruction is done",
        "more than half of the instruction is done",
        _FULFILLED,
    ),
    5: (
        "nothing of the instruction is done",
        "a small part of the instruction is done",
        "about half of the instruction is done",
        "most of the instruction is done",
        _FULFILLED,
    ),
}
"""What the classes mean for pictures, segments and episodes: how far the instruction is fulfilled."""

_COMPLETED = "after the action the instruction is completed"
_CRITICAL = (
    "after the action the instruction is completed in part, or the action is a decisive one (for example, what is looked for comes into "
    "view), but the instruction is not completed"
)
COMPLETION: dict[int, tuple[str, ...]] = {
    2: ("after the action the instruction is not completed", _COMPLETED),
    3: ("after the action the instruction is not completed", _CRITICAL, _COMPLETED),
    4: (
        "after the action nothing of the instruction is completed",
        "after the action the instruction is not completed, but there is some progress",
        _CRITICAL,
        _COMPLETED,
    ),
    5: (
        "after the action nothing of the instruction is completed",
        "after the action the instruction is not completed, but there is some progress",
        _CRITICAL,
        "after the action nearly all of the instruction is completed",
        _COMPLETED,
    ),
}
"""What the classes mean for transitions, after ERL-VLM's in ALFRED: not completed, in part or decisive, completed."""

_KINDS: dict[Item, Kind] = {"picture": "pictures", "transition": "windows", "segment": "segments", "episode": "episodes"}
_UNITS: dict[Item, Unit] = {"picture": "observation", "transition": "transition", "segment": "segment", "episode": "segment"}
_SECTIONS = ("system", "analyse", "rate", "repair")
_SEEN = frozenset({"instruction", "views", "note"})
_JUDGED = frozenset({"analysis", "classes", "names", "error"})
_FIELDS: dict[Item, frozenset[str]] = {
    "picture": _SEEN | _JUDGED,
    "transition": _SEEN | _JUDGED | {"shown", "actions", "count", "last_action"},
    "segment": _SEEN | _JUDGED | {"shown", "actions", "count"},
    "episode": _SEEN | _JUDGED | {"shown", "actions", "count"},
}
_MOST_FRAMES = 64


class Rating(Method):
    """Puts pictures, transitions, segments or episodes into classes from bad to good (ERL-VLM)."""

    name: ClassVar[str] = "rating"
    vote = "majority"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of ratings.

        Raises:
            UsageError: for a number of classes, a tile or a number of frames that cannot be.
        """

        levels: int = 3
        """Number of classes, 2 to 5, from (very) bad to (very) good."""
        item: Item = "picture"
        """What gets a rating: each picture, each transition of a window, a segment (`--window` transitions from anywhere), or a whole
        episode (or sub-task)."""
        frames: int = 16
        """Most observations that are shown of a segment or an episode, evenly spaced, the first and the last among them."""
        prompt: Path | None = None
        """File with prompts of your own (sections [system], [analyse], [rate], [repair]); the built-in ones if not given."""
        note: str = ""
        """What a rater should know to read the pictures, e.g. which thing is the agent; the dataset's own words if not given."""
        tile: int = 300
        """Target size in pixels of each frame's longer side in the picture sent; small frames are enlarged by a whole factor."""

        def __post_init__(self) -> None:
            if self.levels not in CLASSES:
                raise UsageError(f"levels is a number of classes from {min(CLASSES)} to {max(CLASSES)}, got {self.levels}")
            if self.item not in _KINDS:
                raise UsageError(f"item is one of {', '.join(_KINDS)}, got '{self.item}'")
            if not 2 <= self.frames <= _MOST_FRAMES:
                raise UsageError(f"frames is a number of observations from 2 to {_MOST_FRAMES}, got {self.frames}")
            check_tile(self.tile)

    def __init__(self, config: Config | None = None, *, score_rater: int = 0) -> None:
        """`score_rater`: index of the rater asked in the second stage, which sees no picture (0: the same one as in the first)."""
        self.config = config or self.Config()
        item = self.config.item
        self.samples = _KINDS[item]
        self.classes = CLASSES[self.config.levels]
        """Names of the classes, the worst first; a label's value is the position of its class."""
        self.scale = (0.0, float(self.config.levels - 1))
        file = f"rating_{'segment' if item == 'episode' else item}.txt"
        self.prompt = Prompt.load(self.config.prompt, file, sections=_SECTIONS, fields=_FIELDS[item])
        self.recipe = MosaicRecipe(tile=self.config.tile)
        meanings = (COMPLETION if item == "transition" else FULFILMENT)[self.config.levels]
        self._classes = "\n".join(f"- {name}: {meaning}" for name, meaning in zip(self.classes, meanings, strict=True))
        shown = [item, self.config.levels, self._classes, self.config.note, asdict(self.recipe), self._most_frames]
        self.version = f"1 {digest(self.prompt.version, canonical_json(shown))[:17]}"
        self.score_rater = score_rater

    @property
    def _most_frames(self) -> int:
        """Most observations shown; 0 for as many as there are."""
        return self.config.frames if self.config.item in ("segment", "episode") else 0

    def next(self, sample: Sample, exchanges: Sequence[Exchange]) -> Request | None:
        """Analyse, then rate, then at most one repair. Ends at the first failure, and at an analysis without words."""
        return next_turn(
            exchanges,
            first=lambda: self._analyse(sample),
            answer=lambda last, reply: self._rate(sample, last, reply),
            repair=lambda last, reply, error: self._repair(sample, last, reply, error),
        )

    def read(self, transcript: Transcript) -> list[Label]:
        """One label for the picture, segment or episode, or one for each transition of the window. The rationale is the analysis, or the
        line of it about the transition. A rater that says how likely each class is (`Choice.read_probabilities`) gives a soft label."""
        sample, exchanges, item = transcript.sample, transcript.exchanges, self.config.item
        segment, (state, cause, classes), words = sample.segment, outcome(exchanges), first_reply(exchanges).strip()
        likely = None if classes is None else _probabilities(exchanges[-1])
        if item == "transition":
            lines = lines_by_number(words, segment.length)
            places = [(step, step + 1, lines.get(number, "")) for number, step in enumerate(range(segment.start, segment.stop))]
        else:
            places = [(segment.start, segment.stop, words)]
        return [
            Label(
                unit=_UNITS[item],
                episode=segment.episode,
                start=start,
                stop=stop,
                annotation=sample.annotation,
                instruction=sample.instruction,
                views=segment.views,
                state=state,
                cause=cause,
                value=None if classes is None else float(classes[number]),
                probabilities=None if likely is None else likely[number],
                asked=len(exchanges),
                answered=answered(exchanges),
                rationale=rationale,
                question=exchanges[-1].request.question if exchanges else "",
            )
            for number, (start, stop, rationale) in enumerate(places)
        ]

    # --- requests -------------------------------------------------------------------------------------------------------------------

    def _analyse(self, sample: Sample) -> Request:
        by_view, views, shown = sample.frames(), sample.segment.views, self._shown(sample)
        frames = tuple(frame_picture(by_view[view][number]) for view in views for number in shown)
        pictures: tuple[Picture, ...]
        if self.config.item == "picture":
            pictures = tuple(tile(by_view[view][0], self.recipe) for view in views)
        else:
            pictures = tuple(mosaic(by_view[view][list(shown)], self.recipe) for view in views)
        fields = self._fields(sample)
        return Request(
            evidence=Evidence(sample.instruction, sample.actions, frames),
            messages=(Message("user", self.prompt.fill("analyse", fields), pictures),),
            answer=Text(),
            purpose="describe",
            subject=sample.subject,
            system=self.prompt.fill("system", fields),
        )

    def _rate(self, sample: Sample, last: Exchange, reply: Reply) -> Request | None:
        """The second stage, a conversation of its own without pictures. None if the first one said nothing that could be rated."""
        try:
            analysis = Text().read(reply.text)
        except Unreadable:
            return None
        return self._judging(sample, last, (Message("user", self.prompt.fill("rate", self._fields(sample, analysis))),), "rate")

    def _repair(self, sample: Sample, last: Exchange, reply: Reply, error: str) -> Request:
        text = self.prompt.fill("repair", self._fields(sample, error=error))
        return self._judging(sample, last, (*last.request.messages, Message("assistant", reply.text), Message("user", text)), "repair")

    def _judging(self, sample: Sample, last: Exchange, messages: tuple[Message, ...], purpose: str) -> Request:
        answer = Choice(self.classes, sample.segment.length if self.config.item == "transition" else 1)
        return replace(last.request, messages=messages, answer=answer, purpose=purpose, rater=self.score_rater)

    def _shown(self, sample: Sample) -> tuple[int, ...]:
        """Which of the sample's observations are shown."""
        count = sample.segment.length + 1
        return evenly_spaced(count, self._most_frames or count)

    def _fields(self, sample: Sample, analysis: str = "", *, error: str = "") -> dict[str, str]:
        count, shown = sample.segment.length, self._shown(sample)
        every = len(shown) == count + 1
        return {
            "instruction": sample.instruction,
            "shown": what_is_shown(count + 1, shown),
            "actions": numbered(sample.actions) if every else between(sample.actions, shown),
            "count": str(count),
            "last_action": str(count - 1),
            "views": cameras(sample.segment.views, name="picture"),
            "note": self.config.note,
            "analysis": analysis,
            "classes": self._classes,
            "names": ", ".join(self.classes),
            "error": error,
        }


def _probabilities(last: Exchange) -> tuple[tuple[float, ...], ...] | None:
    """What the reply that was read adds on how likely each class is, one row for each rating."""
    answer, reply = last.request.answer, last.outcome
    return answer.read_probabilities(reply.text) if isinstance(answer, Choice) and isinstance(reply, Reply) else None

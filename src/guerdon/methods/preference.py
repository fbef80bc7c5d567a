"""Preferences: a rater looks at two pictures (or segments) with the same instruction, and says which serves it better.

Source: RL-VLM-F, "Reinforcement Learning from Vision Language Foundation Model Feedback" (arXiv 2402.03681). Two stages: the first sees
both and says what is in the first one, what in the second one, and in which the goal is better achieved; the second is a conversation of
its own, gets those words and no picture, and answers with one word. It may go to a cheaper rater that reads text only. The wording is our
own (`prompts/preference_*.txt`, versioned by content; replace it with `--prompt FILE`).

"neither" is an answer: a label of 0.5. An answer that cannot be read gets one repair turn and is `unreadable` after that; refusals and
outages keep their cause. (In the reference all of these are -1.) Pairs that agree in every pixel are not asked about: they are `skipped`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from guerdon.answers import Preference as PreferenceAnswer
from guerdon.answers import Text, Unreadable
from guerdon.errors import UsageError
from guerdon.frames import MosaicRecipe, frame_picture, mosaic, tile
from guerdon.interfaces import Kind, Method
from guerdon.methods._prompts import (
    Prompt,
    answered,
    between,
    check_tile,
    evenly_spaced,
    first_reply,
    next_turn,
    outcome,
    same_pictures,
    what_is_shown,
)
from guerdon.records import Evidence, Exchange, Label, Message, Picture, Reply, Request, Sample, Transcript, canonical_json, digest

Item = Literal["picture", "segment"]
"""What is compared."""

_KINDS: dict[Item, Kind] = {"picture": "picture pairs", "segment": "segment pairs"}
_SECTIONS = ("system", "analyse", "prefer", "repair")
_FIELDS: dict[Item, frozenset[str]] = {
    "picture": frozenset({"instruction", "views", "note", "analysis", "error"}),
    "segment": frozenset({"instruction", "shown", "actions", "second_shown", "second_actions", "views", "note", "analysis", "error"}),
}
_MOST_FRAMES = 64


class Preference(Method):
    """Asks which of two pictures or segments serves the instruction better (RL-VLM-F)."""

    name: ClassVar[str] = "preference"
    scale = (0.0, 1.0)
    vote = "majority"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of preferences.

        Raises:
            UsageError: for a tile or a number of frames that cannot be.
        """

        item: Item = "picture"
        """What is compared: two pictures, or two segments (`--window` transitions each)."""
        frames: int = 16
        """Most observations that are shown of each segment, evenly spaced, the first and the last among them."""
        prompt: Path | None = None
        """File with prompts of your own (sections [system], [analyse], [prefer], [repair]); the built-in ones if not given."""
        note: str = ""
        """What a rater should know to read the pictures, e.g. which thing is the agent; the dataset's own words if not given."""
        tile: int = 300
        """Target size in pixels of each frame's longer side in the picture sent; small frames are enlarged by a whole factor."""

        def __post_init__(self) -> None:
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
        self.prompt = Prompt.load(self.config.prompt, f"preference_{item}.txt", sections=_SECTIONS, fields=_FIELDS[item])
        self.recipe = MosaicRecipe(tile=self.config.tile)
        shown = [item, self.config.note, asdict(self.recipe), self.config.frames if item == "segment" else 0]
        self.version = f"1 {digest(self.prompt.version, canonical_json(shown))[:17]}"
        self.score_rater = score_rater

    def next(self, sample: Sample, exchanges: Sequence[Exchange]) -> Request | None:
        """Analyse, then prefer, then at most one repair. Ends at the first failure, and at an analysis without words; asks nothing about
        two that look the same."""
        return next_turn(
            exchanges,
            first=lambda: self._analyse(sample),
            answer=lambda last, reply: self._prefer(sample, last, reply),
            repair=lambda last, reply, error: self._repair(sample, last, reply, error),
        )

    def read(self, transcript: Transcript) -> list[Label]:
        """One label for the pair: the probability that the second one is better. The rationale is the analysis."""
        sample, exchanges = transcript.sample, transcript.exchanges
        first, second = sample.segment, _second(sample).segment
        state, cause, value = outcome(exchanges)
        return [
            Label(
                unit="pair",
                episode=first.episode,
                start=first.start,
                stop=first.stop,
                episode_b=second.episode,
                start_b=second.start,
                stop_b=second.stop,
                annotation=sample.annotation,
                instruction=sample.instruction,
                views=first.views,
                state=state,
                cause=cause if exchanges else None,
                value=value,
                asked=len(exchanges),
                answered=answered(exchanges),
                rationale=first_reply(exchanges).strip(),
                question=exchanges[-1].request.question if exchanges else "",
            )
        ]

    # --- requests -------------------------------------------------------------------------------------------------------------------

    def _analyse(self, sample: Sample) -> Request | None:
        other = _second(sample)
        both = [(each, each.frames()) for each in (sample, other)]
        if same_pictures(both[0][1], both[1][1]):
            return None
        views = sample.segment.views
        frames = tuple(frame_picture(by_view[view][number]) for each, by_view in both for view in views for number in self._shown(each))
        pictures: tuple[Picture, ...]
        if self.config.item == "picture":
            pictures = tuple(tile(by_view[view][0], self.recipe) for _, by_view in both for view in views)
        else:
            pictures = tuple(mosaic(by_view[view][list(self._shown(each))], self.recipe) for each, by_view in both for view in views)
        fields = self._fields(sample)
        return Request(
            evidence=Evidence(sample.instruction, sample.actions, frames, other.actions),
            messages=(Message("user", self.prompt.fill("analyse", fields), pictures),),
            answer=Text(),
            purpose="describe",
            subject=sample.subject,
            system=self.prompt.fill("system", fields),
        )

    def _prefer(self, sample: Sample, last: Exchange, reply: Reply) -> Request | None:
        """The second stage, a conversation of its own without pictures. None if the first one said nothing that could be judged."""
        try:
            analysis = Text().read(reply.text)
        except Unreadable:
            return None
        return self._judging(last, (Message("user", self.prompt.fill("prefer", self._fields(sample, analysis))),), "prefer")

    def _repair(self, sample: Sample, last: Exchange, reply: Reply, error: str) -> Request:
        text = self.prompt.fill("repair", self._fields(sample, error=error))
        return self._judging(last, (*last.request.messages, Message("assistant", reply.text), Message("user", text)), "repair")

    def _judging(self, last: Exchange, messages: tuple[Message, ...], purpose: str) -> Request:
        return replace(last.request, messages=messages, answer=PreferenceAnswer(), purpose=purpose, rater=self.score_rater)

    def _shown(self, sample: Sample) -> tuple[int, ...]:
        """Which observations of one of the two are shown."""
        return evenly_spaced(sample.segment.length + 1, self.config.frames)

    def _fields(self, sample: Sample, analysis: str = "", *, error: str = "") -> dict[str, str]:
        other, views = _second(sample), sample.segment.views
        first_name, second_name = (
            f"The {one} picture" if len(views) == 1 else f"Each picture of the {one} one" for one in ("first", "second")
        )
        return {
            "instruction": sample.instruction,
            "shown": what_is_shown(sample.segment.length + 1, self._shown(sample), name=first_name),
            "actions": between(sample.actions, self._shown(sample)),
            "second_shown": what_is_shown(other.segment.length + 1, self._shown(other), name=second_name),
            "second_actions": between(other.actions, self._shown(other)),
            "views": _cameras_of_both(views),
            "note": self.config.note,
            "analysis": analysis,
            "error": error,
        }


def _second(sample: Sample) -> Sample:
    """The second one of a pair. Raises ValueError if the sample is none."""
    if sample.other is None:
        raise ValueError("a preference is about a pair, and this sample has no second one")
    return sample.other


def _cameras_of_both(views: Sequence[str]) -> str:
    """A sentence on the order of the pictures if there are several cameras; empty for one."""
    if len(views) == 1:
        return ""
    count = len(views)
    return f"{count} cameras saw each of the two, in this order: {', '.join(views)}. The first {count} pictures are of the first one."

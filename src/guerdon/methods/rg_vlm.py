"""RG-VLM: a rater looks at a window of transitions, says what changed, then scores each action from 0 to 10.

Source: "Reward Generation via Large Vision-Language Model in Offline Reinforcement Learning" (arXiv 2504.08772), section III. Two turns of
one conversation about one picture: the first analyses the differences between consecutive observations, the second gives one score per
action for how far it serves the instruction. The paper shows its prompt as a figure only, so the wording here is our own
(`prompts/rg_vlm.txt`, versioned by its content; replace it with `--prompt FILE`). A reply that is not exactly one whole number per action
gets one repair turn that quotes the error; after that the window is `unreadable`. Nothing is clamped or guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from guerdon.answers import Scores, Text
from guerdon.frames import MosaicRecipe, frame_picture, mosaic
from guerdon.interfaces import Method
from guerdon.methods._prompts import Prompt, answered, check_tile, first_reply, lines_by_number, next_turn, numbered, outcome
from guerdon.records import Evidence, Exchange, Label, Message, Reply, Request, Sample, Transcript, canonical_json, digest

LOW, HIGH = 0, 10
_SECTIONS = ("system", "analyse", "score", "repair")
_FIELDS = frozenset({"instruction", "actions", "count", "frames", "last", "last_action", "note", "error"})


class RgVlm(Method):
    """Scores every action of a window in two turns (RG-VLM)."""

    name: ClassVar[str] = "rg-vlm"
    scale = (float(LOW), float(HIGH))

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of RG-VLM."""

        prompt: Path | None = None
        """File with prompts of your own (sections [system], [analyse], [score], [repair]); the built-in ones if not given."""
        note: str = ""
        """What a rater should know to read the pictures, e.g. which thing is the agent; the dataset's own words if not given."""
        tile: int = 300
        """Target size in pixels of each frame's longer side in the picture sent; small frames are enlarged by a whole factor."""

        def __post_init__(self) -> None:
            check_tile(self.tile)

    def __init__(self, config: Config | None = None, *, score_rater: int = 0) -> None:
        """`score_rater`: index of the rater asked in the second turn (0: the same one as in the first)."""
        self.config = config or self.Config()
        self.prompt = Prompt.load(self.config.prompt, "rg_vlm.txt", sections=_SECTIONS, fields=_FIELDS)
        self.recipe = MosaicRecipe(tile=self.config.tile)
        shown = canonical_json([self.config.note, asdict(self.recipe)])
        self.version = f"1 {digest(self.prompt.version, shown)[:17]}"
        self.score_rater = score_rater

    def next(self, sample: Sample, exchanges: Sequence[Exchange]) -> Request | None:
        """Analyse, then score, then at most one repair. Ends at the first failure."""
        return next_turn(
            exchanges,
            first=lambda: self._analyse(sample),
            answer=lambda last, reply: self._follow_up(sample, last, reply, "score", error=""),
            repair=lambda last, reply, error: self._follow_up(sample, last, reply, "repair", error=error),
        )

    def read(self, transcript: Transcript) -> list[Label]:
        """One label per transition of the window. Its rationale is the line that the first turn wrote about it."""
        sample, exchanges = transcript.sample, transcript.exchanges
        state, cause, scores = outcome(exchanges)
        rationales = lines_by_number(first_reply(exchanges), sample.segment.length)
        return [
            Label(
                unit="transition",
                episode=sample.segment.episode,
                start=sample.segment.start + position,
                stop=sample.segment.start + position + 1,
                annotation=sample.annotation,
                instruction=sample.instruction,
                views=sample.segment.views,
                state=state,
                cause=cause,
                value=None if scores is None else float(scores[position]),
                asked=len(exchanges),
                answered=answered(exchanges),
                rationale=rationales.get(position, ""),
                question=exchanges[-1].request.question if exchanges else "",
            )
            for position in range(sample.segment.length)
        ]

    def _analyse(self, sample: Sample) -> Request:
        pictures_by_view = sample.frames()
        frames = tuple(frame_picture(frame) for view in sample.segment.views for frame in pictures_by_view[view])
        pictures = tuple(mosaic(pictures_by_view[view], self.recipe) for view in sample.segment.views)
        fields = self._fields(sample)
        return Request(
            evidence=Evidence(sample.instruction, sample.actions, frames),
            messages=(Message("user", self.prompt.fill("analyse", fields), pictures),),
            answer=Text(),
            purpose="analyse",
            subject=sample.subject,
            system=self.prompt.fill("system", fields),
        )

    def _follow_up(self, sample: Sample, last: Exchange, reply: Reply, purpose: str, *, error: str) -> Request:
        text = self.prompt.fill(purpose, {**self._fields(sample), "error": error})
        return Request(
            evidence=last.request.evidence,
            messages=(*last.request.messages, Message("assistant", reply.text), Message("user", text)),
            answer=Scores(sample.segment.length, LOW, HIGH),
            purpose=purpose,
            subject=sample.subject,
            rater=self.score_rater,
            system=last.request.system,
        )

    def _fields(self, sample: Sample) -> dict[str, str]:
        count = sample.segment.length
        return {
            "instruction": sample.instruction,
            "actions": numbered(sample.actions),
            "count": str(count),
            "frames": str(count + 1),
            "last": str(count),
            "last_action": str(count - 1),
            "note": self.config.note,
            "error": "",
        }

"""RG-VLM: a rater looks at a window of transitions, says what changed, then scores each action from 0 to 10.

Source: "Reward Generation via Large Vision-Language Model in Offline Reinforcement Learning" (arXiv 2504.08772), section III. Two turns of
one conversation about one picture: the first analyses the differences between consecutive observations, the second gives one score per
action for how far it serves the instruction. The paper shows its prompt as a figure only, so the wording here is our own
(`prompts/rg_vlm.txt`, versioned by its content; replace it with `--prompt FILE`). A reply that is not exactly one whole number per action
gets one repair turn that quotes the error; after that the window is `unreadable`. Nothing is clamped or guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import ClassVar

from guerdon.answers import Scores, Text, Unreadable
from guerdon.errors import UsageError
from guerdon.frames import MosaicRecipe, frame_picture, mosaic
from guerdon.interfaces import Method
from guerdon.records import (
    Cause,
    Evidence,
    Exchange,
    Failure,
    Label,
    Message,
    Reply,
    Request,
    Sample,
    State,
    Transcript,
    canonical_json,
    digest,
)

LOW, HIGH = 0, 10
LARGEST_TILE = 2000
"""Pixels. Nine frames of that size make a picture of 100 MB in memory, larger than any vendor takes."""
_SECTIONS = ("system", "analyse", "score", "repair")
_FIELDS = frozenset({"instruction", "actions", "count", "frames", "last", "last_action", "note", "error"})
_REFUSALS: frozenset[Cause] = frozenset({"blocked", "refusal"})


@dataclass(frozen=True)
class Prompt:
    """The texts of the turns.

    Raises:
        UsageError: if a section is missing or uses a field that does not exist.
    """

    system: str
    analyse: str
    score: str
    repair: str
    source: str = field(default="built-in", compare=False)

    def __post_init__(self) -> None:
        for section in _SECTIONS:
            template = Template(getattr(self, section))
            if not template.is_valid():
                raise UsageError(f"section [{section}] has a lone '$'", where=self.source, cure="Write a literal dollar sign as $$.")
            unknown = set(template.get_identifiers()) - _FIELDS
            if unknown:
                cure = f"There are: {', '.join(sorted(_FIELDS))}."
                raise UsageError(f"section [{section}] uses ${min(unknown)}", where=self.source, cure=cure)

    @classmethod
    def parse(cls, text: str, source: str) -> Prompt:
        """Reads a prompt file: four sections headed [system], [analyse], [score] and [repair]; lines that start with '#' are comments."""
        lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        parts = re.split(r"^\[([a-z]+)\]\s*$", lines, flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
        if set(sections) != set(_SECTIONS):
            missing = [name for name in _SECTIONS if name not in sections] or [name for name in sections if name not in _SECTIONS]
            raise UsageError(f"a prompt file has the sections {', '.join(_SECTIONS)}; look at [{missing[0]}]", where=source)
        return cls(**sections, source=source)

    @classmethod
    def load(cls, path: Path | None) -> Prompt:
        """The prompt in `path`, or the one that comes with the package. Raises UsageError if the file cannot be read."""
        if path is None:
            return cls.parse((files("guerdon.methods") / "prompts" / "rg_vlm.txt").read_text(encoding="utf-8"), "rg_vlm.txt")
        try:
            return cls.parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the prompt ({type(error).__name__})", where=str(path)) from error

    @cached_property
    def version(self) -> str:
        """Digest of the texts."""
        return digest(*(getattr(self, section) for section in _SECTIONS))


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
            if not 1 <= self.tile <= LARGEST_TILE:
                raise UsageError(f"tile is a number of pixels from 1 to {LARGEST_TILE:,}, got {self.tile}")

    def __init__(self, config: Config | None = None, *, score_rater: int = 0) -> None:
        """`score_rater`: index of the rater asked in the second turn (0: the same one as in the first)."""
        self.config = config or self.Config()
        self.prompt = Prompt.load(self.config.prompt)
        self.recipe = MosaicRecipe(tile=self.config.tile)
        shown = canonical_json([self.config.note, asdict(self.recipe)])
        self.version = f"1 {digest(self.prompt.version, shown)[:17]}"
        self.score_rater = score_rater

    def next(self, sample: Sample, exchanges: Sequence[Exchange]) -> Request | None:
        """Analyse, then score, then at most one repair. Ends at the first failure."""
        if not exchanges:
            return self._analyse(sample)
        last = exchanges[-1]
        if isinstance(last.outcome, Failure):
            return None
        if last.request.purpose == "analyse":
            return self._follow_up(sample, last, last.outcome, "score", error="")
        if last.request.purpose == "score":
            try:
                last.request.answer.read(last.outcome.text)
            except Unreadable as error:
                return self._follow_up(sample, last, last.outcome, "repair", error=str(error))
        return None

    def read(self, transcript: Transcript) -> list[Label]:
        """One label per transition of the window. Its rationale is the line that the first turn wrote about it."""
        sample, exchanges = transcript.sample, transcript.exchanges
        state, cause, scores = self._outcome(exchanges)
        rationales = _lines_by_number(exchanges[0].outcome, sample.segment.length) if exchanges else {}
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
                answered=sum(isinstance(exchange.outcome, Reply) for exchange in exchanges),
                rationale=rationales.get(position, ""),
                question=exchanges[-1].request.question if exchanges else "",
            )
            for position in range(sample.segment.length)
        ]

    def _outcome(self, exchanges: Sequence[Exchange]) -> tuple[State, Cause | None, tuple[int, ...] | None]:
        if not exchanges:
            return "skipped", "unsupported", None
        last = exchanges[-1]
        if isinstance(last.outcome, Failure):
            return ("refused" if last.outcome.cause in _REFUSALS else "failed"), last.outcome.cause, None
        if not isinstance(last.request.answer, Scores):
            return "skipped", "unsupported", None
        try:
            return "labelled", None, last.request.answer.read(last.outcome.text)
        except Unreadable:
            return "unreadable", "unreadable", None

    def _analyse(self, sample: Sample) -> Request:
        pictures_by_view = sample.frames()
        frames = tuple(frame_picture(frame) for view in sample.segment.views for frame in pictures_by_view[view])
        pictures = tuple(mosaic(pictures_by_view[view], self.recipe) for view in sample.segment.views)
        fields = self._fields(sample)
        return Request(
            evidence=Evidence(sample.instruction, sample.actions, frames),
            messages=(Message("user", _fill(self.prompt.analyse, fields), pictures),),
            answer=Text(),
            purpose="analyse",
            subject=sample.subject,
            system=_fill(self.prompt.system, fields),
        )

    def _follow_up(self, sample: Sample, last: Exchange, reply: Reply, purpose: str, *, error: str) -> Request:
        text = _fill(getattr(self.prompt, purpose), {**self._fields(sample), "error": error})
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
        actions = "\n".join(f"{number}: {action}" for number, action in enumerate(sample.actions))
        return {
            "instruction": sample.instruction,
            "actions": actions,
            "count": str(count),
            "frames": str(count + 1),
            "last": str(count),
            "last_action": str(count - 1),
            "note": self.config.note,
            "error": "",
        }


def _fill(template: str, fields: dict[str, str]) -> str:
    return Template(template).substitute(fields)


_NUMBERED = re.compile(r"^\W*(?:action\s+|transition\s+)?(\d{1,4})\b(?:\s*(?:->|→|to)\s*\d{1,4})?\W*(.*)$", re.IGNORECASE)


def _lines_by_number(outcome: Reply | Failure, count: int) -> dict[int, str]:
    """The first line of an analysis that begins with each number 0 .. count-1, without the number."""
    if isinstance(outcome, Failure):
        return {}
    found: dict[int, str] = {}
    for line in outcome.text.splitlines():
        match = _NUMBERED.match(line.strip())
        if match and match.group(2) and int(match.group(1)) < count:
            found.setdefault(int(match.group(1)), match.group(2).strip())
    return found

"""A trial before the whole sum is spent: a few windows are asked, and the same windows again with words that do not belong to them.

What it looks at: how many windows were unreadable, refused or failed; whether the mean score falls when the instruction is a wrong one
(a rater that scores the same whatever the words are looks at the words no more than a coin does); what the rest will cost. The answers to
the right questions are kept and not paid for again; those to the wrong ones are never labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from guerdon import seeding
from guerdon.interfaces import Dataset, Method
from guerdon.records import EpisodeInfo, Exchange, Failure, Label, Sample, Transcript

MOST_UNREADABLE, MOST_REFUSED, MOST_FAILED = 0.1, 0.1, 0.2
"""Shares of windows above which a pilot is bad."""
FEWEST_PAIRS = 5
"""Pairs of windows below which the contrast says nothing either way."""
_RESAMPLES = 2000
_CANDIDATES = 16
"""Wrong instructions that are looked at, to find one with few words in common."""


@dataclass(frozen=True)
class Contrast:
    """The same frames judged by their own instruction and by another one. Scores on the method's own scale."""

    pairs: int
    """Windows with a mean score for both."""
    right: float
    """Mean score by the windows' own instructions."""
    wrong: float
    """Mean score by wrong instructions."""
    low: float
    """Lower end of the 95 % interval (one-sided, bootstrap over windows) of right - wrong."""

    @property
    def passed(self) -> bool:
        """Whether wrong instructions score lower, beyond chance."""
        return self.low > 0


@dataclass(frozen=True)
class Pilot:
    """What a trial found."""

    windows: int
    unreadable: float
    """Share of the windows whose answer could not be read, also after a repair."""
    refused: float
    failed: float
    contrast: Contrast | None
    """None if there was nothing to compare; `remark` says why."""
    remark: str
    dollars_per_window: float | None
    """None if a price is not known."""
    projected_dollars: float | None
    """What all windows cost at that rate."""
    seconds_per_window: float | None
    """Seconds of waiting for replies, one after the other."""
    judged: str = "windows"
    """What the things are that were asked about, in the plural."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the whole should not be paid for; empty if nothing speaks against it."""
        limits = (
            ("unreadable", self.unreadable, MOST_UNREADABLE),
            ("refused", self.refused, MOST_REFUSED),
            ("failed", self.failed, MOST_FAILED),
        )
        found = [
            f"{share:.0%} of the {self.judged} were {name} (at most {limit:.0%} is good)" for name, share, limit in limits if share > limit
        ]
        contrast = self.contrast
        if contrast is not None and contrast.pairs >= FEWEST_PAIRS and not contrast.passed:
            difference = f"{contrast.right:.2f} against {contrast.wrong:.2f} on average, the difference may be {contrast.low:.2f}"
            found.append(f"{self.judged} score no lower by a wrong instruction ({difference})")
        return tuple(found)

    def to_record(self) -> dict[str, Any]:
        """All of it as JSON-ready data."""
        return {**asdict(self), "problems": list(self.problems)}


def wrong_instructions(samples: Sequence[Sample], dataset: Dataset, *, instruction: str = "", seed: int = 0) -> list[Sample]:
    """Each sample once more, with words that belong to another episode (or `instruction`), at annotation -1: not one of the episode's own.

    Of a few instructions drawn at random the one with the fewest words in common is taken; other wordings of the episode's task are not
    wrong. Samples for which there is none are left out,
    and so are pairs: by wrong words neither of two is better, so there is no lower answer to look for.
    """
    samples = [sample for sample in samples if sample.other is None]
    tasks: dict[str, set[str | None]] = {}
    for info in dataset.episodes():
        for annotation in info.annotations:
            tasks.setdefault(annotation.instruction, set()).add(_task_of(info))
    known = sorted(tasks)
    found = []
    for sample in samples:
        info = dataset.episode(sample.segment.episode)
        own = {words for each in info.annotations for words in (each.instruction, *(span.text for span in each.spans))} | {
            sample.instruction
        }
        same = {_task_of(info)} - {None}
        others = [instruction] if instruction else [text for text in known if text not in own and text.strip() and not tasks[text] & same]
        if not others or others[0] in own:
            continue
        random = seeding.generator(seed, "wrong instruction", sample.segment.episode, sample.segment.start, sample.annotation)
        drawn = [others[int(number)] for number in random.permutation(len(others))[:_CANDIDATES]]
        text = min(drawn, key=lambda words: _words_in_common(words, sample.instruction))
        found.append(replace(sample, instruction=text, annotation=-1))
    return found


def _task_of(info: EpisodeInfo) -> str | None:
    """Name of the task that a recorder of ours gave an episode, in a world where a task means the same in all its wordings."""
    task = info.metadata.get("task")
    spec = task.get("spec") if isinstance(task, Mapping) else None
    name = spec.get("name") if isinstance(spec, Mapping) else None
    return name if isinstance(name, str) else None


def judge(method: Method, right: Sequence[Transcript], wrong: Sequence[Transcript], windows: int, *, judged: str = "windows") -> Pilot:
    """What the conversations of a trial say. Pure.

    Args:
        method: reads the conversations.
        right: about windows and their own instructions.
        wrong: about the same windows and wrong instructions; empty if there are none.
        windows: how many there are in the whole.
        judged: what they are, in the plural.
    """
    states = [_state(method.read(transcript)) for transcript in right]
    dollars = _mean_dollars(right)
    pairs = _pairs(method, right, wrong)
    return Pilot(
        windows=len(right),
        unreadable=_share(states, "unreadable"),
        refused=_share(states, "refused"),
        failed=_share(states, "failed"),
        contrast=_contrast(pairs) if pairs else None,
        remark=_remark(right, pairs, wrong, judged),
        dollars_per_window=dollars,
        projected_dollars=None if dollars is None else dollars * windows,
        seconds_per_window=float(np.mean([sum(exchange.outcome.seconds for exchange in each.exchanges) for each in right]))
        if right
        else None,
        judged=judged,
    )


def _state(labels: Sequence[Label]) -> str:
    return labels[0].state if labels else "skipped"


def _share(states: Sequence[str], state: str) -> float:
    return states.count(state) / len(states) if states else 0.0


def _mean_dollars(transcripts: Sequence[Transcript]) -> float | None:
    """Per window, what its answers cost when they were bought; None if some price is not known."""
    prices = [_dollars(exchange) for transcript in transcripts for exchange in transcript.exchanges]
    known = [price for price in prices if price is not None]
    return sum(known) / len(transcripts) if transcripts and len(known) == len(prices) else None


def _dollars(exchange: Exchange) -> float | None:
    """A failure whose price is not known is taken to be free: most are."""
    dollars = exchange.outcome.usage.dollars
    return 0.0 if dollars is None and isinstance(exchange.outcome, Failure) else dollars


def _pairs(method: Method, right: Sequence[Transcript], wrong: Sequence[Transcript]) -> list[tuple[float, float]]:
    by_window = {_window(transcript): score for transcript in wrong if (score := _mean_score(method, transcript)) is not None}
    scored = [(_window(transcript), _mean_score(method, transcript)) for transcript in right]
    return [(score, by_window[window]) for window, score in scored if score is not None and window in by_window]


def _window(transcript: Transcript) -> tuple[int, int, int]:
    segment = transcript.sample.segment
    return segment.episode, segment.start, segment.stop


def _mean_score(method: Method, transcript: Transcript) -> float | None:
    values = [label.value for label in method.read(transcript) if label.value is not None]
    return float(np.mean(values)) if values else None


def _contrast(pairs: Sequence[tuple[float, float]]) -> Contrast:
    right, wrong = np.array(pairs).T
    difference = right - wrong
    drawn = seeding.generator(0, "contrast").integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    low = float(np.quantile(difference[drawn].mean(axis=1), 0.05))
    return Contrast(len(pairs), float(right.mean()), float(wrong.mean()), low)


def _remark(right: Sequence[Transcript], pairs: Sequence[tuple[float, float]], wrong: Sequence[Transcript], judged: str) -> str:
    if any(transcript.sample.other is not None for transcript in right):
        return "whether the rater heeds the words cannot be told from preferences: by wrong words neither of two is better"
    if not wrong:
        cure = "give a wrong one with --pilot-instruction to see whether the rater heeds the words"
        return f"all {judged} have the same instruction, in one wording or several: {cure}"
    if not pairs:
        return f"none of the {judged} was judged by both its own instruction and a wrong one"
    if len(pairs) < FEWEST_PAIRS:
        return f"{len(pairs)} {judged} judged by both right and wrong words are too few to tell whether the rater heeds the words"
    return ""


def _words_in_common(first: str, second: str) -> float:
    one, other = set(first.lower().split()), set(second.lower().split())
    return len(one & other) / max(len(one | other), 1)

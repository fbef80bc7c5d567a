"""Preferences: two stages about two things, "neither" apart from every failure, and a whole line with a truth known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guerdon
from guerdon import samples
from guerdon.answers import Preference as Answer
from guerdon.answers import Text
from guerdon.errors import UsageError
from guerdon.evaluation.truth import qualities
from guerdon.methods.preference import Preference
from guerdon.records import Exchange, Failure, Reply, Sample, Transcript
from tests.data.episodes import episode, write
from tests.memory import MemoryDataset, MemoryEpisode

DATASET = MemoryDataset([MemoryEpisode(11), MemoryEpisode(40)])
ANALYSIS = "1. The door is shut.\n2. The door is open.\n3. In the second."


def method(item: str = "picture", **settings: Any) -> Preference:
    return Preference(Preference.Config(item=item, **settings))  # type: ignore[arg-type]


def sample(made: Preference, dataset: Any = DATASET, **sampling: Any) -> Sample:
    return next(samples.select(dataset, samples.Config(kind=made.samples, **sampling)))


def converse(made: Preference, subject: Sample, *outcomes: Reply | Failure | str) -> Transcript:
    exchanges: list[Exchange] = []
    remaining = list(outcomes)
    while (request := made.next(subject, exchanges)) is not None:
        outcome = remaining.pop(0)
        exchanges.append(Exchange(request, Reply(outcome) if isinstance(outcome, str) else outcome))
    assert not remaining, "the method stopped asking too early"
    return Transcript(subject, tuple(exchanges))


@pytest.mark.parametrize(("item", "frames"), [("picture", 2), ("segment", 18)])
def test_the_first_stage_sees_both_and_the_second_none(item: str, frames: int) -> None:
    made = method(item)
    subject = sample(made)
    assert subject.other is not None
    first, second = (each.request for each in converse(made, subject, ANALYSIS, '{"better": "second"}').exchanges)
    assert (first.answer, second.answer) == (Text(), Answer())
    assert len(first.messages[0].pictures) == 2
    assert len(first.evidence.frames) == frames
    assert first.evidence.other_actions == subject.other.actions
    assert [int(first.evidence.frames[0].pixels[0, 0, 0]), int(first.evidence.frames[frames // 2].pixels[0, 0, 0])] == [
        part.segment.start + 20 * part.segment.episode for part in (subject, subject.other)
    ]
    assert [(message.role, len(message.pictures)) for message in second.messages] == [("user", 0)]
    assert ANALYSIS in second.messages[0].text
    assert "go to the red ball" in second.messages[0].text


@pytest.mark.parametrize(("reply", "value"), [("first", 0.0), ("neither", 0.5), ("second", 1.0)])
def test_the_label_says_where_both_are_and_which_is_better(reply: str, value: float) -> None:
    made = method()
    subject = sample(made)
    assert subject.other is not None
    (label,) = made.read(converse(made, subject, ANALYSIS, f'{{"better": "{reply}"}}'))
    assert (label.unit, label.state, label.value) == ("pair", "labelled", value)
    assert (label.episode, label.start, label.stop) == (subject.segment.episode, subject.segment.start, subject.segment.stop)
    second = subject.other.segment
    assert (label.episode_b, label.start_b, label.stop_b) == (second.episode, second.start, second.stop)
    assert label.rationale == ANALYSIS


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize(("cause", "state"), [("timeout", "failed"), ("blocked", "refused"), ("refusal", "refused")])
def test_a_failure_is_not_neither(turn: int, cause: str, state: str) -> None:
    made = method()
    answers: list[str | Failure] = [ANALYSIS, "junk"][:turn]  # type: ignore[assignment]
    (label,) = made.read(converse(made, sample(made), *answers, Failure(cause, final=False)))  # type: ignore[arg-type]
    assert (label.state, label.cause, label.value, label.answered) == (state, cause, None, turn)


@pytest.mark.parametrize(("replies", "asked"), [([" "], 1), ([ANALYSIS, "-1", "both"], 3)])
def test_an_answer_that_cannot_be_read_is_not_neither(replies: list[str], asked: int) -> None:
    made = method()
    (label,) = made.read(converse(made, sample(made), *replies))
    assert (label.state, label.cause, label.value, label.asked) == ("unreadable", "unreadable", None, asked)


@pytest.mark.parametrize("item", ["picture", "segment"])
def test_two_that_look_the_same_are_not_asked_about(item: str) -> None:
    class Still(MemoryDataset):
        def frames(self, index: int, view: str, start: int, stop: int) -> Any:
            return super().frames(0, view, 0, stop - start) * 0

    made = method(item)
    transcript = converse(made, sample(made, Still([MemoryEpisode(11)])))
    (label,) = made.read(transcript)
    assert (label.state, label.cause, label.value, label.asked) == ("skipped", None, None, 0)


def test_the_version_covers_what_is_asked() -> None:
    made = [method(), method("segment"), method(note="red is you"), method(tile=64), method("segment", frames=4)]
    assert len({each.version for each in made}) == len(made)
    assert method(frames=4).version == method().version
    assert [each.samples for each in made[:2]] == ["picture pairs", "segment pairs"]
    assert made[0].scale == (0.0, 1.0)


@pytest.mark.parametrize("wrong", [{"item": "episode"}, {"frames": 1}, {"tile": 0}])
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Preference.Config(**wrong)


def test_several_cameras_are_told_apart() -> None:
    class Two(MemoryDataset):
        def __init__(self) -> None:
            super().__init__([MemoryEpisode(9)])
            self.views = ("full", "wrist")

    made = method("segment")
    request = made.next(sample(made, Two(), views=("full", "wrist")), [])
    assert request is not None
    assert len(request.messages[0].pictures) == 4
    text = request.messages[0].text
    assert "2 cameras saw each of the two, in this order: full, wrist. The first 2 pictures are of the first one." in text


# --- the whole line -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes in which the way left to the goal is known; the pictures are all different."""
    truth = {
        "subtask": np.r_[np.zeros(8), 1.0], "distance": np.array([8, 7, 6, 7, 6, 4, 3, 1, 0.0]), "progress": np.r_[np.zeros(8), 1.0],
    }  # fmt: skip
    recorded = [episode(8, seed, privileged=truth) for seed in range(2)]
    return write(tmp_path_factory.mktemp("preferred") / "data", recorded)


@pytest.mark.parametrize("item", ["picture", "segment"])
def test_the_perfect_rater_prefers_what_is_truly_better(world: Path, tmp_path: Path, item: str) -> None:
    done = guerdon.label(
        dataset=world, run=tmp_path / "run", method="preference", vlm=("scripted:perfect",), store=str(tmp_path / "s.sqlite"), quiet=True,
        method_settings=method(item).config, sampling=samples.Config(sample=40, window=8 if item == "picture" else 3),
    )  # fmt: skip
    dataset = guerdon.open_dataset(world)
    known = qualities(dataset, 0)
    assert known is not None

    def worth(start: int | None, stop: int | None) -> float:
        assert start is not None
        assert stop is not None
        return float(known[start] if start == stop else known[start + 1 : stop + 1].mean())

    assert done.complete
    for label in done.labels.labels:
        difference = round(worth(label.start_b, label.stop_b) - worth(label.start, label.stop), 9)
        assert label.value == (np.sign(difference) + 1) / 2
    assert {label.value for label in done.labels.labels} == {0.0, 0.5, 1.0}


def test_a_pilot_says_that_it_cannot_contrast_preferences(world: Path, tmp_path: Path) -> None:
    done = guerdon.label(
        dataset=world, run=tmp_path / "run", method="preference", vlm=("scripted:perfect",), store=str(tmp_path / "s.sqlite"), quiet=True,
        pilot=6, pilot_instruction="open the door", sampling=samples.Config(sample=10),
    )  # fmt: skip
    pilot = done.results["pilot"]
    assert pilot["windows"] == 6
    assert pilot["contrast"] is None
    assert "cannot be told from preferences" in pilot["remark"]
    assert done.results["requests"] == 20


def test_pairs_within_sub_tasks_are_compared_by_their_own_words(world: Path, tmp_path: Path) -> None:
    done = guerdon.label(
        dataset=world, run=tmp_path / "run", method="preference", vlm=("scripted:perfect",), store=str(tmp_path / "s.sqlite"), quiet=True,
        sampling=samples.Config(unit="subtask", annotations="first", sample=20),
    )  # fmt: skip
    assert done.complete
    assert {label.instruction for label in done.labels.labels} == {"find it", "go there"}
    assert {label.value for label in done.labels.labels} >= {0.0, 1.0}

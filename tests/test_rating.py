"""Ratings: what is asked in which stage, how answers become labels, and a whole line from a dataset to classes known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guerdon
from guerdon import samples
from guerdon.answers import Choice, Text
from guerdon.errors import ProviderError, UsageError
from guerdon.evaluation.truth import digitise, qualities
from guerdon.methods._prompts import between, evenly_spaced, what_is_shown
from guerdon.methods.rating import CLASSES, COMPLETION, FULFILMENT, Rating
from guerdon.records import Exchange, Failure, Label, Reply, Sample, Transcript
from tests.data.episodes import episode, write
from tests.memory import MemoryDataset, MemoryEpisode

ITEMS = ("picture", "transition", "segment", "episode")
DATASET = MemoryDataset([MemoryEpisode(11, instruction="open the $5 door"), MemoryEpisode(40)])
ANALYSIS = "0: left - nothing\n1: right - the door is open\nAll in all: half of it."


def method(item: str, **settings: Any) -> Rating:
    return Rating(Rating.Config(item=item, **settings))  # type: ignore[arg-type]


def sample(made: Rating, number: int = 0, **sampling: Any) -> Sample:
    return list(samples.select(DATASET, samples.Config(kind=made.samples, **sampling)))[number]


def converse(made: Rating, subject: Sample, *outcomes: Reply | Failure | str) -> Transcript:
    """Plays `outcomes` as answers for as long as the method asks."""
    exchanges: list[Exchange] = []
    remaining = list(outcomes)
    while (request := made.next(subject, exchanges)) is not None:
        outcome = remaining.pop(0)
        exchanges.append(Exchange(request, Reply(outcome) if isinstance(outcome, str) else outcome))
    assert not remaining, "the method stopped asking too early"
    return Transcript(subject, tuple(exchanges))


# --- the two stages -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", ITEMS)
def test_the_second_stage_reads_the_words_and_sees_no_picture(item: str) -> None:
    made = method(item)
    subject = sample(made)
    count = subject.segment.length if item == "transition" else 1
    answer = Choice(CLASSES[3], count)
    first, second = (each.request for each in converse(made, subject, ANALYSIS, answer.render([1] * count)).exchanges)
    assert (first.answer, second.answer) == (Text(), answer)
    assert len(first.messages) == 1
    assert len(first.messages[0].pictures) == 1
    assert len(second.messages) == 1, "a conversation of its own"
    assert not second.messages[0].pictures
    assert ANALYSIS in second.messages[0].text
    assert '"open the $5 door"' in first.messages[0].text
    assert '"open the $5 door"' in second.messages[0].text
    assert second.evidence == first.evidence
    assert [second.rater, first.rater] == [0, 0]
    for meaning in (COMPLETION if item == "transition" else FULFILMENT)[3]:
        assert meaning in second.messages[0].text
    assert all("$" not in message.text.replace("$5", "") for message in (*first.messages, *second.messages))


def test_equal_words_are_one_question() -> None:
    made, lost = method("picture"), Failure("timeout", False)
    talks = [converse(made, sample(made, number), "It is open.", lost) for number in (0, 3)]
    assert len({talk.exchanges[0].request.question for talk in talks}) == 2
    assert len({talk.exchanges[1].request.question for talk in talks}) == 1


def test_a_picture_is_shown_alone_and_large() -> None:
    made = method("picture", tile=64)
    request = made.next(sample(made), [])
    assert request is not None
    (picture,) = request.messages[0].pictures
    assert picture.pixels.shape == (64, 64, 3)
    assert (picture.pixels == 1).all(), "observation 1, and nothing drawn on it"
    assert len(request.evidence.frames) == 1
    assert request.evidence.actions == ()


def test_a_second_rater_may_judge() -> None:
    made = Rating(score_rater=1)
    requests = [each.request for each in converse(made, sample(made), ANALYSIS, "junk", "junk").exchanges]
    assert [request.rater for request in requests] == [0, 1, 1]
    assert [request.purpose for request in requests] == ["describe", "rate", "repair"]


def test_a_repair_quotes_the_error_and_stays_without_pictures() -> None:
    made = method("transition")
    transcript = converse(made, sample(made, 1), ANALYSIS, '{"ratings": ["Good"]}', '{"ratings": ["Bad", "Good", "average"]}')
    repair = transcript.exchanges[-1].request
    assert "the list has 1 ratings, 3 were asked for" in repair.messages[-1].text
    assert not any(message.pictures for message in repair.messages)
    assert [label.value for label in made.read(transcript)] == [0, 2, 1]


# --- labels -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "unit", "place"),
    [("picture", "observation", (1, 1)), ("segment", "segment", (0, 8)), ("episode", "segment", (0, 11))],
)
def test_one_label_for_one_thing(item: str, unit: str, place: tuple[int, int]) -> None:
    made = method(item)
    (label,) = made.read(converse(made, sample(made), ANALYSIS, '{"ratings": ["Good"]}'))
    assert (label.unit, (label.start, label.stop), label.value, label.state) == (unit, place, 2.0, "labelled")
    assert (label.rationale, label.asked, label.answered) == (ANALYSIS, 2, 2)
    assert (made.scale, made.vote, made.classes) == ((0.0, 2.0), "majority", ("Bad", "Average", "Good"))


def test_transitions_get_a_label_and_a_line_each() -> None:
    made = method("transition")
    labels = made.read(converse(made, sample(made, 1), ANALYSIS, '{"ratings": ["Bad", "Average", "Good"]}'))
    assert [(label.unit, label.start, label.stop, label.value) for label in labels] == [
        ("transition", 8, 9, 0.0), ("transition", 9, 10, 1.0), ("transition", 10, 11, 2.0),
    ]  # fmt: skip
    assert [label.rationale for label in labels] == ["left - nothing", "right - the door is open", ""]


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize(("cause", "state"), [("timeout", "failed"), ("empty", "failed"), ("blocked", "refused"), ("refusal", "refused")])
def test_a_failure_at_any_stage_is_never_a_class(item: str, turn: int, cause: str, state: str) -> None:
    made = method(item)
    answers: list[str | Failure] = [ANALYSIS, "junk"][:turn]  # type: ignore[assignment]
    labels = made.read(converse(made, sample(made), *answers, Failure(cause, final=False)))  # type: ignore[arg-type]
    assert {(label.state, label.cause, label.value, label.answered) for label in labels} == {(state, cause, None, turn)}


def test_an_analysis_without_words_is_not_rated() -> None:
    (label,) = method("picture").read(converse(method("picture"), sample(method("picture")), " \n"))
    assert (label.state, label.cause, label.value) == ("unreadable", "unreadable", None)


def test_after_the_repair_it_is_unreadable() -> None:
    (label,) = method("picture").read(converse(method("picture"), sample(method("picture")), ANALYSIS, "1", "Good or Bad"))
    assert (label.state, label.cause, label.value) == ("unreadable", "unreadable", None)


# --- settings -----------------------------------------------------------------------------------------------------------------------


def test_every_number_of_classes_has_names_and_meanings() -> None:
    for levels, names in CLASSES.items():
        assert len(names) == levels == len(set(names))
        for meanings in (FULFILMENT, COMPLETION):
            assert len(set(meanings[levels])) == levels
        assert method("picture", levels=levels).scale == (0.0, levels - 1.0)


def test_the_version_covers_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("[system]\ns\n[analyse]\nlook: $instruction\n[rate]\n$analysis $classes\n[repair]\nno: $error\n")
    made = [
        *map(method, ITEMS), method("picture", levels=2), method("picture", note="red is you"), method("picture", tile=64),
        method("picture", prompt=path), method("segment", frames=8),
    ]  # fmt: skip
    assert len({each.version for each in made}) == len(made)
    assert method("picture", frames=8).version == method("picture").version, "a picture is one frame"
    request = method("picture", prompt=path).next(sample(method("picture")), [])
    assert request is not None
    assert request.messages[0].text == "look: open the $5 door"


@pytest.mark.parametrize("wrong", [{"levels": 1}, {"levels": 6}, {"item": "frame"}, {"frames": 1}, {"frames": 65}, {"tile": 0}])
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Rating.Config(**wrong)


def test_a_prompt_may_use_the_fields_of_its_item_only(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("[system]\ns\n[analyse]\n$actions\n[rate]\nr\n[repair]\nx\n")
    with pytest.raises(UsageError, match=r"section \[analyse\] uses \$actions"):
        method("picture", prompt=path)
    method("segment", prompt=path)


# --- long behaviour -----------------------------------------------------------------------------------------------------------------


def test_a_long_episode_is_shown_by_its_first_its_last_and_some_between() -> None:
    made = method("episode", frames=4)
    subject = sample(made, 1)  # 40 transitions, 41 observations
    request = made.next(subject, [])
    assert request is not None
    assert [int(frame.pixels[0, 0, 0]) for frame in request.evidence.frames] == [20, 33, 47, 60]  # observations 0, 13, 27, 40
    text = request.messages[0].text
    assert "The picture shows 4 of 41 observations" in text
    assert "after 0, 13, 27, 40 actions" in text
    assert "0 to 1: right, forward, left" in text
    whole = made.next(sample(made), [])
    assert whole is not None
    assert len(whole.evidence.frames) == 4


def test_which_observations_and_actions_are_named() -> None:
    assert [evenly_spaced(count, 4) for count in (1, 2, 4, 5, 9)] == [(0,), (0, 1), (0, 1, 2, 3), (0, 1, 3, 4), (0, 3, 5, 8)]
    assert between(("left", "ahead", "ahead", "drop"), (0, 3, 4)) == "0 to 1: left, ahead (2 times)\n1 to 2: drop"
    assert between(("left", "drop"), (0, 1, 2)) == "0: left\n1: drop"
    assert "and 8 more" in between(tuple("ab" * 10), (0, 20))
    assert "shows 3 observations" in what_is_shown(3, (0, 1, 2))


def test_several_cameras_are_named_in_the_order_of_their_pictures() -> None:
    class Two(MemoryDataset):
        def __init__(self) -> None:
            super().__init__([MemoryEpisode(2)])
            self.views = ("full", "wrist")

    made = method("picture")
    request = made.next(next(samples.select(Two(), samples.Config(kind="pictures", views=("wrist", "full")))), [])
    assert request is not None
    assert len(request.messages[0].pictures) == 2
    assert "2 cameras that saw the same, in this order: wrist, full." in request.messages[0].text


# --- the whole line -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rated") / "data"
    guerdon.collect_babyai(out=folder, level="small", tasks=2, demonstrations=2, lengths=(2, 2))
    return folder


def rate(world: Path, tmp_path: Path, item: str, *, levels: int = 3, **settings: Any) -> Any:
    given: dict[str, Any] = {"vlm": ("scripted:perfect",), "method_settings": Rating.Config(item=item, levels=levels, tile=40)} | settings  # type: ignore[arg-type]
    return guerdon.label(dataset=world, run=tmp_path / "run", method="rating", store=str(tmp_path / "s.sqlite"), quiet=True, **given)


def right_classes(label: Label, table: dict[int, Any], levels: int) -> int:
    known = table[label.episode]
    outcomes = known[label.start] if label.start == label.stop else known[label.start + 1 : label.stop + 1].mean()
    return int(digitise(outcomes, levels))


@pytest.mark.parametrize(("item", "levels"), [("picture", 3), ("picture", 5), ("transition", 3), ("segment", 4), ("episode", 5)])
def test_the_perfect_rater_gives_the_classes_of_the_ground_truth(world: Path, tmp_path: Path, item: str, levels: int) -> None:
    done = rate(world, tmp_path, item, levels=levels)
    dataset = guerdon.open_dataset(world)
    table = {info.index: qualities(dataset, info.index) for info in dataset.episodes()}
    assert done.complete
    assert done.labels.metadata["levels"] == list(CLASSES[levels])
    assert done.labels.scale == (0.0, levels - 1.0)
    answers: dict[str, list[tuple[float | None, int]]] = {}
    for number, label in enumerate(done.labels.labels):
        place = str(number) if item != "picture" else label.question  # what looks the same is one question, whenever it was seen
        answers.setdefault(place, []).append((label.value, right_classes(label, table, levels)))
    assert len({label.value for label in done.labels.labels}) > 1
    certain = [given for given in answers.values() if len({right for _, right in given}) == 1]
    assert len(certain) > 0.9 * len(answers) > 0.5 * len(done.labels.labels)
    for given in answers.values():
        assert {value for value, _ in given} <= {float(right) for _, right in given}


def test_sub_tasks_are_rated_by_their_own_words(world: Path, tmp_path: Path) -> None:
    done = rate(world, tmp_path, "transition", sampling=samples.Config(unit="subtask"))
    dataset = guerdon.open_dataset(world)
    ends = {(info.index, span.stop) for info in dataset.episodes() for span in info.annotations[0].spans}
    last = {label.value for label in done.labels.labels if (label.episode, label.stop) in ends}
    assert last == {2.0}, "each sub-task ends fulfilled"
    assert min(label.value for label in done.labels.labels) == 0.0


def test_a_wrong_instruction_is_rated_lower_in_the_pilot(world: Path, tmp_path: Path) -> None:
    done = rate(world, tmp_path, "picture", pilot=20)
    contrast = done.results["pilot"]["contrast"]
    assert contrast["wrong"] == 0.0
    assert contrast["right"] > 0.3
    assert done.results["pilot"]["problems"] == []


def test_a_dataset_that_knows_nothing_of_it_is_refused_before_labels_are_written(tmp_path: Path) -> None:
    truth = {"contribution": np.ones(10, np.float32)}
    data = write(tmp_path / "data", [episode(10, privileged=truth)])
    with pytest.raises(ProviderError, match="does not say how far the instruction is fulfilled"):
        rate(data, tmp_path, "picture")
    assert not (tmp_path / "run/labels/rating.parquet").exists()


def test_repeats_are_a_majority(world: Path, tmp_path: Path) -> None:
    done = rate(world, tmp_path, "episode", repeats=3, vlm=("scripted:noisy",))
    voted = [label for label in done.labels.labels if label.value is not None]
    assert voted
    assert all(label.probabilities is not None and len(label.probabilities) == 3 for label in voted)


def test_the_votes_of_each_repeat_can_be_kept(world: Path, tmp_path: Path) -> None:
    done = rate(world, tmp_path, "episode", repeats=3, vlm=("scripted:noisy",), keep_votes=True)
    assert sorted(done.votes) == [0, 1, 2]
    assert all(len(labels) == len(done.labels.labels) for labels in done.votes.values())
    assert rate(world, tmp_path, "episode", repeats=3, vlm=("scripted:noisy",)).votes == {}

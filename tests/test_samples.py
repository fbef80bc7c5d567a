"""Windows: every transition is judged exactly once, by the right words, and pictures are read late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import UsageError
from guerdon.records import Annotation, Frames, Span, Subject
from guerdon.samples import Config, Selection, action_texts, select, survey, windows
from tests.memory import MemoryDataset, MemoryEpisode


@pytest.mark.parametrize(
    ("length", "min_tail", "expected"),
    [
        (0, 1, []),
        (1, 1, [(0, 1)]),
        (1, 3, [(0, 1)]),
        (7, 1, [(0, 7)]),
        (8, 1, [(0, 8)]),
        (9, 1, [(0, 8), (8, 9)]),
        (9, 3, [(0, 9)]),
        (16, 1, [(0, 8), (8, 16)]),
        (17, 1, [(0, 8), (8, 16), (16, 17)]),
        (17, 3, [(0, 8), (8, 17)]),
        (19, 3, [(0, 8), (8, 16), (16, 19)]),
        (50, 1, [(0, 8), (8, 16), (16, 24), (24, 32), (32, 40), (40, 48), (48, 50)]),
    ],
)
def test_windows_of_eight(length: int, min_tail: int, expected: list[tuple[int, int]]) -> None:
    assert windows(length, 8, min_tail=min_tail) == expected


def test_overlapping_windows_stop_when_one_reaches_the_end() -> None:
    assert windows(20, 8, 4) == [(0, 8), (4, 12), (8, 16), (12, 20)]
    assert windows(10, 8, 4) == [(0, 8), (4, 10)]
    assert windows(8, 8, 1) == [(0, 8)]


@given(length=st.integers(0, 200), size=st.integers(1, 20), data=st.data())
def test_windows_cover_everything_in_order(length: int, size: int, data: st.DataObject) -> None:
    stride, min_tail = data.draw(st.integers(1, size)), data.draw(st.integers(1, 6))
    found = windows(length, size, stride, min_tail)
    count = np.zeros(length, int)
    for start, stop in found:
        assert 0 <= start < stop <= length
        assert stop - start <= size + min_tail - 1
        count[start:stop] += 1
    assert (count >= 1).all()
    assert found == sorted(found)
    assert len({stop for _, stop in found}) == len(found), "a window inside another one is asked for nothing"
    if stride == size:
        assert (count == 1).all()
        assert len(found) < 2 or min(stop - start for start, stop in found) >= min(min_tail, size)


@pytest.mark.parametrize("arguments", [(5, 0), (5, 4, 5), (5, 4, 0), (-1, 4), (5, 4, 4, 0)])
def test_windows_that_leave_something_out_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="windows need"):
        windows(*arguments)


def whole(*lengths: int) -> MemoryDataset:
    return MemoryDataset([MemoryEpisode(length) for length in lengths])


def test_samples_carry_words_actions_and_pictures_of_their_window() -> None:
    dataset = whole(10)
    first, second = select(dataset)
    assert first.subject == Subject(0, 0, 8)
    assert second.subject == Subject(0, 8, 10)
    assert second.instruction == dataset.episode(0).annotations[0].instruction
    assert second.actions == tuple(dataset.action_names[a] for a in dataset.actions(0)[8:10])
    view = dataset.views[0]
    assert second.segment.views == (view,)
    assert np.array_equal(second.frames()[view], dataset.frames(0, view, 8, 11))


def test_pictures_are_read_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, int]] = []
    read = MemoryDataset.frames

    def counted(self: MemoryDataset, index: int, view: str, start: int, stop: int) -> Frames:
        reads.append((start, stop))
        return read(self, index, view, start, stop)

    monkeypatch.setattr(MemoryDataset, "frames", counted)
    samples = list(select(whole(20)))
    assert reads == []
    samples[1].frames()
    assert reads == [(8, 17)]


ANNOTATED = (
    Annotation("first go, then lift", (Span(0, 9, "go"), Span(9, 12, "lift"))),
    Annotation("lift it", ()),
)


def test_sub_tasks_are_judged_by_their_own_words() -> None:
    dataset = MemoryDataset([MemoryEpisode(12, annotations=ANNOTATED)])
    found = [(s.annotation, s.instruction, s.segment.start, s.segment.stop) for s in select(dataset, Config(unit="subtask"))]
    assert found == [(0, "go", 0, 8), (0, "go", 8, 9), (0, "lift", 9, 12)]
    merged = [(s.segment.start, s.segment.stop) for s in select(dataset, Config(unit="subtask", min_tail=3))]
    assert merged == [(0, 9), (9, 12)]


def test_every_annotation_or_the_first_is_judged() -> None:
    dataset = MemoryDataset([MemoryEpisode(12, annotations=ANNOTATED)])
    found = [(s.annotation, s.instruction, s.segment.start) for s in select(dataset)]
    assert found == [(0, "first go, then lift", 0), (0, "first go, then lift", 8), (1, "lift it", 0), (1, "lift it", 8)]
    assert {s.annotation for s in select(dataset, Config(annotations="first"))} == {0}


def test_the_survey_counts_what_is_selected_and_names_what_is_not() -> None:
    plain = (Annotation("lift it"),)
    episodes = [MemoryEpisode(12, annotations=ANNOTATED), MemoryEpisode(5, annotations=plain), MemoryEpisode(0, annotations=plain)]
    dataset = MemoryDataset(episodes)
    assert survey(dataset) == Selection(samples=5, transitions=29, episodes=2, empty_episodes=(2,), without_spans=())
    assert len(list(select(dataset))) == 5
    assert survey(dataset, Config(unit="subtask")) == Selection(3, 12, 1, (2,), (1,))
    assert survey(dataset, Config(stride=4)) == Selection(5, 29, 2, (2,), ())
    assert survey(dataset, Config(window=4, stride=2)).transitions == 29


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=4), window=st.integers(1, 9), unit=st.sampled_from(["episode", "subtask"]))
def test_each_transition_is_judged_once_for_each_annotation(lengths: list[int], window: int, unit: Any) -> None:
    halves = [Annotation("x", (Span(0, n // 2, "a"), Span(n // 2, n, "b"))) for n in lengths]
    dataset = MemoryDataset([MemoryEpisode(n, annotations=(a, a)) for n, a in zip(lengths, halves, strict=True)])
    counts = {(index, annotation): np.zeros(n, int) for index, n in enumerate(lengths) for annotation in (0, 1)}
    for sample in select(dataset, Config(window=window, unit=unit)):
        counts[sample.segment.episode, sample.annotation][sample.segment.start : sample.segment.stop] += 1
    assert all((count == 1).all() for count in counts.values())


def test_episodes_can_be_chosen() -> None:
    assert [s.segment.episode for s in select(whole(3, 3, 3), Config(episodes=(2, 0, 2)))] == [0, 2]
    with pytest.raises(UsageError, match="no episode 3; the dataset has 3"):
        list(select(whole(3, 3, 3), Config(episodes=(3,))))


def test_a_view_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no view 'top'; there are"):
        list(select(whole(3), Config(views=("top",))))


@pytest.mark.parametrize("settings", [{"window": 0}, {"stride": 0}, {"min_tail": 0}, {"window": 4, "stride": 5}])
def test_settings_that_leave_transitions_out_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Config(**settings)


def test_continuous_actions_are_written_short() -> None:
    actions = np.array([[0.254, -1.0, -0.001], [12345.6, 0.0, 1e-9]], np.float32)
    assert action_texts(actions, ()) == ("(0.25, -1, 0)", "(1.23e+04, 0, 0)")


def drawn(dataset: MemoryDataset, **settings: Any) -> set[Subject]:
    return {sample.subject for sample in select(dataset, Config(window=2, **settings))}


def test_a_share_of_the_windows_is_drawn_and_smaller_draws_are_part_of_larger_ones() -> None:
    dataset = whole(*[20] * 10)  # 100 windows of 2
    draws = [drawn(dataset, fraction=share) for share in (0.05, 0.2, 0.501, 1.0)]
    assert [len(draw) for draw in draws] == [5, 20, 51, 100]
    assert draws[0] < draws[1] < draws[2] < draws[3]
    assert drawn(dataset, sample=5) == draws[0]
    assert len({subject.episode for subject in draws[1]}) > 5  # not the first episodes only
    assert drawn(dataset, sample=5, seed=1) != draws[0]
    assert len(drawn(dataset, sample=1000)) == 100


def test_the_survey_counts_what_is_drawn() -> None:
    dataset = MemoryDataset([MemoryEpisode(12, annotations=ANNOTATED), MemoryEpisode(5, annotations=(Annotation("lift it"),))])
    found = survey(dataset, Config(sample=3))
    chosen = list(select(dataset, Config(sample=3)))
    assert (found.samples, found.transitions) == (3, sum(sample.segment.length for sample in chosen))
    assert found.without_spans == ()


@pytest.mark.parametrize("settings", [{"fraction": 0.0}, {"fraction": 1.1}, {"sample": 0}, {"fraction": 0.5, "sample": 3}])
def test_draws_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Config(**settings)

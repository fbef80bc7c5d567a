"""What is judged: every transition exactly once by windows, pictures, segments, episodes, pairs; by the right words; pictures read late."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import DatasetError, UsageError
from guerdon.interfaces import Kind
from guerdon.records import Annotation, Frames, Sample, Span, Subject
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


# --- pictures, segments, episodes ---------------------------------------------------------------------------------------------------


def places(dataset: MemoryDataset, **settings: Any) -> list[tuple[int, int, int, str]]:
    return [(s.segment.episode, s.segment.start, s.segment.stop, s.instruction) for s in select(dataset, Config(**settings))]


GO = "go to the red ball"


def test_windows_are_drawn_as_they_always_were() -> None:
    """Pinned: another draw would be paid for again."""
    dataset = whole(20, 3, 17)
    assert [each[:3] for each in places(dataset, sample=3)] == [(0, 8, 16), (0, 16, 20), (2, 16, 17)]
    assert [each[:3] for each in places(dataset, sample=3, seed=7, window=4)] == [(0, 12, 16), (1, 0, 3), (2, 0, 4)]


def test_every_outcome_of_an_action_is_a_picture() -> None:
    dataset = whole(3, 0, 1)
    assert places(dataset, kind="pictures") == [(0, 1, 1, GO), (0, 2, 2, GO), (0, 3, 3, GO), (2, 1, 1, GO)]
    sample = next(iter(select(dataset, Config(kind="pictures"))))
    assert (sample.actions, sample.segment.length, sample.subject) == ((), 0, Subject(0, 1, 1))
    assert np.array_equal(sample.frames()["full"], dataset.frames(0, "full", 1, 2))
    assert survey(dataset, Config(kind="pictures")) == Selection(4, 4, 2, (1,), ())


def test_a_picture_between_two_sub_tasks_shows_how_the_first_one_ended() -> None:
    dataset = MemoryDataset([MemoryEpisode(12, annotations=ANNOTATED)])
    found = [(k, text) for _, k, _, text in places(dataset, kind="pictures", unit="subtask")]
    assert found == [*((k, "go") for k in range(1, 10)), *((k, "lift") for k in range(10, 13))]
    assert survey(dataset, Config(kind="pictures", unit="subtask")) == Selection(12, 12, 1, (), ())
    assert survey(dataset, Config(kind="pictures")).transitions == 24


def test_segments_come_from_everywhere_the_end_included() -> None:
    dataset = whole(5, 2, 0, 3)
    assert places(dataset, kind="segments", window=3) == [(0, 0, 3, GO), (0, 1, 4, GO), (0, 2, 5, GO), (1, 0, 2, GO), (3, 0, 3, GO)]
    assert survey(dataset, Config(kind="segments", window=3)) == Selection(5, 10, 3, (2,), ())
    (last,) = [s for s in select(dataset, Config(kind="segments", window=3)) if s.segment.start == 2]
    assert last.actions == tuple(dataset.action_names[a] for a in dataset.actions(0)[2:5])
    assert np.array_equal(last.frames()["full"], dataset.frames(0, "full", 2, 6))


def test_segments_stay_within_their_sub_task() -> None:
    dataset = MemoryDataset([MemoryEpisode(12, annotations=ANNOTATED)])
    found = places(dataset, kind="segments", window=8, unit="subtask")
    assert found == [(0, 0, 8, "go"), (0, 1, 9, "go"), (0, 9, 12, "lift")]


def test_whole_episodes_and_sub_tasks_have_any_length() -> None:
    dataset = MemoryDataset([MemoryEpisode(12, annotations=ANNOTATED), MemoryEpisode(0), MemoryEpisode(300)])
    assert places(dataset, kind="episodes") == [(0, 0, 12, "first go, then lift"), (0, 0, 12, "lift it"), (2, 0, 300, GO)]
    assert survey(dataset, Config(kind="episodes")) == Selection(3, 324, 2, (1,), ())
    assert places(dataset, kind="episodes", unit="subtask") == [(0, 0, 9, "go"), (0, 9, 12, "lift")]
    assert survey(dataset, Config(kind="episodes", unit="subtask")) == Selection(2, 12, 1, (1,), (2,))


@pytest.mark.parametrize("kind", ["pictures", "segments", "episodes"])
def test_draws_of_every_kind_nest(kind: Kind) -> None:
    dataset = whole(*range(3, 33))
    draws = [{sample.subject for sample in select(dataset, Config(kind=kind, sample=count))} for count in (3, 10, 25)]
    assert [len(draw) for draw in draws] == [3, 10, 25]
    assert draws[0] < draws[1] < draws[2]
    share = {sample.subject for sample in select(dataset, Config(kind=kind, fraction=0.5))}
    assert len(share) == math.ceil(survey(dataset, Config(kind=kind)).samples / 2)


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    kind=st.sampled_from(get_args(Kind)),
    unit=st.sampled_from(["episode", "subtask"]),
    annotations=st.sampled_from(["first", "all"]),
    sample=st.none() | st.integers(1, 30),
    window=st.integers(1, 5),
)
def test_the_survey_counts_what_is_selected(
    lengths: list[int], kind: Kind, unit: Any, annotations: Any, sample: int | None, window: int
) -> None:
    both = [(Annotation("x", (Span(0, n // 2, "a"), Span(n // 2, n, "b"))), Annotation("y")) for n in lengths]
    dataset = MemoryDataset([MemoryEpisode(n, annotations=each) for n, each in zip(lengths, both, strict=True)])
    size = {"window": window} if kind in ("windows", "segments", "segment pairs") else {}
    config = Config(kind=kind, unit=unit, annotations=annotations, sample=sample, **size)  # type: ignore[arg-type]
    found, chosen = survey(dataset, config), list(select(dataset, config))
    parts = [part for each in chosen for part in ((each, each.other) if each.other else (each,))]
    judged = {(p.segment.episode, p.annotation, step) for p in parts for step in steps_of(p)}
    assert (found.samples, found.transitions) == (len(chosen), len(judged))
    assert found.episodes == len({part.segment.episode for part in parts})
    assert len({each.subject for each in chosen}) == len(chosen)
    if sample is None and "pairs" not in kind:
        assert len(judged) == sum(lengths) * (1 if unit == "subtask" or annotations == "first" else 2), "nothing is left out"


def steps_of(sample: Sample) -> range:
    start, stop = sample.segment.start, sample.segment.stop
    return range(start - 1, stop) if start == stop else range(start, stop)


# --- pairs --------------------------------------------------------------------------------------------------------------------------


def pairs(dataset: MemoryDataset, kind: Kind = "picture pairs", **settings: Any) -> list[Sample]:
    return list(select(dataset, Config(kind=kind, **settings)))


Ends = tuple[tuple[int, int, int], tuple[int, int, int]]


def ends(sample: Sample) -> Ends:
    assert sample.other is not None
    first, second = sample.segment, sample.other.segment
    return (first.episode, first.start, first.stop), (second.episode, second.start, second.stop)


def test_a_pair_carries_the_words_pictures_and_actions_of_both() -> None:
    dataset = whole(9, 12)
    for sample in pairs(dataset, "segment pairs", window=4, sample=20):
        assert sample.other is not None
        for part in (sample, sample.other):
            segment = part.segment
            assert segment.length == 4
            assert part.actions == tuple(dataset.action_names[a] for a in dataset.actions(segment.episode)[segment.start : segment.stop])
            assert np.array_equal(part.frames()["full"], dataset.frames(segment.episode, "full", segment.start, segment.stop + 1))
        assert sample.subject == Subject(*ends(sample)[0], other=(*ends(sample)[1], sample.other.annotation))
    for sample in pairs(dataset, sample=5):
        assert sample.other is not None
        assert sample.actions == sample.other.actions == ()
        assert sample.segment.start == sample.segment.stop >= 1


def test_pairs_are_judged_by_the_same_words_and_never_twice() -> None:
    words = ["red", "blue", "red", "green", "blue"]
    dataset = MemoryDataset([MemoryEpisode(n, instruction=text) for n, text in zip((6, 5, 4, 1, 1), words, strict=True)])
    found = [ends(sample) for sample in pairs(dataset, sample=1000)]
    assert len(found) == len({frozenset(each) for each in found}) == math.comb(10, 2) + math.comb(6, 2)  # green has one picture
    assert all(first != second and words[first[0]] == words[second[0]] for first, second in found)
    assert survey(dataset, Config(kind="picture pairs", sample=1000)) == Selection(60, 16, 4, (), ())


def test_draws_of_pairs_begin_alike() -> None:
    dataset = whole(20, 20, 20)
    hundred = [sample.subject for sample in pairs(dataset, sample=100)]
    assert [sample.subject for sample in pairs(dataset, sample=7)] == hundred[:7]
    assert [sample.subject for sample in pairs(dataset, sample=100)] == hundred
    assert [sample.subject for sample in pairs(dataset, sample=100, seed=1)] != hundred
    assert len(pairs(dataset, fraction=0.5)) == 30, "a share of the pictures"
    assert len(pairs(dataset)) == 60
    assert len(pairs(whole(7), fraction=0.3)) == 3


def test_a_draw_of_pairs_is_pinned() -> None:
    """Another draw would be paid for again."""
    assert [ends(sample) for sample in pairs(whole(20, 3, 17), sample=4)] == [
        ((2, 8, 8), (0, 10, 10)),
        ((2, 10, 10), (0, 11, 11)),
        ((0, 14, 14), (0, 20, 20)),
        ((0, 6, 6), (0, 8, 8)),
    ]


def test_pairs_are_drawn_evenly() -> None:
    """Each of the 45 pairs of ten pictures is the first one drawn about as often as any other, in both orders."""
    dataset = whole(4, 6)
    counts = Counter(ends(pairs(dataset, sample=1, seed=seed)[0]) for seed in range(4500))
    assert len(counts) == 90
    assert max(counts.values()) < 50 + 6 * math.sqrt(50)
    assert min(counts.values()) > 50 - 6 * math.sqrt(50)


def test_words_are_drawn_as_often_as_they_have_pictures() -> None:
    dataset = MemoryDataset([MemoryEpisode(30, instruction="often"), MemoryEpisode(10, instruction="rarely")])
    counts = Counter(pairs(dataset, sample=1, seed=seed)[0].instruction for seed in range(2000))
    assert counts["rarely"] == pytest.approx(500, abs=6 * math.sqrt(2000 * 0.25 * 0.75))


def test_a_picture_is_not_compared_with_itself_by_way_of_another_annotation() -> None:
    dataset = MemoryDataset([MemoryEpisode(3, annotations=(Annotation("x"), Annotation("x")))])
    found = [ends(sample) for sample in pairs(dataset, sample=100)]
    assert len(found) == 3
    assert all(first != second for first, second in found)
    spans = (Annotation("x", (Span(0, 3, "go"),)), Annotation("y", (Span(1, 4, "go"),)))
    dataset = MemoryDataset([MemoryEpisode(4, annotations=spans)])
    assert len(pairs(dataset, unit="subtask", sample=100)) == math.comb(4, 2)


def test_where_nothing_can_be_paired_nothing_is_selected() -> None:
    dataset = MemoryDataset([MemoryEpisode(1, instruction="red"), MemoryEpisode(1, instruction="blue"), MemoryEpisode(0)])
    assert pairs(dataset) == []
    assert survey(dataset, Config(kind="picture pairs")) == Selection(0, 0, 0, (2,), ())
    assert pairs(MemoryDataset([MemoryEpisode(9)]), unit="subtask") == []


def test_many_pairs_of_many_groups_are_drawn_to_the_last() -> None:
    dataset = MemoryDataset([MemoryEpisode(2, instruction=f"task {number}") for number in range(300)] + [MemoryEpisode(40)])
    assert len(pairs(dataset, sample=10_000)) == 300 + math.comb(40, 2)


def test_an_instruction_without_words_is_refused_whatever_is_judged() -> None:
    dataset = MemoryDataset([MemoryEpisode(3), MemoryEpisode(3, instruction=" ")])
    for kind in get_args(Kind):
        with pytest.raises(DatasetError, match="no words"):
            survey(dataset, Config(kind=kind))
        with pytest.raises(DatasetError, match="no words"):
            list(select(dataset, Config(kind=kind)))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "pictures", "stride": 2},
        {"kind": "segments", "stride": 8},
        {"kind": "segments", "min_tail": 2},
        {"kind": "segment pairs", "min_tail": 2},
        {"kind": "episodes", "window": 4},
        {"kind": "picture pairs", "window": 4},
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="means nothing where"):
        Config(**settings)


@pytest.mark.parametrize(("length", "every", "expected"), [(7, 3, [1, 4, 7]), (6, 3, [3, 6]), (2, 5, [2]), (5, 1, [1, 2, 3, 4, 5])])
def test_every_so_many_pictures_end_with_the_last_one(length: int, every: int, expected: list[int]) -> None:
    chosen = select(whole(length), Config(kind="pictures", every=every))
    assert [sample.segment.start for sample in chosen] == expected
    assert survey(whole(length), Config(kind="pictures", every=every)).samples == len(expected)


def test_every_means_nothing_for_windows() -> None:
    with pytest.raises(UsageError, match="every means nothing where windows are judged"):
        survey(whole(9), Config(every=2))
    with pytest.raises(UsageError, match="every means nothing where segments are judged"):
        Config(kind="segments", every=2)

"""Datasets and reward arrays become batches: nothing is invented, nothing is lost, unknown stays unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import DatasetError, PolicyError, RewardError
from guerdon.records import Annotation, Frames
from guerdon.seeding import generator
from guerdon.transitions import Batch, Chunk, ObservationSpec, Sampler, Transitions, Vocabulary, collate, cut, split_words
from tests.memory import MemoryDataset, MemoryEpisode
from tests.point import PointData

NAN = float("nan")


def dataset(*lengths: int, terminated: bool = True) -> MemoryDataset:
    return MemoryDataset([MemoryEpisode(length, f"task {length}", terminated=terminated, rewards=[0.5] * length) for length in lengths])


def test_pictures_actions_rewards_and_ends_are_laid_out_by_row() -> None:
    data = Transitions.build(dataset(3, 2), {(0, 0): np.array([1, NAN, 3], np.float32), (1, 0): np.array([4, 5], np.float32)})
    batch = collate(data, [Chunk(1, 0, 2), Chunk(0, 0, 3)])
    assert batch.prefix is None
    assert batch.rows.frames["full"][:, 0, 0, 0].tolist() == [20, 21, 22, 0, 1, 2, 3]
    assert batch.action.tolist() == [1, 2, 0, 0, 1, 2, 0]
    assert batch.rows.previous_action.tolist() == [3, 1, 2, 3, 0, 1, 2]
    assert batch.reward.tolist() == [4, 5, 0, 1, 0, 3, 0]
    assert batch.acted.tolist() == [True, True, False, True, True, True, False]
    assert batch.known.tolist() == [True, True, False, True, False, True, False]
    assert batch.terminal.tolist() == [False, True, False, False, False, True, False]
    assert batch.rows.lengths.tolist() == [3, 4]
    assert batch.rows.instruction.tolist() == [0, 1]
    assert data.coverage == pytest.approx(4 / 5)
    assert len(data) == 5


def test_episode_cut_off_by_a_time_limit_has_no_terminal() -> None:
    data = Transitions.build(dataset(3, terminated=False))
    assert not data.terminal.any()


def test_chunks_end_without_a_terminal_and_carry_their_prefix() -> None:
    data = Transitions.build(dataset(5))
    assert cut(data, 2) == [Chunk(0, 0, 2), Chunk(0, 2, 4), Chunk(0, 4, 5)]
    batch = collate(data, [Chunk(0, 2, 4), Chunk(0, 0, 2)])
    assert not batch.terminal.any()
    assert batch.prefix is not None
    assert batch.prefix.lengths.tolist() == [2, 0]
    assert batch.prefix.frames["full"][:, 0, 0, 0].tolist() == [0, 1]
    assert batch.prefix.previous_action.tolist() == [3, 0]
    assert batch.rows.frames["full"][:, 0, 0, 0].tolist() == [2, 3, 4, 0, 1, 2]
    assert batch.rows.previous_action.tolist() == [1, 2, 0, 3, 0, 1]
    assert collate(data, [Chunk(0, 4, 5)]).terminal.tolist() == [True, False]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    context=st.integers(1, 10),
    sequences=st.integers(1, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=25)
def test_an_epoch_visits_every_transition_once(lengths: list[int], context: int, sequences: int, seed: int) -> None:
    data = Transitions.build(dataset(*lengths))
    pieces = len(cut(data, context))
    sampler = Sampler(data, sequences=sequences, context=context, seed=seed)
    drawn = [sampler.draw() for _ in range(pieces)]  # `sequences` epochs
    assert sum(int(batch.acted.sum()) for batch in drawn) == sequences * sum(lengths)
    assert all(len(batch.rows.lengths) == sequences for batch in drawn)


def same(first: Batch, second: Batch) -> bool:
    return bool((first.action.shape == second.action.shape) and (first.rows.frames["full"] == second.rows.frames["full"]).all())


def test_a_sampler_goes_on_where_it_was() -> None:
    data = Transitions.build(dataset(3, 4, 5, 6, 7))
    first = Sampler(data, sequences=2, context=4, seed=1)
    for _ in range(3):
        first.draw()
    second = Sampler(data, sequences=2, context=4, seed=1)
    second.load_state(first.state())
    assert all(same(first.draw(), second.draw()) for _ in range(8))
    assert not all(same(first.draw(), Sampler(data, sequences=2, context=4, seed=seed).draw()) for seed in range(4))


def test_pieces_without_a_known_reward_are_left_out() -> None:
    data = Transitions.build(dataset(4, 2), {(0, 0): np.array([NAN, NAN, 1, NAN], np.float32)})
    assert cut(data, 2) == [Chunk(0, 2, 4)]
    assert data.coverage == pytest.approx(1 / 6)


def test_several_annotations_share_pictures_but_not_rewards() -> None:
    episode = MemoryEpisode(2, annotations=(Annotation("go left"), Annotation("go right")))
    data = Transitions.build(MemoryDataset([episode]), {(0, 0): np.array([1, 2], np.float32), (0, 1): np.array([3, 4], np.float32)})
    assert len(data) == 4
    assert len(data.frames["full"]) == 3
    batch = collate(data, [Chunk(1, 0, 2)])
    assert batch.reward.tolist() == [3, 4, 0]
    assert batch.rows.tokens.tolist() == [data.spec.vocabulary.encode("go right")]


def test_the_rewards_of_the_dataset_are_the_default() -> None:
    data = Transitions.build(dataset(2))
    assert data.reward.tolist() == [0.5, 0.5]
    assert data.coverage == 1


def test_the_fingerprint_follows_rewards_and_episodes() -> None:
    source = dataset(2, 3)
    plain = Transitions.build(source).fingerprint
    assert plain == Transitions.build(source).fingerprint
    others = [
        Transitions.build(source, {(0, 0): np.array([1, 2], np.float32)}),
        Transitions.build(source, {(0, 0): np.array([1, NAN], np.float32)}),
        Transitions.build(source, episodes=[1]),
    ]
    assert len({plain, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize("reward", [[1.0], [1.0, 2.0, 3.0], [1.0, float("inf")]])
def test_rewards_that_do_not_fit_are_refused(reward: list[float]) -> None:
    with pytest.raises(RewardError, match="episode 0, annotation 0"):
        Transitions.build(dataset(2), {(0, 0): np.array(reward, np.float32)})


def test_a_column_without_one_known_reward_is_refused() -> None:
    with pytest.raises(RewardError, match="no transition has a known reward"):
        Transitions.build(dataset(2), {(7, 0): np.array([1, 2], np.float32)})


def test_data_that_cannot_be_learned_from_are_refused() -> None:
    with pytest.raises(DatasetError, match="no view 'wrist'"):
        Transitions.build(dataset(2), views=("wrist",))
    with pytest.raises(DatasetError, match="no episode"):
        Transitions.build(MemoryDataset([MemoryEpisode(2, annotations=())]))
    nameless = dataset(2)
    nameless.action_names = ()
    with pytest.raises(DatasetError, match="Named actions need names"):
        Transitions.build(nameless)
    few = dataset(3)
    few.action_names = ("left",)
    with pytest.raises(DatasetError, match="episode 0"):
        Transitions.build(few)


def test_pictures_of_different_sizes_are_refused() -> None:
    class Growing(MemoryDataset):
        def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
            return np.zeros((stop - start, 8 + 8 * index, 8, 3), np.uint8)

    with pytest.raises(DatasetError, match="episode 1"):
        Transitions.build(Growing([MemoryEpisode(2, rewards=[0, 0]), MemoryEpisode(2, rewards=[0, 0])]))


def test_words_are_split_and_numbered() -> None:
    vocabulary = Vocabulary.of(["Go to the red ball, then stop.", "go LEFT"])
    assert split_words("Go to, the\tBALL.") == ["go", "to", ",", "the", "ball", "."]
    assert vocabulary.words == tuple(sorted([",", ".", "ball", "go", "left", "red", "stop", "the", "then", "to"]))
    assert vocabulary.encode("go") == vocabulary.encode(" GO ") == [2, 3 + vocabulary.words.index("go")]
    assert vocabulary.encode("go elephant")[2] == Vocabulary.UNKNOWN
    assert vocabulary.encode("") == [Vocabulary.START]
    assert vocabulary.batch(["go", ""]).tolist() == [vocabulary.encode("go"), [2, 0]]


@given(st.text(st.characters(), max_size=30))
def test_any_text_is_an_instruction(text: str) -> None:
    vocabulary = Vocabulary.of(["go to the red ball"])
    tokens = vocabulary.encode(text)
    assert tokens
    assert all(1 <= token < len(vocabulary) for token in tokens)
    assert all(token >= 3 for token in Vocabulary.of([text]).encode(text)[1:])


def spec() -> ObservationSpec:
    return ObservationSpec({"full": (8, 16), "hand": (8, 8)}, ("left", "right"), Vocabulary(("go", "ü")))


def test_a_spec_survives_its_record() -> None:
    assert ObservationSpec.from_record(spec().to_record()) == spec()
    assert list(ObservationSpec.from_record(spec().to_record()).views) == ["full", "hand"]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({"full": np.zeros((8, 16, 3), np.uint8)}, "view 'hand'.*given are: full"),
        ({"full": np.zeros((8, 8, 3), np.uint8), "hand": np.zeros((8, 8, 3), np.uint8)}, r"\(8, 16, 3\).*got uint8 \(8, 8, 3\)"),
        ({"full": np.zeros((8, 16, 3)), "hand": np.zeros((8, 8, 3), np.uint8)}, "got float64"),
    ],
)
def test_other_pictures_are_refused(frames: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        spec().check_seen(frames)


def test_a_spec_of_vectors_and_continuous_actions_survives_its_record() -> None:
    state = ObservationSpec({}, (), Vocabulary(("go",)), {"state": 5, "force": 2}, 3, reads=False)
    assert ObservationSpec.from_record(state.to_record()) == state
    assert list(ObservationSpec.from_record(state.to_record()).vectors) == ["state", "force"]


def test_the_record_of_a_policy_of_pictures_is_what_it_always_was() -> None:
    old = {"views": [["full", 8, 16], ["hand", 8, 8]], "actions": ["left", "right"], "words": ["go", "ü"]}
    assert spec().to_record() == old
    assert ObservationSpec.from_record(old) == spec()


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ({}, "sees the vector 'state', but what is given is: none"),
        ({"state": np.zeros(4, np.float32)}, r"expects 5 floats for vector 'state', got float32 \(4,\)"),
        ({"state": np.zeros(5, np.int64)}, "got int64"),
        ({"state": np.array([0, 0, np.nan, 0, 0])}, "'state' holds a number that is not finite"),
    ],
)
def test_other_vectors_are_refused(vector: dict[str, Any], message: str) -> None:
    state = ObservationSpec({}, (), Vocabulary(()), {"state": 5}, 2)
    state.check_seen({"state": np.zeros((3, 5))})
    with pytest.raises(PolicyError, match=message):
        state.check_seen(vector)


def test_other_actions_are_refused() -> None:
    spec().check_actions(["left", "right"])
    with pytest.raises(PolicyError, match=r"\[left, right\], the environment with \[right, left\]"):
        spec().check_actions(["right", "left"])
    with pytest.raises(PolicyError, match=r"\[left, right\], the environment with \[4 continuous components\]"):
        spec().check_actions([], 4)
    ObservationSpec({}, (), Vocabulary(()), {"state": 5}, 2).check_actions([], 2)


# --- vectors and continuous actions -------------------------------------------------------------------------------------------------


class Small(MemoryDataset):
    """Two episodes whose vector and actions can be read off."""

    def __init__(self, vectors: list[np.ndarray], actions: list[np.ndarray], **more: Any) -> None:
        super().__init__([MemoryEpisode(len(action), rewards=[0.0] * len(action), **more) for action in actions])
        self.vectors, self.action_names, self._values, self._actions = ("state",), (), vectors, actions

    def vector(self, index: int, name: str) -> np.ndarray:
        return self._values[index]

    def actions(self, index: int) -> np.ndarray:
        return self._actions[index]


def small() -> Small:
    vectors = [np.array([[0, 5], [1, 5], [2, 5.0]]), np.array([[10, 5], [11, 5.0]])]
    return Small(vectors, [np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[-0.5, 1.00001]])])


def test_vectors_and_continuous_actions_are_laid_out_by_row() -> None:
    data = Transitions.build(small(), {(0, 0): np.array([1, 2], np.float32), (1, 0): np.array([3], np.float32)}, vectors=("state",))
    assert (dict(data.spec.views), data.spec.vectors, data.spec.action_size, data.spec.reads) == ({}, {"state": 2}, 2, False)
    batch = collate(data, [Chunk(1, 0, 1), Chunk(0, 1, 2)])
    assert batch.prefix is None  # there is no memory to fill
    assert batch.rows.frames == {}
    assert batch.rows.vectors["state"].tolist() == [[10, 5], [11, 5], [1, 5], [2, 5]]
    expected = torch.tensor([[-0.5, 1.0], [0, 0], [0.3, 0.4], [0, 0]])
    torch.testing.assert_close(batch.action, expected)
    torch.testing.assert_close(batch.rows.previous_action, torch.tensor([[0, 0], [-0.5, 1.0], [0.1, 0.2], [0.3, 0.4]]))
    assert batch.terminal.tolist() == [True, False, True, False]
    mean, deviation = data.vector_moments()["state"]
    torch.testing.assert_close(mean, torch.tensor([4.8, 5.0]))  # of 0, 1, 2, 10, 11
    torch.testing.assert_close(deviation, torch.tensor([(22.16) ** 0.5, 0.0]))
    torch.testing.assert_close(data.action_deviation(), torch.tensor([0.1155556**0.5, 0.1155556**0.5]), atol=1e-4, rtol=0)


def test_what_is_seen_can_be_chosen() -> None:
    source = PointData(2, views=("above",))
    assert set(Transitions.build(source).frames) == {"above"}
    source.read.clear()
    state = Transitions.build(source, vectors=("state",))
    assert (set(state.frames), set(state.vectors), source.read) == (set(), {"state"}, [])
    assert not state.spec.remembers
    both = Transitions.build(source, views=("above",), vectors=("state",))
    assert (set(both.frames), set(both.vectors), both.spec.remembers) == ({"above"}, {"state"}, True)
    assert len({one.fingerprint for one in (Transitions.build(source), state, both)}) == 3
    with pytest.raises(DatasetError, match="nothing of it is to be seen"):
        Transitions.build(source, views=())
    with pytest.raises(DatasetError, match="no vector 'force'; there are: state"):
        Transitions.build(source, vectors=("force",))


def test_named_actions_can_go_with_a_state() -> None:
    source = PointData(2)
    source.action_names = ("left", "right", "forward")
    source.actions = lambda index: (np.arange(20) + index) % 3  # type: ignore[method-assign]
    batch = collate(Transitions.build(source, vectors=("state",)), [Chunk(0, 0, 1), Chunk(1, 3, 4)])
    assert batch.action.tolist() == [0, 0, 1, 0]
    assert batch.rows.previous_action.tolist() == [3, 0, 0, 1]


def test_several_instructions_matter_and_one_does_not() -> None:
    assert Transitions.build(PointData(2, texts=("go", "run")), vectors=("state",)).spec.reads
    assert not Transitions.build(PointData(2), vectors=("state",)).spec.reads
    assert Transitions.build(PointData(2, views=("above",)), views=("above",), vectors=("state",)).spec.reads


@pytest.mark.parametrize(
    ("vectors", "actions", "message"),
    [
        ([np.zeros((2, 3))], [np.zeros((2, 1))], r"shape \(2, 3\), where \(3, 3\)"),
        ([np.zeros(3)], [np.zeros((2, 1))], r"shape \(3,\)"),
        ([np.full((3, 2), np.nan)], [np.zeros((2, 1))], "not finite"),
        ([np.zeros((3, 2)), np.zeros((3, 4))], [np.zeros((2, 1))] * 2, r"episode 1.*\(3, 4\), where \(3, 2\)"),
        ([np.zeros((3, 2))] * 2, [np.zeros((2, 1)), np.zeros((2, 2))], r"episode 1.*where 2 rows of 1 floats"),
        ([np.zeros((3, 2))], [np.full((2, 1), 1.5)], r"leaves \[-1, 1\]"),
        ([np.zeros((3, 2))], [np.full((2, 1), np.nan)], "is not a number"),
        ([np.zeros((3, 2))], [np.zeros((2, 1), np.int64)], "are int64"),
    ],
)
def test_vectors_and_actions_that_do_not_fit_are_refused(vectors: list[np.ndarray], actions: list[np.ndarray], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Transitions.build(Small(vectors, actions), vectors=("state",))


def read_words(rows: Any) -> list[list[int]]:
    return [[token for token in rows.tokens[text].tolist() if token] for text in rows.instruction.tolist()]


@pytest.mark.parametrize("named", [False, True])
def test_gathered_single_transitions_are_those_that_collate_puts_together(named: bool) -> None:
    source = PointData(5, steps=4, texts=("go", "run to it, then stop", "go"))
    if named:
        source.action_names = ("left", "right", "forward")
        source.actions = lambda index: (np.arange(4) + index) % 3  # type: ignore[method-assign]
    rewards = {(k, 0): np.array([k, NAN, 2, 3], np.float32) for k in range(5)}
    data = Transitions.build(source, rewards, vectors=("state",))
    chunks = cut(data, 1)
    assert len(chunks) == 15
    sampler = Sampler(data, sequences=7, context=1, seed=3)
    for number in range(6):  # nearly three epochs, so that batches reach over their ends
        drawn = sampler.draw()
        order = [chunks[sampler_place(15, 3, 7 * number + k)] for k in range(7)]
        expected = collate(data, order)
        for name in ("action", "reward", "terminal", "acted", "known"):
            ours, theirs = getattr(drawn, name), getattr(expected, name)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
        assert torch.equal(drawn.rows.vectors["state"], expected.rows.vectors["state"])
        assert torch.equal(drawn.rows.previous_action, expected.rows.previous_action)
        assert torch.equal(drawn.rows.lengths, expected.rows.lengths)
        assert read_words(drawn.rows) == read_words(expected.rows)
        assert drawn.prefix is expected.prefix is None


def sampler_place(pieces: int, seed: int, place: int) -> int:
    epoch, position = divmod(place, pieces)
    return int(generator(seed, "sampler", epoch).permutation(pieces)[position])

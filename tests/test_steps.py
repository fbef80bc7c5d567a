"""What a reward model looks at: transitions read from datasets, and labels turned into judgements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from guerdon.errors import DatasetError, RewardError, RewardModelError, UsageError
from guerdon.labels import vote
from guerdon.methods.preference import Preference
from guerdon.rewards.steps import Judgements, Look, StepArrays, check_look, gather, joined, judgements, look_of, read_steps, unit_of
from guerdon.transitions import Vocabulary
from tests.memory import MemoryDataset, MemoryEpisode
from tests.reward_data import INSTRUCTION, Recorded, label, label_set


def test_a_look_takes_sizes_from_the_data() -> None:
    data = Recorded()
    assert look_of(data) == Look({"full": (16, 16)})
    assert look_of(data, vectors=["state"]) == Look(vectors={"state": 2})
    both = look_of(data, views=["full"], vectors=["state"], pictures=2, action=True, instruction=True)
    assert (both.views, both.vectors, both.vector_size) == ({"full": (16, 16)}, {"state": 2}, 4)
    assert (both.action_names, both.action_size) == (("left", "right", "forward"), 0)
    assert both.words == Vocabulary.of([INSTRUCTION, "reach the ball", "find the ball", "touch it"]).words
    continuous = look_of(Recorded(continuous=True), action=True)
    assert (continuous.action_names, continuous.action_size) == ((), 2)


def test_a_look_survives_json() -> None:
    import json

    look = look_of(Recorded(), views=["full"], vectors=["state"], pictures=2, action=True, instruction=True, unit="subtask")
    assert Look.from_record(json.loads(json.dumps(look.to_record()))) == look
    assert Look.from_record(json.loads(json.dumps(Look().to_record()))).words is None
    for spoiled in ({"pictures": 3}, {"unit": "scene"}):
        with pytest.raises(ValueError):
            Look.from_record(look.to_record() | spoiled)


def test_names_that_the_dataset_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="no view 'wrist'; there are: full"):
        look_of(Recorded(), views=["wrist"])
    with pytest.raises(UsageError, match="no vector observation 'pose'; there are: state"):
        look_of(Recorded(), vectors=["pose"])
    blind = MemoryDataset([MemoryEpisode(3)])
    blind.views = ()
    with pytest.raises(UsageError, match="neither pictures nor vector"):
        look_of(blind)
    with pytest.raises(DatasetError, match="no transition"):
        look_of(MemoryDataset([MemoryEpisode(0)]))


def test_the_picture_of_a_transition_is_what_it_led_to() -> None:
    data = Recorded()
    arrays = read_steps(data, look_of(data), [(0, 0, 0), (1, 0, 6), (0, 0, 4)])
    assert arrays.frames["full"][arrays.picture[:, 0], 0, 0, 0].tolist() == [1, 27, 5]


def test_two_pictures_and_vectors_are_in_order_of_time() -> None:
    data = Recorded()
    look = look_of(data, views=["full"], vectors=["state"], pictures=2, action=True)
    arrays = read_steps(data, look, [(1, 0, 2), (1, 0, 3)])
    assert arrays.frames["full"][arrays.picture][:, :, 0, 0, 0].tolist() == [[22, 23], [23, 24]]
    assert len(arrays.frames["full"]) == 3  # the one in the middle is kept once
    assert arrays.vector.tolist() == [[1, 2, 1, 3], [1, 3, 1, 4]]
    assert arrays.action.tolist() == [0, 1]


def test_only_the_pictures_that_are_wanted_are_read() -> None:
    data = Recorded()
    look = look_of(data)
    data.reads.clear()
    read_steps(data, look, [(1, 0, 0), (1, 0, 1), (1, 0, 5)])
    assert data.reads == [(1, 1, 3), (1, 6, 7)]


def test_continuous_actions() -> None:
    data = Recorded(continuous=True)
    arrays = read_steps(data, look_of(data, action=True), [(0, 0, 2)])
    assert arrays.action.dtype == np.float32
    assert arrays.action.tolist() == [[1.0, -1.0]]


def test_instructions_are_those_of_the_annotation_or_of_the_sub_task() -> None:
    data = Recorded()
    wanted = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 4)]
    whole = read_steps(data, look_of(data, instruction=True), wanted)
    assert [whole.instructions[row] for row in whole.instruction] == [INSTRUCTION, "reach the ball", INSTRUCTION, INSTRUCTION]
    parts = read_steps(data, look_of(data, instruction=True, unit="subtask"), wanted)
    assert [parts.instructions[row] for row in parts.instruction] == ["find the ball", "reach the ball", INSTRUCTION, "touch it"]
    assert read_steps(data, look_of(data), wanted).instructions == ("",)


@pytest.mark.parametrize("place", [(0, 0, 5), (0, 0, -1), (3, 0, 0)])
def test_transitions_that_are_not_there_are_refused(place: tuple[int, int, int]) -> None:
    data = Recorded()
    with pytest.raises(RewardError, match="episode"):
        read_steps(data, look_of(data), [place])


def test_gathered_steps_hold_just_what_was_asked_for() -> None:
    data = Recorded()
    look = look_of(data, views=["full"], vectors=["state"], action=True, instruction=True)
    arrays = read_steps(data, look, [(0, 0, 0), (0, 1, 1), (1, 0, 2), (2, 0, 3)])
    steps = gather(arrays, np.array([2, 1]))
    assert steps.frames["full"].shape == (2, 1, 16, 16, 3)
    assert steps.frames["full"][:, 0, 0, 0, 0].tolist() == [23, 2]
    assert steps.vector.tolist() == [[1, 3], [0, 2]]
    texts = Vocabulary(look.words or ()).batch([INSTRUCTION, "reach the ball"])
    assert [row[row > 0].tolist() for row in steps.tokens[steps.instruction]] == [row[row > 0].tolist() for row in texts]


def test_pictures_that_lie_side_by_side_are_not_copied() -> None:
    data = Recorded()
    arrays = read_steps(data, look_of(data), [(0, 0, t) for t in range(5)])
    steps = gather(arrays, np.array([1, 2, 3]))
    locked = replace(arrays, frames={"full": arrays.frames["full"].copy()})
    locked.frames["full"].flags.writeable = False
    assert torch.equal(gather(locked, np.array([1, 2, 3])).frames["full"], steps.frames["full"])
    assert steps.frames["full"].data_ptr() == arrays.frames["full"][1:].ctypes.data
    assert torch.equal(steps.frames["full"], gather(arrays, np.array([3, 2, 1])).frames["full"].flip(0))


# --- judgements ---------------------------------------------------------------------------------------------------------------------


def look() -> Look:
    return Look(vectors={"state": 2})


def outcomes(found: Any) -> list[list[list[float]]]:
    """Vectors of the transitions of each item."""
    items = [found.members[a:b] for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]
    return [found.steps.vector[rows].tolist() for rows in items]


def test_ratings_of_pictures_segments_and_transitions() -> None:
    labels = [label("observation", 1, 3, 3, 2), label("transition", 0, 0, 1, 0), label("segment", 2, 1, 4, 1), label("segment", 1, 0, 7, 1)]
    found = judgements([label_set(labels, levels=3)], Recorded(), look())
    assert (found.kind, found.levels, len(found)) == ("rating", 3, 4)
    assert found.target.tolist() == [2, 0, 1, 1]
    assert found.group.tolist() == [1, 0, 2, 1]
    expected = [[[1, 3]], [[0, 1]], [[2, 2], [2, 3], [2, 4]], [[1, t] for t in range(1, 8)]]
    assert outcomes(found) == expected
    assert len(found.steps) == 1 + 1 + 3 + 7 - 1  # observation 3 is the outcome of a transition of the last segment


def test_labels_without_a_value_are_left_out() -> None:
    labels = [label("observation", 0, 1, 1, None), label("observation", 0, 2, 2, 1)]
    assert judgements([label_set(labels, levels=2)], Recorded(), look()).target.tolist() == [1]
    with pytest.raises(RewardError, match="none of the 1 labels carries a value"):
        judgements([label_set(labels[:1], levels=2)], Recorded(), look())


def test_scores_are_scaled_by_their_own_scale() -> None:
    first = label_set([label("transition", 0, 0, 1, 5)], scale=(0, 10))
    second = label_set([label("transition", 0, 1, 2, 2)], scale=(1, 5))
    found = judgements([first, second], Recorded(), look())
    assert found.kind == "score"
    assert found.target.tolist() == [0.5, 0.25]


def test_several_answers_become_shares() -> None:
    labels = [label("observation", 0, 1, 1, 2, probabilities=(0.0, 0.25, 0.75)), label("observation", 0, 2, 2, 0)]
    assert judgements([label_set(labels, levels=3)], Recorded(), look()).target.tolist() == [[0, 0.25, 0.75], [1, 0, 0]]


def test_an_answer_that_two_label_sets_hold_counts_once() -> None:
    asked = {"question": "s256:first", "answered": 1}
    few = [label("observation", 0, 1, 1, 2, **asked), label("observation", 0, 2, 2, 0, question="s256:second")]
    again = label("observation", 0, 1, 1, 1, question="s256:first", answered=5, probabilities=(0.2, 0.6, 0.2))
    same_picture = label("observation", 1, 1, 1, 2, **asked)
    found = judgements([label_set(few, levels=3), label_set([again, same_picture], levels=3)], Recorded(), look())
    assert found.target.tolist() == [[pytest.approx(0.2), pytest.approx(0.6), pytest.approx(0.2)], [1, 0, 0], [0, 0, 1]]
    assert outcomes(found) == [[[0, 1]], [[0, 2]], [[1, 1]]]
    unknown = [label("observation", 0, 1, 1, value) for value in (0, 2)]
    assert len(judgements([label_set(unknown, levels=3)], Recorded(), look())) == 2, "who asked is not known"


def test_several_answers_about_a_pair_become_their_mean() -> None:
    """Of three raters two prefer the second one; of two, one has no preference."""
    place = {"episode_b": 1, "start_b": 7, "stop_b": 7}
    voted = [
        vote([[label("pair", 0, k, k, value, **place)] for value in values], Preference.vote, scale=Preference.scale)[0]
        for k, values in ((1, (1.0, 0.0, 1.0)), (2, (0.5, 1.0)), (3, (0.0,)))
    ]
    assert [each.value for each in voted] == [1.0, 0.5, 0.0]
    found = judgements([label_set(voted, scale=(0, 1))], Recorded(), look())
    assert found.target.tolist() == pytest.approx([2 / 3, 0.75, 0.0])
    wrong = [replace(voted[0], probabilities=shares) for shares in ((0.5, 0.5), (0.0, 0.0, 0.0), (1.0, -1.0, 1.0))]
    for each in wrong:
        with pytest.raises(RewardError, match="shares"):
            judgements([label_set([each], scale=(0, 1))], Recorded(), look())


def test_pairs_are_two_items() -> None:
    pairs = [
        label("pair", 0, 2, 2, 1.0, episode_b=1, start_b=7, stop_b=7),
        label("pair", 1, 0, 2, 0.5, episode_b=2, start_b=1, stop_b=4),
    ]
    found = judgements([label_set(pairs, scale=(0, 1))], Recorded(), look())
    assert (found.kind, found.target.tolist(), found.group.tolist()) == ("preference", [1.0, 0.5], [0, 1])
    assert outcomes(found) == [[[0, 2]], [[1, 7]], [[1, 1], [1, 2]], [[2, 2], [2, 3], [2, 4]]]


def test_labels_by_hand_win() -> None:
    hand = {"state": "human"}
    labels = [
        label("observation", 0, 2, 2, 0),
        label("transition", 0, 1, 2, 2, **hand),  # of the same transition as the one above
        label("segment", 0, 1, 3, 0),  # half of it was set by hand: stays
        label("observation", 1, 2, 2, 1),
    ]
    found = judgements([label_set(labels, levels=3)], Recorded(), look())
    assert found.target.tolist() == [2, 0, 1]
    pair = {"episode_b": 1, "start_b": 1, "stop_b": 1}
    pairs = [label("pair", 0, 1, 1, 1.0, **pair), label("pair", 0, 1, 1, 0.0, **pair, **hand), label("pair", 0, 2, 2, 1.0, **pair)]
    assert judgements([label_set(pairs)], Recorded(), look()).target.tolist() == [0.0, 1.0]


def test_label_sets_that_cannot_be_used_are_refused() -> None:
    rating, score = label_set([label("observation", 0, 1, 1, 1)], levels=2), label_set([label("transition", 0, 0, 1, 1)])
    with pytest.raises(RewardError, match="ratings of 2 classes and scores"):
        judgements([rating, score], Recorded(), look())
    with pytest.raises(RewardError, match="another dataset"):
        judgements([label_set(rating.labels, levels=2, dataset="s256:other")], Recorded(), look())
    with pytest.raises(RewardError, match="no label set"):
        judgements([], Recorded(), look())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (label("observation", 0, 6, 6, 1), "transitions 5..6 of episode 0, which has 5"),
        (label("observation", 0, 0, 0, 1), "transitions -1..0"),
        (label("segment", 2, 2, 5, 1), "transitions 2..5 of episode 2, which has 4"),
        (label("observation", 0, 1, 1, 0.5), "0.5, which is none of 2 classes"),
        (label("observation", 0, 1, 1, 2), "2, which is none of 2 classes"),
        (label("observation", 0, 1, 1, 1, probabilities=(1.0,)), "shares"),
    ],
)
def test_labels_about_nothing_are_refused(wrong: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        judgements([label_set([wrong], levels=2)], Recorded(), look())


def test_a_score_off_its_scale_is_refused() -> None:
    with pytest.raises(RewardError, match="11, outside the scale"):
        judgements([label_set([label("transition", 0, 0, 1, 11)])], Recorded(), look())


def test_words_are_those_that_the_labels_were_judged_by() -> None:
    data = Recorded()
    labels = label_set([label("observation", 0, 1, 1, 1, instruction="find the ball")], levels=2)
    assert unit_of([labels], data) == "subtask"
    assert unit_of([label_set([label("observation", 0, 1, 1, 1)], levels=2)], data) == "episode"
    parts = judgements([labels], data, look_of(data, instruction=True, unit="subtask"))
    assert parts.steps.instructions == ("find the ball",)
    with pytest.raises(RewardError, match="judged by 'find the ball', where the model would read 'go to the red ball'"):
        judgements([labels], data, look_of(data, instruction=True))
    judgements([labels], data, look_of(data))  # a model that reads nothing does not care


# --- other data ---------------------------------------------------------------------------------------------------------------------


def test_data_of_another_kind_are_refused() -> None:
    data = Recorded()
    seen = look_of(data, views=["full"], vectors=["state"], action=True, instruction=True)
    check_look(seen, data)
    with pytest.raises(RewardModelError, match="pictures of view 'full' of 16 x 16, the dataset has 24 x 24"):
        check_look(seen, Recorded(size=24))
    with pytest.raises(RewardModelError, match="view 'wrist', which the dataset does not have \\(it has: full\\)"):
        check_look(Look({"wrist": (16, 16)}), data)
    with pytest.raises(RewardModelError, match="vectors 'state' of 3, the dataset has 2"):
        check_look(Look(vectors={"state": 3}), data)
    with pytest.raises(RewardModelError, match="knows the actions \\[left, right, forward\\], the dataset has \\[none with names\\]"):
        check_look(seen, Recorded(continuous=True))
    with pytest.raises(RewardModelError, match="actions of 4, the dataset has 2"):
        check_look(Look({"full": (16, 16)}, action_size=4), Recorded(continuous=True))
    with pytest.raises(RewardModelError, match="actions of 4, the dataset has no size"):
        check_look(Look({"full": (16, 16)}, action_size=4), data)


# --- several datasets ---------------------------------------------------------------------------------------------------------------


def of_episodes(episodes: Sequence[int], first: int = 0, *, pairs: bool = False) -> Any:
    """Judgements of `episodes` of a dataset of four, which a dataset that holds them alone counts from `first` on."""
    whole = Recorded((5, 7, 4, 6))
    part = Recorded([(5, 7, 4, 6)[episode] for episode in episodes])
    part.frames = lambda index, view, start, stop: whole.frames(index + first, view, start, stop)  # type: ignore[method-assign]
    part.vector = lambda index, name: whole.vector(index + first, name)  # type: ignore[method-assign]
    part.actions = lambda index: whole.actions(index + first)  # type: ignore[method-assign]
    part.episode = lambda index: replace(whole.episode(index + first), index=index)  # type: ignore[method-assign]
    labels = []
    for number in range(len(episodes)):
        words = INSTRUCTION if number + first == 0 else "go to the red ball"
        if pairs:
            labels.append(label("pair", number, 1, 1, 1.0, episode_b=number, start_b=3, stop_b=3, instruction=words))
        else:
            labels.append(label("segment", number, 0, 3, float(number % 3), instruction=words))
            labels.append(label("observation", number, 2, 2, 1.0, instruction=words))
    sees = look_of(whole, views=["full"], vectors=["state"], pictures=2, action=True, instruction=True)
    return judgements([label_set(labels, levels=0 if pairs else 3)], part, sees)


def same(one: Any, other: Any) -> None:
    """Equal field by field."""
    assert (one.kind, one.levels) == (other.kind, other.levels)
    for name in ("offsets", "members", "target", "group"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("picture", "vector", "action", "instruction"):
        np.testing.assert_array_equal(getattr(one.steps, name), getattr(other.steps, name), err_msg=name)
    assert (one.steps.instructions, one.steps.words) == (other.steps.instructions, other.steps.words)
    assert one.steps.frames.keys() == other.steps.frames.keys()
    for view in one.steps.frames:
        np.testing.assert_array_equal(one.steps.frames[view], other.steps.frames[view])


@pytest.mark.parametrize("pairs", [False, True])
def test_joined_judgements_are_those_of_one_dataset_that_holds_both(pairs: bool) -> None:
    first, second, whole = of_episodes([0, 1], pairs=pairs), of_episodes([2, 3], 2, pairs=pairs), of_episodes([0, 1, 2, 3], pairs=pairs)
    if not pairs:  # (the labels of the second part count its episodes from 0, too)
        whole = replace(whole, target=np.concatenate([first.target, second.target]))
    same(joined([first, second]), whole)
    assert len(joined([first, second]).steps.frames["full"]) == len(whole.steps.frames["full"])
    same(joined([first]), first)


def test_joining_one_by_one_is_joining_all_at_once() -> None:
    one, two, three = (of_episodes([k], k) for k in range(3))
    same(joined([joined([one, two]), three]), joined([one, two, three]))
    same(joined([one, joined([two, three])]), joined([one, two, three]))


def test_joined_by_hand() -> None:
    def small(texts: tuple[str, ...], target: Any, vector: Any) -> Any:
        count = len(vector)
        frames = {"full": np.full((count, 2, 2, 3), int(vector[0][0]), np.uint8)}
        steps = StepArrays(
            frames, np.arange(count)[::-1, None].copy(), np.array(vector, np.float32), np.zeros((count, 0), np.float32),
            np.arange(count) % len(texts), texts, ("go",),
        )  # fmt: skip
        return Judgements("rating", 3, steps, np.arange(count + 1), np.arange(count), np.array(target, np.float32), np.arange(count) * 2)

    first, second = small(("go", "stay"), [0, 2], [[1], [2]]), small(("stay", "sit"), [[0, 0.5, 0.5], [1, 0, 0]], [[3], [4]])
    both = joined([first, second])
    assert both.offsets.tolist() == [0, 1, 2, 3, 4]
    assert both.members.tolist() == [0, 1, 2, 3]
    assert both.group.tolist() == [0, 2, 3, 5], "episodes 0 and 2 of the second are not those of the first"
    assert joined([first, second], same_groups=True).group.tolist() == [0, 2, 0, 2]
    assert both.target.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0.5, 0.5], [1, 0, 0]], "classes become shares"
    assert both.steps.picture[:, 0].tolist() == [1, 0, 3, 2]
    assert both.steps.frames["full"][both.steps.picture[:, 0], 0, 0, 0].tolist() == [1, 1, 3, 3]
    assert both.steps.instructions == ("go", "stay", "sit")
    assert both.steps.instruction.tolist() == [0, 1, 1, 2]
    assert both.steps.vector[:, 0].tolist() == [1, 2, 3, 4]


def test_judgements_that_do_not_belong_together_are_not_joined() -> None:
    with pytest.raises(RewardError, match="no judgements"):
        joined([])
    one = of_episodes([0])
    others = {
        "kind": of_episodes([0], pairs=True),
        "number of classes": replace(one, levels=4),
        "sizes of vectors": replace(one, steps=replace(one.steps, vector=one.steps.vector[:, :2])),
        "sizes of pictures": replace(one, steps=replace(one.steps, frames={"full": one.steps.frames["full"][:, :8]})),
        "pictures of a transition": replace(one, steps=replace(one.steps, picture=one.steps.picture[:, :1])),
        "actions": replace(one, steps=replace(one.steps, action=np.zeros((len(one.steps), 2), np.float32))),
        "words that a model knows": replace(one, steps=replace(one.steps, words=("go",))),
    }
    for what, other in others.items():
        with pytest.raises(RewardError, match=f"judgements 1 and 2 differ in {what}"):
            joined([one, other])

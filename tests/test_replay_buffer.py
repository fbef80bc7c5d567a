"""The replay buffer against a list of everything that ever happened: nothing is mixed up, lost, invented or left behind."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.datasets import open_dataset
from guerdon.datasets.minari import RecordedEpisode, write_minari
from guerdon.errors import GuerdonError, RewardError, RunError, UsageError, WriteFailed
from guerdon.interfaces import Observation
from guerdon.pictures import is_mapped
from guerdon.replay_buffer import COLUMNS, MANIFEST, RING, Excerpt, ReplayBuffer, Stretch
from guerdon.seeding import generator

NAN = float("nan")
VIEWS = {"near": (3, 2), "far": (2, 2)}
VECTORS = {"arm": 2, "goal": 1}


def seen(number: int) -> Observation:
    """An observation unlike all others, by its number."""
    frames = {view: (np.arange(math.prod(size) * 3) + 7 * number).astype(np.uint8).reshape(*size, 3) for view, size in VIEWS.items()}
    return Observation(frames, {"arm": np.array([number, number + 0.5], np.float32), "goal": np.array([-number], np.float32)})


def state(number: int) -> list[float]:
    return [number, number + 0.5, -number]


@dataclass
class Made:
    """A transition of the model: what was done between two observations."""

    before: int
    action: float
    reward: float
    terminal: bool
    episode: int
    step: int
    instruction: str
    quality: float
    success: bool


@dataclass
class Model:
    """A replay buffer as lists that never forget."""

    capacity: int
    observations: int = 0
    made: list[Made] = field(default_factory=list)
    episodes: int = 0
    open: bool = False
    instruction: str = ""
    step: int = 0

    @property
    def valid(self) -> list[int]:
        """Numbers of the transitions both of whose observations are among the latest."""
        return [number for number, made in enumerate(self.made) if made.before >= self.observations - self.capacity]

    def segments(self, length: int) -> list[int]:
        """Numbers of valid transitions that with those after them make a segment of one episode."""
        valid = set(self.valid)
        return [
            first
            for first in sorted(valid)
            if all(n in valid and self.made[n].episode == self.made[first].episode for n in range(first, first + length))
        ]


class Pair:
    """A buffer and its model, driven together."""

    def __init__(self, folder: Path, capacity: int, margin: int, *, views: bool = True) -> None:
        self.folder, self.model, self.views, self.margin = folder, Model(capacity), views, margin
        self.buffer = ReplayBuffer(
            capacity,
            vectors=VECTORS,
            action_size=2,
            views=VIEWS if views else None,
            folder=folder / "pictures" if views else None,
            margin=margin,
        )

    def begin(self, instruction: str = "") -> None:
        model = self.model
        self.buffer.begin(seen(model.observations), instruction=instruction)
        model.observations += 1
        model.episodes, model.open, model.instruction, model.step = model.episodes + 1, True, instruction, 0

    def add(self, *, reward: float = 0.5, end: str = "") -> None:
        model = self.model
        number = len(model.made)
        made = Made(
            before=model.observations - 1,
            action=(number % 100) / 100,
            reward=reward,
            terminal=end in ("terminated", "both"),
            episode=model.episodes - 1,
            step=model.step,
            instruction=model.instruction,
            quality=(number % 7) / 8,
            success=number % 3 == 0,
        )
        self.buffer.add(
            np.array([made.action, -made.action], np.float32),
            seen(model.observations),
            reward=reward,
            terminated=made.terminal,
            truncated=end in ("truncated", "both"),
            true_reward=float(number),
            quality=made.quality,
            success=made.success,
        )
        model.made.append(made)
        model.observations, model.step, model.open = model.observations + 1, model.step + 1, not end

    def relabel(self, batch: int, *, only_unknown: bool = False, known: Callable[[int], bool] = lambda _: True) -> list[range]:
        shown: list[range] = []

        def score(stretch: Stretch) -> list[float]:
            shown.append(stretch.numbers)
            self.check_stretch(stretch)
            return [1000.0 + number if known(number) else NAN for number in stretch.numbers]

        wanted = [n for n in self.model.valid if not only_unknown or math.isnan(self.model.made[n].reward)]
        assert self.buffer.relabel(score, batch=batch, only_unknown=only_unknown) == len(wanted)
        assert [number for numbers in shown for number in numbers] == wanted  # each once, the oldest first
        assert all(1 <= len(numbers) <= batch for numbers in shown)
        for number in wanted:
            self.model.made[number].reward = 1000.0 + number if known(number) else NAN
        return shown

    def save_and_load(self) -> None:
        self.buffer.save(self.folder / "checkpoint")
        self.buffer = ReplayBuffer.load(self.folder / "checkpoint")

    # comparing

    def check(self) -> None:
        buffer, model, valid = self.buffer, self.model, self.model.valid
        assert list(buffer.held) == valid
        assert len(buffer) == len(valid)
        assert buffer.unknown == sum(math.isnan(model.made[n].reward) for n in valid)
        held = range(max(0, model.observations - model.capacity), model.observations)
        assert buffer.observations == len(held)
        assert buffer.states().tolist() == [state(n) for n in held]
        stretch = buffer.columns(buffer.held)
        self.check_stretch(stretch)
        for length in (1, 2, 5):
            assert buffer.starts(length).tolist() == model.segments(length)
        for first in model.segments(2):
            self.check_excerpt(buffer.recorded([range(first, first + 2)])[0], first, 2)
        known = [n for n in valid if not math.isnan(model.made[n].reward)]
        for wanted, expected in ((True, known), (False, valid)):
            if expected:
                self.check_sample(wanted, expected)
            else:
                with pytest.raises(UsageError, match="nothing can be drawn"):
                    buffer.sample(generator(0), 3, known=wanted)

    def check_sample(self, known: bool, expected: Sequence[int]) -> None:
        experience = self.buffer.sample(generator(0, "sample"), 40, known=known)
        assert len(experience) == 40
        for row in range(40):
            before = int(experience.state[row, 0])
            (number,) = [n for n in expected if self.model.made[n].before == before]
            made = self.model.made[number]
            assert experience.state[row].tolist() == state(before)
            assert experience.next_state[row].tolist() == state(before + 1)
            assert experience.action[row].tolist() == pytest.approx([made.action, -made.action])
            assert experience.reward[row].item() == pytest.approx(made.reward, nan_ok=not known)
            assert experience.terminal[row].item() is made.terminal

    def check_stretch(self, stretch: Stretch) -> None:
        for row, number in enumerate(stretch.numbers):
            made, at = self.model.made[number], int(stretch.before[row])
            for place, observed in ((at, made.before), (at + 1, made.before + 1)):
                expected = seen(observed)
                for name in VECTORS:
                    assert stretch.vectors[name][place].tolist() == expected.vectors[name].tolist()
                assert set(stretch.frames) == (set(VIEWS) if self.views else set())
                for view, frames in stretch.frames.items():
                    assert np.array_equal(frames[place], expected.frames[view])
            assert stretch.action[row].tolist() == pytest.approx([made.action, -made.action])
            assert stretch.reward[row] == pytest.approx(made.reward, nan_ok=True)
            assert stretch.true_reward[row] == number
            assert stretch.quality[row] == made.quality
            assert bool(stretch.success[row]) is made.success
            assert bool(stretch.terminal[row]) is made.terminal
            assert (int(stretch.episode[row]), int(stretch.step[row])) == (made.episode, made.step)
            assert stretch.instructions[stretch.instruction[row]] == made.instruction

    def check_excerpt(self, excerpt: Excerpt, first: int, length: int) -> None:
        made = self.model.made[first : first + length]
        begin = made[0].before
        for view in VIEWS if self.views else ():
            assert np.array_equal(excerpt.frames[view], [seen(begin + k).frames[view] for k in range(length + 1)])
        for name in VECTORS:
            assert np.array_equal(excerpt.vectors[name], [seen(begin + k).vectors[name] for k in range(length + 1)])
        assert excerpt.actions.tolist() == [pytest.approx([one.action, -one.action]) for one in made]
        assert excerpt.rewards.tolist() == list(range(first, first + length))
        assert (excerpt.terminated, excerpt.truncated) == (made[-1].terminal, not made[-1].terminal)
        assert excerpt.annotations[0].instruction == made[0].instruction
        assert excerpt.metadata == {"episode": made[0].episode, "step": made[0].step}
        led_here = self.model.made[first - 1] if made[0].step else replace(made[0], success=False)
        assert excerpt.privileged["quality"].tolist() == [led_here.quality, *(one.quality for one in made)]
        assert excerpt.privileged["success"].tolist() == [led_here.success, *(one.success for one in made)]


# anything that can happen

ENDS = ("", "", "", "terminated", "truncated", "both")
EVENTS = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from(("", "open the drawer", "öffne"))),
    st.tuples(st.just("add"), st.lists(st.tuples(st.sampled_from([0.25, NAN]), st.sampled_from(ENDS)), min_size=1, max_size=9)),
    st.tuples(st.just("relabel"), st.tuples(st.integers(1, 6), st.booleans(), st.integers(1, 3))),
    st.tuples(st.just("save and load"), st.none()),
    st.tuples(st.just("check"), st.none()),
)


def divides(share: int, number: int) -> bool:
    return number % share == 0


def always(rewards: Any, stretch: Stretch) -> Any:
    return rewards


@given(events=st.lists(EVENTS, max_size=14), capacity=st.integers(2, 9), margin=st.integers(0, 3), views=st.booleans())
@settings(max_examples=150)
def test_buffer_does_what_lists_would(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, Any]], capacity: int, margin: int, views: bool
) -> None:
    folder = tmp_path_factory.mktemp("replay")
    pair = Pair(folder, capacity, margin, views=views)
    for event, given_ in events:
        if event == "begin":
            pair.begin(given_)
        elif event == "add":
            for reward, end in given_:
                if not pair.model.open:
                    pair.begin("again")
                pair.add(reward=reward, end=end)
        elif event == "relabel":
            batch, only_unknown, share = given_
            pair.relabel(batch, only_unknown=only_unknown, known=partial(divides, share))
        elif event == "save and load":
            pair.save_and_load()
        else:
            pair.check()
    pair.check()
    del pair
    shutil.rmtree(folder)


def filled(
    folder: Path, lengths: Sequence[int], *, capacity: int = 100, margin: int = 0, views: bool = False, end: str = "truncated"
) -> Pair:
    pair = Pair(folder, capacity, margin, views=views)
    for length in lengths:
        pair.begin("do it")
        for step in range(length):
            pair.add(end=end if step == length - 1 else "")
    return pair


# sampling


def test_time_limit_is_no_end_and_the_last_transition_is_drawn(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 50, 0, views=False)
    for end in ("truncated", "terminated", "both", "truncated"):
        pair.begin()
        pair.add()
        pair.add(end=end)
    experience = pair.buffer.sample(generator(1), 400)
    terminal = dict(zip(experience.state[:, 0].int().tolist(), experience.terminal.tolist(), strict=True))
    # observations 0 1 2 | 3 4 5 | 6 7 8 | 9 10 11: transitions begin at the first two of each episode
    assert terminal == {0: False, 1: False, 3: False, 4: True, 6: False, 7: True, 9: False, 10: False}


def chi_square(counts: Counter[int], expected: Sequence[int], draws: int) -> float:
    assert set(counts) <= set(expected)
    return sum((counts[n] - draws / len(expected)) ** 2 / (draws / len(expected)) for n in expected)


@pytest.mark.parametrize("known", [True, False])
def test_each_transition_is_as_likely_as_any_other(tmp_path: Path, known: bool) -> None:
    pair = filled(tmp_path, [4, 1, 7, 3, 9, 2], capacity=21, margin=2)  # has gone around
    if known:
        pair.relabel(5, known=lambda number: number % 4 != 0)
    expected = [n for n in pair.model.valid if not known or n % 4 != 0]
    drawn = pair.buffer.sample(generator(2), 20_000, known=known).state[:, 0].int().tolist()
    counts = Counter(drawn)
    places = [pair.model.made[n].before for n in expected]
    # the mean is one less than the number of places, the standard deviation sqrt(2) times the root of that: 4 of these are never reached
    assert chi_square(counts, places, 20_000) < len(places) - 1 + 4 * math.sqrt(2 * (len(places) - 1))


def test_each_draw_is_independent_and_repeated_by_its_seed(tmp_path: Path) -> None:
    buffer = filled(tmp_path, [3]).buffer
    assert len(buffer.sample(generator(0), 50)) == 50  # more than there are
    first, again, other = (buffer.sample(generator(seed), 20).state for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_experience_is_made_of_tensors_of_its_own(tmp_path: Path) -> None:
    pair = filled(tmp_path, [3])
    experience = pair.buffer.sample(generator(0), 4)
    kinds = [getattr(experience, one.name).dtype for one in fields(experience)]
    assert kinds == [torch.float32, torch.float32, torch.float32, torch.float32, torch.bool]
    for one in fields(experience):
        getattr(experience, one.name).zero_()
    pair.check()
    assert experience.to(torch.device("cpu")).state.equal(experience.state)


def test_what_is_known_is_looked_up_again_whenever_it_changes(tmp_path: Path) -> None:
    """Where some rewards are unknown, the places of the others are remembered between draws."""
    pair = Pair(tmp_path, 4, 0, views=False)

    def drawn() -> set[int]:
        return set(pair.buffer.sample(generator(0), 200).state[:, 0].int().tolist())

    pair.begin()
    pair.add()
    pair.add(reward=NAN)
    assert drawn() == {0}
    pair.add()  # fills the ring: observations 0 1 2 3
    assert drawn() == {0, 2}
    pair.begin()  # overwrites the first observation and adds no transition
    assert drawn() == {2}
    pair.relabel(9, known=lambda number: number == 1)
    assert drawn() == {1}
    pair.relabel(9, only_unknown=True)
    assert drawn() == {1, 2}


def test_nothing_is_drawn_where_nothing_is_known(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 10, 0, views=False)
    with pytest.raises(UsageError, match="there is no transition yet"):
        pair.buffer.sample(generator(0), 1)
    pair.begin()
    pair.add(reward=NAN)
    with pytest.raises(UsageError, match="none of the 1 transitions has a known reward"):
        pair.buffer.sample(generator(0), 1)
    assert pair.buffer.sample(generator(0), 2, known=False).reward.isnan().all()


# segments


def test_each_segment_is_as_likely_as_any_other(tmp_path: Path) -> None:
    pair = filled(tmp_path, [4, 1, 7, 3, 9, 2], capacity=21, margin=2)
    expected = pair.model.segments(3)
    random = generator(3)
    counts = Counter(segment.start for _ in range(2_000) for segment in pair.buffer.segments(random, 2, 3))
    # two at a time are no more than independent draws apart
    assert chi_square(counts, expected, 4_000) < len(expected) - 1 + 4 * math.sqrt(2 * (len(expected) - 1))


def test_segments_reach_the_last_transition_and_never_cross(tmp_path: Path) -> None:
    pair = filled(tmp_path, [3, 2, 5])
    assert pair.buffer.starts(3).tolist() == [0, 5, 6, 7]  # 7, 8, 9 is the end of the last episode
    assert pair.buffer.starts(5).tolist() == [5]
    assert pair.buffer.starts(6).tolist() == []
    assert sorted(s.start for s in pair.buffer.segments(generator(0), 4, 3)) == [0, 5, 6, 7]


def test_segments_are_distinct_unless_allowed_otherwise(tmp_path: Path) -> None:
    buffer = filled(tmp_path, [3]).buffer
    with pytest.raises(UsageError, match="4 segments of 1 transitions were asked for, and the replay buffer holds 3"):
        buffer.segments(generator(0), 4, 1)
    assert len(buffer.segments(generator(0), 40, 1, distinct=False)) == 40
    with pytest.raises(UsageError, match="holds 0"):
        buffer.segments(generator(0), 1, 4, distinct=False)
    with pytest.raises(UsageError, match="at least one transition"):
        buffer.segments(generator(0), 1, 0)
    assert buffer.segments(generator(0), 0, 9) == []


def test_what_was_overwritten_is_refused(tmp_path: Path) -> None:
    pair = filled(tmp_path, [9], capacity=5, views=True)
    assert pair.buffer.held == range(5, 9)
    for numbers in (range(4, 6), range(7, 10), range(5, 9, 2)):
        with pytest.raises(UsageError):
            pair.buffer.recorded([numbers])
        with pytest.raises(UsageError):
            pair.buffer.columns(numbers)
    pair = filled(tmp_path, [2, 2])
    for numbers in (range(1, 3), range(1, 1)):
        with pytest.raises(UsageError, match="not a segment of one episode"):
            pair.buffer.recorded([numbers])
    assert len(pair.buffer.columns(range(1, 1))) == 0


def test_excerpts_are_recorded_episodes(tmp_path: Path) -> None:
    pair = filled(tmp_path, [4, 6], views=True, end="terminated")
    excerpts = pair.buffer.recorded([range(1, 3), range(8, 10)])
    assert {one.name for one in fields(Excerpt)} == {one.name for one in fields(RecordedEpisode)}
    episodes = [RecordedEpisode(**vars(excerpt)) for excerpt in excerpts]  # checks shapes, dtypes and numbers
    write_minari(tmp_path / "data", episodes, dataset_id="guerdon/segments-v0", action_names=(), environment={"name": "none"})
    dataset = open_dataset(tmp_path / "data")
    assert [dataset.episode(k).terminated for k in range(2)] == [False, True]
    assert np.array_equal(dataset.frames(1, "near", 0, 3), excerpts[1].frames["near"])
    assert dataset.privileged(0)["quality"].tolist() == [0, 1 / 8, 2 / 8]
    assert dataset.rewards(1).tolist() == [8, 9]
    assert dataset.episode(1).metadata == {"episode": 1, "step": 4}


def test_excerpts_are_copies(tmp_path: Path) -> None:
    pair = filled(tmp_path, [3], capacity=4, views=True)
    (excerpt,) = pair.buffer.recorded([range(3)])
    pair.begin()
    pair.add()
    pair.check_excerpt(excerpt, 0, 3)


# relabelling


def test_every_slot_is_relabelled_once_also_after_the_ring_has_gone_around(tmp_path: Path) -> None:
    pair = filled(tmp_path, [5, 3, 8], capacity=10)
    assert pair.buffer.held.stop == 16  # more than fit
    shown = pair.relabel(4)
    assert [len(numbers) for numbers in shown] == [4, 4]
    assert sorted(pair.buffer.columns(pair.buffer.held).reward.tolist()) == [1000.0 + n for n in pair.model.valid]


def test_only_what_is_unknown_is_scored(tmp_path: Path) -> None:
    pair = filled(tmp_path, [6])
    pair.relabel(9, known=lambda number: number not in (1, 2, 4))
    assert pair.relabel(9, only_unknown=True) == [range(1, 3), range(4, 5)]
    assert pair.relabel(9, only_unknown=True) == []
    pair.check()


def test_a_score_that_fails_changes_nothing(tmp_path: Path) -> None:
    pair = filled(tmp_path, [6])

    def fails_later(stretch: Stretch) -> list[float]:
        if 4 in stretch.numbers:
            raise ValueError("no")
        return [9.0] * len(stretch)

    with pytest.raises(ValueError, match="no"):
        pair.buffer.relabel(fails_later, batch=2)
    wrong: Any
    for wrong in ([1.0], [math.inf] * 6, [[0.0]] * 6):
        with pytest.raises(RewardError):
            pair.buffer.relabel(partial(always, wrong))
    with pytest.raises(UsageError):
        pair.buffer.relabel(lambda stretch: [0.0] * len(stretch), batch=0)
    pair.check()


def test_adding_while_relabelling_is_refused_where_it_would_mix_rewards_up(tmp_path: Path) -> None:
    pair = filled(tmp_path, [3], capacity=4, end="")

    def adds(stretch: Stretch) -> list[float]:
        pair.add()
        return [0.0] * len(stretch)

    with pytest.raises(UsageError):
        pair.buffer.relabel(adds)
    pair.check()


# what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capacity": 1}, "at least 2 observations"),
        ({"margin": -1}, "margin"),
        ({"vectors": {}}, "needs vectors"),
        ({"vectors": {"arm": 0}}, "needs vectors"),
        ({"action_size": 0}, "at least one component"),
        ({"views": {"near": (0, 3)}}, "at least one pixel"),
        ({"views": {"arm": (3, 3)}}, "cannot both be called"),
        ({"views": {"near": (3, 3)}, "folder": None}, "kept on the disk"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {"capacity": 5, "vectors": {"arm": 2}, "action_size": 2, "folder": tmp_path}
    with pytest.raises(UsageError, match=words):
        ReplayBuffer(**(good | change))


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path, 4, 0)
    good: dict[str, Any] = {"reward": 0.0, "terminated": False, "truncated": False, "true_reward": 0.0, "quality": 0.0, "success": False}
    action = np.zeros(2, np.float32)
    with pytest.raises(UsageError, match="no episode has been begun"):
        pair.buffer.add(action, seen(0), **good)
    pair.begin()
    for _ in range(5):  # the next one would overwrite something
        pair.add()
    next_one = seen(pair.model.observations)
    wrong_calls: list[tuple[Any, Observation, dict[str, Any]]] = [
        (np.zeros(3, np.float32), next_one, {}),
        (np.zeros(2, np.int64), next_one, {}),
        (np.array([0, 1.1]), next_one, {}),
        (np.array([0, NAN]), next_one, {}),
        (action, next_one, {"reward": math.inf}),
        (action, next_one, {"true_reward": NAN}),
        (action, next_one, {"quality": NAN}),
        (action, Observation(next_one.frames, {"arm": next_one.vectors["arm"]}), {}),
        (action, Observation(next_one.frames, {**next_one.vectors, "goal": np.zeros(2, np.float32)}), {}),
        (action, Observation(next_one.frames, {**next_one.vectors, "goal": np.array([NAN], np.float32)}), {}),
        (action, Observation({"near": next_one.frames["near"]}, next_one.vectors), {}),
        (action, Observation({**next_one.frames, "far": np.zeros((2, 3, 3), np.uint8)}, next_one.vectors), {}),
        (action, Observation({**next_one.frames, "far": np.zeros((2, 2, 3), np.float32)}, next_one.vectors), {}),
    ]
    for acted, observation, change in wrong_calls:
        with pytest.raises(UsageError):
            pair.buffer.add(acted, observation, **(good | change))
        pair.check()
    with pytest.raises(UsageError):
        pair.buffer.begin(Observation({}, {}))
    pair.check()
    pair.add(end="truncated")
    with pytest.raises(UsageError, match="no episode has been begun"):
        pair.buffer.add(action, next_one, **good)


# files


def space(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def test_pictures_lie_in_a_file_that_grows_as_it_is_written(tmp_path: Path) -> None:
    buffer = ReplayBuffer(1_000, vectors={"state": 1}, action_size=1, views={"a b": (64, 64)}, folder=tmp_path / "pictures", margin=24)
    (path,) = (tmp_path / "pictures").glob("*.npy")
    assert np.load(path, mmap_mode="r").shape == (1_024, 64, 64, 3)
    assert space(tmp_path / "pictures") < 1 << 20  # of 12 MiB
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer.begin(Observation({"a b": picture}, {"state": np.zeros(1, np.float32)}))
    for _ in range(2):
        buffer.add(
            np.zeros(1, np.float32), Observation({"a b": picture[::-1]}, {"state": np.ones(1, np.float32)}), reward=0.0, terminated=False,
            truncated=False, true_reward=0.0, quality=0.0, success=False,
        )  # fmt: skip
    frames = buffer.columns(buffer.held).frames["a b"]
    assert is_mapped(frames)
    assert not frames.flags.writeable
    assert np.array_equal(frames, [picture, picture[::-1], picture[::-1]])
    assert space(tmp_path / "pictures") < 1 << 20


@pytest.fixture
def small_files() -> Any:
    """Called, lets the kernel refuse to write to a file beyond so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_is_said_and_what_is_held_stays_right(tmp_path: Path, small_files: Callable[[int], None]) -> None:
    pair = Pair(tmp_path, 6, 0)
    pair.begin()
    for _ in range(9):
        pair.add()
    small_files(150)  # a little more than the header: the places at the end are beyond
    with pytest.raises(WriteFailed, match=r"Free some space|go on from the last checkpoint") as caught:
        for _ in range(6):
            pair.add()
    assert caught.value.cure
    small_files(resource.RLIM_INFINITY)
    # the observation that was to be overwritten is gone, the others are what they were
    held = pair.buffer.held
    pair.check_stretch(pair.buffer.columns(held))
    assert list(held) == pair.model.valid[1:]
    pair.add()
    pair.check()


def test_disk_that_is_too_small_is_said_before_anything_is_done(tmp_path: Path, small_files: Callable[[int], None]) -> None:
    with pytest.raises(WriteFailed, match=r"GiB left\. The pictures take up to .* hold fewer"):
        ReplayBuffer(2**40, vectors={"state": 1}, action_size=1, views={"near": (512, 512)}, folder=tmp_path)
    small_files(100)
    with pytest.raises(WriteFailed, match=r"The pictures take up to 0\.0 GiB"):
        Pair(tmp_path, 6, 0)


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("a file")
    with pytest.raises(WriteFailed, match="choose another folder"):
        Pair(tmp_path, 6, 0)


def test_checkpoint_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    pair = filled(tmp_path, [3])
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(WriteFailed):
        pair.buffer.save(tmp_path / "taken" / "checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_new_buffer_deletes_only_the_pictures_of_the_old_one(tmp_path: Path) -> None:
    filled(tmp_path, [3], views=True).buffer.save(tmp_path / "checkpoint")
    (tmp_path / "pictures" / "0-mine.npy").write_bytes(b"mine")
    pair = filled(tmp_path, [3], views=True)
    pair.check()
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0-mine.npy", "0-near.npy", "1-far.npy", RING]
    with pytest.raises(RunError, match="the pictures of this checkpoint are not in"):
        ReplayBuffer.load(tmp_path / "checkpoint")


# checkpoints


@pytest.mark.parametrize("margin", [0, 1, 4])
def test_checkpoint_is_good_for_as_long_as_its_margin(tmp_path: Path, margin: int) -> None:
    for more in range(margin + 2):
        pair = filled(tmp_path, [4, 4], capacity=6, margin=margin, views=True, end="")
        pair.buffer.save(tmp_path / "checkpoint")
        states = pair.buffer.states()
        for _ in range(more):
            pair.add()
        del pair
        if more <= margin:
            assert np.array_equal(ReplayBuffer.load(tmp_path / "checkpoint").states(), states)
        else:
            with pytest.raises(RunError, match=r"overwritten since this checkpoint.*with a larger margin"):
                ReplayBuffer.load(tmp_path / "checkpoint")


def test_killed_run_goes_on_with_equal_numbers(tmp_path: Path) -> None:
    def go_on(pair: Pair) -> None:
        pair.add(reward=NAN)
        pair.relabel(3)
        pair.add(end="terminated")
        pair.begin("next")
        pair.add()

    pairs = [filled(tmp_path / name, [4, 3], capacity=7, margin=3, views=True, end="") for name in ("killed", "whole")]
    pairs[0].buffer.save(tmp_path / "killed" / "checkpoint")
    lost = replace(pairs[0].model, made=[replace(made) for made in pairs[0].model.made])
    pairs[0].add(end="truncated")  # lost with the process
    pairs[0].begin("something else")
    pairs[0].model, pairs[0].buffer = lost, ReplayBuffer.load(tmp_path / "killed" / "checkpoint")
    drawn = []
    for pair in pairs:
        go_on(pair)
        pair.check()
        experience = pair.buffer.sample(generator(5), 30)
        drawn.append([getattr(experience, one.name).tolist() for one in fields(experience)])
        drawn[-1].append(pair.buffer.segments(generator(6), 3, 2))
    assert drawn[0] == drawn[1]


def test_checkpoint_and_pictures_may_be_moved_together_or_apart(tmp_path: Path) -> None:
    pair = filled(tmp_path / "run", [5], views=True)
    pair.buffer.save(tmp_path / "run" / "checkpoint")
    states = pair.buffer.states()
    del pair
    (tmp_path / "run").rename(tmp_path / "moved")
    assert np.array_equal(ReplayBuffer.load(tmp_path / "moved" / "checkpoint").states(), states)
    (tmp_path / "moved" / "checkpoint").rename(tmp_path / "alone")
    with pytest.raises(RunError, match="put them back"):
        ReplayBuffer.load(tmp_path / "alone")
    assert np.array_equal(ReplayBuffer.load(tmp_path / "alone", pictures=tmp_path / "moved" / "pictures").states(), states)


def test_checkpoint_replaces_the_one_before(tmp_path: Path) -> None:
    pair = filled(tmp_path, [3], end="")
    pair.save_and_load()
    pair.add()
    pair.save_and_load()
    pair.check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_pictures_that_were_taken_over_are_not_checkpointed(tmp_path: Path) -> None:
    first = filled(tmp_path, [3], views=True)
    filled(tmp_path, [3], views=True)
    with pytest.raises(RunError, match="taken over by another one"):
        first.buffer.save(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def edit(path: Path) -> None:
    record = json.loads(path.read_text())
    record["counts"]["first"] += 1
    path.write_text(json.dumps(record))


def age(path: Path) -> None:
    record = json.loads(path.read_text())
    record["guerdon replay buffer"] = 99
    path.write_text(json.dumps(record))


def foreign(path: Path) -> None:
    path.write_text("[1, 2]")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *((MANIFEST, damage) for damage in (cut, flip, edit, age, foreign, os.unlink)),
        *((COLUMNS, damage) for damage in (cut, flip, foreign, os.unlink)),
        *(("../pictures/1-far.npy", damage) for damage in (cut, foreign, os.unlink)),
        *((f"../pictures/{RING}", damage) for damage in (cut, foreign, os.unlink)),
    ],
)
def test_damaged_checkpoint_is_refused(tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    filled(tmp_path, [5], views=True).buffer.save(tmp_path / "checkpoint")
    damage(tmp_path / "checkpoint" / file)
    with pytest.raises(RunError) as caught:
        ReplayBuffer.load(tmp_path / "checkpoint")
    assert caught.value.where
    assert caught.value.cure or damage is os.unlink


def test_changed_picture_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [98], views=True).buffer.save(tmp_path / "checkpoint")
    flip(tmp_path / "pictures" / "1-far.npy")
    with pytest.raises(RunError, match="overwritten since this checkpoint, or changed"):
        ReplayBuffer.load(tmp_path / "checkpoint")


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(GuerdonError):
        ReplayBuffer.load(tmp_path / "nothing")

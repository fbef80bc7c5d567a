"""The data that the embedded rater is trained on: every label against the simulator itself, every picture against its drawing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from math import isinf
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("minigrid")

from guerdon.datasets.minari import MinariFormat
from guerdon.envs._babyai_distance import WALL, Action, WorldMap, contribution, distance_field
from guerdon.envs._babyai_words import WORDINGS, Clause, Thing, held_out_template
from guerdon.envs._babyai_world import ALL_COLOURS, LEVELS, World, _verifier
from guerdon.envs.babyai import BabyAI
from guerdon.envs.babyai import phrases as phrases_of
from guerdon.errors import UnknownName
from guerdon.evaluation.truth import qualities
from guerdon.providers._embedded_words import WORDS
from guerdon.recipes import _embedded_data as data
from guerdon.recipes._embedded_data import (
    AGENT_ON,
    ENTERABLE,
    LIBRARY,
    LONGEST_CLAUSE,
    PILOT_NOISE,
    UNKNOWN,
    Scenes,
    Variety,
    draw,
    holds,
    joined,
    judged_actions,
    layout_seeds,
    recording_seed,
    scenes,
    scenes_in_processes,
    stepped,
    tile_library,
    tiles_of,
    windows,
)
from guerdon.recipes.collect_babyai import Config, collect_babyai
from guerdon.recipes.collect_babyai import demonstrations as recorded
from guerdon.records import Task
from guerdon.samples import select

BALL, KEY, DOOR = Thing("red", "ball"), Thing("blue", "key"), Thing("green", "door")
FEW = Variety(steps=(10, 40))


# --- real worlds --------------------------------------------------------------------------------------------------------------------


class Play:
    """A real world that can be put back to any moment of its past by building it anew and repeating the actions."""

    def __init__(self, level: str, seed: int, length: int, clause: Clause | None = None) -> None:
        self._made_from = level, seed, length
        self._clause = clause
        self._start: int | None = None
        if clause is not None and clause.kind == "go to":  # begin where the thing is faced already
            world = World(level, seed, length)
            self._start = next((pose for pose in world.map.facing([world.map.places[clause.target]]) if pose // 4 in world.map.empty), None)
        self.actions: list[int] = []
        self.world = self.again()

    def again(self) -> World:
        """Another world in the same state."""
        world = World(*self._made_from)
        if self._clause is not None:  # another instruction in the same world
            verifier = _verifier(self._clause)
            verifier.reset_verifier(world._rooms)
            world._rooms.instrs, world.clauses = verifier, (self._clause,)
        if self._start is not None:
            put(world, self._start)
        for action in self.actions:
            world.step(action)
        return world

    def act(self, action: int) -> None:
        self.actions.append(action)
        self.world.step(action)


def real_label(world: World, action: int) -> tuple[int, bool]:
    """Class of an action, and whether it completes the clause that is due, by taking it."""
    before, due, clause = world.distance(), world.completed, world.clause
    world.step(action)
    done = world.completed > due
    value = contribution(before, 0.0 if done else world.field(clause)[world.pose])
    return (UNKNOWN if np.isnan(value) else int(value) + 1), done


def put(world: World, pose: int) -> None:
    """Moves the agent of a world that is under way."""
    cell, heading = divmod(pose, 4)
    world._rooms.agent_pos, world._rooms.agent_dir = (cell % world.map.width, cell // world.map.width), heading


def play(level: str, seed: int, *, steps: int, chain: int | None) -> Iterator[Play]:
    """The states of a demonstrator that strays: with a chain of its own, or with a clause of any kind in another's place."""
    random = np.random.default_rng(seed)
    clause = None
    if chain is None:
        things = sorted(World(level, seed, 1).map.places)
        objects = [thing for thing in things if thing.kind != "door"]
        kind = LEVELS[level].clause_kinds[seed % len(LEVELS[level].clause_kinds)]
        chosen = [objects[number] for number in random.permutation(len(objects))[:2]]
        if kind == "open":
            chosen = [thing for thing in things if thing.kind == "door"]
        clause = Clause(kind, chosen[0], chosen[1] if kind == "put next to" else None)
    playing = Play(level, seed, chain or 1, clause)
    for _ in range(steps):
        if playing.world.done:
            return
        yield playing
        good = playing.world.best_actions()
        handling = (Action.PICK_UP, Action.DROP, Action.TOGGLE)
        roll = random.random()
        options = good if good and roll < 0.6 else handling if roll < 0.85 else tuple(Action)
        playing.act(int(options[random.integers(len(options))]))


def scenes_of(level: str, states: Sequence[tuple[WorldMap, Clause, int]]) -> Scenes:
    """Scenes of given maps, with one pose each."""
    rows = []
    for world, clause, pose in states:
        grid, carried = data._tiled(world)
        distances = np.where(np.repeat(ENTERABLE[grid], 4), distance_field(world, clause), np.inf).astype(np.float16)
        classes, complete = judged_actions(world, clause, pose)
        rows.append(data._Row(grid, carried, (1,), distances, [pose], [classes], [complete], [holds(clause, world, pose)]))
    return data._gathered(level, rows)


def compare_labels(
    levels: Sequence[str], seeds: Sequence[int], steps: int
) -> tuple[int, list[object], Counter[tuple[str, str, int]], Counter[tuple[str, str]]]:
    """Takes all seven actions in every state: states, mismatches, (kind, action, class) compared, (kind, action) that completed."""
    compared: Counter[tuple[str, str, int]] = Counter()
    completed: Counter[tuple[str, str]] = Counter()
    mismatches: list[object] = []
    states = 0
    for level in levels:
        for seed in seeds:
            for playing in play(level, seed, steps=steps, chain=seed % 8 + 1 if seed % 8 < 4 else None):
                states += 1
                here = playing.world
                classes, complete = judged_actions(here.map, here.clause, here.pose)
                for action in Action:
                    there = playing.again()
                    what = real_label(there, action)
                    if (classes[action], complete[action]) != what or stepped(here.map, here.pose, action) != (there.map, there.pose):
                        mismatches.append((level, seed, here.clause, here.position, action.words, classes[action], complete[action], what))
                    compared[here.clause.kind, action.words, classes[action]] += 1
                    completed[here.clause.kind, action.words] += complete[action]
    return states, mismatches, compared, completed


def test_the_labels_of_all_actions_are_what_the_simulator_does() -> None:
    states, mismatches, compared, completed = compare_labels(("small", "one-room", "two-rooms"), range(8), 22)
    assert not mismatches
    assert states > 300
    # the comparison has met what matters
    for kind, finish in (
        ("pick up", "pick up"),
        ("open", "toggle"),
        ("put next to", "drop"),
        ("go to", "move forward"),
        ("go to", "turn left"),
    ):
        assert completed[kind, finish], kind
    assert compared["put next to", "pick up", 2]
    assert compared["put next to", "pick up", 0]


@pytest.mark.slow
def test_the_labels_of_many_actions_are_what_the_simulator_does() -> None:
    states, mismatches, compared, completed = compare_labels(tuple(LEVELS), range(8, 28), 50)
    assert not mismatches
    assert states > 1500
    assert all(completed["go to", action.words] for action in Action if action != Action.PICK_UP)
    assert all(compared[kind, "toggle", label] for kind in ("go to", "put next to") for label in (0, 1, 2))


def test_the_moves_of_every_pose_are_what_the_simulator_does() -> None:
    compared = Counter[int]()
    for level, seed, chain in (("small", 11, 3), ("one-room", 12, 3), ("two-rooms", 13, 3), ("four-rooms", 14, 2), ("two-rooms", 6, None)):
        seen: list[WorldMap] = []
        for playing in play(level, seed, steps=60, chain=chain):
            here = playing.world
            if here.map in seen or len(seen) == 3:
                continue
            seen.append(here.map)
            moves = scenes_of(level, [(here.map, here.clause, here.pose)]).moves()[0].reshape(-1, 3)
            there, due = playing.again(), here.completed
            for pose in range(len(moves)):
                if here.map.entry[pose // 4] != 1:
                    assert (moves[pose] == UNKNOWN).all()
                    continue
                for action in data.MOVES:
                    if there.completed > due:
                        there = playing.again()
                    put(there, pose)
                    assert real_label(there, action)[0] == moves[pose, action], (level, here.clause, pose, action.words)
                    compared[int(moves[pose, action])] += 1
    assert min(compared[label] for label in (0, 1, 2)) > 200


def test_pictures_are_drawn_byte_by_byte_as_the_world_draws_them() -> None:
    carrying = on_doors = 0
    for level, seed, chain in (("small", 21, 4), ("one-room", 22, 3), ("two-rooms", 25, 4), ("four-rooms", 24, 4)):
        states, pictures = [], []
        for playing in play(level, seed, steps=120, chain=chain):
            here = playing.world
            states.append((here.map, here.clause, here.pose))
            pictures.append(here.draw(("full",))["full"])
            carrying += here.map.carried is not None
            on_doors += here.map.cells[here.pose // 4] is not None
        made = scenes_of(level, states)
        drawn = made.pictures(np.arange(len(states)))
        np.testing.assert_array_equal(drawn, pictures)
        indices = tiles_of(np.array(pictures))
        np.testing.assert_array_equal(indices[:, -1, 0], made.carried)
        assert not indices[:, -1, 1:].any()
        cells = indices[:, :-1].reshape(len(states), -1)
        np.testing.assert_array_equal(cells[np.arange(len(states)), made.pose // 4], made.agent_tile)
        np.testing.assert_array_equal(draw(indices[0, :-1], int(made.carried[0])), pictures[0])
    assert carrying > 20
    assert on_doors > 3


# --- tiles --------------------------------------------------------------------------------------------------------------------------


def test_the_library_has_every_tile_once() -> None:
    library = tile_library()
    assert library.shape == (len(LIBRARY), 8, 8, 3)
    assert library.dtype == np.uint8
    assert not library[0].any()
    assert len({image.tobytes() for image in library}) == len(LIBRARY) == 1 + 2 + 3 * 6 + 2 * 6 + 4 * 7
    assert ENTERABLE.sum() == 1 + len(ALL_COLOURS)
    assert (AGENT_ON[~ENTERABLE] == 0).all()
    for index in np.flatnonzero(ENTERABLE):
        shown = [LIBRARY[agent] for agent in AGENT_ON[index]]
        tile = LIBRARY[index]
        assert tile is not None
        assert [(each.content, each.heading) for each in shown if each is not None] == [(tile.content, heading) for heading in range(4)]


def test_a_picture_with_another_tile_is_refused() -> None:
    picture = World("small", 0, 1).draw(("full",))["full"].copy()
    assert tiles_of(picture).shape == (picture.shape[0] // 8, picture.shape[1] // 8)
    picture[3, 3, 0] ^= 1
    with pytest.raises(ValueError, match="tile"):
        tiles_of(picture)
    with pytest.raises(ValueError, match="whole tiles"):
        tiles_of(picture[:-1])


# --- labels -------------------------------------------------------------------------------------------------------------------------


def sketch(*rows: str, carried: Thing | None = None) -> WorldMap:
    signs = {"#": WALL, "B": BALL, "K": KEY, "D": DOOR, "O": DOOR, ".": None}
    opened = frozenset({DOOR} if any("O" in row for row in rows) else ())
    return WorldMap(len(rows[0]), tuple(signs[sign] for sign in "".join(rows)), opened, carried)


@pytest.mark.parametrize(
    ("world", "clause", "pose", "classes", "completing"),
    [
        # facing the ball already: whatever leaves it faced completes, picking it up takes it out of sight
        (sketch("#####", "#..B#", "#####"), Clause("go to", BALL), (2, 1, 0), [0, 0, 2, 0, 2, 2, 2], [2, 4, 5, 6]),
        # with the hand full, picking up changes nothing, so the ball stays faced
        (sketch("#####", "#..B#", "#####", carried=KEY), Clause("go to", BALL), (2, 1, 0), [0, 0, 2, 2, 2, 2, 2], [2, 3, 4, 5, 6]),
        # the last turn completes "go to"; nothing is in the hand, nothing can be toggled
        (sketch("####", "#..#", "#B.#", "####"), Clause("go to", BALL), (1, 1, 0), [0, 2, 0, 1, 1, 1, 1], [1]),
        # opening completes; a door that stands open has to be closed first
        (sketch("#####", "#.D.#", "#####"), Clause("open", DOOR), (1, 1, 0), [0, 0, 1, 1, 1, 2, 1], [5]),
        (sketch("#####", "#.O.#", "#####"), Clause("open", DOOR), (1, 1, 0), [0, 0, 0, 1, 1, 2, 1], []),
        # the way is opened, then shut
        (sketch("######", "#.D.B#", "######"), Clause("go to", BALL), (1, 1, 0), [0, 0, 1, 1, 1, 2, 1], []),
        (sketch("######", "#.O.B#", "######"), Clause("go to", BALL), (1, 1, 0), [0, 0, 2, 1, 1, 0, 1], []),
        # put down beside the key here, or after a turn to the left below it
        (sketch("#####", "#K..#", "#...#", "#####", carried=BALL), Clause("put next to", BALL, KEY), (2, 2, 3), [1, 0, 0, 1, 2, 1, 1], [4]),
        # no way round the key, and none that could be cleared in the model: nothing is known
        (sketch("######", "#.K.B#", "######"), Clause("go to", BALL), (1, 1, 0), [UNKNOWN] * 7, []),
    ],
)
def test_labels_by_hand(world: WorldMap, clause: Clause, pose: tuple[int, int, int], classes: list[int], completing: list[int]) -> None:
    judged, complete = judged_actions(world, clause, world.pose(*pose))
    assert (judged, [action for action in Action if complete[action]]) == (classes, completing)


def test_the_search_from_one_pose_finds_what_the_whole_field_says() -> None:
    random = np.random.default_rng(0)
    compared = lower = 0
    for level, seed in (("small", 31), ("small", 32), ("one-room", 33), ("two-rooms", 34), ("two-rooms", 35), ("two-rooms", 36)):
        start = World(level, seed, 1).map
        objects = [thing for thing in sorted(start.places) if thing.kind != "door"]
        for target, carried, beside in (random.permutation(len(objects))[:3] for _ in range(3)):
            world = start.after_lifting(objects[carried])
            for clause in (
                Clause("pick up", objects[target]),
                Clause("put next to", objects[target], objects[beside]),
                Clause("put next to", objects[target], objects[carried]),
            ):
                exact = distance_field(world, clause)
                standing = [pose for pose, distance in enumerate(exact) if world.entry[pose // 4] == 1 and not isinf(distance)]
                for pose in random.choice(standing, 4).tolist():
                    for limit in (exact[pose] - 2, exact[pose] + 1, exact[pose] + 4):
                        assert data._laborious_distance(world, clause, pose, limit) == min(exact[pose], limit)
                        compared += 1
                        lower += limit > exact[pose]
    assert compared > 500
    assert lower > 300


# --- scenes -------------------------------------------------------------------------------------------------------------------------


def bytes_of(made: Scenes) -> list[tuple[str, bytes]]:
    return [(item.name, np.asarray(getattr(made, item.name)).tobytes()) for item in fields(Scenes)]


@pytest.fixture(scope="module")
def some() -> dict[str, Scenes]:
    return {level: scenes(level, layout_seeds("looks", 0, 25), variety=FEW) for level in LEVELS}


def test_equal_arguments_give_equal_bytes_however_they_are_divided() -> None:
    seeds = layout_seeds("looks", 1, 6)
    whole = scenes("two-rooms", seeds, variety=FEW)
    assert bytes_of(scenes("two-rooms", seeds, variety=FEW)) == bytes_of(whole)
    parts = [scenes("two-rooms", part, variety=FEW) for part in (seeds[:1], seeds[1:4], (), seeds[4:])]
    assert bytes_of(joined(parts)) == bytes_of(whole)
    assert bytes_of(scenes("two-rooms", layout_seeds("looks", 2, 6), variety=FEW)) != bytes_of(whole)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_SEEDS_PER_JOB", 2)
    seeds = layout_seeds("looks", 1, 5)
    told: list[tuple[int, int]] = []
    one = scenes_in_processes("small", seeds, variety=FEW, workers=1, progress=lambda done, total: told.append((done, total)))
    two = scenes_in_processes("small", seeds, variety=FEW, workers=2)
    assert bytes_of(one) == bytes_of(two) == bytes_of(scenes("small", seeds, variety=FEW))
    assert told[-1][0] == told[-1][1]


def test_no_seeds_give_no_scenes() -> None:
    none = scenes("small", ())
    assert len(none) == len(none.pose) == len(scenes_in_processes("small", ())) == 0
    assert none.grid.shape[1:] == (5, 9)
    with pytest.raises(ValueError, match="one level"):
        joined([none, scenes("one-room", ())])
    with pytest.raises(UnknownName):
        scenes("castle", [0])


def test_scenes_fit_together(some: dict[str, Scenes]) -> None:
    for made in some.values():
        rows, columns = made.grid.shape[1:]
        assert made.field.shape == (len(made), 4 * rows * columns)
        assert made.tokens.shape == (len(made), LONGEST_CLAUSE)
        assert (np.diff(made.scene) >= 0).all()
        assert set(made.scene.tolist()) == set(range(len(made)))
        assert len(set(zip(made.scene.tolist(), made.pose.tolist(), strict=True))) == len(made.pose)
        cells = made.grid.reshape(len(made), -1)
        assert ENTERABLE[cells[made.scene, made.pose // 4]].all()
        np.testing.assert_array_equal(made.distance, made.field[made.scene, made.pose])
        assert np.isfinite(made.distance).all()
        moves = made.moves()
        assert moves.shape == (len(made), rows, columns, 4, 3)
        np.testing.assert_array_equal(moves.reshape(len(made), -1, 3)[made.scene, made.pose], made.classes[:, :3])
        np.testing.assert_array_equal(made.moves(np.array([2, 0])), moves[[2, 0]])
        assert (made.classes[made.completes] == 2).all()
        assert np.isinf(made.field[~np.repeat(ENTERABLE[cells], 4, axis=1)]).all()


def test_scenes_are_varied(some: dict[str, Scenes]) -> None:
    for level, made in some.items():
        assert len({grid.tobytes() for grid in made.grid}) > 40
        assert 0.1 < np.mean(made.carried > 0) < 0.6
        assert 0.06 < made.done.mean() < 0.3
        assert np.mean(made.distance <= 3) > 0.25
        for action in Action:
            assert set(made.classes[:, action].tolist()) >= ({1, 2} if action in (Action.DONE, Action.TOGGLE) else {0, 1, 2})
        verbs = Counter(WORDS[token] for token in made.tokens[:, 0].tolist())
        spoken = {template.split()[0] for kind in LEVELS[level].clause_kinds for template in WORDINGS[kind][: held_out_template(kind)]}
        assert set(verbs) == spoken
        if "open" in LEVELS[level].clause_kinds:
            opened = [index for index, tile in enumerate(LIBRARY) if tile is not None and tile.is_open]
            assert np.isin(made.grid, opened).any(axis=(1, 2)).mean() > 0.2
            assert np.isin(made.agent_tile, AGENT_ON[opened]).any()


def test_words_held_out_of_recorded_data_do_not_occur(some: dict[str, Scenes]) -> None:
    def shape(words: Sequence[str]) -> str:
        return " ".join("_" if word in ALL_COLOURS or word in ("ball", "box", "key", "door") else word for word in words)

    def blank(template: str) -> str:
        return template.format(target="_ _", beside="_ _")

    held_out = {blank(WORDINGS[kind][held_out_template(kind)]) for kind in WORDINGS}
    spoken = Counter(shape([WORDS[token] for token in row if token]) for made in some.values() for row in made.tokens)
    assert not held_out & set(spoken)
    assert set(spoken) == {blank(template) for templates in WORDINGS.values() for template in templates} - held_out


def test_seeds_of_two_purposes_have_none_in_common() -> None:
    ranges = [layout_seeds(purpose, seed, 10**6) for purpose in ("looks", "windows", "calibration", "evaluation") for seed in (0, 1)]
    spans = sorted({(seeds.start >> 41, seeds[-1] >> 41) for seeds in ranges})
    assert spans == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert layout_seeds("looks", 0, 3) != layout_seeds("looks", 1, 3)
    assert len({recording_seed(purpose, seed) for purpose in ("looks", "windows", "calibration", "evaluation") for seed in (0, 1)}) == 8


# --- windows ------------------------------------------------------------------------------------------------------------------------


def test_windows_are_those_of_a_recorded_dataset(tmp_path: Path) -> None:
    config = Config(out=tmp_path / "d", level="small", tasks=4, demonstrations=2, seed=5)
    dataset = MinariFormat.open(collect_babyai(config), {})
    samples = list(select(dataset))
    made = windows("small", seed=5, tasks=4, demonstrations=2)
    assert len(made) == len(samples) > 30
    for window, sample in zip(made, samples, strict=True):
        segment = sample.segment
        here = slice(segment.start, segment.stop + 1)
        known = dataset.privileged(segment.episode)
        assert (window.episode, window.start, len(window.actions)) == (segment.episode, segment.start, segment.stop - segment.start)
        assert (window.instruction, window.level) == (sample.instruction, "small")
        np.testing.assert_array_equal(window.pictures, sample.frames()["full"])
        np.testing.assert_array_equal(window.actions, dataset.actions(segment.episode)[segment.start : segment.stop])
        np.testing.assert_array_equal(window.contribution, known["contribution"][segment.start : segment.stop])
        np.testing.assert_array_equal(window.subtask, known["subtask"][here])
        truth = qualities(dataset, segment.episode)
        assert truth is not None
        np.testing.assert_array_equal(window.quality, truth[here])
        info = dataset.episode(segment.episode)
        assert window.phrases == tuple(span.text for span in info.annotations[0].spans)
        assert window.task == info.metadata["task"]["id"]
    assert {len(window.phrases) for window in made} == {1, 2, 3}
    assert any(len(window.actions) < 8 for window in made)


def test_windows_in_words_held_out_show_the_same_behaviour() -> None:
    usual = windows("two-rooms", seed=3, tasks=2)
    other = windows("two-rooms", seed=3, tasks=2, held_out_wording=True)
    tasks = [
        BabyAI.hold_out_wording(Task.from_record(episode.metadata["task"]))
        for episode in recorded(Config(tasks=2, demonstrations=1, seed=3))
    ]
    for one, two in zip(usual, other, strict=True):
        np.testing.assert_array_equal(one.pictures, two.pictures)
        np.testing.assert_array_equal(one.contribution, two.contribution)
        assert one.instruction != two.instruction
        assert (two.instruction, two.phrases) == (tasks[two.episode].instruction, phrases_of(tasks[two.episode]))


def test_no_layout_of_the_scenes_can_be_one_of_a_recorded_dataset() -> None:
    recorded_seeds = [int(window.task.rpartition("/")[2]) for seed in range(5) for window in windows("small", seed=seed, tasks=2)]
    assert max(recorded_seeds) > 2**29  # they are drawn from all that there are
    assert max(recorded_seeds) < 2**31 <= data._FIRST_LAYOUT_SEED + min(layout_seeds("looks", 0, 5))


@pytest.mark.slow
def test_at_the_pilots_noise_as_many_actions_serve_as_in_the_pilot() -> None:
    shares = []
    for seed in (100, 101):
        made = recorded(Config(level="one-room", lengths=(1, 1), tasks=500, demonstrations=1, noise=PILOT_NOISE, seed=seed))
        values = np.concatenate([episode.privileged["contribution"] for episode in made])
        shares.append(np.mean(values[~np.isnan(values)] > 0))
    assert np.mean(shares) == pytest.approx(0.36, abs=0.01)

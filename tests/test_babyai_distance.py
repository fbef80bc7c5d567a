"""The distance-to-go: against numbers worked out by hand, and against a search through the simulator itself."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from math import inf, isnan

import numpy as np
import pytest

pytest.importorskip("minigrid")

from guerdon.envs._babyai_distance import WALL, Action, WorldMap, best_actions, contribution, distance_field
from guerdon.envs._babyai_words import CLAUSE_KINDS, Clause, Thing
from guerdon.envs._babyai_world import World, _map_of

RIGHT, DOWN, LEFT, UP = range(4)
BALL, KEY, DOOR = Thing("red", "ball"), Thing("blue", "key"), Thing("green", "door")
SIGNS = {"#": WALL, "B": BALL, "K": KEY, "D": DOOR, "O": DOOR}
"""How things are drawn in the sketches below; O is the door when open, # a wall, . an empty cell."""


def sketch(*rows: str, carried: Thing | None = None) -> WorldMap:
    cells = tuple(None if sign == "." else SIGNS[sign] for sign in "".join(rows))
    return WorldMap(len(rows[0]), cells, frozenset({DOOR} if any("O" in row for row in rows) else ()), carried)


CORRIDOR = ("#######", "#....B#", "#######")
TWO_ROOMS = ("#######", "#..D..#", "#..#.B#", "#######")


@pytest.mark.parametrize(
    ("world", "clause", "pose", "distance"),
    [
        # three steps forward, then the ball is faced
        (sketch(*CORRIDOR), Clause("go to", BALL), (1, 1, RIGHT), 3),
        # two turns more when looking away
        (sketch(*CORRIDOR), Clause("go to", BALL), (1, 1, LEFT), 5),
        (sketch(*CORRIDOR), Clause("go to", BALL), (4, 1, RIGHT), 0),
        (sketch(*CORRIDOR), Clause("pick up", BALL), (1, 1, RIGHT), 4),
        # a ball in the hand can be gone to, or picked up, after dropping it
        (sketch("####", "#..#", "####", carried=BALL), Clause("go to", BALL), (1, 1, RIGHT), 1),
        (sketch("####", "#..#", "####", carried=BALL), Clause("pick up", BALL), (1, 1, UP), 3),
        # toggle (1); forward, toggle (2); an open door is closed and opened (2)
        (sketch(*TWO_ROOMS), Clause("open", DOOR), (2, 1, RIGHT), 1),
        (sketch(*TWO_ROOMS), Clause("open", DOOR), (1, 1, RIGHT), 2),
        (sketch("#####", "#.O.#", "#####"), Clause("open", DOOR), (1, 1, RIGHT), 2),
        # standing in the open doorway: forward, turn, turn, close, open
        (sketch("#####", "#.O.#", "#####"), Clause("open", DOOR), (2, 1, RIGHT), 5),
        # toggle, forward, forward, forward, turn: then the ball below is faced
        (sketch(*TWO_ROOMS), Clause("go to", BALL), (2, 1, RIGHT), 5),
        # pick up, turn, turn, forward, forward, drop: the ball then lies beside the key
        (sketch("#######", "#K...B#", "#######"), Clause("put next to", BALL, KEY), (4, 1, RIGHT), 5),
        # ball in hand, the cell ahead is beside the key; one turn away from it; one turn away from the cell below the key
        (sketch("#####", "#K..#", "#...#", "#####", carried=BALL), Clause("put next to", BALL, KEY), (2, 2, UP), 1),
        (sketch("#####", "#K..#", "#...#", "#####", carried=BALL), Clause("put next to", BALL, KEY), (2, 2, RIGHT), 2),
        (sketch("#####", "#K..#", "#...#", "#####", carried=BALL), Clause("put next to", BALL, KEY), (2, 2, DOWN), 2),
        # the door is opened once (1), passed (2), ball lifted (1), turned (2), passed back (2), dropped beside the key (1)
        (sketch("########", "#K..D.B#", "########"), Clause("put next to", BALL, KEY), (3, 1, RIGHT), 9),
        # the key is dropped above (turn, drop), then turn back, forward, lift the ball
        (sketch("######", "#....#", "#..B.#", "######", carried=KEY), Clause("pick up", BALL), (1, 2, RIGHT), 5),
        # in a corridor the key can be put down behind: turn, turn, drop, turn, turn, lift
        (sketch("######", "#..B.#", "######", carried=KEY), Clause("pick up", BALL), (2, 1, RIGHT), 6),
        # no room to put the key down
        (sketch("####", "#.B#", "####", carried=KEY), Clause("pick up", BALL), (1, 1, RIGHT), inf),
        # no way round the ball
        (sketch("######", "#.B.K#", "######"), Clause("go to", KEY), (1, 1, RIGHT), inf),
    ],
)
def test_distance_by_hand(world: WorldMap, clause: Clause, pose: tuple[int, int, int], distance: float) -> None:
    assert distance_field(world, clause)[world.pose(*pose)] == distance


def fork(world: World) -> World:
    """An independent copy of a world, simulator and all; only what never changes is shared."""
    rooms = world._rooms
    shared = [cell for cell in rooms.grid.grid if cell is not None and cell.type == "wall"]
    shared += [rooms.observation_space, rooms.action_space, rooms.np_random, rooms.level, world.clauses, world._map, world._background]
    memo: dict[int, object] = {id(thing): thing for thing in shared}
    return copy.deepcopy(world, memo)


def state(world: World) -> tuple[object, ...]:
    """What tells two states of one world apart."""
    here = world.map
    return world.position, here.carried, here.open_doors, tuple(sorted(here.places.items()))


def allowed(world: World) -> Iterator[Action]:
    """The actions that leave other objects where they are."""
    for action in (Action.TURN_LEFT, Action.TURN_RIGHT, Action.MOVE_FORWARD, Action.PICK_UP, Action.DROP, Action.TOGGLE):
        if action != Action.PICK_UP or world.map.places.get(world.clause.target) == world.map.front(world.pose):
            yield action


def brute_force(world: World, limit: int) -> int | None:
    """Least number of actions of the real simulator that complete the present clause, leaving other objects where they are."""
    clause = world.completed
    frontier, seen = [world], {state(world)}
    for depth in range(1, limit + 1):
        reached = []
        for here in frontier:
            for action in allowed(here):
                there = fork(here)
                there.step(action)
                if there.completed > clause:
                    return depth
                if state(there) not in seen:
                    seen.add(state(there))
                    reached.append(there)
        frontier = reached
    return None


def wander(level: str, seed: int, length: int, limit: int) -> Iterator[World]:
    """The states of a walk, half of whose actions are random."""
    random = np.random.default_rng(seed)
    world = World(level, seed, length)
    for _ in range(limit):
        if world.done:
            return
        yield world
        good = world.best_actions()
        world.step(good[0] if good and random.random() < 0.5 else int(random.integers(len(Action))))


def agreement(*, levels: tuple[str, ...], furthest: int, wanted: int) -> tuple[Counter[tuple[str, bool]], list[str]]:
    """Compares states until there are enough of each kind of clause, with the hand free and full: (compared, mismatches)."""
    random = np.random.default_rng(0)
    compared: Counter[tuple[str, bool]] = Counter()
    mismatches = []
    for seed in range(10_000):
        for world in wander(levels[seed % len(levels)], seed, 4, 150):
            case = (world.clause.kind, world.map.carried is not None)
            distance = world.distance()
            if not 1 <= distance <= furthest or compared[case] >= wanted or random.random() < 0.7:
                continue
            compared[case] += 1
            if brute_force(fork(world), int(distance)) != distance:
                mismatches.append(f"seed {seed}, {world.clause}, {world.position}: {distance}")
        if len(compared) == 2 * len(CLAUSE_KINDS) and min(compared.values()) == wanted:
            break
    return compared, mismatches


def test_distance_equals_a_search_through_the_simulator() -> None:
    compared, mismatches = agreement(levels=("two-rooms",), furthest=6, wanted=6)
    assert not mismatches
    assert compared == {(kind, full): 6 for kind in CLAUSE_KINDS for full in (False, True)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_distance_equals_a_long_search_through_the_simulator() -> None:
    compared, mismatches = agreement(levels=("one-room", "two-rooms", "four-rooms"), furthest=9, wanted=25)
    assert not mismatches
    assert sum(compared.values()) == 200


@pytest.mark.parametrize("level", ["one-room", "two-rooms", "four-rooms"])
def test_kept_fields_equal_fresh_ones(level: str) -> None:
    checked = 0
    for seed in range(4):
        for world in wander(level, seed, 3, 100):
            fresh = distance_field(_map_of(world._rooms.grid, world._rooms.carrying), world.clause)
            assert world.distance() == fresh[world.pose]
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("level", ["one-room", "two-rooms", "four-rooms"])
def test_one_action_lowers_the_distance_by_one_at_most_and_the_best_do(level: str) -> None:
    """If this holds in every state, the distance is exact, however large."""
    checked = 0
    for seed in range(3):
        for world in wander(level, 100 + seed, 4, 60):
            clause, distance, best = world.completed, world.distance(), world.best_actions()
            assert best or distance == inf
            for action in allowed(world):
                there = fork(world)
                there.step(action)
                after = 0.0 if there.completed > clause else there.distance()
                assert after == distance - 1 if action in best else after >= distance - 1
                checked += 1
    assert checked > 400


def test_best_actions_where_nothing_can_be_done() -> None:
    world = sketch("######", "#.B.K#", "######")
    pose = world.pose(1, 1, RIGHT)
    assert best_actions(world, distance_field(world, Clause("go to", KEY)), pose) == ()
    assert best_actions(world, distance_field(world, Clause("go to", BALL)), pose) == (Action.DONE,)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(3, 2, 1.0), (3, 3, 0.0), (3, 4, -1.0), (1, 0, 1.0), (3, 1, 1.0), (inf, 0, 1.0)],
)
def test_contribution(before: float, after: float, expected: float) -> None:
    assert contribution(before, after) == expected


@pytest.mark.parametrize(("before", "after"), [(inf, 3), (3, inf), (inf, inf)])
def test_contribution_is_unknown_where_a_distance_is(before: float, after: float) -> None:
    assert isnan(contribution(before, after))

"""The BabyAI world: words, layouts, pictures, starts, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("minigrid")

from guerdon.envs._babyai_distance import Action, best_actions, distance_field
from guerdon.envs._babyai_words import CLAUSE_KINDS, WORDINGS, Clause, Thing, Wording, held_out_template
from guerdon.envs._babyai_world import LEVELS, TILE, World
from guerdon.envs.babyai import ACTION_NAMES, BabyAI, build_world, new_task, phrases, plan_length, reword
from guerdon.errors import EnvironmentFailed, UnknownName
from guerdon.records import Task

RED = (255, 0, 0)
LEVEL_NAMES = sorted(LEVELS)


def task_of(level: str, length: int, first_seed: int = 0) -> Task:
    for seed in range(first_seed, first_seed + 100):
        task = new_task(level, seed, length, np.random.default_rng(seed), step_limit=200)
        if task is not None:
            return task
    raise AssertionError("no task found")


def world_with(clause_kind: str, level: str = "two-rooms") -> World:
    """The first world whose first clause is of a kind."""
    return next(world for world in (World(level, seed, 1) for seed in range(100)) if world.clause.kind == clause_kind)


def bring_nearer(world: World, clause: Clause) -> None:
    """Acts until the agent faces the thing, has it in the hand, and so on."""
    while world.field(clause)[world.pose] > 0:
        world.step(world.best_actions(clause)[0])
        if clause.kind == "pick up" and world.map.carried == clause.target:
            return


# --- words --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLAUSE_KINDS)
def test_held_out_words_are_new_combinations_of_old_ones(kind: Any) -> None:
    *seen, held_out = WORDINGS[kind]
    assert len(seen) >= 4
    assert held_out not in seen
    known = {word for templates in WORDINGS.values() for template in templates[:-1] for word in template.split()}
    assert set(held_out.split()) <= known


def test_no_two_meanings_share_their_words() -> None:
    ball, key = Thing("red", "ball"), Thing("blue", "key")
    clauses = [Clause("go to", ball), Clause("pick up", ball), Clause("open", ball), Clause("put next to", ball, key)]
    said = [template.format(target=c.target, beside=c.beside) for c in clauses for template in WORDINGS[c.kind]]
    assert len(set(said)) == len(said)


def test_sentence() -> None:
    clauses = (Clause("go to", Thing("red", "ball")), Clause("put next to", Thing("blue", "key"), Thing("green", "ball")))
    assert Wording((0, 2), (1,)).sentence(clauses) == "go to the red ball, then put the blue key beside the green ball"
    assert Wording((4, 4), (3,)).phrases(clauses) == ("walk over to the red ball", "place the blue key beside the green ball")
    with pytest.raises(ValueError, match="argument"):
        Wording((0,), ()).sentence(clauses)


def test_drawn_wordings_never_use_held_out_words() -> None:
    clauses = [Clause("go to", Thing("red", "ball")), Clause("open", Thing("red", "door"))] * 3
    random = np.random.default_rng(0)
    drawn = [Wording.draw(clauses, random) for _ in range(100)]
    assert {template for wording in drawn for template in wording.templates} == {0, 1, 2, 3}
    assert len(set(drawn)) > 90


def test_clause_refuses_what_does_not_fit_its_kind() -> None:
    ball = Thing("red", "ball")
    with pytest.raises(ValueError, match="needs a second thing"):
        Clause("put next to", ball)
    with pytest.raises(ValueError, match="has no second thing"):
        Clause("go to", ball, ball)
    with pytest.raises(ValueError, match="no clause is of kind"):
        Clause("eat", ball)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CLAUSE_KINDS)
def test_clause_survives_json(kind: Any) -> None:
    clause = Clause(kind, Thing("red", "ball"), Thing("blue", "key") if kind == "put next to" else None)
    assert Clause.from_record(json.loads(json.dumps(clause.to_record()))) == clause


# --- layouts ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "shape"), [("one-room", (8, 8)), ("two-rooms", (6, 11)), ("four-rooms", (11, 11))])
@pytest.mark.parametrize("length", [1, 4, 6])
def test_levels(level: str, shape: tuple[int, int], length: int) -> None:
    for seed in range(8):
        world = World(level, seed, length)
        frame = world.draw(["full"])["full"]
        assert frame.shape == ((shape[0] + 1) * TILE, shape[1] * TILE, 3)
        objects = [thing for thing in world.map.places if thing.kind != "door"]
        assert len(objects) == LEVELS[level].objects
        assert len(set(world.clauses)) == length
        assert {clause.kind for clause in world.clauses} <= set(LEVELS[level].clause_kinds)
        for clause in world.clauses:
            assert clause.target in world.map.places
            assert clause.beside is None or clause.beside in objects


def test_the_simulator_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(20):
        World("four-rooms", seed, 4)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_the_same_seed_gives_the_same_world(level: str) -> None:
    for seed in range(10):
        one, other = World(level, seed, 3), World(level, seed, 3)
        assert one.layout == other.layout
        assert one.clauses == other.clauses
        np.testing.assert_array_equal(one.draw(["full"])["full"], other.draw(["full"])["full"])
    assert len({World(level, seed, 3).layout for seed in range(10)}) == 10


def test_every_kind_of_clause_occurs_in_the_small_level() -> None:
    kinds = {clause.kind for seed in range(40) for clause in World("two-rooms", seed, 2).clauses}
    assert kinds == set(CLAUSE_KINDS)


def test_a_box_stays_when_toggled() -> None:
    world = next(w for w in (World("one-room", seed, 1) for seed in range(50)) if any(t.kind == "box" for t in w.map.places))
    box = next(thing for thing in world.map.places if thing.kind == "box")
    bring_nearer(world, Clause("go to", box))
    before = world.map
    world.step(Action.TOGGLE)
    assert world.map == before


# --- pictures -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heading", "base"), [(0, "left"), (1, "top"), (2, "right"), (3, "bottom")])
def test_full_view_is_upright(heading: int, base: str) -> None:
    """Column 1 is left, row 1 is up; the base of the agent's triangle, where most of its red is, lies opposite to where it looks."""
    world = World("one-room", 3, 1)
    y, x = divmod(min(world.map.empty), 8)
    world.move_agent(x, y, heading)
    tile = world.draw(["full"])["full"][y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE]
    halves = {"left": tile[:, :4], "right": tile[:, 4:], "top": tile[:4], "bottom": tile[4:]}
    assert max(halves, key=lambda half: (halves[half] == RED).all(axis=2).sum()) == base


def test_agent_view_turns_with_the_agent() -> None:
    """Facing a thing, it is in the tile above the agent's, whatever the heading."""
    world = world_with("go to")
    tiles = []
    for thing in [t for t in world.map.places if t.kind == "ball"]:
        bring_nearer(world, Clause("go to", thing))
        picture = world.draw(["agent"])["agent"]
        tile = picture[5 * TILE : 6 * TILE, 3 * TILE : 4 * TILE]
        rgb = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}[thing.colour]
        assert (tile == rgb).all(axis=2).sum() >= 9
        tiles.append(tile)
        if world.done:
            break
    assert tiles


def test_what_is_carried_is_visible_in_both_views() -> None:
    world = world_with("pick up")
    target = world.clause.target
    empty_handed = world.draw(["full", "agent"])
    for picture in empty_handed.values():
        assert not picture[-TILE:].any()
    bring_nearer(world, Clause("pick up", target))
    assert world.map.carried == target
    shown = world.draw(["full", "agent"])
    tiles = [picture[-TILE:, :TILE] for picture in shown.values()]
    np.testing.assert_array_equal(*tiles)
    assert tiles[0].any()
    assert not shown["full"][-TILE:, TILE:].any()


def test_what_walls_hide_is_black() -> None:
    world = next(w for w in (World("two-rooms", seed, 1) for seed in range(50)) if w.position[0] <= 2)
    x, y, _ = world.position
    world.move_agent(x, y, 2)  # looks at the outer wall at its left: beyond it lies nothing
    picture = world.draw(["agent"])["agent"]
    assert not picture[: TILE * 3].any()


def test_unknown_views_and_levels_are_refused() -> None:
    with pytest.raises(UnknownName, match="agent, full"):
        BabyAI(views=("top",))
    with pytest.raises(UnknownName, match="four-rooms, one-room, small, two-rooms"):
        World("castle", 0, 1)
    with pytest.raises(EnvironmentFailed, match="at least one sub-task"):
        World("one-room", 0, 0)


def test_a_setting_that_changes_the_verifiers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigrid.envs.babyai.core.verifier.use_done_actions", "1")
    with pytest.raises(EnvironmentFailed, match="BABYAI_DONE_ACTIONS"):
        World("one-room", 0, 1)


def test_only_the_wanted_views_are_drawn() -> None:
    assert list(BabyAI(views=("agent",)).reset(task_of("two-rooms", 1)).frames) == ["agent"]


# --- carrying out tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVEL_NAMES)
@pytest.mark.parametrize("length", [1, 3, 6])
def test_the_plan_completes_every_task_clause_by_clause(level: str, length: int) -> None:
    task = task_of(level, length)
    environment, shadow = BabyAI(views=("full",)), build_world(task)
    environment.reset(task)
    seen = [0.0]
    while not shadow.done:
        action = shadow.best_actions()[0]
        shadow.step(action)
        step = environment.step(action)
        seen.append(step.progress)
        assert step.terminated == shadow.done
    assert sorted(seen) == seen
    assert sorted(set(seen)) == [done / length for done in range(length + 1)]


def test_going_to_a_carried_thing_means_dropping_it() -> None:
    """Facing the cell that it was taken from is not enough."""
    world = next(w for w in (World("two-rooms", seed, 2) for seed in range(300)) if opens_then_goes_to_an_object_at_hand(w))
    thing = world.clauses[1]
    bring_nearer(world, Clause("pick up", thing.target))
    as_it_was = world.map.after_dropping(world.map.front(world.pose))
    while world.completed == 0:
        world.step(world.best_actions()[0])
    while (field := distance_field(as_it_was.after_opening(world.clauses[0].target), thing))[world.pose] > 0:
        world.step(best_actions(as_it_was, field, world.pose)[0])
    assert world.map.front(world.pose) == as_it_was.places[thing.target]
    assert (world.completed, world.distance()) == (1, 1)
    world.step(Action.DROP)
    assert world.done


def opens_then_goes_to_an_object_at_hand(world: World) -> bool:
    first, second = world.clauses
    if first.kind != "open" or second.kind != "go to" or second.target.kind == "door":
        return False
    return world.map.places[second.target] % 11 // 6 == world.position[0] // 6  # in the agent's room: the door stays closed


def test_the_environment_refuses_steps_out_of_turn() -> None:
    environment = BabyAI()
    with pytest.raises(EnvironmentFailed, match="no task has begun"):
        environment.step(0)
    task = task_of("two-rooms", 1)
    environment.reset(task)
    for action in (-1, 7):
        with pytest.raises(EnvironmentFailed, match=f"no action {action}"):
            environment.step(action)
    world = build_world(task)
    while not world.done:
        action = world.best_actions()[0]
        world.step(action)
        environment.step(action)
    with pytest.raises(EnvironmentFailed, match="completed"):
        environment.step(0)


def test_action_names_are_words() -> None:
    assert ACTION_NAMES == ("turn left", "turn right", "move forward", "pick up", "drop", "toggle", "done")


# --- variations ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_randomised_starts_change_the_start_only(level: str) -> None:
    for seed in range(0, 500, 100):
        task = task_of(level, 2, seed)
        moved = BabyAI.randomise_start(task, np.random.default_rng(seed))
        assert moved == BabyAI.randomise_start(task, np.random.default_rng(seed))
        fixed, other = build_world(task), build_world(moved)
        assert other.map == fixed.map
        assert other.position[:2] != fixed.position[:2]
        assert list(other.position) == moved.spec["start"]
        assert 0 < other.distance() < np.inf
        assert other.completed == 0
        assert (moved.instruction, moved.length, moved.start) == (task.instruction, task.length, "randomised")
        lengths = [plan_length(build_world(each)) for each in (task, moved)]
        assert None not in lengths
        assert moved.step_limit - task.step_limit == lengths[1] - lengths[0]  # type: ignore[operator]


def test_a_start_is_randomised_once() -> None:
    moved = BabyAI.randomise_start(task_of("two-rooms", 1), np.random.default_rng(0))
    with pytest.raises(EnvironmentFailed, match="already"):
        BabyAI.randomise_start(moved, np.random.default_rng(0))


def test_held_out_words_change_the_words_only() -> None:
    task = task_of("two-rooms", 3)
    other = BabyAI.hold_out_wording(task)
    assert other.wording == "held-out"
    assert other.instruction != task.instruction
    assert all(index == held_out_template(c.kind) for index, c in zip(other.spec["wordings"], build_world(other).clauses, strict=True))
    assert build_world(other).layout == build_world(task).layout
    assert (other.spec["start"], other.step_limit, other.id) == (None, task.step_limit, task.id + "/held-out")


def test_reworded_tasks_mean_the_same() -> None:
    task = task_of("two-rooms", 3)
    worded = [reword(task, np.random.default_rng(seed)) for seed in range(10)]
    assert len({each.instruction for each in worded}) > 5
    assert all(build_world(each).clauses == build_world(task).clauses for each in worded)
    assert all(phrase in each.instruction for each in worded for phrase in phrases(each))


# --- damaged and foreign tasks ------------------------------------------------------------------------------------------------------


def test_a_drifted_simulator_is_noticed() -> None:
    task = task_of("two-rooms", 2)
    for change in ({"layout": "s256:0"}, {"seed": task.spec["seed"] + 1}):
        with pytest.raises(EnvironmentFailed, match="another world"):
            build_world(replace(task, spec={**task.spec, **change}))


def test_foreign_tasks_are_refused() -> None:
    with pytest.raises(EnvironmentFailed, match="metaworld"):
        build_world(replace(task_of("two-rooms", 1), environment="metaworld"))


def test_an_instruction_that_says_something_else_is_refused() -> None:
    task = task_of("two-rooms", 1)
    for damaged in (replace(task, instruction="dance"), replace(task, length=2)):
        with pytest.raises(EnvironmentFailed, match="says"):
            build_world(damaged)


@pytest.mark.parametrize("start", [[0, 0, 0], [99, 1, 0], [1, -1, 0], [1, 1, 4], [1, 1]])
def test_impossible_starts_are_refused(start: list[int]) -> None:
    task = task_of("two-rooms", 1)
    with pytest.raises(EnvironmentFailed):
        build_world(replace(task, spec={**task.spec, "start": start}))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "target", "beside", "x"]), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(["level", "clauses", "wordings", "joiners", "start", "layout"]), junk=JUNK)
def test_junk_in_a_spec_is_an_error_with_a_name(key: str, junk: Any) -> None:
    task = task_of("two-rooms", 2)
    if junk == task.spec[key]:
        return
    with pytest.raises(EnvironmentFailed):
        build_world(replace(task, spec={**task.spec, key: junk}))


@pytest.mark.parametrize("key", ["level", "seed", "clauses", "wordings", "joiners", "start", "layout"])
def test_missing_parts_of_a_spec_are_an_error_with_a_name(key: str) -> None:
    task = task_of("two-rooms", 2)
    with pytest.raises(EnvironmentFailed, match=f"damaged.*{key}"):
        build_world(replace(task, spec={name: value for name, value in task.spec.items() if name != key}))

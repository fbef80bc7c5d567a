"""How far a sub-task is from done: the exact ground truth against which raters are judged.

The distance-to-go D of a clause is the smallest number of primitive actions that complete it while every object that the clause does not
name stays where it is (an object in the hand that is in the way of the clause is put down, and stands in the way from then on). D is
computed for all poses of a world at once, by a Dijkstra search backwards from the poses in which the clause is completed:

- turning and stepping forward cost 1; stepping through a closed door costs 2 (toggle, forward);
- "go to" is completed by facing the thing, "pick up" and "open" cost one action more there (two for a door that is open already: it has to
  be closed first), "put next to" is two searches joined at the poses from which the thing can be picked up.

An action contributes to a clause if it lowers D. Imports no simulator: a world is a `WorldMap`. Distances are counts of actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from heapq import heapify, heappop, heappush
from math import inf, isinf, nan

from guerdon.envs._babyai_words import Clause, Thing

Field = list[float]
"""A number of actions for each pose; infinite where there is no way."""


class Action(IntEnum):
    """The primitive actions, numbered as in MiniGrid."""

    TURN_LEFT = 0
    TURN_RIGHT = 1
    MOVE_FORWARD = 2
    PICK_UP = 3
    DROP = 4
    TOGGLE = 5
    DONE = 6

    @property
    def words(self) -> str:
        """The action as a person would say it."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class WorldMap:
    """Everything but the agent's pose. Cells are numbered `y * width + x`; poses `4 * cell + heading` (0 right, 1 down, 2 left, 3 up).

    The outermost cells are walls.
    """

    width: int
    height: int
    entry: tuple[float, ...]
    """Actions needed to step forward into each cell: 1, 2 for a closed door, infinite for a wall or an object."""
    empty: frozenset[int]
    """Cells with nothing in them, where an object can be put down."""
    places: Mapping[Thing, int]
    """Cell of every door and of every object that is not carried."""
    open_doors: frozenset[Thing]
    carried: Thing | None

    def pose(self, x: int, y: int, heading: int) -> int:
        """Number of a pose."""
        return 4 * (y * self.width + x) + heading

    def front(self, pose: int) -> int:
        """The cell that is faced in a pose."""
        return pose // 4 + _strides(self.width)[pose % 4]

    def facing(self, cell: int) -> list[int]:
        """The poses, on cells that can be entered, that face `cell`."""
        strides = _strides(self.width)
        return [4 * (cell - strides[heading]) + heading for heading in range(4) if not isinf(self.entry[cell - strides[heading]])]

    def with_cell(self, cell: int, *, vacant: bool) -> WorldMap:
        """The map after `cell` was emptied or filled with an object."""
        entry = (*self.entry[:cell], 1 if vacant else inf, *self.entry[cell + 1 :])
        return replace(self, entry=entry, empty=self.empty | {cell} if vacant else self.empty - {cell})

    def after_lifting(self, thing: Thing) -> WorldMap:
        """The map with `thing` in the hand."""
        others = {other: cell for other, cell in self.places.items() if other != thing}
        return replace(self.with_cell(self.places[thing], vacant=True), places=others, carried=thing)

    def after_dropping(self, cell: int) -> WorldMap:
        """The map with the carried thing put down in `cell`, which is empty."""
        if self.carried is None:
            raise ValueError("nothing is carried")
        return replace(self.with_cell(cell, vacant=False), places={**self.places, self.carried: cell}, carried=None)


@cache
def _strides(width: int) -> tuple[int, int, int, int]:
    return 1, width, -1, -width


def distance_field(world: WorldMap, clause: Clause) -> Field:
    """Distance-to-go of `clause` for every pose in `world`."""
    target, carried = clause.target, world.carried
    if clause.kind == "open":
        return _search(world, dict.fromkeys(world.facing(world.places[target]), 2.0 if target in world.open_doors else 1.0))
    if clause.kind == "put next to":
        return _put_next_field(world, clause)
    after_facing = 0.0 if clause.kind == "go to" else 1.0
    if carried == target:
        return _search(world, {pose: 1 + after_facing for cell in world.empty for pose in world.facing(cell)})
    if clause.kind == "go to" or carried is None:
        return _search(world, dict.fromkeys(world.facing(world.places[target]), after_facing))
    return _field_with_hand_full(world, clause)


def _put_next_field(world: WorldMap, clause: Clause) -> Field:
    target, beside = clause.target, clause.beside
    if beside is None:
        raise ValueError("a clause 'put next to' names two things")
    if world.carried is None:
        onward = distance_field(world.after_lifting(target), clause)
        return _search(world, {pose: 1 + onward[pose] for pose in world.facing(world.places[target])})
    if world.carried != target:
        return _field_with_hand_full(world, clause)
    around = {world.places[beside] + stride for stride in _strides(world.width)}
    return _search(world, {pose: 1.0 for cell in around & world.empty for pose in world.facing(cell)})


def _field_with_hand_full(world: WorldMap, clause: Clause) -> Field:
    """The distance if another thing has to be put down first, wherever that costs least.

    What is put down becomes an obstacle, so each place to put it has a field of its own. Few of them are needed: as if the thing vanished
    when put down, the distance is a lower bound, and a pose whose bound is beaten by a neighbour is never looked at closely.
    """
    vanished = replace(world, carried=None)
    if world.carried == clause.beside:
        bound = [distance + 1 for distance in distance_field(vanished, Clause("pick up", clause.target))]
    else:
        bound = distance_field(vanished, clause)
    field_after_dropping = cache(lambda cell: distance_field(world.after_dropping(cell), clause))
    return _search(
        world,
        {pose: 1 + bound[pose] for cell in world.empty for pose in world.facing(cell)},
        exact=lambda pose: 1 + field_after_dropping(world.front(pose))[pose],
    )


def _search(world: WorldMap, sources: Mapping[int, float], *, exact: Callable[[int], float] | None = None) -> Field:
    """Dijkstra backwards from `sources` (pose -> cost of completing the clause from there).

    With `exact`, the costs of the sources are lower bounds, replaced by `exact(pose)` once they are the least that is left.
    """
    entry, strides = world.entry, _strides(world.width)
    field = [inf] * (4 * len(entry))
    queue = [(cost, exact is not None, pose) for pose, cost in sources.items() if not isinf(cost)]
    heapify(queue)
    while queue:
        cost, is_bound, pose = heappop(queue)
        if cost >= field[pose]:
            continue
        if is_bound and exact is not None:
            heappush(queue, (exact(pose), False, pose))
            continue
        if isinf(cost):
            break
        field[pose] = cost
        cell, heading = divmod(pose, 4)
        for turned in (4 * cell + (heading + 1) % 4, 4 * cell + (heading - 1) % 4):
            if cost + 1 < field[turned]:
                heappush(queue, (cost + 1, False, turned))
        behind = cell - strides[heading]
        if not isinf(entry[behind]) and cost + entry[cell] < field[4 * behind + heading]:
            heappush(queue, (cost + entry[cell], False, 4 * behind + heading))
    return field


def best_actions(world: WorldMap, field: Field, pose: int) -> tuple[Action, ...]:
    """Actions that lower the distance-to-go by one; none where there is no way.

    Among equally good ones, turning and moving come before handling things. Facing already what was to be gone to, waiting completes it.
    """
    here, cell, heading = field[pose], *divmod(pose, 4)
    if isinf(here):
        return ()
    if here == 0:
        return (Action.DONE,)
    front = world.front(pose)
    moves = [(Action.TURN_LEFT, 4 * cell + (heading - 1) % 4), (Action.TURN_RIGHT, 4 * cell + (heading + 1) % 4)]
    if world.entry[front] == 1:
        moves.append((Action.MOVE_FORWARD, 4 * front + heading))
    if good := tuple(action for action, reached in moves if field[reached] == here - 1):
        return good
    if front in world.empty:
        return (Action.DROP,)
    is_door = any(place == front and thing.kind == "door" for thing, place in world.places.items())
    return (Action.TOGGLE,) if is_door else (Action.PICK_UP,)


def contribution(before: float, after: float) -> float:
    """Whether an action served the clause that was to be done: +1 yes, 0 no change, -1 it led away, NaN if a distance is infinite.

    Args:
        before: distance-to-go of the clause before the action.
        after: distance-to-go of the same clause afterwards; 0 if the action completed it (which always counts as +1).
    """
    if after == 0:
        return 1.0
    if isinf(before) or isinf(after):
        return nan
    return float((before > after) - (before < after))

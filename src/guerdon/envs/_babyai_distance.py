"""How far a sub-task is from done: the exact ground truth against which raters are judged.

The distance-to-go D of a clause is the smallest number of primitive actions that complete it while every object that the clause does not
name stays where it is (an object in the hand that is in the way of the clause is put down, and stands in the way from then on). D is
computed for all poses of a world at once, by a Dijkstra search backwards from the poses in which the clause is completed:

- turning and stepping forward cost 1; stepping through a closed door costs 2 (toggle, forward);
- "go to" is completed by facing the thing, "pick up" and "open" cost one action more there (two for a door that is open already: it has to
  be closed first);
- "put next to", and what begins with putting something down, are searches in stages, joined where the thing is picked up or put down; a
  door that was opened in one stage stands open in the next.

An action contributes to a clause if it lowers D. Imports no simulator: a world is a `WorldMap`. Distances are counts of actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache, cached_property, lru_cache
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


WALL = Thing("grey", "wall")


@dataclass(frozen=True)
class WorldMap:
    """Everything but the agent's pose. Cells are numbered `y * width + x`; poses `4 * cell + heading` (0 right, 1 down, 2 left, 3 up)."""

    width: int
    cells: tuple[Thing | None, ...]
    """What is in each cell, None for nothing. The outermost cells are walls."""
    open_doors: frozenset[Thing]
    carried: Thing | None

    @cached_property
    def places(self) -> Mapping[Thing, int]:
        """Cell of every door and of every object that is not carried."""
        return {thing: cell for cell, thing in enumerate(self.cells) if thing is not None and thing != WALL}

    @cached_property
    def empty(self) -> frozenset[int]:
        """Cells with nothing in them, where an object can be put down."""
        return frozenset(cell for cell, thing in enumerate(self.cells) if thing is None)

    @cached_property
    def entry(self) -> tuple[float, ...]:
        """Actions needed to step forward into each cell: 1, 2 for a closed door, infinite for a wall or an object."""
        return tuple(1 if thing is None or thing in self.open_doors else 2 if thing.kind == "door" else inf for thing in self.cells)

    @cached_property
    def closed_doors(self) -> tuple[Thing, ...]:
        """The doors that are not open."""
        return tuple(thing for thing in self.places if thing.kind == "door" and thing not in self.open_doors)

    def pose(self, x: int, y: int, heading: int) -> int:
        """Number of a pose."""
        return 4 * (y * self.width + x) + heading

    def front(self, pose: int) -> int:
        """The cell that is faced in a pose."""
        return pose // 4 + _strides(self.width)[pose % 4]

    def facing(self, cells: Iterable[int]) -> list[int]:
        """The poses that face one of `cells`, on cells that can be entered."""
        steps = [(cell - stride, heading) for cell in cells for heading, stride in enumerate(_strides(self.width))]
        return [4 * cell + heading for cell, heading in steps if not isinf(self.entry[cell])]

    def after_lifting(self, thing: Thing) -> WorldMap:
        """The map with `thing`, which is in a cell, in the hand."""
        return replace(self, cells=_with(self.cells, self.places[thing], None), carried=thing)

    def after_dropping(self, cell: int) -> WorldMap:
        """The map with the carried thing put down in `cell`, which is empty."""
        return replace(self, cells=_with(self.cells, cell, self.carried), carried=None)

    def after_opening(self, door: Thing) -> WorldMap:
        """The map with `door` open."""
        return replace(self, open_doors=self.open_doors | {door})


def _with(cells: tuple[Thing | None, ...], cell: int, content: Thing | None) -> tuple[Thing | None, ...]:
    return (*cells[:cell], content, *cells[cell + 1 :])


@cache
def _strides(width: int) -> tuple[int, int, int, int]:
    """How far apart, in cell numbers, a cell and its neighbour lie, for each heading."""
    return 1, width, -1, -width


@lru_cache(maxsize=1024)
def distance_field(world: WorldMap, clause: Clause) -> Field:
    """Distance-to-go of `clause` for every pose in `world`. The last ones computed are kept; treat them as read-only."""
    target, carried = clause.target, world.carried
    if clause.kind == "open":
        return _search(world, dict.fromkeys(world.facing([world.places[target]]), 2 if target in world.open_doors else 1))
    if clause.kind == "put next to":
        return _put_next_field(world, clause)
    once_faced = 0 if clause.kind == "go to" else 1
    if carried == target:
        return _search(world, dict.fromkeys(world.facing(world.empty), 1 + once_faced))
    if clause.kind == "go to" or carried is None:
        return _search(world, dict.fromkeys(world.facing([world.places[target]]), once_faced))
    return _field_with_hand_full(world, clause)


def _put_next_field(world: WorldMap, clause: Clause) -> Field:
    target, beside = clause.target, clause.beside
    if beside is None:
        raise ValueError("a clause 'put next to' names two things")
    if world.carried is None:
        onward = distance_field(world.after_lifting(target), clause)
        lifting = {pose: 1 + onward[pose] for pose in world.facing([world.places[target]])}
        return _search(world, lifting | _opening(world, clause), closed=inf)
    if world.carried != target:
        return _field_with_hand_full(world, clause)
    around = {world.places[beside] + stride for stride in _strides(world.width)}
    return _search(world, dict.fromkeys(world.facing(around & world.empty), 1))


def _opening(world: WorldMap, clause: Clause) -> dict[int, float]:
    """The cost of going on by opening a door, for the poses that face a closed one."""
    facing = {door: world.facing([world.places[door]]) for door in world.closed_doors}
    return {pose: 1 + distance_field(world.after_opening(door), clause)[pose] for door, poses in facing.items() for pose in poses}


def _field_with_hand_full(world: WorldMap, clause: Clause) -> Field:
    """The distance if another thing has to be put down first, wherever that costs least.

    What is put down becomes an obstacle, so each place to put it has a field of its own. Few of them are needed: as if the thing vanished
    when put down, the distance is a lower bound, and a pose whose bound is beaten by a neighbour is never looked at closely.
    """
    vanished = replace(world, carried=None)
    if world.carried == clause.beside:
        bound = [1 + distance for distance in distance_field(vanished, Clause("pick up", clause.target))]
    else:
        bound = distance_field(vanished, clause)
    return _search(
        world,
        _opening(world, clause),
        closed=inf,
        bounds={pose: 1 + bound[pose] for pose in world.facing(world.empty)},
        exact=lambda pose: 1 + distance_field(world.after_dropping(world.front(pose)), clause)[pose],
    )


def _search(
    world: WorldMap,
    sources: Mapping[int, float],
    *,
    closed: float = 2,
    bounds: Mapping[int, float] | None = None,
    exact: Callable[[int], float] = lambda _: inf,
) -> Field:
    """Dijkstra backwards from `sources`: pose -> cost of completing the clause from there.

    Args:
        world: the map.
        sources: where the search begins, and with what cost.
        closed: cost of stepping through a closed door.
        bounds: more sources, with lower bounds of their costs.
        exact: the cost of a source in `bounds`; asked for once its bound is the least that is left.
    """
    entry, strides = [closed if cost == 2 else cost for cost in world.entry], _strides(world.width)
    field = [inf] * (4 * len(entry))
    queue = [(cost, False, pose) for pose, cost in sources.items()] + [(cost, True, pose) for pose, cost in (bounds or {}).items()]
    heapify(queue)
    while queue:
        cost, is_bound, pose = heappop(queue)
        if cost >= field[pose]:
            continue
        if is_bound:
            heappush(queue, (exact(pose), False, pose))
            continue
        field[pose] = cost
        cell, heading = divmod(pose, 4)
        for turned in (4 * cell + (heading + 1) % 4, 4 * cell + (heading - 1) % 4):
            if cost + 1 < field[turned]:
                heappush(queue, (cost + 1, False, turned))
        behind = 4 * (cell - strides[heading]) + heading
        if not isinf(entry[behind // 4]) and cost + entry[cell] < field[behind]:
            heappush(queue, (cost + entry[cell], False, behind))
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
    faced = world.cells[front]
    if faced is None:
        return (Action.DROP,)
    return (Action.TOGGLE,) if faced.kind == "door" else (Action.PICK_UP,)


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

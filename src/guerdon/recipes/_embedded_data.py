"""Fresh training data for the embedded rater, with labels from the simulator's distances: scenes for looks, windows for reasoning.

A scene is a map and one sub-task. Its distance field says how far the sub-task is from done in every pose, and therefore what each of the
three moves does in every pose; what picking up, dropping, toggling and waiting do is worked out for a few poses of each scene, on the map
as that action leaves it. Labels are those of `contribution` in `guerdon.envs._babyai_distance`: 2 serves, 1 changes nothing, 0 leads away.

Maps come from the simulator's own layouts, walked through by a demonstrator that strays, so that things lie elsewhere, are carried, and
doors stand open. Sub-tasks are those of the instruction and others drawn from what the map holds; their words are drawn from those that may
occur in recorded data. No picture is drawn: a picture is a grid of tiles out of a small library, and a scene names them by their index.

Scenes are laid out by seeds that no recorded dataset uses (2**31 and above; `guerdon collect babyai` stays below), so that whatever is
trained on them has met none of the worlds that it will be asked about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from math import inf, isinf, isnan
from random import Random
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Key, Wall, WorldObj

from guerdon.datasets.minari import RecordedEpisode
from guerdon.envs._babyai_distance import WALL, Action, WorldMap, best_actions, contribution, distance_field
from guerdon.envs._babyai_words import WORDINGS, Clause, Thing, held_out_template
from guerdon.envs._babyai_world import ALL_COLOURS, LEVELS, TILE, World
from guerdon.envs.babyai import BabyAI, phrases
from guerdon.evaluation.truth import chain_quality
from guerdon.providers._embedded_words import tokens
from guerdon.recipes.collect_babyai import Config, Noise
from guerdon.recipes.collect_babyai import demonstrations as recorded
from guerdon.recipes.parallel import run_jobs
from guerdon.recipes.progress import Progress
from guerdon.records import Frames, Task
from guerdon.samples import windows as cut
from guerdon.seeding import stream_seed

HINDERS, NEUTRAL, SERVES, UNKNOWN = 0, 1, 2, 255
"""Classes of an action. Unknown: a distance is infinite."""

MOVES: tuple[Action, ...] = (Action.TURN_LEFT, Action.TURN_RIGHT, Action.MOVE_FORWARD)

WINDOW = 8
"""Transitions in a window, as `guerdon.samples` cuts them unless told otherwise."""

PILOT_NOISE = Noise(random_actions=0.79)
"""How far a demonstrator strays on level one-room with one sub-task so that 36 % of its actions serve it."""

Purpose = Literal["looks", "windows", "calibration", "evaluation"]
"""What data is for; each purpose has seeds of its own."""

_FIRST_LAYOUT_SEED = 2**31
"""Recorded datasets lay out their worlds by smaller seeds."""
_LAYOUT_SEEDS = 2**31


# --- tiles --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """What a tile shows, where it is not black."""

    content: Thing | None
    """A wall, a thing, or None for an empty cell."""
    is_open: bool = False
    """Whether it is a door that stands open."""
    heading: int | None = None
    """Heading of the agent on the cell; None if it is elsewhere."""


def _tiles() -> tuple[Tile, ...]:
    objects = [Thing(colour, kind) for kind in ("ball", "box", "key") for colour in ALL_COLOURS]
    doors = [Thing(colour, "door") for colour in ALL_COLOURS]
    on_the_floor = [Tile(None), Tile(WALL), *map(Tile, objects), *map(Tile, doors), *(Tile(door, is_open=True) for door in doors)]
    ways = [tile for tile in on_the_floor if tile.content is None or tile.is_open]
    return (*on_the_floor, *(replace(tile, heading=heading) for tile in ways for heading in range(4)))


LIBRARY: tuple[Tile | None, ...] = (None, *_tiles())
"""Every tile that a full picture can have; index 0 is black, which shows that nothing is carried."""

_INDEX: Mapping[Tile | None, int] = {tile: index for index, tile in enumerate(LIBRARY)}

ENTERABLE: npt.NDArray[np.bool_] = np.array(
    [tile is not None and tile.heading is None and (tile.content is None or tile.is_open) for tile in LIBRARY]
)
"""Whether the agent can stand on a cell that looks like this (K,)."""

AGENT_ON: npt.NDArray[np.uint8] = np.array(
    [
        [_INDEX[replace(tile, heading=heading)] if tile is not None and way else 0 for heading in range(4)]
        for tile, way in zip(LIBRARY, ENTERABLE, strict=True)
    ],
    np.uint8,
)
"""The tile that a tile becomes when the agent stands on it, by heading (K, 4); 0 where it cannot."""

_SOLID: Mapping[str, Callable[[str], WorldObj]] = {"ball": Ball, "box": Box, "key": Key, "wall": Wall}


def tile_library() -> npt.NDArray[np.uint8]:
    """The image of every tile in `LIBRARY`, (K, 8, 8, 3); index 0 is black."""
    return np.stack([np.zeros((TILE, TILE, 3), np.uint8) if tile is None else _image(tile) for tile in LIBRARY])


def _image(tile: Tile) -> npt.NDArray[np.uint8]:
    content: WorldObj | None = None
    if tile.content is not None:
        colour, kind = tile.content
        content = Door(colour, is_open=tile.is_open) if kind == "door" else _SOLID[kind](colour)
    # MiniGrid draws tiles in float64; a picture cuts their fractions off, as World does by painting them into uint8.
    image: npt.NDArray[np.uint8] = Grid.render_tile(content, agent_dir=tile.heading, tile_size=TILE).astype(np.uint8)
    return image


@cache
def _library() -> npt.NDArray[np.uint8]:
    library = tile_library()
    library.flags.writeable = False
    return library


def draw(grid: npt.NDArray[np.uint8], carried: int) -> Frames:
    """The picture of a grid of tiles (rows, columns), the agent's included, and of what is carried: ((rows + 1) * 8, columns * 8, 3)."""
    strip = np.zeros((1, grid.shape[1]), np.uint8)
    strip[0, 0] = carried
    return _joined(_library()[np.concatenate([grid, strip])])


def _joined(tiles: npt.NDArray[np.uint8]) -> Frames:
    rows, columns = tiles.shape[:2]
    return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * TILE, columns * TILE, 3)


@cache
def _index_of_image() -> Mapping[bytes, int]:
    return {image.tobytes(): index for index, image in enumerate(_library())}


def tiles_of(pictures: Frames) -> npt.NDArray[np.uint8]:
    """The tiles of full pictures (..., H, W, 3) by their index in the library, (..., H / 8, W / 8), the strip's row included.

    Raises:
        ValueError: for a picture with another tile, or of another size than whole tiles.
    """
    *before, height, width, _ = pictures.shape
    if height % TILE or width % TILE:
        raise ValueError(f"a picture of {height} x {width} pixels does not consist of whole tiles")
    rows, columns = height // TILE, width // TILE
    tiles = np.moveaxis(pictures.reshape(-1, rows, TILE, columns, TILE, 3), 3, 2).reshape(-1, TILE * TILE * 3)
    indices = np.array([_index_of_image().get(tile.tobytes(), -1) for tile in np.ascontiguousarray(tiles)])
    if indices.size and indices.min() < 0:
        raise ValueError("a picture has a tile that no BabyAI world has")
    return indices.astype(np.uint8).reshape(*before, rows, columns)


# --- what actions do ----------------------------------------------------------------------------------------------------------------


def stepped(world: WorldMap, pose: int, action: Action) -> tuple[WorldMap, int]:
    """The map and the pose after an action, as the simulator has it; the same map object if nothing was handled."""
    cell, heading = divmod(pose, 4)
    if action == Action.TURN_LEFT:
        return world, 4 * cell + (heading - 1) % 4
    if action == Action.TURN_RIGHT:
        return world, 4 * cell + (heading + 1) % 4
    front = world.front(pose)
    faced = world.cells[front]
    if action == Action.MOVE_FORWARD and world.entry[front] == 1:
        return world, 4 * front + heading
    if action == Action.PICK_UP and world.carried is None and faced is not None and faced.kind not in ("door", "wall"):
        return world.after_lifting(faced), pose
    if action == Action.DROP and world.carried is not None and faced is None:
        return world.after_dropping(front), pose
    if action == Action.TOGGLE and faced is not None and faced.kind == "door":
        return (_after_closing(world, faced) if faced in world.open_doors else world.after_opening(faced)), pose
    return world, pose


def _after_closing(world: WorldMap, door: Thing) -> WorldMap:
    return replace(world, open_doors=world.open_doors - {door})


def completes(clause: Clause, before: WorldMap, action: Action, after: WorldMap, pose: int) -> bool:
    """Whether an action completed a clause, as the simulator's verifiers say.

    Args:
        clause: the clause that was due.
        before: the map before the action.
        action: what was done.
        after: the map afterwards.
        pose: the pose afterwards.
    """
    if clause.kind == "go to":
        return after.cells[after.front(pose)] == clause.target
    if clause.kind == "pick up":
        return action == Action.PICK_UP and before.carried is None and after.carried == clause.target
    if clause.kind == "open":
        return action == Action.TOGGLE and clause.target in after.open_doors and clause.target not in before.open_doors
    return action == Action.DROP and before.carried == clause.target and after.carried is None and holds(clause, after, pose)


def holds(clause: Clause, world: WorldMap, pose: int) -> bool:
    """Whether a clause's goal state holds: its target is faced, carried, open, or next to the other thing."""
    if clause.kind == "go to":
        return world.cells[world.front(pose)] == clause.target
    if clause.kind == "pick up":
        return world.carried == clause.target
    if clause.kind == "open":
        return clause.target in world.open_doors
    if clause.beside is None or world.carried in (clause.target, clause.beside):
        return False
    apart = abs(world.places[clause.target] - world.places[clause.beside])
    return apart in (1, world.width)  # all things lie within the outer walls, so no row ends between two neighbours


def classified(before: float, after: float) -> int:
    """The class of an action that takes a distance-to-go from `before` to `after` (0 if it completed the clause)."""
    value = contribution(before, after)
    return UNKNOWN if isnan(value) else int(value) + 1


def judged_actions(world: WorldMap, clause: Clause, pose: int) -> tuple[list[int], list[bool]]:
    """The class of each of the seven actions in a pose, and whether it would complete the clause."""
    distances = distance_field(world, clause)
    before = distances[pose]
    classes, complete = [], []
    for action in Action:
        after, reached = stepped(world, pose, action)
        done = completes(clause, world, action, after, reached)
        if done:
            distance = 0.0
        elif after is world:
            distance = distances[reached]
        elif isinf(before):
            distance = inf
        elif _is_laborious(after, clause):
            distance = _laborious_distance(after, clause, pose, before + 1)  # what one action did, another can undo
        else:
            distance = distance_field(after, clause)[pose]
        classes.append(classified(before, distance))
        complete.append(done)
    return classes, complete


def _is_laborious(world: WorldMap, clause: Clause) -> bool:
    """Whether the distance is expensive to compute: a wrong thing in the hand has to be put down somewhere first."""
    return world.carried not in (None, clause.target) and clause.kind in ("pick up", "put next to")


def _laborious_distance(world: WorldMap, clause: Clause, pose: int, limit: float) -> float:
    """The distance-to-go from one pose, or `limit` if that is less, where `distance_field` would work out all poses at great cost.

    A search forward. No pose is followed up from which the goal would be too far even if the thing in the hand vanished when put down (the
    bound that `distance_field` itself searches with).
    """
    vanished = replace(world, carried=None)
    swaps = world.carried == clause.beside  # what the target is to be put next to is in the hand
    bound = distance_field(vanished, Clause("pick up", clause.target) if swaps else clause)
    before = 2 if swaps else 1  # putting down what is in the hand, and in the end the target
    walked, queue = {pose: 0}, deque([pose])
    while queue:
        here = queue.popleft()
        if walked[here] + before + bound[here] >= limit:
            continue
        front, onward = world.front(here), limit - walked[here] - 1
        faced = world.cells[front]
        if faced is None:
            # between lifting the target and putting it down, the agent has to come from one neighbourhood into another
            apart = max(0, _steps_between(world, world.places[clause.target], front) - 3) if swaps else 0
            if before - 1 + bound[here] + apart < onward:
                limit = min(limit, walked[here] + 1 + distance_field(world.after_dropping(front), clause)[here])
        elif faced in world.closed_doors:
            limit = min(limit, walked[here] + 1 + _laborious_distance(world.after_opening(faced), clause, here, onward))
        for move in MOVES:
            reached = stepped(world, here, move)[1]
            if reached not in walked:
                walked[reached] = walked[here] + 1
                queue.append(reached)
    return limit


def _steps_between(world: WorldMap, one: int, other: int) -> int:
    """Steps from one cell to another if nothing were in the way."""
    return abs(one // world.width - other // world.width) + abs(one % world.width - other % world.width)


# --- scenes -------------------------------------------------------------------------------------------------------------------------

LONGEST_CLAUSE: int = max(len(template.split()) + template.count("{") for templates in WORDINGS.values() for template in templates)
"""Words in the longest clause, where every thing is named by colour and kind."""


@dataclass(frozen=True, kw_only=True)
class Variety:
    """How much is made of one layout."""

    lengths: tuple[int, int] = (1, 3)
    """Least and greatest number of sub-tasks in the layout's instruction."""
    steps: tuple[int, int] = (15, 90)
    """Least and greatest number of steps that are walked in it."""
    noise: tuple[float, float] = (0.15, 0.75)
    """Least and greatest probability that a step of a walk is any of the seven actions."""
    rearranged: float = 0.35
    """Probability that things are moved and doors opened at random before the walk."""
    maps: int = 3
    """Maps that are looked at, out of those that the walk passes through."""
    clauses: int = 4
    """Sub-tasks that are judged on each map."""
    held: float = 0.12
    """Probability that a sub-task is drawn whose goal state holds already, where there is one."""
    poses: int = 6
    """Poses of the agent in which each sub-task is judged."""
    laborious: Mapping[str, float] = field(default_factory=lambda: {"four-rooms": 0.12})
    """Probability, by level, that a sub-task is admitted whose distances take long to compute because a wrong thing is in the hand; 1 for
    levels that are not named."""


@dataclass(frozen=True, eq=False)
class Scenes:
    """Maps with one sub-task each, and poses in them. S scenes, M poses, all grids of one size."""

    level: str
    grid: npt.NDArray[np.uint8]
    """Index in the library of every tile, without the agent and without the strip (S, rows, columns)."""
    carried: npt.NDArray[np.uint8]
    """Index of what is carried, 0 for nothing (S,)."""
    tokens: npt.NDArray[np.uint8]
    """Words of the sub-task, filled up with 0 (S, LONGEST_CLAUSE)."""
    field: npt.NDArray[np.float16]
    """Distance-to-go by pose, 4 * cell + heading; infinite where there is no way or nobody can stand (S, 4 * rows * columns)."""
    scene: npt.NDArray[np.int32]
    """The scene of each pose, in rising order (M,)."""
    pose: npt.NDArray[np.int16]
    """4 * cell + heading; the distance-to-go there is finite (M,)."""
    classes: npt.NDArray[np.uint8]
    """Class of each of the seven actions: 0 hinders, 1 changes nothing, 2 serves, 255 unknown (M, 7)."""
    completes: npt.NDArray[np.bool_]
    """Whether the action would complete the sub-task (M, 7)."""
    distance: npt.NDArray[np.float16]
    """Actions to go (M,)."""
    done: npt.NDArray[np.bool_]
    """Whether the sub-task's goal state holds: its target is faced, carried, open, or next to the other thing (M,)."""
    agent_tile: npt.NDArray[np.uint8]
    """Index of the cell's tile with the agent on it (M,)."""

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.grid)

    def moves(self, scene: npt.NDArray[np.integer[Any]] | slice = slice(None)) -> npt.NDArray[np.uint8]:
        """Classes of turning left, turning right and moving forward in every pose of some scenes, (N, rows, columns, 4 headings, 3 moves).

        255 where the agent cannot stand or a distance is infinite.
        """
        grid = self.grid[scene]
        rows, columns = grid.shape[1:]
        before = self.field[scene].reshape(-1, rows, columns, 4)
        enterable = ENTERABLE[grid]
        classes = np.full((*before.shape, 3), UNKNOWN, np.uint8)
        for heading, (row, column) in enumerate(((0, 1), (1, 0), (0, -1), (-1, 0))):
            here = before[..., heading]
            # the outermost cells are walls, where nobody stands: what is rolled round the edge is never used
            ahead = np.roll(here, (-row, -column), (1, 2))
            free = np.roll(enterable, (-row, -column), (1, 2))
            reached = (before[..., (heading - 1) % 4], before[..., (heading + 1) % 4], np.where(free, ahead, here))
            for move, after in enumerate(reached):
                classes[..., heading, move] = _compared(here, after)
        classes[~enterable] = UNKNOWN
        return classes

    def pictures(self, poses: npt.NDArray[np.integer[Any]]) -> Frames:
        """The pictures of some poses, by their number (N, H, W, 3)."""
        scene, columns = self.scene[poses], self.grid.shape[2]
        grids = self.grid[scene]
        cell = self.pose[poses] // 4
        grids[np.arange(len(grids)), cell // columns, cell % columns] = self.agent_tile[poses]
        return np.stack([draw(grid, carried) for grid, carried in zip(grids, self.carried[scene].tolist(), strict=True)])


def _compared(before: npt.NDArray[np.float16], after: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8]:
    """`classified` for arrays."""
    classes = np.where(after < before, SERVES, np.where(after > before, HINDERS, NEUTRAL))
    classes[np.isinf(before) | np.isinf(after)] = UNKNOWN
    classes[after == 0] = SERVES
    return classes.astype(np.uint8)


def layout_seeds(purpose: Purpose, seed: int, count: int) -> range:
    """Seeds for `scenes`. Those of two purposes have none in common, whatever the seeds and counts (up to 2**40)."""
    numbers = {"looks": 0, "windows": 1, "calibration": 2, "evaluation": 3}
    start = (numbers[purpose] << 41) + stream_seed(seed, "embedded layouts") % 2**40
    return range(start, start + count)


def recording_seed(purpose: Purpose, seed: int) -> int:
    """A seed for `windows`. Each purpose has its own; compare `Window.task` to be certain that no layout occurs in two."""
    return stream_seed(seed, "embedded windows", purpose)


def scenes(level: str, seeds: Iterable[int], *, variety: Variety | None = None) -> Scenes:
    """Scenes from the layouts that some seeds give, all that a layout gives one after the other. Equal arguments give equal bytes.

    Args:
        level: family of worlds.
        seeds: one for each layout, 0 or more (see `layout_seeds`).
        variety: how much is made of a layout.

    Raises:
        UnknownName: if there is no such level.
        EnvironmentFailed: if the level has no layout with so many sub-tasks.
    """
    variety = variety or Variety()
    return _gathered(level, [row for seed in seeds for row in _Layout(level, seed, variety).rows()])


def scenes_in_processes(
    level: str, seeds: Sequence[int], *, variety: Variety | None = None, workers: int = 0, progress: Progress = lambda _done, _total: None
) -> Scenes:
    """What `scenes` gives, made by several processes; the same whatever their number. Raises what `scenes` raises.

    Args:
        workers: processes at a time; 0 for as many as there are cores.
    """
    parts = [seeds[start : start + _SEEDS_PER_JOB] for start in range(0, len(seeds), _SEEDS_PER_JOB)]
    made = run_jobs(partial(_scenes_of_a_job, level, variety or Variety()), parts, workers=workers, progress=progress)
    return joined(made) if made else scenes(level, (), variety=variety)


_SEEDS_PER_JOB = 250


def _scenes_of_a_job(level: str, variety: Variety, seeds: Sequence[int], progress: Progress) -> Scenes:
    def counted() -> Iterator[int]:
        for number, seed in enumerate(seeds):
            progress(number, len(seeds))
            yield seed

    return scenes(level, counted(), variety=variety)


def joined(parts: Sequence[Scenes]) -> Scenes:
    """Scenes of one level, one after the other. Raises ValueError for none, and for different levels."""
    levels = {part.level for part in parts}
    if len(levels) != 1:
        raise ValueError(f"scenes of one level can be joined, not of {sorted(levels)}")
    starts = np.cumsum([0, *(len(part) for part in parts)])
    arrays = {
        item.name: np.concatenate([getattr(part, item.name) for part in parts])
        for item in fields(Scenes)
        if item.name not in ("level", "scene")
    }
    scene = np.concatenate([part.scene + start for part, start in zip(parts, starts, strict=False)]).astype(np.int32)
    return Scenes(level=levels.pop(), scene=scene, **arrays)


@dataclass(frozen=True)
class _Row:
    """One scene."""

    grid: npt.NDArray[np.uint8]
    carried: int
    tokens: tuple[int, ...]
    field: npt.NDArray[np.float16]
    poses: list[int]
    classes: list[list[int]]
    completes: list[list[bool]]
    done: list[bool]


def _gathered(level: str, rows: Sequence[_Row]) -> Scenes:
    counts = [len(row.poses) for row in rows]
    width, cells = _size(level)
    grid = np.array([row.grid for row in rows], np.uint8).reshape(-1, cells // width, width)
    distances = np.array([row.field for row in rows], np.float16).reshape(-1, 4 * cells)
    words = np.zeros((len(rows), LONGEST_CLAUSE), np.uint8)
    for number, row in enumerate(rows):
        words[number, : len(row.tokens)] = row.tokens
    scene = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    pose = np.array([pose for row in rows for pose in row.poses], np.int16)
    return Scenes(
        level=level,
        grid=grid,
        carried=np.array([row.carried for row in rows], np.uint8),
        tokens=words,
        field=distances,
        scene=scene,
        pose=pose,
        classes=np.array([classes for row in rows for classes in row.classes], np.uint8).reshape(-1, len(Action)),
        completes=np.array([complete for row in rows for complete in row.completes], np.bool_).reshape(-1, len(Action)),
        distance=distances[scene, pose],
        done=np.array([done for row in rows for done in row.done], np.bool_),
        agent_tile=AGENT_ON[grid.reshape(-1, cells)[scene, pose // 4], pose % 4],
    )


@cache
def _size(level: str) -> tuple[int, int]:
    """Columns and cells of a level's grids."""
    here = World(level, 0, 1).map
    return here.width, len(here.cells)


def _drawn_words(clause: Clause, random: Random) -> tuple[int, ...]:
    """Tokens of a clause in one of the wordings that may occur in recorded data."""
    return _tokens(clause, random.randrange(held_out_template(clause.kind)))


@cache
def _tokens(clause: Clause, template: int) -> tuple[int, ...]:
    return tokens(WORDINGS[clause.kind][template].format(target=clause.target, beside=clause.beside))


def _tiled(world: WorldMap) -> tuple[npt.NDArray[np.uint8], int]:
    """The library's index of every cell (cells,), and of what is carried."""
    indices = [_index_of(thing, thing in world.open_doors) for thing in world.cells]
    return np.array(indices, np.uint8), 0 if world.carried is None else _index_of(world.carried, False)


@cache
def _index_of(content: Thing | None, is_open: bool) -> int:
    return _INDEX[Tile(content, is_open)]


# --- walks --------------------------------------------------------------------------------------------------------------------------

_DISTRACTION = 0.03
"""Probability that a step of a walk begins with another goal, which is pursued first."""
_CARRIED = 0.8
"""Probability that a sub-task "put next to" is made one of putting down what is carried."""
_NEAR = 3
"""Distance-to-go up to which a pose counts as near the goal."""
_SOURCES = (0.4, 0.25, 0.15, 0.2)
"""Shares of the poses: from the walk, near the goal, facing a thing, from anywhere."""


@dataclass(frozen=True)
class _Stay:
    """What a walk met while the map did not change."""

    world: WorldMap
    poses: list[int]
    goals: list[Clause]
    """What was pursued there, each once."""


class _Layout:
    """The scenes of one layout."""

    def __init__(self, level: str, seed: int, variety: Variety) -> None:
        self._variety = variety
        self._random = Random(stream_seed(seed, "embedded scenes", level))
        self._start = World(level, _FIRST_LAYOUT_SEED + seed, self._random.randint(*variety.lengths))
        self._admitted = variety.laborious.get(level, 1.0)
        things = sorted(self._start.map.places)
        self._doors = [thing for thing in things if thing.kind == "door"]
        self._objects = [thing for thing in things if thing.kind != "door"]
        self._kinds = [kind for kind in LEVELS[level].clause_kinds if kind != "open" or self._doors]

    def rows(self) -> Iterator[_Row]:
        stays = self._walk()
        # longer stays have more chance, as they have in recorded behaviour
        ranks = [self._random.random() ** (1 / len(stay.poses)) for stay in stays]
        for number in sorted(range(len(stays)), key=ranks.__getitem__, reverse=True)[: self._variety.maps]:
            yield from self._rows_of(stays[number])

    def _rows_of(self, stay: _Stay) -> Iterator[_Row]:
        world = stay.world
        grid, carried = _tiled(world)
        standing = np.repeat(ENTERABLE[grid], 4)
        facing = world.facing(world.places.values())
        for clause in self._clauses_on(stay):
            distances = np.array(distance_field(world, clause), np.float16)
            distances[~standing] = inf
            poses = self._poses(distances, stay.poses, facing)
            judged = [judged_actions(world, clause, pose) for pose in poses]
            if poses:
                yield _Row(
                    grid=grid,
                    carried=carried,
                    tokens=_drawn_words(clause, self._random),
                    field=distances,
                    poses=poses,
                    classes=[classes for classes, _ in judged],
                    completes=[complete for _, complete in judged],
                    done=[holds(clause, world, pose) for pose in poses],
                )

    def _admits(self) -> bool:
        """Whether a sub-task may be laborious this time."""
        return self._random.random() < self._admitted

    def _clause(self, carried: Thing | None = None) -> Clause:
        """A sub-task drawn at random, its kind first; what is carried is often what is to be put somewhere, as in recorded behaviour."""
        kind = self._random.choice(self._kinds)
        if kind == "put next to":
            target, beside = self._random.sample(self._objects, 2)
            if carried not in (None, target, beside) and self._random.random() < _CARRIED:
                target = carried
            return Clause(kind, target, beside)
        return Clause(
            kind, self._random.choice({"go to": self._objects + self._doors, "pick up": self._objects, "open": self._doors}[kind])
        )

    def _held_on(self, world: WorldMap) -> list[Clause]:
        """The sub-tasks whose goal state holds in every pose."""
        places = {thing: world.places[thing] for thing in self._objects if thing != world.carried}
        beside = [(one, other) for one in places for other in places if abs(places[one] - places[other]) in (1, world.width)]
        held = [] if world.carried is None else [Clause("pick up", world.carried)]
        held += [Clause("open", door) for door in self._doors if door in world.open_doors]
        held += [Clause("put next to", one, other) for one, other in beside]
        return [clause for clause in held if clause.kind in self._kinds]

    def _clauses_on(self, stay: _Stay) -> list[Clause]:
        """The sub-tasks that are judged on a map: one that was pursued there, one of the instruction, the others at random."""
        random, wanted = self._random, self._variety.clauses
        held = self._held_on(stay.world)
        first = [random.choice(goals) for goals in (stay.goals, self._start.clauses) if goals]
        chosen: dict[Clause, None] = {}
        for attempt in range(3 * wanted):
            if attempt < len(first):
                clause = first[attempt]
            elif held and random.random() < self._variety.held:
                clause = random.choice(held)
            elif (clause := self._clause(stay.world.carried)) in held:
                continue
            if not _is_laborious(stay.world, clause) or self._admits():
                chosen[clause] = None
            if len(chosen) == wanted:
                break
        return list(chosen)

    def _poses(self, distances: npt.NDArray[np.float16], walked: Sequence[int], facing: Sequence[int]) -> list[int]:
        """Different poses with a finite distance."""
        finite = np.flatnonzero(np.isfinite(distances)).tolist()
        reachable = frozenset(finite)
        near = np.flatnonzero(distances <= _NEAR).tolist()
        sources = [[pose for pose in walked if pose in reachable], near, [pose for pose in facing if pose in reachable], finite]
        chosen: dict[int, None] = {}
        for source in self._random.choices(sources, _SOURCES, k=2 * self._variety.poses):
            if source and len(chosen) < self._variety.poses:
                chosen[self._random.choice(source)] = None
        return list(chosen)

    # --- walking --------------------------------------------------------------------------------------------------------------------

    def _walk(self) -> list[_Stay]:
        """Walks about, pursuing the instruction and then sub-tasks at random, and straying."""
        random, pose = self._random, self._start.pose
        here = self._rearranged(pose // 4) if random.random() < self._variety.rearranged else self._start.map
        goals = list(reversed(self._start.clauses))
        strays = random.uniform(*self._variety.noise)
        stays, admits = [_Stay(here, [pose], [])], self._admits()
        for _ in range(random.randint(*self._variety.steps)):
            if not goals or random.random() < _DISTRACTION:
                goals.append(self._clause())
            goal, good = goals[-1], self._good_actions(here, goals[-1], pose, admits)
            if good and goal not in stays[-1].goals:
                stays[-1].goals.append(goal)
            action = random.choice(good if good and random.random() >= strays else tuple(Action))
            after, pose = stepped(here, pose, action)
            if not good or completes(goal, here, action, after, pose):
                goals.pop()
            if after is here:
                stays[-1].poses.append(pose)
            else:
                stays.append(_Stay(after, [pose], []))
                admits = self._admits()
            here = after
        return stays

    def _good_actions(self, world: WorldMap, goal: Clause, pose: int, admits: bool) -> tuple[Action, ...]:
        """Actions that bring the goal nearer, none if no way is known; what is in the way in the hand is put down anywhere unless the
        sub-task may be laborious."""
        if _is_laborious(world, goal) and not admits:
            return (Action.DROP,) if world.cells[world.front(pose)] is None else MOVES
        return best_actions(world, distance_field(world, goal), pose)

    def _rearranged(self, agent: int) -> WorldMap:
        """The start after someone opened doors, moved a few things, and perhaps put one into the agent's hand."""
        random, world = self._random, self._start.map
        for door in self._doors:
            if random.random() < 0.5:
                world = world.after_opening(door)
        for thing in random.sample(self._objects, random.randint(0, min(3, len(self._objects)))):
            world = world.after_lifting(thing)
            world = world.after_dropping(random.choice(sorted(world.empty - {agent})))
        return world.after_lifting(random.choice(self._objects)) if random.random() < 0.5 else world


# --- windows ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Window:
    """Up to eight transitions of a demonstration, T of them, as `guerdon.samples` cuts them, with what the simulator knows of them."""

    level: str
    episode: int
    """Number of the demonstration."""
    start: int
    """The window's first observation in the demonstration."""
    task: str
    """Which layout and sub-tasks: level/number of sub-tasks/layout's seed."""
    instruction: str
    phrases: tuple[str, ...]
    """The words of each sub-task, in order."""
    pictures: Frames
    """View "full" (T+1, H, W, 3)."""
    actions: npt.NDArray[np.int64]
    """Numbers of the actions, as in `Action` (T,)."""
    contribution: npt.NDArray[np.float32]
    """Whether each action served the sub-task that was due: 1, 0, -1, NaN where a distance is infinite (T,)."""
    subtask: npt.NDArray[np.int64]
    """Number of sub-tasks done at each observation (T+1,)."""
    quality: npt.NDArray[np.float64]
    """How far the instruction is fulfilled at each observation, from 0 to 1, as `guerdon.evaluation.truth.qualities` has it (T+1,)."""


def windows(
    level: str,
    *,
    seed: int,
    tasks: int,
    demonstrations: int = 1,
    lengths: tuple[int, int] = (1, 3),
    noise: Noise | None = None,
    held_out_wording: bool = False,
) -> list[Window]:
    """The windows of the demonstrations that `guerdon collect babyai` would record, episode by episode.

    Args:
        level: family of worlds.
        seed: of everything (see `recording_seed`).
        tasks: number of layouts.
        demonstrations: of each task.
        lengths: least and greatest number of sub-tasks.
        noise: how far the demonstrator strays; as `collect babyai` has it if not given.
        held_out_wording: the same demonstrations in the words that never occur in recorded data.

    Raises:
        UnknownName, UsageError, EnvironmentFailed: as `guerdon.recipes.collect_babyai` does.
    """
    config = Config(level=level, tasks=tasks, demonstrations=demonstrations, lengths=lengths, noise=noise or Noise(), seed=seed)
    return [
        window
        for number, episode in enumerate(recorded(config))
        for window in _windows_of(episode, level, number, held_out_wording=held_out_wording)
    ]


def _windows_of(episode: RecordedEpisode, level: str, number: int, *, held_out_wording: bool) -> Iterator[Window]:
    task = Task.from_record(episode.metadata["task"])
    worded = BabyAI.hold_out_wording(task) if held_out_wording else task
    known, words = episode.privileged, phrases(worded)
    quality = chain_quality(known["subtask"], known["distance"], task.length)
    for start, stop in cut(len(episode.actions), WINDOW):
        yield Window(
            level=level,
            episode=number,
            start=start,
            task=task.id,
            instruction=worded.instruction,
            phrases=words,
            pictures=episode.frames["full"][start : stop + 1],
            actions=episode.actions[start:stop],
            contribution=known["contribution"][start:stop],
            subtask=known["subtask"][start : stop + 1].astype(np.int64),
            quality=quality[start : stop + 1],
        )

"""One simulated BabyAI world with an instruction in progress: built from a seed, stepped, drawn, measured.

Built on MiniGrid's room grids and BabyAI's verifiers, with these differences from the stock levels:

- instructions are chains of one to many clauses (stock: at most four), each naming things by colour and kind, and every thing exists once;
- no door is locked, and toggling a box does nothing (in the stock game it destroys the box and may make the task impossible);
- the verifiers learn of an object's whereabouts when it is picked up, not only when it is dropped; without that, "go to" a carried object
  would be completed by facing the empty cell it was taken from;
- no thing is put next to a door, where it would block the way.

Pictures are (H, W, 3) uint8 RGB with tiles of 8 pixels, upright, without the highlighted field of view that MiniGrid paints:

- "full": the whole grid;
- "agent": the 7 x 7 tiles before the agent, which looks up from the middle of the last row; what walls and doors hide is black.

Below both lies one more row of tiles, black but for the first tile, which shows the object in the agent's hand: without it, what is carried
could not be seen.
"""

# MiniGrid declares types for part of its functions only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.roomgrid import RoomGrid
from minigrid.core.world_object import Box, Door, WorldObj
from minigrid.envs.babyai.core import verifier
from minigrid.envs.babyai.core.roomgrid_level import RejectSampling, RoomGridLevel
from minigrid.envs.babyai.core.verifier import BeforeInstr, GoToInstr, Instr, ObjDesc, OpenInstr, PickupInstr, PutNextInstr
from minigrid.minigrid_env import MiniGridEnv

from guerdon.envs._babyai_distance import WALL, Action, Field, WorldMap, best_actions, distance_field
from guerdon.envs._babyai_words import Clause, ClauseKind, Thing
from guerdon.errors import EnvironmentFailed, UnknownName
from guerdon.records import Frames, array_digest

TILE = 8
"""Edge of a tile in pixels."""

VIEWS: tuple[str, ...] = ("full", "agent")

_AGENT_LOOKS_UP = 3
_ATTEMPTS = 1000
"""Layouts tried for one seed; the stock rejection rate is below one half, so reaching this means an impossible level."""

ALL_COLOURS = ("blue", "green", "grey", "purple", "red", "yellow")


@dataclass(frozen=True, kw_only=True)
class Level:
    """A family of worlds."""

    columns: int
    """Rooms from left to right."""
    rows: int
    """Rooms from top to bottom."""
    room_size: int
    """Edge of a room in tiles, walls included; neighbouring rooms share a wall."""
    objects: int
    """Number of things lying around, all different."""
    object_kinds: tuple[str, ...] = ("ball", "box", "key")
    colours: tuple[str, ...] = ALL_COLOURS
    clause_kinds: tuple[ClauseKind, ...] = ("go to", "pick up", "open", "put next to")


LEVELS: Mapping[str, Level] = {
    "small": Level(columns=2, rows=1, room_size=5, objects=4, object_kinds=("ball", "key"), colours=("blue", "green", "red", "yellow")),
    "one-room": Level(columns=1, rows=1, room_size=8, objects=7, clause_kinds=("go to", "pick up", "put next to")),
    "two-rooms": Level(
        columns=2, rows=1, room_size=6, objects=5, object_kinds=("ball", "key"), colours=("blue", "green", "red", "yellow")
    ),
    "four-rooms": Level(columns=2, rows=2, room_size=6, objects=8),
}  # fmt: skip


class _SealedBox(Box):
    """A box that cannot be opened."""

    def toggle(self, env: MiniGridEnv, pos: tuple[int, int]) -> bool:  # noqa: ARG002 (the signature is MiniGrid's)
        return False


class _Chain(BeforeInstr):
    """First one instruction, then another, which may be a chain itself (the stock class allows no nesting)."""

    instr_a: Any
    instr_b: Any
    a_done: Any
    """ "success" once the first instruction is completed."""
    b_done: Any

    def __init__(self, first: Instr, then: Instr) -> None:
        self.instr_a, self.instr_b, self.strict = first, then, False


def _verifier(clause: Clause) -> Instr:
    target = ObjDesc(clause.target.kind, clause.target.colour)
    if clause.beside is not None:
        return PutNextInstr(target, ObjDesc(clause.beside.kind, clause.beside.colour))
    simple: Mapping[str, Callable[[ObjDesc], Instr]] = {"go to": GoToInstr, "pick up": PickupInstr, "open": OpenInstr}
    return simple[clause.kind](target)


def _completed(instruction: Instr) -> int:
    """Number of clauses that a chain's verifiers have seen completed."""
    count = 0
    while isinstance(instruction, _Chain) and instruction.a_done == "success":
        count += 1
        if instruction.b_done == "success":
            return count + 1
        instruction = instruction.instr_b
    return count


class _Rooms(RoomGridLevel):
    """The simulator: layout and instruction drawn from a seed."""

    clauses: tuple[Clause, ...] = ()

    def __init__(self, level: Level, length: int) -> None:
        self.level, self.length = level, length
        super().__init__(room_size=level.room_size, num_rows=level.rows, num_cols=level.columns, max_steps=2**62)

    def gen_obs(self) -> dict[str, Any]:
        """Nothing: the stock observation is never used, and computing it takes most of a step's time."""
        return {}

    def _gen_grid(self, width: int, height: int) -> None:
        for _ in range(_ATTEMPTS):
            try:
                RoomGrid._gen_grid(self, width, height)
                self.gen_mission()
                self.validate_instrs(self.instrs)
            except (RejectSampling, RecursionError):  # the latter is how MiniGrid says that an object found no place
                continue
            return
        raise EnvironmentFailed(f"no layout with {self.length} different sub-tasks was found in {_ATTEMPTS} attempts")

    def gen_mission(self) -> None:
        doors = self.connect_all(list(self.level.colours))
        if len({door.color for door in doors}) < len(doors):
            raise RejectSampling("two doors look the same")
        self._place_objects()
        self.place_agent()
        self.check_objs_reachable()
        self.clauses = self._draw_clauses()
        verifiers = [_verifier(clause) for clause in self.clauses]
        self.instrs = verifiers.pop()
        while verifiers:
            self.instrs = _Chain(verifiers.pop(), self.instrs)

    def _place_objects(self) -> None:
        everything = [Thing(colour, kind) for colour in self.level.colours for kind in self.level.object_kinds]
        for thing in self._rand_subset(everything, self.level.objects):
            column, row = self._rand_int(0, self.num_cols), self._rand_int(0, self.num_rows)
            if thing.kind == "box":
                self.place_in_room(column, row, _SealedBox(thing.colour))
            else:
                self.add_object(column, row, thing.kind, thing.colour)

    def _draw_clauses(self) -> tuple[Clause, ...]:
        things = sorted(_thing(cell) for cell in self.grid.grid if cell is not None and _thing(cell) != WALL)
        objects = [thing for thing in things if thing.kind != "door"]
        doors = [thing for thing in things if thing.kind == "door"]
        drawn: list[Clause] = []
        for _ in range(50 * self.length):
            clause = self._draw_clause(objects, doors)
            if clause not in drawn:
                drawn.append(clause)
            if len(drawn) == self.length:
                return tuple(drawn)
        raise RejectSampling("too few different clauses")

    def _draw_clause(self, objects: list[Thing], doors: list[Thing]) -> Clause:
        kind = self._rand_elem(self.level.clause_kinds)
        if kind == "put next to":
            return Clause(kind, *self._rand_subset(objects, 2))
        candidates = {"go to": objects + doors, "pick up": objects, "open": doors}[kind]
        return Clause(kind, self._rand_elem(candidates))

    def act(self, action: int) -> bool:
        """Carries out an action; whether it completed the instruction."""
        MiniGridEnv.step(self, action)
        if action in (Action.PICK_UP, Action.DROP):
            self.update_objs_poss()
        return str(self.instrs.verify(action)) == "success"


def _thing(cell: WorldObj) -> Thing:
    return Thing(cell.color, cell.type)


class World:
    """A world in which an instruction is being carried out.

    Args:
        level: name of the family.
        seed: seed of the layout and of the instruction, 0 or more.
        length: number of clauses.

    Raises:
        UnknownName: if there is no such level.
        EnvironmentFailed: if the level has no layout for so many clauses.
    """

    def __init__(self, level: str, seed: int, length: int) -> None:
        if level not in LEVELS:
            raise UnknownName("BabyAI level", level, LEVELS)
        if verifier.use_done_actions:
            what = "BABYAI_DONE_ACTIONS is set, which changes when BabyAI's sub-tasks count as done"
            raise EnvironmentFailed(what, cure="Unset that variable.")
        if length < 1:
            raise EnvironmentFailed(f"an instruction has at least one sub-task, not {length}")
        self._rooms = _Rooms(LEVELS[level], length)
        self._rooms.reset(seed=seed)
        self.clauses = self._rooms.clauses
        self.completed = 0
        """Number of clauses done, in order."""
        self._map: WorldMap | None = None
        self._background: Frames | None = None

    @property
    def done(self) -> bool:
        """Whether all clauses are done."""
        return self.completed == len(self.clauses)

    @property
    def clause(self) -> Clause:
        """The clause to be done now. Raises IndexError when all are done."""
        return self.clauses[self.completed]

    @property
    def position(self) -> tuple[int, int, int]:
        """Column, row and heading (0 right, 1 down, 2 left, 3 up) of the agent."""
        x, y = self._rooms.agent_pos
        return int(x), int(y), int(self._rooms.agent_dir)

    @property
    def pose(self) -> int:
        """Number of the agent's pose on the map."""
        return self.map.pose(*self.position)

    @property
    def layout(self) -> str:
        """Digest of everything that the seed decided: the grid, and where the agent stands at first. To be read before the first step."""
        return array_digest(np.append(self._rooms.grid.encode().ravel(), self.position).astype(np.int64))

    def move_agent(self, x: int, y: int, heading: int) -> None:
        """Puts the agent elsewhere, before its first step. Raises EnvironmentFailed if it cannot stand there."""
        inside = 0 <= x < self._rooms.width and 0 <= y < self._rooms.height
        if not inside or heading not in range(4) or y * self.map.width + x not in self.map.empty:
            raise EnvironmentFailed(f"the agent cannot start at column {x}, row {y}, heading {heading}")
        self._rooms.agent_pos, self._rooms.agent_dir = (x, y), heading
        self._rooms.instrs.reset_verifier(self._rooms)

    def step(self, action: int) -> None:
        """Carries out an action, 0 to 6."""
        finished = self._rooms.act(action)
        self.completed = len(self.clauses) if finished else _completed(self._rooms.instrs)
        if action in (Action.PICK_UP, Action.DROP, Action.TOGGLE):
            self._map = self._background = None

    # --- measuring ------------------------------------------------------------------------------------------------------------------

    @property
    def map(self) -> WorldMap:
        """The world without the agent's pose; the same object until something is handled."""
        if self._map is None:
            self._map = _map_of(self._rooms.grid, self._rooms.carrying)
        return self._map

    def field(self, clause: Clause) -> Field:
        """Distance-to-go of any clause for all poses."""
        return distance_field(self.map, clause)

    def distance(self) -> float:
        """Least number of actions that complete the present clause (see `_babyai_distance`); 0 when all are done, infinite if no way is
        known."""
        return 0.0 if self.done else self.field(self.clause)[self.pose]

    def best_actions(self, clause: Clause | None = None) -> tuple[Action, ...]:
        """The actions that bring `clause` (by default the present one) nearer; none if no way is known."""
        return best_actions(self.map, self.field(clause or self.clause), self.pose)

    # --- drawing --------------------------------------------------------------------------------------------------------------------

    def draw(self, views: Iterable[str]) -> dict[str, Frames]:
        """Pictures of the present state by view. Raises UnknownName for a view that there is not."""
        painters = {"full": self._draw_full, "agent": self._draw_agent}
        for view in views:
            if view not in painters:
                raise UnknownName("BabyAI view", view, painters)
        return {view: painters[view]() for view in views}

    def _draw_full(self) -> Frames:
        grid = self._rooms.grid
        if self._background is None:
            cells = {(x, y): _tile(grid.get(x, y)) for y in range(grid.height) for x in range(grid.width)}
            self._background = _picture(grid.width, grid.height, cells, self._rooms.carrying)
        x, y, heading = self.position
        picture = self._background.copy()
        _paint(picture, x, y, _tile(grid.get(x, y), heading))
        return picture

    def _draw_agent(self) -> Frames:
        grid, visible = self._rooms.gen_obs_grid()
        cells = {(int(x), int(y)): _tile(grid.get(x, y)) for x, y in np.argwhere(visible)}
        cells[grid.width // 2, grid.height - 1] = _tile(None, _AGENT_LOOKS_UP)
        return _picture(grid.width, grid.height, cells, self._rooms.carrying)


def _map_of(grid: Grid, carrying: WorldObj | None) -> WorldMap:
    open_doors = frozenset(_thing(content) for content in grid.grid if isinstance(content, Door) and content.is_open)
    cells = tuple(None if content is None else _thing(content) for content in grid.grid)
    return WorldMap(grid.width, cells, open_doors, None if carrying is None else _thing(carrying))


def _tile(content: WorldObj | None, heading: int | None = None) -> Frames:
    tile: Frames = Grid.render_tile(content, agent_dir=heading, tile_size=TILE)
    return tile


def _paint(picture: Frames, x: int, y: int, tile: Frames) -> None:
    picture[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE] = tile


def _picture(width: int, height: int, tiles: Mapping[tuple[int, int], Frames], carrying: WorldObj | None) -> Frames:
    """Tiles by column and row on black, and below them the row that shows what is carried."""
    picture = np.zeros(((height + 1) * TILE, width * TILE, 3), np.uint8)
    for (x, y), tile in tiles.items():
        _paint(picture, x, y, tile)
    if carrying is not None:
        _paint(picture, 0, height, _tile(carrying))
    return picture

"""What a picture of a BabyAI world shows, by its tiles: the embedded rater's check that it was trained on such a picture.

The network answers whatever it is shown. Whether what it is shown is a picture of the kind that it knows can be told exactly, because these
pictures consist of a few dozen tiles of 8 x 8 pixels: the file of the weights names every tile that they were trained on, by digest. A
picture with any other tile, of another size, without exactly one agent, or without a wall around it, is not judged.

No verdict on an action is taken from here: besides the check, the things that are seen serve to put verdicts into words, and to notice that
a thing the instruction names is nowhere to be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from guerdon.providers._embedded_words import COLOURS, KINDS

TILE = 8
"""Edge of a tile in pixels."""
BLACK, EMPTY, WALL = "black", "empty", "wall"
HEADINGS: tuple[str, ...] = ("right", "down", "left", "up")
STEPS: tuple[tuple[int, int], ...] = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Rows and columns to the cell in front, by heading."""

Cell = tuple[int, int]
"""Row and column."""


class NotKnown(ValueError):
    """A picture that the network was not trained for. The message is a short reason, fit for a failure's code."""


def tile_name(thing: str = "", *, is_open: bool = False, heading: int | None = None) -> str:
    """The name of a tile: "empty", "wall", "red ball", "open red door", "agent up", "agent up on open red door".

    Args:
        thing: what lies in the cell, e.g. "red ball"; empty for nothing.
        is_open: whether it is an open door.
        heading: that of the agent on the cell, 0 right, 1 down, 2 left, 3 up; None if it is elsewhere.
    """
    below = f"open {thing}" if is_open else thing
    if heading is None:
        return below or EMPTY
    return f"agent {HEADINGS[heading]}" + (f" on {below}" if below else "")


def tile_digest(pixels: npt.NDArray[np.uint8]) -> str:
    """Digest of one tile, (8, 8, 3) uint8."""
    return _digest(np.ascontiguousarray(pixels).tobytes())


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


@dataclass(frozen=True)
class Scene:
    """What one picture shows."""

    things: Mapping[str, Cell]
    """Things that lie in a cell, doors included, e.g. "red ball"."""
    open_doors: frozenset[str]
    agent: Cell
    heading: int
    """0 right, 1 down, 2 left, 3 up."""
    carried: str
    """What the agent holds; empty for nothing."""

    @property
    def seen(self) -> frozenset[str]:
        """All things, with the one that is carried."""
        return frozenset(self.things) | ({self.carried} if self.carried else frozenset())

    @property
    def faced(self) -> str:
        """The thing before the agent; empty for none."""
        row, column = STEPS[self.heading]
        front = self.agent[0] + row, self.agent[1] + column
        return next((thing for thing, cell in self.things.items() if cell == front), "")


class Tiles:
    """The tiles and sizes of pictures that a network was trained on.

    Args:
        names: name of every tile (see `tile_name`, and "black") by its digest.
        grids: rows and columns of the grids, without the row that shows what is carried.

    Raises:
        ValueError: for a name that no tile has.
    """

    def __init__(self, names: Mapping[str, str], grids: Collection[Cell]) -> None:
        things = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
        doors = [thing for thing in things if thing.endswith("door")]
        ways = ["", *doors]
        known = {BLACK, EMPTY, WALL, *things, *(tile_name(door, is_open=True) for door in doors)}
        known |= {tile_name(way, is_open=bool(way), heading=heading) for way in ways for heading in range(len(HEADINGS))}
        if unknown := sorted(set(names.values()) - known):
            raise ValueError(f"no tile is called {unknown[0]!r}")
        self._names = dict(names)
        self._grids = frozenset(grids)
        self._things = frozenset(things)

    def scene(self, picture: npt.NDArray[np.uint8]) -> Scene:
        """What a full picture (H, W, 3) uint8 shows. Raises NotKnown if the network was not trained on such a picture."""
        names = self._named(picture)
        grid, strip = names[:-1], names[-1]
        if (len(grid), len(strip)) not in self._grids:
            raise NotKnown("grid_of_unknown_size")
        if strip[0] not in self._things | {BLACK} or strip[0].endswith("door") or set(strip[1:]) - {BLACK}:
            raise NotKnown("no_strip_below")
        edge = {*grid[0], *grid[-1], *(row[0] for row in grid), *(row[-1] for row in grid)}
        if edge != {WALL}:
            raise NotKnown("no_wall_around")
        cells = {(row, column): name for row, line in enumerate(grid) for column, name in enumerate(line)}
        if BLACK in cells.values():
            raise NotKnown("hidden_cells")
        agents = [cell for cell, name in cells.items() if name.startswith("agent ")]
        if len(agents) != 1:
            raise NotKnown("not_one_agent")
        return self._scene(cells, agents[0], "" if strip[0] == BLACK else strip[0])

    def _scene(self, cells: Mapping[Cell, str], agent: Cell, carried: str) -> Scene:
        heading, _, below = cells[agent].removeprefix("agent ").partition(" on ")
        contents = [(cell, below if cell == agent else name) for cell, name in cells.items()]
        shown = [(name.removeprefix("open "), cell) for cell, name in contents if name not in ("", EMPTY, WALL)]
        if max(Counter([thing for thing, _ in shown] + [carried] * bool(carried)).values(), default=0) > 1:
            raise NotKnown("a_thing_twice")
        open_doors = frozenset(name.removeprefix("open ") for _, name in contents if name.startswith("open "))
        return Scene(dict(shown), open_doors, agent, HEADINGS.index(heading), carried)

    def _named(self, picture: npt.NDArray[np.uint8]) -> list[list[str]]:
        """The name of each tile, row by row. Raises NotKnown."""
        if picture.ndim != 3 or picture.dtype != np.uint8 or picture.shape[2] != 3:
            raise NotKnown("no_rgb_picture")
        height, width, _ = picture.shape
        if not picture.size or height % TILE or width % TILE or height < 2 * TILE:
            raise NotKnown("not_made_of_tiles")
        rows, columns = height // TILE, width // TILE
        data = np.ascontiguousarray(picture.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)).tobytes()
        size = 3 * TILE * TILE
        tiles = [data[start : start + size] for start in range(0, len(data), size)]
        by_pixels = {tile: self._names.get(_digest(tile)) for tile in set(tiles)}
        named = [by_pixels[tile] for tile in tiles]
        if None in named:
            raise NotKnown("unknown_tile")
        return [[name or "" for name in named[row * columns : (row + 1) * columns]] for row in range(rows)]


def scenes_of(tiles: Tiles, pictures: Sequence[npt.NDArray[np.uint8]]) -> list[Scene]:
    """What pictures of one world show, in order. Raises NotKnown if one cannot be judged, or if they are not of one world."""
    if len({picture.shape for picture in pictures}) > 1:
        raise NotKnown("pictures_of_different_sizes")
    scenes = [tiles.scene(picture) for picture in pictures]
    if len({scene.seen for scene in scenes}) > 1:
        raise NotKnown("pictures_of_different_worlds")
    return scenes

"""From frames to the pictures that a rater sees.

`frame_picture` makes one frame a picture, and `tile` does so at the size that raters see. `mosaic` puts the frames of a window into one
picture, in reading order, each with its number in the white margin above it: nothing is ever drawn over a pixel that the rater is to judge.
Small frames are enlarged by an integer factor, pixel by pixel, because raters downscale and misread tiny pictures; only frames above a
limit are shrunk.

A picture's id is the digest of its source frames and of the recipe, so a stored answer stays valid for as long as the picture would come
out the same. Everything is drawn with integer arithmetic and an embedded bitmap font; a golden picture in the tests pins the result for
every machine. Whoever changes the drawing raises `MosaicRecipe.version`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from guerdon.records import Frames, Picture, array_digest, canonical_json, digest

_DIGIT_ROWS = (
    "01110 00100 01110 11111 00010 11111 00110 11111 01110 01110",
    "10001 01100 10001 00010 00110 10000 01000 00001 10001 10001",
    "10011 00100 00001 00100 01010 11110 10000 00010 10001 10001",
    "10101 00100 00010 00010 10010 00001 11110 00100 01110 01111",
    "11001 00100 00100 00001 11111 00001 10001 01000 10001 00001",
    "10001 00100 01000 10001 00010 10001 10001 01000 10001 00010",
    "01110 01110 11111 01110 00010 01110 01110 01000 01110 01100",
)
"""The digits 0 to 9, 5 pixels wide and 7 high, row by row."""

_FONT = np.array([[[bit == "1" for bit in digit] for digit in row.split()] for row in _DIGIT_ROWS]).transpose(1, 0, 2)
"""(10, 7, 5) bool."""


@dataclass(frozen=True, kw_only=True)
class MosaicRecipe:
    """How a mosaic is drawn. Lengths in pixels.

    Raises:
        ValueError: for a length that makes no picture.
    """

    tile: int = 300
    """Size that the longer side of an enlarged frame comes close to."""
    largest: int = 640
    """Frames whose longer side exceeds this are shrunk by an integer factor."""
    gap: int = 4
    """White between frames and around them."""
    columns: int = 0
    """Frames in a row; 0 for as many as make the mosaic about square."""
    digit_scale: int = 2
    """Enlargement of the 5 x 7 digits."""
    version: int = 1
    """Version of the drawing code."""

    def __post_init__(self) -> None:
        if self.tile < 1 or self.largest < 1 or self.gap < 0 or self.columns < 0 or self.digit_scale < 1:
            raise ValueError(f"lengths of a mosaic are positive, got {self}")

    def for_side(self, side: int) -> tuple[int, int]:
        """Factors (enlarge, shrink) for frames whose longer side is `side`; at least one of them is 1."""
        return (1, math.ceil(side / self.largest)) if side > self.largest else (max(1, round(self.tile / side)), 1)


@dataclass(frozen=True)
class _Layout:
    """Where the tiles lie."""

    columns: int
    rows: int
    height: int
    """Of a tile, as the width."""
    width: int
    gap: int
    strip: int
    """Height of the margin above a tile that holds its number."""

    @property
    def canvas(self) -> tuple[int, int, int]:
        """Shape of the whole picture."""
        return self.rows * (self.strip + self.height + self.gap) + self.gap, self.columns * (self.width + self.gap) + self.gap, 3

    def corner(self, number: int) -> tuple[int, int]:
        """Row and column of the upper left pixel of tile `number`."""
        row, column = divmod(number, self.columns)
        down = self.gap + row * (self.strip + self.height + self.gap) + self.strip
        return down, self.gap + column * (self.width + self.gap)


def _layout(count: int, height: int, width: int, recipe: MosaicRecipe) -> _Layout:
    columns = min(recipe.columns or math.ceil(math.sqrt(count)), count)
    strip = 7 * recipe.digit_scale + recipe.gap
    return _Layout(columns, math.ceil(count / columns), height, width, recipe.gap, strip)


def tile_boxes(count: int, height: int, width: int, recipe: MosaicRecipe | None = None) -> list[tuple[int, int, int, int]]:
    """Where `mosaic` draws frames of size (height, width): (top, left, bottom, right) of each tile, the last two exclusive."""
    recipe = recipe or MosaicRecipe()
    enlarge, shrink = recipe.for_side(max(height, width))
    tall, wide = math.ceil(height / shrink) * enlarge, math.ceil(width / shrink) * enlarge
    layout = _layout(count, tall, wide, recipe)
    corners = (layout.corner(number) for number in range(count))
    return [(top, left, top + tall, left + wide) for top, left in corners]


def frame_picture(frame: Frames) -> Picture:
    """One frame (H, W, 3) uint8 as a picture, unchanged. Raises ValueError for another shape or dtype."""
    _check(frame, 3)
    return Picture(array_digest(frame), frame)


def tile(frame: Frames, recipe: MosaicRecipe | None = None) -> Picture:
    """One frame (H, W, 3) uint8 as a mosaic shows it, enlarged or shrunk, without margin and number. Raises ValueError for another shape or
    dtype."""
    recipe = recipe or MosaicRecipe()
    _check(frame, 3)
    whole = mosaic(frame[np.newaxis], recipe)
    ((top, left, bottom, right),) = tile_boxes(1, frame.shape[0], frame.shape[1], recipe)
    return Picture(digest("guerdon tile", whole.id), whole.pixels[top:bottom, left:right].copy())


def mosaic(frames: Frames, recipe: MosaicRecipe | None = None) -> Picture:
    """Frames (N, H, W, 3) uint8 as one picture in reading order, numbered from 0 in the margin; 9 frames make 3 x 3.

    Raises:
        ValueError: for no frames, another shape or dtype.
    """
    recipe = recipe or MosaicRecipe()
    _check(frames, 4)
    identity = digest("guerdon mosaic", canonical_json(asdict(recipe)), *(array_digest(frame) for frame in frames))
    enlarge, shrink = recipe.for_side(max(frames.shape[1:3]))
    tiles = _shrunk(frames, shrink)
    layout = _layout(len(tiles), tiles.shape[1] * enlarge, tiles.shape[2] * enlarge, recipe)
    canvas = np.full(layout.canvas, 255, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = layout.corner(number)
        wide = tile.repeat(enlarge, axis=1) if enlarge > 1 else tile
        # Splitting an axis needs no copy, so this is a view into the canvas: each source row fills `enlarge` rows at once.
        rows = canvas[top : top + layout.height].reshape(len(tile), enlarge, -1, 3)
        rows[:, :, left : left + layout.width] = wide[:, np.newaxis]
        ink = _number(number, recipe.digit_scale)[:, : layout.width]
        canvas[top - layout.strip : top - layout.strip + len(ink), left : left + ink.shape[1]][ink] = 0
    return Picture(identity, canvas)


def _check(array: Frames, dimensions: int) -> None:
    if array.dtype != np.uint8 or array.ndim != dimensions or array.shape[-1] != 3 or 0 in array.shape:
        wanted = "(N, H, W, 3)" if dimensions == 4 else "(H, W, 3)"
        raise ValueError(f"pictures are uint8 {wanted}, got {array.dtype} {array.shape}")


def _shrunk(frames: Frames, factor: int) -> Frames:
    """Means over squares of `factor` pixels, rounded; the last row and column are repeated to fill the last squares."""
    if factor == 1:
        return frames
    down, right = (-size % factor for size in frames.shape[1:3])
    padded = np.pad(frames, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")
    count, height, width, _ = padded.shape
    squares = padded.reshape(count, height // factor, factor, width // factor, factor, 3)
    sums = squares.sum(axis=(2, 4), dtype=np.uint32)
    shrunk: Frames = ((sums + factor * factor // 2) // (factor * factor)).astype(np.uint8)
    return shrunk


def _number(number: int, scale: int) -> npt.NDArray[np.bool_]:
    """The ink of `number`: bool (7 * scale, ...), one blank column after each digit."""
    digits = [np.pad(_FONT[int(character)], ((0, 0), (0, 1))) for character in str(number)]
    return np.concatenate(digits, axis=1).repeat(scale, axis=0).repeat(scale, axis=1)

"""Mosaics: every frame is there pixel for pixel, numbers stay in the margin, and the drawing never changes unnoticed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guerdon.frames import MosaicRecipe, frame_picture, mosaic, tile, tile_boxes
from guerdon.records import Frames, PictureFormat, array_digest

GOLDEN = Path(__file__).parent / "data" / "mosaic.png"


def noise(count: int, height: int, width: int) -> Frames:
    return np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def golden_frames() -> Frames:
    """Twelve frames without random numbers, so that all digits and two-digit numbers are drawn."""
    count, height, width = np.ogrid[:12, :9, :12]
    channels = [20 * count + 0 * height + 0 * width, 25 * height + 0 * count + 0 * width, 20 * width + 0 * count + 0 * height]
    return np.stack([channel.astype(np.uint8) for channel in channels], axis=-1)


def test_a_mosaic_equals_the_golden_picture() -> None:
    drawn = mosaic(golden_frames(), MosaicRecipe(tile=36))
    golden = np.asarray(Image.open(GOLDEN))
    assert np.array_equal(drawn.pixels, golden), "the drawing changed: raise MosaicRecipe.version and renew tests/data/mosaic.png"
    assert drawn.id == "s256:404123e0713dfc0d5b239827efc4d2ed55252901f2c5c300a0de1e18662934d2"


@pytest.mark.parametrize(("side", "factor"), [(8, 38), (56, 5), (64, 5), (224, 1), (300, 1), (640, 1)])
def test_every_tile_is_its_frame_enlarged_by_a_whole_factor(side: int, factor: int) -> None:
    frames = noise(3, side, side - 2)
    picture = mosaic(frames)
    for frame, (top, left, bottom, right) in zip(frames, tile_boxes(3, side, side - 2), strict=True):
        tile = picture.pixels[top:bottom, left:right]
        assert tile.shape == (side * factor, (side - 2) * factor, 3)
        assert np.array_equal(tile, np.kron(frame, np.ones((factor, factor, 1), np.uint8)))


def test_nine_frames_of_56_make_a_square_of_three_by_three() -> None:
    recipe = MosaicRecipe()
    boxes = tile_boxes(9, 56, 56)
    # margin 4, number strip 2 * 7 + 4 = 18, tile 5 * 56 = 280, gap 4
    assert boxes[0] == (22, 4, 302, 284)
    assert boxes[1] == (22, 288, 302, 568)
    assert boxes[3] == (324, 4, 604, 284)
    assert mosaic(noise(9, 56, 56), recipe).pixels.shape == (4 + 3 * (18 + 280 + 4), 4 + 3 * (280 + 4), 3)


def test_outside_the_tiles_there_is_white_and_the_ink_of_numbers_only() -> None:
    frames = noise(12, 30, 40)
    pixels = mosaic(frames).pixels.copy()
    ink = []
    for top, left, bottom, right in tile_boxes(12, 30, 40):
        pixels[top:bottom, left:right] = 255
        strip = pixels[top - 18 : top, left:right]
        ink.append(int((strip == 0).all(axis=-1).sum()))
        strip[:] = 255
    assert (pixels == 255).all()
    # Pixels of ink of the digits 0 .. 9 in the 5 x 7 font, enlarged twice (4 pixels each): counted by hand.
    digits = [19, 10, 14, 14, 14, 17, 15, 11, 17, 15]
    assert ink == [4 * count for count in [*digits, digits[1] + digits[0], digits[1] + digits[1]]]


def test_large_frames_are_shrunk_by_means_of_squares() -> None:
    frames = np.zeros((1, 4, 5, 3), np.uint8)
    frames[0, :, :, 0] = [[0, 1, 10, 20, 7], [2, 4, 30, 40, 8], [255, 255, 0, 0, 9], [255, 255, 0, 3, 9]]
    recipe = MosaicRecipe(largest=3, gap=0, digit_scale=1)
    (box,) = tile_boxes(1, 4, 5, recipe)
    top, left, bottom, right = box
    tile = mosaic(frames, recipe).pixels[top:bottom, left:right, 0]
    # (0+1+2+4)/4 = 1.75, (10+20+30+40)/4 = 25, (7+7+8+8)/4 = 7.5 up; 255; 3/4; 9
    assert tile.tolist() == [[2, 25, 8], [255, 1, 9]]


def test_the_id_depends_on_frames_their_order_and_the_recipe() -> None:
    frames = noise(4, 6, 6)
    changed = frames.copy()
    changed[3, 5, 5, 2] ^= 1
    ids = [mosaic(frames).id, mosaic(frames[::-1]).id, mosaic(changed).id, mosaic(frames[:3]).id]
    others = {"tile": 60, "largest": 5, "gap": 5, "columns": 1, "digit_scale": 3, "version": 2}
    assert others.keys() == asdict(MosaicRecipe()).keys()
    ids += [mosaic(frames, replace(MosaicRecipe(), **{name: value})).id for name, value in others.items()]
    assert len(set(ids)) == len(ids) == 10
    assert mosaic(frames.copy(), MosaicRecipe()).id == ids[0]


def test_columns_can_be_given() -> None:
    assert {box[0] for box in tile_boxes(9, 56, 56, MosaicRecipe(columns=9))} == {22}
    assert len({box[0] for box in tile_boxes(9, 56, 56, MosaicRecipe(columns=2))}) == 5


def test_a_single_frame_is_itself() -> None:
    frame = noise(1, 5, 7)[0]
    picture = frame_picture(frame)
    assert picture.id == array_digest(frame)
    assert picture.pixels is frame


def test_png_is_lossless() -> None:
    from io import BytesIO

    picture = mosaic(noise(9, 56, 56))
    assert np.array_equal(np.asarray(Image.open(BytesIO(picture.encoded(PictureFormat())))), picture.pixels)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (4, 4, 3), (2, 4, 4, 1), (2, 0, 4, 3)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pictures are uint8"):
        mosaic(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="got float64"):
        frame_picture(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="lengths of a mosaic"):
        MosaicRecipe(tile=0)


@given(count=st.integers(1, 12), height=st.integers(1, 40), width=st.integers(1, 40), columns=st.integers(0, 5), tile=st.integers(1, 90))
def test_tiles_never_overlap_and_lie_inside(count: int, height: int, width: int, columns: int, tile: int) -> None:
    recipe = MosaicRecipe(columns=columns, tile=tile, largest=30)
    pixels = mosaic(noise(count, height, width), recipe).pixels
    covered = np.zeros(pixels.shape[:2], int)
    for top, left, bottom, right in tile_boxes(count, height, width, recipe):
        assert 18 <= top < bottom <= pixels.shape[0]
        assert 4 <= left < right <= pixels.shape[1]
        covered[top - 18 : bottom, left:right] += 1
    assert covered.max() == 1


@pytest.mark.parametrize(("height", "width", "shape"), [(20, 30, (200, 300, 3)), (700, 1400, (234, 467, 3))])
def test_a_tile_is_what_a_mosaic_shows_without_margin_and_number(height: int, width: int, shape: tuple[int, int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    alone, whole = tile(frame), mosaic(frame[None])
    ((top, left, bottom, right),) = tile_boxes(1, height, width)
    assert alone.pixels.shape == shape
    np.testing.assert_array_equal(alone.pixels, whole.pixels[top:bottom, left:right])
    assert len({alone.id, whole.id, frame_picture(frame).id, tile(frame, MosaicRecipe(tile=100)).id}) == 4
    if height == 20:
        np.testing.assert_array_equal(alone.pixels[::10, ::10], frame)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from wsol.ops import boxes
from wsol.ops.normalize import minmax, relu_max
from wsol.ops.palette import voc_palette
from wsol.ops.resize import resize_maps, resize_mask
from wsol.ops.rle import decode, encode

MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=6),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False),
)
BOXES = hnp.arrays(np.float32, st.tuples(st.integers(0, 4), st.just(4)), elements=st.integers(0, 20))


@given(MAPS)
def test_minmax_fills_the_unit_interval_and_keeps_order(values):
    out = minmax(values)
    assert out.dtype == values.dtype
    for plane, before in zip(out, values):
        if before.min() == before.max():
            assert (plane == 0).all()
        else:
            assert plane.min() == 0
            assert plane.max() == 1
            assert (np.diff(plane.ravel()[np.argsort(before.ravel(), kind="stable")]) >= 0).all()


@given(MAPS)
def test_relu_max_is_zero_exactly_where_evidence_is_not_positive(values):
    out = relu_max(values)
    assert ((out > 0) <= (values > 0)).all()
    for plane, before in zip(out, values):
        assert plane.max() == (1 if before.max() > 0 else 0)


@pytest.mark.parametrize("normalize", [minmax, relu_max])
def test_nan_and_infinity_never_leave(normalize):
    values = np.ones((3, 2, 3), np.float32)
    values[0, 0, 0], values[1, 1, 1], values[2, 0, 1] = np.nan, np.inf, 2
    out = normalize(values)
    assert np.isfinite(out).all()
    assert out[2].max() == 1


def test_normalizing_does_not_change_the_input():
    values = np.arange(12, dtype=np.float32).reshape(1, 3, 4) - 5
    before = values.copy()
    minmax(values)
    relu_max(values)
    assert (values == before).all()


def test_palette_is_vocs():
    expected = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for index, colour in expected.items():
        assert tuple(voc_palette()[index]) == colour


@given(BOXES, BOXES)
def test_iou_equals_pycocotools(first, second):
    first[:, 2:] += first[:, :2]
    second[:, 2:] += second[:, :2]
    got = boxes.iou(first, second)
    for i, a in enumerate(first.astype(float)):
        for j, b in enumerate(second.astype(float)):
            xywh = [np.array([[*box[:2], *(box[2:] - box[:2])]]) for box in (a, b)]
            oracle = coco_mask.iou(*xywh, [0])[0, 0] if np.prod(xywh[0][0, 2:]) + np.prod(xywh[1][0, 2:]) else 0.0
            assert got[i, j] == pytest.approx(oracle, abs=1e-9)


@given(BOXES)
def test_inclusive_boxes_round_trip(values):
    assert (boxes.to_inclusive(boxes.from_inclusive(values)) == values).all()


def test_largest_component_is_eight_connected_and_tight():
    mask = np.zeros((5, 9), bool)
    mask[0, 0] = mask[1, 1] = mask[2, 2] = True  # one diagonal component of three pixels
    mask[4, 7:9] = True
    assert boxes.largest_component_box(mask).tolist() == [[0, 0, 3, 3]]
    assert boxes.largest_component_box(np.zeros((3, 4), bool)).shape == (0, 4)


def _components(mask):
    """Fill the 8-connected components one after the other, in the raster order of their first pixels."""
    left, found = set(zip(*np.nonzero(mask))), []
    for first in sorted(left):
        front, component = {first} & left, set()
        while front:
            component |= front
            left -= front
            front = {(y + dy, x + dx) for y, x in front for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
        if component:
            found.append(component)
    return found


@given(hnp.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 9))))
@example(np.array([[0, 0, 1], [1, 0, 0]], bool))  # two pixels in the same row of OpenCV's blocks of 2x2
def test_of_equally_large_components_the_first_in_raster_order_wins(mask):
    got = boxes.largest_component_box(mask).tolist()
    if not mask.any():
        assert got == []
        return
    rows, columns = zip(*max(_components(mask), key=len))
    assert got == [[min(columns), min(rows), max(columns) + 1, max(rows) + 1]]


@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 7))))
def test_rle_round_trips(mask):
    assert (decode(encode(mask)) == mask).all()
    assert encode(mask)["size"] == list(mask.shape)


def test_resizing_is_height_first_and_does_not_mix_planes():
    values = np.stack([np.zeros((2, 3)), np.ones((2, 3))])
    out = resize_maps(values, (5, 11), interpolation="bicubic")
    assert out.shape == (2, 5, 11)
    assert out.dtype == np.float64
    assert np.allclose(out[0], 0)
    assert np.allclose(out[1], 1)


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_mask_resize_takes_the_documented_source_pixel(source, target):
    mask = (np.arange(source[0])[:, None] * 7 + np.arange(source[1]) * 3).astype(np.uint8)
    index = [
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))), old - 1).astype(int)
        for old, new in zip(source, target)
    ]
    assert (resize_mask(mask, target) == mask[np.ix_(*index)]).all()


def test_palette_png_opens_with_the_same_indices(tmp_path):
    from wsol.store.masks import encode_mask

    labels = np.arange(15, dtype=np.uint8).reshape(3, 5)
    labels[0, 0] = 255
    path = tmp_path / "m.png"
    path.write_bytes(encode_mask(labels))
    with Image.open(path) as image:
        assert image.mode == "P"
        assert (np.asarray(image) == labels).all()
        assert image.convert("RGB").getpixel((1, 0)) == (128, 0, 0)

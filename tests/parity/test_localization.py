"""Every number of the WSOL benchmark's own evaluation code on 69 maps: integers equal, fractions within 1e-12."""

from __future__ import annotations

import numpy as np
import pytest

from wsol.eval.boxes import level_curve
from wsol.eval.pixels import PixelCounts, combine_masks
from wsol.eval.protocols import ALL, LARGEST
from wsol.eval.scoremap import quantise, scale_boxes, threshold_levels
from wsol.ops.boxes import from_inclusive
from wsol.ops.components import contour_boxes, largest_contour_boxes
from wsol.ops.normalize import minmax

pytestmark = pytest.mark.parity
SIDE = 48
PREFIXES = {"i001": 0.001, "i01": 0.01}
VIEWS = {"v1": LARGEST, "v2": ALL}


@pytest.fixture(scope="module")
def kit(golden):
    path = golden / "wsol" / "golden_48.npz"
    if not path.is_file():
        pytest.skip("no golden_48.npz")
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def truth(kit):
    ends = np.cumsum(kit["gt_n"])[:-1]
    rows = np.split(kit["gt_boxes_orig"], ends)
    return [
        scale_boxes(from_inclusive(boxes), image_size=(size[1], size[0]), size=(SIDE, SIDE), view=LARGEST)
        for boxes, size in zip(rows, kit["image_size_wh"], strict=True)
    ]


def _unpack(bits, length):
    return np.unpackbits(bits, axis=-1)[..., :length].astype(bool)


def test_maps_are_normalised_and_quantised_alike(kit):
    for raw, scoremap, direct, levels in zip(kit["raw"], kit["scoremap"], kit["is_direct"], kit["u8"], strict=True):
        if not direct:
            np.testing.assert_array_equal(minmax(raw), scoremap)
        np.testing.assert_array_equal(quantise(scoremap), levels)


def test_boxes_are_resized_alike(kit, truth):
    np.testing.assert_array_equal(np.concatenate(truth), kit["gt_boxes_resized"])


@pytest.mark.parametrize("prefix", PREFIXES)
def test_largest_boxes(kit, prefix):
    thresholds = kit[f"{prefix}_cam_thresholds"]
    np.testing.assert_array_equal(thresholds, np.arange(0, 1, PREFIXES[prefix]))
    for levels, expected in zip(kit["u8"], kit[f"{prefix}_v1_boxes"], strict=True):
        boxes = largest_contour_boxes(levels)[threshold_levels(thresholds, int(levels.max()))]
        boxes[:, 2:] = np.minimum(boxes[:, 2:], SIDE - 1)
        np.testing.assert_array_equal(boxes, expected)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_number_of_contours(kit, prefix):
    for levels, expected in zip(kit["u8"], kit[f"{prefix}_v2_num_boxes"], strict=True):
        at = threshold_levels(kit[f"{prefix}_cam_thresholds"], int(levels.max()))
        np.testing.assert_array_equal(np.maximum(contour_boxes(levels).count()[at], 1), expected)


def test_all_contours(kit):
    boxes = np.split(kit["i01_v2_boxes_concat"], np.cumsum(kit["i01_v2_boxes_per_map"])[:-1])
    for levels, expected, counts in zip(kit["u8"], boxes, kit["i01_v2_num_boxes"], strict=True):
        found = contour_boxes(levels)
        at = threshold_levels(kit["i01_cam_thresholds"], int(levels.max()))
        for threshold, rows in zip(at, np.split(expected, np.cumsum(counts)[:-1]), strict=True):
            ours = np.minimum(found.at(int(threshold)), [SIDE, SIDE, SIDE - 1, SIDE - 1]).tolist() or [[0, 0, 0, 0]]
            assert sorted(ours) == sorted(rows.tolist())


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("view", VIEWS)
def test_iou_and_counts(kit, truth, prefix, view):
    thresholds, key = kit[f"{prefix}_cam_thresholds"], f"{prefix}_{view}"
    ious = np.stack(
        [
            level_curve(levels, boxes, view=VIEWS[view]).at(thresholds)
            for levels, boxes in zip(kit["u8"], truth, strict=True)
        ]
    )
    np.testing.assert_array_equal(ious, kit[f"{key}_best_iou"])
    correct = np.stack([ious >= iou / 100 for iou in (30, 50, 70)], axis=1)
    np.testing.assert_array_equal(correct, _unpack(kit[f"{key}_correct"], len(thresholds)))
    np.testing.assert_array_equal(correct.sum(axis=0), kit[f"{key}_num_correct"])
    accuracy = (100 * correct.sum(axis=0) / len(ious)).max(axis=1)
    np.testing.assert_allclose(accuracy, kit[f"{key}_maxboxacc"], rtol=0, atol=1e-12)


def test_masks_are_combined_alike(kit):
    sizes = kit["mask_index_img_inst_h_w"]
    instances, at = {number: [] for number in range(len(kit["names"]))}, 0
    first = {}
    for number, _, height, width in sizes:
        first.setdefault(number, (height, width))
        count = -(-height * width // 8)
        bits = np.unpackbits(kit["mask_bits"][at : at + count])[: height * width]
        instances[number].append(bits.reshape(height, width))
        at += count
    at = 0
    for number, expected in enumerate(kit["mask_combined"]):
        height, width = first[number]
        count = -(-height * width // 8)
        ignored = np.unpackbits(kit["ignore_bits"][at : at + count])[: height * width].reshape(height, width)
        at += count
        np.testing.assert_array_equal(combine_masks(instances[number], ignored, size=(SIDE, SIDE)), expected)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_pxap(kit, prefix):
    counts = PixelCounts(PREFIXES[prefix])
    for scoremap, mask in zip(kit["scoremap"], kit["mask_combined"], strict=True):
        counts.add(scoremap, mask)
    np.testing.assert_array_equal(counts.counts[1], kit[f"{prefix}_hist_true"])
    np.testing.assert_array_equal(counts.counts[0], kit[f"{prefix}_hist_false"])
    assert abs(counts.pxap() - float(kit[f"{prefix}_pxap"])) <= 1e-12

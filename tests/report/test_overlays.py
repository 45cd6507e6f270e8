import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol.errors import DataError
from wsol.ops.palette import voc_palette
from wsol.report import overlays
from wsol.schema import Boxes

SIZES = [(1, 1), (1, 37), (53, 3), (41, 67), (213, 119), (601, 799)]


def photo(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def frozen(array):
    """An array that raises when somebody writes to it."""
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("size", SIZES)
def test_every_overlay_keeps_size_type_and_input(size):
    image = frozen(photo(size))
    score = frozen(np.random.default_rng(1).random(size, dtype=np.float32))
    labels = frozen(np.random.default_rng(2).choice(np.array([0, 1, 7, 255], dtype=np.uint8), size))
    boxes = frozen(np.array([[-5, -5, size[1] * 0.7, size[0] * 0.6], [0, 0, 1, 1]], dtype=np.float32))
    results = [
        overlays.heatmap(image, score),
        overlays.mask_overlay(image, labels),
        overlays.draw_boxes(image, boxes, names=["cat", "dog"], truth=boxes + 3),
        overlays.label_text(image, "some text", corner="bottom-right"),
        overlays.shrink(image, width=10_000),
    ]
    for result in results:
        assert result.shape == image.shape
        assert result.dtype == np.uint8
        assert not np.shares_memory(result, image)
    np.testing.assert_array_equal(image, photo(size))


def test_heatmap_is_the_stated_blend():
    image = photo((5, 7))
    score = np.zeros((5, 7))
    score[2, 3] = 1.0
    np.testing.assert_array_equal(overlays.heatmap(image, score, opacity=0.0), image)
    jet = overlays.heatmap(image, score, opacity=1.0)
    assert jet[0, 0].tolist() == [0, 0, 128]  # jet runs from dark blue to dark red
    assert jet[2, 3].tolist() == [128, 0, 0]
    half = overlays.heatmap(image, score, opacity=0.25)
    np.testing.assert_allclose(half[0, 0], 0.75 * image[0, 0] + 0.25 * np.array([0, 0, 128]), atol=0.51)


@pytest.mark.parametrize("colormap", ["jet", "turbo", "viridis"])
def test_colormaps_exist(colormap):
    assert overlays.heatmap(photo((4, 9)), np.full((4, 9), 0.5), colormap=colormap).shape == (4, 9, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda image: overlays.heatmap(image, np.zeros((3, 3))),
        lambda image: overlays.heatmap(image, np.full((4, 9), np.nan)),
        lambda image: overlays.heatmap(image, np.full((4, 9), 1.5)),
        lambda image: overlays.heatmap(image, np.zeros((4, 9)), opacity=1.5),
        lambda image: overlays.heatmap(image, np.zeros((4, 9)), colormap="rainbow"),
        lambda image: overlays.heatmap(image.astype(float), np.zeros((4, 9))),
        lambda image: overlays.mask_overlay(image, np.zeros((9, 4), dtype=np.uint8)),
        lambda image: overlays.mask_overlay(image, np.zeros((4, 9), dtype=np.int64)),
        lambda image: overlays.draw_boxes(image, np.array([[0, 0, np.nan, 2]])),
        lambda image: overlays.draw_boxes(image, np.zeros((2, 3))),
        lambda image: overlays.draw_boxes(image, np.zeros((2, 4)), names=["one"]),
        lambda image: overlays.draw_boxes(image, np.zeros((2, 4)), colours=[(1, 2, 3)]),
        lambda image: overlays.draw_boxes(image, Boxes(np.ones((1, 4)), [3], [0.5]), names=["a", "b"]),
        lambda image: overlays.contact_sheet([]),
        lambda image: overlays.contact_sheet([image], captions=[]),
        lambda image: overlays.contact_sheet([image], columns=50, width=100),
        lambda image: overlays.contact_sheet([image], columns=0),
    ],
)
def test_mistakes_are_refused(call):
    with pytest.raises(DataError):
        call(photo((4, 9)))


def test_mask_overlay_leaves_background_and_paints_regions_in_voc_colours():
    image, labels = photo((61, 83)), np.zeros((61, 83), dtype=np.uint8)
    labels[20:50, 20:60] = 12
    labels[:10] = 255
    result = overlays.mask_overlay(image, labels, opacity=1.0)
    np.testing.assert_array_equal(result[labels == 0], image[labels == 0])
    assert result[35, 40].tolist() == voc_palette()[12].tolist()
    assert result[20, 40].tolist() == ((voc_palette()[12].astype(int) + 255) // 2).tolist()  # the border line
    assert (result[:10] != image[:10]).any(axis=-1).mean() > 0.9  # hatched


def test_boxes_are_half_open_and_cut_at_the_image():
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    drawn = overlays.draw_boxes(image, np.array([[10.0, 5.0, 30.0, 25.0]]))
    rows, columns = np.where((drawn == overlays.PREDICTED).all(axis=-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 24, 10, 29)
    drawn = overlays.draw_boxes(image, np.array([[-100.0, 20.0, 30.0, 400.0]]))
    rows, columns = np.where((drawn == overlays.PREDICTED).all(axis=-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 0, 29)


@pytest.mark.parametrize("box", [[60, 5, 90, 20], [-20, 5, 0, 20], [10, 10, 10, 20], [30, 5, 20, 20]])
def test_boxes_without_a_pixel_are_not_drawn(box):
    image = photo((40, 60))
    np.testing.assert_array_equal(overlays.draw_boxes(image, np.array([box], dtype=float), names=["x"]), image)


def test_truth_and_prediction_differ_in_colour_and_dashes():
    image, box = np.zeros((300, 400, 3), dtype=np.uint8), np.array([[50.0, 60.0, 350.0, 260.0]])
    predicted = (overlays.draw_boxes(image, box) == overlays.PREDICTED).all(axis=-1).sum()
    true = (overlays.draw_boxes(image, box[:0], truth=box) == overlays.TRUTH).all(axis=-1).sum()
    assert 0.3 < true / predicted < 0.8


def test_names_come_with_scores_and_no_boxes_draw_nothing():
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    boxes = Boxes(np.array([[50, 60, 350, 260]]), [1], [0.5])
    plain = overlays.draw_boxes(image, boxes.xyxy)
    named = overlays.draw_boxes(image, boxes, names=["cat", "dog"])
    assert (plain != named).any()
    assert (named != overlays.draw_boxes(image, boxes, names=["cat", "cow"])).any()
    np.testing.assert_array_equal(overlays.draw_boxes(image, Boxes(np.zeros((0, 4)), [], []), names=["a"]), image)
    np.testing.assert_array_equal(overlays.draw_boxes(image, []), image)


def test_labels_of_equal_boxes_do_not_cover_each_other():
    image, box = np.zeros((300, 400, 3), dtype=np.uint8), [50.0, 100.0, 350.0, 260.0]
    red, green = (250, 0, 0), (0, 250, 0)
    both = overlays.draw_boxes(image, np.array([box, box]), names=["first", "second"], colours=[red, green])
    strips = [(both == colour).all(axis=-1) for colour in (red, green)]
    assert min(strip[:, 60:90].sum() for strip in strips) > 200


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.lists(st.tuples(*[st.floats(-150, 150, width=32)] * 4), max_size=4),
    st.text(max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_any_box_and_text_on_any_size(height, width, boxes, text):
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    image = frozen(photo((height, width)))
    assert overlays.draw_boxes(image, array, names=[text] * len(array), truth=array).shape == image.shape
    assert overlays.label_text(image, text, corner="top-right").shape == image.shape


@pytest.mark.parametrize("corner", ["top-left", "top-right", "bottom-left", "bottom-right"])
def test_label_text_stays_in_its_corner(corner):
    image = np.full((301, 407, 3), 200, dtype=np.uint8)
    rows, columns = np.where((overlays.label_text(image, "cat", corner=corner) != image).any(axis=-1))
    assert (rows.max() < 60) if corner.startswith("top") else (rows.min() > 240)
    assert (columns.max() < 120) if corner.endswith("left") else (columns.min() > 287)


def test_shrink_keeps_the_aspect_and_never_enlarges():
    assert overlays.shrink(photo((301, 407)), width=100).shape == (74, 100, 3)
    assert overlays.shrink(photo((900, 30)), width=100, height=150).shape == (150, 5, 3)
    assert overlays.shrink(photo((3, 2001)), width=100).shape == (1, 100, 3)
    assert overlays.shrink(photo((20, 30)), width=100).shape == (20, 30, 3)


def test_contact_sheet_geometry():
    images = [np.full((h, w, 3), value, dtype=np.uint8) for h, w, value in [(50, 100, 10), (100, 50, 20), (1, 1, 30)]]
    sheet = overlays.contact_sheet(images, columns=2, width=218, gap=6)
    cell = (218 - 3 * 6) // 2
    assert cell == 100
    assert sheet.shape == (6 + 100 + 6 + 100 + 6, 218, 3)  # both rows hold a picture as high as the cell
    for value, (row, column), (height, width) in [
        (10, (6, 6), (50, 100)),
        (20, (6, 112 + 25), (100, 50)),
        (30, (112, 6), (100, 100)),
    ]:
        rows, columns = np.where((sheet == value).all(axis=-1))
        assert (rows.min(), columns.min()) == (row, column)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (height, width)
    captioned = overlays.contact_sheet(images, columns=2, width=218, gap=6, captions=["one", "a very long one" * 9, ""])
    assert captioned.shape == (218 + 2 * 24, 218, 3)
    assert (captioned[106:130, 6:106] < 100).any()

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from wsol.errors import DataError, StoreError
from wsol.report import html, overlays, plots

HOSTILE = "<script>alert(1)</script>\" onerror='x' & {{ 7 * 7 }} </style>"


def photo(size, seed=0):
    """A textured photo: noise that is stronger at low frequencies, as in real ones."""
    generator = np.random.default_rng(seed)
    image = np.zeros((*size, 3), dtype=np.float32)
    for level in range(5):
        small = generator.normal(0, 6 * 2**level, (max(1, size[0] >> level), max(1, size[1] >> level), 3))
        image += cv2.resize(small.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(image / 4 + 128, 0, 255).astype(np.uint8)


class Page(HTMLParser):
    """Collects tags and text, and checks that tags close in order."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def full_report(path, word="word", **options):
    curve = {"x": [0.0, 0.5, 1.0], "y": [10.0, 30.0, 20.0]}
    picture = html.Figure(photo((31, 47)), f"caption {word}", f"alt {word}")
    html.write_report(
        path,
        title=f"title {word}",
        lead=f"lead {word}",
        facts={f"fact {word}": f"value {word}", "seed": 0},
        tiles=[html.Tile(f"label {word}", f"1 {word}", f"note {word}"), html.Tile("b", "2")],
        sections=[
            html.Gallery(f"gallery {word}", [[picture] * 3, [picture] * 2], [f"row {word}", "b"], f"note {word}"),
            html.Gallery("flat", [[picture] * 4]),
            html.Table(
                f"table {word}",
                ["name", f"column {word}", "seconds"],
                [[f"cell {word}", 1.25, 3], ["b", 2.0, None], ["c", float("nan"), 12_345], ["d", np.float32(2), 1]],
                {f"column {word}": "max", "seconds": "min"},
                note=f"note {word}",
            ),
            html.Plot(f"plot {word}", [html.Figure(plots.threshold_curve({word: curve}, {word: 0.5}), word, word)]),
            html.Text(f"text {word}", [f"paragraph {word}", "second"]),
            html.Text("careful", [f"warning {word}"], warning=True),
            html.Command(f"command {word}", f"wsol demo {word}\nwsol eval", f"note {word}"),
        ],
        **options,
    )
    return path.read_text(encoding="utf-8")


def test_every_kind_of_section_is_on_the_page(tmp_path):
    page = Page(full_report(tmp_path / "deep" / "index.html"))
    text = "".join(page.text)
    for part in ("title", "lead", "fact", "value", "label", "caption", "row", "cell", "paragraph", "warning", "note"):
        assert f"{part} word" in text
    assert "wsol demo word\nwsol eval" in text
    links = [attrs["href"] for attrs in page.all("a")]
    assert links == [f"#s{i}" for i in range(1, 8)]
    assert [attrs["id"] for attrs in page.all("section")] == [link[1:] for link in links]
    assert len([attrs for attrs in page.all("img") if attrs.get("src")]) == 9
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["index.html"]


def test_pictures_decode_to_what_was_given(tmp_path):
    page = Page(full_report(tmp_path / "index.html", quality=95))
    attrs = next(attrs for attrs in page.all("img") if attrs.get("src"))
    assert (attrs["width"], attrs["height"], attrs["alt"]) == ("47", "31", "alt word")
    data = base64.b64decode(attrs["src"].removeprefix("data:image/webp;base64,"))
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(decoded.astype(int) - photo((31, 47))).mean() < 8  # red and blue are not exchanged


def test_hostile_text_stays_text(tmp_path):
    text = full_report(tmp_path / "index.html", HOSTILE)
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "{{ 7 * 7 }}" in "".join(page.text)
    assert f"alt {HOSTILE}" in [attrs.get("alt") for attrs in page.all("img")]


def test_page_needs_nothing_from_elsewhere(tmp_path):
    text = full_report(tmp_path / "index.html")
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for tag, attrs in Page(text).tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert re.match(r"data:|#|$", attrs.get(name) or ""), (tag, attrs)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_best_values_are_bold_and_missing_ones_dashes(tmp_path):
    text = full_report(tmp_path / "index.html")
    assert re.findall(r"<strong>(.*?)</strong>", text) == ["2.0", "2.0", "1"]
    assert text.count(">–</td>") == 2
    assert ">12,345</td>" in text


def size_of_report(path, pictures):
    figures = [html.Figure(picture, f"image {index}") for index, picture in enumerate(pictures)]
    html.write_report(path, title="many", sections=[html.Gallery("all", [figures])], width=160)
    return path.stat().st_size


def test_pictures_are_embedded_small(tmp_path):
    pictures = [photo((375, 500), seed) for seed in range(5)]
    one, six = size_of_report(tmp_path / "1.html", pictures[:1]), size_of_report(tmp_path / "6.html", pictures[:1] * 6)
    assert 2_000 < (six - one) / 5 < 10_000


@pytest.mark.realdata
def test_a_thousand_photos_and_maps_stay_below_5_mb(tmp_path, real_data):
    files = sorted((real_data / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("*.jpg"))[::8]
    photos = [cv2.imread(str(file))[..., ::-1] for file in files]
    score = [np.outer(np.hanning(image.shape[0]), np.hanning(image.shape[1])) for image in photos]
    pictures = photos + [overlays.heatmap(*pair) for pair in zip(photos, score, strict=True)]
    assert size_of_report(tmp_path / "index.html", pictures) / len(pictures) < 5_000


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (333, 777)])
def test_odd_pictures_fit(tmp_path, size):
    path = tmp_path / "index.html"
    html.write_report(path, title="t", sections=[html.Gallery("g", [[html.Figure(photo(size))]])], width=100)
    (attrs, _) = Page(path.read_text()).all("img")
    assert 1 <= int(attrs["width"]) <= 100
    assert 1 <= int(attrs["height"]) <= 150


def test_empty_report_and_mistakes(tmp_path):
    html.write_report(tmp_path / "a.html", title="nothing yet", sections=[html.Gallery("none", [])])
    Page((tmp_path / "a.html").read_text())
    with pytest.raises(DataError):
        html.Gallery("g", [[]], ["a", "b"])
    with pytest.raises(DataError):
        html.Table("t", ["a", "b"], [["x"]])
    with pytest.raises(DataError, match="'c'"):
        html.Table("t", ["a", "b"], [], {"c": "max"})
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        html.write_report(tmp_path / "file" / "index.html", title="t")


def test_a_failing_picture_leaves_the_old_page(tmp_path):
    path = tmp_path / "index.html"
    html.write_report(path, title="old")
    with pytest.raises(DataError):
        html.write_report(path, title="new", sections=[html.Gallery("g", [[html.Figure(np.zeros((3, 3)))]])])
    assert "old" in path.read_text()

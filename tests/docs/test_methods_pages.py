"""The method pages: every method has a formula, a picture, a cost and a figure, or says why not; all of it offline."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from wsol import cams, refine
from wsol.cli import cite
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import load_classifier

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROOMS = ("wsol.cams", "wsol.refine", "wsol.mix")
MATH = "{http://www.w3.org/1998/Math/MathML}"


@pytest.fixture(scope="module")
def extension():
    """The modules of docs/_ext by name."""
    sys.path.insert(0, str(DOCS / "_ext"))
    yield importlib.import_module
    sys.path.remove(str(DOCS / "_ext"))


@pytest.fixture(scope="module")
def pages(extension):
    return extension("reference_pages")


@pytest.fixture
def mathml(extension):
    pytest.importorskip("latex2mathml")
    return extension("mathml").mathml


def methods(*rooms):
    return [(room, name) for room in rooms for name in cite.registry(room).names()]


@pytest.mark.parametrize(("room", "name"), methods(*ROOMS))
def test_every_formula_becomes_mathml(room, name, pages, mathml):
    for statement in re.split(r"\\q?quad", pages.notes()[name]["formula"]):
        root = ElementTree.fromstring(mathml(statement.strip(), display=True))
        assert root.tag == MATH + "math"
        text = "".join(root.itertext())
        assert text
        assert not set(text) & set("\\{}$&") - {"{"}  # the brace of cases
        assert not root.findall(".//*[@mathvariant='script']")


def test_mathml_has_what_browsers_show(mathml):
    letters = {r"\mathcal L": "ℒ", r"\mathcal M": "ℳ", r"\mathcal N": "𝒩", r"\mathbb{1}": "𝟙"}
    for latex, letter in letters.items():
        assert "".join(ElementTree.fromstring(mathml(latex, display=False)).itertext()) == letter
    assert [node.text for node in ElementTree.fromstring(mathml(r"a \sim b", display=True)).iter(MATH + "mo")] == ["∼"]
    for unknown in (r"\frobnicate x", r"a\!b"):
        with pytest.raises(ValueError, match="no MathML"):
            mathml(unknown, display=True)


@pytest.mark.parametrize(("room", "name"), methods("wsol.cams", "wsol.refine"))
def test_cost_and_figures_or_why_not(room, name, pages):
    note = pages.notes()[name]
    assert note["cost"]
    assert note["needs"]
    figures = pages.measured(name, (DOCS / "results.md").read_text(encoding="utf-8"))
    assert bool(figures) != bool(note.get("no_number")), name


def test_figures_of_no_refinement_are_those_of_the_threshold(pages):
    table = "## Refiners\n| refiner | mIoU |\n|---|---|\n| none (threshold) | 36.9 |\n| densecrf (`clipes`) | 41.8 |\n"
    assert pages.measured("threshold", table) == ["Refiners: mIoU 36.9"]
    assert pages.measured("densecrf", table) == ["Refiners: mIoU 41.8"]
    assert pages.measured("none", table) == pages.measured("clipes", table) == []


def test_map_methods_and_refiners_have_pictures_or_say_why_not(extension, pages, lite0_weights):
    """Committed, or of what the build can draw with the weights of a package."""
    pictures = extension("pictures")
    classifier = load_classifier(pictures.MODEL, checkpoint=str(lite0_weights))
    image, scores = np.zeros((24, 36, 3), np.uint8), np.full((2, 24, 36), 0.5, np.float32)

    def drawn(room: str, name: str) -> bool:
        try:
            if room == "wsol.cams":
                cams.create(name, classifier)
            else:
                steps = refine.chain(name)
                steps.label(steps(image, scores), [0])
        except (ConfigError, ModelError):
            return False
        return name not in pictures._LEFT_OUT

    for room, name in methods("wsol.cams", "wsol.refine"):
        there = (DOCS / "images" / room / f"{name}.jpg").is_file() or drawn(room, name)
        assert there != bool(pages.notes()[name].get("no_picture")), name


def test_committed_pictures_are_small_and_shown(pages):
    committed = sorted((DOCS / "images").glob("wsol.*/*.jpg"))
    assert len(committed) > 10
    assert max(path.stat().st_size for path in committed) < 25_000
    assert sum(path.stat().st_size for path in committed) < 200_000
    shown = {room: pages.fill(f"<!-- wsol: methods {room} -->") for room in ROOMS}
    for path in committed:
        section = shown[path.parent.name].partition(f"\n## {path.stem}\n")[2].partition("\n## ")[0]
        assert f"![{path.stem}](/images/{path.parent.name}/{path.name})" in section
        assert "DINOv2 ViT-S/14, fine-tuned for saliency" in section or path.parent.name == "wsol.refine"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    application = pytest.importorskip("sphinx.application")
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("site")
    built = application.Sphinx(DOCS, DOCS, folder / "html", folder / "doctrees", "html", warningiserror=True)
    built.build()
    assert built.statuscode == 0
    return folder / "html"


@pytest.mark.slow
def test_site_holds_no_tex_and_all_pictures(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|link|img)\b[^>]*\b(src|href)="(https?:)?//', text), page
        for formula in re.findall(r"<math.*?</math>", text):
            assert "\\" not in formula, page
    for room in ROOMS:
        text = (site / f"methods/{room.removeprefix('wsol.')}.html").read_text(encoding="utf-8")
        for name in cite.registry(room).names():
            anchor = f'id="{room}-{name}"'.replace(".", "-").replace("_", "-")
            section = text.partition(anchor)[2].partition("<h2>")[2].partition("<h2>")[0]
            assert ("<img " in section) != ("No picture: " in section), name


@pytest.mark.slow
def test_pages_open_from_disk_without_a_network(site, tmp_path):
    """Formulas have a height, nothing is wider than a phone, and no request leaves for anywhere."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("WSOL_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("WSOL_CHROMIUM: no Chromium")
    shots = Path(os.environ.get("WSOL_SCREENSHOTS") or tmp_path)
    asked: list[str] = []
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for scheme, width in (("light", 1280), ("dark", 390)):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.on("request", lambda request: asked.append(request.url))
            for name in ("index", "guides/choose-a-method", "methods/cams", "methods/refine", "methods/mix", "results"):
                page.goto((site / f"{name}.html").as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
                sizes = page.evaluate(
                    "[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect())"
                    ".map(box => [box.width, box.height])"
                )
                assert bool(sizes) == name.startswith("methods/")
                assert all(wide > 20 and 12 < high < 150 for wide, high in sizes), name
                page.screenshot(path=shots / f"docs-{name.replace('/', '-')}-{scheme}.png")
        browser.close()
    assert asked
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]

"""`wsol demo --serve` as a user sees it: in Chromium, offline, from the photo to the file."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from wsol.engine.demo_photos import packaged_photos

# Writes down every address outside of this machine that the server asks for.
_WATCHED = """
import sys
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1", "localhost"):
        print("outside:", args[1], file=sys.stderr, flush=True)
    if event == "socket.getaddrinfo" and args[0] not in ("127.0.0.1", "::1", "localhost", None):
        print("outside:", args[0], file=sys.stderr, flush=True)
sys.addaudithook(watch)
from wsol.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("WSOL_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("WSOL_CHROMIUM: no Chromium")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory, lite0_weights):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("server")
    words = ["demo", "--serve", "--port", str(port), "--device", "cpu", "--max-megabytes", "2", "--max-megapixels", "4"]
    with (home / "stderr").open("w") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCHED, *words],
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env={**os.environ, "TMPDIR": str(home)},
        )
        line = process.stdout.readline()
        assert line == f"page: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        yield line.split()[1], home
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert (home / "stderr").read_text() == ""  # nothing outside, no traceback
    left = [path for path in home.rglob("*") if path.suffix in (".png", ".jpg", ".webp", ".json")]
    assert not left, "uploads and results must not stay behind"


@pytest.fixture
def page(server, chromium):
    address, _ = server
    tab = chromium.new_page(viewport={"width": 1400, "height": 950})
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    inside = (address, "data:", f"blob:{address}")
    tab.on("request", lambda request: None if request.url.startswith(inside) else said.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("#find")
    yield tab
    tab.close()
    assert said == []


def upload(page, path):
    page.set_input_files("#photo input[type=file]", str(path))
    page.wait_for_selector("#photo img")


def choose(page, word):
    page.click("#classes input")
    page.keyboard.type(word)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")


@pytest.mark.slow
def test_from_a_photo_to_the_files(page, tmp_path):
    cat = next(path for path in packaged_photos() if path.stem == "chelsea")
    upload(page, cat)
    choose(page, "cat")
    page.click("#find")
    page.wait_for_selector("#boxes img", timeout=120_000)
    for part in ("#maps img", "#mask img", "#boxes img"):
        page.wait_for_function(
            "part => document.querySelector(part).complete && document.querySelector(part).naturalWidth > 0", arg=part
        )
    assert "Egyptian cat" in page.inner_text("#maps")
    assert "tiger cat" in page.inner_text("#likeliest")
    for step in ("read the photo", "score maps (gradcam)", "mask (densecrf)", "together"):
        assert step in page.inner_text("#times")
    shots = Path(os.environ.get("WSOL_SCREENSHOTS") or tmp_path)
    shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shots / "serve.png", full_page=True)
    with page.expect_download() as download:
        page.click("#coco")
    download.value.save_as(tmp_path / "found.json")
    with page.expect_download() as download:
        page.click("#png")
    assert download.value.suggested_filename == "chelsea.png"
    download.value.save_as(tmp_path / "mask.png")
    coco = COCO(tmp_path / "found.json")
    size = np.asarray(Image.open(cat)).shape[:2]
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == size
    (annotation,) = coco.loadAnns(coco.getAnnIds())
    assert coco.cats[annotation["category_id"]]["name"] == "Egyptian cat"
    np.testing.assert_array_equal(coco.annToMask(annotation), mask)
    assert 0.2 < mask.mean() < 0.9  # the cat fills much of the photo


@pytest.mark.slow
def test_mistakes_are_one_line(page, tmp_path):
    page.click("#find")
    page.wait_for_selector("text=no photo yet")
    Image.new("RGB", (2001, 2000)).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    page.click("#find")
    page.wait_for_selector("text=the photo has 4.0 megapixels, 4 are allowed")
    page.reload()
    upload(page, packaged_photos()[1])
    choose(page, "cofee mug")
    page.click("#find")
    page.wait_for_selector("text=did you mean 'coffee mug'?")
    assert page.inner_text("#message").count("\n") == 0
    page.reload()
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "heavy.png")
    page.set_input_files("#photo input[type=file]", str(tmp_path / "heavy.png"))
    page.wait_for_selector("text=exceed the maximum allowed size of 2.0 Mb")

"""`wsol report` on runs that were made without a network: maps are blurred truth."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from wsol import data
from wsol.cli.main import main
from wsol.engine.options import CamConfig
from wsol.engine.report_entries import read_entries
from wsol.engine.report_pictures import box_rule, groups, spread
from wsol.engine.report_runs import ReportConfig, report_runs
from wsol.errors import ConfigError, StoreError
from wsol.schema import DatasetSpec, PseudoMask, ScoreMaps
from wsol.store.manifest import Manifest
from wsol.store.maps import write_maps
from wsol.store.masks import write_mask
from wsol.store.runs import open_run

HOSTILE = "<img src=x onerror='document.title=1'> \"&"


def make_maps(out, root, *, method, blur, count=None, broken=()):
    """Write a run of score maps on the synthetic val split: the blurred truth of each class on a coarse grid."""
    dataset = data.load("synthetic", root=root, split="val")
    config = CamConfig(data="synthetic", root=root, split="val", out=out, model="none", method=method)
    with open_run(out, verb="cam", config=config, dataset=dataset.spec), Manifest(out) as manifest:
        for sample in dataset.samples[:count]:
            if sample.id in broken:
                manifest.failed(sample.id, f"cannot read {HOSTILE}")
                continue
            truth = dataset.read_truth(sample)
            planes = [cv2.GaussianBlur(np.float32(truth == label + 1), (0, 0), blur) for label in sample.labels]
            values = np.stack([cv2.resize(plane, (15, 13), interpolation=cv2.INTER_AREA) for plane in planes])
            values /= values.max(axis=(1, 2), keepdims=True) + 1e-6
            write_maps(out, ScoreMaps(sample.id, values, np.array(sample.labels, np.int16), truth.shape))
            manifest.done(sample.id)
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods on 20 generated images, each with both evaluations; one image of the second failed."""
    home = tmp_path_factory.mktemp("runs")
    root = home / "data"
    dataset = data.load("synthetic", root=root, train=1, val=20, split="val")
    broken = dataset.samples[3].id
    make_maps(home / "sharp", root, method="gradcam", blur=2)
    make_maps(home / "dull", root, method="layercam", blur=14, broken=(broken,))
    for name in ("sharp", "dull"):
        for task, flag in (("loc", "--maps"), ("seg", "--pred")):
            words = ["eval", task, flag, str(home / name), "--out", str(home / f"{name}-{task}"), "--workers", "0"]
            assert main(words) == (name == "dull")
    return home


@pytest.fixture(scope="module")
def page(runs):
    """All of it on one page."""
    results = [runs / f"{name}-{task}" for name in ("sharp", "dull") for task in ("loc", "seg")]
    return report_runs(ReportConfig(runs=(*results, runs / "dull"), out=runs / "page" / "report.html", shown=2))


def test_results_join_the_run_that_they_measured(runs):
    entries = read_entries([runs / "dull-seg", runs / "sharp", runs / "dull-loc", runs / "dull"])
    assert [entry.label for entry in entries] == ["layercam", "gradcam"]
    assert [one.result.task for one in entries[0].evaluated] == ["segmentation", "localization"]
    assert entries[1].evaluated == ()
    assert [len(entry.failures) for entry in entries] == [1, 0]


def test_runs_of_one_method_are_told_apart_by_their_folders(runs, tmp_path):
    shutil.copytree(runs / "sharp", tmp_path / "again")
    labels = [entry.label for entry in read_entries([runs / "sharp", tmp_path / "again"])]
    assert labels == ["gradcam (sharp)", "gradcam (again)"]


def test_scores_are_those_of_the_evaluation(runs):
    (entry,) = read_entries([runs / "sharp-seg"])
    rows = json.loads((runs / "sharp-seg" / "metrics.json").read_text())["per_image"]
    assert entry.scores(entry.dataset()) == pytest.approx({name: row["iou"] for name, row in rows.items()})
    (entry,) = read_entries([runs / "sharp-loc"])
    dataset, found = entry.dataset(), entry.scores(entry.dataset())
    rows = json.loads((runs / "sharp-loc" / "metrics.json").read_text())["per_image"]
    sample = next(sample for sample in dataset.samples if len(sample.labels) > 1)
    values = [rows[f"{sample.id} ({dataset.spec.classes[label]})"]["iou"] for label in sample.labels]
    assert found[sample.id] == pytest.approx(np.mean(values))


def test_boxes_are_drawn_by_the_rule_that_was_measured(runs):
    (entry,) = read_entries([runs / "dull-loc"])
    _, threshold, size = box_rule(entry.evaluated[0])
    with (runs / "dull-loc" / "worst.csv").open() as stream:
        row = next(csv.DictReader(stream))
    assert threshold == float(row["threshold"])
    assert size == 224


def test_page_holds_what_the_runs_hold(page, runs):
    text = page.read_text(encoding="utf-8")
    for task, metric in (("loc", "MaxBoxAccV2"), ("seg", "mIoU")):
        for name in ("sharp", "dull"):
            value = json.loads((runs / f"{name}-{task}" / "metrics.json").read_text())["metrics"][metric]
            assert f">{value:.1f}<" in text
    for words in ("best on val", "What differs", "Errors", "incomplete: 1 of 20 images", "Best: IoU", "Worst: IoU"):
        assert words in text
    assert HOSTILE not in text
    assert "&lt;img src=x" in text
    assert len(re.findall(r'<article class="card', text)) == 20 + 3 * 2


def test_groups_do_not_overlap_and_are_in_order():
    order = [(f"i{at:02}", 1 - at / 20) for at in range(20)]
    best, median, worst = groups(order, 4).values()
    assert (best, median, worst) == (
        ["i00", "i01", "i02", "i03"],
        ["i08", "i09", "i10", "i11"],
        ["i19", "i18", "i17", "i16"],
    )
    assert list(groups(order[:7], 4)) == [
        "Best: IoU 1.00 to 0.95",
        "Median: IoU 0.90 to 0.85",
        "Worst: IoU 0.70 to 0.75",
    ]
    assert list(groups(order[:2], 4).values()) == [["i00", "i01"]]
    assert spread([name for name, _ in order], 3) == ["i00", "i10", "i19"]
    assert spread(["a", "b"], 3) == ["a", "b"]
    assert spread(["a", "b"], 1) == ["a"]


def test_masks_of_a_refined_run_stand_beside_their_maps(runs, tmp_path):
    dataset = data.load("synthetic", root=runs / "data", split="val")
    masks = tmp_path / "masks-run"
    for sample in dataset.samples:
        write_mask(masks, PseudoMask(sample.id, dataset.read_truth(sample)))
    root = ["--data", "synthetic", "--root", str(runs / "data"), "--split", "val"]
    assert main(["eval", "seg", "--pred", str(masks), "--out", str(tmp_path / "seg"), "--workers", "0", *root]) == 0
    out = report_runs(ReportConfig(runs=(runs / "sharp-seg", tmp_path / "seg"), out=tmp_path / "r.html", images=0))
    text = out.read_text()
    assert "masks-run 1.00: mask" in text
    assert "All 20 images" not in text


def test_training_has_a_page_too(tmp_path, runs):
    folder = tmp_path / "head"
    shutil.copytree(runs / "sharp", folder, ignore=shutil.ignore_patterns("maps", "manifest*"))
    info = json.loads((folder / "run.json").read_text())
    info |= {"verb": "train", "config": {"model": "resnet50", "mix": "cutmix"}}
    (folder / "run.json").write_text(json.dumps(info))
    rows = [{"epoch": at, "loss": 1 / at, "val_top1": 10.0 * at if at > 1 else None} for at in (1, 2, 3)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = report_runs(ReportConfig(runs=(folder,), out=tmp_path / "r.html")).read_text()
    assert "resnet50, mix cutmix" in text
    assert "epoch 3" in text
    assert "<svg" in text


def test_missing_photos_leave_the_numbers(runs, tmp_path):
    home = tmp_path / "moved"
    shutil.copytree(runs / "sharp", home / "sharp")
    facts = (home / "sharp" / "dataset.yaml").read_text().replace(str(runs / "data"), str(tmp_path / "gone"))
    (home / "sharp" / "dataset.yaml").write_text(facts)
    text = report_runs(ReportConfig(runs=(home / "sharp",), out=tmp_path / "r.html")).read_text()
    assert "No pictures of gradcam" in text


@pytest.mark.parametrize("kind", ["photo", "map"])
def test_one_broken_file_is_a_row_of_the_errors(runs, tmp_path, kind):
    shutil.copytree(runs / "data", tmp_path / "data")
    run = make_maps(tmp_path / "run", tmp_path / "data", method="cam", blur=3)
    sample = data.load("synthetic", root=tmp_path / "data", split="val").samples[0]
    (sample.image if kind == "photo" else run / "maps" / f"{sample.id}.npz").write_bytes(b"broken")
    text = report_runs(ReportConfig(runs=(run,), out=tmp_path / "r.html")).read_text()
    assert "this page" in text
    assert text.count('<article class="card') > 20


def test_mistakes_are_named(runs, tmp_path, capsys):
    with pytest.raises(StoreError, match="no such folder"):
        read_entries([tmp_path / "none"])
    with pytest.raises(StoreError, match="no run in this folder"):
        read_entries([tmp_path])
    with pytest.raises(ConfigError, match="no run given"):
        report_runs(ReportConfig(runs=()))
    assert main(["report", str(runs / "sharp"), "--images", "-1"]) == 2
    assert main(["report", "--out", "x.html"]) == 2
    assert "runs" in capsys.readouterr().err


def test_command_line_takes_folders_before_flags(runs, tmp_path, capsys):
    out = tmp_path / "r.html"
    flags = ["--out", str(out), "--images", "4", "--shown", "3"]
    assert main(["report", str(runs / "sharp-seg"), str(runs / "dull-seg"), *flags]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    assert out.read_text().count('<article class="card') == 2 + 3 * 3


def test_no_torch_is_needed(runs, tmp_path):
    words = ["report", str(runs / "sharp-loc"), "--out", str(tmp_path / "r.html")]
    program = f"import sys; from wsol.cli.main import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_thousand_images_stay_below_5_mb(tmp_path):
    root = tmp_path / "data"
    data.load("synthetic", root=root, train=1, val=1000, split="val")
    run = make_maps(tmp_path / "run", root, method="cam", blur=8)
    assert main(["eval", "loc", "--maps", str(run), "--out", str(tmp_path / "loc"), "--workers", "0"]) == 0
    out = report_runs(ReportConfig(runs=(tmp_path / "loc",), out=tmp_path / "r.html"))
    assert out.read_text().count("<article") == 1000 + 18
    assert out.stat().st_size < 5_000_000


# In a browser


def _chromium() -> str:
    return os.environ.get("WSOL_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not _chromium():
        pytest.skip("no chromium on the path and no WSOL_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    """Where pictures of the pages are kept."""
    folder = Path(os.environ.get("WSOL_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(browser):
    """Open a page from disk; at the end nothing may have been complained about or fetched."""
    complaints, tabs = [], []

    def open_page(path, *, width=1280, height=900, scheme="light"):
        tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        tab.goto(path.resolve().as_uri())
        tabs.append(tab)
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert complaints == []


def keep_picture(tab, path, *, whole=False):
    """Take a screenshot once the pictures that wait to be scrolled to are decoded too."""
    images = "[...document.querySelectorAll('.zoom img')]"
    tab.evaluate(f"Promise.all({images}.map(image => {{ image.loading = 'eager'; return image.decode(); }}))")
    tab.screenshot(path=path, full_page=whole)


def visible(tab, selector):
    return tab.locator(f"{selector}:visible").count()


def test_filter_hides_other_classes_methods_and_images(page, visit, screenshots):
    tab = visit(page)
    cards = visible(tab, ".wall .card figure")
    assert cards == 2 * 20 - 1  # one image of one run failed
    names = tab.locator("#class option").all_text_contents()[1:]
    expected = tab.evaluate(
        "name => [...document.querySelectorAll('.wall .card')]"
        ".filter(card => card.dataset.find.split('\\n').slice(1).includes(name)).length",
        names[0],
    )
    tab.select_option("#class", names[0])
    keep_picture(tab, screenshots / "report-class.png")
    ids = "[...new Set([...document.querySelectorAll('.card:not([hidden])')].map(card => card.dataset.find))].length"
    assert 0 < tab.evaluate(ids) == expected < 20
    assert tab.locator("#count").inner_text() == f"{expected} of 20 images"
    assert visible(tab, ".chart .row") == 2  # one chart a task
    tab.select_option("#class", "")
    tab.select_option("#series", "gradcam")
    assert visible(tab, ".wall figure") == 20
    assert visible(tab, "[data-series=layercam]") == 0
    tab.keyboard.press("Escape")
    assert visible(tab, ".wall .card figure") == cards
    tab.keyboard.press("/")
    tab.keyboard.type("no such image")
    assert visible(tab, ".card") == visible(tab, ".group") == 0
    assert visible(tab, "tbody tr[data-find]") == 0
    tab.keyboard.press("Escape")
    assert visible(tab, ".wall .card figure") == cards
    assert tab.locator("#words").input_value() == ""
    tab.locator(".card .pick").first.click()
    assert tab.locator("#class").input_value() == tab.locator(".card .pick").first.inner_text()


def test_arrow_keys_walk_through_the_pictures(page, visit, screenshots):
    tab = visit(page)
    tab.keyboard.press("ArrowRight")
    focused = "document.activeElement.querySelector('img').alt"
    first = tab.evaluate(focused)
    tab.keyboard.press("ArrowRight")
    second = tab.evaluate(focused)
    assert first != second
    tab.keyboard.press("Enter")
    assert tab.locator("dialog[open] p").inner_text().startswith(second)
    keep_picture(tab, screenshots / "report-enlarged.png")
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("dialog[open] p").inner_text().startswith(first)
    tab.keyboard.press("ArrowLeft")  # from the first to the last
    total = tab.locator(".zoom img").count()
    assert f"({total} / {total})" in tab.locator("dialog[open] p").inner_text()
    tab.keyboard.press("Escape")
    assert tab.locator("dialog[open]").count() == 0
    assert visible(tab, ".card") > 0


def test_light_and_dark(page, visit, screenshots):
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    shades = {}
    for scheme in ("light", "dark"):
        tab = visit(page, scheme=scheme)
        shades[scheme] = tab.evaluate(paper)
        keep_picture(tab, screenshots / f"report-{scheme}.png", whole=True)
    assert shades["light"] != shades["dark"]
    tab.click("#theme")
    assert tab.evaluate(paper) == shades["light"]
    tab.reload()
    assert tab.evaluate(paper) == shades["light"]  # it was kept
    tab.click("#theme")
    assert tab.evaluate(paper) == shades["dark"]


def test_nothing_is_wider_than_a_phone(page, visit, screenshots):
    tab = visit(page, width=360, height=740)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    keep_picture(tab, screenshots / "report-phone.png", whole=True)


def test_hostile_names_stay_text(tmp_path, visit):
    """Class names and ids come from folders of strangers."""
    name = HOSTILE.replace("/", "")
    folder = tmp_path / "data" / name
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (33, 41, 3), np.uint8)
    assert cv2.imwrite(str(folder / "a.png"), pixels)
    dataset = data.load("folder", root=tmp_path / "data")
    run = tmp_path / "run"
    config = CamConfig(data="folder", root=tmp_path / "data", split=dataset.spec.split, out=run, model="m", method=name)
    assert isinstance(dataset.spec, DatasetSpec)
    with open_run(run, verb="cam", config=config, dataset=dataset.spec):
        for sample in dataset.samples:
            values = np.linspace(0, 1, 20, dtype=np.float32).reshape(1, 4, 5)
            write_maps(run, ScoreMaps(sample.id, values, np.array([0], np.int16), (33, 41)))
    tab = visit(report_runs(ReportConfig(runs=(run,), out=tmp_path / "r.html")))
    assert visible(tab, ".card") == 1
    assert tab.locator("img[src=x]").count() == 0
    assert tab.title() != "1"
    assert name in tab.locator(".card .pick").inner_text()

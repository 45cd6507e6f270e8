import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from wsol.errors import EvalError
from wsol.report import plots

SVG = "{http://www.w3.org/2000/svg}"
X = np.linspace(0, 1, 11).tolist()
CURVES = {"cam": {"x": X, "y": [50 - 40 * (x - 0.3) ** 2 for x in X]}, "gradcam": {"x": X, "y": [40.0] * 11}}


def texts(svg):
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def test_threshold_curve_marks_the_chosen_point():
    svg = plots.threshold_curve(CURVES, {"cam": 0.3, "absent": 0.5}, x_label="τ", y_label="mIoU <%>")
    root = ET.fromstring(svg)
    (marker,) = [node for node in root.iter(f"{SVG}g") if node.get("id", "").startswith("chosen-")]
    assert marker.get("id") == "chosen-0"
    (point,) = marker.iter(f"{SVG}use")
    # The marker stands at x = 0.3 and at the y of the curve, between the neighbouring ticks.
    ticks = dict(zip(texts(svg), root.iter(f"{SVG}text"), strict=True))
    assert float(ticks["0.2"].get("x")) < float(point.get("x")) < float(ticks["0.4"].get("x"))
    assert {"cam: 50.0 at 0.30", "gradcam", "τ", "mIoU <%>"} <= set(texts(svg))


def test_plots_are_deterministic_and_ignore_the_users_settings():
    first = plots.threshold_curve(CURVES, {})
    with matplotlib.rc_context({"font.size": 30, "savefig.facecolor": "red", "axes.grid": True}):
        assert plots.threshold_curve(CURVES, {}) == first
        assert matplotlib.rcParams["font.size"] == 30
    assert "http://purl.org" not in first
    assert "<!DOCTYPE" not in first
    assert first.startswith("<svg")
    assert "#ffffff" not in first  # no background
    assert "currentColor" in first


def test_bars_sort_classes_and_show_missing_ones():
    svg = plots.bars({"low": {"IoU": 10}, "none": {"IoU": float("nan")}, "$a_b^<&": {"IoU": 70.04}}, "IoU")
    shown = texts(svg)
    assert shown.index("$a_b^<&") < shown.index("low") < shown.index("none")
    assert {"70.0", "10.0", "n/a", "IoU, mean 40.0"} <= set(shown)


def test_bars_of_fractions_and_of_many_classes():
    assert "0.50" in texts(plots.bars({"a": {"f": 0.5}, "b": {"f": 0.25}}, "f"))
    shown = texts(plots.bars({f"c{i}": {"m": i / 2} for i in range(200)}, "m", limit=10))
    assert "c199" in shown
    assert "c0" in shown
    assert "c100" not in shown
    assert "m: best 5 and worst 5 of 200 classes" in shown


def test_history_has_a_panel_for_losses_and_one_for_metrics():
    rows = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "mAP": 50.0}, {"epoch": 3, "loss": 0.5, "mAP": 60.0}]
    both = ET.fromstring(plots.history(rows, metrics=("mAP",)))
    one = ET.fromstring(plots.history(rows))
    panels = [[g for g in root.iter(f"{SVG}g") if g.get("id", "").startswith("axes_")] for root in (both, one)]
    assert [len(found) for found in panels] == [2, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.threshold_curve({}, {}),
        lambda: plots.threshold_curve({"a": {"x": [0.0, 1.0], "y": [1.0]}}, {}),
        lambda: plots.bars({"a": {"IoU": float("nan")}}, "IoU"),
        lambda: plots.history([]),
        lambda: plots.history([{"loss": 1.0}], metrics=("mAP",)),
    ],
)
def test_nothing_to_plot_is_an_error(call):
    with pytest.raises(EvalError):
        call()


def test_report_loads_neither_torch_nor_pyplot():
    code = (
        "import sys, wsol.report.html, wsol.report.plots as p; p.bars({'a': {'m': 1.0}}, 'm');"
        "sys.exit(' '.join({'torch', 'matplotlib.pyplot'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

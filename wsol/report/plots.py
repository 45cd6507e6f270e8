"""Plots as SVG text: they scale, their words stay words, and they suit light and dark pages.

Words, axes and grid take the colour of the surrounding text (`currentColor`); the series have colours that keep a
contrast of at least 3.4 : 1 on white and on near-black and differ for the colour-blind, and line styles besides.
The same input gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wsol.errors import EvalError
from wsol.report.sections import SERIES

_INK = "#6e7079"  # stands for currentColor, which matplotlib cannot write
_STYLES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "wsol",
    "text.parse_math": False,  # a class name may hold a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.2,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}


def threshold_curve(
    curves: Mapping[str, Mapping[str, list[float]]],
    chosen: Mapping[str, float],
    *,
    title: str = "",
    x_label: str = "score threshold",
    y_label: str = "%",
) -> str:
    """Plot quality over threshold, with the chosen point of each curve marked and named in the legend.

    Args:
        curves: Curve name to {"x": [...], "y": [...]}, x ascending, as in `EvalResult.curves`.
        chosen: Curve name to its chosen x, as in `EvalResult.threshold`; names without a curve are left out.
        title: Heading inside the plot.
        x_label: Name of the x axis.
        y_label: Name of the y axis.

    Returns:
        An `<svg>` element; the marker of the i-th curve has the id `chosen-i`.

    Raises:
        EvalError: When there is no curve, or x and y of a curve differ in length.
    """
    if not curves:
        raise EvalError("threshold_curve: no curves")
    with _settings():
        figure, (axes,) = _figure(1, height=3.0 + 0.17 * len(curves))
        for index, ((name, curve), (colour, style)) in enumerate(zip(curves.items(), _looks(), strict=False)):
            x, y = np.asarray(curve["x"], dtype=float), np.asarray(curve["y"], dtype=float)
            if x.shape != y.shape or x.size == 0:
                raise EvalError(f"threshold_curve: curve '{name}' has {x.size} x and {y.size} y")
            label = name
            if name in chosen:
                at = float(chosen[name])
                best = float(np.interp(at, x, y))
                label = f"{name}: {best:.1f} at {at:.2f}"
                axes.axvline(at, color=colour, linewidth=0.8, alpha=0.5)
                (marker,) = axes.plot([at], [best], "o", color=colour, markersize=7, zorder=5)
                marker.set_gid(f"chosen-{index}")
            axes.plot(x, y, color=colour, linestyle=style, label=label)
        _label(axes, title, x_label, y_label)
        figure.legend(loc="outside lower left", handlelength=2.6, fontsize=9)  # below: curves fill the axes
        return _svg(figure)


def bars(
    per_class: Mapping[str, Mapping[str, float]],
    metric: str,
    *,
    title: str = "",
    limit: int = 80,
) -> str:
    """Plot one metric of every class as horizontal bars, best on top, with a line at the mean.

    Args:
        per_class: Class name to metric name to value, as in `EvalResult.per_class`.
        metric: Which metric to show; a class without it, or with NaN, stands last as "n/a".
        title: Heading inside the plot.
        limit: Most bars; of more classes the best and the worst halves are shown.

    Returns:
        An `<svg>` element, higher with more classes.

    Raises:
        EvalError: When no class has the metric.
    """
    values = {name: float(metrics.get(metric, np.nan)) for name, metrics in per_class.items()}
    finite = [value for value in values.values() if np.isfinite(value)]
    if not finite:
        raise EvalError(f"bars: no class has the metric '{metric}'")
    order = sorted(values, key=lambda name: -values[name] if np.isfinite(values[name]) else np.inf)
    if len(order) > limit:
        order = [*order[: limit // 2], *order[-(limit - limit // 2) :]]
        title = f"{title or metric}: best {limit // 2} and worst {limit - limit // 2} of {len(values)} classes"
    with _settings():
        figure, (axes,) = _figure(1, height=0.9 + 0.2 * len(order))
        rows = np.arange(len(order))
        lengths = np.array([values[name] for name in order])
        axes.barh(rows, np.nan_to_num(lengths), height=0.66, color=SERIES[0])
        mean = float(np.mean(finite))
        axes.axvline(mean, color=SERIES[1], linewidth=1.0, linestyle="--", zorder=0.9)
        top = max(100.0 if max(finite) > 1 else 1.0, *finite)
        for row, length in enumerate(lengths):
            text = f"{length:.1f}" if top > 1 else f"{length:.2f}"
            axes.annotate(
                text if np.isfinite(length) else "n/a",
                (float(np.nan_to_num(length)), row),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                clip_on=False,
            )
        axes.set_yticks(rows, order)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(min(0.0, *finite), top * 1.04)
        _label(axes, title, f"{metric}, mean {mean:.1f}" if top > 1 else f"{metric}, mean {mean:.2f}", "")
        axes.grid(visible=False, axis="y")
        return _svg(figure)


def history(
    rows: Sequence[Mapping[str, float]],
    *,
    loss: Sequence[str] = ("loss",),
    metrics: Sequence[str] = (),
    x: str = "epoch",
    title: str = "",
) -> str:
    """Plot how a training went: losses on the left, metrics on the right.

    Args:
        rows: One row an epoch, name to value; a name may be missing from some rows.
        loss: Names for the left panel.
        metrics: Names for the right panel; without any there is one panel.
        x: Name that counts the epochs; the row number counts where it is missing.
        title: Heading inside the plot.

    Returns:
        An `<svg>` element.

    Raises:
        EvalError: When there are no rows, or a name is in none of them.
    """
    if not rows:
        raise EvalError("history: no rows")
    panels = [panel for panel in (tuple(loss), tuple(metrics)) if panel]
    with _settings():
        figure, panel_axes = _figure(len(panels), height=2.9)
        looks = _looks()
        for axes, names in zip(panel_axes, panels, strict=True):
            for name, (colour, style) in zip(names, looks, strict=False):
                points = [(row.get(x, index), row[name]) for index, row in enumerate(rows) if name in row]
                if not points:
                    raise EvalError(f"history: no row has '{name}'")
                mark = "o" if len(points) < 25 else ""
                axes.plot(
                    *zip(*points, strict=True), color=colour, linestyle=style, marker=mark, markersize=3, label=name
                )
            _label(axes, title if axes is panel_axes[0] else "", x, names[0] if len(names) == 1 else "")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if len(names) > 1:
                _legend(axes)
        return _svg(figure)


@contextmanager
def _settings() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change a report
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _figure(panels: int, *, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.8, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = [figure.add_subplot(1, panels, index + 1) for index in range(panels)]
    for one in axes:
        one.patch.set_visible(False)
    return figure, axes


def _looks() -> Iterator[tuple[str, Any]]:
    return zip(cycle(SERIES), cycle(_STYLES), strict=False)


def _label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if title:
        axes.set_title(title)
    axes.grid(visible=True)


def _legend(axes: Axes) -> None:
    axes.legend(loc="best", handlelength=2.6, fontsize=9)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor").strip()

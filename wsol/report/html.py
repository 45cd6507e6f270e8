"""One self-contained HTML page that opens from disk: light and dark, on a phone and on paper, with nothing to load."""

from __future__ import annotations

import base64
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import jinja2

from wsol.report.drawing import Image
from wsol.report.overlays import shrink
from wsol.report.sections import (
    SERIES,
    Bars,
    Card,
    Cards,
    Cell,
    Command,
    Figure,
    Gallery,
    Plot,
    Section,
    Table,
    Text,
    Tile,
)
from wsol.store.atomic import write_text

__all__ = [
    "Bars", "Card", "Cards", "Command", "Figure", "Gallery", "Plot", "Section", "Table", "Text", "Tile",
    "data_uri", "write_report",
]  # fmt: skip


def write_report(
    path: Path,
    *,
    title: str,
    lead: str = "",
    facts: Mapping[str, object] | None = None,
    tiles: Sequence[Tile] = (),
    sections: Sequence[Section] = (),
    width: int = 320,
    quality: int = 75,
) -> None:
    """Write one self-contained HTML file, whole or not at all.

    Pictures are embedded as WebP. On VOC photos a picture takes 5.1 kB at width 160 and 16 kB at width 320, with a
    heatmap over it 3.6 and 10 kB (in base64, at the default quality): 1,000 pictures, half of them maps,
    fit into 5 MB at width 160. Give them already reduced (`overlays.shrink`) where so many would not fit into memory.

    Args:
        path: File to write; its folder is made where missing.
        title: Title of the page.
        lead: What the reader sees here, in a sentence or two.
        facts: Name to value: model, data, device, time.
        tiles: Headline numbers.
        sections: The rest, in order.
        width: Largest width of an embedded picture in pixels; higher pictures than 1.5 times that are reduced too.
        quality: WebP quality, 1 to 100.

    Raises:
        StoreError: When the file cannot be written.
        DataError: When a picture is not an RGB uint8 image.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wsol.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )

    def embed(picture: Image) -> dict[str, str | int]:
        small = shrink(picture, width=width, height=width * 3 // 2)
        return {"uri": data_uri(small, quality=quality), "width": small.shape[1], "height": small.shape[0]}

    classes = {name for section in sections if isinstance(section, Cards) for name in section.classes}
    if not any(isinstance(section, Cards) for section in sections):
        classes = {name for section in sections if isinstance(section, Bars) for name in section.rows}
    series = _series(sections)
    colours = {name: SERIES[at % len(SERIES)] for at, name in enumerate(series)}
    environment.filters.update(embed=embed, cells=_cells, colour=lambda name: colours.get(name, SERIES[0]))
    page = environment.get_template("report.html.j2").render(
        title=title,
        lead=lead,
        facts=facts or {},
        tiles=tiles,
        sections=sections,
        classes=sorted(classes),
        series=series,
    )
    write_text(Path(path), page)


def data_uri(image: Image, *, quality: int = 75) -> str:
    """Return an image as a `data:image/webp` address.

    Args:
        image: RGB uint8 (H, W, 3), at most 16383 pixels a side.
        quality: WebP quality, 1 to 100.

    Returns:
        The address, base64.
    """
    _, data = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def _series(sections: Sequence[Section]) -> list[str]:
    """Return the names of all series of bars and cards, in the order in which they first appear."""
    names = [name for section in sections if isinstance(section, Bars) for name in section.series]
    for section in sections:
        if isinstance(section, Cards):
            names += [one.series for cards in section.groups.values() for card in cards for one in card.figures]
    return [name for name in dict.fromkeys(names) if name]


def _cells(table: Table) -> list[list[tuple[str, bool, bool]]]:
    """Return (text, is a number, is the best of its column) by row and column."""
    shown = [[_text(cell, table.digits) for cell in row] for row in table.rows]
    best: dict[int, str] = {}
    for name, direction in table.best.items():
        column = list(table.header).index(name)
        values = [(_number(row[column]), shown[index][column]) for index, row in enumerate(table.rows)]
        finite = [(value, text) for value, text in values if math.isfinite(value)]
        if finite:
            best[column] = (max if direction == "max" else min)(finite)[1]
    return [
        [
            (text, not isinstance(cell, str), best.get(column) == text)
            for column, (cell, text) in enumerate(zip(row, texts, strict=True))
        ]
        for row, texts in zip(table.rows, shown, strict=True)
    ]


def _number(cell: Cell) -> float:
    return math.nan if cell is None or isinstance(cell, str) else float(cell)


def _text(cell: Cell, digits: int) -> str:
    if isinstance(cell, str):
        return cell
    if not math.isfinite(_number(cell)):
        return "–"
    return f"{cell:,}" if isinstance(cell, numbers.Integral) else f"{cell:.{digits}f}"

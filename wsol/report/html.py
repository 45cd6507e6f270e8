"""One self-contained HTML page that opens from disk: light and dark, on a phone and on paper, with nothing to load."""

from __future__ import annotations

import base64
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import cv2
import jinja2

from wsol.errors import DataError
from wsol.report.drawing import Image
from wsol.report.overlays import shrink
from wsol.store.atomic import write_text

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number.

    Attributes:
        label: What it is, for example "mIoU".
        value: The number as it is to be read, with its unit.
        note: Split, n, threshold source: what a reader must know to quote it.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A picture with its caption.

    Attributes:
        picture: RGB uint8 (H, W, 3), or an `<svg>` element from `wsol.report.plots`, which is trusted.
        caption: What it shows; below the picture.
        alt: What it shows, for those who cannot see it; the caption where empty.
    """

    picture: Image | str
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """Pictures in rows: one row an image, one column a method; or a single row that wraps.

    Attributes:
        title: Heading of the section.
        rows: Figures by row. Several rows align in columns; a single row fills lines of equal height.
        row_titles: One heading a row, or none.
        note: A paragraph above the pictures.
    """

    kind: ClassVar[str] = "gallery"
    title: str
    rows: Sequence[Sequence[Figure]]
    row_titles: Sequence[str] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.row_titles and len(self.row_titles) != len(self.rows):
            raise DataError(f"Gallery: expected {len(self.rows)} row titles, got {len(self.row_titles)}")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table; numbers are aligned right, NaN and None show as a dash.

    Attributes:
        title: Heading of the section.
        header: Column names.
        rows: Cells by row; the first column names the row.
        best: Column name to whether its highest or its lowest value is set in bold, ties included.
        digits: Decimals of the float cells.
        note: A paragraph below the table.
    """

    kind: ClassVar[str] = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    best: Mapping[str, Literal["max", "min"]] = field(default_factory=dict)
    digits: int = 1
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise DataError(f"Table '{self.title}': expected {len(self.header)} cells a row, got {len(row)}")
        unknown = set(self.best) - set(self.header)
        if unknown:
            raise DataError(f"Table '{self.title}': no column '{sorted(unknown)[0]}' to find the best of")


@dataclass(frozen=True, slots=True, eq=False)
class Plot:
    """One plot, or several side by side.

    Attributes:
        title: Heading of the section.
        figures: Figures whose pictures are `<svg>` elements.
        note: A paragraph above the plots.
    """

    kind: ClassVar[str] = "plot"
    title: str
    figures: Sequence[Figure]
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Paragraphs.

    Attributes:
        title: Heading of the section.
        paragraphs: Plain text, one string a paragraph.
        warning: Whether the text is set off as a warning.
    """

    kind: ClassVar[str] = "text"
    title: str
    paragraphs: Sequence[str]
    warning: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """Lines to type into a shell.

    Attributes:
        title: Heading of the section.
        code: The lines, shown as they are.
        note: A paragraph above them.
    """

    kind: ClassVar[str] = "command"
    title: str
    code: str
    note: str = ""


Section: TypeAlias = Gallery | Table | Plot | Text | Command


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

    environment.filters.update(embed=embed, cells=_cells)
    page = environment.get_template("report.html.j2").render(
        title=title, lead=lead, facts=facts or {}, tiles=tiles, sections=sections
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

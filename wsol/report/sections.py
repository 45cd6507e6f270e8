"""What a page is made of: plain data that `wsol.report.html` turns into one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from wsol.errors import DataError
from wsol.report.drawing import Image

SERIES = ("#2a86cb", "#d55e00", "#0e9a72", "#b8609a", "#b08000", "#7a7d85")
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
        series: The run or method that it belongs to; "" for pictures that belong to all.
        level: A value in [0, 1] drawn as a bar below the picture, or None.
    """

    picture: Image | str
    caption: str = ""
    alt: str = ""
    series: str = ""
    level: float | None = None


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
        filtered: Whether the filter of the page hides rows.
    """

    kind: ClassVar[str] = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    best: Mapping[str, Literal["max", "min"]] = field(default_factory=dict)
    digits: int = 1
    note: str = ""
    filtered: bool = False

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


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """One metric by class, one bar a series; the page filters the classes.

    Attributes:
        title: Heading of the section.
        series: Names of the series, in the order of their colours.
        rows: Class name to one percentage in [0, 100] a series; None where a series has none.
        note: A paragraph above the bars.
    """

    kind: ClassVar[str] = "bars"
    title: str
    series: Sequence[str]
    rows: Mapping[str, Sequence[float | None]]
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Card:
    """An image with everything that is shown of it.

    Attributes:
        id: Image id.
        figures: Pictures; those with a `series` are hidden when the page shows another one.
        classes: Names of its classes, which the page filters by.
        badge: A word or number at the right of its head.
    """

    id: str
    figures: Sequence[Figure]
    classes: Sequence[str] = ()
    badge: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Cards:
    """Images in groups, which the page filters by class, by series, and by words.

    Attributes:
        title: Heading of the section.
        groups: Heading of a group ("" for none) to its images.
        small: Whether they are thumbnails: many, without heads.
        note: A paragraph above the pictures.
    """

    kind: ClassVar[str] = "cards"
    title: str
    groups: Mapping[str, Sequence[Card]]
    small: bool = False
    note: str = ""

    @property
    def classes(self) -> list[str]:
        """Names of all classes, sorted."""
        return sorted({name for cards in self.groups.values() for card in cards for name in card.classes})


Section: TypeAlias = Gallery | Table | Plot | Text | Command | Bars | Cards

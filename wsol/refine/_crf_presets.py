"""Settings of the dense CRF in published pipelines, each under the names of all papers that use it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Preset = Literal[
    "clipes", "deeplab", "more", "excel", "irn", "psa", "puzzlecam", "irn_label", "afa", "weclip",
    "toco", "seco", "dupl", "toco_cam", "getam", "weaktr", "mctformer",
]  # fmt: skip

# pydensecrf embeds points in packs of four and fills the last pack with zeros: with black pixels at the origin, which
# weigh nothing, but whose lattice points pass values on when the lattice is blurred. The spatial lattice has a point at
# the origin anyway, so only the bilateral kernel feels it; labels of dark images may change.
PACK = 4


class Setting(NamedTuple):
    """Widths, weights and updates of one published setting; see the fields of `DenseCRF`."""

    sxy_gaussian: float
    compat_gaussian: float
    sxy_bilateral: float
    srgb: float
    compat_bilateral: float
    iterations: int = 10


_CLIPES = Setting(1, 3, 67, 3, 4)
_IRN = Setting(3, 3, 80, 13, 10)
_AFA = Setting(3, 3, 64, 5, 4)
_TOCO = Setting(1, 1, 121, 5, 4)
_WEAKTR = Setting(4, 3, 83, 5, 3)
PRESETS: dict[Preset, Setting] = {
    "clipes": _CLIPES,
    "deeplab": _CLIPES,
    "more": _CLIPES,
    "excel": _CLIPES,
    "irn": _IRN,
    "psa": _IRN,
    "puzzlecam": _IRN,
    "irn_label": Setting(3, 3, 50, 5, 10),
    "afa": _AFA,
    "weclip": _AFA,
    "toco": _TOCO,
    "seco": _TOCO,
    "dupl": _TOCO,
    "toco_cam": Setting(3, 3, 36, 3, 4),
    "getam": Setting(3, 3, 83, 5, 4, 20),
    "weaktr": _WEAKTR,
    "mctformer": _WEAKTR,
}

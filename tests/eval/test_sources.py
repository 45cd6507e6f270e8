"""Where files that others made for an image are looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsol.engine.mask_source import MaskFolder
from wsol.errors import StoreError
from wsol.eval.sources import NpyMaps, mask_file
from wsol.schema import Sample
from wsol.store.masks import encode_mask


def test_the_suffix_of_a_photo_may_be_left_out_but_no_other_part_of_an_id(tmp_path: Path) -> None:
    for name in ("a", "b.jpg", "x/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(encode_mask(np.ones((3, 5), np.uint8)))
        np.save(tmp_path / f"{name}.npy", np.zeros((3, 5)))
    for image_id, name in (("a", "a"), ("a.JPG", "a"), ("b.jpg", "b.jpg"), ("x/c.png", "x/c")):
        assert mask_file(tmp_path, image_id) == tmp_path / f"{name}.png"
        assert NpyMaps(tmp_path).path(image_id) == tmp_path / f"{name}.npy"
    other = Sample(id="a.1", image=tmp_path / "a.1.jpg")  # not the mask of image "a"
    assert mask_file(tmp_path, other.id) == tmp_path / "a.1.png"
    assert NpyMaps(tmp_path).path(other.id) == tmp_path / "a.1.npy"
    with pytest.raises(StoreError, match="no such mask"):
        MaskFolder(tmp_path)(other)

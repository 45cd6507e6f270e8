"""Every kind of image file a user may have, and every way it may be broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol.data.images import image_size, read_image
from wsol.errors import DataError

H, W = 37, 53


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((W, H), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_modes_follow_pillow(tmp_path: Path, photo: Image.Image, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    photo.convert(mode).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    found = read_image(path)
    assert found.shape == (H, W, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, expected)


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new("CMYK", (W, H), (0, 255, 255, 0)).save(path, quality=95)
    assert np.abs(read_image(path).astype(int) - [255, 0, 0]).max() < 12


def test_palette_with_transparency_is_silent(
    tmp_path: Path, photo: Image.Image, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "x.png"
    indexed = photo.quantize(16)
    indexed.save(path, transparency=bytes(range(0, 256, 16)))
    found = read_image(path)
    np.testing.assert_array_equal(found, np.asarray(indexed.convert("RGB")))
    assert not recwarn.list


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, H * W).reshape(H, W).astype(np.uint16)
    path = tmp_path / "x.png"
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_sixteen_bit_colour_png(tmp_path: Path) -> None:
    import cv2

    values = np.random.default_rng(1).integers(0, 65536, (H, W, 3)).astype(np.uint16)
    path = tmp_path / "x.png"
    assert cv2.imwrite(str(path), values[..., ::-1])
    assert np.abs(read_image(path).astype(int) - values.astype(int) / 257).max() <= 1.01


def test_float_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.ones((H, W), dtype=np.float32)).save(path)
    with pytest.raises(DataError, match="no fixed range"):
        read_image(path)


def test_one_pixel(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("L", (1, 1), 7).save(path)
    np.testing.assert_array_equal(read_image(path), np.full((1, 1, 3), 7, np.uint8))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.05])
def test_truncated_file_is_an_error_not_grey(tmp_path: Path, photo: Image.Image, suffix: str, share: float) -> None:
    path = tmp_path / f"x{suffix}"
    photo.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match="cannot read the image"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0"])
def test_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read the image"):
        read_image(path)
    with pytest.raises(DataError):
        image_size(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such image"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(DataError):
        read_image(tmp_path)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> None:
    path = tmp_path / "x.png"
    photo.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for function in (read_image, image_size):
        with pytest.raises(DataError, match="too many pixels"):
            function(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(tmp_path: Path, photo: Image.Image, orientation: int) -> None:
    from PIL import ImageOps

    path = tmp_path / "x.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(path, upright=True), expected)
    np.testing.assert_array_equal(read_image(path), np.asarray(photo))
    assert image_size(path, upright=True) == expected.shape[:2]
    assert image_size(path) == (H, W)


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_tiff_is_that_of_its_pixels(tmp_path: Path, orientation: int, upright: bool) -> None:
    path = tmp_path / "x.tif"
    Image.new("RGB", (W, H)).save(path, tiffinfo={0x0112: orientation})
    assert image_size(path, upright=upright) == read_image(path, upright=upright).shape[:2]
    assert image_size(path, upright=True) == ((H, W) if orientation < 5 else (W, H))

"""Images of every mode become 8-bit grey or colour as they look, or are refused by name."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.pictures import read_picture

RAMP = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)  # black to white, evenly


def saved(tmp_path: Path, image: Any, name: str = "x.png", **options: Any) -> Path:
    path = tmp_path / name
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled(name: str, channels: int, tmp_path: Path) -> None:
    read = read_picture(saved(tmp_path, RAMP, name), channels)
    assert read.shape == (32, 32, channels)
    assert np.array_equal(read[..., -1], np.rint(RAMP / 257))
    assert len(np.unique(read)) == 256


def tiff16(values: np.ndarray, order: str, photometric: int) -> bytes:
    """An uncompressed grey TIFF, as cameras and microscopes write it."""
    pixels = values.astype(f"{order}u2").tobytes()
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, 16), (259, 1)]
    tags += [(262, photometric), (273, 8), (277, 1), (278, values.shape[0]), (279, len(pixels))]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return mark + struct.pack(f"{order}I", 8 + len(pixels)) + pixels + directory


@pytest.mark.parametrize(("order", "photometric"), [("<", 1), ("<", 0), (">", 1)])
def test_sixteen_bits_of_either_order_and_of_negatives(
    order: str, photometric: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff16(RAMP, order, photometric))
    upright = np.rint(RAMP / 257)
    assert np.array_equal(read_picture(path, 1)[..., 0], upright if photometric else 255 - upright)


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_colour_of_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    values = np.array([[0, 30000, 65535]], dtype=">u2")
    path.write_bytes(png(1, 1, 16, 2, b"\0" + values.tobytes()))
    assert np.abs(read_picture(path, 3)[0, 0] - values[0] / 257).max() <= 1


RED = (250, 10, 20)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGBA", "x.png"), ("P", "x.png"), ("CMYK", "x.jpg"), ("CMYK", "x.tif"), ("LAB", "x.tif"),
        ("YCbCr", "x.jpg"), ("RGBA", "x.webp"), ("RGB", "x.bmp"), ("RGB", "x.ppm"),
    ],
)  # fmt: skip
def test_modes_of_colour(mode: str, name: str, tmp_path: Path) -> None:
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(Image.new("RGB", (8, 8), RED), *profiles, outputMode=mode)
    else:
        image = palette() if mode == "P" else Image.new("RGB", (8, 8), RED).convert(mode)
    path = saved(tmp_path, image, name)
    assert np.abs(read_picture(path, 3)[4, 4].astype(int) - RED).max() <= 6
    assert abs(int(read_picture(path, 1)[4, 4, 0]) - 83) <= 3  # the luminance of RED


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_modes_of_grey(mode: str, tmp_path: Path) -> None:
    values = np.where(RAMP > 30000, 255, 0).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(values).convert(mode))
    for channels in (1, 3):
        assert np.array_equal(read_picture(path, channels), np.dstack([values] * channels))


def palette() -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    return image


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB", "I;16"])
def test_transparent_images_are_refused(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    if kind == "P":
        image, options = palette(), {"transparency": bytes([255, 100])}
    elif kind == "RGB":
        image, options = Image.new("RGB", (8, 8), RED), {"transparency": RED}
    elif kind == "I;16":
        image, options = Image.fromarray(RAMP), {"transparency": 128}
    else:
        image = Image.new(kind, (8, 8), (*RED, 128)[-len(kind) :])
    path = saved(tmp_path, image, **options)
    with pytest.raises(ValueError, match=r"x\.png is transparent in places.*-alpha remove"):
        read_picture(path, 3)
    unused = {"RGB": (1, 2, 3), "I;16": 1, "P": bytes([0, 255])}
    if kind in unused:
        path = saved(tmp_path, image, transparency=unused[kind])
        assert read_picture(path, 3).shape[-1] == 3


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_is_upright(name: str, dtype: Any, tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(4, 16)
    stored = values if dtype == np.uint8 or name == "x.webp" else values.astype(dtype) * 257
    exif, options = Image.Exif(), {"lossless": True} if name == "x.webp" else {}
    for orientation, turned in ((3, np.rot90(values, 2)), (6, np.rot90(values, -1))):
        exif[0x0112] = orientation
        path = saved(tmp_path, stored, name, exif=exif, **options)
        assert np.array_equal(read_picture(path, 1)[..., 0], turned)


@pytest.mark.parametrize(
    ("image", "name", "options", "said"),
    [
        (RAMP.astype(np.float32), "x.tif", {}, "floating-point values"),
        (RAMP.astype(np.int32), "x.tif", {}, "32-bit or signed values"),
        (palette(), "x.tif", {"save_all": True, "append_images": [palette()]}, "2 frames or pages"),
        (palette(), "x.webp", {"save_all": True, "append_images": [Image.new("L", (8, 8))]},
         "2 frames or pages"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(
    image: Any, name: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, image, name, **options)
    with pytest.raises(ValueError, match=said) as caught:
        read_picture(path, 1)
    assert str(path) in str(caught.value)


def test_a_phones_jpeg_is_its_first_image(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    thumb = Image.new("RGB", (4, 4))
    Image.new("RGB", (8, 8), RED).save(path, "MPO", save_all=True, append_images=[thumb])
    assert read_picture(path, 3).shape == (8, 8, 3)


@pytest.mark.parametrize("side", [14000, 60000])
def test_an_image_beyond_pillows_limit(side: int, tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(png(side, side, 8, 0, b""))
    with pytest.raises(ValueError, match=r"big\.png is too large.*make it smaller"):
        read_picture(path, 1)


def test_what_is_no_image(tmp_path: Path) -> None:
    whole = saved(tmp_path, RAMP).read_bytes()
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"  # another program would run it
    for content in (b"", b"text", whole[:-200], script):
        path = tmp_path / "broken.png"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.png is not a readable image") as caught:
            read_picture(path, 1)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_that_may_not_be_read(tmp_path: Path) -> None:
    path = saved(tmp_path, RAMP)
    path.chmod(0)
    with pytest.raises(ValueError, match=r"x\.png is not a readable image \(Permission denied\)"):
        read_picture(path, 1)

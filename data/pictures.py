"""Reads an image file as 8-bit grey or colour, converted correctly or refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
# Names may lie. Only these of Pillow's formats: EPS, for one, would start another program.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, SIGNED = 0, 2  # their values


class _Unsuitable(Exception):
    """The rest of a sentence that begins with the file's name."""


def read_picture(file: Path, channels: int) -> NDArray[np.uint8]:
    """The pixels [H, W, C] of an image, upright as its EXIF data has it.

    Grey of 16 bits is scaled over its full range; CMYK, palettes and the like become RGB.

    Args:
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: for a file that is not a readable image, or cannot become 8-bit grey or colour
            without a decision by the user: transparency, several frames, 32-bit or float values.
    """
    try:
        with warnings.catch_warnings(), open(file, "rb") as stream:
            warnings.simplefilter("ignore")  # of large images, and of odd EXIF data
            # By its name, Pillow would map the file, which scrambles a TIFF that lies on its side.
            with Image.open(stream, formats=FORMATS) as opened:
                pixels = _pixels(opened, "RGB" if channels == 3 else "L")
    except _Unsuitable as error:
        raise ValueError(f"{file} {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{file} is too large ({error}): make it smaller first") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file shows as almost any exception
        reason = (getattr(error, "strerror", None) or str(error)).split("\n")[0][:100]
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"Pillow finds none of {', '.join(FORMATS)} in it"
        raise ValueError(
            f"{file} is not a readable image ({reason}): replace or remove it"
        ) from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels, channels // pixels.shape[-1], axis=-1)


def _pixels(opened: Any, mode: str) -> NDArray[np.uint8]:
    """As [H, W] or [H, W, 3]."""
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format != "MPO":  # a phone's JPEG: its first image is the picture
        raise _Unsuitable(
            f"holds {frames} frames or pages, where one image is expected: "
            "save one of them, or each as a file of its own"
        )
    if opened.mode in ("I", "F") or opened.mode.startswith("I;"):
        return _deep_grey(opened)
    if SIGNED in _tags(opened).get(SAMPLE_FORMAT, ()):
        raise _Unsuitable("has signed values: scale them to 0..255 and save them unsigned")
    image = ImageOps.exif_transpose(opened)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise _Unsuitable(_TRANSPARENT)
    if image.mode in ("LAB", "HSV"):  # Pillow does not convert these to grey
        image = image.convert("RGB")
    return np.array(image.convert(mode))


_TRANSPARENT = (
    "is transparent in places, and the background is for you to choose: put all images on one "
    "background, such as white by ImageMagick's mogrify -background white -alpha remove -alpha off"
)


def _deep_grey(opened: Any) -> NDArray[np.uint8]:
    """Grey [H, W] of more than 8 bits, scaled so that the largest possible value is white."""
    if opened.mode == "F" or (opened.mode == "I" and opened.format not in ("PNG", "PPM")):
        kind = "floating-point" if opened.mode == "F" else "32-bit or signed"
        raise _Unsuitable(
            f"has {kind} values, and nothing says which are black and white: "
            "scale them to 0..255 and save them as 8 bits"
        )
    tags = _tags(opened)
    white = 2 ** min(16, max(tags.get(BITS, (16,)))) - 1
    values = np.asarray(ImageOps.exif_transpose(opened)).astype(np.int64)
    clear = opened.info.get("transparency")
    if clear is not None and (values == clear).any():
        raise _Unsuitable(_TRANSPARENT)
    grey = ((values * 255 + white // 2) // white).clip(0, 255).astype(np.uint8)
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return 255 - grey if inverted else grey


def _tags(opened: Any) -> Any:
    return getattr(opened, "tag_v2", {})

"""Encoded pictures to (H, W, 3) uint8 RGB arrays; what is wrong with the bytes becomes a BadRecord with a reason."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from dataset.files import BadRecord

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs
DCT_SCALES = (8, 4, 2)  # the scales that libjpeg-turbo decodes with vector code
# No format that starts another program or renders pages.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")


@dataclass(frozen=True)
class EncodedImage:
    """A picture that is not decoded yet, with its size in pixels; `fast` if simplejpeg can decode it."""

    data: bytes
    height: int
    width: int
    fast: bool

    def decode(self, shrink: float = 1.0) -> np.ndarray:
        """RGB (H, W, 3); up to `shrink` times smaller on each side where that costs less than the full size."""
        scale = next((scale for scale in DCT_SCALES if scale <= shrink), 1)
        if self.fast:
            least = {"min_height": -(-self.height // scale), "min_width": -(-self.width // scale)} if scale > 1 else {}
            try:
                return simplejpeg.decode_jpeg(self.data, "RGB", **least)
            except ValueError:
                pass  # strict about harmless faults too; Pillow tells them from truncation
        return _decode_with_pillow(self.data)

    def open(self) -> Image.Image:
        """The picture in the mode of its file: palette, grey, RGB, with alpha."""
        return Image.fromarray(self.decode()) if self.fast else _load_with_pillow(self.data, None)


def open_image(data: bytes) -> EncodedImage:
    """Size and kind of an encoded picture; BadRecord if it is none or too large."""
    if not data:
        raise BadRecord("empty image")
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # Pillow says more precisely what is wrong
        else:
            return _checked(EncodedImage(data, height, width, fast=colour in ("YCbCr", "Gray")))
    with _open_with_pillow(data) as image:
        return _checked(EncodedImage(data, image.height, image.width, fast=False))


def decode_image(data: bytes) -> np.ndarray:
    """RGB (H, W, 3) of an encoded picture at its full size."""
    return open_image(data).decode()


def _checked(image: EncodedImage) -> EncodedImage:
    if image.height * image.width > MAX_PIXELS:
        found = f"{image.width} x {image.height} pixels"
        raise BadRecord("image too large", f"{found}; allowed at most {MAX_PIXELS} in all")
    if min(image.height, image.width) < 1:
        raise BadRecord("unreadable image", f"{image.width} x {image.height} pixels")
    return image


@functools.cache
def _installed_formats() -> tuple[str, ...]:
    Image.init()  # registers the rarer formats; which ones exist depends on how Pillow was built
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open_with_pillow(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_installed_formats())
    except Image.DecompressionBombError as error:
        raise BadRecord("image too large", str(error)[:200]) from error
    except Exception as error:  # decoders raise anything from KeyError to struct.error on hostile bytes
        raise BadRecord("unreadable image", _describe(data)) from error


def _decode_with_pillow(data: bytes) -> np.ndarray:
    return np.array(_load_with_pillow(data, "RGB"))


def _load_with_pillow(data: bytes, mode: str | None) -> Image.Image:
    """The whole picture in a mode, or in its own."""
    with _open_with_pillow(data) as image:
        try:
            return image.copy() if mode is None else image.convert(mode)
        except Exception as error:  # as above
            is_cut = isinstance(error, (OSError, EOFError)) and "truncated" in str(error).lower()
            reason = "truncated image" if is_cut else "unreadable image"
            raise BadRecord(reason, f"{type(error).__name__}: {str(error)[:150]}") from error


def _describe(data: bytes) -> str:
    return f"{len(data)} bytes beginning with {data[:8]!r}; allowed: {', '.join(FORMATS)}"

"""Decodes images from clients, and makes the pictures that they get."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from deltaconvert.drawing.overlay import overlay
from deltaconvert.serve.limits import Limits, Refused

TYPES = {"image/jpeg": "JPEG", "image/png": "PNG"}
RAW = "application/octet-stream"


def decode(data: bytes, kind: str, size: tuple[int, int], limits: Limits) -> Tensor:
    """uint8 (H, W, 3), RGB, of a JPEG or PNG, or of raw bytes of an image of `size` (height, width).

    The size that an image claims is checked before anything is decoded. Refused for what is none.
    """
    if kind == RAW:
        height, width = size
        if len(data) != height * width * 3:
            raise Refused(422, f"a raw frame is {height} x {width} x 3 bytes, these are {len(data)}")
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(height, width, 3)
    if kind not in TYPES:
        raise Refused(415, f"Content-Type is {kind!r}: give {', '.join(TYPES)} or {RAW}")
    try:
        with Image.open(io.BytesIO(data), formats=[TYPES[kind]]) as image:
            if image.width * image.height > limits.max_pixels:
                raise Refused(
                    413, f"the image has {image.width}x{image.height} pixels, more than the server takes"
                )
            return torch.from_numpy(_rgb(image))
    except Image.DecompressionBombError as error:  # Pillow's own limit raises it too
        raise Refused(413, f"the image has more than {limits.max_pixels} pixels: {error}") from error
    except UnidentifiedImageError as error:  # its own text names an object in memory
        raise Refused(422, f"the image cannot be decoded: it is no {TYPES[kind]}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused(422, f"the image cannot be decoded: {error}") from error


def _rgb(image: Image.Image) -> np.ndarray[Any, Any]:
    """uint8 (H, W, 3), upright: phones turn a mark, not the pixels."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow would make all above 255 white
        high = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(high[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def jpeg(frame: Tensor, quality: int = 80) -> bytes:
    """uint8 (H, W, 3), RGB, as JPEG."""
    out = io.BytesIO()
    Image.fromarray(frame.cpu().numpy()).save(out, "JPEG", quality=quality)
    return out.getvalue()


def marked(image: Tensor, changed: Tensor, stream: str, outputs: list[dict[str, Any]]) -> bytes:
    """A JPEG of what the network saw, with its changed pixels marked and named by what it found.

    image: uint8 (H, W, 3). changed: bool (H', W'), which may be padded or cut. outputs: as `describe` gives them.
    """
    mask = torch.zeros(image.shape[:2], dtype=torch.bool)
    changed = changed.cpu()[: mask.shape[0], : mask.shape[1]]
    mask[: changed.shape[0], : changed.shape[1]] = changed
    label = f"{stream}: {float(changed.float().mean()):.1%} changed"
    if outputs and "top" in outputs[0]:
        label += f", class {outputs[0]['top'][0]['class']}"
    return jpeg(overlay(image, mask, label=label))

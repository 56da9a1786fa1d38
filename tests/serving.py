"""Images for the tests of the server."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

HEIGHT, WIDTH = 48, 64


def frame(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """uint8 (H, W, 3)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8)


def png(image: Tensor) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image.numpy()).save(out, "PNG")
    return out.getvalue()

"""Show what changed: a frame with its changed pixels tinted and outlined, and the rest dimmed."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaconvert.errors import InputError

TINT = (255, 140, 0)  # orange: rare in scenes, and told from grey by colour-blind eyes
OUTLINE = (255, 220, 60)
LABEL_HEIGHT = 1 / 24  # of the frame: readable in a small preview


def overlay(frame: Tensor, mask: Tensor, *, label: str | None = None) -> Tensor:
    """Mark the changed pixels of a frame.

    frame: uint8 (H, W, 3), RGB.
    mask: bool (H, W), true where a pixel changed, on the same device.
    label: text for the upper left corner (left out when Pillow is not installed).
    Returns a new uint8 (H, W, 3): changed pixels 45 % orange with a 1-pixel outline, the rest dim and greyer.
    """
    if frame.dtype != torch.uint8 or frame.dim() != 3 or frame.shape[2] != 3:
        raise InputError(f"frame is {frame.dtype} {tuple(frame.shape)}, it must be torch.uint8 (H, W, 3)")
    if mask.dtype != torch.bool or mask.shape != frame.shape[:2]:
        wanted = f"torch.bool {tuple(frame.shape[:2])}"
        raise InputError(f"mask is {mask.dtype} {tuple(mask.shape)}, it must be {wanted} like the frame")
    # Shares are 64ths in int16 (at most 255 * 64): shifts run several times faster than divisions or floats.
    colour = frame.to(torch.int16)
    red, green, blue = colour.unbind(2)
    grey = (red + 2 * green + blue) >> 2
    shown = ((colour * 28 + (grey * 13)[..., None]) >> 6).to(torch.uint8)
    shown[mask] = ((colour[mask] * 35 + _colour(TINT, frame) * 29) >> 6).to(torch.uint8)
    shown[outline(mask)] = _colour(OUTLINE, frame).to(torch.uint8)
    if label:
        _draw_label(shown, label)
    return shown


def heatmap(frame: Tensor, heat: Tensor, *, label: str | None = None) -> Tensor:
    """Show how often pixels changed: grey where they did not, from dark red to yellow where they did.

    frame: uint8 (H, W, 3), RGB.
    heat: float (H, W), 0 to 1.
    label: as for `overlay`.
    """
    grey = frame.float().mean(2, keepdim=True) * 0.45
    warmth = heat.clamp(0, 1).sqrt().unsqueeze(2)
    fire = torch.cat([warmth * 3, warmth * 3 - 1, warmth * 3 - 2.2], 2).clamp(0, 1) * 255
    share = (warmth * 1.5).clamp(0, 0.85)
    shown = (grey * (1 - share) + fire * share).round().to(torch.uint8)
    if label:
        _draw_label(shown, label)
    return shown


def outline(mask: Tensor) -> Tensor:
    """The border of a mask, bool (H, W): its pixels that have a neighbour (up, down, left, right) outside it.

    The frame's own edge is no border: a region that leaves the picture stays open there.
    """
    inside = mask.clone()
    inside[1:] &= mask[:-1]
    inside[:-1] &= mask[1:]
    inside[:, 1:] &= mask[:, :-1]
    inside[:, :-1] &= mask[:, 1:]
    return mask & ~inside


def _colour(rgb: tuple[int, int, int], like: Tensor) -> Tensor:
    return torch.tensor(rgb, dtype=torch.int16, device=like.device)


def _draw_label(frame: Tensor, label: str) -> None:
    """Write white text on a dark box into the upper left corner, in place."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return
    height, width = frame.shape[:2]
    font = ImageFont.load_default(max(10, round(height * LABEL_HEIGHT)))
    extent = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), label, font=font)
    left, top, right, bottom = (int(v) for v in extent)
    pad = 3
    box = Image.new("L", (right - left + 2 * pad, bottom - top + 2 * pad))
    ImageDraw.Draw(box).text((pad - left, pad - top), label, fill=255, font=font)
    text = torch.frombuffer(bytearray(box.tobytes()), dtype=torch.uint8).view(box.height, box.width, 1)
    text = text[:height, :width].to(frame.device, torch.int16)
    corner = frame[: text.shape[0], : text.shape[1]]  # a view: writing to it writes the frame
    corner.copy_(torch.maximum(corner.to(torch.int16) // 4, text))

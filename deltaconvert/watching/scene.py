"""A still-camera clip to try things on, rendered from photographs: no download, no camera.

The scene is a coffee table seen by a fixed camera. A postcard and two old coins are pushed over it; in
between nothing moves, but the sensor is never quiet. The photographs come inside scikit-image's wheel: the
table and the cat on the postcard are CC0, the coins have no known copyright restrictions.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.errors import VideoError
from deltaconvert.video import VideoWriter

CYCLE = 5.0  # seconds that one run of all movements takes, about; longer clips repeat it
READ_NOISE = 0.9  # of 255, the same everywhere
SHOT_NOISE = 0.0113  # variance per grey level; with the read noise sigma is 1.5 of 255 at mid grey
CRF = 23  # x264's default quality
SHADOW = 0.45  # how much light a shadow takes away
WIDTH = 640  # of the frame that sizes in pixels are meant for
MARGIN = 14  # pixels around a sprite for its shadow's soft edge
COINS = ((348, 187, 31), (333, 44, 28))  # centre x, y and radius of two coins in the photograph


@dataclass(frozen=True)
class Sprite:
    """A thing that moves: colour (3, h, w) in 0..255, alpha and shadow (1, h, w) in 0..1."""

    colour: Tensor
    alpha: Tensor
    shadow: Tensor


class Move(NamedTuple):
    """One slide of a sprite. Times are shares of a cycle, places shares of the frame, angles in degrees."""

    sprite: int
    begin: float
    end: float
    start: tuple[float, float]
    via: tuple[float, float]
    stop: tuple[float, float]
    turn: tuple[float, float]


# A sprite that stops inside the frame lies there until its next move.
# Nothing moves in 0-.05, .42-.52, .76-.80 and .95-1.
MOVES = (
    Move(0, 0.05, 0.30, (-0.20, 0.75), (0.10, 0.90), (0.20, 0.70), (-20.0, 8.0)),  # the postcard comes ...
    Move(1, 0.20, 0.42, (1.10, 0.25), (0.60, 0.05), (-0.10, 0.35), (0.0, -300.0)),  # a coin crosses
    Move(2, 0.52, 0.76, (0.80, 1.15), (0.95, 0.60), (1.12, 0.30), (0.0, 160.0)),  # another cuts the corner
    Move(0, 0.80, 0.95, (0.20, 0.70), (0.05, 0.50), (-0.22, 0.55), (8.0, 30.0)),  # ... and goes
)


def render_clip(
    path: str | Path,
    *,
    seconds: float = 4,
    fps: float = 25,
    size: tuple[int, int] = (640, 360),
    seed: int = 0,
) -> Path:
    """Render the clip into an H.264 file and return its path.

    size: (width, height) in pixels; what lies on the table scales with the width.    seed: of the noise.
    """
    width, height = size
    background, sprites = _scene(width, height)
    noise = torch.Generator().manual_seed(seed)
    frames = max(1, round(seconds * fps))
    cycles = max(1, round(seconds / CYCLE))
    with VideoWriter(path, fps, size, crf=CRF) as out:
        for number in range(frames):
            time = number / frames * cycles % 1.0
            frame = background.clone()
            for index, sprite in enumerate(sprites):
                if (place := _place(index, time)) is not None:
                    _paste(frame, sprite, *place)
            out.write(_sensor(frame, noise))
    return Path(path)


def _sensor(frame: Tensor, generator: torch.Generator) -> Tensor:
    """What a sensor makes of a clean frame (3, H, W): shot and read noise, rounded; uint8 (H, W, 3)."""
    sigma = (READ_NOISE**2 + SHOT_NOISE * frame).sqrt()
    noisy = frame + sigma * torch.randn(frame.shape, generator=generator)
    return noisy.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def _place(sprite: int, time: float) -> tuple[float, float, float] | None:
    """Where a sprite is: x and y as shares of the frame, its angle in radians; None before its first move."""
    begun = [move for move in MOVES if move.sprite == sprite and move.begin <= time]
    if not begun:
        return None
    move = begun[-1]
    t = min(1.0, (time - move.begin) / (move.end - move.begin))
    t = t * t * (3 - 2 * t)  # speeds up and slows down, as a hand does
    x, y = (
        (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t * t * c
        for a, b, c in zip(move.start, move.via, move.stop, strict=True)
    )
    return x, y, math.radians(move.turn[0] + t * (move.turn[1] - move.turn[0]))


def _paste(frame: Tensor, sprite: Sprite, x: float, y: float, angle: float) -> None:
    """Lay a sprite and its shadow on a frame (3, H, W), in place, at a fraction of a pixel."""
    height, width = frame.shape[1:]
    x, y = x * width, y * height
    offset = 0.3 * MARGIN * width / WIDTH  # the light comes from the upper left
    _blend(frame, torch.zeros_like(sprite.colour), sprite.shadow, x + offset, y + offset, angle)
    _blend(frame, sprite.colour, sprite.alpha, x, y, angle)


def _blend(frame: Tensor, colour: Tensor, alpha: Tensor, x: float, y: float, angle: float) -> None:
    """Blend a turned texture over the part of the frame it covers, centred on pixel (x, y)."""
    h, w = alpha.shape[1:]
    reach = math.hypot(h, w) / 2
    left, right = max(0, math.floor(x - reach)), min(frame.shape[2], math.ceil(x + reach))
    top, bottom = max(0, math.floor(y - reach)), min(frame.shape[1], math.ceil(y + reach))
    if left >= right or top >= bottom:
        return
    rows, columns = torch.arange(top, bottom) + 0.5 - y, torch.arange(left, right) + 0.5 - x
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    cos, sin = math.cos(angle), math.sin(angle)
    grid = torch.stack(((cos * across + sin * down) * 2 / w, (cos * down - sin * across) * 2 / h), -1)
    sampled = F.grid_sample(torch.cat((colour, alpha))[None], grid[None], align_corners=False)[0]
    under = frame[:, top:bottom, left:right]
    under += (sampled[:3] - under) * sampled[3:]


def _scene(width: int, height: int) -> tuple[Tensor, list[Sprite]]:
    """The empty table (3, height, width) and the things that move on it, scaled to the frame."""
    try:
        data: Any = importlib.import_module("skimage.data")
    except ImportError as error:
        raise VideoError('the demo clip needs photographs: pip install "deltaconvert[demo]"') from error
    scale = width / WIDTH
    table = _cover(_photo(data.coffee()), width, height)
    cat = _photo(data.chelsea())
    bronze = torch.tensor([1.05, 0.88, 0.62]).view(3, 1, 1)  # the photograph is grey
    coins = (_photo(data.coins()[..., None]) * bronze).clamp(0, 255)
    return table, [_postcard(cat, scale), *(_coin(coins, *circle, scale) for circle in COINS)]


def _postcard(photo: Tensor, scale: float) -> Sprite:
    """A photograph with a white rim, 150 pixels wide in a 640-pixel frame."""
    w, h = max(8, round(150 * scale)), max(6, round(100 * scale))
    rim = max(1, round(5 * scale))
    card = F.pad(_cover(photo, w - 2 * rim, h - 2 * rim), (rim, rim, rim, rim), value=235.0)
    return _sprite(card, torch.ones(1, h, w), scale)


def _coin(photo: Tensor, cx: int, cy: int, radius: int, scale: float) -> Sprite:
    """A disc cut out of a photograph."""
    cut = photo[:, cy - radius : cy + radius, cx - radius : cx + radius]
    side = max(6, round(2 * radius * scale))
    at = torch.arange(side) + 0.5 - side / 2
    alpha = (side / 2 - torch.hypot(at[:, None], at[None, :])).clamp(0, 1)
    return _sprite(_cover(cut, side, side), alpha[None], scale)


def _sprite(colour: Tensor, alpha: Tensor, scale: float) -> Sprite:
    """Give a texture a soft edge and a shadow."""
    margin = max(4, round(MARGIN * scale))
    around = (margin, margin, margin, margin)
    alpha = F.pad(alpha, around)
    colour = F.pad(colour[None], around, mode="replicate")[0]  # the soft edge must not mix with black
    return Sprite(colour, _blur(alpha, 0.7), SHADOW * _blur(alpha, margin / 3))


def _blur(image: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    window = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    window /= window.sum()
    image = F.conv2d(image[None], window.view(1, 1, -1, 1), padding=(reach, 0))
    return F.conv2d(image, window.view(1, 1, 1, -1), padding=(0, reach))[0]


def _photo(array: object) -> Tensor:
    """uint8 (H, W, 3) array -> float (3, H, W)."""
    return torch.as_tensor(array).permute(2, 0, 1).float()


def _cover(photo: Tensor, width: int, height: int) -> Tensor:
    """Scale a photograph (3, H, W) until it covers (height, width), and cut the overhang evenly."""
    h, w = photo.shape[1:]
    scale = max(width / w, height / h)
    scaled = (max(height, round(h * scale)), max(width, round(w * scale)))
    photo = F.interpolate(photo[None], scaled, mode="bicubic", antialias=True)[0].clamp(0, 255)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return photo[:, top : top + height, left : left + width].contiguous()

"""What an operator does in a frame: candidates, their new values, commit. Nothing is kept but the stored map.

`whole` is the meaning, plain torch on any device. `sparse` computes the candidates alone and asks how many there are,
which costs nothing on the CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaconvert.backends.cpu.chunks import chunks, sizes_below
from deltaconvert.backends.cpu.grid import Grid
from deltaconvert.backends.reference import Amount, differs
from deltaconvert.library.described import narrow_in, restore
from deltaconvert.narrow import narrow_reaches
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.fused import head_of, stages_of
from deltaconvert.reach import Everything, Pixel, Reach, Window

TILE = 4
# Shares of candidates above which the dense operator runs: see docs/export.md.
DENSE_FROM = 0.5
ROWS, TILES = 8192, 1024  # of a chunk


class Call:
    """One call of an operator: `maps` and `stored` are N H W C."""

    def __init__(self, maps: Sequence[Tensor], masks: Sequence[Tensor], stored: Tensor, text: str):
        self.maps, self.masks, self.stored, self.text = maps, masks, stored, text

    def place(self, weights: Sequence[Tensor]) -> Place:
        shapes = tuple(_nchw(each) for each in (*self.maps, self.stored))
        return placed(self.text, shapes, tuple((tuple(w.shape), w.dtype) for w in weights))

    def candidates(self, place: Place) -> Tensor:
        found = [reach.spread(mask) for reach, mask in zip(place.reaches, self.masks, strict=True)]
        return torch.stack(found).any(0) if len(found) > 1 else found[0].clone()


class Place:
    """What does not depend on a frame: reaches, and how candidates can be computed apart from the rest."""

    def __init__(self, operator: Operator, shapes: Sequence[Shape], out: Shape, narrow: Collection[int] = ()):
        self.reaches = narrow_reaches(operator, shapes, out, narrow)
        self.grid: Tiles | None = None
        self.by_rows = operator.position_free and all(map(_is_pointlike, self.reaches, shapes))
        first, head = self.reaches[0], head_of(operator)
        free = all(stage.position_free for stage in stages_of(operator))
        beside = all(map(_is_pointlike, self.reaches[1:], shapes[1:]))
        windowed = isinstance(first, Window) and type(head).on_windows is not Operator.on_windows
        if windowed and free and beside:
            assert isinstance(first, Window)
            window = (first.kernel, first.stride, first.padding, first.dilation, first.transposed)
            self.grid = Tiles(shapes[0][0], first.in_size, first.out_size, *window, (TILE, TILE), "")


class Tiles(Grid):
    """Its own scratch memory is for one thread; operators of torch may run in several."""

    def touched(self, mask: Tensor, pixels: Tensor | None = None) -> Tensor:
        (height, width), (down, across) = self._out_size, self.edges
        padded = F.pad(mask[:, 0], (0, -width % across, 0, -height % down))
        lines = padded.view(self._streams, self._counts[0], down, self._counts[1], across)
        return lines.any(4).any(2).view(-1).nonzero().view(-1)


@lru_cache(maxsize=4096)
def placed(text: str, shapes: tuple[Shape, ...], weights: tuple[tuple[Shape, torch.dtype], ...]) -> Place:
    """shapes: N C H W of the maps, and of the result."""
    outline = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in weights]
    with torch.device("cpu"):  # whatever the caller's default is
        return Place(restore(text, outline), shapes[:-1], shapes[-1], narrow_in(text))


def whole(call: Call, weights: Sequence[Tensor], threshold: Amount | None) -> Tensor:
    """Compute everything, keep the candidates that changed; their mask."""
    return _commit_whole(call, weights, call.candidates(call.place(weights)), threshold)


def sparse(call: Call, weights: Sequence[Tensor], threshold: Amount | None) -> Tensor:
    """As `whole`, but for its time."""
    place = call.place(weights)
    if not any(mask.any() for mask in call.masks):
        n, _, height, width = _nchw(call.stored)
        return call.stored.new_zeros((n, 1, height, width), dtype=torch.bool)
    candidates = call.candidates(place)
    if place.by_rows:
        lists, each = candidates.view(-1).nonzero().view(-1), 1
    elif place.grid is not None:
        lists, each = place.grid.touched(candidates), place.grid.tile_pixels
    if not (place.by_rows or place.grid) or len(lists) * each > DENSE_FROM * candidates.numel():
        return _commit_whole(call, weights, candidates, threshold)
    operator = restore(call.text, weights)
    compute = _by_rows if place.by_rows else _by_tiles
    changed = candidates if threshold is None else torch.zeros_like(candidates)
    for chunk in chunks(lists, sizes_below(ROWS if place.by_rows else TILES, 8, candidates.numel())):
        pixels, new = compute(operator, place, call, chunk)
        rows = call.stored.view(-1, call.stored.shape[3])
        if threshold is not None:
            kept = _moved(new, rows.index_select(0, pixels), threshold) & candidates.view(-1)[pixels]
            pixels, new = pixels[kept], new[kept]
            changed.view(-1)[pixels] = True
        rows.index_copy_(0, pixels, new)
    return changed


def _commit_whole(
    call: Call, weights: Sequence[Tensor], candidates: Tensor, threshold: Amount | None
) -> Tensor:
    new = restore(call.text, weights)(*(each.permute(0, 3, 1, 2) for each in call.maps))
    stored = call.stored.permute(0, 3, 1, 2)
    changed = candidates if threshold is None else candidates & differs(new, stored, threshold)
    stored.copy_(torch.where(changed, new, stored))
    return changed


def _by_rows(operator: Operator, place: Place, call: Call, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(pixels, their new rows); the rows are one image of n pixels in a column."""
    columns = [
        _taken(each, reach, pixels, call.stored) for each, reach in zip(call.maps, place.reaches, strict=True)
    ]
    return pixels, _rows(operator(*columns))


def _by_tiles(operator: Operator, place: Place, call: Call, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """The windows of the tiles are a batch of small images."""
    grid, source = place.grid, call.maps[0]
    assert grid is not None
    windows = source.new_empty(len(tiles) * grid.window_pixels, source.shape[3])
    grid.gather(source.view(-1, source.shape[3]), tiles, operator.fill, windows)
    images = windows.view(len(tiles), *grid.window, -1).permute(0, 3, 1, 2)
    new, pixels = grid.crop(_rows(head_of(operator).on_windows(images)), tiles), grid.places(tiles)
    if len(stages_of(operator)) > 1:
        rest = zip(call.maps[1:], place.reaches[1:], strict=True)
        others = [_taken(each, reach, pixels, call.stored) for each, reach in rest]
        new = _rows(operator.finish(_column(new), others))
    return pixels, new


def _taken(source: Tensor, reach: Reach, pixels: Tensor, stored: Tensor) -> Tensor:
    """The pixels of a map, as an image of one column; of a gate those of each pixel's stream."""
    rows = source.view(-1, source.shape[3])
    if not isinstance(reach, Pixel):
        pixels = pixels // (stored.shape[1] * stored.shape[2])
    return _column(rows.index_select(0, pixels))


def _column(rows: Tensor) -> Tensor:
    return rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2)


def _rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def _moved(new: Tensor, stored: Tensor, threshold: Amount) -> Tensor:
    return differs(new.view(*new.shape, 1, 1), stored.view(*stored.shape, 1, 1), threshold).view(-1)


def _is_pointlike(reach: Reach, shape: Shape) -> bool:
    return isinstance(reach, Pixel) or (isinstance(reach, Everything) and shape[2:] == (1, 1) != reach.size)


def _nchw(stored: Tensor) -> Shape:
    n, height, width, channels = stored.shape
    return n, channels, height, width

"""cpu: the same deltas on any machine, at a cost that follows the changed pixels.

State is N H W C in memory, so that a map is also a matrix of rows, one a pixel: a list of pixels is a batch of 1x1
images, a list of tiles with their halo a batch of small ones, and the operator itself computes either. Lists are cut
into chunks of a few fixed sizes: oneDNN prepares itself once for each, scratch memory stays in the cache, and the bits
of a pixel cannot depend on how many others changed.

Each step chooses at plan time how it computes, and runs both ways once on random maps (see Step.settle): the sparse
way and the dense operator may only replace each other where they agree to the last bit, and the one run tells from
which share of candidates on the dense operator is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.reference import INTEGER, fill_unseen
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.base import Operator, Shape
from deltaconvert.ops.batch_norm import BatchNorm
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.conv_transpose import ConvTranspose2d
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.reach import Everything, Pixel, Reach, Sources, Window

NAME = "cpu"

# A chunk of rows: about half a millisecond of a core's multiply-accumulates, and what fits its second-level cache.
CHUNK_MACS, CHUNK_BYTES, CHUNK_ROWS = 50_000_000, 1 << 20, 8192
# A tile's edge, largest first that fits the map. Measured on 2 Zen 4 cores (ResNet-50, 720p, box of 5 %): edge 4
# computes 1.2 times the candidates at 1.1 to 1.4 times oneDNN's dense cost a pixel; 8 computes 1.5 times, 2 costs 1.7.
TILE = 4
# Functions of torch that round once, or not at all, and so to the same bits by vectors and one by one.
EXACT = ("relu", "relu6", "leaky_relu", "hardtanh", "clamp", "abs", "neg", "square", "sqrt", "reciprocal")
GRAIN = 32768  # values that torch gives to one thread
VECTOR = 64  # values of two of the widest vectors, at the smallest dtype
# Two orders of summation agree on a random value more often than not: fewer values than this prove nothing.
ENOUGH_VALUES = 4096


class Edge:
    """One delta: values (N, C, H, W; channels last in memory), mask (N, 1, H, W), and the list of changed pixels.

    Masks are never written after they were made: edges share them.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, threshold: float | None):
        n, channels, height, width = shape
        self.threshold = threshold
        self.values = torch.empty(n, height, width, channels, dtype=dtype).permute(0, 3, 1, 2)
        self.rows = self.values.permute(0, 2, 3, 1).view(-1, channels)
        self.pixel_count = n * height * width
        self._none = torch.zeros(n, 1, height, width, dtype=torch.bool)
        self.stand_still()
        self.reset(slice(None))

    def reset(self, streams: slice) -> None:
        fill_unseen(self.values[streams])

    def stand_still(self) -> None:
        self.mask, self.count, self.computed = self._none, 0, 0
        self._pixels: Tensor | None = None

    def mark(
        self, mask: Tensor, computed: int, count: int | None = None, pixels: Tensor | None = None
    ) -> None:
        """This frame's mask; `computed` pixels were computed for it."""
        self.mask, self._pixels, self.computed = mask, pixels, computed
        self.count = int(mask.count_nonzero()) if count is None else count

    @property
    def pixels(self) -> Tensor:
        """int64, the rows of the changed pixels."""
        if self._pixels is None:
            self._pixels = listed(self.mask)
        return self._pixels

    def adopt(self, new: Tensor, candidates: Tensor, inputs: Sequence[Edge]) -> None:
        """Commit a map that the dense operator computed as a whole."""
        new = new.permute(0, 2, 3, 1).contiguous()
        if any(
            new.untyped_storage().data_ptr() == edge.values.untyped_storage().data_ptr() for edge in inputs
        ):
            new = new.clone()
        rows = new.view(self.rows.shape)
        if self.threshold is None:
            self.rows, self.values = rows, new.permute(0, 3, 1, 2)
            self.mark(candidates, self.pixel_count)
            return
        pixels = listed(candidates)
        rows = rows.index_select(0, pixels)
        kept = moved(rows, self.rows.index_select(0, pixels), self.threshold).nonzero().view(-1)
        pixels = pixels.index_select(0, kept)
        self.rows.index_copy_(0, pixels, rows.index_select(0, kept))
        mask = torch.zeros_like(candidates)
        mask.view(-1)[pixels] = True
        self.mark(mask, self.pixel_count, len(pixels), pixels)

    @property
    def changed(self) -> bool:
        return self.count > 0

    def counts(self) -> tuple[int, int]:
        return self.computed, self.count

    def dense(self) -> Tensor:
        return self.values.clone(memory_format=torch.contiguous_format)

    def state_bytes(self) -> int:
        return self.values.nbytes + self._none.nbytes


def listed(mask: Tensor) -> Tensor:
    return mask.view(-1).nonzero().view(-1)


def moved(new: Tensor, stored: Tensor, threshold: float) -> Tensor:
    """bool (rows): some channel moved by more than `threshold`; NaN moves always."""
    return ~((new - stored).abs_().amax(1) <= threshold)


class FrameEdge(Edge):
    """A delta that dense values come in by. It keeps the last values in their own memory layout as well: comparing
    goes through both from end to end, and only changed pixels are turned into rows."""

    def __init__(self, shape: Shape, dtype: torch.dtype, threshold: float):
        self.stored = torch.empty(shape, dtype=dtype)
        super().__init__(shape, dtype, threshold)
        self._integer = INTEGER[dtype.itemsize]

    def reset(self, streams: slice) -> None:
        super().reset(streams)
        fill_unseen(self.stored[streams])

    def state_bytes(self) -> int:
        return super().state_bytes() + self.stored.nbytes

    def run(self, frame: Tensor) -> None:
        frame = frame.contiguous()
        changed = self._differs(frame)
        count = int(changed.count_nonzero())
        if count == 0:
            self.stand_still()
        elif count > self.pixel_count // 4:
            everything = count == self.pixel_count
            self.stored = frame.clone() if everything else torch.where(changed, frame, self.stored)
            self.values.copy_(self.stored)
            self.mark(changed, self.pixel_count, count)
        else:
            pixels = listed(changed)
            self._store(frame, pixels)
            self.mark(changed, self.pixel_count, count, pixels)

    def _store(self, frame: Tensor, pixels: Tensor) -> None:
        _, channels, height, width = frame.shape
        plane = height * width
        # Pixel p of stream s is element p of each of the stream's channel planes.
        first = pixels % plane + pixels // plane * (channels * plane)
        places = (first.view(-1, 1) + torch.arange(channels) * plane).view(-1)
        new = frame.view(-1).index_select(0, places)
        self.stored.view(-1).index_copy_(0, places, new)
        self.rows.index_copy_(0, pixels, new.view(-1, channels))

    def _differs(self, frame: Tensor) -> Tensor:
        assert self.threshold is not None
        if self.threshold == 0:
            per_channel = frame.view(self._integer) != self.stored.view(self._integer)
        else:
            per_channel = ((frame - self.stored).abs_() <= self.threshold).logical_not_()
        if frame.shape[1] > 4:
            return per_channel.any(1, keepdim=True)
        changed = per_channel[:, :1]
        for channel in range(1, frame.shape[1]):  # faster than a reduction over three values
            changed = changed | per_channel[:, channel : channel + 1]
        return changed.contiguous()


class Backend:
    """Makes the steps of one program; they share scratch memory and the tables of tiles of one geometry."""

    def __init__(self) -> None:
        self._scratch: dict[torch.dtype, Tensor] = {}
        self._grid = lru_cache(maxsize=None)(Grid)
        self._settled: dict[Any, dict[str, Any]] = {}  # what equal steps of this program settled

    def sparsify(self, shape: Shape, dtype: torch.dtype, device: torch.device, threshold: float) -> FrameEdge:
        return FrameEdge(shape, dtype, threshold)

    def step(
        self,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Edge],
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
        threshold: float | None,
        notes: dict[str, Any],
    ) -> Step:
        """notes: what a step settled for this node of the plan, kept for the next program of the same plan."""
        kind = self._kind(operator, reaches, inputs)
        step = kind(self, operator, reaches, inputs, Edge(shape, dtype, threshold))
        key = (kind, _outline(operator), *(tuple(source.values.shape) for source in inputs), shape, dtype)
        step.settle(notes if notes else self._settled.setdefault(key, notes))
        notes.update(self._settled.get(key, notes))
        return step

    def _kind(self, operator: Operator, reaches: Sequence[Reach], inputs: Sequence[Edge]) -> type[Step]:
        first = reaches[0]
        if isinstance(_head(operator), Conv2d | ConvTranspose2d) and not can_pack(inputs[0].values):
            return Step  # outside oneDNN the order of a sum depends on where its pixels lie in memory
        pointlike = [_is_pointlike(reach, source) for reach, source in zip(reaches, inputs, strict=True)]
        if operator.position_free and all(pointlike):
            return Rows
        if all(pointlike[1:]):
            head = _head(operator)
            if (
                operator.position_free
                and isinstance(first, Window)
                and type(head).on_windows is not Operator.on_windows
            ):
                return Tiles
            copies = head.copies and isinstance(first, Sources) and first.single
            if copies and all(stage.position_free for stage in _tail(operator)):
                return Copies
        return Step

    def scratch(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory, the same for every step: valid until the next call."""
        size = 1
        for length in shape:
            size *= length
        if dtype not in self._scratch or self._scratch[dtype].numel() < size:
            self._scratch[dtype] = torch.empty(size, dtype=dtype)
        return self._scratch[dtype][:size].view(tuple(shape))

    def grid(self, *geometry: Any) -> Grid:
        return self._grid(*geometry)


class Step:
    """One operator. As it stands here it computes the whole map as soon as any pixel is a candidate."""

    def __init__(
        self,
        backend: Backend,
        operator: Operator,
        reaches: Sequence[Reach],
        inputs: Sequence[Edge],
        edge: Edge,
    ):
        self.backend, self.operator, self.reaches, self.inputs, self.edge = (
            backend,
            operator,
            reaches,
            inputs,
            edge,
        )
        self.sizes: tuple[int, ...] = ()  # of chunks; none where there is no sparse way
        self.backwards = False  # take the list from its end
        self.dense_from = 0.0  # share of computed pixels from which the dense operator runs
        self.prepare()

    def prepare(self) -> None:
        """What a kind of step needs beside the operator and its edges."""

    def run(self) -> None:
        if not any(source.count for source in self.inputs):
            self.edge.stand_still()
            return
        candidates, pixels = self._candidates()
        if not self._sparse(candidates, pixels):
            self.edge.adopt(self._dense(), candidates, self.inputs)

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        """Compute the candidates and commit them; False if the dense operator should."""
        return False

    def _dense(self) -> Tensor:
        return self.operator(*(source.values for source in self.inputs))

    def _candidates(self) -> tuple[Tensor, Tensor | None]:
        """(mask, list of its pixels if it is known already)."""
        mask, pixels = None, None
        for reach, source in zip(self.reaches, self.inputs, strict=True):
            if source.count == 0 or (mask is not None and mask is source.mask):
                continue
            if mask is None:
                mask = reach.spread(source.mask)
                pixels = source._pixels if mask is source.mask else None
            else:
                mask, pixels = mask | reach.spread(source.mask), None
        assert mask is not None
        return mask, pixels

    def _row_chunks(self) -> tuple[int, ...]:
        shape = tuple(self.edge.values.shape)
        macs = (
            self.operator.macs([tuple(source.values.shape) for source in self.inputs], shape)
            // self.edge.pixel_count
        )
        width = max(self.edge.rows.shape[1], *(source.rows.shape[1] for source in self.inputs))
        rows = min(CHUNK_ROWS, CHUNK_BYTES // (4 * width), CHUNK_MACS // max(macs, 1))
        largest = 1 << max(6, rows.bit_length() - 1)
        return largest, largest // 8, max(8, largest // 64)

    def _taken_beside(self, places: Tensor) -> list[Tensor]:
        """The rows of all inputs but the first."""
        return self._taken(places, 1)

    def _taken(self, places: Tensor, start: int = 0) -> list[Tensor]:
        """The rows of the inputs from `start` on at `places`; of a gate the row of each place's stream."""
        taken = []
        for reach, source in zip(self.reaches[start:], self.inputs[start:], strict=True):
            if not isinstance(reach, Everything):
                taken.append(source.rows.index_select(0, places))
            elif len(source.rows) == 1:
                taken.append(source.rows)
            else:
                plane = self.edge.pixel_count // len(source.rows)
                taken.append(source.rows.index_select(0, places // plane))
        return taken

    def settle(self, notes: dict[str, Any]) -> None:
        """Decide at plan time between the sparse way and the dense operator; the state starts over after it.

        Where their bits differ the sparse way computes every frame: switching would make a pixel's value depend on
        how much changed elsewhere. So would chunk sizes whose bits differ, and then only the smallest is used.
        """
        if not self.sizes:
            return
        if not notes:
            notes.update(self._compare())
        self.dense_from, self.sizes = notes["dense_from"], notes["sizes"]

    def _compare(self) -> dict[str, Any]:
        edge, sizes = self.edge, self.sizes
        for source in self.inputs:
            source.values.uniform_(-1, 1)
        threshold, edge.threshold = edge.threshold, None
        every = torch.ones_like(edge.mask)
        few = torch.zeros_like(every)
        wanted = max(50, ENOUGH_VALUES // edge.rows.shape[1])
        few.view(-1)[:: max(1, edge.pixel_count // wanted)] = True

        def bits(of: tuple[int, ...], mask: Tensor) -> Tensor:
            self.dense_from, self.sizes = 2.0, of
            edge.rows.fill_(float("nan"))
            self._sparse(mask, None)
            return edge.rows.clone()

        sparse = bits(sizes, every)
        self.backwards = True  # of two tiles that share a pixel, the other one writes last
        steady = _same(sparse, bits(sizes, every))
        self.backwards = False
        for size in sizes:
            rows = bits((size,), few)
            if not _same(rows, torch.where(rows.isnan(), rows, sparse)):
                sizes = sizes[-1:]
                sparse = bits(sizes, every)
                break
        self.sizes = sizes
        edge.adopt(self._dense(), every, self.inputs)
        enough = edge.rows.numel() >= ENOUGH_VALUES
        share = self._crossover() if enough and _same(sparse, edge.rows) else 2.0
        edge.threshold = threshold
        edge.stand_still()
        for touched in (edge, *self.inputs):
            touched.reset(slice(None))
        return {"dense_from": share, "sizes": sizes, "steady": steady}

    def _crossover(self) -> float:
        """The share of computed pixels from which the dense operator is faster.

        The sparse way is timed on the upper quarter of the map; its cost grows with what it computes. The best of
        two runs counts: what disturbs a run only ever makes it slower.
        """
        edge = self.edge
        quarter = torch.zeros_like(edge.mask)
        quarter[:, :, : -(-quarter.shape[2] // 4)] = True
        sparse = min(_timed(lambda: self._sparse(quarter, None)) for _ in range(2)) / max(edge.computed, 1)
        every = torch.ones_like(edge.mask)
        dense = (
            min(_timed(lambda: edge.adopt(self._dense(), every, self.inputs)) for _ in range(2))
            / edge.pixel_count
        )
        return dense / sparse


class Rows(Step):
    """Pointwise operators, 1x1 convolutions among them: a list of pixels is a batch of 1x1 images."""

    def prepare(self) -> None:
        self.sizes = self._row_chunks()
        self._compute = Compute(self.operator)

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        if pixels is None:
            pixels = listed(candidates)
        if len(pixels) >= self.dense_from * self.edge.pixel_count:
            return False
        commit = Commit(self.edge, None)
        for chunk in chunks(pixels, self.sizes):
            commit.rows(chunk, self._compute.rows(self._taken(chunk)))
        commit.finish(candidates, pixels, len(pixels))
        return True

    def _dense(self) -> Tensor:
        return self._compute.whole([source.values for source in self.inputs])


class Copies(Step):
    """Nearest interpolation and its kind: every output pixel is a copy of one input pixel."""

    def prepare(self) -> None:
        operator, reaches, inputs, edge = self.operator, self.reaches, self.inputs, self.edge
        self._compute = Compute(operator)
        reach = reaches[0]
        assert isinstance(reach, Sources)
        _, _, height, width = inputs[0].values.shape
        streams = torch.arange(edge.mask.shape[0]).view(-1, 1, 1) * (height * width)
        self._source = (streams + reach.rows.view(-1, 1) * width + reach.cols.view(1, -1)).view(-1)
        self.sizes = self._row_chunks()

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        pixels = listed(candidates)
        if len(pixels) >= self.dense_from * self.edge.pixel_count:
            return False
        commit = Commit(self.edge, None)
        for chunk in chunks(pixels, self.sizes):
            value = self.inputs[0].rows.index_select(0, self._source.index_select(0, chunk))
            commit.rows(chunk, self._compute.tail(value, self._taken_beside(chunk)))
        commit.finish(candidates, pixels, len(pixels))
        return True


class Tiles(Step):
    """Operators with a window: a list of tiles with their halo is a batch of small images without padding."""

    def prepare(self) -> None:
        operator, reaches = self.operator, self.reaches
        assert isinstance(reaches[0], Window)
        # The box around dilated taps is mostly holes: there a tile is one pixel, and its window just the taps.
        dilated = isinstance(_head(operator), Conv2d) and max(reaches[0].dilation) > 1
        self._tile_by(1 if dilated else TILE)

    def _tile_by(self, edge: int) -> None:
        source, window = self.inputs[0].values, self.reaches[0]
        assert isinstance(window, Window)
        self._grid = self.backend.grid(
            source.shape[0],
            window.in_size,
            window.out_size,
            window.kernel,
            window.stride,
            window.padding,
            window.dilation,
            window.transposed,
            edge,
            edge == 1 and isinstance(_head(self.operator), Conv2d),
        )
        bytes_each = self._grid.window_pixels * source.shape[1] * source.element_size()
        most = CHUNK_ROWS // self._grid.tile_pixels
        largest = 1 << max(3, min(most, CHUNK_BYTES // bytes_each).bit_length() - 1)
        # Never one alone: a batch of one takes another way through torch, to other bits.
        self.sizes = tuple(dict.fromkeys((largest, max(2, largest // 8), max(2, largest // 64))))
        self._compute = Compute(self.operator, self._grid)

    def settle(self, notes: dict[str, Any]) -> None:
        if notes.get("tile"):
            self._tile_by(notes["tile"])
        super().settle(notes)

    def _compare(self) -> dict[str, Any]:
        found = super()._compare()
        if found["steady"] or self._grid.tile_pixels == 1:
            return found
        self._tile_by(1)
        return super()._compare() | {"tile": 1}

    def _sparse(self, candidates: Tensor, pixels: Tensor | None) -> bool:
        tiles = self._grid.touched(candidates)
        if self.backwards:
            tiles = tiles.flip(0)
        if len(tiles) * self._grid.tile_pixels >= self.dense_from * self.edge.pixel_count:
            return False
        source = self.inputs[0]
        commit = Commit(self.edge, candidates)
        for chunk in chunks(tiles, self.sizes):
            windows = self.backend.scratch(
                (len(chunk) * self._grid.window_pixels, source.rows.shape[1]), source.rows.dtype
            )
            self._grid.gather(source.rows, chunk, self.operator.fill, windows)
            places = self._grid.places(chunk)
            commit.rows(places, self._compute.windows(windows, chunk, self._taken_beside(places)))
        commit.finish(candidates, None, min(len(tiles) * self._grid.tile_pixels, self.edge.pixel_count))
        return True

    def _dense(self) -> Tensor:
        return self._compute.whole([source.values for source in self.inputs])


class Commit:
    """Stores computed rows; with a threshold only those candidates that moved."""

    def __init__(self, edge: Edge, candidates: Tensor | None):
        self.edge = edge
        self._candidates = None if candidates is None else candidates.view(-1)
        self._stored: list[Tensor] = []

    def rows(self, places: Tensor, new: Tensor) -> None:
        edge = self.edge
        if edge.threshold is not None:
            changed = moved(new, edge.rows.index_select(0, places), edge.threshold)
            if self._candidates is not None:
                changed &= self._candidates.index_select(0, places)
            kept = changed.nonzero().view(-1)
            if len(kept) < len(places):
                places, new = places.index_select(0, kept), new.index_select(0, kept)
            self._stored.append(places)
        edge.rows.index_copy_(0, places, new)

    def finish(self, candidates: Tensor, pixels: Tensor | None, computed: int) -> None:
        edge = self.edge
        if edge.threshold is None:
            edge.mark(candidates, computed, None if pixels is None else len(pixels), pixels)
            return
        mask = torch.zeros_like(candidates)
        if self._stored:  # no candidate at all where a stride steps over the changes
            mask.view(-1)[torch.cat(self._stored)] = True
        edge.mark(mask, computed)


class Grid:
    """The tiles of one output map, and the windows of input pixels that they read.

    Tiles never reach over the map's edge: the last one of a row or column starts further in instead, and computes some
    pixels a second time, to the same bits.
    """

    def __init__(
        self,
        streams: int,
        in_size: tuple[int, int],
        out_size: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        transposed: bool,
        tile: int,
        taps_only: bool,
    ):
        self._streams, self._out_size, self.taps_only = streams, out_size, taps_only
        self.edges = tuple(min(tile, size) for size in out_size)
        self._counts = tuple(-(-size // edge) for size, edge in zip(out_size, self.edges, strict=True))
        axes = []
        for axis in (0, 1):
            count, edge = self._counts[axis], self.edges[axis]
            starts = (torch.arange(count) * edge).clamp(max=out_size[axis] - edge)
            reach = dilation[axis] * (kernel[axis] - 1)
            if transposed:
                # Input i writes outputs i * stride - padding + k * dilation, k dilated up to `reach`: `first` is the
                # first input that can reach the tile, or the last one before it where stride leaves holes.
                before = starts + padding[axis]
                first = torch.minimum(-((reach - before) // stride[axis]), before // stride[axis])
                skip = before - first * stride[axis]
                length = -(-(int(skip.max()) + edge - 1 - reach) // stride[axis]) + 1
                length = max(length, int(((before + edge - 1) // stride[axis] - first).max()) + 1)
                result = (length - 1) * stride[axis] + reach + 1
            else:
                first = starts * stride[axis] - padding[axis]
                length = kernel[axis] if self.taps_only else (edge - 1) * stride[axis] + reach + 1
                skip, result = torch.zeros_like(starts), edge
            reads = first.view(-1, 1) + torch.arange(length) * (dilation[axis] if self.taps_only else 1)
            axes.append((starts, reads, skip, result))
        (ys, reads_y, skip_y, result_y), (xs, reads_x, skip_x, result_x) = axes
        self.window = (reads_y.shape[1], reads_x.shape[1])
        self.window_pixels = self.window[0] * self.window[1]
        self.tile_pixels = self.edges[0] * self.edges[1]
        self._crop = None
        if (result_y, result_x) != self.edges:
            self._result_pixels = result_y * result_x
            y = skip_y.view(-1, 1, 1, 1) + torch.arange(self.edges[0]).view(1, 1, -1, 1)
            x = skip_x.view(1, -1, 1, 1) + torch.arange(self.edges[1]).view(1, 1, 1, -1)
            self._crop = (y * result_x + x).view(-1, self.tile_pixels).repeat(streams, 1)
        height, width = in_size
        streams_first = torch.arange(streams).view(-1, 1, 1, 1, 1)
        outside_y = (reads_y < 0) | (reads_y >= height)
        outside_x = (reads_x < 0) | (reads_x >= width)
        rows = (streams_first * height + reads_y.clamp(0, height - 1).view(-1, 1, self.window[0], 1)) * width
        self._reads = (
            (rows + reads_x.clamp(0, width - 1).view(1, -1, 1, self.window[1]))
            .to(torch.int32)
            .reshape(-1, self.window_pixels)
        )
        outside = outside_y.view(-1, 1, self.window[0], 1) | outside_x.view(1, -1, 1, self.window[1])
        self._outside = outside.expand(streams, *outside.shape).reshape(-1, self.window_pixels)
        self._at_border = self._outside.any(1)
        tile_y = ys.view(-1, 1, 1, 1) + torch.arange(self.edges[0]).view(1, 1, -1, 1)
        tile_x = xs.view(1, -1, 1, 1) + torch.arange(self.edges[1]).view(1, 1, 1, -1)
        self._writes = ((streams_first * out_size[0] + tile_y) * out_size[1] + tile_x).reshape(
            -1, self.tile_pixels
        )
        self._padded = torch.zeros(
            streams, self._counts[0] * self.edges[0], self._counts[1] * self.edges[1], dtype=torch.bool
        )

    def touched(self, mask: Tensor) -> Tensor:
        """int64, the tiles in which `mask` (N, 1, H, W) has a pixel."""
        height, width = self._out_size
        self._padded[:, :height, :width] = mask[:, 0]
        tiles = self._padded.view(
            self._streams, self._counts[0], self.edges[0], self._counts[1], self.edges[1]
        )
        return tiles.any(4).any(2).view(-1).nonzero().view(-1)

    def gather(self, rows: Tensor, tiles: Tensor, fill: float, windows: Tensor) -> None:
        """Copy the windows of `tiles` into `windows` (tiles * window_pixels, C); outside the map lies `fill`."""
        torch.index_select(rows, 0, self._reads.index_select(0, tiles).view(-1), out=windows)
        if bool(self._at_border.index_select(0, tiles).any()):
            windows.masked_fill_(self._outside.index_select(0, tiles).view(-1, 1), fill)

    def crop(self, rows: Tensor, tiles: Tensor) -> Tensor:
        """What the operator made of the windows -> the pixels of `tiles`; a transposed window makes more than those."""
        if self._crop is None:
            return rows
        first = torch.arange(len(tiles)).view(-1, 1) * self._result_pixels
        return rows.index_select(0, (first + self._crop.index_select(0, tiles)).view(-1))

    def places(self, tiles: Tensor) -> Tensor:
        """int64, the output pixels of `tiles`, one tile after the other."""
        return self._writes.index_select(0, tiles).view(-1)


class Compute:
    """An operator on rows, on windows and on whole maps, its convolution packed once for oneDNN."""

    def __init__(self, operator: Operator, grid: Grid | None = None):
        self._operator, self._grid = operator, grid
        self._head = _head(operator)
        self._stages = list(_tail(operator))
        self._heads = operator.head_inputs if isinstance(operator, Fused) else None
        self._whole: Callable[..., Tensor] = self._head
        self._local: Callable[..., Tensor] = self._head if grid is None else self._head.on_windows
        self._skip = 0
        # A 1x1 convolution of rows: the head itself, or the head on rows of taps.
        self._on_rows = isinstance(self._head, Conv2d) and (
            grid is None or (grid.taps_only and self._head.groups == 1)
        )
        if isinstance(self._head, Conv2d):
            local = _on_taps(self._head) if grid is not None and grid.taps_only else self._head
            activation = self._fused_activation()
            self._whole = PackedConv(self._head, self._head.padding, activation)
            self._local = PackedConv(local, (0, 0), activation)
            self._skip = 1 if activation != "none" else 0

    def rows(self, inputs: Sequence[Tensor]) -> Tensor:
        """(n, C), ... -> (n, C')."""
        if self._on_rows:
            return self.tail(self._product(inputs[0]), inputs[1:])
        value = self._apply_head([_points(x) for x in inputs[: self._heads]])
        return self.tail(value.reshape(value.shape[0], -1), inputs[self._heads :] if self._heads else [])

    def windows(self, windows: Tensor, tiles: Tensor, others: Sequence[Tensor]) -> Tensor:
        """(tiles * window_pixels, C) -> (tiles * tile_pixels, C')."""
        assert self._grid is not None
        if self._on_rows:
            return self.tail(self._product(windows.view(len(tiles), -1)), others)
        images = windows.view(len(tiles), *self._grid.window, -1).permute(0, 3, 1, 2)
        value = self._local(images).permute(0, 2, 3, 1)
        value = value.reshape(-1, value.shape[-1])
        return self.tail(self._grid.crop(value, tiles), others)

    def _product(self, rows: Tensor) -> Tensor:
        """A 1x1 convolution of rows: one image of n x 1 pixels over the same memory."""
        value = self._local(rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2))
        return value.permute(0, 2, 3, 1).reshape(len(rows), -1)

    def tail(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The elementwise stages behind the head on rows (n, C') of fresh memory."""
        if len(self._stages) == self._skip:
            return value
        return self._apply(_points(value), [_points(other) for other in others]).reshape(value.shape[0], -1)

    def whole(self, values: Sequence[Tensor]) -> Tensor:
        """N C H W, ... -> N C' H' W'."""
        value = self._apply_head(values[: self._heads])
        return self._apply(value, values[self._heads :] if self._heads else [])

    def _apply_head(self, inputs: Sequence[Tensor]) -> Tensor:
        if isinstance(self._whole, PackedConv):
            return self._whole(*inputs)
        return apply(self._head, inputs)

    def _apply(self, value: Tensor, others: Sequence[Tensor]) -> Tensor:
        """The tail; where a stage has an in-place spelling it writes to the value, which is nobody else's."""
        if not isinstance(self._operator, Fused):
            return value
        place = 0
        stages = zip(self._stages, self._operator.counts, self._operator.slots, strict=True)
        for index, (stage, count, slot) in enumerate(stages):
            inputs = list(others[place : place + count])
            place += count
            if index >= self._skip:
                value = apply(stage, [*inputs[:slot], value, *inputs[slot:]], slot)
        return value

    def _fused_activation(self) -> str:
        first = self._stages[0] if self._stages else None
        return "relu" if isinstance(first, Pointwise) and first.function == "relu" else "none"


class PackedConv:
    """A convolution whose weights lie in oneDNN's own order: torch would bring them there in every call.

    The order can depend on the size of the input, and a call with weights in another one is ten times slower: each
    size has weights of its own. The two operators are Inductor's; where a build of torch lacks them, can_pack says no.
    """

    def __init__(self, conv: Conv2d, padding: tuple[int, int], activation: str):
        self._conv, self._activation, self._padding = conv, activation, list(padding)
        self._stride, self._dilation = list(conv.stride), list(conv.dilation)
        self._packed: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        conv, shape = self._conv, tuple(x.shape)
        if shape not in self._packed:
            self._packed[shape] = torch.ops.mkldnn._reorder_convolution_weight(
                conv.weight.contiguous(memory_format=torch.channels_last),
                self._padding,
                self._stride,
                self._dilation,
                conv.groups,
                list(shape),
            )
        return torch.ops.mkldnn._convolution_pointwise(
            x,
            self._packed[shape],
            conv.bias,
            self._padding,
            self._stride,
            self._dilation,
            conv.groups,
            self._activation,
            [],
            "",
        )


def can_pack(example: Tensor) -> bool:
    """oneDNN takes this map, and torch has the operators for packed weights."""
    return bool(
        example.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )


def chunks(indices: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Cut `indices` into pieces of the given sizes, largest first; the last piece repeats its last index."""
    pieces, start, left = [], 0, len(indices)
    for size in sizes:
        # More than half a chunk costs less as a whole one than as several small ones.
        while left > size // 2 or (left and size == sizes[-1]):
            piece = indices[start : start + size]
            if left < size:
                piece = torch.cat([piece, piece[-1:].expand(size - left)])
            pieces.append(piece)
            start, left = start + size, max(0, left - size)
    return pieces


def _points(rows: Tensor) -> Tensor:
    """(n, C) as n images of one pixel."""
    return rows.view(rows.shape[0], -1, 1, 1)


def _outline(operator: Any) -> Any:
    """The operator without the values of its weights: what its speed and its order of summation depend on."""
    if isinstance(operator, Fused):
        return tuple(map(_outline, operator.stages)), tuple(operator.counts), tuple(operator.slots)
    settings = operator.settings().items()
    return type(operator), tuple(
        (k, tuple(v.shape) if isinstance(v, Tensor) else repr(v)) for k, v in settings
    )


def _head(operator: Operator) -> Operator:
    return operator.head if isinstance(operator, Fused) else operator


def _on_taps(conv: Conv2d) -> Conv2d:
    """The convolution on gathered taps: of rows (n, kh * kw * C) where it can be a product, else of kh x kw windows."""
    weight = conv.weight
    if conv.groups == 1:
        weight = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1)
    return Conv2d(weight, conv.bias, (1, 1), (0, 0), (1, 1), conv.groups)


def _tail(operator: Operator) -> list[Operator]:
    return list(operator.stages[1:]) if isinstance(operator, Fused) else []  # type: ignore[arg-type]


def _is_pointlike(reach: Reach, source: Edge) -> bool:
    """The input can be taken pixel by pixel: it is read there, or it is a gate."""
    return isinstance(reach, Pixel) or (
        isinstance(reach, Everything) and tuple(source.values.shape[2:]) == (1, 1) and reach.size != (1, 1)
    )


def apply(stage: Operator, inputs: Sequence[Tensor], own: int | None = None) -> Tensor:
    """A pointwise operator, to the same bits wherever a value lies. Input `own` may be overwritten."""
    if isinstance(stage, Pointwise):
        if stage.function not in EXACT:
            return steadily(stage, inputs[0])
        in_place = getattr(torch, stage.function + "_", None)
        if own is not None and in_place is not None and not stage.options:
            return in_place(inputs[own])
    if isinstance(stage, BatchNorm):
        scale, shift = (part.view(1, -1, 1, 1) for part in stage.scale_shift())
        return inputs[0].mul_(scale).add_(shift) if own is not None else (inputs[0] * scale).add_(shift)
    if isinstance(stage, Arithmetic) and stage.function == "add" and own is not None and len(inputs) == 2:
        return inputs[own].add_(inputs[1 - own])
    return stage(*inputs)


def steadily(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of each value of `x` (channels last or rows), to the same bits wherever the value lies.

    torch computes exp and its kin by vectors, and what is left over at the end of a thread's share one by one, to other
    bits. Pieces that fill vectors and threads evenly leave nothing over.
    """
    flat = x.permute(0, 2, 3, 1).reshape(-1)
    result = torch.empty_like(flat)
    length, start = len(flat), 0
    for piece in (GRAIN * torch.get_num_threads(), GRAIN):
        while length - start >= piece:
            result[start : start + piece] = function(flat[start : start + piece])
            start += piece
    rest = flat[start:]
    if len(rest):
        padded = torch.nn.functional.pad(rest, (0, -len(rest) % VECTOR))
        result[start:] = function(padded)[: len(rest)]
    n, channels, height, width = x.shape
    return result.view(n, height, width, channels).permute(0, 3, 1, 2)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, but for the payload of NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

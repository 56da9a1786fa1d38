"""A share of a Winograd convolution and the stages behind it: some squares of 2x2 pixels go through all of them.

For each square what it reads is spread into 16 rows; row i of all squares is multiplied with row i of the
weights; and the 16 products are joined to 4 pixels, of which those are stored that are asked for. See transforms.py.

It imports numba, so it is imported where such a chain is made.
"""

from __future__ import annotations

from typing import Any

from deltaconvert.backends.cpu.native import jobs as j
from deltaconvert.backends.cpu.native import shares as s
from deltaconvert.backends.cpu.native.kernels import matrix_product
from deltaconvert.backends.cpu.native.machine_code import compiled, shared
from deltaconvert.backends.cpu.native.memory import floats, in_share, ints
from deltaconvert.backends.cpu.native.transforms import READ, SQUARE, joined, spread_read
from deltaconvert.backends.cpu.native.vectors import LANES, ROWS, Narrow

# The fields of squares, beside the job of all stages: the address of that job, the squares (0 for all) and how many
# there are, blocks of them that go together, bytes between the numbers of what is read and between those of products.
CHAIN, SQUARES, COUNT, GROUP, READ_APART, PRODUCTS_APART = range(6)
FIELDS = 6
# Those of a square: its number, a bit for each of its pixels, and the places of the first one in each of its lines.
NUMBER, BITS, UPPER, LOWER = range(4)
SQUARE_FIELDS = 4
WIDTH = 2 * LANES  # channels of a panel

_spread, _spread_narrow = spread_read(), spread_read(Narrow)
_product: Any = matrix_product
_joined, _joined_narrow = joined(), joined(Narrow)


@compiled
def listed_squares(pixels: Any, height: Any, breadth: Any, found: Any) -> Any:
    """The squares that hold one of `pixels`, which are in order."""
    count, i, across = 0, 0, (breadth + 1) // 2
    while i < len(pixels):
        line = pixels[i] // breadth
        stream = line // height
        top = (line - stream * height) // 2  # of the lines of squares
        begin = (stream * height + 2 * top) * breadth
        middle = begin + breadth
        end = middle + breadth if 2 * top + 1 < height else middle
        square = (stream * ((height + 1) // 2) + top) * across
        k = i
        while k < len(pixels) and pixels[k] < middle:
            k += 1
        first, last = i, k
        while k < len(pixels) and pixels[k] < end:
            k += 1
        upper, lower, i = first, last, k
        while upper < last or lower < i:
            x = across
            if upper < last:
                x = (pixels[upper] - begin) // 2
            if lower < i:
                x = min(x, (pixels[lower] - middle) // 2)
            own, bits = found[count], 0
            own[NUMBER], own[UPPER], own[LOWER] = square + x, upper, lower
            while upper < last and (pixels[upper] - begin) // 2 == x:
                bits |= 1 << (pixels[upper] - begin - 2 * x)
                upper += 1
            while lower < i and (pixels[lower] - middle) // 2 == x:
                bits |= 4 << (pixels[lower] - middle - 2 * x)
                lower += 1
            own[BITS] = bits
            count += 1
    return count


@in_share
def _read(job: Any, stream: Any, y: Any, x: Any, table: Any) -> None:
    """Addresses of the 4x4 pixels that the square at (y, x) reads."""
    step = ints(job[j.STAGE_TABLE], j.STAGE)[j.READ_BYTES]
    top, left = y - job[j.PADDING_Y], x - job[j.PADDING_X]
    for row in range(4):
        inside = 0 <= top + row < job[j.HEIGHT]
        line = job[j.INPUT] + ((stream * job[j.HEIGHT] + top + row) * job[j.BREADTH] + left) * step
        for col in range(4):
            there = inside and 0 <= left + col < job[j.BREADTH]
            table[4 * row + col] = line + col * step if there else job[j.ZEROS]


@in_share
def _take(job: Any, own: Any, first: Any, count: Any, read: Any, table: Any, pixels: Any, places: Any) -> Any:
    """Spread what `count` squares from number `first` on read, and list their pixels that are asked for.

    places: of each pixel of each square its place in that list, or -1. Returns how many pixels there are.
    """
    squares = ints(own[SQUARES], own[COUNT] * SQUARE_FIELDS if own[SQUARES] else 0)
    stage = ints(job[j.STAGE_TABLE], j.STAGE)
    depth = stage[j.DEPTH]
    height, breadth = job[j.OUT_HEIGHT], job[j.OUT_BREADTH]
    down, across = (height + 1) // 2, (breadth + 1) // 2
    asked, upper, lower = 0, 0, 0
    for i in range(count):
        square, bits = first + i, 15
        if len(squares):
            listed = squares[square * SQUARE_FIELDS :]
            square, bits, upper, lower = listed[NUMBER], listed[BITS], listed[UPPER], listed[LOWER]
        line = square // across
        x, stream = 2 * (square - line * across), line // down
        y = 2 * (line - stream * down)
        _read(job, stream, y, x, table)
        if stage[j.BYTES] == 2:
            _spread_narrow(table.ctypes.data, depth, read + i * 4 * depth, own[READ_APART])
        else:
            _spread(table.ctypes.data, depth, read + i * 4 * depth, own[READ_APART])
        for q in range(SQUARE):
            row, col = y + q // 2, x + q % 2
            places[SQUARE * i + q] = -1
            if bits & (1 << q) and row < height and col < breadth:
                pixels[asked] = (stream * height + row) * breadth + col
                if job[j.BY_PLACE]:
                    pixels[asked] = upper if row == y else lower
                    upper, lower = upper + (row == y), lower + (row != y)
                places[SQUARE * i + q] = asked
                asked += 1
    return asked


@in_share
def _address(base: Any, step: Any, pixels: Any, places: Any, spare: Any, table: Any) -> None:
    """Addresses of rows, of the pixels at `places`, or of the places where there is no list; `spare` for place -1."""
    for i in range(len(places)):
        place = places[i]
        row = pixels[place] if len(pixels) else place
        table[i] = spare if place < 0 else base + step * row


@in_share
def _multiply(job: Any, own: Any, count: Any, read: Any, products: Any, outs: Any, adds: Any) -> None:
    """The products of `count` squares, and what they come to."""
    stage, blocks = ints(job[j.STAGE_TABLE], j.STAGE), -(-count // ROWS)
    depth, after = stage[j.DEPTH], floats(stage[j.ACTIVATION], 3)
    for p in range(stage[j.PANELS]):
        panel = ints(stage[j.PANEL_TABLE] + p * 8 * j.PANEL, j.PANEL)
        for i in range(READ):
            weights = panel[j.WEIGHTS] + i * depth * 4 * WIDTH
            rows, to = read + i * own[READ_APART], products + i * own[PRODUCTS_APART]
            _product(rows, 4 * depth, blocks, depth, weights, to, 4 * WIDTH)
        apart, bias, column = own[PRODUCTS_APART], panel[j.BIAS], stage[j.BYTES] * panel[j.COLUMN]
        for i in range(count):
            at, to = products + i * 4 * WIDTH, outs[SQUARE * i :].ctypes.data
            add = adds[SQUARE * i :].ctypes.data if stage[j.ADDS] else 0
            if stage[j.BYTES] == 2:
                _joined_narrow(at, apart, 2, bias, to, add, column, after[0], after[1], after[2])
            else:
                _joined(at, apart, 2, bias, to, add, column, after[0], after[1], after[2])


@shared
def share_squares(thread: Any, first_block: Any, last_block: Any, address: Any) -> None:
    """Blocks of ROWS squares."""
    own = ints(address, FIELDS)
    job = ints(own[CHAIN], j.JOB)
    stage = ints(job[j.STAGE_TABLE], j.STAGE)
    size, step = stage[j.BYTES] * stage[j.CHANNELS], job[j.ROW_BYTES]
    kept = job[j.STAGES] == 1 and not job[j.LIMITS]
    most = own[GROUP] * ROWS * SQUARE
    read = job[j.SCRATCH] + thread * job[j.SCRATCH_BYTES]
    products = read + READ * own[READ_APART]
    spare = products + READ * own[PRODUCTS_APART]  # for pixels that nobody asks for
    table = ints(spare + size, READ)
    tables, apart = spare + size + 8 * READ, 8 * most
    pixels, places = ints(tables, most), ints(tables + apart, most)
    reads, writes = ints(tables + 2 * apart, most), ints(tables + 3 * apart, most)
    adds, scratch = ints(tables + 4 * apart, most), tables + 5 * apart
    made = scratch + most * 4 * LANES
    for start in range(first_block, last_block, own[GROUP]):
        first = start * ROWS
        count = min(own[COUNT], min(start + own[GROUP], last_block) * ROWS) - first
        asked = _take(job, own, first, count, read, table, pixels, places)
        asked_places = places[: SQUARE * count]
        if kept:
            _address(job[j.OUT], size, pixels, asked_places, spare, writes)
        else:
            _address(made, step, pixels[:0], asked_places, spare, writes)
        if stage[j.ADDS]:
            _address(stage[j.ADDS], size, pixels, asked_places, spare, adds)
        _multiply(job, own, count, read, products, writes, adds)
        if job[j.STAGES] > 1:
            s.rows_at(made, step, pixels[:0], 0, asked, reads[: -(-asked // ROWS) * ROWS])
            s.finish(job, 1, pixels, 0, asked, reads, writes, adds, reads, scratch)
        elif not kept:
            s.keep(job, pixels, 0, asked, size, made)

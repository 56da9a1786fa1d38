"""Bodies of delta operators in standard ONNX: gather what candidates read, compute, scatter into the stored map.

Every body is (maps, list of candidates, stored map) -> stored map, N H W C. A list is of pixels, int64 (n, 3), or of
the corners of tiles; it is made once for all operators that share a mask (network.py). The last node of a body is a
ScatterND into the stored map, which a runtime does in place where both are one buffer.
"""

from __future__ import annotations

from deltaconvert.export.sparse.copies import Copies, Weighted
from deltaconvert.export.sparse.kind import Call, Kind
from deltaconvert.export.sparse.masked import Masked, OnePixel
from deltaconvert.export.sparse.rows import Rows
from deltaconvert.export.sparse.taps import Taps
from deltaconvert.export.sparse.tiles import Tiles

KINDS: tuple[type[Kind], ...] = (OnePixel, Rows, Taps, Tiles, Copies, Weighted, Masked)


def kind_of(call: Call) -> Kind:
    """The first that fits."""
    return next(kind for kind in KINDS if kind.fits(call))(call)

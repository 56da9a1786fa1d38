"""export: a converted network as a file for other programs.

planned.py    what every form starts from: a plan for one size; names.py has the names of inputs, outputs and states
onnx_file.py  the ONNX file: network.py writes its graph, branches.py the dense and the sparse half of it; ops/ spells
              operators in ONNX, sparse/ has the ways to compute candidates, masks.py the masks; islands.py lets torch
              write dense parts, crossover.py says where the dense half is faster, graph.py builds nodes
triton.py     a model repository around the ONNX file
pt2.py        a program of torch.export
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaconvert.model import DeltaModel


def export_onnx(delta: DeltaModel, path: str | Path, *, dense_above: float | None = None) -> None:
    """Write the converted network as ONNX for the size that it ran last; see docs/export.md.

    The graph is (frames, everything_changed, *states) -> (outputs, *states) and runs in any runtime: each delta
    operator is a function of the domain "deltaconvert" with a body of standard operators (opset 20). Raises
    ExportError where something has no spelling in ONNX, with its node and the way out.

    dense_above: the share of blocks of 16x16 pixels with a change above which the dense network runs; None works out
    for which share of a box that pays.
    """
    from deltaconvert.export.onnx_file import write
    from deltaconvert.model import expect_converted

    expect_converted(delta)
    write(delta, Path(path), dense_above)


def export_pt2(delta: DeltaModel, path: str | Path) -> None:
    """Write the converted network as a program of torch.export for the size that it ran last; see docs/export.md.

    The program is (frame, everything_changed, state) -> outputs. Its delta operators are torch.ops.deltaconvert.*,
    which `import deltaconvert.library` registers; deltaconvert.DeltaProgram runs it. Raises ExportError where
    torch.export cannot write a part of the network.
    """
    from deltaconvert.export.pt2 import write
    from deltaconvert.model import expect_converted

    expect_converted(delta)
    write(delta, Path(path))


def export_triton(delta: DeltaModel, folder: str | Path, *, dense_above: float | None = None) -> None:
    """Write a model of a Triton repository, folder/config.pbtxt and folder/1/model.onnx, for a batch of one.

    Each sequence is a stream; Triton's sequence batcher keeps its states between requests.
    """
    from deltaconvert.export.onnx_file import require
    from deltaconvert.model import expect_converted

    expect_converted(delta)
    require()
    from deltaconvert.export.triton import write

    write(delta, Path(folder), dense_above)

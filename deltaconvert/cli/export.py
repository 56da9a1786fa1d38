"""deltaconvert export: ONNX, Triton, .pt2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltaconvert.cli.options import File, Json, keep, usage_error, writable, writable_folder
from deltaconvert.cli.show import print_json, working

Onnx = Annotated[
    Path | None, typer.Option(help="Write ONNX: runs without deltaconvert and torch.", callback=writable)
]
Triton = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Write a model of a Triton repository, of that name.", callback=writable_folder
    ),
]
Pt2 = Annotated[
    Path | None,
    typer.Option(
        help="Write a program of torch.export: its deltas are operators of torch.", callback=writable
    ),
]
DenseAbove = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Share of changed blocks above which the dense network runs; else it is worked out.",
    ),
]


def export(
    file: File,
    onnx: Onnx = None,
    triton: Triton = None,
    pt2: Pt2 = None,
    dense_above: DenseAbove = None,
    json_output: Json = False,
) -> None:
    """Write a converted network in a form for other programs."""
    if onnx is None and triton is None and pt2 is None:
        raise usage_error("is needed, or --triton, or --pt2", "--onnx")
    if dense_above is not None and onnx is None and triton is None:
        raise usage_error("is of ONNX files: a .pt2 computes what changed in any frame", "--dense-above")
    keep(onnx, "--onnx", file)
    keep(pt2, "--pt2", file)
    import deltaconvert
    from deltaconvert.export import export_onnx, export_pt2, export_triton
    from deltaconvert.export.onnx_file import require
    from deltaconvert.running.intake import sizes_text

    if onnx is not None or triton is not None:
        require()
    with working(f"loading {file}"):
        model = deltaconvert.load(file, backend="reference")
    runners = {
        onnx: "DeltaSession",
        triton and triton / "1" / "model.onnx": "DeltaSession",
        pt2: "DeltaProgram",
    }
    written = {path: runner for path, runner in runners.items() if path is not None}
    with working(f"writing {', '.join(map(str, written))}"):
        if onnx is not None:
            export_onnx(model, onnx, dense_above=dense_above)
        if triton is not None:
            export_triton(model, triton, dense_above=dense_above)
        if pt2 is not None:
            export_pt2(model, pt2)
    if json_output:
        facts = [{"file": str(path), "bytes": path.stat().st_size} for path in written]
        return print_json({"files": facts, "input": [list(shape) for shape, _ in model.inputs]})
    inputs = sizes_text([shape for shape, _ in model.inputs])
    for path, runner in written.items():
        size = path.stat().st_size / 1e6
        typer.echo(f"{path}: {size:.1f} MB, for {inputs}; run it with deltaconvert.{runner}({str(path)!r})")
    if triton is not None:
        typer.echo(f"serve it with tritonserver --model-repository={triton.parent}")

"""deltaconvert bench: times at several densities, against dense."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltaconvert.cli.networks import opened
from deltaconvert.cli.options import (
    Arch,
    Backend,
    Device,
    Input,
    Json,
    MaybeFile,
    Threshold,
    keep,
    numbers_of,
    usage_error,
    writable,
)
from deltaconvert.cli.show import print_json, print_table, progress_bar

if TYPE_CHECKING:
    from deltaconvert.watching.measure import BenchRow

HEAD = ("moving", "changed", "work", "dense ms", "delta ms", "times as fast")


def bench(
    file: MaybeFile = None,
    arch: Arch = None,
    input: Input = None,
    threshold: Threshold = None,
    density: Annotated[str, typer.Option(help="Shares of moving pixels, in percent.")] = "0,1,5,25,100",
    frames: Annotated[int, typer.Option(min=1, help="Timed frames at each density.")] = 10,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw time against density: .svg, .png or .pdf.", callback=writable),
    ] = None,
    backend: Backend = "auto",
    device: Device = "cpu",
    json_output: Json = False,
) -> None:
    """Time a network against the dense one on a textured box that moves over a still background."""
    densities = numbers_of(density, "--density")
    if not densities or not all(0 <= share <= 100 for share in densities):
        raise usage_error(f"{density!r} is no list of percentages such as 0,1,5", "--density")
    keep(plot, "--plot", file)
    from deltaconvert.drawing import plot as pictures
    from deltaconvert.running.intake import sizes_text
    from deltaconvert.watching import measure

    if plot is not None:
        pictures.check(plot)
    model, recipe = opened(file, arch, input, threshold, backend, device)
    from deltaconvert.feed import image_of

    shares = [share / 100 for share in densities]
    normalise = (lambda image: image) if recipe is None else (lambda image: image_of(recipe, image))
    with progress_bar("benchmark", len(shares)) as progress:
        rows = list(progress(measure.bench(model, shares, frames=frames, normalise=normalise)))
    inputs = sizes_text([shape for shape, _ in model.example])
    if plot is not None:
        found = ((row.asked, row.delta_ms, row.dense_ms, row.work) for row in rows)
        asked, delta_ms, dense_ms, works = zip(*found, strict=True)
        title = f"{arch or file} {inputs}"
        pictures.draw([pictures.Panel(title, asked, delta_ms, {"dense": dense_ms}, works)], plot)
    if json_output:
        return print_json(
            {
                "network": arch or str(file),
                "input": inputs,
                "backend": model.backend,
                "device": str(model.device),
                "frames": frames,
                "rows": [row.to_json() for row in rows],
                "baseline": measure.BASELINE,
                **measure.environment(),
            }
        )
    print_table(HEAD, [_cells(row) for row in rows])
    typer.echo(f"input {inputs}, medians of {frames} frames; against {measure.BASELINE}")
    if plot is not None:
        typer.echo(f"{plot}: time against density")


def _cells(row: BenchRow) -> tuple[str, ...]:
    shares = (f"{share:.1%}" for share in (row.asked, row.density, row.work))
    return *shares, f"{row.dense_ms:.1f}", f"{row.delta_ms:.1f}", f"{row.ratio:.2f}"

"""deltaconvert demo: the first minute, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltaconvert.cli.options import Backend, Json, writable_folder
from deltaconvert.cli.show import note, print_json, progress_bar


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the clip and the results go.", callback=writable_folder)
    ] = Path("demo"),
    backend: Backend = "auto",
    json_output: Json = False,
) -> None:
    """Render a clip, convert a network, run it, and write a video of what changed. Needs no download."""
    from deltaconvert.watching.demo import run_demo

    with progress_bar("frames run", None) as progress:
        facts, text = run_demo(folder, backend=backend, say=note, progress=progress)
    if json_output:
        return print_json(facts)
    typer.echo(text)

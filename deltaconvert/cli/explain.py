"""deltaconvert explain: what is delta, what is dense and why."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from deltaconvert.cli.networks import opened
from deltaconvert.cli.options import Arch, Backend, Device, Input, Json, MaybeFile, Threshold, keep, writable
from deltaconvert.cli.show import print_json, print_table, working


def explain(
    file: MaybeFile = None,
    arch: Arch = None,
    input: Input = None,
    threshold: Threshold = None,
    graph: Annotated[
        Path | None,
        typer.Option(help="Draw the graph: .dot, or .svg, .png, .pdf with Graphviz.", callback=writable),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write it as one page, which needs no network to be read.", callback=writable),
    ] = None,
    speed: Annotated[
        bool, typer.Option(help="Measure what to expect on this machine, for the time of some dense frames.")
    ] = False,
    backend: Backend = "auto",
    device: Device = "cpu",
    json_output: Json = False,
) -> None:
    """Show every node of a converted network: delta or dense, why not and what to do, its share of the work."""
    keep(graph, "--graph", file)
    keep(html, "--html", file)
    if graph is not None:
        from deltaconvert.drawing import dot

        dot.check(graph)
    model, _ = opened(file, arch, input, threshold, backend, device)
    with working("measuring") if speed else nullcontext():
        rows = model.explain(speed=speed)
    if graph is not None:
        dot.write(rows, graph)
    if html is not None:
        from deltaconvert.drawing import explain_page

        explain_page.write(rows, html, title=arch or (file.name if file else ""))
    if json_output:
        facts = {"delta_share": rows.delta_share, "summary": rows.summary}
        measured = {} if rows.speed is None else {"speed": rows.speed.to_json()}
        return print_json({"nodes": rows.to_json(), **facts, **measured})
    from deltaconvert.explain import HEAD

    print_table(HEAD, rows.cells())
    typer.echo(rows.conclusion)
    if graph is not None:
        typer.echo(f"{graph}: the graph")
    if html is not None:
        typer.echo(f"{html}: the same as a page")
    if rows.speed is None:
        typer.echo("  (--speed measures what to expect on this machine)")

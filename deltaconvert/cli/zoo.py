"""deltaconvert zoo: the networks that come along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from deltaconvert.cli.networks import example_frame
from deltaconvert.cli.options import Input, Json, as_usage, shape_of
from deltaconvert.cli.show import print_json, print_table, progress_bar


def zoo(
    names: Annotated[
        list[str] | None, typer.Argument(help="Networks to convert; else all are listed.")
    ] = None,
    input: Input = None,
    json_output: Json = False,
) -> None:
    """List the networks of model_zoo; of those that are named, say what converting each comes to at its own input size.

    With --input, at that size, of all if none is named, which takes some minutes; the channels stay their own.
    """
    shape = None if input is None else shape_of(input)
    import model_zoo
    from deltaconvert.checkpoint import builder

    if not names and shape is None:
        return _listed(json_output)
    with as_usage("NAMES"):
        builders = [(name, builder(name)) for name in names or model_zoo.names()]
    with progress_bar("converting", len(builders)) as progress:
        rows = [_converted(name, build, shape) for name, build in progress(builders)]
    if json_output:
        return print_json(rows)
    _print(rows)


def _listed(json_output: bool) -> None:
    import model_zoo

    rows: list[dict[str, Any]] = []
    for name in model_zoo.names():
        recipe = model_zoo.recipe(name)
        facts = {"name": name, "task": recipe.task, "parameters": _parameters(model_zoo.create(name))}
        rows.append({**facts, "input": [1, *recipe.input_size], "summary": recipe.summary})
    if json_output:
        return print_json(rows)
    head = ("network", "task", "parameters", "input", "what it is")
    print_table(head, [(*_facts(row), row["summary"]) for row in rows])


def _converted(name: str, build: Callable[[], Any], shape: tuple[int, ...] | None) -> dict[str, Any]:
    import deltaconvert
    import model_zoo

    with as_usage("NAMES"):
        network = build()
    recipe = model_zoo.recipe(name)
    size = (1, *recipe.input_size) if shape is None else (shape[0], recipe.input_size[0], *shape[2:])
    frame = example_frame(recipe, size, None)
    found = deltaconvert.convert(network, frame, backend="reference").explain()
    return {
        "name": name,
        "task": recipe.task,
        "parameters": _parameters(network),
        "input": list(frame.shape),
        "macs": sum(row.macs for row in found.rows),
        "delta_share": found.delta_share,
        "dense": [{"path": row.path, "why": row.reason} for row in found.islands],
        "state_bytes": sum(row.state_bytes for row in found.rows),
        "summary": recipe.summary,
    }


def _parameters(network: Any) -> int:
    return sum(p.numel() for p in network.parameters())


def _facts(row: dict[str, Any]) -> tuple[str, ...]:
    size = "x".join(map(str, row["input"]))
    return row["name"], row["task"], f"{row['parameters'] / 1e6:.1f} M", size


def _print(rows: list[dict[str, Any]]) -> None:
    from deltaconvert.text import size_text

    head = ("network", "task", "parameters", "input", "GMAC", "delta", "state", "dense nodes")
    body = [
        (
            *_facts(row),
            f"{row['macs'] / 1e9:.2f}",
            f"{row['delta_share']:.1%}",
            size_text(row["state_bytes"]),
            "; ".join(f"{node['path']}: {node['why']}" for node in row["dense"]) or "none",
        )
        for row in rows
    ]
    print_table(head, body)

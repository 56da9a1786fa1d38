"""deltaconvert zoo: the networks that come along."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deltaconvert.cli.options import Input, Json, as_usage, example_frame, shape_of
from deltaconvert.cli.show import print_json, print_table, progress_bar


def zoo(
    names: Annotated[list[str] | None, typer.Argument(help="Networks; else all of them.")] = None,
    input: Input = None,
    json_output: Json = False,
) -> None:
    """List the networks of model_zoo, and what converting each comes to at its own input size.

    With --input, at that size; the channels stay its own.
    """
    shape = None if input is None else shape_of(input)
    import deltaconvert
    import model_zoo
    from deltaconvert.checkpoint import build
    from deltaconvert.report import size_text

    rows: list[dict[str, Any]] = []
    with as_usage("NAMES"):
        networks = [(name, build(name)) for name in names or model_zoo.names()]
    with progress_bar("converting", len(networks)) as progress:
        for name, network in progress(networks):
            recipe = model_zoo.recipe(name)
            size = (1, *recipe.input_size) if shape is None else (shape[0], recipe.input_size[0], *shape[2:])
            frame = example_frame(recipe, size, None)
            found = deltaconvert.convert(network, frame, backend="reference").explain()
            rows.append(
                {
                    "name": name,
                    "task": recipe.task,
                    "parameters": sum(p.numel() for p in network.parameters()),
                    "input": list(frame.shape),
                    "macs": sum(row.macs for row in found.rows),
                    "delta_share": found.delta_share,
                    "dense": [{"path": row.path, "why": row.reason} for row in found.islands],
                    "state_bytes": sum(row.state_bytes for row in found.rows),
                    "summary": recipe.summary,
                }
            )
    if json_output:
        return print_json(rows)
    head = ("network", "task", "parameters", "input", "GMAC", "delta", "state", "dense nodes")
    body = [
        (
            row["name"],
            row["task"],
            f"{row['parameters'] / 1e6:.1f} M",
            "x".join(map(str, row["input"])),
            f"{row['macs'] / 1e9:.2f}",
            f"{row['delta_share']:.1%}",
            size_text(row["state_bytes"]),
            "; ".join(f"{node['path']}: {node['why']}" for node in row["dense"]) or "none",
        )
        for row in rows
    ]
    print_table(head, body)

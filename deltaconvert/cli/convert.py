"""deltaconvert convert: a checkpoint into one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltaconvert.cli.networks import example_frame, network_of
from deltaconvert.cli.options import (
    Arch,
    Backend,
    Gate,
    Input,
    Json,
    Threshold,
    as_usage,
    expect_video,
    gated,
    keep,
    needed,
    numbers_of,
    one_of,
    rules_of,
    shape_of,
    usage_error,
    writable,
)
from deltaconvert.cli.show import note, print_json, warning, working

if TYPE_CHECKING:
    from deltaconvert.model import DeltaModel


Checkpoint = Annotated[
    Path | None,
    typer.Argument(
        help="A network (ONNX, .pt2 of torch.export, TorchScript), or weights for --arch: a state_dict in "
        ".pt, .pth, .bin or .safetensors. Its content tells which."
    ),
]
Entry = Annotated[
    str | None, typer.Option(help="Which weights, of a checkpoint that holds several: ema, net, ...")
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.", callback=writable)]
Random = Annotated[bool, typer.Option("--random", help="Convert untrained weights, without a checkpoint.")]
Example = Annotated[
    Path | None, typer.Option(help="A video whose first frame thresholds in percent are measured on.")
]
Mean = Annotated[str | None, typer.Option(help="Subtracted from the scaled image: 0.485,0.456,0.406.")]
Std = Annotated[str | None, typer.Option(help="Divides it: 0.229,0.224,0.225.")]
Scale = Annotated[float | None, typer.Option(help="Multiplies pixels 0..255 first [1/255].")]
Channels = Annotated[str | None, typer.Option(help="Of the images.", **one_of("rgb", "bgr", "grey"))]
Multiple = Annotated[int | None, typer.Option(help="Images are cut to a multiple of this many pixels.")]
Trust = Annotated[bool, typer.Option("--trust", help="Let torch run the program that a TorchScript file is.")]


def convert(
    checkpoint: Checkpoint = None,
    arch: Arch = None,
    entry: Entry = None,
    input: Input = None,
    output: Output = None,
    threshold: Threshold = None,
    gate: Gate = None,
    backend: Backend = "auto",
    random: Random = False,
    example: Example = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    channels: Channels = None,
    multiple: Multiple = None,
    trust: Trust = False,
    json_output: Json = False,
) -> None:
    """Convert a network or a checkpoint into one file that needs no code of the network."""
    if (checkpoint is None) != random:
        raise usage_error("give either a CHECKPOINT or --random", "CHECKPOINT")
    if random and entry is not None:
        raise usage_error("names weights of a CHECKPOINT: untrained ones have none", "--entry")
    output = _own_file(output)
    keep(output, "--output", checkpoint, example)
    rules = gated(rules_of(threshold), gate)
    asked = None if input is None else shape_of(input)
    if example is not None:
        expect_video(str(example))
    network, arch, call = network_of(checkpoint, arch, asked, trust, entry)
    shape = tuple(call[0].shape)
    import deltaconvert
    from deltaconvert import feed
    from deltaconvert.container import save

    with as_usage("--mean, --std, --scale, --channels, --multiple"):
        fields = {"mean": numbers_of(mean, "--mean"), "std": numbers_of(std, "--std")}
        recipe = feed.recipe_for(arch, shape, **fields, scale=scale, channels=channels, multiple=multiple)
    frame = example_frame(recipe, shape, example).to(call[0].dtype)
    with working(f"converting {arch}"):
        model = deltaconvert.convert(network, (frame, *call[1:]), threshold=rules, backend=backend)
        model.info |= {
            "arch": arch,
            "weights": checkpoint.name if checkpoint else None,
            "recipe": feed.to_json(recipe),
        }
        save(model, output)
    if doubt := feed.doubted(recipe):
        warning(f"that can hardly be meant: {doubt}")
    facts = _facts(model, output)
    if json_output:
        return print_json(facts)
    kind = "untrained weights" if random else str(checkpoint)
    typer.echo(
        f"{output}: {arch} ({kind}), {facts['delta_nodes']} delta nodes with {facts['delta_share']:.1%} of "
        f"the work, {facts['dense_nodes']} dense"
    )
    if len(shape) == 4 and shape[1] == len(recipe.mean):
        note(f"it gets images as {feed.told(recipe)}: --mean, --std, --scale, --channels say otherwise")
    note(f"`deltaconvert run {output} --video VIDEO` says what it saves on a video")


def _own_file(output: Path | None) -> Path:
    """The file to write, which is neither ONNX nor .pt2."""
    output = needed(output, "--output", ": the file to write, such as network.delta")
    if output.suffix in (".onnx", ".pt2"):
        raise usage_error(
            f"{output}: convert writes a file of deltaconvert's own. Name it {output.with_suffix('.delta')}; "
            f"`deltaconvert export` makes a {output.suffix} of it",
            "--output",
        )
    return output


def _facts(model: DeltaModel, output: Path) -> dict[str, Any]:
    rows = model.explain()
    return {
        "file": str(output),
        "bytes": output.stat().st_size,
        "arch": model.info["arch"],
        "weights": model.info["weights"],
        "input": list(model.example[0][0]),
        "recipe": model.info["recipe"],
        "delta_nodes": sum(row.kind == "delta" for row in rows.rows),
        "dense_nodes": len(rows.islands),
        "delta_share": rows.delta_share,
    }

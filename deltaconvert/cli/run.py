"""deltaconvert run: a network on a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltaconvert.cli.networks import expect_nodes, pixels_of
from deltaconvert.cli.options import (
    Backend,
    Compare,
    Device,
    File,
    Gate,
    Json,
    Monitor,
    Size,
    Threshold,
    as_usage,
    expect_video,
    gated,
    keep,
    one_of,
    rules_of,
    size_of,
    writable,
)
from deltaconvert.cli.show import UntilBroken, note, print_json, progress_bar, until_interrupted, working

if TYPE_CHECKING:
    from torch import Tensor

    from deltaconvert.model import DeltaModel
    from deltaconvert.watching.watch import Summary


Video = Annotated[str, typer.Option(help="A video file, an address (rtsp://, http://) or a camera's number.")]
Out = Annotated[
    Path | None, typer.Option(help="Write a video with the changed pixels marked.", callback=writable)
]
Marks = Annotated[
    str,
    typer.Option(
        "--overlay",
        help="What --out shows: the mask of each frame, or a heatmap of the last ones.",
        **one_of("mask", "heatmap"),
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many frames.")]


def run(
    file: File,
    video: Video,
    out: Out = None,
    marks: Marks = "mask",
    limit: Limit = None,
    size: Size = None,
    threshold: Threshold = None,
    gate: Gate = None,
    compare: Compare = True,
    monitor: Monitor = 0,
    backend: Backend = "auto",
    device: Device = "cpu",
    json_output: Json = False,
) -> None:
    """Run a converted network on a video, and say what it saved. Ctrl-C ends a camera."""
    gated(rules_of(threshold), gate)  # a slip is told before the network is loaded
    pixels = size_of(size)
    keep(out, "--out", video, file)
    from deltaconvert import container, feed
    from deltaconvert import video as videos
    from deltaconvert.watching.watch import resize, watch_video

    expect_video(video)
    expect_nodes(file, threshold)
    if out is not None:
        videos.VideoWriter(out, 1, (2, 2)).discard()
    with working(f"loading {file}"):
        model = container.load(file, backend=backend, device=device)
    recipe, pixels = feed.from_json(model.info.get("recipe")), pixels_of(model, pixels)
    whole = UntilBroken()
    with (
        videos.read(video, limit=limit) as reader,
        progress_bar(f"{video}", reader.frames) as progress,
        until_interrupted() as until,
    ):
        if threshold or gate:
            model = _with_thresholds(model, threshold, gate, recipe.prepare(resize(reader.peek(), pixels)))
        model.monitor(every=monitor)
        summary = watch_video(
            model,
            reader,
            recipe.prepare,
            compare=compare,
            size=pixels,
            out=out,
            marks=marks,
            progress=lambda frames: progress(until(whole(frames))),
        )
    if json_output:
        print_json({"file": str(file), "video": video, **_facts(model, summary)})
        return whole.tell()
    typer.echo(str(summary))
    if out is not None:
        typer.echo(f"  {out}: changed pixels marked")
    whole.tell()
    if not any(model.rules.values()):
        note(
            "nothing is dropped: what the noise of the camera and the codec changes is computed, too; --threshold "
            "drops it, `deltaconvert calibrate` finds how much"
        )


def _with_thresholds(
    model: DeltaModel, threshold: list[str] | None, gate: list[str] | None, frame: Tensor
) -> DeltaModel:
    """The network with what is asked for; what is not stays as the file has it."""
    from deltaconvert.thresholds import Thresholds

    base = rules_of(threshold) if threshold else Thresholds(model.rules)
    rules = gated(Thresholds(base.rules, base.gate or model.gate), gate)
    with as_usage("--threshold"):
        args, _ = model.signature.call([frame])
        return model.with_thresholds(rules, *args)


def _facts(model: DeltaModel, summary: Summary) -> dict[str, Any]:
    from deltaconvert.watching.measure import environment

    return {
        "backend": model.backend,
        "device": str(model.device),
        "thresholds": dict(model.rules),
        "gate": model.gate.to_json(),
        **summary.to_json(),
        **environment(),
    }

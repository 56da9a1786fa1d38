"""deltaconvert calibrate: thresholds from a clip."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltaconvert.cli.networks import pixels_of
from deltaconvert.cli.options import (
    Device,
    File,
    Json,
    Size,
    as_usage,
    expect_video,
    expect_writable,
    keep,
    one_of,
    size_of,
    usage_error,
    writable,
)
from deltaconvert.cli.show import note, print_json, working

if TYPE_CHECKING:
    from torch import Tensor

STILL = 0.005  # of the dense work; a clip in which something moves takes more


def calibrate(
    file: File,
    video: Annotated[
        str, typer.Option(help="A video file, a folder of images, an address or a camera's number.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file of thresholds [FILE with .json].", callback=writable),
    ] = None,
    budget: Annotated[float, typer.Option(help="The largest loss of the metric.")] = 0.01,
    metric: Annotated[
        str,
        typer.Option(
            help="relative_l2, nrmse (0.01: a PSNR of 40 dB), top1, segmentation, detection or keypoints; or "
            "package.module:function of yours."
        ),
    ] = "relative_l2",
    decode: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:function",
            help="What makes boxes, poses or labels of an output, for the metric: model_zoo.fastestdet:decode.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="Of search; front_to_back is the paper's.", **one_of("allocate", "front_to_back")),
    ] = "allocate",
    by: Annotated[
        str,
        typer.Option(
            help="What it saves; by time, what costs more than it saves goes.",
            **one_of("work", "time"),
        ),
    ] = "work",
    against: Annotated[
        str,
        typer.Option(
            help="By time, how the dense network beside it runs; to compile takes a minute.",
            **one_of("torch", "compile"),
        ),
    ] = "torch",
    frames: Annotated[int, typer.Option(min=2, help="At most this many frames.")] = 40,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Then take the best so far. A whole search plays the frames some 1000 times.",
            show_default="as long as it takes",
        ),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(help="Another video: lower what was found until it keeps the budget there as well."),
    ] = None,
    at_once: Annotated[
        int,
        typer.Option(min=1, help="Trials at a time: processes on the CPU, streams of one batch on a GPU."),
    ] = 1,
    resume: Annotated[
        Path | None, typer.Option(help="Keep trials there, and go on where they stopped.", callback=writable)
    ] = None,
    size: Size = None,
    apply: Annotated[bool, typer.Option(help="Write the thresholds into FILE as well.")] = False,
    device: Device = "cpu",
    json_output: Json = False,
) -> None:
    """Find the thresholds that stay within a budget on a clip and do the least work."""
    import torch

    import deltaconvert
    from deltaconvert.checkpoint import function_of
    from deltaconvert.metrics import metric_of
    from deltaconvert.running.intake import sizes_text
    from deltaconvert.text import counted
    from deltaconvert.watching.measure import Dense

    pixels = size_of(size)
    output = output or file.with_suffix(".json")
    expect_writable(output, "--output")
    if apply and file.exists() and not os.access(file.parent, os.W_OK):  # it is replaced, not written to
        raise usage_error(f"{file} may not be replaced in its folder: copy it elsewhere", "--apply")
    keep(output, "--output", file, video, check, resume)
    keep(resume, "--resume", file, video, check)
    with as_usage("--metric"):
        judge = metric_of(function_of(metric) if ":" in metric else metric)
    with as_usage("--decode"):
        seen = None if decode is None else function_of(decode)
    expect_video(video, folder=True)
    if check is not None:
        expect_video(check, folder=True)
    with working(f"loading {file}"):
        model = deltaconvert.load(file, device=device)
    pixels = pixels_of(model, pixels)
    if model.info.get("weights", "") is None:
        note("the weights are untrained: what is found holds for none that are trained")
    again = f"the same command goes on from {resume}" if resume else "with --resume it could go on"
    try:
        found = deltaconvert.calibrate(
            model,
            _frames(video, pixels),
            budget=budget,
            metric=judge,
            decode=seen,
            method=method,
            by=by,
            against=torch.compile(Dense(model).graph) if against == "compile" else None,
            limit=frames,
            seconds=seconds or math.inf,
            check=None if check is None else _frames(check, pixels),
            resume=resume,
            at_once=at_once,
        )
    except KeyboardInterrupt:
        note(f"stopped: {again}")
        raise
    if found.cut_off:
        note(f"cut off by --seconds after {counted(found.trials, 'trial')}: {again}")
    if found.work < STILL:
        note(
            "within the budget nothing has to be computed in these frames, which says little of others: give frames in "
            "which something moves"
        )
    found.write(output)
    if apply:
        found.model.save(file)
        before, now = (sizes_text([shape for shape, _ in each.example]) for each in (model, found.model))
        if before != now:
            note(f"{file} was for an input of {before} and is for {now} now, that of the frames (--size)")
    if json_output:
        return print_json({"file": str(output), **found.to_json()})
    typer.echo(f"{output}{f' and {file}' if apply else ''}: {found}")


def _frames(source: str, size: tuple[int, int] | None) -> str | Iterator[Tensor]:
    """What calibrate takes of a video; of another size than its own, its frames."""
    from deltaconvert.watching.inputs import images_of
    from deltaconvert.watching.watch import resize

    return source if size is None else (resize(image, size) for image in images_of(source))

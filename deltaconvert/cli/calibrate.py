"""deltaconvert calibrate: thresholds from a clip."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

    from deltaconvert.calibrate import Calibration
    from deltaconvert.model import DeltaModel

STILL = 0.005  # of the dense work; a clip in which something moves takes more

Video = Annotated[
    str, typer.Option(help="A video file, a folder of images, an address or a camera's number.")
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="The file of thresholds [FILE with .json].", callback=writable),
]
Budget = Annotated[
    float, typer.Option(help="The largest loss of the metric; of a named one a share, 0.01 is 1 %.")
]
Metric = Annotated[
    str,
    typer.Option(
        help="relative_l2, nrmse (0.01: a PSNR of 40 dB), top1, segmentation, detection or keypoints; or "
        "package.module:function of yours."
    ),
]
Decode = Annotated[
    str | None,
    typer.Option(
        metavar="package.module:function",
        help="What makes boxes, poses or labels of an output, for the metric: model_zoo.fastestdet:decode.",
    ),
]
Method = Annotated[
    str,
    typer.Option(help="Of search; front_to_back is the paper's.", **one_of("allocate", "front_to_back")),
]
By = Annotated[
    str,
    typer.Option(
        help="What it saves; by time, what costs more than it saves goes.", **one_of("work", "time")
    ),
]
Against = Annotated[
    str,
    typer.Option(
        help="By time, how the dense network beside it runs; to compile takes a minute.",
        **one_of("torch", "compile"),
    ),
]
Frames = Annotated[int, typer.Option(min=2, help="At most this many frames.")]
Seconds = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="Then take the best so far; what it needs at least, the dense outputs and one trial, takes its time, and "
        "--check comes on top. A whole search plays the frames some 1000 times.",
        show_default="as long as it takes",
    ),
]
Check = Annotated[
    str | None,
    typer.Option(help="Another video: lower what was found until it keeps the budget there as well."),
]
CheckParts = Annotated[
    int, typer.Option(min=1, help="So many parts of --check have to keep the budget, each by itself.")
]
AtOnce = Annotated[
    int,
    typer.Option(min=1, help="Trials at a time: processes on the CPU, streams of one batch on a GPU."),
]
Resume = Annotated[
    Path | None, typer.Option(help="Keep trials there, and go on where they stopped.", callback=writable)
]
Apply = Annotated[bool, typer.Option(help="Write the thresholds into FILE as well.")]


def calibrate(
    file: File,
    video: Video,
    output: Output = None,
    budget: Budget = 0.01,
    metric: Metric = "relative_l2",
    decode: Decode = None,
    method: Method = "allocate",
    by: By = "work",
    against: Against = "torch",
    frames: Frames = 40,
    seconds: Seconds = None,
    check: Check = None,
    check_parts: CheckParts = 1,
    at_once: AtOnce = 1,
    resume: Resume = None,
    size: Size = None,
    apply: Apply = False,
    device: Device = "cpu",
    json_output: Json = False,
) -> None:
    """Find the thresholds that stay within a budget on a clip and do the least work."""
    pixels = size_of(size)
    output = output or file.with_suffix(".json")
    expect_writable(output, "--output")
    if apply:
        _expect_replaceable(file)
    keep(output, "--output", file, video, check, resume)
    keep(resume, "--resume", file, video, check)
    judgement = _judgement(metric, decode, budget)
    if against == "compile" and by != "time":
        raise usage_error("it is timed beside the network, with --by time", "--against")
    for clip in (video, check):
        if clip is not None:
            expect_video(clip, folder=True)
    if check is None and check_parts > 1:
        raise usage_error("it divides the frames of --check, and there is none", "--check-parts")
    model = _loaded(file, device)
    pixels = pixels_of(model, pixels)
    import deltaconvert

    again = f"the same command goes on from {resume}" if resume else "with --resume it could go on"
    try:
        found = deltaconvert.calibrate(
            model,
            _frames(video, pixels),
            budget=budget,
            **judgement,
            method=method,
            by=by,
            against=_compiled(model) if against == "compile" else None,
            limit=frames,
            seconds=seconds or math.inf,
            check=None if check is None else _frames(check, pixels),
            check_parts=check_parts,
            resume=resume,
            at_once=at_once,
        )
    except KeyboardInterrupt:
        note(f"stopped: {again}")
        raise
    _warn_of(found, again)
    found.write(output)
    if apply:
        _apply(found, model, file)
    if json_output:
        return print_json({"file": str(output), **found.to_json()})
    typer.echo(f"{output}{f' and {file}' if apply else ''}: {found}")


def _expect_replaceable(file: Path) -> None:
    """--apply replaces the file, so it is the folder that has to be writable."""
    if file.exists() and not os.access(file.parent, os.W_OK):
        raise usage_error(f"{file} may not be replaced in its folder: copy it elsewhere", "--apply")


def _judgement(metric: str, decode: str | None, budget: float) -> dict[str, Any]:
    """The functions that --metric and --decode name, and a budget that the metric can have."""
    from deltaconvert.calibration.asked import expect_budget
    from deltaconvert.checkpoint import function_of
    from deltaconvert.metrics import metric_of

    with as_usage("--metric"):
        judge = metric_of(function_of(metric) if ":" in metric else metric)
    with as_usage("--budget"):
        expect_budget(budget, judge)
    with as_usage("--decode"):
        return {"metric": judge, "decode": None if decode is None else function_of(decode)}


def _loaded(file: Path, device: str) -> DeltaModel:
    import deltaconvert

    with working(f"loading {file}"):
        model = deltaconvert.load(file, device=device)
    if model.info.get("weights", "") is None:
        note("the weights are untrained: what is found holds for none that are trained")
    return model


def _frames(source: str, size: tuple[int, int] | None) -> str | Iterator[Tensor]:
    """What calibrate takes of a video; of another size than its own, its frames."""
    from deltaconvert.watching.inputs import images_of
    from deltaconvert.watching.watch import resize

    return source if size is None else (resize(image, size) for image in images_of(source))


def _compiled(model: DeltaModel) -> Any:
    import torch

    from deltaconvert.watching.measure import Dense

    return torch.compile(Dense(model).graph)


def _warn_of(found: Calibration, again: str) -> None:
    from deltaconvert.text import counted

    if found.cut_off:
        note(f"cut off by --seconds after {counted(found.trials, 'trial')}: {again}")
        if not any(found.setting.shares):
            note(
                "nothing better was found in that time than no thresholds: give more --seconds, fewer --frames or a "
                "smaller --size"
            )
    if found.work < STILL:
        note(
            "within the budget nothing has to be computed in these frames, which says little of others: give frames in "
            "which something moves"
        )


def _apply(found: Calibration, model: DeltaModel, file: Path) -> None:
    from deltaconvert.running.intake import sizes_text

    found.model.save(file)
    before, now = (sizes_text([shape for shape, _ in each.example]) for each in (model, found.model))
    if before != now:
        note(f"{file} was for an input of {before} and is for {now} now, that of the frames (--size)")

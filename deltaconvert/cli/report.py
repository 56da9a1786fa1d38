"""deltaconvert report: a clip as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltaconvert.cli.networks import pixels_of
from deltaconvert.cli.options import (
    Backend,
    Compare,
    Device,
    File,
    Monitor,
    Size,
    expect_video,
    expect_writable,
    keep,
    size_of,
    writable,
)
from deltaconvert.cli.show import UntilBroken, progress_bar, until_interrupted, working


def report(
    file: File,
    video: Annotated[str, typer.Option(help="A video file, an address or a camera's number.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The page to write [FILE with .report.html].", callback=writable),
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="At most this many frames.")] = 100,
    size: Size = None,
    compare: Compare = True,
    monitor: Monitor = 0,
    backend: Backend = "auto",
    device: Device = "cpu",
) -> None:
    """Run a network on a video and write what it did as one HTML page: layers, times, errors, pictures."""
    pixels = size_of(size)
    from deltaconvert import container, feed
    from deltaconvert import video as videos
    from deltaconvert.drawing import report_page
    from deltaconvert.watching.measure import Dense
    from deltaconvert.watching.watch import resize, watch

    report_page.require()
    out = out or file.with_suffix(".report.html")  # explain writes a page as well
    expect_writable(out, "--out")
    keep(out, "--out", video, file)
    expect_video(video)
    with working(f"loading {file}"):
        model = container.load(file, backend=backend, device=device)
    recipe, pixels = feed.from_json(model.info.get("recipe")), pixels_of(model, pixels)
    model.monitor(every=monitor)
    written, whole = report_page.Page(model, f"{file.name} on {Path(video).name}"), UntilBroken()
    with (
        videos.read(video, limit=limit) as reader,
        progress_bar(video, reader.frames) as progress,
        until_interrupted() as until,
    ):
        frames = (resize(frame, pixels) for frame in progress(until(whole(reader))))
        written.follow(watch(model, frames, recipe.prepare, dense=Dense(model) if compare else None))
    if len(written.frames) < 2:
        whole.tell()
    written.write(out)
    typer.echo(f"{out}: {len(written.frames)} frames")
    whole.tell()

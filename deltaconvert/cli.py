"""The deltaconvert command. It parses, calls and prints; what it does is in the modules it imports.

torch is imported inside the commands: --help and usage errors should not wait for it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from deltaconvert.errors import DeltaConvertError, InputError

if TYPE_CHECKING:
    from deltaconvert.model import DeltaModel
    from model_zoo import Recipe

T = TypeVar("T")
MAX_SIDE = 2**16  # pixels; an --input beyond it is a slip of the keyboard


class Commands(TyperGroup):
    """Runs a command; a user's mistake is one message on stderr and exit code 1, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _warning
            try:
                return super().invoke(ctx)
            except (DeltaConvertError, OSError) as error:
                if ctx.params.get("debug"):
                    traceback.print_exc()
                _note(f"error: {_message(error)}")
                raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run pretrained CNNs on video, recomputing only the pixels that changed.",
)


def main() -> None:
    """The console script."""
    app(prog_name="deltaconvert")


def _version(wanted: bool) -> None:
    if wanted:
        import deltaconvert

        typer.echo(deltaconvert.__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


File = Annotated[Path, typer.Argument(help="A converted file.")]
MaybeFile = Annotated[Path | None, typer.Argument(help="A converted file; else give --arch.")]
Arch = Annotated[
    str | None,
    typer.Option(
        help="A network: a name listed by `zoo`, or package.module:factory, or ...:factory(classes=10)."
    ),
]
Input = Annotated[
    str | None, typer.Option(metavar="NxCxHxW", help="The size of the input, such as 1x3x720x1280.")
]
Threshold = Annotated[
    list[str] | None,
    typer.Option(
        help="The largest change that is dropped: 0.05, or 10% of a node's mean magnitude; or by kind or "
        "path: input=0.04 (repeat the option for several). 0 is exact."
    ),
]
Gate = Annotated[
    list[str] | None,
    typer.Option(
        help="How frames are looked at: smooth=5, noise=3, dilate=2, cut=0.7, refresh=300, max_density=0.2, "
        "nonfinite=hold (repeat the option for several)."
    ),
]
Monitor = Annotated[
    int,
    typer.Option(
        min=0,
        help="Compute a random tile of every so manyth frame again, dense, and tell the error; 0: none.",
    ),
]
Backend = Annotated[str, typer.Option(help="auto, cpu or reference.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]


@app.command()
def convert(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="A network (ONNX, .pt2 of torch.export, TorchScript), or weights for --arch: a state_dict in "
            ".pt, .pth, .bin or .safetensors. Its content tells which."
        ),
    ] = None,
    arch: Arch = None,
    input: Input = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.")] = None,
    threshold: Threshold = None,
    gate: Gate = None,
    backend: Backend = "auto",
    random: Annotated[
        bool, typer.Option("--random", help="Convert untrained weights, without a checkpoint.")
    ] = False,
    example: Annotated[
        Path | None, typer.Option(help="A video whose first frame thresholds in percent are measured on.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Subtracted from the scaled image: 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Divides it: 0.229,0.224,0.225.")] = None,
    scale: Annotated[float | None, typer.Option(help="Multiplies pixels 0..255 first [1/255].")] = None,
    channels: Annotated[str | None, typer.Option(help="rgb, bgr or grey.")] = None,
    multiple: Annotated[
        int | None, typer.Option(help="Images are cut to a multiple of this many pixels.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let torch run the program that a TorchScript file is.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Convert a network or a checkpoint into one file that needs no code of the network."""
    if (checkpoint is None) != random:
        raise _usage("give either a CHECKPOINT or --random", "CHECKPOINT")
    output = _needed(output, "--output")
    rules = _rules(threshold, gate)
    asked = None if input is None else _shape(input)
    network, arch, call = _network(checkpoint, arch, asked, trust)
    shape = tuple(call[0].shape)
    import deltaconvert
    from deltaconvert import feed
    from deltaconvert.container import save

    with _as_usage("--mean, --std, --scale, --channels, --multiple"):
        fields = {"mean": _numbers(mean, "--mean"), "std": _numbers(std, "--std")}
        recipe = feed.recipe_for(arch, shape, **fields, scale=scale, channels=channels, multiple=multiple)
    frame = _example_frame(recipe, shape, example).to(call[0].dtype)
    with _working(f"converting {arch}"):
        model = deltaconvert.convert(network, (frame, *call[1:]), threshold=rules, backend=backend)
        model.info = {
            "arch": arch,
            "weights": checkpoint.name if checkpoint else None,
            "recipe": feed.to_json(recipe),
        }
        save(model, output)
    rows = model.explain()
    facts = {
        "file": str(output),
        "bytes": output.stat().st_size,
        "arch": arch,
        "weights": model.info["weights"],
        "input": list(frame.shape),
        "delta_nodes": sum(row.kind == "delta" for row in rows.rows),
        "dense_nodes": len(rows.islands),
        "delta_share": rows.delta_share,
    }
    if json_output:
        return _print_json(facts)
    kind = "untrained weights" if random else str(checkpoint)
    typer.echo(
        f"{output}: {arch} ({kind}), {facts['delta_nodes']} delta nodes with {rows.delta_share:.1%} of "
        f"the work, {facts['dense_nodes']} dense"
    )


@app.command()
def export(
    file: File,
    onnx: Annotated[
        Path | None, typer.Option(help="Write ONNX: runs without deltaconvert and torch.")
    ] = None,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a model of a Triton repository, of that name.")
    ] = None,
    pt2: Annotated[
        Path | None, typer.Option(help="Write a program of torch.export: its deltas are operators of torch.")
    ] = None,
    dense_above: Annotated[
        float | None,
        typer.Option(
            help="Share of changed blocks above which the dense network runs; else it is worked out."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Write a converted network in a form for other programs."""
    if onnx is None and triton is None and pt2 is None:
        raise _usage("is needed, or --triton, or --pt2", "--onnx")
    import deltaconvert
    from deltaconvert.export import export_onnx, export_pt2, export_triton

    model = deltaconvert.load(file, backend="reference")
    runners = {
        onnx: "DeltaSession",
        triton and triton / "1" / "model.onnx": "DeltaSession",
        pt2: "DeltaProgram",
    }
    written = {path: runner for path, runner in runners.items() if path is not None}
    with _working(f"writing {', '.join(map(str, written))}"):
        if onnx is not None:
            export_onnx(model, onnx, dense_above=dense_above)
        if triton is not None:
            export_triton(model, triton, dense_above=dense_above)
        if pt2 is not None:
            export_pt2(model, pt2)
    if json_output:
        facts = [{"file": str(path), "bytes": path.stat().st_size} for path in written]
        return _print_json({"files": facts, "input": [list(shape) for shape, _ in model.inputs]})
    for path, runner in written.items():
        size = path.stat().st_size / 1e6
        typer.echo(f"{path}: {size:.1f} MB; run it with deltaconvert.{runner}({str(path)!r})")
    if triton is not None:
        typer.echo(f"serve it with tritonserver --model-repository={triton.parent}")


@app.command()
def explain(
    file: MaybeFile = None,
    arch: Arch = None,
    input: Input = None,
    threshold: Threshold = None,
    graph: Annotated[
        Path | None, typer.Option(help="Draw the graph: .dot, or .svg, .png, .pdf with Graphviz.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write it as one page, which needs no network to be read.")
    ] = None,
    speed: Annotated[
        bool, typer.Option(help="Measure what to expect on this machine, for the time of some dense frames.")
    ] = False,
    backend: Backend = "auto",
    json_output: Json = False,
) -> None:
    """Show every node of a converted network: delta or dense, why not and what to do, its share of the work."""
    model, _ = _open(file, arch, input, threshold, backend)
    with _working("measuring") if speed else nullcontext():
        rows = model.explain(speed=speed)
    if graph is not None:
        from deltaconvert import dot

        dot.write(rows, graph)
    if html is not None:
        from deltaconvert import explain_page

        explain_page.write(rows, html, title=arch or (file.name if file else ""))
    if json_output:
        facts = {"delta_share": rows.delta_share, "summary": rows.summary}
        measured = {} if rows.speed is None else {"speed": rows.speed.to_json()}
        return _print_json({"nodes": rows.to_json(), **facts, **measured})
    typer.echo(str(rows))
    if html is not None:
        typer.echo(f"{html}: the same as a page")
    if rows.speed is None:
        typer.echo("  (--speed measures what to expect on this machine)")


@app.command()
def run(
    file: File,
    video: Annotated[
        str, typer.Option(help="A video file, an address (rtsp://, http://) or a camera's number.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write a video with the changed pixels marked.")] = None,
    marks: Annotated[
        str,
        typer.Option(
            "--overlay", help="What --out shows: the mask of each frame, or a heatmap of the last ones."
        ),
    ] = "mask",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many frames.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Resize frames; else the video's own size.")
    ] = None,
    threshold: Threshold = None,
    gate: Gate = None,
    compare: Annotated[bool, typer.Option(help="Run the dense network beside it and compare.")] = True,
    monitor: Monitor = 0,
    backend: Backend = "auto",
    json_output: Json = False,
) -> None:
    """Run a converted network on a video, and say what it saved."""
    rules = _rules(threshold, gate) if threshold or gate else None
    pixels = _size(size)
    from deltaconvert import container, feed
    from deltaconvert import video as videos
    from deltaconvert.measure import environment
    from deltaconvert.watch import resize, watch_video

    model = container.load(file, backend=backend)
    recipe = feed.from_json(model.info.get("recipe"))
    with videos.read(video, limit=limit) as reader, _progress(f"{video}", reader.frames) as progress:
        if rules is not None:
            rules = rules if threshold else dataclasses.replace(rules, rules=model.rules)
            first = recipe.prepare(resize(reader.peek(), pixels))
            with _as_usage("--threshold"):
                model = model.with_thresholds(rules, *model.signature.call([first])[0])
        model.monitor(every=monitor)
        summary = watch_video(
            model,
            reader,
            recipe.prepare,
            compare=compare,
            size=pixels,
            out=out,
            marks=marks,
            progress=progress,
        )
    if json_output:
        facts = {"file": str(file), "video": video, "backend": model.backend, "thresholds": dict(model.rules)}
        return _print_json({**facts, **summary.to_json(), **environment()})
    typer.echo(str(summary))
    if out is not None:
        typer.echo(f"  {out}: changed pixels marked")


@app.command()
def report(
    file: File,
    video: Annotated[str, typer.Option(help="A video file, an address or a camera's number.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The page to write [FILE with .html].")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="At most this many frames.")] = 100,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Resize frames; else the video's own size.")
    ] = None,
    compare: Annotated[bool, typer.Option(help="Run the dense network beside it and compare.")] = True,
    monitor: Monitor = 0,
    backend: Backend = "auto",
) -> None:
    """Run a network on a video and write what it did as one HTML page: layers, times, errors, pictures."""
    pixels = _size(size)
    from deltaconvert import container, feed, page
    from deltaconvert import video as videos
    from deltaconvert.measure import Dense
    from deltaconvert.watch import resize, watch

    page.require()
    model, out = container.load(file, backend=backend), out or file.with_suffix(".html")
    recipe = feed.from_json(model.info.get("recipe"))
    model.monitor(every=monitor)
    written = page.Page(model, f"{file.name} on {Path(video).name}")
    with videos.read(video, limit=limit) as reader, _progress(video, reader.frames) as progress:
        frames = (resize(frame, pixels) for frame in progress(reader))
        written.follow(watch(model, frames, recipe.prepare, dense=Dense(model) if compare else None))
    written.write(out)
    typer.echo(f"{out}: {len(written.seen)} frames")


@app.command()
def calibrate(
    file: File,
    video: Annotated[
        str, typer.Option(help="A video file, a folder of images, an address or a camera's number.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file of thresholds [FILE with .json].")
    ] = None,
    budget: Annotated[float, typer.Option(help="The largest loss of the metric.")] = 0.01,
    metric: Annotated[
        str,
        typer.Option(help="relative_l2, noise, top1 or segmentation; or package.module:function of yours."),
    ] = "relative_l2",
    method: Annotated[str, typer.Option(help="allocate, or the paper's front_to_back.")] = "allocate",
    frames: Annotated[int, typer.Option(min=2, help="At most this many frames.")] = 40,
    at_once: Annotated[
        int,
        typer.Option(min=1, help="Trials at a time: processes on the CPU, streams of one batch on a GPU."),
    ] = 1,
    resume: Annotated[
        Path | None, typer.Option(help="Keep trials there, and go on where they stopped.")
    ] = None,
    apply: Annotated[bool, typer.Option(help="Write the thresholds into FILE as well.")] = False,
    json_output: Json = False,
) -> None:
    """Find the thresholds that stay within a budget on a clip and do the least work."""
    import deltaconvert
    from deltaconvert.checkpoint import factory_of

    model = deltaconvert.load(file)
    output = output or file.with_suffix(".json")
    with _as_usage("--metric"):
        module, _, name = metric.partition(":")
        judge = factory_of(module, name) if name else metric
    found = deltaconvert.calibrate(
        model,
        video,
        budget=budget,
        metric=judge,
        method=method,
        limit=frames,
        resume=resume,
        at_once=at_once,
    )
    found.write(output)
    if apply:
        found.model.save(file)
    if json_output:
        facts = {
            name: getattr(found, name) for name in ("loss", "work", "budget", "metric", "frames", "trials")
        }
        return _print_json({"file": str(output), **facts})
    typer.echo(f"{output}: {found}")


@app.command()
def bench(
    file: MaybeFile = None,
    arch: Arch = None,
    input: Input = None,
    threshold: Threshold = None,
    density: Annotated[str, typer.Option(help="Shares of moving pixels, in percent.")] = "0,1,5,25,100",
    frames: Annotated[int, typer.Option(min=1, help="Timed frames at each density.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Draw time against density: .svg, .png or .pdf.")] = None,
    backend: Backend = "auto",
    json_output: Json = False,
) -> None:
    """Time a network against the dense one on a textured box that moves over a still background."""
    densities = _numbers(density, "--density")
    if not densities or not all(0 <= share <= 100 for share in densities):
        raise _usage(f"{density!r} is no list of percentages such as 0,1,5", "--density")
    from deltaconvert import measure
    from deltaconvert import plot as pictures

    if plot is not None:
        pictures.check(plot)
    model, recipe = _open(file, arch, input, threshold, backend)
    from deltaconvert.feed import image_of

    shares = [share / 100 for share in densities]
    normalise = (lambda image: image) if recipe is None else (lambda image: image_of(recipe, image))
    with _progress("benchmark", len(shares)) as progress:
        rows = list(progress(measure.bench(model, shares, frames=frames, normalise=normalise)))
    inputs = ", ".join("x".join(map(str, shape)) for shape, _ in model.example)
    if plot is not None:
        found = ((row.asked, row.delta_ms, row.dense_ms, row.work) for row in rows)
        asked, delta_ms, dense_ms, works = zip(*found, strict=True)
        title = f"{arch or file} {inputs}"
        pictures.draw([pictures.Panel(title, asked, delta_ms, {"dense": dense_ms}, works)], plot)
    if json_output:
        facts = {"network": arch or str(file), "input": inputs, "backend": model.backend, "frames": frames}
        baseline = {"baseline": measure.BASELINE}
        return _print_json(
            {**facts, "rows": [row.to_json() for row in rows], **baseline, **measure.environment()}
        )
    head = ("moving", "changed", "work", "dense ms", "delta ms", "times as fast")
    body = [
        (
            f"{row.asked:.1%}",
            f"{row.density:.1%}",
            f"{row.work:.1%}",
            f"{row.dense_ms:.1f}",
            f"{row.delta_ms:.1f}",
            f"{row.ratio:.2f}",
        )
        for row in rows
    ]
    _print_table(head, body)
    typer.echo(f"input {inputs}, medians of {frames} frames; dense is {measure.BASELINE}")


@app.command()
def zoo(
    names: Annotated[list[str] | None, typer.Argument(help="Networks; else all of them.")] = None,
    input: Input = None,
    json_output: Json = False,
) -> None:
    """List the networks of model_zoo, and what converting each comes to at its own input size.

    With --input, at that size; the channels stay its own.
    """
    shape = None if input is None else _shape(input)
    import deltaconvert
    import model_zoo
    from deltaconvert.checkpoint import build
    from deltaconvert.report import size_text

    rows: list[dict[str, Any]] = []
    with _as_usage("NAMES"):
        networks = [(name, build(name)) for name in names or model_zoo.names()]
    with _progress("converting", len(networks)) as progress:
        for name, network in progress(networks):
            recipe = model_zoo.recipe(name)
            size = (1, *recipe.input_size) if shape is None else (shape[0], recipe.input_size[0], *shape[2:])
            frame = _example_frame(recipe, size, None)
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
        return _print_json(rows)
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
    _print_table(head, body)


@app.command()
def serve(
    file: File,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, by Ray where there are several; on CUDA one a GPU.")
    ] = 1,
    streams: Annotated[int, typer.Option(min=1, help="Streams a worker has room for at once.")] = 4,
    max_streams: Annotated[int, typer.Option(min=1, help="Streams a worker takes in at most.")] = 64,
    max_fps: Annotated[float, typer.Option(min=0.1, help="Frames a second that a stream may send.")] = 120.0,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Of one request.")] = 16,
    files: Annotated[Path | None, typer.Option(help="A folder whose videos clients may name.")] = None,
    rtsp: Annotated[bool, typer.Option(help="Whether clients may name cameras.")] = True,
    token: Annotated[
        str | None, typer.Option(envvar="DELTACONVERT_TOKEN", help="What every request has to bring.")
    ] = None,
    backend: Backend = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Serve cameras over HTTP: post frames or name a video, get JSON; a live page; metrics for Prometheus."""
    try:
        import uvicorn

        from deltaconvert.serve.app import app as door
        from deltaconvert.serve.fleet import Fleet, Local, Rays
        from deltaconvert.serve.limits import Limits
    except ImportError as error:
        raise InputError(
            f'serving needs more packages ({error}): pip install "deltaconvert[serve]"'
        ) from error
    if files is not None and not files.is_dir():
        raise _usage(f"{files} is no folder", "--files")
    limits = Limits(
        max_bytes=max_megabytes << 20, max_fps=max_fps, max_streams=max_streams, files=files, rtsp=rtsp
    )
    options = {
        "file": str(file.resolve()),
        "backend": backend,
        "device": device,
        "streams": streams,
        "limits": limits,
    }
    with _working(f"loading {file}"):
        fleet: Fleet = (
            Local(**options) if workers == 1 else Rays(workers, gpus=float(device == "cuda"), **options)
        )
    if host not in ("127.0.0.1", "localhost", "::1") and token is None:
        _note(f"warning: {host} can be reached by others, and no --token is set")
    uvicorn.run(door(fleet, limits, token), host=host, port=port, log_level="info")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the clip and the results go.")] = Path("demo"),
    backend: Backend = "auto",
    json_output: Json = False,
) -> None:
    """Render a clip, convert a network, run it, and write a video of what changed. Needs no download."""
    from deltaconvert.demo import run_demo

    with _progress("running", None) as progress:
        facts, text = run_demo(folder, backend=backend, say=_note, progress=progress)
    if json_output:
        return _print_json(facts)
    typer.echo(text)


# ---- what options mean


def _usage(message: str, option: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=option)


@contextmanager
def _as_usage(option: str) -> Iterator[None]:
    """An option that does not fit is a usage error: exit code 2."""
    try:
        yield
    except InputError as error:
        raise _usage(str(error), option) from error


def _needed(value: T | None, option: str) -> T:
    if value is None:
        raise _usage("is needed", option)
    return value


def _shape(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not all(part.isdecimal() and 1 <= int(part) <= MAX_SIDE for part in parts):
        raise _usage(f"{text!r} is no size such as 1x3x720x1280", "--input")
    return tuple(int(part) for part in parts)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= MAX_SIDE for part in parts):
        raise _usage(f"{text!r} is no size such as 640x360", "--size")
    return int(parts[0]), int(parts[1])


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise _usage(f"{text!r} is no list of numbers such as 0.5,1,2.5", option) from None


def _rules(given: Sequence[str] | None, gate: Sequence[str] | None = None) -> Any:
    """0.05 or 10% for all; input=0.04 activation=10% by kind or path; a file of them. Settings of the gate beside."""
    if gate:
        from deltaconvert.gate import Gate
        from deltaconvert.thresholds import Thresholds

        with _as_usage("--gate"):
            return dataclasses.replace(Thresholds.of(_rules(given)), gate=Gate.of(_settings(gate)))
    if not given:
        return 0.0
    rules: dict[str, float | str] = {}
    for rule in given:
        where, equals, amount = rule.rpartition("=")
        if not equals and len(given) > 1:
            raise _usage(f"{rule!r} names no node: a single threshold stands alone", "--threshold")
        rules[where.strip()] = _number_or_text(amount.strip())
    from deltaconvert.thresholds import Thresholds

    with _as_usage("--threshold"):
        return Thresholds.of(rules.get("", rules))


def _settings(given: Sequence[str]) -> dict[str, Any]:
    """smooth=5 nonfinite=hold; whole numbers are integers."""
    settings: dict[str, Any] = {}
    for setting in given:
        name, equals, text = setting.partition("=")
        if not equals:
            raise _usage(f"{setting!r} sets nothing: write it as smooth=5", "--gate")
        amount = text.strip()
        settings[name.strip()] = int(amount) if amount.isdecimal() else _number_or_text(amount)
    return settings


def _number_or_text(text: str) -> float | str:
    """10% stays text; Thresholds says what is wrong with other text."""
    try:
        return float(text)
    except ValueError:
        return text


def _open(
    file: Path | None, arch: str | None, input: str | None, threshold: list[str] | None, backend: str
) -> tuple[DeltaModel, Recipe | None]:
    """The network of a file, or an untrained one by name; and how images become its input, if known."""
    if (file is None) == (arch is None):
        raise _usage("give either a converted FILE or --arch", "FILE")
    shape = None if input is None else _shape(input)
    rules = _rules(threshold)
    import deltaconvert
    from deltaconvert import checkpoint, feed

    if file is not None:
        model = deltaconvert.load(file, backend=backend)
        recipe = feed.from_json(model.info["recipe"]) if "recipe" in model.info else None
        if shape is not None or threshold:
            frame = _example_frame(recipe, shape or model.example[0][0], None)
            chosen = rules if threshold else dict(model.rules)
            args, _ = model.signature.call([frame])
            model = model.with_thresholds(chosen, *args)
        return model, recipe
    with _as_usage("--arch"):
        network = checkpoint.build(arch or "")
    recipe = feed.recipe_for(arch or "", shape or (1, 0, 0, 0))
    if shape is None and 0 in recipe.input_size:
        raise _usage("is needed for a network that is not of model_zoo", "--input")
    frame = _example_frame(recipe, shape or (1, *recipe.input_size), None)
    return deltaconvert.convert(network, frame, threshold=rules, backend=backend), recipe


def _network(
    file: Path | None, arch: str | None, shape: tuple[int, ...] | None, trust: bool
) -> tuple[Any, str, tuple[Any, ...]]:
    """The dense network, its name, and an example call of the right shapes."""
    from deltaconvert.formats import NETWORKS, Kind, kind_of, load_network

    kind = Kind.WEIGHTS if file is None else kind_of(file)
    if file is not None and kind is not Kind.WEIGHTS:
        if arch is not None and kind in NETWORKS:
            raise _usage(f"{file} holds its network itself: leave the name out", "--arch")
        network, call = load_network(file, input=shape, trust=trust)
        return network, file.name, call
    arch, shape = _needed(arch, "--arch"), _needed(shape, "--input")
    import torch

    from deltaconvert import checkpoint

    with _as_usage("--arch"):
        dense = checkpoint.build(arch)
    if file is not None:
        checkpoint.load_into(dense, checkpoint.read_state_dict(file))
    return dense, arch, (torch.empty(shape, device="meta"),)


def _example_frame(recipe: Recipe | None, shape: tuple[int, ...], video: Path | None) -> Any:
    """A frame of that size: of a video, or of noise; its batch is that many copies."""
    import torch

    from deltaconvert.feed import image_of
    from deltaconvert.video import read
    from deltaconvert.watch import resize

    if video is not None and recipe is not None and len(shape) == 4:
        with read(video, limit=1) as reader:
            frame = resize(next(reader), (shape[3], shape[2]))
        prepared = recipe.prepare(frame)
        return prepared.expand(shape[0], -1, -1, -1).contiguous()
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return noise if recipe is None or len(shape) != 4 else image_of(recipe, noise)


# ---- printing


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _note(f"warning: {message}")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Lines that wrap inside their columns on a terminal; plain padded text in files and pipes."""
    if not sys.stdout.isatty():
        from deltaconvert.report import table

        typer.echo(table(head, body))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(*head)
    for row in body:
        shown.add_row(*row)
    Console().print(shown)


@contextmanager
def _progress(title: str, total: int | None) -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """Gives a function that wraps an iterable; on a terminal a bar on stderr follows it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def follow(items: Iterable[T]) -> Iterator[T]:
            task = bar.add_task(title, total=total)
            for item in items:
                yield item
                bar.advance(task)

        yield follow


@contextmanager
def _working(title: str) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(title):
        yield

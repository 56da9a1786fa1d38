"""deltaconvert serve: cameras over HTTP."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from deltaconvert.cli.options import Backend, Device, File, usage_error
from deltaconvert.cli.show import note, working
from deltaconvert.errors import InputError

HERE = ("127.0.0.1", "localhost", "::1")
GOODBYE = 3  # seconds that requests have when the server ends: who looks on would keep it


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
    device: Device = "cpu",
) -> None:
    """Serve cameras over HTTP: post frames or name a video, get JSON; a live page; metrics for Prometheus."""
    _expect_packages(workers)
    if files is not None and not files.is_dir():
        raise usage_error(f"{files} is no folder", "--files")
    if workers > 1 and ":" in device:
        raise usage_error(
            f"several workers have a GPU each, so {device} cannot be theirs: give cuda", "--device"
        )
    _expect_free(host, port)
    import uvicorn

    from deltaconvert.serve.app import app as door
    from deltaconvert.serve.fleet import Fleet, Local, Rays
    from deltaconvert.serve.limits import Limits

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
    where = f"{file} into {workers} workers" if workers > 1 else f"{file}"
    note(f"loading {where}: the first time on a machine kernels are compiled, which takes a minute or so")
    with working(f"loading {where}"):
        fleet: Fleet = (
            Local(**options) if workers == 1 else Rays(workers, gpus=float(device == "cuda"), **options)
        )
    if host not in HERE and token is None:
        note(f"warning: {host} can be reached by others, and no --token is set")
    # No line for each request: a page that is open asks for ten pictures a second, with the token in their addresses.
    uvicorn.run(
        door(fleet, limits, token, HERE if host in HERE and token is None else None),
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=GOODBYE,
    )


def _expect_packages(workers: int) -> None:
    try:
        import uvicorn  # noqa: F401

        import deltaconvert.serve.app  # noqa: F401

        if workers > 1:
            import ray  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'serving needs more packages ({error}): pip install "deltaconvert[serve]"'
        ) from error


def _expect_free(host: str, port: int) -> None:
    """A usage error where nobody can listen, before the network is loaded."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise usage_error(
            f"{host}:{port} cannot be listened on: {error.strerror}", "--host, --port"
        ) from error

"""Worker: the cameras of one process. A converted file, a StreamPool, and a thread that runs its steps."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaconvert import feed
from deltaconvert.container import load
from deltaconvert.errors import DeltaConvertError, InputError
from deltaconvert.serve import images
from deltaconvert.serve.limits import Limits, Refused
from deltaconvert.serve.results import describe
from deltaconvert.serve.sources import Source
from deltaconvert.streams import Result, StreamPool
from deltaconvert.watching.measure import quantile
from deltaconvert.watching.watch import resize

PATIENCE = 30.0  # seconds that a request waits for its frame's result
LOOKED_AT = 5.0  # seconds that a stream is drawn after somebody asked for its picture
NEWER = 1.0  # seconds that a request for a picture waits for a newer frame
DECODED = 8  # images that are decoded at a time, each up to max_pixels
LATENCIES = 256  # of each stream, for its percentiles


@dataclass
class _Camera:
    """What a worker knows of a stream besides its slot in the pool."""

    shown: Tensor | None = None  # uint8 (H, W, 3), the newest frame as the network takes it
    result: dict[str, Any] = field(default_factory=dict)
    density: float = 0.0  # of its last frame; later steps may have been for other streams
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    picture: bytes = b""
    looked_at: float = -math.inf
    source: Source | None = None
    # Notified when it has another result, or is dropped. One for all streams would wake every request at every frame.
    news: threading.Condition = field(default_factory=threading.Condition)

    def stop(self) -> None:
        if self.source is not None:
            self.source.stop()


class Worker:
    """Runs streams; its methods may be called from any thread. Results are plain values, so that it can be remote."""

    def __init__(
        self,
        file: str | Path,
        *,
        backend: str = "auto",
        device: str = "cpu",
        streams: int = 4,
        limits: Limits | None = None,
        threads: int | None = None,
    ):
        """file: what `deltaconvert convert` wrote. streams: how many there is room for before planning anew."""
        if threads is not None:
            torch.set_num_threads(threads)
        model = load(file, backend=backend, device=device)
        if len(model.example) != 1 or len(model.example[0][0]) != 4:
            raise InputError(
                f"{file}: it takes {len(model.example)} inputs, a camera feeds one image at a time"
            )
        (shape, dtype), self._device = model.example[0], torch.device(device)
        self._size, self._dtype = (shape[2], shape[3]), dtype
        self._recipe = feed.from_json(model.info.get("recipe"))
        self._limits = limits or Limits()
        limit = self._limits.max_streams
        self._pool = StreamPool(model, min(streams, limit), limit=limit)
        self._cameras: dict[str, _Camera] = {}
        self._joining = threading.Lock()
        self._decoding = threading.BoundedSemaphore(DECODED)
        self._leaving = threading.Lock()  # no stream leaves between a step and the handling of its results
        self._new = threading.Condition()  # notified when a frame was put, or the worker closes
        self._closed = False
        self._thread = threading.Thread(target=self._steps, name="steps", daemon=True)
        self._thread.start()

    def join(self, stream: str, snapshot: bytes | None = None) -> None:
        """Take in a stream; does nothing for one that is here."""
        with self._joining:
            if stream not in self._pool:
                with _refusing(503):
                    self._pool.join(stream, snapshot)
                self._cameras[stream] = _Camera()

    def drop(self, stream: str) -> None:
        with self._leaving:
            camera = self._camera(stream)
            camera.stop()
            self._pool.drop(stream)
            del self._cameras[stream]
        with camera.news:
            camera.news.notify_all()

    def reset(self, stream: str) -> None:
        """Compute its next frame in full."""
        with _refusing(404):
            self._pool.reset(stream)

    def snapshot(self, stream: str) -> bytes:
        with _refusing(404):
            return self._pool.snapshot(stream)

    def frame(self, stream: str, data: bytes, kind: str) -> dict[str, Any]:
        """Run an image and return its result, or that of a newer image that replaced it.

        Refused for one that cannot be decoded, that the network raises on, or that takes too long.
        """
        camera = self._camera(stream)

        def gone() -> bool:  # dropped meanwhile, or moved: then its new worker has to be asked
            return self._cameras.get(stream) is not camera

        with self._decoding:
            number = self._put(stream, images.decode(data, kind, self._size, self._limits))
        with camera.news:
            done = camera.news.wait_for(lambda: gone() or camera.result.get("frame", 0) >= number, PATIENCE)
        result = camera.result
        if gone():
            raise _absent(stream)
        if not done:
            raise Refused(503, f"stream {stream} has waited {PATIENCE:.0f} s for its result")
        if "error" in result:
            raise Refused(422, result["error"])
        return result

    def watch(self, stream: str, address: str, loop: bool = False) -> str | None:
        """Read a video or a camera into a stream, as Source does, instead of what was read before; its status.

        A camera that does not answer is waited for. It is refused only if the stream reads another source, which goes
        on.
        """
        camera = self._camera(stream)
        with _refusing(422):
            source = Source(
                address,
                lambda frame: self._put(stream, frame),
                loop=loop,
                patient=camera.source is None or not camera.source.reads,
                max_fps=self._limits.max_fps,
                max_pixels=self._limits.max_pixels,
            )
        with self._leaving:  # a camera may take seconds to answer; meanwhile the stream may have left
            if self._cameras.get(stream) is not camera:
                source.stop()
                raise _absent(stream)
            camera.stop()
            camera.source = source
        return source.status

    def result(self, stream: str) -> dict[str, Any]:
        """The result of the last frame; empty before the first."""
        return self._camera(stream).result

    def picture(self, stream: str, after: int = 0) -> tuple[int, bytes]:
        """(number of the frame, JPEG): the newest frame with its changed pixels marked, newer than `after` if one comes
        within a second (NEWER)."""
        camera = self._camera(stream)
        camera.looked_at = time.monotonic()
        with camera.news:
            camera.news.wait_for(lambda: camera.picture and camera.result.get("frame", 0) > after, NEWER)
        return camera.result.get("frame", 0), camera.picture

    def stats(self) -> dict[str, dict[str, Any]]:
        """For each stream: its StreamStats, percentiles of the latency in seconds, and its source."""
        found = {}
        for stream, stats in self._pool.stats().items():
            camera = self._cameras.get(str(stream))
            if camera is None:
                continue
            times = sorted(camera.latencies) or [0.0]
            found[str(stream)] = {
                **asdict(stats),
                "density": camera.density,
                "latency": camera.latencies[-1] if camera.latencies else 0.0,
                "latency_p50": quantile(times, 0.5),
                "latency_p99": quantile(times, 0.99),
                "source": camera.source and camera.source.status,
            }
        return found

    def held(self) -> dict[str, bool]:
        """The streams, and whether something is read into each."""
        return {stream: camera.source is not None for stream, camera in list(self._cameras.items())}

    def alive(self) -> bool:
        return self._thread.is_alive()

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        """Stop reading and running."""
        for camera in list(self._cameras.values()):
            camera.stop()
        with self._new:
            self._closed = True
            self._new.notify_all()
        self._thread.join(PATIENCE)

    def _camera(self, stream: str) -> _Camera:
        if stream not in self._cameras:
            raise _absent(stream)
        return self._cameras[stream]

    def _put(self, stream: str, frame: Tensor) -> int:
        camera = self._camera(stream)
        height, width = self._size
        image = resize(frame, (width, height))
        x = self._recipe.prepare(image).to(self._dtype)
        with self._new, _refusing(404):
            number = self._pool.put(stream, x)
            camera.shown = image
            self._new.notify_all()
        return number

    def _steps(self) -> None:
        """The thread that runs all streams."""
        while True:
            with self._new:
                self._new.wait_for(lambda: self._closed or self._pool.waiting)
                if self._closed:
                    return
                shown = {name: camera.shown for name, camera in self._cameras.items()}
            with self._leaving:
                results, since = self._pool.step(), time.monotonic()
                for stream, result in results.items():
                    self._finish(str(stream), result, since, shown.get(str(stream)))
                    camera = self._cameras[str(stream)]
                    with camera.news:
                        camera.news.notify_all()

    def _finish(self, stream: str, result: Result, since: float, image: Tensor | None) -> None:
        """Finish the results of a step. since: when the step returned; a GPU may still be working on them."""
        camera = self._cameras[stream]
        found: dict[str, Any] = {"stream": stream, "frame": result.number}
        if result.error is not None:
            camera.result = {**found, "error": f"the network raised on it: {result.error}"}
            return
        try:
            outputs = describe(result.output)
            latency = result.latency + time.monotonic() - since
            camera.latencies.append(latency)
            changed = self._pool.changed(stream)
            camera.density = int(changed.count_nonzero()) / changed.numel()
            if image is not None and time.monotonic() - camera.looked_at < LOOKED_AT:
                camera.picture = images.marked(image, changed, stream, outputs)
        except Exception as error:  # the thread serves other streams as well
            camera.result = {**found, "error": f"its result cannot be shown: {error}"}
        else:
            camera.result = {**found, "latency": latency, "outputs": outputs}


def _absent(stream: str) -> Refused:
    return Refused(404, f"there is no stream {stream}")


@contextmanager
def _refusing(status: int) -> Iterator[None]:
    """Errors of deltaconvert become refusals with this status."""
    try:
        yield
    except Refused:
        raise
    except DeltaConvertError as error:
        raise Refused(status, str(error)) from error

"""Sources: videos and cameras that the server reads by itself, each in a thread that feeds one stream."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from torch import Tensor

from deltaconvert import video
from deltaconvert.errors import VideoError
from deltaconvert.serve.limits import VIDEO_FORMATS, without_password

RETRY, LONGEST = 0.5, 30.0  # seconds until a lost camera is tried again: at first, doubled up to the longest


class Source:
    """Reads a video or a camera in a thread.

    status: the address while it is read; the reason if a camera has not answered yet, is lost or has failed; None when
    it has ended. It shows neither passwords nor paths of files.
    reads: whether the status is the address.
    """

    def __init__(
        self,
        address: str,
        put: Callable[[Tensor], object],
        *,
        loop: bool = False,
        patient: bool = False,
        max_fps: float = math.inf,
        max_pixels: int | None = None,
    ):
        """address: as video.read takes it. put: what is called with each frame, uint8 (H, W, 3).

        loop: whether a file is read again and again. A lost camera is always tried again; patient: so is one that does
        not answer at the start, which is a VideoError otherwise. max_pixels: of a frame; a larger one is a VideoError.
        """
        self._address, self._put, self._loop, self._max_fps = address, put, loop, max_fps
        self._max_pixels = max_pixels
        self._live, self._stop = video.is_address(address), threading.Event()
        self.status: str | None = self._shown(address)
        reader = None
        try:
            reader = self._open()
        except VideoError as error:
            if not (patient and self._live):
                raise VideoError(self._shown(str(error))) from error
            self.status = self._tried_again("no answer yet", error)
        name = f"read {self._shown(address)}"
        threading.Thread(target=self._run, args=(reader,), name=name, daemon=True).start()

    @property
    def reads(self) -> bool:
        return self.status == self._shown(self._address)

    def stop(self) -> None:
        """After it comes at most one more frame, which is being read."""
        self._stop.set()

    def _run(self, reader: video.VideoReader | None) -> None:
        try:
            reader = reader or self._again("no answer yet")
            while reader is not None:
                with closing(reader):
                    self._feed(reader)
                reader = self._again("lost")
            self.status = None
        except Exception as error:  # shown in the status, since nobody waits for this thread
            self.status = f"ended: {self._shown(str(error))}"

    def _open(self) -> video.VideoReader:
        return video.read(self._address, max_pixels=self._max_pixels, formats=VIDEO_FORMATS)

    def _feed(self, reader: video.VideoReader) -> None:
        """Hand on all frames, whether or not the network keeps up. Those of a file come at its own rate. A camera sets
        its own pace: frames beyond the limit are dropped, because to wait would be to fall behind."""
        due = time.monotonic()
        try:
            for frame in reader:
                if self._stop.is_set():
                    return
                if not self._live:
                    self._put(frame)
                    due += 1 / min(reader.fps, self._max_fps)
                    self._stop.wait(max(0.0, due - time.monotonic()))
                elif time.monotonic() >= due:
                    self._put(frame)
                    due = time.monotonic() + 1 / self._max_fps
        except VideoError:
            if not self._live:
                raise

    def _again(self, state: str) -> video.VideoReader | None:
        """The file from its beginning, or the camera when it answers; None if no more frames are wanted.

        state: of the camera until then, which the status shows.
        """
        if not self._live:
            return self._open() if self._loop and not self._stop.is_set() else None
        pause = RETRY
        while not self._stop.wait(pause):
            try:
                reader = self._open()
            except VideoError as error:
                self.status = self._tried_again(state, error)
                pause = min(2 * pause, LONGEST)
            else:
                self.status = self._shown(self._address)
                return reader
        return None

    def _tried_again(self, state: str, error: VideoError) -> str:
        return f"{state}, tried again: {self._shown(str(error))}"

    def _shown(self, text: str) -> str:
        return without_password(text if self._live else text.replace(self._address, Path(self._address).name))

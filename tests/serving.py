"""Images and requests for the tests of the server."""

from __future__ import annotations

import io
import random
import socket
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress

import torch
from PIL import Image
from torch import Tensor

HEIGHT, WIDTH = 48, 64
PATIENCE = 120.0  # seconds that a test waits for an event that has to come, if the machine is busy


def until(true: Callable[[], bool]) -> None:
    """Wait until another thread or process has made `true()` true."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def frame(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """uint8 (H, W, 3)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8)


def png(image: Tensor) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image.numpy()).save(out, "PNG")
    return out.getvalue()


def free_port() -> int:
    """Below those that the system gives to whoever asks for any: a server takes seconds to start, and Ray's processes
    ask for many meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20000, 32768)  # drawn examples seed the other generator
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def ask(address, path, method="GET", body=None, **headers):
    request = urllib.request.Request(address + path, data=body, method=method, headers=headers)
    return urllib.request.urlopen(request).read()

"""What happens when the device's memory does not suffice."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deltaconvert.errors import InputError


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """InputError with the ways out where `what` runs out of the device's memory; what it had taken is free again."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # A half-made state lives in the frames of the traceback for as long as somebody holds the error.
        traceback.clear_frames(error.__traceback__)
        said = str(error).splitlines()[0]
    else:
        return
    raise InputError(
        f"{what} does not fit into the device's memory: use a smaller batch or smaller frames, convert the network in "
        f"half precision, or free other models first ({said})"
    )

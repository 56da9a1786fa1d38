"""What happens when the device's memory does not suffice."""

from __future__ import annotations

import gc
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
        let_go(error)
        said = str(error).splitlines()[0]
    else:
        return
    raise InputError(
        f"{what} does not fit into the device's memory: use a smaller batch or smaller frames, convert the network in "
        f"half precision, or free other models first ({said})"
    )


def let_go(error: BaseException) -> None:
    """Free what was being made when `error` was raised, however long somebody holds it."""
    cause: BaseException | None = error
    while cause is not None:  # a half-made state lives in the frames of the tracebacks
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    gc.collect()  # and in graphs, which their nodes hold, as they hold them

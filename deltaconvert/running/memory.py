"""What happens when the device's memory does not suffice."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deltaconvert.errors import InputError

# How the driver, CuPy, cuBLAS and cuDNN say that memory ran out: only torch has an exception type for it.
_WORDS = re.compile(
    r"CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|_ALLOC_FAILED"
)


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """InputError with the ways out where `what` runs out of the device's memory; what it had taken is free again."""
    try:
        yield
    except Exception as error:
        cause = _ran_out(error)
        if cause is None:
            raise
        let_go(error)
        said = str(cause).splitlines()[0]
    else:
        return
    raise InputError(
        f"{what} does not fit into the device's memory: use a smaller batch or smaller frames, convert the network in "
        f"half precision, or free other models first ({said})"
    )


def _ran_out(error: BaseException | None) -> BaseException | None:
    """The lack of memory behind an error, if that is what it comes from."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or _WORDS.search(str(error)):
            return error
        error = error.__cause__
    return None


def let_go(error: BaseException) -> None:
    """Free what was being made when `error` was raised, however long somebody holds it."""
    cause: BaseException | None = error
    while cause is not None:  # a half-made state lives in the frames of the tracebacks
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    gc.collect()  # graphs and their nodes refer to each other, so only the collector frees them

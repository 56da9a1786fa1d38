"""A frame's CUDA graph without a GPU: launches are recorded with their arguments while it is captured, and made again
when it is replayed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import on_cpu
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import recording

REAL = cuda.Recording


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.launches: list[Callable[[], Any]] = []

    def replay(self) -> None:
        for launch in self.launches:
            launch()


class Calls(TorchDispatchMode):
    """torch's own calls in a graph: a replay writes their results to the same memory as the capture."""

    def __init__(self, graphs: list[Graph]):
        """graphs: the last one is being captured."""
        super().__init__()
        self._graphs = graphs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))

        def again() -> None:
            fresh = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and fresh.data_ptr() != result.data_ptr():
                result.copy_(fresh)

        self._graphs[-1].launches.append(again)
        return result


class Stream:
    device = torch.device("cpu")

    def wait_stream(self, other: Any) -> None:
        pass


def with_graphs(patch: pytest.MonkeyPatch) -> None:
    """During a test, backend="cuda" runs on the CPU and replays its frames."""
    open_graphs: list[Graph] = []

    class Kernel(on_cpu.Kernel):
        def __call__(self, grid: tuple[int, ...], block: int, *args: Any, **options: Any) -> None:
            run = super().__call__
            if not open_graphs:
                return run(grid, block, *args)
            fixed = [np.uint64(arg.data_ptr()) if isinstance(arg, Tensor) else arg for arg in args]
            open_graphs[-1].launches.append(lambda held=args: run(grid, block, *fixed))

    @contextlib.contextmanager
    def capturing(graph: Graph, stream: Any, device: torch.device) -> Iterator[None]:
        open_graphs.append(graph)
        with Calls(open_graphs):
            yield
        open_graphs.pop()

    @contextlib.contextmanager
    def body(around: Any, memory: Any, inside: Any, wake: Callable[[np.uint64], None]) -> Iterator[None]:
        """A conditional node is a number, which `wake` is told the address of."""
        node, part, graph = np.zeros(1, np.uint32), Graph(), open_graphs[-1]
        graph.launches.append(lambda: node.fill(0))
        wake(np.uint64(node.ctypes.data))
        graph.launches.append(lambda: part.replay() if node[0] else None)
        open_graphs.append(part)
        yield
        open_graphs.pop()

    on_cpu.without_a_gpu(patch)
    patch.setattr(cuda, "Recording", REAL)
    patch.setattr(recording, "body", body)
    patch.setattr(torch.cuda, "MemPool", lambda: None)
    patch.setattr(cuda.launches, "Kernel", Kernel)
    patch.setattr(recording, "own_stream", lambda device: Stream())
    patch.setattr(recording, "on_current_stream", lambda device: contextlib.nullcontext())
    patch.setattr(recording, "capturing", capturing)
    patch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
    patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    patch.setattr(torch.cuda, "CUDAGraph", Graph)

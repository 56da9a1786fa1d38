"""Frames of the reference backend as a CUDA graph, for trials, where launching kernels takes the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.alone import alone
from deltaconvert.lower import Program


class Replay:
    """Runs the frames of a reference program. The first one after `forget` runs eagerly, the second is recorded as a
    CUDA graph, and the rest are replays of it: thresholds must not change between two calls of `forget`.

    measured: computes something about each frame, and is recorded with it. A program that cannot be recorded, because
    it waits for the device, runs eagerly; `why_not` then has the reason.
    """

    def __init__(self, program: Program, measured: Callable[[], Tensor]):
        self._program, self._measured = program, measured
        self._graph: torch.cuda.CUDAGraph | None = None
        self._memory: Any = None
        self._side: torch.cuda.Stream | None = None  # one for all graphs: cuBLAS has a workspace for each
        self.why_not = "" if torch.cuda.is_available() else "there is no GPU"
        self.forget()

    def forget(self) -> None:
        self._frames, self._recorded = 0, False

    def run(self, frame: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The outputs, and what is measured: tensors that later frames do not write to."""
        self._frames += 1
        if self._frames == 2 and not self.why_not:
            self._record(frame)
        if not self._recorded:
            return self._program.run(frame), self._measured()
        assert self._graph is not None
        for kept, fresh in zip(self._inputs, frame, strict=True):
            kept.copy_(fresh)
        self._graph.replay()
        return [output.clone() for output in self._outputs], self._found.clone()

    def _record(self, frame: Sequence[Tensor]) -> None:
        """A step makes new maps. So the graph ends by copying them into the maps that it began with."""
        edges = list(self._program.edges.values())
        before = [edge.values for edge in edges]
        self._inputs = [x.clone() for x in frame]
        here, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        self._side = self._side or torch.cuda.Stream()
        self._side.wait_stream(here)
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        try:
            with alone(), torch.cuda.stream(self._side):
                graph.capture_begin(self._memory, capture_error_mode="thread_local")
                try:
                    self._outputs = self._program.run(self._inputs)
                    self._found = self._measured()
                    for old, edge in zip(before, edges, strict=True):
                        old.copy_(edge.values)
                finally:
                    graph.capture_end()
            self._graph, self._recorded = graph, True
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.why_not = str(error).splitlines()[0]
        finally:
            for old, edge in zip(before, edges, strict=True):
                edge.values = old
        here.wait_stream(self._side)

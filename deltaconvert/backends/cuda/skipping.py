"""A still frame skips all steps after its comparison: they are the body of a conditional node of the frame's graph.

before:  compare > lists > convolutions ... > counts
after:   compare > wake > if a pixel changed: (lists > convolutions ...) > counts

Counters are 0 at the start of every frame. So if the body did not run, they say that nothing changed, and the results
of the frame before are still valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import fx

from deltaconvert.backends.cuda.kernels import bindings, on_current_stream
from deltaconvert.nodes import densify, is_delta, sparsify

OLDEST = 12040  # version of the first driver with such nodes
# Launches that a skipped part has at least. Measured (H100, half, 1080p, batch 1; benchmarks/results/gpu_still.json),
# us with and without: EfficientNet-B0, 134 launches, still 29 and 315, at 1 % 1521 and 1505; ResNet-50, 55 launches,
# still 28 and 110, at 1 % 315 and 300, which is too dear.
WORTH = 60
# From so many images a frame on it takes half as many launches more, because a frame is still only if all images are.
# Of eight cameras' frames (FastestDet, 80 launches; docs/performance_tried.md) none was still, and the node took 16 of
# 556 us.
MANY = 8


def worth_skipping(launches: int, images: int) -> bool:
    """Whether still frames skip a part of so many launches."""
    return launches >= WORTH * (1.5 if images >= MANY else 1)


def behind_frames(steps: Sequence[Any]) -> int:
    """The number of steps up to the last that compares a frame; all steps, if a later one reads a frame as well."""
    if not steps:
        return 0
    of_frames: set[fx.Node] = set()  # dense values that follow from a frame and from no delta
    for node in steps[0].node.graph.nodes:
        is_dense = node.target not in (sparsify, densify) and not is_delta(node)
        if node.op == "placeholder" or (is_dense and not of_frames.isdisjoint(node.all_input_nodes)):
            of_frames.add(node)
    reading = [i for i, step in enumerate(steps) if not of_frames.isdisjoint(step.node.all_input_nodes)]
    last = steps[reading[-1]].node if reading else None
    return reading[-1] + 1 if last is not None and last.target is sparsify else len(steps)


@contextmanager
def body(
    around: torch.cuda.Stream, memory: Any, inside: torch.cuda.Stream, wake: Callable[[np.uint64], None]
) -> Iterator[None]:
    """While a graph is captured in `around`: a conditional node of it, whose body is what the stream `inside` captures.

    memory: a pool of the body's own, since its contents have to outlive frames in which it does not run. wake:
    launches a kernel that sets the node, by its handle, to a value other than 0 if the body is to run."""
    driver = bindings()
    if driver is None or _done(driver.cuDriverGetVersion()) < OLDEST:
        raise RuntimeError("a conditional node needs cuda-bindings, and a driver for CUDA 12.4")
    outer, inner = (driver.CUstream(stream.cuda_stream) for stream in (around, inside))
    context = _done(driver.cuCtxGetCurrent())
    handle = _done(
        driver.cuGraphConditionalHandleCreate(
            _captured(driver, outer)[0], context, 0, driver.CU_GRAPH_COND_ASSIGN_DEFAULT
        )
    )
    wake(np.uint64(int(handle)))
    node = driver.CUgraphNodeParams()
    node.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    node.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF
    node.conditional.handle, node.conditional.size, node.conditional.ctx = handle, 1, context
    graph, before, edges = _captured(driver, outer)
    add = getattr(driver, "cuGraphAddNode_v2", driver.cuGraphAddNode)  # bindings of CUDA 12 call it so
    added = _done(add(graph, before, edges, len(before), node))
    follow = getattr(driver, "cuStreamUpdateCaptureDependencies_v2", driver.cuStreamUpdateCaptureDependencies)
    instead = driver.CUstreamUpdateCaptureDependencies_flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES
    _done(follow(outer, [added], None, 1, instead))
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _done(driver.cuStreamBeginCaptureToGraph(inner, node.conditional.phGraph_out[0], None, None, 0, mode))
    try:
        with torch.cuda.stream(inside), on_current_stream(inside.device), torch.cuda.use_mem_pool(memory):
            yield
    finally:
        ended = driver.cuStreamEndCapture(inner)
    _done(ended)


def _captured(driver: Any, stream: Any) -> tuple[Any, Any, Any]:
    """The graph that a stream captures, the nodes that its next node depends on, and the data of those edges."""
    ask = getattr(driver, "cuStreamGetCaptureInfo_v3", driver.cuStreamGetCaptureInfo)
    _, _, graph, before, edges, _ = _done(ask(stream))
    return graph, before, edges


def _done(answer: tuple[Any, ...]) -> Any:
    error, *results = answer
    if int(error):
        raise RuntimeError(f"a conditional node could not be made: {error}")
    return results[0] if len(results) == 1 else results

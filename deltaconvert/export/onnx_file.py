"""The ONNX file: a plan of its own, names, metadata, the check."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import fx

import deltaconvert
from deltaconvert.check import is_delta, names_of
from deltaconvert.errors import ExportError
from deltaconvert.export.names import Names, State
from deltaconvert.passes.join_pixels import join_pixels
from deltaconvert.plan import Plan, plan
from deltaconvert.thresholds import Thresholds

if TYPE_CHECKING:
    import onnx

    from deltaconvert.model import DeltaModel


def write(delta: DeltaModel, path: Path, dense_above: float | None) -> None:
    save(model_of(delta, dense_above), path)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Checked in full before it takes its name."""
    import onnx

    large = model.ByteSize() > 2**31 - 2**20
    onnx.save(model, path, save_as_external_data=large)
    onnx.checker.check_model(str(path) if large else model, full_check=True)


def model_of(delta: DeltaModel, dense_above: float | None = None) -> onnx.ModelProto:
    if importlib.util.find_spec("onnx") is None:
        raise ExportError("writing ONNX needs the package onnx: pip install 'deltaconvert[onnx]'")
    from deltaconvert.export.network import Network

    if delta.gate.to_json():
        raise ExportError(
            "the network has a gate, which has no form in ONNX yet: convert it without gate=, and keep the thresholds"
        )
    if any(dtype not in (torch.float32, torch.int64, torch.uint8) for _, dtype in delta.example):
        raise ExportError("the network computes in another type than float32: convert it again in float32")
    with torch.inference_mode(False), torch.no_grad():
        frames = [torch.zeros(shape, dtype=dtype) for shape, dtype in delta.inputs]
        graph = delta.graph if _on_cpu(delta) else copy.deepcopy(delta.graph).cpu()
        planned = plan(graph, frames, Thresholds.of(delta.rules), delta.keep_dense, (join_pixels,))
        names = _named(planned)
        return Network(planned, names, dense_above).proto(_metadata(delta, names))


def _on_cpu(delta: DeltaModel) -> bool:
    return all(tensor.device.type == "cpu" for tensor in (*delta.graph.parameters(), *delta.graph.buffers()))


def _named(planned: Plan) -> Names:
    """frame, or frame.0, frame.1, ...; output likewise; a state is called after its node's path."""
    nodes = list(planned.graph.graph.nodes)
    frames = [node for node in nodes if node.op == "placeholder"]
    outputs = [node for node in nodes[-1].args[0] if isinstance(node, fx.Node)]
    states: dict[fx.Node, State] = {}
    taken: set[str] = set()
    for node in nodes:
        if is_delta(node):
            name = names_of(node)[0]
            name = name if name not in taken else node.name
            taken.add(name)
            states[node] = State(node, name)
    return Names(
        dict(zip(frames, _numbered("frame", len(frames)), strict=True)),
        _numbered("output", len(outputs)),
        states,
    )


def _numbered(word: str, count: int) -> list[str]:
    return [word] if count == 1 else [f"{word}.{place}" for place in range(count)]


def _metadata(delta: DeltaModel, names: Names) -> dict[str, str]:
    """Texts for the model's metadata: what a runner needs, and what the network was converted with."""
    states = [
        {
            "input": state.input,
            "output": state.output,
            "node": names_of(node)[0],
            "layout": "NHWC",
            "threshold": node.meta.get("threshold"),
        }
        for node, state in names.states.items()
    ]
    return {
        "deltaconvert.version": deltaconvert.__version__,
        "deltaconvert.format": "1",
        "deltaconvert.frames": json.dumps(list(names.frames.values())),
        "deltaconvert.outputs": json.dumps(names.outputs),
        "deltaconvert.states": json.dumps(states),
        "deltaconvert.thresholds": json.dumps(dict(delta.rules)),
        "deltaconvert.info": json.dumps(delta.info),
    }

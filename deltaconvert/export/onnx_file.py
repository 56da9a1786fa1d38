"""The ONNX file: its metadata, the check."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deltaconvert.errors import ExportError, first_line
from deltaconvert.export.planned import Planned, planned
from deltaconvert.nodes import names_of

if TYPE_CHECKING:
    import onnx

    from deltaconvert.model import DeltaModel


def require() -> None:
    """ExportError where the package that writes ONNX is missing: better said before a network is loaded."""
    if importlib.util.find_spec("onnx") is None:
        raise ExportError('writing ONNX needs the package onnx: pip install "deltaconvert[onnx]"')


def write(delta: DeltaModel, path: Path, dense_above: float | None) -> None:
    save(model_of(delta, dense_above), path)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Checked in full before it takes its name."""
    import onnx

    large = model.ByteSize() > 2**31 - 2**20
    onnx.save(model, path, save_as_external_data=large)
    try:
        onnx.checker.check_model(str(path) if large else model, full_check=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(
            f"its arithmetic mixes types, which ONNX does not: {first_line(error)}. Operators of integers and truth "
            "values are written where torch's exporter does it: keep them dense when converting, keep_dense=[...]"
        ) from error


def model_of(delta: DeltaModel, dense_above: float | None = None) -> onnx.ModelProto:
    require()
    from deltaconvert.export.network import Network

    for place, (_, dtype) in enumerate(delta.example):
        if dtype not in (torch.float32, torch.int64, torch.uint8):
            way = (
                "convert the network again in float32"
                if dtype.is_floating_point
                else "let it take torch.uint8"
            )
            raise ExportError(
                f"input {place} is {dtype}; the file's frames are float32, int64 or uint8, and it computes in "
                f"float32: {way}"
            )
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        found = planned(delta, "ONNX")
        return Network(found.plan, found.names, dense_above).proto(_metadata(found))


def _metadata(found: Planned) -> dict[str, str]:
    """Texts: what a runner needs, and what the network was converted with."""
    names = found.names
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
    facts = found.facts | {"frames": list(names.frames.values()), "outputs": names.outputs, "states": states}
    return {
        f"deltaconvert.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in facts.items()
    }

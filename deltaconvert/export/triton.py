"""A model repository for NVIDIA Triton: the ONNX file, and a config.pbtxt whose states the sequence batcher keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnx import TensorProto

from deltaconvert.errors import ExportError

if TYPE_CHECKING:
    import onnx

    from deltaconvert.model import DeltaModel

# One instance of the network serves them in turns. By the other strategy, `direct`, each sequence has an instance to
# itself, and of three cameras the last one waits for ever.
SEQUENCES = 64
IDLE_MICROSECONDS = 10_000_000  # Triton's default is one second: a camera that pauses would lose its state
_TYPES = {
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.INT8: "TYPE_INT8",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64",
}


def write(delta: DeltaModel, folder: Path, dense_above: float | None) -> None:
    """folder/config.pbtxt and folder/1/model.onnx; the folder's name is the model's.

    Each sequence of Triton is a stream, so the network is to be converted for a batch of one.
    """
    from deltaconvert.export import onnx_file

    if delta.streams != 1:
        raise ExportError(
            f"the network runs {delta.streams} streams in a batch: in Triton each sequence is a stream of its own. "
            "Convert it for one image, --input 1x..."
        )
    model = onnx_file.model_of(delta, dense_above)
    (folder / "1").mkdir(parents=True, exist_ok=True)
    onnx_file.save(model, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(config(model, folder.resolve().name))


def config(model: onnx.ModelProto, name: str) -> str:
    """The text of config.pbtxt."""
    from deltaconvert.export.graph import EVERY

    inputs = {value.name: value for value in model.graph.input}
    states = [name for name in inputs if name.endswith(".state")]
    frames = [name for name in inputs if name not in states and name != EVERY]
    outputs = [value for value in model.graph.output if not value.name.endswith(".state_out")]
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', "max_batch_size: 0"]
    lines += [f"input [ {{ {_described(inputs[name])} }} ]" for name in frames]
    lines += [f"output [ {{ {_described(value)} }} ]" for value in outputs]
    lines += ["sequence_batching {", f"  max_sequence_idle_microseconds: {IDLE_MICROSECONDS}"]
    lines += [f"  oldest {{ max_candidate_sequences: {SEQUENCES} }}"]
    lines += ["  control_input [ {", f'    name: "{EVERY}"']
    lines += ["    control [ { kind: CONTROL_SEQUENCE_START bool_false_true: [ false, true ] } ]", "  } ]"]
    for state in states:
        kind, dims = _type(inputs[state]), _dims(inputs[state])
        lines += [
            "  state [ {",
            f'    input_name: "{state}" output_name: "{state}_out" {kind} {dims}',
            "    use_same_buffer_for_input_output: true",
            f'    initial_state: {{ {kind} {dims} zero_data: true name: "zeros" }}',
            "  } ]",
        ]
    return "\n".join([*lines, "}", ""])


def _described(value: onnx.ValueInfoProto) -> str:
    return f'name: "{value.name}" {_type(value)} {_dims(value)}'


def _type(value: onnx.ValueInfoProto) -> str:
    return f"data_type: {_TYPES[value.type.tensor_type.elem_type]}"


def _dims(value: onnx.ValueInfoProto) -> str:
    return f"dims: [ {', '.join(str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)} ]"

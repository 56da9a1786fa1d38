"""ONNX -> fx graph: onnx2fx reads it, `record` writes down what it calls. Nothing in the file runs, and no file but it
and its external data is read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from deltaconvert.errors import CheckpointError
from deltaconvert.formats import Sizes, example_of
from deltaconvert.formats.record import record

MAX_BYTES = 2**31  # protobuf's own bound on one message
MAX_NODES = 100_000
CONSTANTS = 2**24  # elements that constants may come to, beside four times the weights
# They hold graphs of their own, and how often these run is for values to say.
_CONTROL = ("If", "Loop", "Scan", "SequenceMap")


def load(path: Path, sizes: Sizes | None) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """The network for inputs of `sizes`, or of the sizes that it declares; CheckpointError where neither is known."""
    onnx, onnx2fx = _libraries()
    model = _parse(onnx, path)
    graph = model.graph
    _refuse_programs(model)
    held = sum(_embed(onnx, tensor, path.parent) for tensor in _tensors(graph))
    _rename(graph)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    wanted = _input_sizes(inputs, sizes)
    dtypes = [_dtype(onnx, value.type.tensor_type.elem_type) for value in inputs]
    example = example_of(wanted, dtypes)
    network = onnx2fx.convert(model).eval()
    found = record(network, example, constants=4 * held + CONSTANTS)
    found.meta["sizes"] = tuple(wanted)
    return found, example


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import onnx2fx
    except ImportError as error:
        raise CheckpointError(
            f'ONNX files need {error.name}: pip install "deltaconvert[onnx]" (Python 3.11 or newer)'
        ) from error
    return onnx, onnx2fx


def _parse(onnx: Any, path: Path) -> Any:
    if path.stat().st_size >= MAX_BYTES:
        raise CheckpointError("is over 2 GiB in one file: export it with external data")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # DecodeError, of a library that need not be imported for its name
        raise CheckpointError(f"is damaged or no ONNX ({error}): copy or export it again") from error
    if not model.graph.node or not model.opset_import:
        raise CheckpointError("is damaged or no ONNX (it has no nodes): copy or export it again")
    return model


def _refuse_programs(model: Any) -> None:
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise CheckpointError(f"has {len(graph.node)} nodes: {MAX_NODES} are the limit")
    if model.functions:
        raise CheckpointError(
            "has functions of its own: onnx.inliner.inline_local_functions puts them in their places"
        )
    if graph.sparse_initializer:
        raise CheckpointError("has sparse weights: export it with dense ones")
    for node in graph.node:
        graphs = any(a.HasField("g") or a.graphs for a in node.attribute)
        if node.op_type in _CONTROL or graphs:
            raise CheckpointError(
                f"has control flow ({node.op_type} {node.name[:80]!r}): cut the network before it with "
                "onnx.utils.extract_model, and do the rest in Python"
            )
        if node.domain not in ("", "ai.onnx"):
            raise CheckpointError(
                f"uses {node.domain[:80]}::{node.op_type[:80]}, which is not of the ONNX standard: export it without"
            )


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise CheckpointError("has sparse constants: export it with dense ones")


def _embed(onnx: Any, tensor: Any, folder: Path) -> int:
    """Bring external data in; the number of elements. What the tensor says must be what it holds."""
    elements = math.prod(tensor.dims)
    name = tensor.name[:80]
    if any(length < 0 for length in tensor.dims) or len(tensor.dims) > 32:
        raise CheckpointError(f"the tensor {name!r} has shape {list(tensor.dims)[:32]}: export it again")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.raw_data = _external(tensor, folder)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    # Two values of 4 bits share a byte; complex values take two entries.
    holds = max(2 * len(tensor.raw_data), *(len(getattr(tensor, field)) for field in _FIELDS))
    if elements > 2 * holds:
        raise CheckpointError(
            f"the tensor {name!r} says it has {elements} elements and holds {holds}: copy or export it again"
        )
    return elements


_FIELDS = "float_data int32_data int64_data double_data uint64_data string_data".split()


def _external(tensor: Any, folder: Path) -> bytes:
    """The bytes that a tensor keeps in a file of the model's folder; no other file is opened."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location, name = facts.get("location", ""), tensor.name[:80]
    place = Path(location)
    inside = location and not place.is_absolute() and ".." not in place.parts and "\\" not in location
    if not inside:
        raise CheckpointError(
            f"the tensor {name!r} is in {location[:200]!r}, outside the model's folder: put the data beside the model"
        )
    target = folder / place
    for part in (target, *target.parents[: len(place.parts) - 1]):
        if part.is_symlink():
            raise CheckpointError(f"the tensor {name!r} is behind the link {part}: put the data itself there")
    if not target.is_file():
        raise CheckpointError(
            f"the tensor {name!r} is in {target}, which is no file: copy it beside the model"
        )
    size = target.stat().st_size
    try:
        offset = int(facts.get("offset", "0"))
        length = int(facts.get("length", str(size - offset)))
    except ValueError as error:
        raise CheckpointError(f"the tensor {name!r} has no place in {target}: export it again") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise CheckpointError(
            f"the tensor {name!r} is at {offset} to {offset + length} of {target}, which has {size} bytes: "
            "copy it again"
        )
    with open(os.open(target, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        file.seek(offset)
        return file.read(length)


def _rename(graph: Any) -> None:
    """Give values and nodes names of ours: names become source in an fx graph."""
    names: dict[str, str] = {"": ""}

    def renamed(values: Iterable[str]) -> list[str]:
        return [names.setdefault(value, f"v{len(names)}") for value in values]

    for value in (*graph.initializer, *graph.input, *graph.output):
        (value.name,) = renamed([value.name])
    for number, node in enumerate(graph.node):
        node.name = f"node_{number}"
        node.input[:], node.output[:] = renamed(node.input), renamed(node.output)
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    graph.name = "network"
    del graph.value_info[:]


def _input_sizes(inputs: list[Any], sizes: Sizes | None) -> list[tuple[int, ...]]:
    declared = [_declared(value) for value in inputs]
    if not declared:
        raise CheckpointError("takes no input: it is a constant")
    if sizes is None:
        if not all(all(size) for size in declared):
            shown = ", ".join("x".join(str(n or "?") for n in size) for size in declared)
            raise CheckpointError(f"leaves its input's size open ({shown}): give it, --input 1x3x720x1280")
        return declared
    fits = len(sizes) == len(declared) and all(
        len(own) == len(given) and all(a in (0, b) for a, b in zip(own, given, strict=True))
        for own, given in zip(declared, sizes, strict=True)
    )
    if not fits:
        shown, asked = (
            ", ".join("x".join(str(n or "?") for n in size) for size in each) for each in (declared, sizes)
        )
        raise CheckpointError(f"takes {shown}, not {asked}: leave the size out, or export the network for it")
    return [tuple(size) for size in sizes]


def _declared(value: Any) -> tuple[int, ...]:
    """The size of an input; 0 where it is open."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise CheckpointError("has an input that is no tensor of known rank: export it with one")
    return tuple(max(0, length.dim_value) for length in value.type.tensor_type.shape.dim)


def _dtype(onnx: Any, code: int) -> torch.dtype:
    names = {
        onnx.TensorProto.FLOAT: torch.float32,
        onnx.TensorProto.FLOAT16: torch.float16,
        onnx.TensorProto.DOUBLE: torch.float64,
        onnx.TensorProto.BFLOAT16: torch.bfloat16,
        onnx.TensorProto.UINT8: torch.uint8,
        onnx.TensorProto.INT64: torch.int64,
    }
    if code not in names:
        raise CheckpointError(f"takes values of ONNX type {code}: export it for floating point images")
    return names[code]

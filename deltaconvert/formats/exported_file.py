"""A .pt2 file of torch.export.save -> ExportedProgram.

torch's own reader unpickles, resolves names and evaluates expressions that the file holds. So the file is read twice:
here, which checks every text against what a program needs and refuses the rest; then by torch, from a copy in memory
that holds nothing but what was checked.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from deltaconvert.errors import CheckpointError, ContainerError
from deltaconvert.formats import Sizes, example_of
from deltaconvert.formats.archive import FREE, MAX_RATIO, read_archive
from deltaconvert.formats.rehearse import rehearse

MAX_JSON = 128 * 2**20  # bytes; a network of 10,000 nodes takes 30 MB
AGAIN = "export it again: torch.export.save(torch.export.export(model, (frame,)), file)"

# What a node may call: operators of aten, but for those that read files or take memory as it is, and sums of sizes.
_PRIVATE = (
    "unsafe_view unsafe_index softmax log_softmax to_copy native_batch_norm_legit_no_training adaptive_avg_pool2d "
    "assert_tensor_metadata assert_scalar upsample_bilinear2d_aa upsample_bicubic2d_aa prelu_kernel"
).split()
_TARGET = re.compile(
    rf"torch\.ops\.aten\.(?!(from_file|set_|save|record_stream|resize_)\b)([a-z]\w*|_({'|'.join(_PRIVATE)}))\.\w+"
    r"|torch\.ops\.torchvision\.(nms|roi_align|roi_pool|ps_roi_align|deform_conv2d)\.default"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(int|float|max|min|not|sqrt|ite|sum)"
)
# Names become Python source in a graph; the texts that operators take are quoted there.
_NAME, _TEXT = re.compile(r"[\w.]{0,500}"), re.compile(r"[\w.,:;\->+@ ]{0,500}")
_REFUSED = ("as_graph", "as_operator", "as_custom_obj", "as_optional_tensors_dict", "as_python_obj")
_SYMPY = (
    "Add Mul Integer Symbol Max Min Mod FloorDiv CleanDiv CeilDiv PythonMod ModularIndexing Rational Zero One "
    "Eq Ne Lt Le Gt Ge StrictLessThan LessThan GreaterThan StrictGreaterThan Equality Unequality And Or Not "
    "IntTrueDiv FloatTrueDiv ToFloat TruncToInt CeilToInt FloorToInt Identity Float NegativeOne int_oo true false"
).split()


def load(path: Path, sizes: Sizes | None) -> tuple[ExportedProgram, tuple[Tensor, ...]]:
    """The program, and an example call: its own inputs, or noise of `sizes` where it was exported for these too."""
    entries = read_archive(path)
    inputs = _check(entries)
    exported = torch.export.load(_packed(entries))
    del entries
    _check_tensors(exported, MAX_RATIO * path.stat().st_size + FREE)
    example = inputs if sizes is None else _other(exported, inputs, sizes)
    _rehearse(exported, example)
    return exported, example


def _check(entries: dict[str, bytes]) -> tuple[Tensor, ...]:
    """Refuse what could run; make the program's texts those that were checked. The example inputs."""
    if "serialized_exported_program.json" in entries:
        raise CheckpointError(f"is of an old torch, whose files hold pickles: {AGAIN}")
    if any(name.startswith("data/aotinductor") for name in entries):
        raise CheckpointError(f"holds compiled code, which would run: {AGAIN}")
    programs = [name for name in entries if name.startswith("models/")]
    if programs != ["models/model.json"]:
        raise CheckpointError(f"holds {len(programs)} programs: {AGAIN}")
    program = _json(entries, "models/model.json")
    program["guards_code"] = []  # Python source; the sizes that it guards are checked by others
    graph = program.get("graph_module", {})
    graph["module_call_graph"] = [
        entry for entry in graph.get("module_call_graph", []) if entry.get("fqn") == ""
    ]
    _walk(program, "")
    entries["models/model.json"] = json.dumps(program).encode()
    for name in list(entries):
        if name.endswith("_config.json"):
            _check_payload(_json(entries, name))
        elif name.startswith("extra/"):
            del entries[name]
        elif name.endswith(".pt"):
            _unpickled(entries[name], name)
    call = _unpickled(entries.get("data/sample_inputs/model.pt", b""), "its example inputs")
    args, kwargs = call if isinstance(call, tuple) and len(call) == 2 else ((), {})
    if not args or kwargs or not all(isinstance(x, Tensor) for x in args):
        raise CheckpointError(
            "takes other inputs than tensors by position: convert the network in Python, deltaconvert.convert("
            "torch.export.load(file), example), where you trust the file"
        )
    sizes, dtypes = [tuple(x.shape) for x in args], [x.dtype for x in args]
    return example_of(sizes, dtypes)


def _json(entries: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if len(entries[name]) > MAX_JSON:
        raise CheckpointError(f"describes itself in {len(entries[name])} bytes: {MAX_JSON} are the limit")
    value = json.loads(entries[name])
    if not isinstance(value, dict):
        raise CheckpointError(f"has a {name} that is no object: {AGAIN}")
    return value


def _unpickled(data: bytes, name: str) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > MAX_RATIO * len(data) + FREE:
        raise CheckpointError(f"unpacks to {total} bytes in {name}: {AGAIN}")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"has a pickle in {name} that would run code, or is damaged: {AGAIN}"
        ) from error


def _walk(value: Any, key: str) -> None:
    """Every text in the program's JSON is one that a program needs."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in _REFUSED and inner is not None:
                raise CheckpointError(f"holds a part of its own kind ({name}): {AGAIN}")
            if key == "range_constraints":
                _check_expression(name)
            elif not _NAME.fullmatch(name):
                raise CheckpointError(f"has the name {name[:80]!r}: {AGAIN}")
            if name == "metadata":
                value[name] = {k: v for k, v in inner.items() if k == "nn_module_stack" and _is_text(v)}
            else:
                _walk(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _walk(inner, key)
    elif isinstance(value, str):
        _check_text(value, key)


def _is_text(value: Any) -> bool:
    return (
        isinstance(value, str) and len(value) < 10_000 and re.fullmatch(r"[\w.,:;\->+@ ]*", value) is not None
    )


def _check_text(text: str, key: str) -> None:
    if key == "target":
        if not _TARGET.fullmatch(text):
            raise CheckpointError(f"calls {text[:80]!r}, which is no operator of a network: {AGAIN}")
    elif key == "expr_str":
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        _check_tree(json.loads(text))
    elif not (_TEXT if key in ("as_string", "as_strings", "torch_version") else _NAME).fullmatch(text):
        raise CheckpointError(f"has the text {text[:80]!r} as {key}: {AGAIN}")


def _check_expression(text: str) -> None:
    """A size: sums and products of symbols. sympy evaluates it, so nothing else may stand there."""
    nodes = list(ast.walk(ast.parse(text, mode="eval"))) if len(text) < 2000 else [ast.Pass()]
    for node in nodes:
        plain = isinstance(
            node,
            ast.Expression | ast.Load | ast.keyword | ast.UnaryOp | ast.USub | ast.BinOp | ast.Add | ast.Mult,
        )
        named = isinstance(node, ast.Name) and (node.id in _SYMPY or re.fullmatch(r"[a-z]{1,2}\d+", node.id))
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SYMPY
        number = isinstance(node, ast.Constant) and (
            (isinstance(node.value, int) and abs(node.value) < 2**64)
            or (isinstance(node.value, str) and re.fullmatch(r"[a-z]{1,3}\d*|-?[\d.]{1,20}", node.value))
        )
        if not (plain or named or called or number):
            raise CheckpointError(f"has the size {text[:80]!r}: {AGAIN}")


def _check_tree(spec: Any) -> None:
    """How inputs and outputs are nested: tuples, lists and dicts."""
    if isinstance(spec, list):
        for part in spec:
            _check_tree(part)
    elif isinstance(spec, dict):
        known = spec.get("type") in (None, "builtins.tuple", "builtins.list", "builtins.dict")
        context = spec.get("context")
        words = context is None or (
            isinstance(context, str) and re.fullmatch(r'null|\[("[\w.]*"(, )?)*\]', context)
        )
        if not known or not words or set(spec) != {"type", "context", "children_spec"}:
            raise CheckpointError(f"nests its values in something else than tuples, lists and dicts: {AGAIN}")
        _check_tree(spec["children_spec"])
    elif not isinstance(spec, int):
        raise CheckpointError(f"nests its values in an unknown way: {AGAIN}")


def _check_payload(config: dict[str, Any]) -> None:
    for name, facts in config.get("config", {}).items():
        place = facts.get("path_name", "") if isinstance(facts, dict) else ""
        if not _NAME.fullmatch(name) or not re.fullmatch(r"(weight|param|buffer|tensor|constant)\w*", place):
            raise CheckpointError(f"keeps {name[:80]!r} in {place[:80]!r}, which is no tensor: {AGAIN}")
        if facts.get("use_pickle", True):
            raise CheckpointError(f"keeps {name[:80]!r} as a pickle, which could run code: {AGAIN}")


def _packed(entries: dict[str, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in list(entries):
            archive.writestr(f"network/{name}", entries.pop(name))
    out.seek(0)
    return out


def _check_tensors(exported: ExportedProgram, most: int) -> None:
    """A few bytes can stand for many elements, by strides of 0."""
    for name, value in {**exported.state_dict, **exported.constants}.items():
        if isinstance(value, Tensor) and value.numel() * value.element_size() > most:
            raise CheckpointError(
                f"keeps {name} in fewer bytes than its shape {tuple(value.shape)} takes: {AGAIN}"
            )


def _other(exported: ExportedProgram, inputs: tuple[Tensor, ...], sizes: Sizes) -> tuple[Tensor, ...]:
    users = [
        spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT
    ]
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    shapes = [tuple(values[name].shape) for name in users]
    fits = len(shapes) == len(sizes) and all(
        len(own) == len(given) and all(type(a) is not int or a == b for a, b in zip(own, given, strict=True))
        for own, given in zip(shapes, sizes, strict=True)
    )
    if not fits:
        own, asked = (", ".join("x".join(map(str, size)) for size in each) for each in (shapes, sizes))
        raise CheckpointError(
            f"was exported for {own}, not {asked}: leave the size out, or export it with dynamic_shapes"
        )
    return example_of(sizes, [x.dtype for x in inputs])


def _rehearse(exported: ExportedProgram, example: tuple[Tensor, ...]) -> None:
    """No value of the network is of absurd size: said before memory is taken for it."""
    state = {**exported.state_dict, **exported.constants}
    frames = iter(example)
    values = [
        next(frames) if spec.kind == InputKind.USER_INPUT else state[str(spec.target)]
        for spec in exported.graph_signature.input_specs
    ]
    try:
        rehearse(exported.graph_module, values)
    except ContainerError as error:
        raise CheckpointError(f"{error}: {AGAIN}") from error

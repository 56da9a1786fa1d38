"""save and load: a converted network in one file, without code.

The file is a safetensors file. Its tensors are the weights; its metadata holds a JSON description of the
normalised graph, the signature, the thresholds and the options: everything but code. docs/format.md
describes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from deltaconvert.backends import load_backend
from deltaconvert.errors import ContainerError, DeltaConvertError, InputError
from deltaconvert.formats.rehearse import rehearse
from deltaconvert.gate import Gate
from deltaconvert.graph_json.nodes import graph_from_json, graph_to_json
from deltaconvert.graph_json.signature import signature_from_json, signature_to_json
from deltaconvert.graph_json.values import dtype_named
from deltaconvert.model import DeltaModel
from deltaconvert.thresholds import Thresholds

FORMAT = "deltaconvert"
VERSION = 1
MAX_HEADER = 64 * 2**20  # bytes of JSON: a graph of 1,000 nodes takes about half a megabyte
MAX_INPUTS = 64
MAX_ELEMENTS = 2**28  # of one input: 1 GB in single precision
_DIGEST = b'"sha256":"'
_ZEROS = b"0" * 64


def save(model: DeltaModel, path: str | Path) -> None:
    """Write `model` into one file that `load` reads without the network's code.

    The file gets its name only when it is complete: until then, and after an error, an old one stays.
    ContainerError if the network calls something that a file cannot hold, such as a module of yours kept
    whole.
    """
    nodes, tensors = graph_to_json(model.graph)
    network = {
        "nodes": nodes,
        "signature": signature_to_json(model.signature),
        "inputs": [
            {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
            for shape, dtype in model.example
        ],
        "thresholds": [[where, rule] for where, rule in model.rules.items()],
        **({"gate": model.gate.to_json()} if model.gate.to_json() else {}),
        "keep_dense": list(model.keep_dense),
        "info": model.info,
    }
    try:
        text = json.dumps(network, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ContainerError(
            f"the network's description is not JSON: {error}; info takes plain values"
        ) from error
    metadata = {"format": FORMAT, "version": str(VERSION), "sha256": _ZEROS.decode(), "network": text}
    if len(text) > MAX_HEADER // 2:
        raise ContainerError(
            f"the network's description takes {len(text)} bytes: {MAX_HEADER // 2} are the limit"
        )
    data = bytearray(safetensors.torch.save(tensors, metadata))
    place = _digest_place(data[: 8 + int.from_bytes(data[:8], "little")])
    data[place : place + 64] = hashlib.sha256(data).hexdigest().encode()
    _write(Path(path), data)


def load(path: str | Path, *, backend: str = "auto", device: str | torch.device = "cpu") -> DeltaModel:
    """The converted network in the file `path`, planned for the input size that it was converted for.

    backend and device: as for convert. Nothing in the file is run: it names functions of torch from a fixed
    list. ContainerError for a file that is damaged, not deltaconvert's, or of a newer version; OSError if
    there is none.
    """
    path, device = Path(path), device_named(device)
    where = load_backend(backend, device)
    data = path.read_bytes()
    with _told_of(path):
        network, tensors = _read(data)
        del data
        return _build(network, tensors, where, device)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """What is wrong with a file names it."""
    try:
        yield
    except ContainerError as error:
        raise ContainerError(f"{path}: {error}") from error
    except (DeltaConvertError, MemoryError):
        raise
    except Exception as error:  # what a wrong value in the right place comes to is torch's to say
        raise ContainerError(
            f"{path}: its description makes no network ({type(error).__name__}: {error}); convert it again"
        ) from error


def paths_in(path: str | Path) -> set[str]:
    """The paths of the nodes in the file, without planning it. What a plan adds has a path of them in its own: in
    brackets, or before a dot. ContainerError and OSError as of load."""
    path, found = Path(path), set[str]()
    data = path.read_bytes()
    with _told_of(path):
        for node in _read(data)[0]["nodes"]:
            found |= {node["name"], node.get("path", node["name"]), *node.get("parts", ())}
    return found


def device_named(name: str | torch.device) -> torch.device:
    """InputError where this torch or this machine has none of that name."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no device {name!r}: take cpu, cuda or cuda:1") from None
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # this build of torch has none, or this machine
        raise InputError(
            f"device {device} is not to be had here: {str(error).splitlines()[0]}. Take cpu, or "
            "install the torch for it (pytorch.org)"
        ) from error
    return device


def _build(
    network: dict[str, Any], tensors: dict[str, Tensor], backend: Any, device: torch.device
) -> DeltaModel:
    signature = signature_from_json(network.get("signature"))
    frames = _example(network.get("inputs"), device)
    rules = Thresholds.of(dict(_rules(network.get("thresholds")))).rules
    thresholds = Thresholds(rules, Gate.of(network.get("gate")))
    keep_dense, info = network.get("keep_dense"), network.get("info")
    if not isinstance(keep_dense, list) or not all(isinstance(pattern, str) for pattern in keep_dense):
        raise ContainerError("keep_dense is no list of paths")
    if not isinstance(info, dict):
        raise ContainerError("info is no object")
    nodes = network.get("nodes")
    meta = graph_from_json(nodes, {name: tensor.to("meta") for name, tensor in tensors.items()})
    inputs: Any = [node for node in meta.graph.nodes if node.op == "placeholder"]
    outputs: Any = meta.graph.output_node().args[0]
    for what, found, spec, constants in (
        ("inputs", inputs, signature.spec, signature.constants),
        ("outputs", outputs, signature.out_spec, signature.out_constants),
    ):
        if len(found) != spec.num_leaves - len(constants):
            raise ContainerError(f"its graph has {len(found)} {what}, its signature has others")
    if len(inputs) != len(frames):
        raise ContainerError(f"its graph has {len(inputs)} inputs and {len(frames)} of them have a shape")
    rehearse(meta, frames)
    with torch.inference_mode(False), torch.no_grad():
        graph = graph_from_json(nodes, {name: tensor.to(device) for name, tensor in tensors.items()})
        model = DeltaModel(graph, signature, frames, thresholds, backend, keep_dense)
    model.info = info
    return model


def _example(inputs: Any, device: torch.device) -> list[Tensor]:
    """Frames of the size that the network was converted for; thresholds do not depend on what they show."""
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= MAX_INPUTS:
        raise ContainerError(f"it does not have 1 to {MAX_INPUTS} inputs")
    generator = torch.Generator("cpu").manual_seed(0)
    frames = []
    for entry in inputs:
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if (
            not isinstance(shape, list)
            or len(shape) > 8
            or not all(type(size) is int and size > 0 for size in shape)
        ):
            raise ContainerError("an input has no shape")
        dtype, elements = dtype_named(entry.get("dtype")), 1
        for size in shape:
            elements *= size
            if elements > MAX_ELEMENTS:
                raise ContainerError(f"an input has over {MAX_ELEMENTS} elements")
        if dtype.is_floating_point:
            frames.append(torch.rand(shape, generator=generator, device="cpu").to(device, dtype))
        else:
            frames.append(torch.zeros(shape, dtype=dtype, device=device))
    return frames


def _rules(rules: Any) -> Sequence[tuple[str, Any]]:
    if not isinstance(rules, list) or not all(isinstance(r, list) and len(r) == 2 for r in rules):
        raise ContainerError("its thresholds are no list of rules")
    if not all(isinstance(where, str) and isinstance(rule, int | float | str) for where, rule in rules):
        raise ContainerError("its thresholds are no rules")
    return [(where, rule) for where, rule in rules]


# ---- bytes


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(network, tensors) of a file whose format, version and checksum are right."""
    size = int.from_bytes(data[:8], "little")
    if data[:4] == b"PK\x03\x04" or data[:2] == b"\x80\x02":
        raise ContainerError("is a checkpoint of torch, not a converted network: convert it first")
    if len(data) < 10 or not 2 <= size <= MAX_HEADER or data[8:9] != b"{":
        raise ContainerError("is not a converted network: make one with deltaconvert convert, or model.save")
    if 8 + size > len(data):
        raise ContainerError("is cut short: copy it again, or convert the network again")
    header = data[8 : 8 + size]
    try:
        metadata = json.loads(header).get("__metadata__", {})
    except (ValueError, RecursionError, AttributeError) as error:
        raise ContainerError("is damaged: copy it again, or convert the network again") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ContainerError("is a safetensors file, but no converted network: convert it first")
    version = metadata.get("version")
    if not isinstance(version, str) or not version.isdecimal() or len(version) > 9:
        raise ContainerError("is damaged (it has no version): copy it again, or convert the network again")
    if int(version) > VERSION:
        raise ContainerError(
            f"is of version {version} of the format, this deltaconvert reads up to {VERSION}: "
            "pip install --upgrade deltaconvert"
        )
    place = _digest_place(data[: 8 + size])
    digest = hashlib.sha256(data[:place] + _ZEROS)
    digest.update(memoryview(data)[place + 64 :])
    if digest.hexdigest().encode() != data[place : place + 64]:
        raise ContainerError(
            "is damaged: its contents do not match their SHA-256. Copy it again, or convert the network again"
        )
    network = json.loads(metadata["network"])
    if not isinstance(network, dict):
        raise ContainerError("its description is no object")
    return network, safetensors.torch.load(data)


def _digest_place(head: bytes | bytearray) -> int:
    """Where the 64 digits of the checksum stand. Quotes inside a text are escaped, so only the key fits."""
    place = head.find(_DIGEST) + len(_DIGEST)
    if head.count(_DIGEST) != 1 or len(head) < place + 64:
        raise ContainerError("is damaged (it has no checksum): copy it again, or convert the network again")
    return place


def _write(path: Path, data: bytes | bytearray) -> None:
    """Give a complete file its name, or leave the old one."""
    # Beside the target, so that the rename stays on one disk.
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # of the name that the caller gave
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)

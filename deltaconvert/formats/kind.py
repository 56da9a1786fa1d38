"""What a file holds, by its content; its name decides only where the content says nothing."""

from __future__ import annotations

import json
import zipfile
from enum import Enum
from pathlib import Path


class Kind(Enum):
    """What a file is, by its content."""

    WEIGHTS = "weights"
    EXPORTED = "a program of torch.export"
    TORCHSCRIPT = "TorchScript"
    ONNX = "ONNX"
    CONVERTED = "a converted network"
    UNKNOWN = "unknown"


NETWORKS = (Kind.EXPORTED, Kind.TORCHSCRIPT, Kind.ONNX)
# The fields of an ONNX ModelProto, as the first bytes of a protobuf spell them: ir_version 1 to 40, then one of these.
_ONNX_FIRST, _ONNX_SECOND = 0x08, b"\x12\x1a\x22\x28\x32\x3a\x42\x72"


def kind_of(path: str | Path) -> Kind:
    """The kind of the file; OSError if there is none."""
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(10)
        if head[:4] == b"PK\x03\x04":
            return _archive(path)
        size = int.from_bytes(head[:8], "little")
        if len(head) > 8 and head[8:9] == b"{" and size < 2**27:
            file.seek(8)
            return _safetensors(file.read(size))
    if path.suffix == ".onnx" or _is_onnx(head):
        return Kind.ONNX
    if head[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        return Kind.WEIGHTS  # an old pickle of torch, or a damaged file: its reader says so
    return Kind.UNKNOWN


def _archive(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return Kind.EXPORTED if path.suffix == ".pt2" else Kind.WEIGHTS
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return Kind.EXPORTED
    if "constants.pkl" in names:
        return Kind.TORCHSCRIPT
    return Kind.WEIGHTS if "data.pkl" in names else Kind.UNKNOWN


def _safetensors(header: bytes) -> Kind:
    try:
        metadata = json.loads(header).get("__metadata__", {})
        return Kind.CONVERTED if metadata.get("format") == "deltaconvert" else Kind.WEIGHTS
    except (ValueError, RecursionError, AttributeError):
        return Kind.WEIGHTS


def _is_onnx(head: bytes) -> bool:
    return len(head) > 2 and head[0] == _ONNX_FIRST and 1 <= head[1] <= 40 and head[2] in _ONNX_SECOND

"""Values as JSON and named tensors, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from deltaconvert.errors import ContainerError
from deltaconvert.layout import memory_of

MAX_ITEMS = 10_000  # of one list; indices and sizes are short, a table of constants would be a tensor
MAX_DEPTH = 16
MAX_INT = 2**63 - 1
_DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
_FORMATS = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.channels_last, torch.preserve_format)
}
WAY_OUT = (
    "a file can hold functions of torch and deltaconvert's operators only. Convert the part of the network "
    "around it and call it from your own code, or write it with functions of torch"
)
Words = Callable[[str], bool]


def dtype_named(name: Any) -> torch.dtype:
    """float32 -> torch.float32; ContainerError for what no converted network has."""
    if not isinstance(name, str) or name not in _DTYPES:
        raise ContainerError(f"it has values of an unknown type {name!r}")
    return _DTYPES[name]


class Packer:
    """Turns values into JSON and collects the tensors among them; equal tensors are written once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._written: dict[tuple[Any, ...], str] = {}
        self._memories: set[int] = set()

    def value(self, value: Any, words: Words, where: str, name: str) -> Any:
        """words: which strings may stand here. where: for messages. name: of a tensor found in it."""
        go = partial(self.value, words=words, where=where, name=name)
        if isinstance(value, list):
            return [go(item) for item in value]
        if _is_plain(value) or (type(value) is str and words(value)):
            return value
        found = self._tensor(value, where, name) if isinstance(value, Tensor) else _tagged(value, go)
        if found is None:
            raise ContainerError(f"{where} takes {value!r}, which a file cannot hold: {WAY_OUT}")
        return found

    def _tensor(self, tensor: Tensor, where: str, name: str) -> dict[str, Any]:
        """Its name in the file and its memory format: another memory format may round differently."""
        tensor = tensor.detach()
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.dtype not in _DTYPES.values():
            raise ContainerError(
                f"{where} has a tensor of {tensor.dtype} ({tensor.layout}): a file cannot hold it"
            )
        last = tensor.dim() == 4 and not tensor.is_contiguous() and _is_last(tensor)
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        written = self._written.get(key) if tensor.numel() else None
        if written is None:
            written = name
            while written in self.tensors:
                written += "_"
            self._written[key] = written
            plain = tensor.contiguous().cpu()
            if memory_of(plain) in self._memories:  # part of a larger one that is written too
                plain = plain.clone()
            self._memories.add(memory_of(plain))
            self.tensors[written] = plain
        return {"tensor": [written, "channels_last" if last else "contiguous"]}


def _is_plain(value: Any) -> bool:
    """JSON has it as it is."""
    if type(value) is float:
        return math.isfinite(value)
    return value is None or isinstance(value, bool) or (type(value) is int and abs(value) <= MAX_INT)


def _tagged(value: Any, go: Callable[[Any], Any]) -> dict[str, Any] | None:
    """What JSON has no spelling for, as {kind: content}; None for what a file cannot hold. go: of the values in it."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if type(value) is float:  # not finite
        return {"float": str(value)}
    if type(value) is complex:
        return {"complex": [go(value.real), go(value.imag)]}
    if isinstance(value, torch.dtype) and value in _DTYPES.values():
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format) and value in _FORMATS.values():
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, slice):
        return {"slice": [go(value.start), go(value.stop), go(value.step)]}
    if type(value) in (tuple, torch.Size):
        return {"tuple": [go(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[go(key), go(item)] for key, item in value.items()]}
    return None


def _is_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


class Unpacker:
    """Turns JSON into values; knows the tensors of the file and the nodes so far."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors
        self.nodes: dict[str, fx.Node] = {}

    def value(self, value: Any, words: Words, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ContainerError(f"its values are nested deeper than {MAX_DEPTH}")
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            if abs(value) > MAX_INT:
                raise ContainerError(f"it has the number {value:.3g}, which no size or index can be")
            return value
        if isinstance(value, str):
            if not words(value):
                raise ContainerError(f"it has the word {value[:80]!r}, which no call of torch takes there")
            return value
        if isinstance(value, list):
            return self._items(value, words, depth)
        return self._tagged(*tagged(value), words, depth)

    def _tagged(self, tag: str, content: Any, words: Words, depth: int) -> Any:
        """What JSON has no spelling for."""
        if tag == "tensor":
            return self._tensor(content)
        if tag == "dtype":
            return dtype_named(content)
        if tag == "ellipsis":
            return Ellipsis
        if tag in ("node", "float", "memory_format", "device") and isinstance(content, str):
            return self._named(tag, content)
        if tag in ("complex", "slice", "tuple", "dict") and isinstance(content, list):
            return self._made_of(tag, content, words, depth)
        raise _unknown(tag)

    def _named(self, tag: str, name: str) -> Any:
        if tag == "node":
            if name not in self.nodes:
                raise ContainerError(f"a node reads {name[:80]!r}, which is not defined before it")
            return self.nodes[name]
        if tag == "float" and name in ("inf", "-inf", "nan"):
            return float(name)
        if tag == "memory_format" and name in _FORMATS:
            return _FORMATS[name]
        if tag == "device" and name in ("cpu", "cuda"):
            return torch.device(name)
        raise _unknown(tag)

    def _made_of(self, tag: str, content: list[Any], words: Words, depth: int) -> Any:
        if tag == "dict":
            pairs = [
                self._items(pair, words, depth) for pair in content[:MAX_ITEMS] if isinstance(pair, list)
            ]
            if all(len(pair) == 2 and isinstance(pair[0], str | int) for pair in pairs):
                return dict(pairs)
            raise _unknown(tag)
        items = self._items(content, words, depth)
        if tag == "tuple":
            return tuple(items)
        if tag == "complex" and len(items) == 2 and all(type(part) is float for part in items):
            return complex(*items)
        numbers = (item is None or isinstance(item, int | fx.Node) for item in items)
        if tag == "slice" and len(items) == 3 and all(numbers):
            return slice(*items)
        raise _unknown(tag)

    def _items(self, items: list[Any], words: Words, depth: int) -> list[Any]:
        if len(items) > MAX_ITEMS:
            raise ContainerError(f"it has a list of {len(items)} items: {MAX_ITEMS} are the limit")
        return [self.value(item, words, depth + 1) for item in items]

    def _tensor(self, content: Any) -> Tensor:
        if not isinstance(content, list) or len(content) != 2 or not isinstance(content[0], str):
            raise ContainerError("it names a tensor in an unknown way")
        name, layout = content
        if name not in self.tensors:
            raise ContainerError(f"it names a tensor {name[:80]!r} that it does not hold")
        tensor = self.tensors[name]
        return tensor.to(memory_format=torch.channels_last) if layout == "channels_last" else tensor


def _unknown(tag: Any) -> ContainerError:
    return ContainerError(f"it has a value of an unknown kind {str(tag)[:80]!r}")


def tagged(value: Any) -> tuple[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ContainerError(f"it has a value of an unknown kind ({type(value).__name__})")
    return next(iter(value.items()))


def list_in(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ContainerError("it has arguments that are no list")
    return value

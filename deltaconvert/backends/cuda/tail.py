"""The elementwise operators behind a kernel as CUDA code (FINISH in kernels/tail.cuh), and the operands that it
reads."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deltaconvert.backends.cuda.functions import RARE, literal
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.base import Operator
from deltaconvert.ops.batch_norm import BatchNorm
from deltaconvert.ops.pointwise import Pointwise, PReLU

NAMES = "abcd"


class NoKernel(Exception):
    """Raised for an operator, or a use of it, without a kernel: torch then computes it whole."""


class Tail:
    """CUDA code that turns `v` into the result, and up to four operands."""

    def __init__(self, channels: int, dtype: torch.dtype, device: torch.device):
        self.channels, self.device, self._dtype = channels, device, dtype
        self.number = torch.float64 if dtype == torch.float64 else torch.float32
        self.text = ""
        self._operands: list[tuple[str, Any, int]] = []  # kind, what it reads, values from one to the next
        self._kept: list[Tensor] = []

    def then(self, stage: Operator, values: Sequence[str]) -> None:
        """Apply `stage` to its inputs, of which one is "v" and the others came from `operand`."""
        self.text += f"v = {self._expression(stage, values)}; "

    def operand(self, edge: Any, size: tuple[int, int]) -> str:
        """Another input, as a map of `size` or a gate."""
        _, channels, *own = edge.values.shape
        if channels != self.channels or edge.values.dtype != self._dtype:
            raise NoKernel("one channel for all, or another type")
        if tuple(own) not in (size, (1, 1)):
            raise NoKernel("a row or a column for all")
        return self._name("MAP" if tuple(own) == size else "GATE", edge.values, edge.pitch)

    def constant(self, values: Tensor) -> str:
        """A number for each channel."""
        if values.numel() != self.channels:
            if values.numel() != 1:
                raise NoKernel("a constant map")
            values = values.expand(self.channels)
        padded = torch.zeros(-(-self.channels // 8) * 8, dtype=self.number, device=self.device)
        padded[: self.channels] = values.flatten().to(padded)
        self._kept.append(padded)
        return self._name("CHANNEL", padded, 0)

    def macros(self) -> dict[str, Any]:
        kinds = {f"KIND_{NAMES[i].upper()}": kind for i, (kind, _, _) in enumerate(self._operands)}
        return {"FINISH": self.text or "(void)0", "OPERANDS": len(self._operands), **kinds}

    def packed(self) -> Tensor:
        """struct Operand of kernels/tail.cuh, one for each operand."""
        packed = b"".join(struct.pack("=Qq", at.data_ptr(), pitch) for _, at, pitch in self._operands)
        return device_bytes(packed or bytes(16), self.device)

    def _name(self, kind: str, at: Tensor, pitch: int) -> str:
        if len(self._operands) == len(NAMES):
            raise NoKernel("more than four operands")
        self._operands.append((kind, at, pitch))
        return f"{NAMES[len(self._operands) - 1]}[j]"

    def _expression(self, stage: Operator, values: Sequence[str]) -> str:
        if isinstance(stage, Pointwise):
            function = _FUNCTIONS.get(stage.function) or RARE.get(stage.function)
            if function is None:
                raise NoKernel(stage.function)
            return function(values[0], **stage.options)
        if isinstance(stage, BatchNorm):
            scale, shift = self.constant(stage.scale), self.constant(stage.shift)
            return f"{values[0]} * {scale} + {shift}"
        if isinstance(stage, PReLU):
            return f"{values[0]} > 0 ? {values[0]} : {values[0]} * {self.constant(stage.weight)}"
        if isinstance(stage, Arithmetic):
            return self._arithmetic(stage, values)
        raise NoKernel(type(stage).__name__)

    def _arithmetic(self, stage: Arithmetic, values: Sequence[str]) -> str:
        if len(values) == 2:
            left, right = values
        else:
            other = stage.other
            if (
                isinstance(other, Tensor)
                and other.numel() != 1
                and (other.dim() < 3 or other.shape[-2:] != (1, 1))
            ):
                raise NoKernel("a constant row, column or map")
            left, right = values[0], self.constant(other) if isinstance(other, Tensor) else literal(other)
        if stage.reverse:
            left, right = right, left
        if stage.function in ("maximum", "minimum"):
            sign = ">" if stage.function == "maximum" else "<"  # NaN wins
            return f"{left} {sign} {right} || {left} != {left} ? {left} : {right}"
        if stage.function == "pow":
            return f"pow({left}, {right})"
        signs = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
        if stage.function not in signs:
            raise NoKernel(stage.function)
        return f"{left} {signs[stage.function]} {right}"


def device_bytes(packed: bytes, device: torch.device) -> Tensor:
    return torch.tensor(list(packed), dtype=torch.uint8, device=device)


def _clamped(v: str, low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{v} < {literal(low)} ? {literal(low)} : {v} > {literal(high)} ? {literal(high)} : {v}"
    bound, sign = (low, "<") if low is not None else (high, ">")
    return f"{v} {sign} {literal(bound)} ? {literal(bound)} : {v}"


def _hard(v: str) -> str:
    # As in torch's kernel for every type: 1/6 in single precision.
    return f"({_clamped(f'({v} + 3)', 0, 6)}) * (1.0f / 6)"


def _gelu(v: str, approximate: str) -> str:
    if approximate == "tanh":
        inner = f"{literal(math.sqrt(2 / math.pi))} * ({v} + {literal(0.044715)} * {v} * {v} * {v})"
        return f"{literal(0.5)} * {v} * (1 + tanh({inner}))"
    return f"{literal(0.5)} * {v} * (1 + erf({v} * {literal(math.sqrt(0.5))}))"


def _softplus(v: str, beta: float, threshold: float) -> str:
    scaled = f"{v} * {literal(beta)}"
    return f"{scaled} > {literal(threshold)} ? {v} : log1p(exp({scaled})) / {literal(beta)}"


# Comparisons are written so that NaN passes through, as in torch.
_FUNCTIONS: dict[str, Callable[..., str]] = {
    "relu": lambda v: f"{v} < 0 ? (number)0 : {v}",
    "relu6": lambda v: _clamped(v, 0, 6),
    "leaky_relu": lambda v, negative_slope=0.01: f"{v} > 0 ? {v} : {v} * {literal(negative_slope)}",
    "hardtanh": lambda v, min_val=-1.0, max_val=1.0: _clamped(v, min_val, max_val),
    "clamp": lambda v, min=None, max=None: _clamped(v, min, max),
    "sigmoid": lambda v: f"sigmoid({v})",
    "silu": lambda v: f"{v} * sigmoid({v})",
    "hardsigmoid": _hard,
    "hardswish": lambda v: f"{v} * {_hard(v)}",
    "gelu": lambda v, approximate="none": _gelu(v, approximate),
    "tanh": lambda v: f"tanh({v})",
    "elu": lambda v, alpha=1.0: f"{v} > 0 ? {v} : {literal(alpha)} * expm1({v})",
    "softplus": lambda v, beta=1.0, threshold=20.0: _softplus(v, beta, threshold),
    "exp": lambda v: f"exp({v})",
    "log": lambda v: f"log({v})",
    "abs": lambda v: f"fabs({v})",
    "sqrt": lambda v: f"sqrt({v})",
    "rsqrt": lambda v: f"rsqrt({v})",
    "square": lambda v: f"{v} * {v}",
    "neg": lambda v: f"-{v}",
    "reciprocal": lambda v: f"1 / {v}",
}

"""Finds out who asks for the type of a value: a stand-in gives it only to the network's own lines."""

from __future__ import annotations

import dis
import sys
from abc import ABCMeta
from types import FrameType
from typing import Any

import torch
from torch import _jit_internal as jit
from torch import nn

from deltaconvert.tracing.lines import is_the_networks
from deltaconvert.tracing.stand_in import Kind

# Who ask what a value is in their callers' place.
_ASKING: tuple[Any, ...] = (
    *(torch.is_tensor, torch.jit.isinstance, jit._isinstance, jit.container_checker),
    *(kind.__instancecheck__ for kind in (ABCMeta, type(nn.Parameter), type(nn.Buffer), Kind)),
)
_ASK = {asking.__code__ for asking in _ASKING}


def is_asked_by_the_network() -> bool:
    """Of a property __class__: the line that wants it is the network's own, or asks by way of torch."""
    frame = asked = sys._getframe(2)
    while frame.f_code in _ASK and frame.f_back is not None:
        frame = frame.f_back
    return is_the_networks(frame.f_code.co_filename) and (frame is not asked or _asks(frame))


def _asks(frame: FrameType) -> bool:
    """What runs is isinstance(x, kinds), x.__class__ or `case Tensor():`. It may as well be torch.pow(x, 2), which asks
    whether x is a tensor from within, and would then read its memory: that ends the process."""
    done = [each for each in dis.get_instructions(frame.f_code) if each.offset <= frame.f_lasti]
    running = done.pop()
    if "CALL" not in running.opname:
        return running.argval == "__class__" or running.opname == "MATCH_CLASS"
    while done and done[-1].opname == "PRECALL":
        done.pop()
    missing = 2  # of isinstance's arguments: what pushed them is walked over, back to what pushed isinstance
    while done and missing > 0:
        each = done.pop()
        missing -= dis.stack_effect(each.opcode, each.arg, jump=False)
    while done and done[-1].opname == "PUSH_NULL":
        done.pop()
    return running.arg == 2 and bool(done) and done[-1].argval == "isinstance"

"""capture: an nn.Module or an exported program -> a graph that equals it on the example."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deltaconvert.errors import InputError, UnsupportedModel, first_line
from deltaconvert.signature import tensors_of
from deltaconvert.tracing.exported import export, export_any_batch, is_dynamic, read
from deltaconvert.tracing.remembers import Watched, holds_for_other_sizes, remembers
from deltaconvert.tracing.steps import same_steps
from deltaconvert.tracing.trace import Traced, trace
from deltaconvert.tracing.tracer import one_more
from deltaconvert.tracing.twin import is_exported, twin

# How a network is captured, and of a frame another: see trace.trace.
Way = Callable[[nn.Module, Callable[[Tensor], Tensor]], Traced]
# torch.fx and torch.export patch torch for the whole process while they trace: one network at a time.
ONE_AT_A_TIME = threading.RLock()
DIFFERS = (
    "computes something else than its traced graph, so it depends on more than its inputs (random numbers, as of "
    "F.dropout without training=self.training; counters; Python state; torch.autocast in it), or x += y writes to a "
    "map that it reads under another name: convert the deterministic part of it, or write x = x + y"
)


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: Sequence[Any] = (),
) -> Traced:
    """The graph of model(*args, **kwargs), by the first way that gives one whose outputs equal the network's:

    symbolic tracing, whose graph holds for every size, if no module with convolutions defeats it; torch.export, for
    the size of the example, and any batch where it can; symbolic tracing with any such module kept whole.
    UnsupportedModel where none does.

    leaves: as in trace.trace; torch.export knows nothing of modules that stay whole, so it is not asked then.
    """
    network = model.module() if isinstance(model, ExportedProgram) else model
    expected, later = _answer(network, args, kwargs)
    if isinstance(model, ExportedProgram):
        traced = _checked(network, lambda: _of_program(model, args, kwargs, expected), args, kwargs, expected)
        traced.how = f"read from a program of torch.export, for this size alone{_and_batch(traced)}"
        return traced
    ways: list[Way] = [lambda network, another: trace(network, args, kwargs, leaves, is_light, another)]
    reasons: list[UnsupportedModel] = []
    if is_exported(model):
        ways.clear()
        reasons.append(UnsupportedModel("it is the module of a program of torch.export"))
    if not leaves:
        ways.append(lambda network, _: _exported(network, args, kwargs, expected))
    ways.append(lambda network, another: trace(network, args, kwargs, leaves, another=another))
    for way in ways:
        try:
            traced = _checked(network, partial(way, network, one_more), args, kwargs, expected)
            if later is not None:
                # For its number of images alone: it may compare sizes with those that it keeps.
                after = _checked(network, partial(way, later, lambda frame: frame), args, kwargs, expected)
                _check_the_same(network, traced, after)
        except UnsupportedModel as reason:
            reasons.append(reason)
            continue
        traced = _explained(traced, reasons)
        if later is None or traced.signature.sizes or holds_for_other_sizes(network, later, (args, kwargs)):
            return traced
        return _for_this_size(traced, tensors_of((args, kwargs)))
    # The last reason says most. The first is left out: its way is the last one's, with less allowed to stay whole.
    told = dict.fromkeys(str(reason) for reason in reversed(reasons[1:]))
    raise UnsupportedModel("\n  ".join(told)) from reasons[-1]


def _answer(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, nn.Module | None]:
    """What a copy of the network gives for the example, and the copy, where its next call may compute otherwise.
    UnsupportedModel if its next answer could differ."""
    used = Watched(_copy_of(network))
    try:
        expected = used((args, kwargs), network)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"the network does not run on the example{_likely_mistake(network, args, kwargs)}: {first_line(error)}"
        ) from error
    memories = remembers(network, used, args, kwargs)
    written = memories.read
    outside = [name for name in used.put_back(network) if name in written]
    who = type(network).__name__
    if outside:
        raise InputError(
            f"{who} remembers what a call writes to {', '.join(outside[:4])}, outside of its modules, and what is "
            "converted is a copy that would write there too: keep it in an attribute of a module"
        )
    if written:
        raise UnsupportedModel(
            f"{who} remembers: what a call writes to {', '.join(written[:4])} is read by later ones. Make it an input "
            "and an output of forward, or convert the parts that do not remember"
        )
    return expected, memories.later


_CHANNELS_FIRST = {3: "frame.permute(2, 0, 1)[None]", 4: "frame.permute(0, 3, 1, 2)"}


def _likely_mistake(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A likely reason, in brackets, why the network does not run on the example; or nothing."""
    if list in map(type, args):
        return " (a list is one input of it; a tuple is several)"
    frames = tensors_of((args, kwargs))
    types = {weight.dtype for weight in model.parameters()}
    if len(types) == 1 and frames and frames[0].dtype not in types:
        (dtype,) = types
        return (
            f" (it is {frames[0].dtype}, the weights are {dtype}: frame.to({dtype}), scaled as in training)"
        )
    if len(frames) == 1 and frames[0].dim() == 3 and frames[0].shape[0] in (1, 3, 4):
        return f" (if it is one image: frame[None], {'x'.join(map(str, (1, *frames[0].shape)))})"
    if len(frames) == 1 and frames[0].dim() in _CHANNELS_FIRST and frames[0].shape[-1] in (1, 3, 4):
        return f" (if its colours come last: {_CHANNELS_FIRST[frames[0].dim()]})"
    return ""


def _copy_of(network: nn.Module) -> nn.Module:
    try:
        return twin(network)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # it holds a lock, an open file, a generator
        raise InputError(
            f"the network cannot be copied, and what is converted is a copy: {error}. Leave out what is no weight, or "
            "give its class a __deepcopy__"
        ) from error


def _of_program(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
) -> Traced:
    """A program with dynamic sizes is exported again, for the sizes of the example."""
    if is_dynamic(program):
        return _exported(program.module(), args, kwargs, expected)
    return read(program, args, kwargs)


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any) -> Traced:
    """What torch.export captures: for any batch, where that equals the network on the example and on one image more."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    if all(leaf.dim() == 4 for leaf in leaves if isinstance(leaf, Tensor)):
        more = [torch.cat((x, x[-1:].flip(3))) if isinstance(x, Tensor) else x for x in leaves]
        images, named = pytree.tree_unflatten(more, spec)
        try:
            other = twin(model)(*copy.deepcopy(images), **copy.deepcopy(named))
            traced = _checked(model, lambda: export_any_batch(model, images, named), images, named, other)
            _check_negated(model, traced, args, kwargs)
            return _checked(model, lambda: traced, args, kwargs, expected)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # it computes with the number of images, or takes no other
            if "data-dependent" in str(error):
                raise
    traced = export(model, args, kwargs)
    _check_negated(model, traced, args, kwargs)
    return traced


def _check_negated(model: nn.Module, traced: Traced, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """_checked on the negated frame. torch.export takes the output of dropout for a copy; a relu_() on it writes to the
    input, which no positive example shows."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: -x if x.is_floating_point() else x, (args, kwargs))
    try:
        expected = twin(model)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # it takes no such frame
        return
    _checked(model, lambda: traced, args, kwargs, expected)


def is_light(module: nn.Module) -> bool:
    """It has no convolution, so that nothing is lost where it stays whole."""
    return all(parameter.dim() < 4 for parameter in module.parameters())


def _checked(network: nn.Module, way: Callable[[], Traced], args: Any, kwargs: Any, expected: Any) -> Traced:
    """The traced graph is the network: equal outputs on the example, or UnsupportedModel."""
    frames = [frame.clone() for frame in tensors_of((args, kwargs))]
    try:
        with ONE_AT_A_TIME:
            traced = way()
        # Not graph(...), which prints a traceback where it fails.
        got = traced.signature.unflatten(traced.graph.forward(*frames))
        leaves, spec = pytree.tree_flatten(expected)
        ours, our_spec = pytree.tree_flatten(got)
        # The comparison raises RuntimeError where torch.export left a fake tensor.
        if spec == our_spec and all(map(_equal, leaves, ours)):
            return traced
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UnsupportedModel(f"its captured graph does not run: {first_line(error)}") from error
    raise UnsupportedModel(f"{type(network).__name__} {DIFFERS}")


def _check_the_same(network: nn.Module, traced: Traced, after: Traced) -> None:
    """UnsupportedModel where the network after its first call does other things with a frame than in it, by a flag that
    the first call sets (self.ready = True), or what it keeps of the first frame."""
    if not same_steps(traced.graph, after.graph):
        raise UnsupportedModel(
            f"{type(network).__name__} computes something else after its first call than in it, by what that wrote "
            "to its attributes: call it once before you convert it"
        )


def _for_this_size(traced: Traced, frames: Sequence[Tensor]) -> Traced:
    sizes = tuple(tuple(frame.shape) for frame in frames)
    traced.signature = dataclasses.replace(traced.signature, sizes=sizes)
    traced.how += (
        ", for this size alone: what it keeps of its first frame's size it does not make anew for another"
    )
    return traced


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return not isinstance(a, Tensor) and not isinstance(b, Tensor)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    fractions = a.dtype.is_floating_point or a.dtype.is_complex
    largest = float(a.detach().abs().nan_to_num(posinf=0).max()) if fractions and a.numel() else 1.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * min(1.0, largest), equal_nan=True)


def _explained(traced: Traced, reasons: Sequence[UnsupportedModel]) -> Traced:
    if traced.opaque:
        traced.how = (
            f"traced symbolically, around {', '.join(traced.opaque)}: {next(iter(traced.opaque.values()))}"
        )
    elif reasons:
        traced.how = f"captured by torch.export, for this size alone{_and_batch(traced)}"
        traced.how += f": {str(reasons[0]).splitlines()[0]}"
    return traced


def _and_batch(traced: Traced) -> str:
    sizes = traced.signature.sizes
    return " and any batch" if sizes is not None and None in sizes[0] else ""

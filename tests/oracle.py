"""What every operator and every network must do, written once. Only the dense network is trusted here."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deltaconvert
from deltaconvert.model import DeltaModel

Shape = tuple[int, ...]
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def examples(count: int) -> int:
    """How many examples hypothesis draws: `count`, or more where the environment asks for it."""
    return count * int(os.environ.get("DELTACONVERT_EXAMPLES", "1"))


def generator(seed: int) -> torch.Generator:
    """A random generator on the device that new tensors are made on."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def tolerance(dtype: torch.dtype, like: Tensor) -> float:
    """The largest error that rounding explains.

    float64: 1e-10. float32: a folded norm and another order of summation move sums of a few hundred terms by a few
    units in the last place (6e-8) of the largest; 2e-5 of the largest output allows for that and no more.
    """
    largest = float(like.detach().nan_to_num().abs().max()) if like.numel() else 0.0
    return (1e-10 if dtype == torch.float64 else 2e-5) * max(1.0, largest)


@torch.no_grad()
def rounding(outputs: Any, network: nn.Module, inputs: Sequence[Tensor]) -> float:
    """How far outputs are from the network in float64, as a share of the largest value of each; the worst of them.

    Untrained weights can amplify rounding beyond what `tolerance` allows; this measures by how much.
    """
    exact = copy.deepcopy(network).double()(*(each.double() for each in inputs))
    pairs = zip(leaves(outputs), leaves(exact), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether tensors are equal to the last bit, the sign of zero included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    bits = _BITS[a.element_size()]
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def scripted_video(shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Frames N C H W: first, still, a patch that moves, patches on edges and in corners, one pixel, all, still.

    Every patch has a fresh texture. All streams (images of the batch) but the first miss about half of the events, so
    that some are still while others move. The frames at STILL are still in all streams.
    """
    n, _, height, width = shape
    draw = generator(seed)
    h, w = max(1, height // 3), max(1, width // 3)
    top, left, bottom, right = slice(0, h), slice(0, w), slice(height - h, height), slice(width - w, width)
    everything = slice(None)
    moves = [(slice(k * h // 2, k * h // 2 + h), slice(k * w // 2, k * w // 2 + w)) for k in range(3)]
    edges = [
        (slice(0, 1), everything),
        (slice(height - 1, height), left),
        (everything, slice(0, 1)),
        (top, slice(-1, None)),
    ]
    corners = [(top, left), (top, right), (bottom, left), (bottom, right)]
    pixel = [(slice(height // 2, height // 2 + 1), slice(width // 3, width // 3 + 1))]
    frames = [torch.randn(shape, dtype=dtype, generator=draw)]
    for region in (None, *moves, *edges, *corners, *pixel, (everything, everything), None):
        frame = frames[-1].clone()
        for stream in range(n):
            awake = stream == 0 or torch.rand((), generator=draw) < 0.5
            if region is not None and awake:
                patch = frame[stream][:, region[0], region[1]]
                patch.copy_(torch.randn(patch.shape, dtype=dtype, generator=draw))
        frames.append(frame)
    return frames


STILL = (1, -1)  # frames of a scripted video that equal the one before


def scripted_videos(shapes: Sequence[Shape], dtype: torch.dtype, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """The inputs of each call. They take turns: each stands still while another moves."""
    videos = [scripted_video(shape, dtype, seed + i) for i, shape in enumerate(shapes)]
    calls = [tuple(video[0] for video in videos)]
    for t in range(1, len(videos[0])):
        last = t == len(videos[0]) - 1
        moving = [not last and (len(videos) == 1 or (t + i) % len(videos) == 0) for i in range(len(videos))]
        calls.append(
            tuple(
                v[t] if moves else before for v, before, moves in zip(videos, calls[-1], moving, strict=True)
            )
        )
    return calls


@contextmanager
def no_waiting() -> Iterator[None]:
    """Makes everything raise that waits for the GPU inside this context."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def leaves(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def clones(inputs: Sequence[Any]) -> tuple[Any, ...]:
    return pytree.tree_map_only(Tensor, torch.clone, tuple(inputs))


class Dense:
    """The outputs of the user's network, frame after frame. A copy of it runs, since its forward may write to itself
    and to its inputs."""

    def __init__(self, module: nn.Module):
        self._twin = copy.deepcopy(module)

    @torch.no_grad()
    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        return self._twin(*clones(inputs))


def dense(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """The output of the user's network for one frame."""
    return Dense(module)(inputs)


def assert_close(got: Any, expected: Any, where: str = "") -> None:
    """Outputs are nested alike, and their tensors are equal up to rounding."""
    ours, theirs = pytree.tree_flatten(got), pytree.tree_flatten(expected)
    assert ours[1] == theirs[1], f"{where}: outputs are nested differently"
    for a, b in zip(ours[0], theirs[0], strict=True):
        if not isinstance(b, Tensor):
            assert a == b, f"{where}: {a!r} instead of {b!r}"
            continue
        assert a.shape == b.shape and a.dtype == b.dtype, (
            f"{where}: {a.shape} {a.dtype}, expected {b.shape} {b.dtype}"
        )
        if b.is_complex():
            a, b = torch.view_as_real(a), torch.view_as_real(b)
        if not b.is_floating_point():
            assert torch.equal(a, b), where
            continue
        assert torch.equal(a.isnan(), b.isnan()), (
            f"{where}: NaN where the dense network has none, or the reverse"
        )
        error = (a - b).nan_to_num(posinf=0, neginf=0).abs().max().item() if a.numel() else 0.0
        assert error <= tolerance(b.dtype, b), f"{where}: off by {error:.3g}"


def assert_same_bits(got: Any, expected: Any, where: str) -> None:
    for a, b in zip(leaves(got), leaves(expected), strict=True):
        assert same_bits(a, b), f"{where}: differs in the last bits, by up to {(a - b).abs().max():.3g}"


def assert_marked_alike(ours: DeltaModel, apart: DeltaModel, frame: Tensor, where: str) -> int:
    """Two conversions agree about a frame: outputs, masks and counts.

    Returns at how many layers a threshold dropped pixels.
    """
    for a, b in zip(leaves(ours(frame)), leaves(apart(frame)), strict=True):
        assert torch.equal(a, b), where
    theirs = apart.masks()
    for path, marked in ours.masks().items():
        assert torch.equal(marked, theirs[path]), f"{where}: {path}"
    counts = [(layer.computed, layer.density) for layer in ours.stats().layers]
    assert counts == [(layer.computed, layer.density) for layer in apart.stats().layers]
    return sum(density < computed for computed, density in counts)


def nodes_in_both(ours: DeltaModel, theirs: DeltaModel) -> list[str]:
    """The delta nodes that two conversions both have: a backend that joins steps has one node where another has two."""
    operators = [
        {row.path: row.operator for row in model.explain().rows if row.kind in ("delta", "sparsify")}
        for model in (ours, theirs)
    ]
    return [path for path, operator in operators[0].items() if operators[1].get(path) == operator]


def anatomy(module: nn.Module) -> dict[str, Any]:
    """Everything that conversion must leave alone: attributes by identity, weights by value."""
    found: dict[str, Any] = {
        f"tensor {k}": v.detach().clone() for k, v in module.state_dict(keep_vars=True).items()
    }
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            found[f"attribute {path}.{name}"] = dict(value) if isinstance(value, dict) else value
    return found


def assert_untouched(module: nn.Module, before: dict[str, Any]) -> None:
    after = anatomy(module)
    assert after.keys() == before.keys(), "conversion added or removed attributes of the user's model"
    for name, value in before.items():
        if isinstance(value, Tensor) and name.startswith("tensor"):
            assert torch.equal(value, after[name]), name
        elif isinstance(value, dict):
            assert value.keys() == after[name].keys() and all(value[k] is after[name][k] for k in value), name
        else:
            assert value is after[name] or value == after[name], name


def edges(model: DeltaModel) -> dict[str, Any]:
    """The state of a model: for each node an object with `values` and `mask`."""
    return model._program.edges


def assert_states_apart(model: DeltaModel, others: Any = ()) -> None:
    """No two maps of the state share memory, and none shares it with `others`."""
    seen: dict[int, str] = {t.untyped_storage().data_ptr(): "a tensor outside" for t in leaves(others)}
    for name, edge in edges(model).items():
        if getattr(edge, "is_part", False):  # a part of a joined map, which is an edge itself
            continue
        if not edge.is_kept:  # it is passed on in memory that all such maps share
            continue
        memory = edge.values.untyped_storage().data_ptr()
        assert memory not in seen, f"the state of {name} shares memory with {seen[memory]}"
        seen[memory] = f"the state of {name}"


def assert_still(model: DeltaModel, where: str) -> None:
    """Nothing changed in the last frame, and no delta node worked."""
    for path, mask in model.masks().items():
        assert not mask.any(), f"{where}: {path} changed in a still frame"
    kinds = {row.path: row.kind for row in model.explain().rows}
    for layer in model.stats().layers:
        if kinds.get(layer.path) == "delta":
            assert layer.macs_done == 0 and layer.computed == 0, (
                f"{where}: {layer.path} worked in a still frame"
            )


def assert_kind(model: DeltaModel, expect: str, reason: str = "") -> None:
    rows = [row for row in model.explain().rows if row.kind in ("delta", "dense")]
    if expect == "delta":
        assert rows and all(row.kind == "delta" for row in rows), f"some node stays dense:\n{model.explain()}"
    else:
        reasons = [row.reason or "" for row in rows if row.kind == "dense"]
        assert reasons, f"no node stays dense:\n{model.explain()}"
        assert any(reason in text for text in reasons), f"{reason!r} is not among the reasons {reasons}"


def check_operator(
    module: nn.Module,
    shape: Shape | Sequence[Shape],
    *,
    dtype: torch.dtype = torch.float64,
    threshold: float = 0.0,
    backend: str = "reference",
    expect: str = "delta",
    reason: str = "",
    seed: int = 0,
    **options: Any,
) -> None:
    """Checks everything that an operator, alone in a network, must do: see the functions below.

    shape: that of the input, or a list of one for each input. expect: "delta", or "dense" and a part of the reason.
    """
    shapes = [shape] if isinstance(shape[0], int) else list(shape)
    if type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential):
        module = nn.Sequential(module)  # the tracer looks into the root, whatever it is
    module = module.eval().to(torch.get_default_device(), dtype)
    calls = scripted_videos(shapes, dtype, seed)  # type: ignore[arg-type]
    before = anatomy(module)

    def convert() -> DeltaModel:
        return deltaconvert.convert(module, clones(calls[0]), backend=backend, **options)

    model = convert()
    assert_kind(model, expect, reason)
    check_exact(module, model, convert, calls, check_work=expect == "delta")
    if threshold > 0 and expect == "delta":
        rules = {"input": threshold, "input_*": threshold}
        truncated = model.with_thresholds(rules, *clones(calls[0]))
        check_threshold(module, truncated, threshold, shapes, dtype, seed)
    assert_untouched(module, before)


def check_exact(
    module: nn.Module,
    model: DeltaModel,
    convert: Callable[[], DeltaModel] | None,
    calls: Sequence[tuple[Tensor, ...]],
    *,
    check_work: bool = True,
    known_still: Sequence[int] = STILL,
) -> None:
    """At threshold 0: equal to dense, bitwise what a reset model gives, still frames cost nothing, memory is apart.
    convert: makes another model, which has to give the same in the end.

    After each frame its inputs and outputs are overwritten with NaN, since no later frame may read them. A reset fills
    the state with NaN, which shows in every pixel that is not computed.
    """
    fresh, dense = copy.deepcopy(model), Dense(module)
    still = {t % len(calls) for t in known_still}
    before: list[Tensor] | None = None
    for t, call in enumerate(calls):
        where = f"frame {t}"
        mine = clones(call)
        outputs = model(*mine)
        assert_close(outputs, dense(call), where)
        fresh.reset()
        assert_same_bits(outputs, fresh(*clones(call)), f"{where} against a reset model")
        if t == len(calls) - 1 and convert is not None:
            assert_like_another(model, outputs, convert()(*clones(call)), f"{where} against another model")
        if t in still and check_work:
            assert_still(model, where)
        if check_work:
            _check_last_mask(model, leaves(outputs), before, where)
        assert_states_apart(model, (outputs, mine))
        before = [output.clone() for output in leaves(outputs)]
        for tensor in (*leaves(outputs), *leaves(mine)):
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))


def assert_like_another(model: DeltaModel, outputs: Any, others: Any, where: str) -> None:
    """Compare with the outputs of another conversion: the same bits, except on backends that choose kernels by their
    time.

    There, another kernel may compute a layer in each conversion, and round differently; within one model it never does.
    """
    if model.backend == "reference":
        assert_same_bits(outputs, others, where)
    else:
        assert_close(outputs, others, where)


def _check_last_mask(
    model: DeltaModel, outputs: list[Tensor], before: list[Tensor] | None, where: str
) -> None:
    """If a delta node makes the single output, that node's mask contains every pixel that moved."""
    masks = list(model.masks().items())
    if before is None or len(outputs) != 1 or outputs[0].dim() != 4:
        return
    path, mask = masks[-1]
    if mask.shape[2:] == outputs[0].shape[2:]:
        moved = (outputs[0] != before[0]).any(1, keepdim=True)
        assert not (moved & ~mask).any(), f"{where}: pixels of {path} moved outside its mask"


def check_threshold(
    module: nn.Module,
    model: DeltaModel,
    threshold: float,
    shapes: Sequence[Shape],
    dtype: torch.dtype,
    seed: int,
) -> None:
    """With a threshold at the input alone, outputs are exactly the dense network's for the frame that was seen.

    The frame that was seen follows from the definition: a pixel is taken over when one of its channels differs by more
    than the threshold from what was seen last. Played are 16 scripted frames with noise, then 24 of noise alone, during
    which no error may add up.
    """
    draw, dense = generator(seed + 100), Dense(module)
    calls = scripted_videos(shapes, dtype, seed)
    calls += [calls[-1]] * 24
    seen: list[Tensor] = []
    for t, call in enumerate(calls):
        frames = [x + torch.randn(x.shape, dtype=dtype, generator=draw) * threshold / 2 for x in call]
        if not seen:
            seen = list(clones(frames))
        moved = [((x - s).abs() > threshold).any(1, keepdim=True) for x, s in zip(frames, seen, strict=True)]
        seen = [torch.where(m, x, s) for m, x, s in zip(moved, frames, seen, strict=True)]
        assert_close(model(*clones(frames)), dense(seen), f"frame {t} at threshold {threshold}")
        assert all(bool(((x - s).abs() <= threshold).all()) for x, s in zip(frames, seen, strict=True))
        inputs = [mask for path, mask in sorted(model.masks().items()) if path.startswith("input_")]
        if t > 0 and len(inputs) == len(moved):
            assert all(torch.equal(a, b) for a, b in zip(inputs, moved, strict=True)), (
                f"frame {t}: input masks differ"
            )


class Call(nn.Module):
    """A network of one function: Call(f, weight=tensor, conv=module) runs f(self, *inputs)."""

    def __init__(self, function: Callable[..., Any], **parts: Any):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)

"""Compares the gate of a converted network with a Watch by itself, whose masks have to be the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from oracle import Call, assert_close, assert_same_bits, generator, scripted_video
from torch import Tensor, nn

import deltaconvert
from deltaconvert.gate import Gate, Watch

LIMIT = 0.1
GATES = [
    {"smooth": 3, "noise": 2.0, "dilate": 1, "weak": 0.3, "cut": 0.9, "refresh": 7},
    {"smooth": 9, "peak": 18.0, "dilate": 12, "weak": 0.25},
    {"smooth": 5, "peak": 2.0, "dilate": 3, "refresh": 9, "cut": 0.6},
    {"dilate": 40, "refresh": 5, "nonfinite": "hold"},
    {"smooth": 17, "noise": 1.0, "cut": 0.2},
    {"smooth": 3, "recent": 4, "noise": 2.0, "dilate": 2, "weak": 0.3, "refresh": 7},
    {"recent": 3, "peak": 30.0, "cut": 0.2, "nonfinite": "hold"},
]
CEILINGS = [
    {"max_density": 0.3},
    {"max_density": 0.1, "smooth": 3, "dilate": 3, "weak": 0.3, "refresh": 12, "cut": 0.2},
    {"max_density": 0.6, "recent": 3, "noise": 1.0, "nonfinite": "hold", "cut": 0.5},
    {"max_density": 0.001, "peak": 2.0},
]
NONFINITE = [
    (None, (9, 40), torch.float32, 0.0),  # runs of four pixels
    (None, (7, 37), torch.float32, 0.1),
    (None, (1, 1), torch.float64, 0.1),
    (None, (6, 35), torch.bfloat16, 0.1),
    (None, (6, 32), torch.float16, 0.0),
    ({"smooth": 3, "dilate": 1, "weak": 0.3}, (21, 40), torch.float32, 0.1),
    ({"smooth": 3, "recent": 2, "noise": 2.0, "cut": 0.5}, (9, 37), torch.float32, 0.1),
    ({"max_density": 0.5, "refresh": 4}, (21, 70), torch.float32, 0.1),
    ({"refresh": 4}, (9, 33), torch.float32, 0.0),
    ({"nonfinite": "hold"}, (9, 37), torch.float32, 0.1),
]
SHORT_GATES = [None, {"dilate": 1, "weak": 0.3, "peak": 3.3}, {"smooth": 3, "weak": 0.3}]


class Input(nn.Module):
    """A network whose convolution changes nothing, so that its output is what the gate stored."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv.weight.data = torch.eye(channels).view(channels, channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def convert(frame: Tensor, gate: object, threshold: float = LIMIT, backend: str = "reference"):
    network = Input(frame.shape[1]).to(frame.device, frame.dtype).eval()
    return deltaconvert.convert(network, frame, threshold={"input": threshold}, gate=gate, backend=backend)


class Alone:
    """A Watch by itself, with what it would store of the frames."""

    def __init__(self, gate: object, like: Tensor, threshold: float = LIMIT):
        # Rounded as a map of this type holds it.
        held = torch.tensor(threshold, dtype=torch.float64).to(like.dtype).item()
        self.watch = Watch(Gate.of(gate), tuple(like.shape), like.dtype, like.device, held)
        self.stored = torch.full(like.shape, math.nan, dtype=like.dtype, device=like.device)

    def look(self, frame: Tensor) -> Tensor:
        """The mask of a frame; its pixels are stored."""
        seen, mask = self.watch.look(frame, self.stored)
        self.stored = torch.where(mask, seen, self.stored)
        return mask

    def reset(self, stream: int) -> None:
        self.watch.reset(slice(stream, stream + 1))
        self.stored[stream] = math.nan


def check_masks(backend: str, gate: object, video: Iterable[Tensor]) -> None:
    frames = list(video)
    model, alone = convert(frames[0], gate, backend=backend), Alone(gate, frames[0])
    for t, frame in enumerate(frames):
        model(frame)
        assert torch.equal(model.masks()["input_0"], alone.look(frame)), f"frame {t}"


def check_gate(backend: str, gate: object, size: tuple[int, int], dtype: torch.dtype) -> None:
    """Masks, stored frames, noise and counts are those of a Watch by itself, also with sleeping streams and NaN."""
    draw = generator(5)
    video = [
        x + torch.randn(x.shape, generator=draw) * 0.02 for x in scripted_video((2, 3, *size), torch.float32)
    ]
    video = [x.to(dtype) for x in video]
    video[0][0, 0, 0, 0] = video[3][0, 1, 0, 0] = math.nan
    video[4][1, 2, -1, -1] = math.inf
    model, alone = convert(video[0], gate, backend=backend), Alone(gate, video[0])
    for t, frame in enumerate(video):
        if t == 9:
            model.reset(1)
            alone.reset(1)
        if 5 <= t <= 7:
            asleep = [0] if t < 7 else []
            model.sleep(asleep)
            alone.watch.sleep(asleep)
            frame[asleep] = video[4][asleep]
        model(frame)
        assert torch.equal(model.masks()["input_0"], alone.look(frame)), f"frame {t}"
        values = next(iter(model._program.edges.values())).values
        assert torch.equal(values.nan_to_num(7), alone.stored.nan_to_num(7)), f"frame {t}"
        (watch,) = model._program.watches.values()
        assert_close(watch.noise, alone.watch.noise, f"noise, frame {t}")
    assert model.stats().gates["input_0"] == alone.watch.report()


def check_nonfinite(
    backend: str, gate: object, size: tuple[int, int], dtype: torch.dtype, threshold: float
) -> None:
    """Three streams: one has a NaN in one channel of one pixel, one is left alone, one has both infinities. What was
    stored of them is counted, in every frame and after a reset; behind them all is as if they had not been."""
    calm = torch.rand(3, 3, *size).to(dtype)
    broken, more = calm.clone(), calm.clone()
    broken[0, 1, -1, -1] = math.nan
    broken[2, 2, 0, 0], broken[2, 0, -1, 0] = math.inf, -math.inf
    more[2, :, :, 0] = math.inf
    model = convert(calm, gate, threshold, backend)
    clean = copy.deepcopy(model)
    counted = torch.zeros(3, dtype=torch.int64, device=calm.device)
    for t, frame in enumerate((calm, broken, broken, calm, more, calm, broken, calm)):
        if t == 6:
            model.reset(0)
            model.sleep([2])
            frame[2] = calm[2]
        out, clean_out = model(frame), clean(calm)
        stored = next(iter(model._program.edges.values())).values
        counted += (model.masks()["input_0"] & ~stored.isfinite().all(1, keepdim=True)).sum((1, 2, 3))
        assert model.nonfinite() == counted.tolist(), f"frame {t}"
        total = int(counted.sum())
        assert model.stats().nonfinite == ({"input_0": total} if total else {}), f"frame {t}"
        if frame is calm:
            assert_same_bits(out, clean_out, f"frame {t}")
    holds = "hold" in Gate.of(gate).nonfinite
    assert counted.tolist() == [0, 0, 0] if holds else counted[0] >= 2 and counted[1] == 0 and counted[2] >= 3
    if not holds and gate is None and threshold == 0:
        rows = len({0, size[0] - 1})
        assert counted.tolist() == [2, 0, rows + size[0]], "in frame 1 and 6; and in 1 and 4"
    assert clean.stats().nonfinite == {} and clean.nonfinite() == [0, 0, 0]


def at_the_limit() -> Iterator[Tensor]:
    """Frames whose means over boxes lie a few roundings above or below a limit of the gate."""
    draw, shape = generator(8), (2, 3, 37, 70)
    for times in (0, 1, 0.5, 1, math.sqrt(2), -1, math.sqrt(2)):
        yield torch.full(shape, LIMIT * times) + torch.randint(-6, 7, shape, generator=draw) * 2.0**-28


def faint_patches() -> Iterator[Tensor]:
    """Frames with patches anywhere that averages over boxes find in the noise, but no single pixel does."""
    draw, shape = generator(9), (2, 3, 45, 75)
    scene = torch.rand(shape, generator=draw)
    for t in range(8):
        frame = scene + torch.randn(shape, generator=draw) * LIMIT / 2
        for _ in range(4):
            y, x, side = (int(torch.randint(0, most, (1,), generator=draw)) for most in (45, 75, 12))
            frame[t % 2, t % 3, y : y + side, x : x + side] += 2 * LIMIT
        yield frame


def check_types(backend: str, gate: object, dtype: torch.dtype) -> None:
    """Masks are the reference's, though in a type of three digits many changes equal the threshold."""
    device, draw = torch.get_default_device(), torch.Generator().manual_seed(3)
    network = Call(lambda self, x: F.max_pool2d(x, 3, 1, 1).relu()).eval()  # rounds nothing
    for _ in range(8):
        amounts = torch.rand(2, generator=draw, device="cpu").tolist()
        thresholds = {"input": 0.2 * amounts[0], "activation": 0.1 * amounts[1]}
        frame = torch.rand(2, 3, 17, 33, generator=draw, device="cpu")
        first = frame.to(device, dtype)
        ours, theirs = (
            deltaconvert.convert(network, first, threshold=thresholds, gate=gate, backend=name)
            for name in (backend, "reference")
        )
        for t in range(4):
            ours(frame.to(device, dtype))
            theirs(frame.to(device, dtype))
            for path, mask in theirs.masks().items():
                assert torch.equal(ours.masks()[path], mask), f"{path}, frame {t}, {thresholds}"
            frame = frame + torch.randn(frame.shape, generator=draw, device="cpu") * 0.1


def bursts(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """Frames of which more changes than the ceiling admits: a lamp, which gives all tiles the same claim, and new
    pictures, some with NaN. Calm frames between them let waiting tiles through."""
    draw = generator(11)
    frame = torch.rand(shape, generator=draw)
    for t in range(14):
        if t % 4 == 1:
            frame = frame + 0.5 if t % 8 == 1 else torch.rand(shape, generator=draw) * 3
        if t == 6:
            frame = frame.clone()
            frame[0, 0, shape[2] // 2, : shape[3] // 2] = math.nan
        if t == 8:
            frame = frame.nan_to_num(0.5)
            frame[-1, -1, -1, -1] = math.inf
        yield frame.to(dtype)


def check_ceiling(backend: str, gate: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """In a burst, masks, stored frames, counts and the tiles left waiting are those of a Watch by itself."""
    frames = list(bursts(shape, dtype))
    model, alone = convert(frames[0], gate, backend=backend), Alone(gate, frames[0])
    waiting = 0
    for t, frame in enumerate(frames):
        model(frame)
        assert torch.equal(model.masks()["input_0"], alone.look(frame)), f"frame {t}"
        values = next(iter(model._program.edges.values())).values
        assert torch.equal(values.nan_to_num(7), alone.stored.nan_to_num(7)), f"frame {t}"
        counted = model.stats().gates["input_0"]
        assert counted == alone.watch.report(), f"frame {t}"
        waiting += counted["waiting"]
    assert waiting or min(alone.watch.tiles) == 1, "nothing ever waited"

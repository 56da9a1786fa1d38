"""The masks of every backend are exactly those of a Watch by itself."""

from __future__ import annotations

import pytest
import torch
from gated import (
    CEILINGS,
    GATES,
    Alone,
    Input,
    at_the_limit,
    check_ceiling,
    check_gate,
    check_masks,
    convert,
    faint_patches,
)
from oracle import assert_close, dense, generator, scripted_video
from torch import Tensor

import deltaconvert


@pytest.mark.parametrize("size", [(1, 1), (9, 70), (37, 21)])
def test_every_setting_on_every_backend(backend, size):
    """The output is the dense network's for the stored frame."""
    gate = {"smooth": 3, "recent": 4, "noise": 2.0, "dilate": 1, "weak": 0.3, "cut": 0.9}
    gate |= {"refresh": 7, "max_density": 0.5}
    video = scripted_video((2, 3, *size), torch.float64)
    draw = generator(5)
    video = [x + torch.randn(x.shape, dtype=x.dtype, generator=draw) * 0.02 for x in video]
    model, alone = convert(video[0], gate, backend=backend), Alone(gate, video[0])
    for t, frame in enumerate(video):
        if t == 9:
            model.reset(1)
            alone.reset(1)
        mask = alone.look(frame)
        assert_close(model(frame), dense(Input().double(), (alone.stored,)), f"frame {t}")
        assert torch.equal(model.masks()["input_0"], mask), f"frame {t}"


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [((1, 1), torch.float64), ((37, 70), torch.float32), ((18, 650), torch.float32)],  # past a tile, too
)
def test_gates_without_a_ceiling(backend, gate, size, dtype):
    check_gate(backend, gate, size, dtype)


@pytest.mark.parametrize("gate", CEILINGS, ids=str)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 3, 37, 70), torch.float32),
        ((1, 2, 16, 16), torch.float32),
        ((3, 1, 100, 333), torch.float64),
        ((2, 3, 270, 480), torch.float16),
    ],
    ids=str,
)
def test_gates_with_a_ceiling(backend, gate, shape, dtype):
    if dtype == torch.float16 and backend != "cuda":
        pytest.skip("halves are for GPUs")
    check_ceiling(backend, gate, shape, dtype)
    check_gate(backend, gate, shape[2:], dtype)


@pytest.mark.parametrize(
    "gate",
    [{"smooth": 3, "peak": 9.0}, {"smooth": 9, "peak": 9.0, "weak": 0.5}, {"smooth": 5, "recent": 2}],
    ids=str,
)
def test_boxes_at_the_limit(backend, gate):
    check_masks(backend, {"dilate": 1, **gate}, at_the_limit())


@pytest.mark.parametrize(
    "gate", [{"smooth": 3}, {"smooth": 7, "recent": 2}, {"smooth": 9}, {"smooth": 17, "weak": 0.5}], ids=str
)
def test_faint_patches(backend, gate):
    check_masks(backend, {"dilate": 1, "peak": 9.0, **gate}, faint_patches())


@pytest.mark.parametrize("width", [45, 48])
@pytest.mark.parametrize(
    "gate",
    [{"smooth": 3, "weak": 0.3}, {"smooth": 5, "recent": 2}, {"smooth": 3, "nonfinite": "hold"}, {}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gate_on_bytes(backend, width, gate, dtype):
    """Frames of a camera, with the channels last: the gate sees them as numbers."""
    if dtype == torch.float16 and backend != "cuda":
        pytest.skip("halves are for GPUs")

    class OfBytes(Input):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.permute(0, 3, 1, 2).to(dtype) / 255)

    draw, gate = generator(6), {"dilate": 2, **gate}
    first = torch.randint(0, 256, (2, 20, width, 3), generator=draw, dtype=torch.uint8)
    frames = [first, *(first.clone() for _ in range(3))]
    for t in (1, 2, 3):
        frames[t][t % 2, 4 : 9 + t, 30:41] = torch.randint(
            0, 256, (5 + t, 11, 3), generator=draw, dtype=torch.uint8
        )
    network = OfBytes().to(first.device, dtype).eval()
    model = deltaconvert.convert(network, first, threshold={"input": 9.0}, gate=gate, backend=backend)
    alone = Alone(gate, first.permute(0, 3, 1, 2).to(dtype), threshold=9.0)
    for t, frame in enumerate(frames):
        model(frame)
        mask = alone.look(frame.permute(0, 3, 1, 2).to(dtype))
        assert torch.equal(model.input_masks(), mask[:, 0]), f"frame {t}"


@pytest.mark.parametrize("gate", [{"smooth": 5}, {"recent": 2}], ids=str)
def test_a_gate_on_channels_last(backend, gate):
    draw = generator(7)
    video = [torch.rand(2, 3, 20, 48, generator=draw) * 0.3 for _ in range(5)]
    check_masks(backend, gate, [frame.contiguous(memory_format=torch.channels_last) for frame in video])

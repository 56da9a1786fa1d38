"""Every kernel and tile that backends/cuda/convs.py may choose for a convolution, each forced, on a GPU."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from on_gpu import DEVICE, edge_of
from oracle import assert_marked_alike
from torch import Tensor, nn

import deltaconvert
from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import convs, wgmma_kernels
from deltaconvert.backends.cuda.depthwise import THREADS_OF_CHANNELS, by_channel
from deltaconvert.backends.cuda.kernels import on_current_stream
from deltaconvert.backends.cuda.marks import list_of
from deltaconvert.backends.cuda.tail import Tail
from deltaconvert.backends.cuda.tuning import seconds_of
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.reach import Window

# Of the norm, against float64: outputs rounded to 11 and 8 bits; inputs and weights of a
# sum rounded to 11 bits (cut off instead of rounded, inputs would give 2.7e-4); 4608 products added up in 24 bits.
TYPES = {
    "half": (torch.float16, 4e-4),
    "bfloat16": (torch.bfloat16, 3e-3),
    "tf32": (torch.float32, 2.4e-4),
    "float": (torch.float32, 3e-6),
}
LAYERS = {  # in, out, kernel, stride, height and width; a map is added to every second one
    "3x3": (64, 72, 3, 1, 37, 41),
    "3x3 in octets": (64, 40, 3, 1, 37, 88),
    "strided, odd channels": (40, 136, 3, 2, 37, 41),
    "1x1": (96, 264, 1, 1, 37, 41),
    "3x3 of few channels": (32, 32, 3, 1, 37, 41),
    "3x3 to few channels": (64, 24, 3, 1, 37, 131),
    "3x3 of few channels in rows": (32, 24, 3, 1, 35, 128),
    "3x3 of 16 channels": (16, 40, 3, 1, 37, 41),
    "3x3 of narrow maps": (64, 64, 3, 1, 24, 18),
    "1x1 to few channels": (96, 24, 1, 1, 37, 41),
    "deep": (512, 128, 3, 1, 19, 23),
    "5x5": (24, 32, 5, 1, 37, 41),
    "stem": (3, 64, 7, 2, 37, 41),
    "3x3, more tiles than run at once": (64, 64, 3, 1, 203, 299),
    "3x3, wide": (128, 200, 3, 1, 67, 190),
    "more tiles than run at once": (64, 256, 1, 1, 301, 299),
}


def computed(launch, mask, out, expected, bound, name):
    """(what a kernel gives to the pixels of a mask, where these are): near `expected`, and nothing else is written."""
    out.values.fill_(float("nan"))
    with on_current_stream(DEVICE):
        launch(out.values, list_of(mask[:, None]))
    chosen = mask[:, None].expand_as(out.values)
    fresh = out.values[chosen]
    error = (fresh.double() - expected[chosen]).norm() / expected[chosen].norm().clamp(min=1e-9)
    assert error < bound, f"{name}: {error:.2e}"
    assert out.values[~chosen].isnan().all(), f"{name} wrote what was not listed"
    return fresh, chosen


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_every_tile(gpu, layer, kind):
    """For every tile: near float64, the same bits whatever else is listed and in all tiles that sum in one order,
    nothing else written."""
    dtype, bound = TYPES[kind]
    inputs, outputs, kernel, stride, height, width = LAYERS[layer]
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    weight = torch.randn(outputs, inputs, kernel, kernel, device=DEVICE, dtype=dtype)
    weight = weight / (inputs * kernel**2) ** 0.5
    bias = torch.randn(outputs, device=DEVICE, dtype=dtype)
    operator = Conv2d(weight, bias, (stride, stride), (kernel // 2,) * 2, (1, 1), 1)
    source = edge_of(torch.randn(2, inputs, height, width, device=DEVICE, dtype=dtype))
    expected = F.conv2d(
        source.values.double(), weight.double(), bias.double(), operator.stride, operator.padding
    )
    shape = tuple(expected.shape)
    other = edge_of(torch.randn(shape, device=DEVICE, dtype=dtype))
    added = list(LAYERS).index(layer) % 2 == 0
    expected = (expected + other.values.double() if added else expected).relu()
    out = edge_of(torch.empty(shape, device=DEVICE, dtype=dtype))
    (reach,) = operator.reaches([tuple(source.values.shape)], shape)
    window = reach if isinstance(reach, Window) else None
    masks = [torch.rand(2, *shape[2:], device=DEVICE) < share for share in (1, 0.5, 0.02, 0.001, 0.9, 1)]
    backend = cuda.Backend()
    bits: dict[int, Tensor] = {}
    for name, head in convs.candidates(operator, window, source, out).items():
        tail = Tail(outputs, dtype, DEVICE)
        if added:
            tail.then(Arithmetic("add", None, False), ["v", tail.operand(other, shape[2:])])
        tail.then(Pointwise("relu", {}), ["v"])
        made = head()
        launch = cuda.Launch(backend, made, tail, out)
        for mask in masks:
            fresh, chosen = computed(launch, mask, out, expected, bound, name)
            same = bits.setdefault(made.cluster, out.values.clone())
            assert torch.equal(fresh, same[chosen]), f"{name}: bits depend on the list or the tile"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_one_row_of_a_tile_many_times(gpu, kind):
    """No block of a cluster may end while a thread without a pixel reads its sums: that would kill the process."""
    dtype, bound = TYPES[kind]
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    weight = torch.randn(1001, 1280, 1, 1, device=DEVICE, dtype=dtype) / 36
    operator = Conv2d(weight, torch.randn(1001, device=DEVICE, dtype=dtype), (1, 1), (0, 0), (1, 1), 1)
    source, out = (edge_of(torch.randn(1, n, 1, 1, device=DEVICE, dtype=dtype)) for n in (1280, 1001))
    expected = F.conv2d(source.values.double(), weight.double(), operator.bias.double())
    backend, every = cuda.Backend(), torch.ones(1, 1, 1, device=DEVICE, dtype=torch.bool)
    for name, head in convs.candidates(operator, None, source, out).items():
        launch = cuda.Launch(backend, head(), Tail(1001, dtype, DEVICE), out)
        seconds_of(partial(launch, out.values, list_of(every[:, None])), DEVICE, budget=0.1)
        computed(launch, every, out, expected, bound, name)


SUMS = {  # in, out, kernel; in, stride of the 1x1 convolution that is added; height and width of the output
    "1x1 and 1x1": (64, 256, 1, 64, 1, 37, 41),
    "1x1 and strided": (128, 264, 1, 256, 2, 37, 41),
    "3x3 and strided, odd channels": (40, 72, 3, 24, 2, 37, 41),
    "deep": (512, 136, 1, 1024, 2, 19, 23),
}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["half", "bfloat16", "tf32"])
@pytest.mark.parametrize("layer", SUMS)
@torch.no_grad()
def test_sums_over_two_maps(gpu, layer, kind):
    """Two convolutions in one sum: near float64, the same bits whatever else is listed, nothing else written."""
    dtype, bound = TYPES[kind]
    inputs, outputs, kernel, others, stride, height, width = SUMS[layer]
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    parts = []
    for channels, side, step in ((inputs, kernel, 1), (others, 1, stride)):
        weight = torch.randn(outputs, channels, side, side, device=DEVICE, dtype=dtype)
        weight = weight / (2 * channels * side**2) ** 0.5
        bias = torch.randn(outputs, device=DEVICE, dtype=dtype)
        parts.append(Conv2d(weight, bias, (step, step), (side // 2,) * 2, (1, 1), 1))
    sizes = (height, width), ((height - 1) * stride + 1, (width - 1) * stride + 1)
    sources = [
        edge_of(torch.randn(2, part.weight.shape[1], *size, device=DEVICE, dtype=dtype))
        for part, size in zip(parts, sizes, strict=True)
    ]
    expected = sum(
        F.conv2d(source.values.double(), part.weight.double(), part.bias.double(), part.stride, part.padding)
        for part, source in zip(parts, sources, strict=True)
    ).relu()
    shape = tuple(expected.shape)
    out = edge_of(torch.empty(shape, device=DEVICE, dtype=dtype))
    (reach,) = parts[0].reaches([tuple(sources[0].values.shape)], shape)
    window = reach if isinstance(reach, Window) else None
    backend = cuda.Backend()
    tail = Tail(outputs, dtype, DEVICE)
    tail.then(Pointwise("relu", {}), ["v"])
    assert convs.adds_maps(*parts, dtype, DEVICE)
    bits: dict[int, Tensor] = {}
    ways = convs.candidates(parts[0], window, sources[0], out, (parts[1], sources[1]))
    for name, head in ways.items():
        made = head()
        launch = cuda.Launch(backend, made, tail, out)
        for share in (1, 0.5, 0.02, 0.001):
            mask = torch.rand(2, *shape[2:], device=DEVICE) < share
            fresh, chosen = computed(launch, mask, out, expected, bound, name)
            same = bits.setdefault(made.cluster, out.values.clone())
            assert torch.equal(fresh, same[chosen]), f"{name}: bits depend on the list or the tile"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["half", "bfloat16", "float"])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1)])
@torch.no_grad()
def test_depthwise(gpu, kernel, stride, kind):
    """For every thread's share: near float64, the same bits whatever else is listed, nothing else written."""
    dtype, bound = TYPES[kind]
    torch.manual_seed(0)
    weight = torch.randn(72, 1, kernel, kernel, device=DEVICE, dtype=dtype)
    bias = torch.randn(72, device=DEVICE, dtype=dtype)
    operator = Conv2d(weight, bias, (stride, stride), (kernel // 2,) * 2, (1, 1), 72)
    source = edge_of(torch.randn(8, 72, 77, 101, device=DEVICE, dtype=dtype))
    expected = F.conv2d(
        source.values.double(), weight.double(), bias.double(), stride, kernel // 2, 1, 72
    ).relu()
    shape = tuple(expected.shape)
    out = edge_of(torch.empty(shape, device=DEVICE, dtype=dtype))
    (reach,) = operator.reaches([tuple(source.values.shape)], shape)
    masks = [torch.rand(8, *shape[2:], device=DEVICE) < share for share in (1, 0.7, 0.5, 0.01)]
    same = None
    for thread in THREADS_OF_CHANNELS:
        tail = Tail(72, dtype, DEVICE)
        tail.then(Pointwise("relu", {}), ["v"])
        head = by_channel(operator, reach, source, out, thread)
        launch = cuda.Launch(cuda.Backend(), head, tail, out)
        for mask in masks:
            fresh, chosen = computed(launch, mask, out, expected, bound, thread)
            same = out.values.clone() if same is None else same
            assert torch.equal(fresh, same[chosen]), f"{thread}: bits depend on the list or the thread"


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_depthwise_among_ragged_changes(gpu, stride):
    """In a network's graph, if more pixels change than threads take at once, bits are those of a fresh model."""
    wide = nn.Conv2d(256, 256, 3, stride, 1, groups=256)
    network = nn.Sequential(nn.Conv2d(8, 256, 1), nn.ReLU6(), wide, nn.ReLU6(), nn.Conv2d(256, 8, 1))
    network = network.to(DEVICE, torch.float16).eval()
    frame = torch.randn(6, 8, 96, 97, device=DEVICE, dtype=torch.float16)
    delta = deltaconvert.convert(network, frame, backend="cuda")
    delta(frame)
    for share in (0.15, 0.6, 0.9):
        moved = torch.rand(6, 1, 96, 97, device=DEVICE) < share
        moved[1], moved[2, :, :40] = False, False
        frame = torch.where(moved, torch.randn_like(frame), frame)
        out = delta(frame)
        assert 0 < delta.stats().work < 1
        expected = network.double()(frame.double())
        assert (out - expected).norm() / expected.norm() < 2e-3
        network.half()
    delta.reset()
    assert torch.equal(delta(frame), out)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.2])
@torch.no_grad()
def test_windows_side_by_side(gpu, kind, threshold):
    """A transposed convolution that walks its input's changes is near torch, and has the bits of a fresh network."""
    dtype, bound = TYPES[kind]
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    conv, up = nn.Conv2d(5, 96, 3, padding=1), nn.ConvTranspose2d(96, 40, 2, stride=2)
    network = nn.Sequential(conv, nn.ReLU(), up, nn.ReLU()).to(DEVICE, dtype).eval()
    frames = torch.randn(4, 2, 5, 37, 45, device=DEVICE, dtype=dtype)
    moved = torch.zeros(37, 45, device=DEVICE, dtype=torch.bool)
    moved[3:9, 20:40] = moved[30:, :2] = True
    delta = deltaconvert.convert(network, frames[0], threshold={"activation": threshold}, backend="cuda")
    frame = frames[0]
    for fresh in frames:
        frame = torch.where(moved, fresh, frame)
        out = delta(frame)
    assert {layer.computed for layer in delta.stats().layers} != {1.0}
    if threshold == 0:
        error = (out.double() - network.double()(frame.double())).norm() / out.double().norm()
        assert error < 2 * bound  # two roundings
        delta.reset()
        assert torch.equal(delta(frame), out)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["half", "tf32"])
@pytest.mark.parametrize("rule", [0.3, "0.3 weighted"])
@pytest.mark.parametrize(
    "tile",
    [
        (128, 128, 3, 1),
        (128, 64, 3, 1),
        (64, 128, 6, 2),
        (64, 64, 6, 4),
        (64, 128, 4, 1),
        (64, 64, 9, 1, 2),
        (64, 64, 5, 1, 3),
        (64, 64, 9, 1, 2, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("streams, height, width", [(2, 61, 88), (70, 5, 40)])
@torch.no_grad()
def test_comparison_in_the_kernel(gpu, kind, rule, tile, streams, height, width, monkeypatch):
    """Outputs and masks are those of a step that compares afterwards, reading from scratch memory."""
    dtype, _ = TYPES[kind]
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    forced = dict(zip(("BM", "BN", "STAGES", "SPLIT", "STAY", "OCTETS"), tile, strict=False))
    if "STAY" in forced and kind == "tf32":
        pytest.skip("weights of single precision do not stay in shared memory")
    monkeypatch.setattr(convs, "_wgmma_tiles", lambda steps, channels: {"forced": forced})
    monkeypatch.setattr(convs, "_stay_tiles", lambda *layer: {})
    monkeypatch.setattr(convs, "_whole_tiles", lambda *layer: {})  # which sum in one part
    channels = (128, 96, 60, 40) if tile[1] == 128 else (64, 40, 60, 24)
    if "OCTETS" in forced:  # whose pixels are whole steps
        channels = (64, 64, 64, 24)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((64, *channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers).to(DEVICE, dtype).eval()
    frames = torch.randn(8, streams, 64, height, width, device=DEVICE, dtype=dtype)
    masks = torch.rand(8, streams, 1, height, width, device=DEVICE) < torch.tensor(
        [1, 0.3, 0.001, 0, 0.05, 1, 0.01, 0.6]
    ).view(8, 1, 1, 1, 1)
    options = {"threshold": {"activation": rule}, "backend": "cuda"}
    ours = deltaconvert.convert(network, frames[0], **options)
    assert {step.edge.is_weighted for step in ours._program.operators[:-1]} == {rule != 0.3}
    assert all(step.launch.compares for step in ours._program.operators)
    with monkeypatch.context() as patch:
        for module in (convs, wgmma_kernels):
            patch.setattr(module, "has_threshold", lambda edge: False)
        apart = deltaconvert.convert(network, frames[0], **options)
    frame, dropped = frames[0], 0
    for t, (fresh, mask) in enumerate(zip(frames, masks, strict=True)):
        frame = torch.where(mask, frame + 0.5 * fresh, frame)
        dropped += assert_marked_alike(ours, apart, frame, f"frame {t}")
    assert dropped, "the threshold drops something"

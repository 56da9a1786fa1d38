"""backends/cuda: half precision, graphs, streams, and its message where it cannot run."""

from __future__ import annotations

import copy
import importlib.util
from contextlib import contextmanager

import pytest
import torch
from drawn import RECIPE, Drawn, video_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    Call,
    assert_close,
    assert_same_bits,
    examples,
    no_waiting,
    nodes_in_both,
    scripted_video,
)
from torch import Tensor, nn

import deltaconvert
import model_zoo
from deltaconvert.backends import cuda, load_backend
from deltaconvert.backends.cuda import recording
from deltaconvert.errors import InputError

CUDA = torch.device("cuda", 0)
# Shares of the largest output: inputs and weights are rounded to 11, 8 and 11 bits in one or two random layers.
TYPES = {"half": (torch.float16, 4e-3), "bfloat16": (torch.bfloat16, 3e-2), "tf32": (torch.float32, 4e-3)}


def conv(*args, **options) -> nn.Module:
    return nn.Conv2d(*args, **options)


LAYERS = {
    "3x3": lambda: (conv(16, 24, 3, padding=1), 16),
    "1x1": lambda: (conv(32, 72, 1), 32),
    "wide": lambda: (conv(64, 200, 3, padding=1), 64),
    "deep": lambda: (conv(264, 8, 1), 264),
    "stride": lambda: (conv(16, 16, 3, stride=2, padding=1), 16),
    "dilation": lambda: (conv(16, 16, 3, padding=4, dilation=4), 16),
    "stem": lambda: (conv(3, 24, 7, stride=2, padding=3), 3),
    "one channel": lambda: (conv(1, 1, 3, padding=1), 1),
    "odd channels": lambda: (conv(5, 7, (3, 1), padding=(0, 2)), 5),
    "grouped": lambda: (conv(16, 32, 3, padding=1, groups=4), 16),
    "depthwise": lambda: (conv(24, 24, 3, stride=2, padding=1, groups=24), 24),
    "transposed": lambda: (nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1), 16),
    "residual": lambda: (Call(lambda m, x: (m.a(x) + x).relu(), a=conv(16, 16, 3, padding=1)), 16),
    "gate": lambda: (
        Call(
            lambda m, x: m.a(x) * m.b(x.mean((2, 3), keepdim=True)).sigmoid(),
            a=conv(16, 16, 1),
            b=conv(16, 16, 1),
        ),
        16,
    ),
    "silu": lambda: (nn.Sequential(conv(8, 16, 3), nn.SiLU(), nn.MaxPool2d(3, 2, 1)), 8),
    "norm": lambda: (nn.Sequential(nn.BatchNorm2d(8), nn.ReLU6(), nn.AvgPool2d(3, 2, 1), nn.PReLU(8)), 8),
    "group norm": lambda: (nn.Sequential(conv(8, 12, 1), nn.GroupNorm(3, 12), nn.ReLU()), 8),
    "layer norm": lambda: (
        Call(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(24)),
        24,
    ),
    "softmax": lambda: (nn.Sequential(conv(8, 21, 1), nn.Softmax(1)), 8),
    "shuffle": lambda: (
        nn.Sequential(nn.ChannelShuffle(3), nn.AdaptiveMaxPool2d((5, 7)), nn.LPPool2d(2, 2)),
        12,
    ),
    "concat": lambda: (Call(lambda m, x: torch.cat([m.a(x), x], 1).relu(), a=conv(8, 5, 1)), 8),
    "resize": lambda: (
        nn.Sequential(
            nn.Upsample(scale_factor=2), conv(8, 8, 1), nn.Upsample(scale_factor=1.5, mode="bilinear")
        ),
        8,
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layer", LAYERS)
def test_reduced_precision(gpu, layer, kind, threshold):
    """Outputs are near the dense network in float64, and the same bits whatever frames came before."""
    dtype, bound = TYPES[kind]
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    network, channels = LAYERS[layer]()
    network = nn.Sequential(network).eval().to(dtype)
    exact = copy.deepcopy(network).double()
    video = scripted_video((2, channels, 21, 19), torch.float32)
    model = deltaconvert.convert(network, video[0].to(dtype), threshold={"activation": threshold})
    assert model.backend == "cuda"
    fresh = copy.deepcopy(model)
    for t, frame in enumerate(video):
        frame = frame.to(dtype)
        got = model(frame)
        fresh.reset()
        if threshold == 0:
            with torch.no_grad():
                expected = exact(frame.double())
            error = (got.double() - expected).abs().max() / expected.abs().max()
            assert error <= bound, f"frame {t}: off by {error:.3g} of the largest value"
            assert_same_bits(got, fresh(frame), f"frame {t} against a reset model")
        assert got.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("inner, outer", [(512, 64), (64, 160)])
def test_long_sums_on_few_and_on_many_pixels(gpu, inner, outer, kind):
    """A few pixels are computed by other blocks than a whole map, with the same bits; for tiles of every size."""
    dtype, bound = TYPES[kind]
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    network = nn.Sequential(conv(inner, outer, 3, padding=1), nn.ReLU()).to(dtype).eval()
    frame = torch.randn(1, inner, 150, 300).to(dtype)
    model = deltaconvert.convert(network, frame)
    model(frame)
    fresh = copy.deepcopy(model)
    for rows in (1, 3, 20, 90, 150):
        frame[..., :rows, : 2 * rows] = torch.randn_like(frame[..., :rows, : 2 * rows])
        got = model(frame)
        fresh.reset()
        assert_same_bits(got, fresh(frame), f"{rows} rows")
        with torch.no_grad():
            expected = copy.deepcopy(network).double()(frame.double())
        assert (got.double() - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.gpu
@settings(max_examples=examples(25))
@given(recipe=RECIPE, threshold=st.sampled_from([0.0, 0.1, 0.5]), stream=st.integers(0, 2))
def test_equals_reference(gpu, recipe, threshold, stream):
    """Equal values up to rounding and equal masks, also after one stream is reset on the way."""
    network = Drawn(recipe).double()
    video = video_of(network, recipe["seed"], noise=threshold / 2)
    ours, theirs = (
        deltaconvert.convert(network, video[0], threshold=threshold, backend=b) for b in ("cuda", "reference")
    )
    nodes = nodes_in_both(ours, theirs)
    for t, frame in enumerate(video):
        if t == 7:
            ours.reset(stream % recipe["batch"])
            theirs.reset(stream % recipe["batch"])
        assert_close(ours(frame.clone()), theirs(frame.clone()), f"frame {t}")
        masks = ours.masks(), theirs.masks()
        counts = [
            {row.path: (row.computed, row.density) for row in model.stats().layers}
            for model in (ours, theirs)
        ]
        for path in nodes:
            assert torch.equal(masks[0][path], masks[1][path]), f"frame {t}: masks of {path} differ"
            assert counts[0][path] == counts[1][path], f"frame {t}: counts of {path} differ"


def small() -> nn.Module:
    return nn.Sequential(
        conv(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        conv(16, 8, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
    ).eval()


@pytest.mark.gpu
def test_a_frame_is_one_graph_and_waits_for_nothing(gpu, monkeypatch):
    """From the copy of a frame to its outputs, nothing waits for the GPU, whether it is captured or replayed."""
    captures, capturing = [], recording.capturing

    @contextmanager
    def watched(*args):
        with capturing(*args), no_waiting():
            yield
        captures.append(args)

    network = model_zoo.create("resnet18", seed=0).to(gpu)
    video = scripted_video((2, 3, 64, 96), torch.float32)
    model = deltaconvert.convert(network, video[0])
    with monkeypatch.context() as patch:
        patch.setattr(recording, "capturing", watched)
        model(video[0])
    assert len(captures) == 1
    outputs = []
    with no_waiting():
        for frame in video[1:]:
            outputs.append(model(frame))
    assert model._program.outside == {}
    assert model._program._backend._recording._graph is not None
    for t, (frame, output) in enumerate(zip(video[1:], outputs, strict=True)):
        with torch.no_grad():
            assert_close(output, network(frame), f"frame {t + 1}")


@pytest.mark.gpu
def test_other_streams_and_inference_mode(gpu):
    network = small()
    video = scripted_video((1, 3, 40, 50), torch.float32)
    model = deltaconvert.convert(network, video[0])
    streams = [torch.cuda.Stream() for _ in range(3)]
    with torch.inference_mode():
        for t, frame in enumerate(video):
            with torch.cuda.stream(streams[t % 3]):
                output = model(frame)
            streams[t % 3].synchronize()
            assert_close(output, network(frame), f"frame {t}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_list_is_not_read_before_it_is_made(gpu, dtype):
    """The first convolution's list: its length once was what a multiprocessor remembered of it (kernels/common.cuh,
    read_counter), so that replays computed nothing in some conversions, mostly the first with a kernel."""
    network = nn.Sequential(
        conv(3, 6, 2, dilation=2), nn.Sigmoid(), nn.BatchNorm2d(6), conv(6, 8, 3, padding=1)
    )
    network = network.eval().to(dtype)
    video = [frame.to(dtype) for frame in scripted_video((3, 3, 17, 3), torch.float32)[:8]]
    for turn in range(10):
        model = deltaconvert.convert(network, video[0])
        fresh = copy.deepcopy(model)
        for t, frame in enumerate(video):
            got = model(frame.clone())
            fresh.reset()
            assert got.isfinite().all()
            assert_same_bits(got, fresh(frame.clone()), f"turn {turn}, frame {t} against a reset model")


@pytest.mark.gpu
def test_two_models_take_turns(gpu):
    networks = [small(), small()]
    videos = [scripted_video((1, 3, 30, 31), torch.float32, seed) for seed in (1, 2)]
    models = [deltaconvert.convert(n, v[0]) for n, v in zip(networks, videos, strict=True)]
    for frames in zip(*videos, strict=True):
        outputs = [model(frame) for model, frame in zip(models, frames, strict=True)]
        for network, frame, output in zip(networks, frames, outputs, strict=True):
            with torch.no_grad():
                assert_close(output, network(frame))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * float(x.abs().max().item() > 0)


@pytest.mark.gpu
def test_what_cannot_be_captured_runs_after_the_graph(gpu):
    """These are a module with Python code of its own, an operator that waits for the GPU, and what reads them."""
    network = nn.Sequential(conv(3, 8, 3), nn.ReLU(), Counting(), conv(8, 4, 3)).eval()
    video = scripted_video((1, 3, 20, 21), torch.float32)
    model = deltaconvert.convert(network, video[0], leaves=[Counting])
    for t, frame in enumerate(video):
        with torch.no_grad():
            assert_close(model(frame), network(frame), f"frame {t}")
    (island,) = model.explain().islands
    assert "Python code" in (island.outside or "") and "Python code" in str(model.explain())
    assert f"it reads {island.path}" in [row.outside for row in model.explain().rows]
    waits = Call(lambda m, x: m.a(x).flatten(1)[:, : x.shape[2]].nonzero().float(), a=conv(3, 2, 3)).eval()
    model = deltaconvert.convert(waits, video[0])
    for frame in video:
        with torch.no_grad():
            assert_close(model(frame), waits(frame))


def test_no_cupy_names_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install cupy-cuda13x"):
        load_backend("cuda", CUDA)
    with pytest.warns(UserWarning, match="reference backend.*pip install cupy-cuda13x"):
        assert load_backend("auto", CUDA).NAME == "reference"


def test_a_cupy_for_another_cuda_names_the_remedy(monkeypatch):
    class Runtime:
        runtimeGetVersion = staticmethod(lambda: 12080)

    class CuPy:
        cuda = type("cuda", (), {"runtime": Runtime})

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(cuda.kernels, "_cupy", lambda: CuPy)
    with pytest.raises(InputError, match=r"CuPy is for CUDA 12.*cupy-cuda13x"):
        load_backend("cuda", CUDA)


def test_a_cupy_that_cannot_be_loaded_names_the_remedy(monkeypatch):
    def broken():
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(cuda.kernels, "_cupy", broken)
    with pytest.raises(InputError, match=r"does not work here \(libcudart.*pip install cupy-cuda12x"):
        load_backend("cuda", CUDA)


def test_a_torch_without_cuda_names_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match="build of torch is not for CUDA: install one that is"):
        load_backend("cuda", CUDA)


def test_a_frame_on_the_cpu_names_the_remedy():
    with pytest.raises(InputError, match="move both"):
        load_backend("cuda", torch.device("cpu"))


def test_who_asks_for_a_gpu_is_not_told_that_tests_were_skipped(monkeypatch, request):
    """make test-cuda"""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DELTACONVERT_NEEDS_GPU", "1")
    with pytest.raises(pytest.fail.Exception, match="needs a CUDA device"):
        request.getfixturevalue("gpu")
    hook = request.config.pluginmanager.hook.pytest_sessionstart
    (begin,) = (each.function for each in hook.get_hookimpls() if "tests/conftest.py" in each.plugin_name)
    with pytest.raises(pytest.exit.Exception, match=r"needs a CUDA device; `make test` runs"):
        begin()

"""backends/cuda/kernels.py and marks.py: kernels that start early, lists made aside."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_marked_alike, assert_same_bits, scripted_video
from torch import nn

import deltaconvert
import model_zoo
from deltaconvert.backends import cuda
from deltaconvert.backends.cuda import kernels, launches, tuning


def small_boxes(base: torch.Tensor, frames: int):
    """A few changing pixels anywhere: kernels end quickly and so run close to each other."""
    draw = random.Random(0)
    for _ in range(frames):
        base = base.clone()
        y, x = (draw.randrange(side - 6) for side in base.shape[2:])
        base[..., y : y + 6, x : x + 6] = torch.rand_like(base[..., y : y + 6, x : x + 6])
        yield base


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_what_overlaps_gives_the_bits_of_one_after_the_other(gpu, name, monkeypatch):
    """Another stream's work makes kernels start at odd times; every frame starts from a state full of NaN."""
    network = model_zoo.create(name, seed=0).half()
    base = torch.rand(2, 3, 224, 320).half()
    model = deltaconvert.convert(network, base)
    model(base)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "bindings", lambda: None)  # plain launches, in one stream
        patch.setattr(cuda.Backend, "aside", lambda backend: contextlib.nullcontext())
        plain = copy.deepcopy(model)
        plain(base)  # captures its graph
    beside, noise = torch.cuda.Stream(), torch.randn(1024, 1024)
    for t, frame in enumerate(small_boxes(base, 40)):
        with torch.cuda.stream(beside):
            for _ in range(t % 5):
                noise = torch.tanh(noise @ noise)
        output = model(frame)
        plain.reset()
        assert_same_bits(output, plain(frame), f"frame {t}")


@pytest.mark.gpu
def test_a_choice_depends_on_all_that_was_measured(gpu, monkeypatch, tmp_path):
    """Changed sources must not find the times of older ones: a hash of all that run is in the file's name."""
    measured, clocks = set(), []

    class Noted(launches.Kernel):
        def __init__(self, source, *rest):
            super().__init__(source, *rest)
            self.source = source

        def __call__(self, *args, **options):
            if clocks:
                measured.add(self.source)
            super().__call__(*args, **options)

    def watched(*args):
        clocks.append(args)
        try:
            return seconds_of(*args)
        finally:
            clocks.pop()

    seconds_of = tuning.seconds_of
    monkeypatch.setattr(launches, "Kernel", Noted)
    monkeypatch.setattr(tuning, "seconds_of", watched)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.backends.cudnn.allow_tf32 = True
    around = nn.Conv2d(64, 64, 5, padding=2, groups=64)
    deep = nn.Conv2d(64, 256, 3, padding=1, stride=2), nn.Conv2d(256, 64, 1)
    for dtype in (torch.half, torch.float32):
        layers = nn.Conv2d(64, 64, 3, padding=1), nn.Tanh(), around, nn.Tanh(), *deep
        network = nn.Sequential(*layers).to(gpu, dtype)
        deltaconvert.convert(network.eval(), torch.rand(1, 64, 96, 160, dtype=dtype))
        torch.backends.cudnn.allow_tf32 = False
    assert measured <= set(tuning.SOURCES)
    assert {"conv_exact.cu", "depthwise.cu"} <= measured
    if torch.cuda.get_device_capability() == (9, 0):
        assert {"conv_wgmma.cu", "octets.cu"} <= measured


@pytest.mark.gpu
def test_lists_are_made_aside_in_every_order(gpu):
    """A large input, whose mask is a launch of its own; several inputs of the graph; and thresholds behind them."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1),
    ).eval()  # fmt: skip
    video = scripted_video((2, 3, 420, 480), torch.float32)
    for threshold in (0.0, {"1": 0.05}):
        ours, theirs = (
            deltaconvert.convert(network, video[0], threshold=threshold, backend=b)
            for b in ("cuda", "reference")
        )
        for t, frame in enumerate(video):
            ours(frame), theirs(frame)
            masks = theirs.masks()
            for path, mask in ours.masks().items():
                assert torch.equal(mask, masks[path]), f"frame {t}: masks of {path} differ"


def test_without_the_drivers_bindings_launches_are_plain(monkeypatch):
    def missing(name: str):
        raise ImportError(name)

    kernels.bindings.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    assert kernels.bindings() is None
    kernels.bindings.cache_clear()


def test_when_a_list_is_complete():
    """As far as the kernels before have waited for it, when the next one may start."""

    def early(*launches: bool, joined: bool = False) -> bool:
        """Of a list that a first launch makes; launches behind it: whether they let go of the next before they wait."""
        backend = cuda.Backend()
        backend.launch(lambda *args, **options: None, (1,), 32)
        listed = cuda.Listed(torch.zeros(1), torch.zeros(1), backend.launches)
        for lets_go in launches:
            backend._joined = joined
            backend.launch(lambda *args, **options: None, (1,), 32, early=lets_go)
        return backend.is_early(listed)

    assert not early()
    assert early(False)
    assert not early(True) and not early(True, True)
    assert early(True, False) and early(False, True)
    assert early(True, joined=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("weighted", ["", " weighted"])
@torch.no_grad()
def test_comparison_in_small_kernels(gpu, weighted, dtype, monkeypatch):
    """Depthwise convolutions, pools, arithmetic and shuffles: outputs, masks and counts are those of steps that compare
    afterwards, from scratch memory; 20 streams, more threads than channels, and more channels than a warp holds."""

    class Small(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.wide = nn.Conv2d(3, channels, 1)
            self.near = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            self.far = nn.Conv2d(channels, channels, 5, 2, 2, groups=channels)

        def forward(self, x):
            x = self.wide(x).relu()
            x = (self.near(x).relu() + F.avg_pool2d(x, 3, 1, 1)).sigmoid()
            return self.far(x).relu(), F.pixel_shuffle(x, 2).relu()

    for channels, size in ((24, (61, 83)), (192, (30, 40)), (320, (9, 11))):
        network = Small(channels).to("cuda", dtype).eval()
        draw = torch.Generator("cuda").manual_seed(0)
        frames = torch.randn(6, 20, 3, *size, device="cuda", dtype=dtype, generator=draw)
        rules = {"activation": f"0.05{weighted}", "linear": f"0.02{weighted}"}
        options = {"threshold": rules, "backend": "cuda"}
        ours = deltaconvert.convert(network, frames[0], **options)
        with monkeypatch.context() as patch:
            patch.setattr(launches, "may_compare", lambda edge, lanes: False)
            apart = deltaconvert.convert(network, frames[0], **options)
        frame, dropped = frames[0], 0
        for t, share in enumerate([1, 0.3, 0.001, 0, 0.05, 1]):
            mask = torch.rand(20, 1, *size, device="cuda", generator=draw) < share
            frame = torch.where(mask, frame + 0.2 * frames[t], frame)
            dropped += assert_marked_alike(ours, apart, frame, f"frame {t}")
        assert dropped, "the threshold drops something"


@pytest.mark.gpu
def test_memory_goes_back_when_a_network_is_gone(gpu):
    """Its streams outlive it: torch waits for them when segments are unmapped."""
    program = (
        "import gc, torch, deltaconvert\n"
        "from torch import nn\n"
        "x = torch.rand(1, 3, 64, 64, device='cuda')\n"
        "for _ in range(2):\n"
        "    delta = deltaconvert.convert(nn.Conv2d(3, 8, 3).cuda().eval(), x)\n"
        "    delta(x), delta(x)\n"
        "    del delta\n"
        "    gc.collect()\n"
        "    torch.cuda.empty_cache()\n"
    )
    memory = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    subprocess.run([sys.executable, "-c", program], check=True, env=memory)

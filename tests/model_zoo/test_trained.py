"""Trained networks, against the code that their weights came with."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from oracle import scripted_video
from torch import Tensor, nn

import model_zoo
from deltaconvert.checkpoint import load_into, read_state_dict
from model_zoo.fastestdet import decode

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "zoo.py").is_file(), reason=f"no trained weights: {DATA} is not on this machine"
)


def noise(height: int, width: int, batch: int = 1, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


@cache
def reference_zoo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shared_zoo", DATA / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def trained_fastestdet() -> nn.Module:
    model = model_zoo.create("fastestdet")
    file = DATA / "weights" / "fastestdet_coco_ap05_0.2532.pth"
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
    return model


@needs_data
def test_trained_fastestdet_equals_the_reference() -> None:
    reference = reference_zoo().load("fastestdet")
    x = noise(96, 160, batch=2).sigmoid()
    with torch.inference_mode():
        torch.testing.assert_close(trained_fastestdet()(x), reference(x), rtol=1e-5, atol=1e-6)


@needs_data
def test_trained_dncnn_equals_the_reference_and_denoises() -> None:
    model = load_into(model_zoo.create("dncnn"), read_state_dict(DATA / "weights" / "dncnn_s25.pth"))
    clean = (
        scripted_video((1, 1, 40, 56), torch.float32)[0]
        .mean(3, keepdim=True)
        .expand(-1, -1, -1, 56)
        .sigmoid()
    )
    x = clean + noise(40, 56, channels=1) * 25 / 255
    with torch.inference_mode():
        y = model(x)
        torch.testing.assert_close(y, x - reference_zoo().load("dncnn_s25")(x), rtol=1e-5, atol=1e-6)
    assert (y - clean).square().mean() < 0.3 * (x - clean).square().mean()


@needs_data
def test_trained_fastestdet_finds_people_on_video() -> None:
    av = pytest.importorskip("av", reason="PyAV is needed to read the video")
    with av.open(str(DATA / "videos" / "pets_vtest_480x360.mp4")) as video:
        frame = torch.from_numpy(next(video.decode(video=0)).to_ndarray(format="rgb24"))
    with torch.inference_mode():
        output = trained_fastestdet()(model_zoo.recipe("fastestdet").prepare(frame))
    (found,) = decode(output)
    assert (found[:, 5] == 0).sum() >= 4
    (expected,) = reference_zoo().fastestdet_decode(output)
    expected[:, :4] *= torch.tensor([480.0, 352.0, 480.0, 352.0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)

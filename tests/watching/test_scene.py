"""The demo clip behaves like a still camera's: a busy part, a quiet part, and noise everywhere."""

import sys
from itertools import pairwise

import pytest
import torch

from deltaconvert import video
from deltaconvert.errors import VideoError
from deltaconvert.watching import scene

pytest.importorskip("av")
pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return scene.render_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", size=(320, 180), fps=12.5)


def test_it_is_a_real_video(clip):
    with video.read(clip) as reader:
        assert (reader.width, reader.height, reader.fps, reader.frames) == (320, 180, 12.5, 50)
        assert len(list(reader)) == 50


def test_something_moves_and_something_rests(clip):
    frames = list(video.read(clip))
    share = torch.stack([changed(a, b).float().mean() for a, b in pairwise(frames)])
    assert 0.01 < share.mean() < 0.10
    assert share.max() < 0.25
    assert (share < 0.0005).float().mean() > 0.15  # idle stretches
    assert (share > 0.01).float().mean() > 0.4


def test_the_noise_is_a_sensors():
    grey = torch.full((3, 200, 200), 128.0)
    generator = torch.Generator().manual_seed(3)
    first, second = scene._sensor(grey, generator), scene._sensor(grey, generator)
    assert 1.4 < first.float().std() < 1.65
    assert not torch.equal(first, second)
    dark = scene._sensor(torch.full((3, 200, 200), 20.0), generator)
    assert dark.float().std() < first.float().std()


def test_the_seed_decides(tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    short = {"seconds": 0.2, "size": (160, 90)}
    a, b = (decoded(scene.render_clip(tmp_path / name, **short)) for name in ("a.mp4", "b.mp4"))
    c = decoded(scene.render_clip(tmp_path / "c.mp4", seed=5, **short))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_odd_and_upright_sizes(tmp_path):
    with video.read(scene.render_clip(tmp_path / "upright.mp4", seconds=0.4, size=(91, 160))) as reader:
        assert (reader.width, reader.height) == (92, 160)


def test_without_the_photographs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(VideoError, match=r'pip install "deltaconvert\[demo\]"'):
        scene.render_clip(tmp_path / "clip.mp4")


def changed(before, after):
    """Pixels (H, W) with a channel that changed by more than 15 of 255."""
    return (after.int() - before.int()).abs().amax(2) > 15


def decoded(path):
    return torch.stack(list(video.read(path)))

"""running/monitor.py: the error of random tiles, against the dense network on the whole frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from oracle import dense, generator
from torch import Tensor, nn

import deltaconvert
import model_zoo
from deltaconvert.errors import InputError
from deltaconvert.watching.measure import Difference

THRESHOLD = {"input": 0.05, "activation": "5%"}
CAR_PARK = Path(__file__).resolve().parents[3] / "shared/data/videos/intel_car-detection.mp4"


class Maps(nn.Module):
    """Two outputs, at a quarter and at half of the frame's size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 5, 2, 2), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.down(x)
        return x, self.up(x)


def creeping(count: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> Iterator[Tensor]:
    """Every pixel moves, by less than the threshold in a frame."""
    draw = generator(seed)
    frame = torch.rand(2, 3, *size, generator=draw)
    for _ in range(count):
        yield frame
        frame = frame + 0.03 * torch.rand(frame.shape, generator=draw)


def converted(model: nn.Module, backend: str, threshold=THRESHOLD, size=(96, 128)):
    return deltaconvert.convert(model.eval(), next(creeping(1, size)), threshold=threshold, backend=backend)


def test_tiles_have_the_error_of_whole_frames(backend):
    model = Maps().eval()
    delta, difference = converted(model, backend), Difference()
    delta.monitor(every=1, tile=24)
    for frame in creeping(30):
        difference.add(delta(frame), list(dense(model, (frame,))))
    seen = delta.stats().observed
    assert seen.looks == 30 and 0 < seen.recomputed < 0.3
    assert seen.each[0] < 1e-3 < max(seen.each)  # the first frame is exact
    assert seen.relative == pytest.approx(difference.relative, rel=0.25)
    assert 0 < seen.maximum <= difference.maximum * 1.001
    assert "error observed in 30 frames" in str(delta.stats())


def test_a_tile_is_exact_wherever_it_lies(backend):
    """Without thresholds nothing differs, at odd sizes neither: the part of the frame was large enough."""
    for size in ((96, 128), (61, 83), (7, 5)):
        delta = converted(Maps(), backend, threshold=0, size=size)
        delta.monitor(every=1, tile=9)
        for frame in creeping(12, size):
            delta(frame)
        seen = delta.stats().observed
        assert seen.looks == 12 and seen.relative < 1e-3
        assert seen.recomputed < 1 or size[0] < 10


@pytest.mark.parametrize("name", ["resnet18", "fastestdet", "dncnn"])
def test_an_exact_network_shows_no_error(name):
    """A classifier depends on the whole frame; maps of others do not, at a size that is large enough."""
    torch.manual_seed(1)
    shape = (1, 1, 60, 80) if name == "dncnn" else (1, 3, 96, 128)
    delta = deltaconvert.convert(model_zoo.create(name), torch.rand(shape), backend="reference")
    delta.monitor(every=1, tile=16)
    for _ in range(3):
        delta(torch.rand(shape))
    seen = delta.stats().observed
    assert seen.looks == 3 and seen.relative < 1e-4
    assert seen.recomputed < 1 if name == "dncnn" else seen.recomputed == 1


def test_what_is_frozen_shows(backend):
    """State that nothing takes over: the error grows with the scene, in the looks and on the whole frame alike."""
    delta = converted(Maps(), backend, threshold={"input": 1e9})
    delta.monitor(every=5, tile=32)
    for frame in creeping(40):
        delta(frame)
    each = delta.stats().observed.each
    assert len(each) == 8 and each[-1] > 4 * each[0]


def test_the_seed_says_where(backend):
    def errors(seed: int) -> list[float]:
        delta.reset()
        delta.monitor(every=3, tile=16, seed=seed)
        for frame in creeping(12):
            delta(frame)
        return delta.stats().observed.each

    delta = converted(Maps(), backend)
    first = errors(0)
    assert errors(0) == pytest.approx(first, rel=1e-4) and errors(1) != pytest.approx(first, rel=1e-4)


def test_it_stops_and_leaves_no_trace(backend):
    delta, plain = converted(Maps(), backend), converted(Maps(), backend)
    assert delta.stats().observed is None
    delta.monitor(every=1)
    assert delta.stats().observed.looks == 0 and "no frame was looked at" in str(delta.stats())
    kept = [delta(frame) for frame in creeping(4)]
    delta.monitor(every=0)
    assert delta.stats().observed is None
    assert all(torch.isfinite(map).all() for pair in kept for map in pair)
    assert plain.stats().frames == 0
    for wrong in ({"every": -1}, {"every": 2.5}, {"tile": 0}, {"every": True}):
        with pytest.raises(InputError, match="it is a number from"):
            delta.monitor(**wrong)


def test_more_boxes_than_dense_are_infinitely_far():
    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nonzero(self.conv(x) > self.conv.bias)

    delta = converted(Boxes(), "cpu", threshold={"input": 1e9})
    delta.monitor(every=1)
    for frame in creeping(3):
        delta(frame - 0.5)
    seen = delta.stats().observed
    assert seen.each[0] == 0 and math.isinf(seen.relative) and seen.to_json()["relative"] is None


def test_another_size_has_its_own_tiles():
    delta = converted(Maps(), "cpu")
    delta.monitor(every=1, tile=16)
    for size in ((96, 128), (64, 96)):
        with pytest.warns(UserWarning, match="input size changed") if size == (64, 96) else nullcontext():
            for frame in creeping(3, size):
                delta(frame)
    assert delta.stats().observed.looks == 6


def test_a_broken_frame_leaves_no_trace():
    """A NaN that comes out as the dense network has it is no error, of this look or of all."""
    from deltaconvert.watching.measure import Difference

    frame, difference = torch.rand(1, 3, 12, 16), Difference()
    network = nn.Conv2d(3, 2, 3, padding=1).eval()
    delta = deltaconvert.convert(network, frame, threshold={"input": 0.1}, backend="reference")
    delta.monitor(every=1)
    broken = frame.clone()
    broken[:, 1, 4, 5] = math.nan
    for now in (frame, broken, frame + 0.05):
        difference.add(delta(now), [network(now).detach()])
    observed = delta.stats().observed
    assert 0 < observed.relative < 0.2 and 0 < difference.relative < 0.2
    assert observed.each[1] == 0 and 0 < observed.maximum < 1


@pytest.mark.skipif(not CAR_PARK.exists(), reason="needs ../shared/data")
def test_the_creeping_car_park():
    """The clip moves by 12.5 pixels, each step below the threshold: what is frozen shows, and a refresh mends it."""
    from deltaconvert import video as videos

    pytest.importorskip("av")
    clip = [frame[:256:2, :384:2].permute(2, 0, 1)[None].float() / 255 for frame in videos.read(CAR_PARK)]
    conv = nn.Conv2d(3, 8, 3, padding=1)
    seen = {}
    for refresh in (0, 10):
        model = nn.Sequential(conv, nn.ReLU()).eval()
        delta = deltaconvert.convert(
            model, clip[0], threshold={"input": 60 / 255}, gate={"refresh": refresh}, backend="cpu"
        )
        delta.monitor(every=3, tile=48)
        for frame in clip[::3]:
            delta(frame)
        each = delta.stats().observed.each
        seen[refresh] = each[: len(each) // 4], each[-len(each) // 4 :]
        assert not any(map(math.isnan, each))
    early, late = (sum(part) / len(part) for part in seen[0])
    assert late > 1.5 * early  # it gets worse
    assert sum(seen[10][1]) / len(seen[10][1]) < late / 2

"""What each setting of a gate does, and what it promises."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from gated import Alone, Input, convert
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_close, dense, edges
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError
from deltaconvert.gate import NOISE_RISE, TILE, Gate, Watch, grown, guarded, largest

CAR_PARK = Path(__file__).resolve().parents[3] / "shared/data/videos/intel_car-detection.mp4"


def density(model) -> float:
    return float(next(iter(model.masks().values())).float().mean())


def test_first_frame_and_reset_are_full(backend):
    model = convert(torch.rand(2, 3, 33, 18), {"max_density": 0.01, "smooth": 5, "noise": 4}, backend=backend)
    for _ in range(2):
        model(torch.rand(2, 3, 33, 18))
        assert density(model) == 1
        model.reset()


def test_noise_is_smoothed_away_and_motion_is_not():
    draw = torch.Generator().manual_seed(1)
    scene = torch.rand(1, 3, 64, 96, generator=draw)
    changed: dict[int, list[float]] = {}
    for smooth in (1, 5):
        model = convert(scene, {"smooth": smooth}, threshold=0.06)
        model(scene)
        for t in range(4):
            frame = scene + torch.randn(scene.shape, generator=draw) * 0.03
            frame[:, :, 20:30, 10 + t : 20 + t] = torch.rand(1, 3, 10, 10, generator=draw)
            model(frame)
            changed.setdefault(smooth, []).append(density(model))
        assert model.masks()["input_0"][0, 0, 22:28, 14:18].float().mean() > 0.6  # where it moves
    assert max(changed[5]) < 0.05 < 0.1 < min(changed[1])


@pytest.mark.parametrize("times", [1.5, 3.0])
def test_noise_above_the_threshold_is_learnt_soon(backend, times):
    """Though at first it counts as a change nearly everywhere."""
    scene = torch.rand(1, 3, 20, 24)
    model = convert(scene, {"noise": 4, "peak": 16}, threshold=0.04, backend=backend)
    for t in range(110):
        model(scene + torch.randn(scene.shape) * 0.04 * times)
        if t == 10:
            assert density(model) > 0.4
    assert density(model) < 0.1


@pytest.mark.parametrize(("times", "rise"), [(2.0, NOISE_RISE), (6.0, 0.0)])
def test_what_passes_hardly_raises_the_noise(times, rise):
    """Half the frame flickers for a while: faintly, or beyond the peak, from which nothing is learnt."""
    scene = torch.zeros(1, 3, 16, 32)
    flicker = scene.clone()
    flicker[..., :16] = 0.1 * times
    alone = Alone({"noise": 4}, scene, 0.1)
    for frame in (scene, *(flicker, scene) * 8):
        moved = alone.look(frame)
    assert moved[..., :16].all() and not moved[..., 16:].any()
    noise = alone.watch.noise[0, 0]
    assert_close(noise[:, :16], torch.full((16, 16), 16 * rise * 0.1))
    assert not noise[:, 16:].any()


def test_noise_is_learnt_for_each_pixel():
    """Pixels on the noisy side still move if they exceed their learnt noise; calm pixels follow the threshold."""
    draw = torch.Generator().manual_seed(2)
    scene = torch.rand(1, 1, 32, 64, generator=draw)
    deviation = torch.cat([torch.full((32, 32), 0.05), torch.full((32, 32), 0.002)], 1)
    plain, learnt = (convert(scene, {"noise": noise, "peak": 8}, threshold=0.04) for noise in (0, 5))
    for _ in range(80):
        frame = scene + torch.randn(scene.shape, generator=draw) * deviation
        plain(frame)
        learnt(frame)
    assert density(plain) > 0.1 and density(learnt) < 0.01
    frame = scene.clone()
    frame[:, :, 10:14, 50:54] += 0.06  # above the threshold, on the calm side
    frame[:, :, 10:14, 10:14] += 0.4  # above the peak, on the noisy side
    learnt(frame)
    mask = learnt.masks()["input_0"][0, 0]
    assert mask[10:14, 50:54].all() and mask[10:14, 10:14].all()


@given(
    st.sampled_from([1, 3, 5]),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([1.0, 2.0, 4.0]),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_nothing_stays_beyond_the_peak(smooth, noise, peak, dilate, seed):
    """Whatever is smoothed and learnt, stored values are always within `peak` thresholds of the frame."""
    draw = torch.Generator().manual_seed(seed)
    gate = Gate(smooth=smooth, noise=noise, peak=peak, dilate=dilate)
    watch = Watch(gate, (1, 2, 13, 17), torch.float64, torch.device("cpu"), 0.1)
    stored = torch.full((1, 2, 13, 17), float("nan"), dtype=torch.float64)
    frame = torch.rand(stored.shape, dtype=stored.dtype, generator=draw)
    for _ in range(6):
        frame = frame + torch.randn(frame.shape, dtype=frame.dtype, generator=draw) * 0.06
        _, mask = watch.look(frame, stored)
        stored = torch.where(mask, frame, stored)
        assert float((frame - stored).abs().max()) <= 0.1 * peak


def test_faint_pixels_come_along_with_strong_ones(backend):
    """Within `dilate` of a change, pixels that moved by more than `weak` thresholds are taken over, and no others."""
    frame = torch.full((1, 3, 20, 30), 0.5)
    model = convert(frame, {"dilate": 4, "weak": 0.3}, threshold=0.1, backend=backend)
    model(frame)
    frame = frame.clone()
    frame[:, :, 5, 5] += 0.2  # strong
    frame[:, :, 5:9, 6] += 0.05  # faint, beside it
    frame[:, :, 6, 7] += 0.02  # below `weak`
    frame[:, :, 5, 20] += 0.05  # faint, far away
    model(frame)
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[5, 5] = expected[5:9, 6] = True
    assert torch.equal(model.input_masks()[0], expected)


def test_what_is_faint_and_stays_is_found_by_averaging_over_frames(backend):
    """A step of two standard deviations is not seen in the noise of one frame, but in the mean of eight."""
    draw = torch.Generator("cpu").manual_seed(3)  # every backend sees the same noise
    scene = torch.full((1, 1, 24, 40), 0.5)
    found = {}
    for recent in (1, 8):
        # Four deviations of what is left of the noise of two frames, each averaged.
        threshold = 4 * math.sqrt(2 / recent) * 0.05 / 3
        model = convert(scene, {"smooth": 3, "recent": recent, "peak": 30.0}, threshold, backend)
        still = step = 0.0
        for t in range(30):
            noise = torch.randn(scene.shape, generator=draw, device="cpu").to(scene.device)
            frame = scene + noise * 0.05
            frame[..., 20:] += 0.08 * (t >= 10)
            model(frame)
            mask = next(iter(model.masks().values()))[0, 0]
            still += float(mask[:, :17].float().mean()) * (t > 0)
            step += float(mask[:, 23:].float().mean()) * (t >= 10)
        assert still < 0.05, f"noise alone, recent={recent}"
        found[recent] = step
    assert found[8] > 0.95 and found[1] < 0.6


@given(st.integers(1, 40), st.integers(1, 70), st.sampled_from([1, 2, 5, 30]))
def test_refresh_bounds_the_age_of_every_pixel(height, width, refresh):
    """In a scene that creeps below the threshold, each pixel is at most `refresh` frames old, without spikes."""
    shape = (1, 1, height, width)
    watch = Watch(Gate(refresh=refresh), shape, torch.float64, torch.device("cpu"), 1e3)
    stored = torch.full(shape, float("nan"), dtype=torch.float64)
    tiles = math.ceil(height / TILE) * math.ceil(width / TILE)
    for t in range(2 * refresh + 3):
        _, mask = watch.look(torch.full(shape, float(t), dtype=torch.float64), stored)
        stored = torch.where(mask, float(t), stored)
        assert float(stored.min()) > t - refresh
        if t > 0:
            assert int(mask.sum()) <= math.ceil(tiles / refresh) * TILE * TILE


def test_refresh_costs_nothing_where_nothing_moved(backend):
    frame = torch.rand(1, 3, 40, 40)
    model = convert(frame, {"refresh": 4}, backend=backend)
    for t in range(6):
        model(frame)
        assert density(model) == (t == 0)


def test_a_cut_is_a_full_frame_of_its_stream(backend):
    video = torch.rand(2, 2, 3, 24, 40)
    model = convert(video[0], {"cut": 0.5}, threshold=0.3, backend=backend)
    model(video[0])
    frame = video[0].clone()
    frame[1] = video[1][1]
    model(frame)
    mask = model.masks()["input_0"]
    assert mask[1].all() and not mask[0].any()
    # Both first frames, and this.
    assert model.stats().gates == {"input_0": {"held": 0, "cuts": 3, "waiting": 0}}


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_a_burst_stays_under_the_ceiling(backend, share):
    """After a lamp goes on, no frame takes over more than its share; the most changed tiles go first."""
    frame = torch.zeros(2, 3, 64, 80)
    model = convert(frame, {"max_density": share}, backend=backend)
    model(frame)
    lit = frame + 0.2
    lit[:, :, 16:32, 32:48] = 1.0
    seen = torch.zeros(2, 1, 64, 80, dtype=torch.bool)
    for t in range(math.ceil(1 / share) + 1):
        model(lit)
        mask = model.masks()["input_0"]
        assert float(mask.double().mean((1, 2, 3)).max()) <= share
        assert not (mask & seen).any()
        seen |= mask
        if t == 0:
            assert mask[:, :, 16:32, 32:48].all()
            waiting = model.stats().gates["input_0"]["waiting"]
            assert waiting == 2 * (20 - int(share * 20))
    assert seen.all()
    assert_close(model(lit), dense(Input(), (lit,)))


def test_of_equal_tiles_the_first_go(backend):
    """If a lamp changes every pixel by the same amount, tiles go in the order of their places, in every stream."""
    frame = torch.zeros(2, 3, 64, 80)
    model = convert(frame, {"max_density": 0.25}, backend=backend)
    model(frame)
    lit = frame + 0.5
    for t in range(4):
        model(lit)
        tiles = model.masks()["input_0"][:, 0, ::TILE, ::TILE].flatten(1)
        assert torch.equal(tiles, (torch.arange(20) // 5 == t).to(tiles.device).expand(2, -1)), f"frame {t}"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_the_largest_of_equal_ones_are_the_first(values, data):
    count = data.draw(st.integers(1, len(values)))
    order = sorted(range(len(values)), key=lambda place: (-values[place], place))
    expected = torch.zeros(len(values), dtype=torch.bool)
    expected[order[:count]] = True
    both = torch.tensor([values, values[::-1]]).double().view(2, 1, 1, -1)
    assert torch.equal(largest(both, count)[0, 0, 0], expected)


def test_what_was_never_seen_does_not_wait(backend):
    """A first frame is not under the ceiling: after it no tile has waited, and in the next burst all are equal."""
    model = convert(torch.zeros(2, 3, 64, 80), {"max_density": 0.1}, backend=backend)
    model(torch.rand(2, 3, 64, 80))
    assert model.stats().gates["input_0"]["waiting"] == 0
    model(torch.full((2, 3, 64, 80), 5.0))
    assert model.stats().gates["input_0"]["waiting"] == 2 * 18
    model.reset(0)
    model(torch.full((2, 3, 64, 80), 7.0))
    mask = model.masks()["input_0"]
    assert mask[0].all() and float(mask[1].double().mean()) == 0.1


def test_pixels_that_stay_nan_stand_still(backend):
    frame = torch.rand(1, 3, 40, 40)
    frame[0, 1, 20:23, 30] = math.nan
    model = convert(frame, {"max_density": 0.5}, backend=backend)
    model(frame)
    model(frame)
    assert not model.masks()["input_0"].any()
    model(torch.rand(1, 3, 40, 40) + 1.5)
    assert model.masks()["input_0"][0, 0, 16:32, 16:32].all(), "with its tile, beside the ceiling"


@given(st.integers(0, 50), st.floats(1.0, 4.0))
def test_no_tile_starves(seed, ratio):
    """Everything changes in every frame, some tiles `ratio` times as much as others. Even the least changed tile gets
    its turn within that many rounds."""
    draw = torch.Generator().manual_seed(seed)
    shape = (1, 1, 4 * TILE, 4 * TILE)
    watch = Watch(Gate(max_density=0.25), shape, torch.float64, torch.device("cpu"), 0.01)
    step = (1 + (ratio - 1) * torch.rand(1, 1, 4, 4, generator=draw)).double()
    step = step.repeat_interleave(TILE, 2).repeat_interleave(TILE, 3)
    stored = torch.zeros(shape, dtype=torch.float64)
    age = torch.zeros(shape)
    for t in range(40):
        frame = stored + step  # as far away again, however long it waited
        _, mask = watch.look(frame, stored)
        age = torch.where(mask, 0, age + 1)
        assert float(age.max()) <= 4 * ratio + 4, f"frame {t}"


def test_tiles_that_go_together_are_neighbours():
    """If each tile changes by another amount, those that a frame takes over still lie in few places."""
    draw, shape = torch.Generator().manual_seed(4), (1, 1, 24 * TILE, 40 * TILE)
    watch = Watch(Gate(max_density=0.1), shape, torch.float64, torch.device("cpu"), 0.01)
    frame, stored = torch.rand(shape, dtype=torch.float64, generator=draw) + 1, torch.zeros(shape).double()
    seen = torch.zeros(shape, dtype=torch.bool)
    for _ in range(9):
        _, mask = watch.look(frame, stored)
        stored = torch.where(mask, frame, stored)
        assert 0.09 < float(mask.double().mean()) <= 0.1 and not (mask & seen).any()
        seen |= mask
        assert float(grown(mask, 3 * TILE).double().mean()) < 0.5


@pytest.mark.parametrize(("seed", "share", "ratio"), [(0, 0.1, 1.0), (1, 0.1, 3.0), (2, 0.04, 2.0)])
def test_no_block_starves(seed, share, ratio):
    """As test_no_tile_starves, on a frame of many blocks."""
    draw = torch.Generator().manual_seed(seed)
    shape = (1, 1, 12 * TILE, 15 * TILE)
    watch = Watch(Gate(max_density=share), shape, torch.float64, torch.device("cpu"), 0.01)
    step = (1 + (ratio - 1) * torch.rand(1, 1, 12, 15, generator=draw)).double()
    step = step.repeat_interleave(TILE, 2).repeat_interleave(TILE, 3)
    age = torch.zeros(shape)
    for t in range(4 * math.ceil(1 / share)):
        _, mask = watch.look(step, torch.zeros(shape).double())
        age = torch.where(mask, 0, age + 1)
        assert float(age.max()) <= (ratio + 1) / share + 4, f"frame {t}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_nonfinite_pixels_leave_with_their_frame(backend, value, threshold):
    """With and without gates, the frame after them is as if they had not occurred."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2)).eval()
    frame = torch.rand(1, 3, 20, 30)
    network = network.to(frame.device)
    broken = frame.clone()
    broken[:, 1, 4, 5] = value
    for gate in (None, {"smooth": 5, "noise": 3.0}, {"nonfinite": "hold"}):
        rules = {"input": threshold, "activation": threshold}
        model = deltaconvert.convert(network, frame, threshold=rules, gate=gate, backend=backend)
        model(frame)
        out = model(broken)
        if gate == {"nonfinite": "hold"}:
            assert out.isfinite().all() and model.stats().gates["input_0"]["held"] == 1
            assert not model.masks()["input_0"].any()
        model(broken)
        assert_close(model(frame), dense(network, (frame,)), str(gate))
        assert all(edge.values.isfinite().all() for edge in edges(model).values())


def test_held_before_anything_was_seen(backend):
    frame = torch.rand(1, 3, 6, 6)
    frame[:, :, 2, 2] = float("nan")
    out = convert(frame, {"nonfinite": "hold"}, backend=backend)(frame)
    assert float(out[0, :, 2, 2].abs().sum()) == 0 and out.isfinite().all()


def test_the_gate_travels_in_the_file(tmp_path):
    frame = torch.rand(1, 3, 16, 16)
    gate = Gate(smooth=5, refresh=100, nonfinite="hold")
    model = convert(frame, gate)
    model.save(tmp_path / "gated.delta")
    back = deltaconvert.load(tmp_path / "gated.delta")
    assert back.gate == gate
    assert back.explain().rows[0].how == "smooth 5, refresh 100, nonfinite hold"
    assert back.with_thresholds(0.3, frame).gate == gate  # other thresholds, the same gate
    convert(frame, None).save(tmp_path / "plain.delta")
    assert deltaconvert.load(tmp_path / "plain.delta").gate == Gate()


def test_a_snapshot_goes_on_with_what_was_stored(backend):
    """Another model continues the stream: it learns the noise anew and sees the same changes."""
    frame = torch.rand(2, 3, 20, 20)
    ours, theirs = (convert(frame, {"noise": 2, "refresh": 50}, backend=backend) for _ in range(2))
    ours(frame)
    theirs(torch.rand(2, 3, 20, 20))
    theirs.restore(0, ours.snapshot(0))
    moved = frame.clone()
    moved[:, :, 3:5, 4:6] += 0.5
    expected = ours(moved)
    assert_close(theirs(moved)[:1], expected[:1])
    assert torch.equal(theirs.masks()["input_0"][0], ours.masks()["input_0"][0])


def test_a_gate_takes_guards_over_where_it_has_none():
    guards = Gate(smooth=5, refresh=100, max_density=0.3, nonfinite="hold")
    mine = Gate(dilate=2, refresh=50)
    assert guarded(mine, by=guards) == Gate(dilate=2, refresh=50, max_density=0.3, nonfinite="hold")


BAD = [
    ({"smooth": 4}, "odd"),
    ({"smooth": 2.5}, "smooth=2.5 is no whole number"),
    ({"noise": -1}, "deviations"),
    ({"peak": 0.5}, "at least 1"),
    ({"dilate": True}, "dilate=True is no whole number"),
    ({"cut": 0}, "share"),
    ({"max_density": 1.5}, "share"),
    ({"refresh": -3}, "frames"),
    ({"refresh": 10, "max_density": 0.05}, "give at least 20 frames"),
    ({"nonfinite": "drop"}, "pass or hold"),
    ({"sharpen": 1}, "gate has no 'sharpen': its settings are smooth"),
    ({"smoth": 5}, "did you mean 'smooth'"),
    (3, "gate=3: give settings by name"),
    ("smooth=3", r"gate='smooth=3': give settings by name, \{'smooth': 5\} or Gate\(smooth=5\)"),
]


@pytest.mark.parametrize(("gate", "message"), BAD, ids=str)
def test_bad_gates(gate, message):
    with pytest.raises(InputError, match=message):
        convert(torch.rand(1, 3, 8, 8), gate)


@pytest.mark.skipif(not CAR_PARK.exists(), reason="needs ../shared/data")
def test_a_creeping_camera_stays_inside_the_bound():
    """A car park creeps by 12.5 pixels in steps below any threshold. Stored values stay within the peak, and with a
    refresh no pixel gets older than that."""
    pytest.importorskip("av")
    from deltaconvert import video

    frames = [f[::3, ::3].permute(2, 0, 1)[None].float() for f in video.read(CAR_PARK, limit=360)]
    threshold, gate = 15.0, Gate(smooth=5, noise=3, peak=2, refresh=60)
    watch = Watch(gate, tuple(frames[0].shape), torch.float32, torch.device("cpu"), threshold)
    stored = torch.full_like(frames[0], float("nan"))
    taken = torch.zeros(1, 1, *frames[0].shape[2:])
    work = []
    for t, frame in enumerate(frames):
        _, mask = watch.look(frame, stored)
        stored = torch.where(mask, frame, stored)
        taken = torch.where(mask | (frame == stored).all(1, keepdim=True), t, taken)
        assert float((frame - stored).abs().max()) <= threshold * gate.peak
        assert float(taken.min()) > t - gate.refresh
        work.append(float(mask.float().mean()))
    assert sum(work[1:]) / len(work) < 0.2

"""DeltaModel as its users call it."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from oracle import (
    assert_close,
    assert_same_bits,
    dense,
    generator,
)
from small import SHAPE, call, conv, small, video
from torch import nn

import deltaconvert
from deltaconvert.errors import DeltaConvertError, InputError

# --- errors come before any state changes ---------------------------------------------------------------------------


BAD = {
    "rank": (lambda x: (x[0],), "4 dimensions"),
    "dtype": (lambda x: (x.float(),), "float32"),
    "number": (lambda x: (x, x), "converted for"),
    "none": (lambda x: (), "converted for"),
    "no tensor": (lambda x: (3,), "int"),
    "nesting": (lambda x: ([x],), "converted for"),
    "device": (lambda x: (x.to("meta"),), "is on meta"),
    "empty": (lambda x: (x[:0],), "is empty"),
    "name": (lambda x: ({"x": x},), "call it so, or convert it again"),
    "colours last": (lambda x: (x.permute(0, 2, 3, 1),), r"colours come last: frame.permute\(0, 3, 1, 2\)"),
    "channels": (lambda x: (x[:, :2],), "cannot run on inputs of shape 2x2x8x7"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_leave_no_trace(backend, name):
    """A model that gets bad calls between its frames continues exactly like one that does not."""
    bad, match = BAD[name]
    frames = [x + torch.randn_like(x) * 0.05 for x in video()]
    model = deltaconvert.convert(small(), frames[0], threshold=0.1, backend=backend)
    twin = copy.deepcopy(model)
    for frame in frames[:8]:
        assert_same_bits(model(frame), twin(frame), "the same model")
        before = str(model.stats())
        with pytest.raises(InputError, match=match), warnings.catch_warnings():
            warnings.simplefilter("error")
            model(*bad(frame))
        assert str(model.stats()) == before
    assert str(model.explain()) == str(twin.explain()) and model.stats().frames == 8


def test_mixed_batches_leave_no_trace(backend):
    network = call(lambda m, x, y: m.a(x) + m.a(y), a=conv())
    frame = video()[0]
    model = deltaconvert.convert(network, (frame, frame), backend=backend)
    first = model(frame, frame)
    with pytest.raises(InputError, match=r"batches of \[1, 2\]"):
        model(frame, frame[:1])
    assert_same_bits(model(frame, frame), first, "after the bad call")
    assert model.stats().work == 0


class Fuse(nn.Module):
    """Raises when told to, and cannot be traced."""

    blow = False

    def forward(self, x):
        if Fuse.blow:
            raise RuntimeError("blown")
        return x * 1 if x.mean() > 1e9 else x * 2


def test_an_exception_in_mid_frame(backend):
    """Half of the frame was stored; the next frame must not assume that the other half saw it."""
    network = call(lambda m, x: m.b(m.a(x) + m.fuse(x)[:, :1]), a=conv(), b=conv(4, 2), fuse=Fuse())
    frames = video()
    model = deltaconvert.convert(network, frames[0], backend=backend)
    for t, frame in enumerate(frames):
        if t in (2, 3, 9):
            Fuse.blow = True
            try:
                with pytest.raises(RuntimeError, match="blown"):
                    model(frame)  # the same frame comes again below, so that the input does not change
            finally:
                Fuse.blow = False
        assert_close(model(frame), dense(network, [frame]), f"frame {t}")


# --- sizes, streams, statistics -------------------------------------------------------------------------------------


def test_a_new_size_plans_once_and_says_so(backend):
    network = small()
    model = deltaconvert.convert(network, video()[0], backend=backend)
    others = [video((2, 3, 5, 9)), video((3, 3, 8, 7)), video()]
    for turn in range(2):
        for frames in others:
            new = turn == 0 and frames[0].shape != SHAPE
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for t, frame in enumerate(frames[:4]):
                    assert_close(model(frame), dense(network, [frame]), f"{tuple(frame.shape)} frame {t}")
                    assert t or model.stats().work == 1, "the state starts over"
            said = [str(w.message) for w in caught if "input size" in str(w.message)]
            assert len(said) == (1 if new else 0), said
    assert model.streams == 2


def test_relative_thresholds_refer_to_the_example(backend):
    frames = video()
    model = deltaconvert.convert(small(), frames[0], threshold="10%", backend=backend)
    placed = dict(model.thresholds)
    with pytest.warns(UserWarning, match="input size changed from 2x3x8x7 to 2x3x16x7"):
        model(torch.cat([frames[0], frames[0]], 2) * 100)
    assert model.thresholds == placed


def test_a_reset_touches_its_streams_alone(backend):
    network, frames = small(), video((3, 3, 8, 7))
    model = deltaconvert.convert(network, frames[0], threshold=10.0, backend=backend)
    first = model(frames[0])
    moved = frames[0] + 1
    assert_same_bits(model(moved), first, "below the threshold")
    model.reset(1)
    after = model(moved)
    expected = dense(network, [moved])
    assert_same_bits(after[[0, 2]], first[[0, 2]], "streams that were not reset")
    assert_close(after[1], expected[1])
    assert model.masks()["0"][1].all() and not model.masks()["0"][[0, 2]].any()
    model.reset()
    assert_close(model(moved), expected)
    for bad in (3, -1, True, "0", 1.0):
        with pytest.raises(InputError, match="there is no stream"):
            model.reset(bad)


def test_stats_by_hand():
    """One pixel through a 3x3 and a 1x1 convolution on a map of 6x6."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 1)).eval()
    frame = torch.rand(1, 1, 6, 6)
    model = deltaconvert.convert(network, frame, backend="reference")
    assert model.stats().frames == 0 and model.stats().work == 0
    model(frame)
    dense_macs = 36 * (2 * 9) + 36 * (2 * 3)
    stats = model.stats()
    assert (stats.frames, stats.work, stats.macs_done, stats.macs_dense) == (1, 1.0, dense_macs, dense_macs)
    frame = frame.clone()
    frame[0, 0, 2, 3] += 1
    model(frame)
    stats = model.stats()
    layers = {layer.path: layer for layer in stats.layers}
    assert layers["input_0"].density == pytest.approx(1 / 36) and layers["input_0"].computed == 1
    first, last = layers["0"], layers["2"]
    assert (first.computed, first.macs_done, first.macs_skipped) == (9 / 36, 9 * 18, 27 * 18)
    assert (last.computed, last.density, last.macs_done) == (9 / 36, 9 / 36, 9 * 6)
    assert (first.total_macs_done, first.total_macs_skipped) == (36 * 18 + 9 * 18, 27 * 18)
    assert first.mean_density == pytest.approx((1 + 9 / 36) / 2)
    assert stats.work == pytest.approx(0.25) and stats.mean_work == pytest.approx(0.625)
    assert first.state_bytes == 2 * 36 * 4 + 36 and stats.state_bytes == sum(
        e.state_bytes for e in stats.layers
    )
    assert "2 frames" in str(stats) and "25.0%" in str(stats)
    model = model.with_thresholds({"activation": 1e9}, frame)  # computed, and then dropped
    model(frame)
    frame = frame.clone()
    frame[0, 0, 2, 3] += 1
    model(frame)
    first, last = (layer for layer in model.stats().layers if layer.path in ("0", "2"))
    assert (first.computed, first.density, first.macs_done) == (9 / 36, 0, 9 * 18)
    assert (last.computed, last.density, last.macs_done) == (0, 0, 0)


def test_stats_of_an_island():
    network = call(lambda m, x: m.a(x).flatten(1) @ m.a(x).flatten(1).t(), a=nn.Conv2d(3, 2, 1)).float()
    frame = torch.rand(1, 3, 4, 4)
    model = deltaconvert.convert(network, frame, backend="reference")
    model(frame)
    product = next(layer for layer in model.stats().layers if layer.operator == "matmul")
    assert (product.macs_done, product.density) == (32, 1.0)


def test_explain_has_shares_thresholds_and_reasons(backend):
    network = call(lambda m, x: (m.b(F.relu(m.a(x))), m.a(x).cumsum(1)), a=conv(), b=conv(4, 2))
    model = deltaconvert.convert(network, video()[0], threshold=0.25, backend=backend)
    text, rows = str(model.explain()), model.explain().rows
    assert sum(row.share for row in rows) == pytest.approx(1) == model.explain().delta_share
    assert [row.path for row in model.explain().islands] == ["cumsum"]
    assert {row.path: row.threshold for row in rows if row.kind == "sparsify"} == {"input_0": 0.25}
    assert (
        "dense: deltaconvert has no operator for cumsum" in text
        and "Conv2d + relu" in text
        and "1 node stays dense" in text
    )
    assert all(row.state_bytes > 0 for row in rows if row.kind in ("delta", "sparsify"))
    assert model.explain().to_json()[0]["kind"] == rows[0].kind


def test_masks_are_copies(backend):
    frames = video()
    model = deltaconvert.convert(small(), frames[0], backend=backend)
    model(frames[0])
    assert all(mask.all() and mask.dtype == torch.bool for mask in model.masks().values())
    model(frames[1])
    for mask in model.masks().values():
        mask.fill_(True)
    assert not any(mask.any() for mask in model.masks().values())


# --- how it is called -----------------------------------------------------------------------------------------------


def test_callers_gradient_modes(backend):
    """One model is called in all modes; outputs are ordinary tensors without a graph."""
    network, frames = small(), video()
    with torch.inference_mode():
        model = deltaconvert.convert(network, frames[0].clone(), backend=backend)
    modes = [torch.inference_mode, torch.no_grad, torch.enable_grad]
    for t, frame in enumerate(frames):
        with modes[t % 3]():
            output = model(frame.clone().requires_grad_(t % 3 == 2))
        assert not output.requires_grad and not output.is_inference()
        assert_close(output, dense(network, [frame]), f"frame {t}")


def test_autocast_around_it(backend):
    """A converted network ignores autocast and keeps its types; converting under autocast warns of that."""
    network, frames = small().float(), [frame.float() for frame in video()]
    kind = frames[0].device.type
    before = deltaconvert.convert(network, frames[0], backend=backend)
    with torch.autocast(kind, torch.bfloat16), pytest.warns(UserWarning, match="autocast is on"):
        inside = deltaconvert.convert(network, frames[0], backend=backend)
    for t, frame in enumerate(frames):
        with torch.autocast(kind, torch.bfloat16, enabled=t % 2 == 0):
            outputs = before(frame), inside(frame)
        for output in outputs:
            assert_close(output, dense(network, [frame]), f"frame {t}")


def test_frames_may_be_views(backend):
    network, frames = small(), video()
    model = deltaconvert.convert(network, frames[0], backend=backend)
    for t, frame in enumerate(frames):
        strided = (
            frame.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if t % 2 else frame.flip(3).flip(3)
        )
        assert_close(model(strided), dense(network, [frame]), f"frame {t}")


def test_copies_and_two_models_share_no_state(backend):
    network, frames = small(), video()
    model = deltaconvert.convert(network, frames[0], backend=backend)
    other = deltaconvert.convert(network, frames[0], backend=backend)
    model(frames[0])
    twin = copy.deepcopy(model)
    for t, frame in enumerate(frames):
        assert_close(model(frame), dense(network, [frame]), f"model, frame {t}")
        assert_close(twin(frame * 2), dense(network, [frame * 2]), f"copy, frame {t}")
        assert_close(other(frame - 1), dense(network, [frame - 1]), f"other, frame {t}")
        for each in (model, twin, other):
            changed = any(mask.any() for mask in each.masks().values())
            assert changed == (t not in (1, len(frames) - 1) and not (each is model and t == 0)), f"frame {t}"


def test_the_model_is_a_snapshot(backend):
    """Training the dense network does not change a model that was converted before."""
    network, frames = small(), video()
    model = deltaconvert.convert(network, frames[0], backend=backend)
    expected = dense(network, [frames[0]])
    with torch.no_grad():
        network[0].weight.add_(1)
    assert_close(model(frames[0]), expected)


def test_train_is_refused(backend):
    model = deltaconvert.convert(small(), video()[0], backend=backend)
    assert not model.training and model.eval() is model
    with pytest.raises(DeltaConvertError, match="cannot be trained"):
        model.train()


def test_what_would_change_a_converted_network_is_refused(backend):
    frame = video()[0]
    model = deltaconvert.convert(small(), frame, backend=backend)
    first = model(frame)
    other = deltaconvert.convert(small(), frame, backend=backend)
    for change in (
        lambda: model.half(),
        lambda: model.to("meta"),
        lambda: model.to("cuda:99"),  # of which torch says that it is not there
        lambda: nn.Sequential(model).float(),
        lambda: model.load_state_dict(other.state_dict()),
        lambda: nn.Sequential(model).load_state_dict(nn.Sequential(other).state_dict()),
        lambda: pickle.dumps(model),
    ):
        with pytest.raises(DeltaConvertError, match=r"convert it again|save\(path\)"):
            change()
    assert model.to(frame.device).double().eval() is model
    nn.Sequential(model).load_state_dict(nn.Sequential(model).state_dict())  # a part of a larger checkpoint
    model.reset()
    assert_same_bits(model(frame), first, "after what was refused")


def test_a_dense_network_where_a_converted_one_is_wanted(tmp_path):
    dense_one = small()
    for call_it in (
        lambda: deltaconvert.calibrate(dense_one, video()),
        lambda: deltaconvert.StreamPool(dense_one),
        lambda: deltaconvert.export_onnx(dense_one, tmp_path / "x.onnx"),
    ):
        with pytest.raises(InputError, match=r"not a Sequential: deltaconvert\.convert\("):
            call_it()


def test_threads_take_turns(backend):
    """Each thread's outputs are right, whatever frames the other thread has shown in between."""
    network, frames = small(), [torch.randn_like(video()[0]) for _ in range(24)]
    model, wrong = deltaconvert.convert(network, frames[0], backend=backend), []
    expected = [dense(network, [frame]) for frame in frames]

    def run(part):
        for place in range(part, len(frames), 2):
            if not torch.allclose(model(frames[place]), expected[place], atol=1e-10):
                wrong.append(place)

    threads = [threading.Thread(target=run, args=(part,)) for part in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and model.stats().frames == len(frames)


def test_the_sign_of_zero(backend):
    network = call(lambda m, x: 1 / x)
    frames = [torch.zeros(1, 1, 2, 3, dtype=torch.float64), -torch.zeros(1, 1, 2, 3, dtype=torch.float64)]
    model = deltaconvert.convert(network, torch.ones_like(frames[0]), backend=backend)
    for frame in frames * 2:
        assert torch.equal(model(frame), 1 / frame)


def test_nan_and_infinity_come_and_go_as_dense(backend):
    """With NaN and infinities in frames, also in the first, outputs equal dense, also once they are gone again."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval().double()
    frames = [x.clone() for x in video()]
    frames[0][0] = float("nan")
    frames[1][0] = float("nan")
    frames[2][:, :, 2] = float("nan")
    frames[4][:, 1, 3] = float("inf")
    frames[5][:, :, :, 0] = -float("inf")
    model = deltaconvert.convert(network, frames[3], backend=backend)
    for t, frame in enumerate(frames):
        assert_close(model(frame.clone()), dense(network, [frame]), f"frame {t}")


def test_a_thousand_frames(backend):
    """Noise and a drifting patch: the error stays within what thresholds admit, and does not grow.

    Bound: a change of at most t in each input of a convolution moves its output by at most t times the largest sum of
    the absolute weights of a filter; a threshold adds its own t after each activation (ReLU does not stretch).
    """
    torch.manual_seed(3)
    network, threshold = small(), 0.1
    gains = [float(part.weight.abs().sum((1, 2, 3)).max()) for part in (network[0], network[2])]
    bound = (threshold * gains[0] + threshold) * gains[1]
    draw = generator(4)
    base = torch.randn(1, 3, 10, 10, dtype=torch.float64, generator=draw)
    model = deltaconvert.convert(network, base, threshold=threshold, backend=backend)
    errors, work = [], []
    for t in range(1000):
        base[..., t % 8 : t % 8 + 2, (t // 8) % 8] += 0.03
        frame = base + torch.randn(base.shape, dtype=torch.float64, generator=draw) * 0.03
        with torch.no_grad():
            errors.append(float((model(frame) - network(frame)).abs().max()))
        work.append(model.stats().work if t % 50 == 0 else 0)
    assert max(errors) <= bound
    assert max(errors) > 1e-3 and min(work[50::50]) < 0.9, "nothing was dropped: the test shows nothing"
    assert max(errors[-200:]) <= max(errors[1:200]) * 1.1

"""convert and DeltaModel as their users see them."""

from __future__ import annotations

import copy
import pickle
import re
import threading
import warnings
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from oracle import (
    Call,
    anatomy,
    assert_close,
    assert_same_bits,
    assert_untouched,
    clones,
    dense,
    generator,
    scripted_video,
    scripted_videos,
)
from torch import nn

import deltaconvert
from deltaconvert.errors import DeltaConvertError, InputError, UnsupportedModel

SHAPE = (2, 3, 8, 7)
Pair = namedtuple("Pair", "first second")


def conv(inner=3, outer=4, **options):
    return nn.Conv2d(inner, outer, 3, padding=1, **options)


def small():
    return nn.Sequential(conv(), nn.ReLU(), conv(4, 2)).eval().double()


def call(function, **parts):
    return Call(function, **parts).eval().double()


def video(shape=SHAPE, seed=0):
    return scripted_video(shape, torch.float64, seed)


def check(network, backend, shapes=(SHAPE,), **options):
    """Equal to dense over the scripted video, and the network is as it was."""
    before = anatomy(network)
    calls = scripted_videos(shapes, torch.float64)
    model = deltaconvert.convert(network, calls[0], backend=backend, **options)
    for t, frames in enumerate(calls):
        assert_close(model(*clones(frames)), dense(network, frames), f"frame {t}")
    assert_untouched(network, before)
    return model


# --- what goes in and comes out -------------------------------------------------------------------------------------


def test_nested_inputs(backend):
    network = call(
        lambda m, batch: m.a(batch["maps"][0]) * batch["gain"] + m.b(batch["maps"][1]), a=conv(), b=conv()
    )
    one, two = video(), video(seed=1)
    model = deltaconvert.convert(network, ({"maps": [one[0], two[0]], "gain": 2.0},), backend=backend)
    for a, b in zip(one, two, strict=True):
        batch = {"maps": [a, b], "gain": 2.0}
        assert_close(model(batch), network(batch))
    with pytest.raises(InputError, match="converted for"):
        model({"maps": [one[0]], "gain": 2.0})
    with pytest.raises(InputError, match=r"constant 2.0"):
        model({"maps": [one[0], two[0]], "gain": 3.0})


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, image, *, other=None, scale=1):
        y = self.conv(image) * scale
        return y if other is None else y + other


def test_keyword_inputs(backend):
    network = Keywords().eval().double()
    frames = video()
    model = deltaconvert.convert(
        network, {"image": frames[0], "other": frames[0].mean((1,), keepdim=True)}, backend=backend
    )
    for frame in frames:
        other = frame.mean((1,), keepdim=True)
        assert_close(model(image=frame, other=other), network(image=frame, other=other))
    with pytest.raises(InputError, match="converted for"):
        model(frames[0])


OUTPUTS = {
    "tuple": lambda m, x: (m.a(x), m.b(x)),
    "list in dict": lambda m, x: {"a": [m.a(x), {"b": m.b(x)}], "c": m.a(x).relu()},
    "namedtuple": lambda m, x: Pair(m.a(x), m.b(x)),
    "numbers and None": lambda m, x: (m.a(x), None, 3, "name"),
    "the input": lambda m, x: (x, m.a(x), x),
    "the same twice": lambda m, x: (lambda y: (y, y, y.relu()))(m.a(x)),
    "a constant": lambda m, x: (m.a(x), m.anchors, m.a.weight),
    "a view of the input": lambda m, x: (x[:, :1], m.a(x)),
    "sizes": lambda m, x: (m.a(x), x.shape[2], {"width": x.size(3)}),
    "what chunk gives": lambda m, x: m.a(x).chunk(2, 1),
    "what max gives": lambda m, x: m.a(x).max(1),
    "integers": lambda m, x: m.a(x).argmax(1),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_nested_outputs(backend, name):
    network = call(OUTPUTS[name], a=conv(), b=conv(), anchors=torch.arange(4.0))
    check(network, backend)


def test_outputs_are_the_callers(backend):
    """Nothing that the caller does to them reaches a later frame, and no later frame writes to them."""
    network = call(
        lambda m, x: (m.a(x), m.a(x).flatten(1), m.anchors, m.a(x)), a=conv(), anchors=torch.arange(4.0)
    )
    frames = video()
    model = deltaconvert.convert(network, frames[0], backend=backend)
    for frame in frames:
        outputs = model(frame)
        assert_close(outputs, dense(network, [frame]))
        kept = [x.clone() for x in outputs]
        model(frame + 1)
        assert all(torch.equal(a, b) for a, b in zip(outputs, kept, strict=True))
        for tensor in outputs:
            tensor.fill_(float("nan"))


def test_frames_written_where_they_are_read(backend):
    """Several inputs, of which one stays as it was; a size that changes has buffers of its own."""
    network = call(lambda m, x, y: m.a(x) + m.b(y)[:, :, None, None], a=conv(), b=nn.Linear(5, 4))
    vector = torch.randn(2, 5).double()
    model = deltaconvert.convert(network, (video()[0], vector), backend=backend)
    model(video()[0], vector)
    buffers = model.frame_buffers()
    assert [(x.shape, x.dtype) for x in buffers] == [(x.shape, x.dtype) for x in (video()[0], vector)]
    buffers[1].copy_(vector)
    for frame in video():
        buffers[0].copy_(frame)
        assert_close(model(*buffers), dense(network, [frame, vector]))
    smaller = video()[0][..., 1:].contiguous()
    with pytest.warns(UserWarning, match="the input size changed"):
        model(smaller, vector)
    assert model.frame_buffers()[0].shape == smaller.shape


def test_several_inputs(backend):
    network = call(lambda m, x, y: m.a(x) + m.b(y)[:, :, None, None], a=conv(), b=nn.Linear(5, 4))
    model = deltaconvert.convert(network, (video()[0], torch.randn(2, 5).double()), backend=backend)
    for frame in video():
        vector = torch.randn(2, 5).double()
        assert_close(model(frame, vector), dense(network, [frame, vector]))


# --- what networks do ------------------------------------------------------------------------------------------------


def test_shared_modules(backend):
    """One ReLU at three sites, one head on five scales: every call site has a state of its own."""

    def run(m, x):
        scales = [m.relu(m.stem(x))]
        for _ in range(4):
            scales.append(m.relu(m.down(scales[-1])))
        return [m.head(s) for s in scales]

    network = call(run, stem=conv(), relu=nn.ReLU(), down=conv(4, 4, stride=2), head=conv(4, 2))
    model = check(network, backend, [(1, 3, 19, 17)])
    assert len([row for row in model.explain().rows if row.path.startswith("head")]) >= 5


IN_PLACE = {
    "x += y": lambda m, x: iadd(m.a(x), m.b(x)),
    "relu_ read before and after": lambda m, x: (lambda y: (lambda before: before + m.r(y) + y)(y * 2))(
        m.a(x)
    ),
    "F.relu_": lambda m, x: (lambda y: F.relu_(y) + y)(m.a(x)),
    "method": lambda m, x: (lambda y: y.mul_(2).add_(1) + y)(m.a(x)),
    "inplace twice": lambda m, x: m.r(m.r(m.a(x)).neg()),
    "skip around an in-place module": lambda m, x: (lambda y: m.b2(m.r(y)) + y)(m.a(x)),
    "on the frame itself": lambda m, x: m.a(m.r(x)),
    "x += y under another name": lambda m, x: augmented(m.a(x), m.b(x)),
    "a size that grows": lambda m, x: grown(m.a(x)),
    "parts of a chunk": lambda m, x: chunked(m.a(x).chunk(2, 1)),
    "parts of a chunk, taken late": lambda m, x: late(m.a(x).chunk(2, 1)),
    "a part, then the whole": lambda m, x: (lambda y: (written(y[:, :1]), y.relu())[1])(m.a(x)),
    "a part of a part": lambda m, x: (lambda y: (y[:, 1:][:, 0, 2:].sigmoid_(), y.relu())[1])(m.a(x)),
    "a part twice": lambda m, x: (lambda y, v: (v.mul_(2), v.add_(1), y + 1)[2])(*whole_and_part(m.a(x))),
    "a part and the whole": lambda m, x: (lambda y, v: (v.mul_(2), y.relu_(), y + 1)[2])(
        *whole_and_part(m.a(x))
    ),
    "items": lambda m, x: items(m.a(x), m.b(x)),
    "slices apart": lambda m, x: chunked((lambda y: (y[:, :2], y[:, 2:]))(m.a(x))),
}


def iadd(a, b):
    a += b
    return a.relu() + a


def augmented(y, x):
    r = F.relu_(y)
    r += x
    s = r
    s *= 2
    s -= x
    s /= 3
    return r + y


def whole_and_part(y):
    return y, y[:, 1:3, 2:]


def items(y, x):
    y[:, :2] *= 2
    y[:, 2:, 1:-1] = x[:, :2, 2:].relu()
    y[..., ::2] = 0.5
    y[:, 0] = y[:, 1].tanh()
    y[y < -1] = -1
    y[x > 1] += 1
    y[:, -1, 0] -= x[:, 0, -1]
    y[:, [0, 2]] = y[:, 1:3]
    y[:, 3].zero_()
    y[:, :1, 1:].copy_(x[:, :1, :-1])
    x.fill_(0.5)
    out = torch.zeros_like(x)
    out[:, :, :-1] = y[:, :, 1:]
    return y, out


def grown(x):
    height, width = x.shape[2:]
    start = height
    height += 1
    width *= 2
    x += height
    return F.interpolate(x, size=(height, width)) + start


def chunked(parts):
    a, b = parts
    a += b
    return torch.cat((a, b, a), 1)


def late(parts):
    a = parts[0]
    a += 1
    return torch.cat((a, parts[1]), 1)


AUGMENTED_VIEWS = {
    "the whole, then a part": lambda m, x: (lambda y, v: (written(y), v.relu())[1])(
        *(lambda y: (y, y[:, :1]))(m.a(x))
    ),
    "the same part of a chunk": lambda m, x: (lambda t: (written(t[0]), t[-2].relu())[1])(m.a(x).chunk(2, 1)),
}


def written(x):
    x += 1
    return x


@pytest.mark.parametrize("name", AUGMENTED_VIEWS)
def test_augmented_writes_to_views_that_are_read(backend, name):
    """torch.export sees who reads what is written; a module without convolutions runs whole instead."""
    model = check(call(AUGMENTED_VIEWS[name], a=conv()), backend)
    assert model.info["capture"].startswith("captured by torch.export")
    inner = call(lambda m, x: AUGMENTED_VIEWS[name](m, x), a=nn.Identity())
    model = check(call(lambda m, x: m.inner(m.a(x)).sigmoid(), inner=inner, a=conv()), backend)
    assert [row.path for row in model.explain().islands] == ["inner"]


def test_sizes_that_grow_do_not_hide_why_a_frame_does_not_fit(backend):
    with pytest.raises(InputError, match="does not run on the example"):
        deltaconvert.convert(call(IN_PLACE["a size that grows"], a=conv(4)), video()[0], backend=backend)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_means_what_torch_means(backend, name):
    network = call(IN_PLACE[name], a=conv(), b=conv(), b2=conv(4, 4), r=nn.ReLU(inplace=True))
    check(network, backend)


class Branching(nn.Module):
    """Control flow on values: cannot be traced."""

    def forward(self, x):
        return x * 2 if x.mean() > 0 else x - 1


class Several(nn.Module):
    def forward(self, x):
        return {"a": x * 2, "b": [x + 1]} if x.mean() > 1e9 else {"a": x, "b": [x - 1]}


class WritesInPlace(nn.Module):
    def forward(self, x):
        if x.mean() > 1e9:
            return x
        x.mul_(2)
        return x + 1


def beneath(x):
    """An island that changes by the first two rows alone: where others change, it does not."""
    return F.pad(x[:, :, :2].cumsum(3), (0, 0, 0, x.shape[2] - 2))


ISLANDS = {
    "an unknown function": (lambda m, x: m.b(m.a(x).cumsum(1)), "no operator for cumsum"),
    "an unknown module": (lambda m, x: m.b(m.norm(m.a(x))), "no operator for rrelu"),
    "an untraceable module": (lambda m, x: m.b(m.branch(m.a(x))), "cannot be traced"),
    "an untraceable module's dict": (lambda m, x: m.several(m.a(x)), "cannot be traced"),
    "between islands": (lambda m, x: m.branch(m.a(x.cumsum(3)).cumsum(2)), "no operator for cumsum"),
    "behind one that waits": (
        lambda m, x: m.b(m.branch(m.a(x)).sigmoid() + m.a(beneath(x))),
        "cannot be traced",
    ),
    "the head": (lambda m, x: m.a(x).flatten(1).cumsum(1), "no operator for cumsum"),
    "a recurrent one": (lambda m, x: m.lstm(m.a(x).flatten(2))[0], "no operator for lstm"),
    "a module that writes to its input": (lambda m, x: m.writes(m.a(x)), "cannot be traced"),
}


@pytest.mark.parametrize("name", ISLANDS)
def test_what_is_unknown_stays_dense_and_right(backend, name):
    function, reason = ISLANDS[name]
    parts = {
        "a": conv(), "b": conv(4, 2), "norm": nn.RReLU(), "branch": Branching(), "several": Several(),
        "lstm": nn.LSTM(56, 5, batch_first=True), "writes": WritesInPlace(),
    }  # fmt: skip
    model = check(call(function, **parts), backend)
    assert any(reason in (row.reason or "") for row in model.explain().islands), model.explain()
    assert all(row.reason != "unknown" for row in model.explain().islands)


def test_a_write_that_others_read_makes_its_module_an_island(backend):
    """The module around the reader and the writer runs whole, so that the write is seen."""
    inner = call(lambda m, x: (lambda y: m.writes(y) + y.relu())(m.a(x)), a=conv(), writes=WritesInPlace())
    model = check(call(lambda m, x: m.b(m.inner(x)), inner=inner, b=conv(4, 2)), backend)
    assert any("writes in place" in (row.reason or "") for row in model.explain().islands)
    alone = check(inner, backend)
    assert any("writes in place" in (row.reason or "") for row in alone.explain().islands)


def test_writes_without_another_spelling(backend):
    inner = call(lambda m, x: (lambda y: (torch.neg(y, out=y), y.relu())[1])(m.a(x)), a=conv())
    model = check(call(lambda m, x: m.c(m.inner(x)), inner=inner, c=conv(4, 2)), backend)
    assert (
        model.info["capture"].startswith("captured by torch.export")
        and "writes in place" in model.info["capture"]
    )


def test_a_part_called_operators(backend):
    network = call(
        lambda m, x: m.operators.conv(m.conv(x)), conv=conv(), operators=nn.ModuleDict({"conv": conv(4, 4)})
    )
    check(network, backend)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        if x.mean() > 0:  # the line that the message names
            return self.conv(x)
        return x


def test_untraceable_root(backend):
    """It runs as it was, around its convolution; without one there is nothing to convert."""
    message = r"(?s)Untraceable\.forward.*test_convert\.py:\d+.*if x\.mean\(\) > 0.*leaves="
    network = Untraceable().eval()
    model = deltaconvert.convert(network, torch.ones(1, 3, 8, 8), backend=backend)
    (island,) = model.explain().islands
    assert re.search(message, island.reason)
    network.conv = nn.Identity().eval()
    with pytest.raises(UnsupportedModel, match=message):
        deltaconvert.convert(network, torch.zeros(1, 3, 8, 8), backend=backend)


def test_random_networks_are_refused(backend):
    with pytest.raises(UnsupportedModel, match="random"):
        deltaconvert.convert(call(lambda m, x: x + torch.randn(1)), video()[0], backend=backend)


def test_leaves_and_keep_dense(backend):
    network = nn.Sequential(small(), nn.Conv2d(2, 2, 1), nn.ReLU()).eval().double()
    model = check(network, backend, leaves=[nn.Sequential])
    assert "Sequential" in [row.operator for row in model.explain().islands]
    model = check(network, backend, leaves=["0"])
    assert [row.path for row in model.explain().islands] == ["0"]
    with pytest.raises(InputError, match="is a text"):
        deltaconvert.convert(network, video()[0], backend=backend, keep_dense="0.*")
    model = check(network, backend, keep_dense=["0.*"])
    reasons = {row.path: row.reason for row in model.explain().islands}
    assert set(reasons) == {"0.0", "0.1", "0.2"} and set(reasons.values()) == {"keep_dense names it"}


# --- errors come before any state changes ----------------------------------------------------------------------------


def test_what_convert_refuses(backend):
    def refused(match, model, example, **options):
        with pytest.raises(InputError, match=match):
            deltaconvert.convert(model, example, **{"backend": backend, **options})

    frame = video()[0]
    refused("training mode", nn.Sequential(conv()).double(), frame)
    partly = small()
    partly[1].train()
    refused("its part 1 is", partly, frame)
    refused("give an nn.Module", lambda x: x, frame)
    refused("tuple without a tensor", small(), ())
    refused(r"ndarray without a tensor.*torch\.from_numpy", small(), video()[0].cpu().numpy())
    refused("0 has no weight yet", nn.Sequential(nn.LazyConv2d(4, 3)).eval(), frame)
    refused("is empty", small(), frame[:0])
    refused("spread over", small(), frame.to("meta"))
    refused("does not run on the example", small(), frame[:, :2])
    refused("does not run on the example", small(), frame.float())
    refused("batches of", call(lambda m, x, y: x + y), (frame, frame[:1]))
    refused("no backend 'gpu'", small(), frame, backend="gpu")
    refused("leaves is a text", small(), frame, leaves="0")
    refused("leaves: 'nope' names no node", small(), frame, leaves=["nope"])
    refused("leaves has a Conv2d", small(), frame, leaves=[conv()])
    refused(r"torch\.rand\(1, 3", small(), tuple(frame.shape))
    refused("a tuple is several", small(), [frame])
    refused("a program of TorchScript", torch.jit.script(small()), frame)
    refused("converted already", deltaconvert.convert(small(), frame, backend=backend), frame)


BAD = {
    "rank": (lambda x: (x[0],), "4 dimensions"),
    "dtype": (lambda x: (x.float(),), "float32"),
    "number": (lambda x: (x, x), "converted for"),
    "none": (lambda x: (), "converted for"),
    "no tensor": (lambda x: (3,), "int"),
    "nesting": (lambda x: ([x],), "converted for"),
    "device": (lambda x: (x.to("meta"),), "is on meta"),
    "empty": (lambda x: (x[:0],), "is empty"),
    "channels": (lambda x: (x[:, :2],), "cannot run on inputs of shape 2x2x8x7"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_leave_no_trace(backend, name):
    """A model that gets them between its frames continues exactly as one that does not."""
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
    """Raises when told to; nobody can trace it."""

    blow = False

    def forward(self, x):
        if Fuse.blow:
            raise RuntimeError("blown")
        return x * 1 if x.mean() > 1e9 else x * 2


def test_an_exception_in_mid_frame(backend):
    """Half the frame was stored; the next frame must not take it for what the other half has seen."""
    network = call(lambda m, x: m.b(m.a(x) + m.fuse(x)[:, :1]), a=conv(), b=conv(4, 2), fuse=Fuse())
    frames = video()
    model = deltaconvert.convert(network, frames[0], backend=backend)
    for t, frame in enumerate(frames):
        if t in (2, 3, 9):
            Fuse.blow = True
            try:
                with pytest.raises(RuntimeError, match="blown"):
                    model(frame)  # the same frame again below: the input will not have changed
            finally:
                Fuse.blow = False
        assert_close(model(frame), dense(network, [frame]), f"frame {t}")


# --- sizes, streams, statistics ---------------------------------------------------------------------------------------


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


def test_reset(backend):
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


def test_explain(backend):
    network = call(lambda m, x: (m.b(F.relu(m.a(x))), m.a(x).cumsum(1)), a=conv(), b=conv(4, 2))
    model = deltaconvert.convert(network, video()[0], threshold=0.25, backend=backend)
    text, rows = str(model.explain()), model.explain().rows
    assert sum(row.share for row in rows) == pytest.approx(
        1
    ) and model.explain().delta_share == pytest.approx(1)
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


# --- thresholds ----------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.gate_conv, self.last = conv(), nn.ReLU(), nn.Conv2d(4, 4, 1), conv(4, 2)

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = x * self.gate_conv(x.mean((2, 3), keepdim=True)).sigmoid()
        return F.relu(self.last(x))


def placed(threshold, network=None):
    network = (network or Gated()).eval().double()
    model = deltaconvert.convert(network, video()[0], threshold=threshold, backend="reference")
    return model.thresholds


def test_one_number():
    found = placed(0.2)
    assert found["input_0"] == found["stem"] == found["last"] == 0.2
    assert set(found) == {"input_0", "stem", "gate_conv", "last"}
    assert 0 < found["gate_conv"] < 0.02  # 1 % of a sigmoid
    assert placed(0.0) == {"input_0": 0.0}


def test_rules_by_kind_and_path():
    torch.manual_seed(0)
    found = placed({"input": 0.1, "activation": "10%", "gate": 0.5, "la*": 0.3, "stem": 0.7})
    assert found == {"input_0": 0.1, "gate_conv": 0.5, "last": 0.3, "stem": 0.7}
    later = placed({"activation": 0.1, "*": 0.2, "l*": 0.3, "stem": 0.4})
    assert later == {"input_0": 0.2, "stem": 0.4, "gate_conv": 0.2, "last": 0.3}


class Opaque(nn.Module):
    """Cannot be traced, and works."""

    def __init__(self):
        super().__init__()
        self.conv = conv(4, 4)

    def forward(self, x):
        return self.conv(x) if x.mean() < 1e9 else x


class Named(nn.Module):
    """conv1 + bn1 + relu1 make one node; then parts whose names are those of kinds."""

    def __init__(self, norm=None):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv(), nn.BatchNorm2d(4), nn.ReLU()
        self.input, self.gate, self.block = (
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            nn.Sequential(conv(4, 4), nn.ReLU()),
        )
        self.norm = norm or nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.input(self.relu1(self.bn1(self.conv1(x))))
        return self.block(self.norm(self.gate(x).relu()))


def test_rules_by_the_name_of_any_part():
    for name in ("conv1", "bn1", "relu1", "re*1", "*bn*"):
        assert placed({name: 0.5}, Named()) == {**placed({}, Named()), "conv1": 0.5}, name
    exact = {"relu1": 0.1, "conv1": 0.2, "*1": 0.3}
    assert placed(exact, Named())["conv1"] == 0.2, (
        "a path before a pattern, a later path before an earlier one"
    )
    for name in ("norm", "sparsify(norm)"):
        assert placed({name: 0.4}, Named(Opaque()))["sparsify(norm)"] == 0.4


def test_keep_dense_by_the_name_of_any_part():
    model = deltaconvert.convert(Named().eval().double(), video()[0], keep_dense=["bn1"])
    assert {row.path: row.reason for row in model.explain().islands}["conv1"] == "keep_dense names it"


def test_kinds_go_before_nodes_of_their_names(tmp_path):
    """For good: also in the rules that other sizes and files go by."""
    rules = {"input": 0.1, "activation": 0.2, "[i]nput": 0.3, "[g]ate": 0.4, "g[a]te": "50%", "gate": 7.0}
    network = Named().eval().double()
    model = deltaconvert.convert(network, video()[0], threshold=rules)
    first = dict(model.thresholds)
    assert (first["input_0"], first["conv1"], first["input"]) == (0.1, 0.2, 0.3) and 0 < first["gate"] < 7
    with pytest.warns(UserWarning, match="input size changed"):
        model(torch.rand(1, 3, 9, 9).double() * 9)
    assert model.thresholds == first
    model.save(tmp_path / "named.delta")
    assert deltaconvert.load(tmp_path / "named.delta").thresholds == first
    assert "input" not in placed({"input": 0.1}, Named()), "the frame, not the part called input"


UNKNOWN = {
    "conv_1": r"threshold: 'conv_1' names no node of the network: did you mean 'conv1'",
    "layer9.*": r"threshold: 'layer9\.\*' names no node",
    "Input": r"did you mean .*'input",
    "block": r"its parts are block\.\*",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_rules_that_mean_no_node(backend, name, tmp_path):
    network, frame = Named().eval().double(), video()[0]
    with pytest.raises(InputError, match=UNKNOWN[name]):
        deltaconvert.convert(network, frame, threshold={"conv1": 0.1, name: 0.2}, backend=backend)
    with pytest.raises(InputError, match=UNKNOWN[name].replace("threshold", "keep_dense")):
        deltaconvert.convert(network, frame, keep_dense=["conv1", name], backend=backend)
    model = deltaconvert.convert(network, frame, threshold={"bn1": 0.1}, backend=backend)
    model.save(tmp_path / "named.delta")
    for each in (model, deltaconvert.load(tmp_path / "named.delta", backend=backend, device=frame.device)):
        with pytest.raises(InputError, match=UNKNOWN[name]):
            each.with_thresholds({name: 0.2}, frame)
        assert each.with_thresholds({"relu1": 0.2, "bn1": 0.3}, frame).thresholds["conv1"] == 0.3
    with pytest.raises(InputError, match="3 names no node"):
        deltaconvert.convert(network, frame, threshold={3: 0.2}, backend=backend)


def test_rules_may_name_what_another_size_has(backend):
    """A map comes back from an island at one size only: the rules of one size still go for the other."""

    def run(m, x):
        return m.c(m.a(x).cumsum(1) * m.b(x))

    network = call(run, a=conv(), b=conv(), c=conv(4, 2))
    model = deltaconvert.convert(network, video()[0], threshold="10%", backend=backend)
    assert "sparsify(cumsum)" in model.thresholds
    rules = {**model.rules, "a_name_of_another_size": 0.5}
    model._plans.thresholds = type(model._plans.thresholds)(rules)
    small = torch.rand(2, 3, 5, 5).double()
    assert model.with_thresholds(dict(model.rules), small).thresholds == model.thresholds
    with pytest.warns(UserWarning, match="input size changed"):
        model(small)


def test_paths_are_unambiguous(backend):
    """A row for each path: of an island and the sparsify behind it, of a node and the densify behind it."""
    network, frame = Named(Opaque()).eval().double(), video()[0]
    model = deltaconvert.convert(network, frame, threshold=0.1, backend=backend)
    model(frame)
    paths = [row.path for row in model.explain().rows]
    assert len(set(paths)) == len(paths) and {"norm", "sparsify(norm)", "gate", "densify(gate)"} <= set(paths)
    layers = [layer.path for layer in model.stats().layers]
    assert len(set(layers)) == len(layers) and "norm" in layers
    programs = [model._program, *(part._program for part in model._parts.values())]
    assert len(model.masks()) == sum(len(p.edges) for p in programs) and set(model.masks()) <= set(layers)
    assert set(model.thresholds) <= set(model.masks())


def test_percentages_are_of_the_mean_magnitude():
    torch.manual_seed(0)
    network = Gated().eval().double()
    frame = video()[0]
    scale = float(F.relu(network.stem(frame)).abs().mean())
    found = placed({"input": "50%", "activation": "10%"}, network)
    assert found["stem"] == pytest.approx(scale / 10, rel=1e-5)
    assert found["input_0"] == pytest.approx(float(frame.abs().mean()) / 2, rel=1e-5)


@pytest.mark.parametrize(
    "bad", [-0.1, float("nan"), float("inf"), "ten", "5 px", "-1%", True, None, {"input": -1}, [0.1]]
)
def test_bad_thresholds(bad):
    with pytest.raises(InputError, match="is no threshold"):
        deltaconvert.convert(small(), video()[0], threshold=bad)


# --- how it is called ----------------------------------------------------------------------------------------------


def test_callers_gradient_modes(backend):
    """One model through all of them: outputs are ordinary tensors without a graph."""
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
    """A converted network keeps its types, and says so where it is converted."""
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
    """Training the dense network further does not reach a model that was converted before."""
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
    """Each frame of each thread is right, whatever the other one has shown the network in between."""
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


def test_special_values(backend):
    """NaN and infinities in the frame, from the first frame on: as dense, and gone when they are gone."""
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
    """Noise and a drifting patch at a threshold. The error is bounded by what thresholds admit, and does not grow.

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

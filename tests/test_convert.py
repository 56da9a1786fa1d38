"""convert: whatever a network takes, returns and does, the converted one does the same."""

from __future__ import annotations

import re
import threading
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from oracle import (
    anatomy,
    assert_close,
    assert_untouched,
    clones,
    dense,
    scripted_videos,
)
from small import SHAPE, call, conv, small, video
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError, UnsupportedModel

Pair = namedtuple("Pair", "first second")


def check(network, backend, shapes=(SHAPE,), **options):
    """The conversion equals dense over the scripted video, and the network is left as it was."""
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
    "all sizes": lambda m, x: (m.a(x), x.shape, x.size()[2:]),
    "what chunk gives": lambda m, x: m.a(x).chunk(2, 1),
    "what max gives": lambda m, x: m.a(x).max(1),
    "integers": lambda m, x: m.a(x).argmax(1),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_nested_outputs(backend, name):
    network = call(OUTPUTS[name], a=conv(), b=conv(), anchors=torch.arange(4.0))
    check(network, backend)


class Spreads(nn.Module):
    """Cannot be traced, since it branches on values; it calls numel() of a torch.Size."""

    def forward(self, x, size, shape):
        return x / size.numel() if x.max() < 1e9 else x + shape[1:].numel()


def test_sizes_stay_sizes(backend):
    """An untraced module gets a torch.Size, which has numel(), and not a tuple."""
    network = call(lambda m, x: m.whole(m.a(x), x.shape[2:], shape=x.shape).relu(), a=conv(), whole=Spreads())
    check(network, backend)
    sizes = deltaconvert.convert(call(OUTPUTS["all sizes"], a=conv()), video()[0], backend=backend)(
        video()[0]
    )[1:]
    assert all(type(size) is torch.Size for size in sizes)


def test_outputs_are_the_callers(backend):
    """What the caller does to outputs reaches no later frame, and no later frame writes to them."""
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


def test_outputs_that_are_lent(backend):
    """lend() gives what the call would, frame after frame; if outputs are only read, the state stays right."""
    network = call(
        lambda m, x: (m.a(x), m.a(x).flatten(1), m.anchors, x.shape[2], x),
        a=conv(),
        anchors=torch.arange(4.0),
    )
    frames = video()
    model = deltaconvert.convert(network, frames[0], backend=backend)
    owner = deltaconvert.convert(network, frames[0], backend=backend)
    for frame in (*frames, frames[-1]):
        lent, own = model.lend(frame), owner(frame)
        assert lent[3] == own[3]
        assert all(torch.equal(a, b) for a, b in zip(lent, own, strict=True) if isinstance(a, torch.Tensor))
    with pytest.raises(InputError, match="input 0"):
        model.lend(frames[0].cpu().numpy())
    assert_close(model.lend(frames[0])[0], dense(network, [frames[0]])[0])


def test_frames_written_where_they_are_read(backend):
    """With several inputs, of which one stays as it was; another size has buffers of its own."""
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


# --- what networks do -----------------------------------------------------------------------------------------------


def test_every_call_of_a_shared_module_has_its_own_state(backend):
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
    """torch.export sees which views read what was written; a module without convolutions runs whole instead."""
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
    """An island that depends on the first two rows alone: changes elsewhere do not change it."""
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
    """The module that contains both reader and writer runs whole, so that the reader sees the write."""
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


def test_an_untraceable_root_runs_around_its_parts(backend):
    """The root runs as it was, around its converted convolution; without a convolution there is nothing to convert."""
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


# --- what is refused ------------------------------------------------------------------------------------------------


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
    refused(r"load_network\(path\)", "net.onnx", frame)
    refused("load_state_dict", small().state_dict(), frame)
    refused(r"not its class: Conv2d\(", nn.Conv2d, frame)
    refused("tuple without a tensor", small(), ())
    refused(r"ndarray without a tensor.*torch\.from_numpy", small(), video()[0].cpu().numpy())
    refused("0 has no weight yet", nn.Sequential(nn.LazyConv2d(4, 3)).eval(), frame)
    refused("is empty", small(), frame[:0])
    refused("spread over", small(), frame.to("meta"))
    refused("does not run on the example", small(), frame[:, :2])
    refused(r"weights are torch.float64: frame.to\(torch.float64\)", small(), frame.float())
    refused(r"come last: frame.permute\(0, 3, 1, 2\)", small(), frame.permute(0, 2, 3, 1))
    refused(r"come last: frame.permute\(2, 0, 1\)\[None\]", small(), frame[0].permute(1, 2, 0))
    refused("batches of", call(lambda m, x, y: x + y), (frame, frame[:1]))
    refused("no backend 'gpu'", small(), frame, backend="gpu")
    refused("leaves is a text", small(), frame, leaves="0")
    refused("leaves: 'nope' names no node", small(), frame, leaves=["nope"])
    refused("leaves has a Conv2d", small(), frame, leaves=[conv()])
    refused(r"torch\.rand\(1, 3", small(), tuple(frame.shape))
    refused("a tuple is several", small(), [frame])
    refused("a program of TorchScript", torch.jit.script(small()), frame)
    holds_a_lock = small()
    holds_a_lock.lock = threading.Lock()
    refused("cannot be copied.*lock", holds_a_lock, frame)
    refused("converted already", deltaconvert.convert(small(), frame, backend=backend), frame)

"""tracing/writes.py: whose memory a call gives where its name does not tell, and which type a write has."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, assert_close, leaves, scripted_video
from torch import nn

import deltaconvert

SHAPE = (2, 4, 13, 11)
# What is written to is the frame itself.
SAME = {
    "identity": lambda self, x: self.part(x),
    "dropout": lambda self, x: F.dropout(x, 0.5, False),
    "dropout of maps": lambda self, x: F.dropout2d(x, 0.5, False),
    "alpha dropout": lambda self, x: F.alpha_dropout(x, 0.5, False),
    "to": lambda self, x: x.to(x.dtype),
    "type_as": lambda self, x: x.type_as(x),
    "data": lambda self, x: x.data,
    "real": lambda self, x: x.real,
    "broadcast_to": lambda self, x: x.broadcast_to(x.shape),
}
# It is a view of it, or of a part.
VIEWS = {
    "transposed": lambda self, x: x.mT,
    "swapdims": lambda self, x: x.swapdims(2, 3),
    "moveaxis": lambda self, x: x.moveaxis(1, 2),
    "unflatten": lambda self, x: x.unflatten(1, (2, 2)),
    "ravel": lambda self, x: x.ravel(),
    "as_strided": lambda self, x: x.as_strided((2, 4), (572, 143)),
    "split_with_sizes": lambda self, x: x.split_with_sizes((1, 3), 1)[0],
    "hsplit": lambda self, x: x.hsplit((2,))[1],
    "unsafe_chunk": lambda self, x: x.unsafe_chunk(2, 1)[0],
}


def network(handed_on, part=None):
    """The example is positive, so that relu_ changes nothing of it."""

    def made(self, x):
        handed_on(self, x).relu_()
        return self.last(x)

    torch.manual_seed(0)
    return Call(made, part=part or nn.Identity(), last=nn.Conv2d(4, 2, 3, padding=1)).eval().double()


def check(dense, backend):
    model = deltaconvert.convert(dense, torch.rand(SHAPE, dtype=torch.float64), backend=backend)
    for t, frame in enumerate(scripted_video(SHAPE)[:6]):
        with torch.no_grad():
            assert_close(model(frame), dense(frame.clone()), f"frame {t}")
    return model


@pytest.mark.parametrize("name", SAME)
def test_what_hands_its_input_on_is_its_input(backend, name):
    model = check(network(SAME[name]), backend)
    assert model.info["capture"] == "traced symbolically"
    assert not [row for row in model.explain().islands if row.path == "last"]


@pytest.mark.parametrize("part", [nn.Dropout(), nn.Dropout2d(), nn.Flatten(), nn.Unflatten(1, (2, 2))])
def test_modules_that_hand_their_input_on(backend, part):
    check(network(SAME["identity"], part), backend)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_shows_its_writes(backend, name):
    check(network(VIEWS[name]), backend)


TO_OTHER_TYPES = {
    "+=": lambda m, a, b: operator.iadd(a.half(), b),
    "mul_": lambda m, a, b: a.half().mul_(b) + 1,
    "of a part": lambda m, a, b: m.halve(a.half(), b),
    "of a whole that is read": lambda m, a, b: m.raise_both(a.half(), b),
    "of integers": lambda m, a, b: a.int().add_(b.long()),
    "gt_": lambda m, a, b: a.gt_(b),
    "le_ of a number": lambda m, a, b: -a.le_(0.5) * b,
    "gt_ of integers": lambda m, a, b: b * (a * 5).int().gt_(2),
    "gt_ of truth values": lambda m, a, b: b * (a > 0.5).gt_(b > 0.5),
    "logical_not_": lambda m, a, b: -a.ge_(b).logical_not_(),
}


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("name", TO_OTHER_TYPES)
def test_a_write_keeps_the_type(backend, name, exported):
    def halve(x, y):
        x[:, :2] *= y[:, :1]
        return x

    def raise_both(x, y):
        z = x.view(x.shape)
        z.add_(y)
        return x, z

    class Network(Call):
        def forward(self, a, b):
            if exported and a.sum().dim() == 0 and [*a]:  # torch.fx cannot iterate over images
                a = a * 1
            return super().forward(a, b)

    network = Network(
        TO_OTHER_TYPES[name], halve=halve, raise_both=raise_both, conv=nn.Conv2d(3, 3, 1)
    ).eval()
    a, b = torch.rand(2, 3, 5, 6), torch.rand(2, 3, 5, 6)
    model = deltaconvert.convert(network, (a, b), backend=backend)
    assert "as it was" not in model.info["capture"]
    assert not exported or "torch.export" in model.info["capture"]
    for frames in ((a, b), (a, b.flip(3)), (-a, b)):
        for ours, theirs in zip(leaves(model(*frames)), leaves(network(*frames)), strict=True):
            assert ours.dtype == theirs.dtype
            assert_close(ours.double(), theirs.double())


def masked(self, y, x):
    mask = torch.zeros(4)
    mask[0] = x.amax() > 0.9
    return mask.view(1, 4, 1, 1)


def of_the_same(self, y, x):
    one = other = torch.zeros(1, 4, 1, 1)
    one += x.amax() > 0.9
    return other


def added(self, y, x):
    level = torch.zeros(1, 4, 1, 1)
    level.add_(x.amax() > 0.9)
    return level


def overwritten(self, y, x):
    self.room.copy_(y.mean((2, 3), keepdim=True)[:1])
    self.room.clamp_(max=0.1)
    return self.room


@pytest.mark.parametrize("between", [masked, of_the_same, added, overwritten])
def test_constants_that_are_written_to(between, backend):
    """The example is dark, and shows nothing of it. torch.fx sees the write alone, and not who reads it; torch.export
    sees both."""
    torch.manual_seed(0)
    dense = Call(
        lambda self, x: self.last(between(self, self.first(x), x) + self.first(x)),
        first=nn.Conv2d(4, 4, 3, padding=1),
        last=nn.Conv2d(4, 2, 3, padding=1),
    )
    dense.register_buffer("room", torch.zeros(1, 4, 1, 1))
    dense.eval().double()
    frames = [frame * (0.1 if t < 2 else 2) for t, frame in enumerate(scripted_video(SHAPE)[:5])]
    model = deltaconvert.convert(dense, frames[0], backend=backend)
    assert "torch.export" in model.info["capture"] and "which is no map" in model.info["capture"]
    for t, frame in enumerate(frames):
        with torch.no_grad():
            assert_close(model(frame), dense(frame), f"frame {t}")


class Bright(nn.Module):
    """Copies the mean of bright maps to a buffer of another module, or assigns it to its own."""

    def __init__(self, other=None):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.other = [other]  # not a part of it

    def forward(self, y):
        if y.max() > 0.9:
            mean = y.mean((0, 2, 3))
            if self.other[0] is None:
                self.seen = mean
            else:
                self.other[0].running_mean.copy_(mean)
        return y


def play(dense, backend):
    frames = [frame * (2 if t in (2, 3) else 0.1) for t, frame in enumerate(scripted_video(SHAPE)[:5])]
    apart = copy.deepcopy(dense)
    model = deltaconvert.convert(dense, frames[0], backend=backend)
    for t, frame in enumerate(frames):
        with torch.no_grad():
            assert_close(model(frame), apart(frame), f"frame {t}")
    return model


@pytest.mark.parametrize("shared", [False, True])
def test_a_memory_that_others_read_stays_in_one_island(shared, backend):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    dense = Call(
        lambda self, x: self.last(self.norm(self.part(self.first(x))) + self.part.seen.view(1, 4, 1, 1)),
        first=nn.Conv2d(4, 4, 3, padding=1),
        part=Bright(norm if shared else None),
        norm=norm,
        last=nn.Conv2d(4, 2, 3, padding=1),
    )
    play(dense.eval().double(), backend)


class Settings:
    def __init__(self):
        self.gain = 1


def appends(self):
    self.log.append(1)


def updates(self):
    self.facts.update(gain=3)


def sets_an_item(self):
    facts = self.facts
    facts["gain"] = 3


def sets_an_attribute(self):
    self.settings.gain = 3


def sets_one_of_the_network(self):
    self.network[0].gain = 3


def scales_a_weight(self):
    with torch.no_grad():
        self.network[0].last.weight.mul_(0.5)


def scales_uncounted(self):
    self.network[0].last.weight.data.mul_(0.5)


class WritesAtTimes(nn.Module):
    def __init__(self, write, network):
        super().__init__()
        self.write, self.network = write, [network]
        self.log, self.facts, self.settings = network.log, network.facts, network.settings

    def forward(self, y):
        if y.max() > 0.9:
            self.write(self)
        return y


def gain_of(self):
    return self.gain + len(self.log) + self.facts.get("gain", 0) + self.settings.gain


def with_shared_places(write):
    torch.manual_seed(0)
    dense = Call(
        lambda self, x: self.last(self.part(self.first(x))) * gain_of(self),
        first=nn.Conv2d(4, 4, 3, padding=1),
        last=nn.Conv2d(4, 2, 3, padding=1),
    )
    dense.gain, dense.log, dense.facts, dense.settings = 1, [], {}, Settings()
    dense.part = WritesAtTimes(write, dense)
    return dense.eval().double()


PLACES = [
    appends,
    updates,
    sets_an_item,
    sets_an_attribute,
    sets_one_of_the_network,
    scales_a_weight,
    scales_uncounted,
]


@pytest.mark.parametrize("write", PLACES)
def test_a_place_that_others_have_stays_in_one_island(write):
    assert "and others have that" in play(with_shared_places(write), "reference").info["capture"]


def only_reads(self):
    return self.facts.get("gain", 0) + self.settings.gain


def test_settings_that_all_share_may_be_read():
    model = play(with_shared_places(only_reads), "reference")
    assert model.info["capture"].startswith("traced symbolically, around part")

"""tracing/remembers.py, keeps.py, stale.py: what a call writes and a later one reads is in no graph.

The example is dark. Most of these networks write, or show what they wrote, in bright frames or after some calls.
"""

import copy
import itertools
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import Call, assert_close, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError
from deltaconvert.tracing.keeps import kept_by
from deltaconvert.tracing.stale import Read, stale
from deltaconvert.tracing.twin import twin

SHAPE = (1, 3, 13, 11)
BRIGHT = (2, 3, 6)


def frames():
    return [frame * (1.5 if t in BRIGHT else 0.1) for t, frame in enumerate(scripted_video(SHAPE)[:9])]


def network(between, **state):
    """Two convolutions, and between them a function of (network, map, frame). state: what the network has besides."""
    torch.manual_seed(0)
    made = Call(
        lambda self, x: self.last(between(self, self.first(x), x)),
        first=nn.Conv2d(3, 4, 3, padding=1),
        last=nn.Conv2d(4, 2, 3, padding=1),
        norm=nn.BatchNorm2d(4),
    )
    made.register_buffer("seen", torch.zeros(1, 4, 1, 1))
    for name, value in copy.deepcopy(state).items():
        setattr(made, name, value)
    return made.eval().double()


def convert(dense, video):
    return deltaconvert.convert(dense, video[0], backend="reference")


def check(dense):
    """The conversion gives what the network gives, in each of its calls."""
    video, apart = frames(), twin(dense)
    model = convert(dense, video)
    for t, frame in enumerate(video):
        with torch.no_grad():
            assert_close(model(frame), apart(frame), f"frame {t}")
    return model


def mean(y):
    return y.mean((2, 3), keepdim=True)


def is_bright(x):
    return x.max() > 0.9


MEMORIES = {}


def remembers(**state):
    def note(function):
        MEMORIES[function.__name__] = function, state
        return function

    return note


@remembers(calls=0)
def counts(self, y, x):
    self.calls += 1
    return y * 2 if self.calls > 5 else y


@remembers(calls=0)
def copies_at_times(self, y, x):
    self.calls += 1
    if self.calls % 4 == 0:
        self.seen.copy_(mean(y))
    return y + self.seen


@remembers(calls=torch.zeros((), dtype=torch.long))
def counts_in_a_tensor(self, y, x):
    self.calls += 1
    return torch.where(self.calls > 5, y * 2, y)


@remembers(stage=0)
def warms_up(self, y, x):
    self.stage = min(self.stage + 1, 4)
    return y * 2 if self.stage == 4 else y


@remembers()
def copies_the_bright(self, y, x):
    self.seen.copy_(torch.where(is_bright(x), mean(y), self.seen))
    return y + self.seen


@remembers()
def assigns_the_bright(self, y, x):
    self.seen = torch.where(is_bright(x), mean(y), self.seen)
    return y + self.seen


@remembers()
def adds_the_bright(self, y, x):
    self.seen += mean(y) * is_bright(x)
    return y + self.seen


@remembers()
def fills_where_it_is_bright(self, y, x):
    self.seen.masked_fill_(is_bright(x), 3.0)
    return y + self.seen


@remembers()
def sets_a_part(self, y, x):
    self.seen[:, :2] = torch.where(is_bright(x), mean(y)[:, :2], self.seen[:, :2])
    return y + self.seen


@remembers()
def writes_by_a_view(self, y, x):
    self.seen.view(-1).add_(mean(y).flatten() * is_bright(x))
    return y + self.seen


@remembers()
def writes_where_torch_does_not_count(self, y, x):
    self.seen.data.add_(mean(y) * is_bright(x))
    return y + self.seen


@remembers(gain=nn.Parameter(torch.ones(())))
def trains(self, y, x):
    self.gain.data.add_(0.1 * is_bright(x))
    return y * self.gain


@remembers()
def moves_a_norm(self, y, x):
    self.norm.running_mean.mul_(0.9).add_(0.1 * y.mean((0, 2, 3)) * is_bright(x))
    return self.norm(y)


@remembers(peak=torch.tensor(0.9))
def the_largest_so_far(self, y, x):
    self.peak.clamp_(min=x.max())
    return y / self.peak


@remembers(flag=False)
def a_flag(self, y, x):
    self.flag = self.flag or is_bright(x)
    return y * (1 + self.flag)


@remembers(first_mean=None)
def the_first_frame(self, y, x):
    if self.first_mean is None:
        self.first_mean = x.mean()
    return y + F.relu((x.mean() - self.first_mean).abs() - 0.01)


@remembers(calls=0)
def a_buffer_made_in_forward(self, y, x):
    self.calls += 1
    if self.calls > 3:
        self.register_buffer("seen", torch.ones_like(mean(y)))
    return y + self.seen


@remembers(state={"n": 0})
def a_dict(self, y, x):
    self.state["n"] += 1
    return y * 2 if self.state["n"] > 4 else y


@remembers(log=[])
def a_list(self, y, x):
    self.log.append(1)
    return y * 2 if len(self.log) > 4 else y


@remembers(before=deque(maxlen=4))
def maps_before(self, y, x):
    older = self.before[0] if len(self.before) == 4 else 0
    self.before.append(y)
    return y + older


@remembers(growing=torch.zeros(1))
def a_size(self, y, x):
    self.growing = torch.cat([self.growing, self.growing[:1]])
    return y * 2 if self.growing.shape[0] > 4 else y


class Counter:
    __slots__ = ("n",)

    def __init__(self):
        self.n = 0


@remembers(counter=Counter())
def an_object(self, y, x):
    self.counter.n += 1
    return y * 2 if self.counter.n > 4 else y


@remembers(turns=itertools.count())
def an_iterator(self, y, x):
    return y * 2 if next(self.turns) > 3 else y


@remembers(numbers=np.zeros(1))
def an_array(self, y, x):
    self.numbers += 1
    return y * 2 if self.numbers[0] > 4 else y


@remembers()
def another_module(self, y, x):
    self.norm.calls = getattr(self.norm, "calls", 0) + 1
    return y * 2 if self.norm.calls > 4 else y


@remembers(ring=torch.zeros(4, 4), at=0)
def a_ring(self, y, x):
    self.ring[self.at] = mean(y).flatten() * is_bright(x)
    self.at = (self.at + 1) % 4
    return y + self.ring.mean(0).view(1, 4, 1, 1)


def count_for(self, y):
    with torch.no_grad():
        for place in range(2):
            self.calls += 1
            if self.calls > 8 + place:
                self.seen[:, place] = mean(y)[:, place]


@remembers(calls=0)
def in_a_helper(self, y, x):
    count_for(self, y)
    return y + self.seen


@pytest.mark.parametrize("name", MEMORIES)
def test_what_a_later_call_reads_is_not_lost(name):
    between, state = MEMORIES[name]
    model = check(network(between, **state))
    assert model.info["capture"].startswith("runs as it was, around its parts")
    if name not in ("writes_where_torch_does_not_count", "trains"):  # the example does not show these
        assert "remembers: what a call writes to" in model.info["capture"]


# ---- what the first call alone writes


class Doubles(nn.Module):
    """Bright maps."""

    def forward(self, y):
        return y * 2 if y.max() > 0.9 else y


@pytest.fixture(params=["if", "item", "module", "limit", "another limit", "torch.export"])
def ready(request):
    """After its first call each does something with bright frames."""

    def between(self, y, x):
        was_ready, limit, self.ready, self.limit = self.ready, self.limit, True, 1.5
        if request.param == "if" and was_ready and is_bright(x):
            self.seen.copy_(mean(y))
        if request.param == "item" and was_ready and x.max().item() > 0.9:
            y = y * 2
        if request.param == "module" and was_ready:
            y = self.part(y)
        if request.param == "limit" and was_ready:
            y = y.clamp(max=1.5)
        if request.param == "another limit":
            y = y.clamp(max=limit)
        if request.param == "torch.export":
            y = torch.cat(list(y.chunk(2, 1)) if len(x) else [], 1)
            y = y.clamp(max=1.5) if was_ready else y
        return y + self.seen

    return network(between, ready=False, limit=100.0, part=Doubles())


def test_a_flag_of_the_first_call(ready):
    """The graph of the first call is not that of later ones."""
    assert check(ready).info["capture"].startswith("runs as it was, around its parts")


def keeps_a_grid(self, y, x):
    if self.grid is None:
        self.grid = torch.linspace(0, 1, x.shape[3], dtype=x.dtype)
    return y * self.grid.mean() + self.grid.shape[0]


def keeps_a_count(self, y, x):
    if self.grid is None:
        self.grid = x.shape[0]
    return y * self.grid


def keeps_the_largest(self, y, x):
    if self.grid is None or self.grid.shape[0] < x.shape[3]:
        self.grid = torch.linspace(0, 1, x.shape[3], dtype=x.dtype)
    return y * self.grid[: x.shape[3]]


@pytest.mark.parametrize("between", [keeps_a_grid, keeps_a_count, keeps_the_largest])
def test_a_grid_that_is_not_made_anew_holds_for_its_size(between):
    dense = network(between, grid=None)
    model = check(dense)
    wide = torch.rand(1, 3, 13, 15, dtype=torch.float64)
    with pytest.raises(InputError, match="convert it once for each size"):
        model(wide)
    assert "for this size alone" in model.info["capture"]
    with torch.no_grad():
        assert_close(convert(dense, [wide])(wide), twin(dense)(wide))


class Hidden(nn.Module):
    """A convolutional LSTM that keeps its state."""

    def __init__(self):
        super().__init__()
        self.gates, self.state = nn.Conv2d(8, 16, 3, padding=1), None

    def forward(self, x):
        hidden, cell = self.state or (torch.zeros_like(x), torch.zeros_like(x))
        let_in, keep, let_out, new = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
        cell = keep.sigmoid() * cell + let_in.sigmoid() * new.tanh()
        self.state = let_out.sigmoid() * cell.tanh(), cell
        return self.state[0]


def test_a_hidden_state_stays_in_its_module():
    model = check(network(lambda self, y, x: self.hidden(y), hidden=Hidden()))
    assert {row.path for row in model.explain().rows if row.kind == "delta" and row.macs} == {
        "first",
        "hidden.gates",
        "last",
    }


class Hook:
    def __init__(self):
        self.n = 0

    def __call__(self, module, inputs, output):
        self.n += 1
        return output * 2 if self.n > 4 else output


def on_its_module(module, inputs, output):
    module.n = getattr(module, "n", 0) + 1
    return output * 2 if module.n > 4 else output


@pytest.mark.parametrize("hook", [Hook(), on_its_module])
def test_hooks_that_remember(hook):
    dense = network(lambda self, y, x: y)
    dense.first.register_forward_hook(hook)
    assert "remembers: what a call writes to first." in check(dense).info["capture"]


SHARED = {"n": 0}
number = 0


def in_a_global(self, y, x):
    global number
    number += 1
    return y * 2 if number > 4 else y


def in_a_global_dict(self, y, x):
    SHARED["n"] += 1
    return y * 2 if SHARED["n"] > 4 else y


def in_a_class(self, y, x):
    Hook.calls = getattr(Hook, "calls", 0) + 1
    return y * 2 if Hook.calls > 4 else y


def in_a_default(self, y, x, calls=[0]):  # noqa: B006
    calls[0] += 1
    return y * 2 if calls[0] > 4 else y


def around_a_function():
    n = 0

    def between(self, y, x):
        nonlocal n
        n += 1
        return y * 2 if n > 4 else y

    return between


def one_of_several():
    """Functions of one name, each with a variable of one name."""

    def counting(limit):
        n = 0

        def count():
            nonlocal n
            n += limit < 9
            return n > limit

        return count

    counts = [counting(9), counting(4)]
    return lambda self, y, x: y * 2 if [count() for count in counts][1] else y


@pytest.mark.parametrize(
    "between, name",
    [
        (in_a_global, "number"),
        (in_a_global_dict, r"SHARED\['n'\]"),
        (in_a_class, "Hook.calls"),
        (in_a_default, r"in_a_default.*"),
        (around_a_function(), "between: n"),
        (one_of_several(), "count: n'"),
    ],
)
def test_what_copies_share_is_refused(between, name, monkeypatch):
    monkeypatch.setattr(Hook, "calls", 0, raising=False)
    dense, video = network(between), frames()
    before = {name: slot.mark for name, slot in kept_by(dense).items()}
    for _ in range(2):
        with pytest.raises(
            InputError, match=rf"remembers what a call writes to {name}, outside of its modules"
        ):
            convert(dense, video)
        after = {name: slot.mark for name, slot in kept_by(dense).items()}
        assert after == before, "converting it counted"


# ---- what may be written


HARMLESS = {}


def harmless(**state):
    def note(function):
        HARMLESS[function.__name__] = function, state
        return function

    return note


@harmless(calls=0, turns=torch.zeros((), dtype=torch.long), energy=torch.zeros(()))
def only_counts(self, y, x):
    self.calls += 1
    self.turns += 1
    self.energy.mul_(0.9).add_(1)
    return y


@harmless(log=[])
def keeps_a_log(self, y, x):
    self.log.append(x.shape[3])
    return y


@harmless(map=None, maps={}, both=[])
def hands_out(self, y, x):
    self.map, self.maps["first"], self.both, self.size = y, y, [y, x], x.shape
    return y


@harmless(size=None, grids=())
def grids_of_a_size(self, y, x):
    if self.size != x.shape:
        down, along = (torch.linspace(0, 1, side, dtype=x.dtype) for side in x.shape[2:])
        self.size, self.grids = x.shape, (down[:, None], along)
    return y * self.grids[0] + self.grids[1]


@harmless(grids={})
def grids_by_size(self, y, x):
    size = (x.shape[2], x.shape[3])
    if size not in self.grids:
        self.grids[size] = torch.linspace(0, 1, x.shape[3], dtype=x.dtype)
    return y * self.grids[size]


@harmless(size=None, row=None)
def grids_of_a_map(self, y, x):
    if self.size != x.shape:
        self.row, self.size = torch.ones_like(y[0, 0]).cumsum(0), x.shape
    return y[..., : self.size[3]] + self.row


@harmless(row=None)
def grids_of_a_module(self, y, x):
    if self.row is None or self.row.shape[3] != x.shape[3]:
        line = torch.linspace(0, 1, x.shape[3], dtype=x.dtype)
        self.row = self.norm(line.expand(1, 4, 1, -1))
    return y + self.row


@harmless(ready=False)
def warns_once(self, y, x):
    if not self.ready:
        self.ready = True
    return y


@harmless(mean=torch.ones(1, 4, 1, 1))
def casts_once(self, y, x):
    self.mean = self.mean.to(y)
    return y - self.mean


@harmless(maps=[])
def collects_anew(self, y, x):
    self.maps.clear()
    self.maps.append(y)
    return y + self.maps[0]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_no_later_call_reads_may_be_written(name):
    between, state = HARMLESS[name]
    assert check(network(between, **state)).info["capture"] == "traced symbolically"


def test_a_hook_that_hands_out_maps():
    dense, found = network(lambda self, y, x: y), {}
    dense.first.register_forward_hook(lambda module, inputs, output: found.update(first=output))
    assert check(dense).info["capture"] == "traced symbolically"


# ---- stand-ins


@pytest.mark.parametrize("value", [1, 2.5, True, "text", None, {}, deque()])
@pytest.mark.parametrize("ask", [bool, lambda x: x == 1, lambda x: {x: 1}, lambda x: f"{x}", lambda x: x < 2])
def test_whoever_asks_for_a_stand_in_reads(value, ask):
    with pytest.raises(Read):
        ask(stale(value))


def test_a_list_may_grow_unread():
    log = stale([1, 2])
    log.append(3)
    for ask in (bool, len, list, lambda x: x[0], lambda x: 1 in x, lambda x: x == []):
        with pytest.raises(Read):
            ask(log)


def test_what_is_computed_from_a_stand_in_is_one():
    numbers, flags, count = stale(torch.arange(3)), stale(torch.ones(2).bool()), stale(3)
    for each in (numbers, flags, numbers * 2 > 1, torch.ones(3) + numbers, torch.ones(3).add_(numbers)):
        with pytest.raises(Read):
            each.tolist()
    for each in (count + 1, 2 - count, -count, count % 2):
        with pytest.raises(Read):
            int(each)
    assert (torch.ones(2) * count).isnan().all()
    numbers.copy_(torch.ones(3))
    assert numbers.tolist() == [1, 1, 1]
    assert numbers.shape == (3,) and flags.dtype == torch.bool


class Link:
    def __init__(self, number, next=None):
        self.number, self.next = number, next


def test_a_network_may_hold_its_application():
    """Its trainer, say, which leads to all the rest: nothing of another library is looked into, nor all of its own."""
    dense = network(lambda self, y, x: y)
    dense.register_forward_hook(Hook())  # so that Link is of a package of the network's
    foreign = type("Trainer", (), {"__module__": "lightning"})()
    foreign.callbacks = [foreign]
    dense.trainer, dense.links = foreign, [Link(n) for n in range(3_000)]
    names = list(kept_by(dense))
    assert "trainer" in names and not any(name.startswith("trainer.") for name in names)
    assert 0 < sum(name.endswith(".number") for name in names) <= 1_000
    for n in range(3_000):
        dense.links = Link(n, dense.links)
    assert kept_by(dense)["links.number"].value == 2_999

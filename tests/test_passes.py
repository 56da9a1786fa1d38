"""Each pass does what its docstring shows; check_graph refuses what no pass may leave behind."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from deltaconvert.check import check_graph
from deltaconvert.errors import GraphError
from deltaconvert.nodes import densify, names_of, operator_of, sparsify
from deltaconvert.ops.arithmetic import Arithmetic
from deltaconvert.ops.conv import Conv2d
from deltaconvert.ops.fused import Fused
from deltaconvert.ops.pointwise import Pointwise
from deltaconvert.passes import run_passes
from deltaconvert.passes.adopt_operators import adopt_operators
from deltaconvert.passes.convert_edges import cancel_conversions, insert_conversions
from deltaconvert.passes.decide import decide
from deltaconvert.passes.drop_expands import drop_expands
from deltaconvert.passes.drop_identities import drop_identities
from deltaconvert.passes.fill_empty import fill_empty
from deltaconvert.passes.fold_batch_norm import fold_batch_norm
from deltaconvert.passes.fold_constants import fold_constants
from deltaconvert.passes.fold_padding import fold_padding
from deltaconvert.passes.follow_layouts import follow_layouts
from deltaconvert.passes.functionalise import WriteToView, functionalise
from deltaconvert.passes.fuse_tails import fuse_tails
from deltaconvert.passes.name_paths import name_paths
from deltaconvert.passes.open_tuples import open_tuples
from deltaconvert.passes.place_thresholds import place_thresholds
from deltaconvert.passes.propagate import propagate
from deltaconvert.thresholds import Thresholds

X = torch.randn(2, 4, 6, 6)


@fx.wrap
def stochastic_depth(x, p, mode, training=True):
    """Like torchvision's: a function that fx keeps as one call."""
    return x


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv, self.relu, self.drop = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Dropout()
        self.bn, self.linear = nn.BatchNorm2d(4), nn.Linear(6, 5)
        self.norm, self.channels, self.head = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(144, 5)
        self.gamma = nn.Parameter(torch.rand(4))
        self.bn.running_mean.uniform_(-1, 1)

    def forward(self, x):
        return (self.function(self, x),)


def graph(function, *passes):
    module = Net(function).eval()
    traced = fx.symbolic_trace(module)
    expected = module(X)[0]
    out = run_passes(traced, [name_paths, *passes])
    assert torch.allclose(out(X)[0], expected, atol=1e-5), (
        "as a function of one frame, the graph is still the network"
    )
    return out


def calls(gm):
    """The plain names of what the graph calls, in order."""
    names = []
    for node in gm.graph.nodes:
        if node.op.startswith("call_"):
            found = operator_of(node)
            plain = node.target if node.op != "call_function" else node.target.__name__
            names.append(str(plain) if found is None else getattr(found, "function", type(found).__name__))
    return names


def node_of(gm, name):
    return next(n for n in gm.graph.nodes if n.meta["path"] == name and n.target not in (sparsify, densify))


def test_functionalise():
    def run(m, x):
        y = m.conv(x)
        r = F.relu_(y)
        r.add_(x)
        return r * y

    assert calls(graph(run, functionalise)) == ["conv", "relu", "add", "mul"]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: (lambda y: (y.chunk(2, 1)[0].mul_(2), y)[1])(m.conv(x)),
        lambda m, x: (lambda y, v: (y[:, :1].mul_(2), v)[1])(*(lambda y: (y, y[:, :2]))(m.conv(x))),
        lambda m, x: (lambda y: (y.view(2, -1).relu_(), y)[1])(m.conv(x)),
        lambda m, x: (lambda y, v: (y.add_(1), v)[1])(*(lambda y: (y, y.flatten(1)))(m.conv(x))),
        lambda m, x: (lambda a: (torch.neg(a, out=a), a)[1])(m.conv(x)),
    ],
)
def test_functionalise_refuses_writes_that_views_see(run):
    with pytest.raises(WriteToView, match="writes in place"):
        functionalise(fx.symbolic_trace(Net(run).eval()))


def test_functionalise_puts_parts_into_what_is_read():
    def run(m, x):
        y = m.conv(x)
        v = y[:, 1:]
        v[:, 0].relu_()
        v.mul_(2)
        return y

    named = ["conv", "getitem", "getitem", "relu", "put", "put", "mul", "put"]
    assert calls(graph(run, functionalise)) == named
    gm, x = graph(run, functionalise), torch.randn(2, 4, 8, 8)
    assert torch.equal(gm(x)[0], run(gm, x))


def test_functionalise_takes_writes_to_dead_views():
    assert calls(graph(lambda m, x: m.conv(x).flatten(1).relu_(), functionalise)) == [
        "conv",
        "flatten",
        "relu",
    ]


def test_name_paths():
    gm = graph(lambda m, x: m.relu(m.relu(m.conv(x)) + 1))
    assert [n.meta["path"] for n in gm.graph.nodes if n.op.startswith("call_")] == [
        "conv",
        "relu",
        "add",
        "relu#2",
    ]


def test_name_paths_are_unique():
    """One part has the name that another's second call would get."""
    module = Net(lambda m, x: m.get_submodule("relu#2")(m.relu(m.relu(x)))).eval()
    module.add_module("relu#2", nn.ReLU())
    gm = name_paths(fx.symbolic_trace(module))
    assert [n.meta["path"] for n in gm.graph.nodes if n.op == "call_module"] == ["relu", "relu#2", "relu#2#2"]


def test_open_tuples():
    gm = graph(lambda m, x: (lambda t: t[0] * t[1])(x.chunk(2, 1)), propagate([X]), open_tuples)
    assert calls(gm) == ["getitem", "getitem", "mul"]
    assert [n.args[1][1] for n in gm.graph.nodes if n.target is operator.getitem] == [
        slice(0, 2),
        slice(2, 4),
    ]


def test_drop_identities():
    gm = graph(
        lambda m, x: F.pad(F.dropout(m.conv(x).contiguous(), 0.5, False), (0, 0, 0, 0)).detach(),
        drop_identities,
    )
    assert calls(gm) == ["conv"]
    assert calls(graph(lambda m, x: stochastic_depth(m.conv(x), 0.5, "row", False), drop_identities)) == [
        "conv"
    ]
    assert calls(
        graph(lambda m, x: stochastic_depth(x, 0.5, "row", training=False) * 2, drop_identities)
    ) == ["mul"]
    kept = graph(lambda m, x: F.pad(m.conv(x), (0, 1, 0, 0)), drop_identities)
    assert calls(kept) == ["conv", "pad"]


def test_fill_empty():
    gm = graph(
        lambda m, x: (
            torch.empty_like(x, memory_format=torch.preserve_format).zero_() + x.new_empty(x.shape).zero_()
        ),
        fill_empty,
    )
    assert calls(gm) == ["zeros_like", "zero_", "getattr", "new_zeros", "zero_", "add"]


def test_views_become_reshapes():
    gm = graph(
        lambda m, x: m.conv(x).transpose(1, 2).contiguous().view(2, -1).view(torch.int32), drop_identities
    )
    assert calls(gm) == ["conv", "transpose", "reshape", "contiguous", "view"]


def test_adopt_operators():
    gm = graph(lambda m, x: F.relu(m.relu(m.relu(x)), inplace=False).cumsum(1), adopt_operators)
    assert calls(gm) == ["relu", "relu", "relu", "cumsum"]
    found = [operator_of(n) for n in gm.graph.nodes if operator_of(n)]
    assert all(type(o) is Pointwise for o in found) and len({id(o) for o in found}) == 3
    assert node_of(gm, "cumsum").meta["why_dense"] == "deltaconvert has no operator for cumsum"


def test_a_size_among_the_inputs_waits_for_the_plan():
    run = lambda m, x: m.conv(x) * (x.shape[1] + x.size(2)) ** -0.5
    assert calls(graph(run, adopt_operators))[-2:] == ["pow", "mul"]
    gm = graph(run, adopt_operators, propagate([X]), fold_constants, adopt_operators)
    assert calls(gm) == ["Conv2d", "mul"] and type(operator_of(node_of(gm, "mul"))) is Arithmetic


def test_what_follows_from_weights_waits_for_the_plan():
    """As in EfficientDet's fusion, where maps are multiplied with shares of learnt weights."""

    def run(m, x):
        weights = m.relu(m.conv.bias * 2)
        return m.conv(x) * weights[0] / (weights.sum() + 1e-4)

    gm = graph(run, adopt_operators, propagate([X]), fold_constants, adopt_operators)
    assert calls(gm) == ["Conv2d", "mul", "div"]
    assert [type(operator_of(n)) for n in gm.graph.nodes if operator_of(n)] == [
        Conv2d,
        Arithmetic,
        Arithmetic,
    ]


def test_fold_batch_norm():
    folded = graph(lambda m, x: m.bn(m.conv(x)), adopt_operators, fold_batch_norm)
    assert calls(folded) == ["Conv2d"] and names_of(node_of(folded, "conv")) == ("conv", "bn")
    forked = graph(lambda m, x: m.bn(y := m.conv(x)) + y, adopt_operators, fold_batch_norm)
    assert calls(forked) == ["Conv2d", "BatchNorm", "add"]


def test_fold_padding():
    folded = graph(lambda m, x: m.conv(F.pad(x, (2, 2, 1, 1))), adopt_operators, fold_padding)
    assert calls(folded) == ["Conv2d"] and names_of(node_of(folded, "conv")) == ("conv", "pad")
    assert operator_of(node_of(folded, "conv")).padding == (2, 3)
    forked = graph(lambda m, x: m.conv(y := F.pad(x, (1, 1))) + y, adopt_operators, fold_padding)
    assert calls(forked) == ["Pad", "Conv2d", "add"]
    kept = {
        "one side": lambda m, x: m.conv(F.pad(x, (0, 1, 0, 1))),
        "a crop": lambda m, x: m.conv(F.pad(x, (-1, -1))),
        "channels": lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1, 1, -1))),
        "ones": lambda m, x: m.conv(F.pad(x, (1, 1), value=1.0)),
        "mirrored": lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), "reflect")),
    }
    for name, function in kept.items():
        assert calls(graph(function, adopt_operators, fold_padding)) == ["Pad", "Conv2d"], name


def test_fold_constants():
    gm = graph(
        lambda m, x: F.pad(x, (0, 0, 0, x.shape[2] - 5)) + torch.ones(1) * 2, propagate([X]), fold_constants
    )
    assert calls(gm) == ["pad", "add"]
    assert node_of(gm, "pad").args[1] == (0, 0, 0, 1)


def test_propagate():
    gm = graph(lambda m, x: m.conv(x).mean((2, 3)), adopt_operators, propagate([X]), decide(2))
    conv = node_of(gm, "conv")
    assert conv.meta["shape"] == (2, 4, 6, 6) and conv.meta["macs"] == 2 * 36 * 4 * 4 * 9
    assert conv.meta["scale"] == pytest.approx(
        float(gm.get_submodule("operators.conv")(X).abs().mean()), rel=1e-5
    )


@pytest.mark.parametrize("mask", [None, torch.zeros(36, 36)])
def test_propagate_counts_attention(mask):
    def attend(m, x):
        tokens = m.conv(x).flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens[..., :2], mask)

    gm = graph(attend, propagate([X]))
    assert node_of(gm, "scaled_dot_product_attention").meta["macs"] == 2 * 36 * 36 * (4 + 2)


def test_drop_expands():
    gate = lambda m, x: m.conv(x).mean((2, 3), keepdim=True)
    passes = (adopt_operators, propagate([X]), drop_expands)
    assert calls(graph(lambda m, x: x * gate(m, x).expand_as(x), *passes)) == ["Conv2d", "SpatialMean", "mul"]
    kept = graph(lambda m, x: gate(m, x).expand_as(x) * gate(m, x), *passes)
    assert "expand_as" in calls(kept), "nothing else has the full size"
    one = graph(lambda m, x: torch.cat([x, x[:, :1].expand_as(x)], 1), *passes)
    assert calls(one) == ["Channels", "ChannelIndex", "Concat"]
    named = graph(lambda m, x: x * torch.broadcast_to(input=gate(m, x), size=x.shape), *passes)
    assert "broadcast_to" not in calls(named)
    typed = graph(lambda m, x: x.half() * m.conv(x).mean().expand_as(x), *passes)
    assert "expand_as" in calls(typed), "a number alone would leave half as it is"
    number = graph(lambda m, x: m.conv(x).mean().expand(3), *passes)
    assert "expand" in calls(number), "it is no map"


LAID = (adopt_operators, propagate([X]), follow_layouts(2))


def test_follow_layouts():
    def block(m, x):
        y = m.conv(x).permute(0, 2, 3, 1)
        return m.conv(x) + (m.channels(m.norm(y)) * m.gamma).permute(0, 3, 1, 2)

    gm = graph(block, *LAID)
    assert calls(gm) == ["Conv2d", "Conv2d", "ChannelNorm", "Conv2d", "mul", "add"]
    assert names_of(node_of(gm, "channels")) == ("channels",)
    shuffled = graph(lambda m, x: m.conv(x).view(2, 2, 2, 6, 6).transpose(1, 2).flatten(1, 2), *LAID)
    assert calls(shuffled) == ["Conv2d", "ChannelIndex"]
    assert names_of(node_of(shuffled, "flatten")) == ("flatten", "view", "transpose")
    head = graph(lambda m, x: m.relu(m.head(m.conv(x).flatten(1))), *LAID)
    assert calls(head) == ["Conv2d", "MapLinear", "relu", "Rearrange"]


def test_follow_layouts_leaves_what_nothing_is_won_by():
    run = lambda m, x: m.relu(x.permute(0, 2, 3, 1)).softmax(3)
    assert calls(graph(run, *LAID)) == ["permute", "relu", "softmax"]
    kept = graph(
        lambda m, x: m.channels(m.conv(x).permute(0, 2, 3, 1)), *LAID[:2], follow_layouts(2, ["ch*"])
    )
    assert calls(kept) == ["Conv2d", "permute", "Linear"]
    assert node_of(kept, "permute").meta["why_dense"] == "it makes the layout that channels reads"


def test_decide():
    gm = graph(
        lambda m, x: m.linear(m.relu(m.conv(x))).flatten(2).relu(),
        adopt_operators,
        propagate([X]),
        decide(2, ["re*"]),
    )
    assert node_of(gm, "conv").meta.get("delta") and not node_of(gm, "relu").meta.get("delta")
    assert node_of(gm, "relu").meta["why_dense"] == "keep_dense names it"
    streams = graph(lambda m, x: m.conv(x), adopt_operators, propagate([X]), decide(3))
    assert "batch 2, the frame has 3" in node_of(streams, "conv").meta["why_dense"]


PLANNED = (adopt_operators, propagate([X]), decide(2))


def test_insert_and_cancel_conversions():
    run = lambda m, x: m.relu(m.conv(x)) + m.conv(x).cumsum(1) + m.conv(x)
    wrapped = calls(graph(run, *PLANNED, insert_conversions))
    assert wrapped[:6] == ["sparsify", "Conv2d", "densify", "sparsify", "relu", "densify"]
    cancelled = calls(graph(run, *PLANNED, insert_conversions, cancel_conversions))
    assert cancelled.count("sparsify") == 2, "one for the frame, one for what comes back from cumsum"
    assert cancelled.count("densify") == 2, "one in front of cumsum, one in front of the output"
    gm = graph(run, *PLANNED, insert_conversions, cancel_conversions)
    paths = [n.meta["path"] for n in gm.graph.nodes if n.target in (sparsify, densify)]
    assert paths == ["x", "densify(conv#2)", "sparsify(cumsum)", "densify(add_1)"]


ENTERED = (*PLANNED, insert_conversions, cancel_conversions)


def test_fuse_tails():
    gm = graph(lambda m, x: m.relu(m.conv(x) * 2 + x).sigmoid(), *ENTERED, fuse_tails)
    fused = [operator_of(n) for n in gm.graph.nodes if operator_of(n)]
    assert [type(o) for o in fused] == [Fused, Pointwise], "a chain ends at an activation"
    assert [type(s) for s in fused[0].stages] == [Conv2d, Arithmetic, Arithmetic, Pointwise]
    assert names_of(node_of(gm, "conv")) == ("conv", "mul", "add", "relu")
    read_twice = graph(lambda m, x: m.relu(y := m.conv(x)) + y, *ENTERED, fuse_tails)
    assert next(type(operator_of(n)) for n in read_twice.graph.nodes if operator_of(n)) is Conv2d


def test_place_thresholds():
    rules = Thresholds.of({"input": 0.1, "activation": 0.2, "gate": 0.3})
    run = lambda m, x: m.relu(m.conv(x)) * m.conv(x).mean((2, 3), keepdim=True)
    gm = graph(run, *ENTERED, place_thresholds(rules))
    placed = {n.meta["path"]: n.meta["threshold"] for n in gm.graph.nodes if "threshold" in n.meta}
    assert placed == {"x": 0.1, "relu": 0.2, "mean": 0.3}
    fused = graph(run, *ENTERED, fuse_tails, place_thresholds(Thresholds.of({"relu": 0.7})))
    assert node_of(fused, "conv").meta["threshold"] == 0.7


def broken_graphs():
    def undefined(gm):
        conv = node_of(gm, "conv")
        conv.prepend(node_of(gm, "relu"))

    def missing_target(gm):
        node_of(gm, "conv").target = "nowhere"

    def shared(gm):
        node_of(gm, "relu").target = node_of(gm, "conv").target

    def constant_input(gm):
        node_of(gm, "relu").args = (3.0,)

    def keyword_input(gm):
        node = node_of(gm, "relu")
        node.args, node.kwargs = (), {"x": node_of(gm, "conv")}

    def delta_reads_dense(gm):
        conv = node_of(gm, "conv")
        conv.args = (node_of(gm, "x"),)

    def dense_reads_delta(gm):
        gm.graph.output_node().args = ((node_of(gm, "relu"),),)

    def dense_threshold(gm):
        next(n for n in gm.graph.nodes if n.target is densify).meta["threshold"] = 0.1

    return [f for name, f in locals().items() if callable(f)]


@pytest.mark.parametrize("break_it", broken_graphs(), ids=lambda f: f.__name__)
def test_check_graph(break_it):
    gm = graph(lambda m, x: m.relu(m.conv(x)), *ENTERED)
    check_graph(gm, after="nothing")
    assert any(n.target is sparsify for n in gm.graph.nodes)
    break_it(gm)
    with pytest.raises((GraphError, RuntimeError)) as raised:
        check_graph(gm, after="a_pass")
    if break_it.__name__ not in ("undefined", "missing_target"):  # torch's own lint names these
        assert isinstance(raised.value, GraphError) and "after a_pass" in str(raised.value)

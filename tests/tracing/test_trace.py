"""trace: what stays whole and why, and how calls map to flat tensors."""

import pytest
import torch
from oracle import Call, assert_close
from torch import nn

import deltaconvert
from deltaconvert.errors import UnsupportedModel
from deltaconvert.tracing.trace import trace

X = torch.randn(1, 3, 6, 6)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Holder(nn.Module):
    """A module around one: it could be traced by itself."""

    def __init__(self):
        super().__init__()
        self.inner, self.conv = Branching(), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.inner(self.conv(x))


def targets(traced, kind="call_module"):
    return [n.target for n in traced.graph.graph.nodes if n.op == kind]


def test_the_innermost_untraceable_module_stays_whole():
    traced = trace(nn.Sequential(Holder(), nn.ReLU()).eval(), (X,), {})
    assert targets(traced) == ["0.conv", "0.inner", "1"]
    assert set(traced.opaque) == {"0.inner"} and "cannot be traced" in traced.opaque["0.inner"]
    node = next(n for n in traced.graph.graph.nodes if n.target == "0.inner")
    assert node.meta["why_dense"] == traced.opaque["0.inner"]


def test_a_module_that_writes_to_a_view_stays_whole():
    inner = Call(lambda m, x: (lambda y: (y.chunk(3, 1)[0].mul_(2), y)[1])(x * 2))
    traced = trace(nn.Sequential(nn.Conv2d(3, 3, 1), inner).eval(), (X,), {})
    assert targets(traced) == ["0", "1"] and "writes in place" in traced.opaque["1"]
    with pytest.raises(UnsupportedModel, match="writes in place"):
        trace(inner, (X,), {})


def test_leaves_by_class_and_path():
    network = nn.Sequential(Holder(), Holder()).eval()
    assert targets(trace(network, (X,), {}, [Holder])) == ["0", "1"]
    assert targets(trace(network, (X,), {}, ["1"])) == ["0.conv", "0.inner", "1"]


def test_nested_inputs_and_outputs_keep_their_form():
    network = Call(lambda m, a, b: {"sum": a + b["x"], "n": 3, "none": None})
    traced = trace(network, (X, {"x": X, "k": "word"}), {})
    assert traced.signature.flatten((X, {"x": X + 1, "k": "word"}), {})[1].equal(X + 1)
    out = traced.signature.unflatten(traced.graph(X, X))
    assert out["sum"].equal(X + X) and out["n"] == 3 and out["none"] is None


def test_the_model_is_not_written_to():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x.relu()

    network = Counter()
    trace(network, (X,), {})
    assert network.calls == 0


def test_outputs_of_unknown_classes_are_refused():
    with pytest.raises(UnsupportedModel, match="returns a set"):
        trace(Call(lambda m, x: (x, {1, 2})), (X,), {})


def test_dead_code_goes():
    def run(m, x):
        m.unused(x)
        return x.relu()

    assert targets(trace(Call(run, unused=nn.Conv2d(3, 3, 1)).eval(), (X,), {})) == []


def test_data_is_the_tensor_itself(tmp_path):
    """As networks of torch 0.3 write it; a field of that name of anything else is that field."""

    def doubled(m, x):
        batch, channels, height, width = x.data.size()
        y = m.conv(x).data.view(batch, 2 * channels, height, width)
        return m.last(y.data * m.conv.weight.data.mean())

    dense = Call(doubled, **convs()).eval()
    model = deltaconvert.convert(dense, X)
    assert not model.explain().islands
    model.save(tmp_path / "data.delta")
    assert_close(deltaconvert.load(tmp_path / "data.delta")(X), dense(X))
    packed = Call(
        lambda m, x: nn.utils.rnn.pack_padded_sequence(m.conv(x)[0], torch.full((6,), 6)).data, **convs()
    )
    assert_close(deltaconvert.convert(packed.eval(), X)(X), packed(X))


def test_what_is_set_as_data_is_seen():
    def sets(m, x):
        y = m.conv(x)
        y.data = y.data * 2
        return m.last(y)

    dense = Call(sets, **convs()).eval()
    assert_close(deltaconvert.convert(dense, X)(X), dense(X))


def convs():
    torch.manual_seed(0)
    return {"conv": nn.Conv2d(3, 6, 3, padding=1), "last": nn.Conv2d(6, 2, 3, padding=1)}


def brightens(module, inputs):
    return (torch.where(inputs[0].max() > 0.9, 2 * inputs[0], inputs[0]),)


def shifts(module, inputs, output):
    return output + 1


class Calls(nn.Conv2d):
    def __call__(self, x):
        return super().__call__(torch.where(x.max() > 0.9, 2 * x, x))


@pytest.mark.parametrize("kind", [nn.Conv2d, Calls])
def test_hooks_and_the_call_of_the_network_itself(kind):
    """The example is dark, and the network's forward alone would equal it."""
    dense = nn.Sequential(nn.Conv2d(3, 3, 1)) if kind is nn.Conv2d else kind(3, 3, 1)
    if kind is nn.Conv2d:
        dense.register_forward_pre_hook(brightens)
        dense.register_forward_hook(shifts)
    dense.eval().double()
    model = deltaconvert.convert(dense, torch.full((1, 3, 6, 6), 0.1).double(), backend="reference")
    assert model.info["capture"] == "traced symbolically"
    for bright in (0.1, 2.0, 0.5):
        frame = torch.full((1, 3, 6, 6), bright).double()
        with torch.no_grad():
            assert_close(model(frame), dense(frame))

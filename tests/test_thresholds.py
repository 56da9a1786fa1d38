"""thresholds.py: which nodes rules apply to, weighted thresholds, and files of thresholds."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from gated import SHORT_GATES, check_types
from oracle import Call, assert_close, edges, scripted_video
from small import call, conv, small, video
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError
from deltaconvert.gate import Gate
from deltaconvert.thresholds import Thresholds


def network() -> nn.Sequential:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, groups=2))
    net[2].weight.data[:, 0] *= 40  # the second layer depends mostly on channels 0 and 4
    net[2].weight.data[:, 3] *= 0  # nobody reads channels 3 and 7
    return net.eval().double()


def test_weighted_thresholds_follow_the_next_layer(backend):
    """A threshold for each channel, inverse to the weights that read it; masks and values follow this definition."""
    net = network().to(torch.get_default_device())
    video = scripted_video((2, 3, 13, 18))
    model = deltaconvert.convert(net, video[0], threshold={"activation": "0.3 weighted"}, backend=backend)
    (edge,) = (e for e in edges(model).values() if isinstance(e.threshold, torch.Tensor))
    gain = net[2].weight.detach().unflatten(0, (2, 3)).square().sum((1, 3, 4)).flatten().sqrt()
    share = (gain.square().mean().sqrt() / gain).clamp(1 / 8, 8)
    assert_close(edge.threshold, 0.3 * share)
    assert float(share[0]) < 1 < float(share[3]) == 8
    stored = torch.full((2, 8, 13, 18), float("nan"), dtype=torch.float64, device=video[0].device)
    for t, frame in enumerate(video):
        model(frame)
        fresh = net[1](net[0](frame))
        moved = ~((fresh - stored).abs() <= edge.threshold.view(-1, 1, 1)).all(1, keepdim=True)
        stored = torch.where(moved, fresh, stored)
        assert torch.equal(model.masks()["0"], moved), f"frame {t}"
        assert_close(edge.values, stored, f"frame {t}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gate", SHORT_GATES, ids=str)
def test_short_types_compare_alike(backend, dtype, gate):
    check_types(backend, gate, dtype)


@pytest.mark.parametrize("rule", [0.3, "0.3 weighted"])
def test_convolutions_without_an_activation_compare(backend, rule):
    """A depthwise convolution before its product does, and a projection; the network's last one never does."""
    torch.manual_seed(5)
    deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), deep, nn.Conv2d(8, 40, 1), nn.Conv2d(40, 5, 1)]
    net = nn.Sequential(*layers).eval().double().to(torch.get_default_device())
    video = scripted_video((2, 3, 13, 18))
    model = deltaconvert.convert(net, video[0], threshold={"linear": rule}, backend=backend)
    assert {path: amount for path, amount in model.thresholds.items() if amount} == {"2": 0.3, "3": 0.3}
    everywhere = deltaconvert.convert(net, video[0], threshold={"*": 0.2, "3": 0.1}).thresholds
    # A pattern means the input and the activation.
    assert sorted(filter(None, everywhere.values())) == [0.1, 0.2, 0.2]
    amounts = [e.threshold for e in edges(model).values() if e.threshold is not None][-2:]
    stored = [torch.full((2, c, 13, 18), float("nan"), dtype=torch.float64) for c in (8, 40)]
    for t, frame in enumerate(video):
        found, wanted = model(frame), net[1](net[0](frame))
        for place, (amount, path) in enumerate(zip(amounts, "23", strict=True)):
            limit = amount.view(-1, 1, 1) if isinstance(amount, torch.Tensor) else amount
            fresh = net[2 + place](wanted)
            moved = ~((fresh - stored[place]).abs() <= limit).all(1, keepdim=True)
            wanted = stored[place] = torch.where(moved, fresh, stored[place])
            assert torch.equal(model.masks()[path], moved), f"{path}, frame {t}"
        assert_close(found, net[4](wanted), f"frame {t}")


def test_weighted_rules_are_kept(tmp_path):
    frame = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    model = deltaconvert.convert(network(), frame, threshold={"activation": "50% weighted"})
    row = next(row for row in model.explain().rows if row.path == "0")
    assert row.how == "weighted" and row.threshold == model.thresholds["0"]
    model.save(tmp_path / "weighted.delta")
    back = deltaconvert.load(tmp_path / "weighted.delta", backend="reference")
    assert back.rules == model.rules and str(model.rules["1"]).endswith(" weighted")
    assert back.explain().rows[1].how == "weighted"


@pytest.mark.parametrize("bad", ["weighted", "10% heavy", "x weighted", "-1 weighted"])
def test_bad_weighted_rules(bad):
    with pytest.raises(InputError, match="is no threshold"):
        Thresholds.of({"activation": bad})


def test_a_file_of_thresholds(tmp_path):
    """convert(threshold=FILE) does what the file was made with; settings change its gate, and a Gate replaces it."""
    file, frame = tmp_path / "found.json", torch.rand(1, 3, 8, 8, dtype=torch.float64)
    model = deltaconvert.convert(
        network(), frame, threshold={"input": 0.1, "activation": "20%"}, gate={"smooth": 3}
    )
    Thresholds(model.rules, model.gate).write(file, note="by hand")
    assert json.loads(file.read_text())["note"] == "by hand"
    for given in (file, str(file)):
        again = deltaconvert.convert(network(), frame * 3, threshold=given)
        assert again.thresholds == model.thresholds and again.gate == Gate(smooth=3)
    other = deltaconvert.convert(network(), frame, threshold=file, gate={"refresh": 9})
    assert other.gate == Gate(smooth=3, refresh=9)
    other = deltaconvert.convert(network(), frame, threshold=file, gate=Gate(refresh=9))
    assert other.gate == Gate(refresh=9)
    assert deltaconvert.convert(network(), frame).with_thresholds(file, frame).gate == Gate(smooth=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "holds no thresholds"),
        ("[]", "holds no thresholds"),
        ('{"format": "else", "version": 1, "threshold": {}}', "newer version|holds no"),
        ('{"format": "deltaconvert-thresholds", "version": 9, "threshold": {}}', "newer version"),
        (
            '{"format": "deltaconvert-thresholds", "version": 1, "threshold": {"input": "x"}}',
            "is no threshold",
        ),
        ('{"format": "deltaconvert-thresholds", "version": 1, "threshold": {}, "gate": 3}', "gate=3"),
    ],
)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        Thresholds.of(file)
    with pytest.raises(OSError):
        Thresholds.of(tmp_path / "none.json")


# --- where rules stand ----------------------------------------------------------------------------------------------


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
        self.input = nn.ReLU()
        self.gate = nn.Conv2d(4, 4, 1)
        self.block = nn.Sequential(conv(4, 4), nn.ReLU())
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
    """This also holds for other sizes of the input and in files."""
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
    """At one size only, a map comes back from an island; rules for one size still apply at the other."""

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
    """Each path has one row: an island and the sparsify after it have two, as do a node and the densify after it."""
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


def pixels(largest: float) -> torch.Tensor:
    return torch.linspace(0, largest, 3 * 8 * 8, dtype=torch.float64).view(1, 3, 8, 8)


@pytest.mark.parametrize(("threshold", "largest"), [("300%", 1), ({"input": 10}, 1), (300, 255)], ids=str)
def test_a_threshold_beyond_half_of_the_frame_is_told(threshold, largest):
    frame = pixels(largest)
    told = "at the input is more than half of what the example spans, .*10/255"
    with pytest.warns(UserWarning, match=told):
        deltaconvert.convert(small(), frame, threshold=threshold)
    model = deltaconvert.convert(small(), frame)
    with pytest.warns(UserWarning, match=told):
        model.with_thresholds(threshold, frame)


@pytest.mark.parametrize(
    ("threshold", "frame"),
    [
        ({"input": 0.4, "activation": "300%"}, pixels(1)),  # activations are far from their mean
        (30, pixels(255)),
        (0.1, torch.full((1, 3, 8, 8), 0.5).double()),  # a blank example says nothing
        (0.1, pixels(1).index_fill(3, torch.tensor([2]), math.nan)),
    ],
    ids=["activations", "bytes", "blank", "nan"],
)
def test_thresholds_that_may_be_meant(threshold, frame):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deltaconvert.convert(small(), frame, threshold=threshold)


@pytest.mark.parametrize("rule", [0.05, "10%"])
def test_calls_for_each_map_of_a_batch_keep_their_thresholds_elsewhere(rule, tmp_path):
    """The second call goes by the path of the first as well, which has no threshold where a sum is behind it."""

    def forward(m, x):
        first, second = m.conv(torch.cat([x, x.flip(3)])).chunk(2)
        return first - second

    network = Call(forward, conv=nn.Conv2d(3, 2, 3)).eval()
    frame = torch.randn(1, 3, 9, 11)
    model = deltaconvert.convert(network, frame, threshold={"linear": rule}, backend="reference")
    assert "conv#2" in model.thresholds and "conv" not in model.thresholds
    assert model.for_streams(2).thresholds == model.thresholds
    model.save(tmp_path / "net.delta")
    assert deltaconvert.load(tmp_path / "net.delta", backend="reference").thresholds == model.thresholds


def test_calls_for_each_map_of_a_batch_have_amounts_of_their_own():
    def forward(m, x):
        first, second = m.conv(torch.cat([x, x.flip(3)])).chunk(2)
        return m.last(first - second)

    network = Call(forward, conv=nn.Conv2d(3, 2, 3), last=nn.Conv2d(2, 4, 3)).eval()
    frame = torch.randn(1, 3, 9, 11)
    model = deltaconvert.convert(network, frame, threshold={"linear": "10%"}, backend="reference")
    first, second = (model.thresholds[path] for path in ("conv", "conv#2"))
    assert first != second
    assert model.for_streams(2).thresholds == model.thresholds

"""explain(): each dense node has a reason and an advice, the speed is measured, and the page shows all of it."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from command_line import call
from torch import nn

import deltaconvert
from deltaconvert.advice import way_out
from deltaconvert.drawing import explain_page
from deltaconvert.model import DeltaModel
from deltaconvert.watching.measure import Dense

SIZE = (1, 3, 24, 32)


class Islands(nn.Module):
    """Two convolutions with an operator between them that stays dense, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        y = self.second(torch.sort(self.first(x), 3)[0])
        return self.head(y.mean((2, 3))).softmax(1)


@pytest.fixture(scope="module")
def delta():
    torch.manual_seed(0)
    return deltaconvert.convert(Islands().eval(), torch.rand(SIZE), keep_dense=["second"])


@pytest.mark.parametrize(
    "reason, way",
    [
        ("keep_dense names it", "leave the name out"),
        ("deltaconvert has no operator for topk", "end the network before it"),
        ("it is no product with a matrix of weights", "1x1 convolution"),
        ("deltaconvert has no operator for MultiheadAttention", "attention reads the whole map"),
        ("deltaconvert has no operator for fft2", "CONTRIBUTING.md"),
        ("it runs under torch.autocast", "cast by hand"),
        ("conv2d is quantised", "convert the float network"),
        ("its input c.conv2d is quint8, not floating point", "convert the float network"),
        ("its input x is uint8, not floating point", "x.float()"),
        ("cannot be traced: symbolically traced variables", "branches on values"),
        ("its input x has shape (2, 512), not N C H W", "numbers of the whole frame"),
        ("its output has shape (2, 3, 4, 5, 6), not N C H W", "keep it a map"),
        ("mode='bicubic'", "docs/operators.md"),
        ("it makes the layout that blocks.0.attn reads", "what helps that helps this"),
        ("something new", "docs/operators.md"),
    ],
)
def test_ways_out(reason, way):
    for text in (way_out(reason, 0.2, comes_last=True), way_out(reason, 0.001, comes_last=False)):
        assert way in text and "little to gain" not in text
    if "keep_dense" not in reason:
        assert "comes last and does 0.1% of the work; else: " in way_out(reason, 0.001, comes_last=True)


def test_every_reason_of_a_network_has_a_way(delta):
    found = delta.explain()
    assert {row.path for row in found.islands} >= {"second", "sort"}
    assert all(row.way_out for row in found.islands)
    assert all(row.way_out is None for row in found.rows if row.kind != "dense")
    (share, rows, way), *_ = found.advice
    assert [row.path for row in rows] == ["second"] and "keep_dense" in way and share == rows[0].share > 0.4
    before = next(row for row in found.islands if row.path == "sort")
    assert "little to gain" not in before.way_out, "the head behind it is a delta node"
    assert "little to gain" in found.islands[-1].way_out
    assert sum(share for share, _, _ in found.advice) == pytest.approx(1 - found.delta_share)
    text = str(found)
    assert "What stays dense, and the way out:" in text and "leave the name out" in text
    dense = len(found.islands)
    assert re.search(rf"\d+ of \d+ nodes sparse: delta nodes do .* {dense} nodes? stays? dense", text)


def test_nothing_dense_says_nothing_of_ways_out():
    found = deltaconvert.convert(nn.Conv2d(3, 4, 3).eval(), torch.rand(SIZE)).explain()
    assert found.advice == [] and "way out" not in str(found)


def test_the_speed_is_measured_on_a_copy(delta):
    frame = torch.rand(SIZE)
    expected, frames = delta(frame), delta.stats().frames
    found = delta.explain(speed=True).speed
    assert [row.asked for row in found.rows] == [0.01, 0.05, 0.25]
    assert all(row.ratio == pytest.approx(row.dense_ms / row.delta_ms) for row in found.rows)
    assert found.backend == "cpu" and "1x3x24x32" in found.basis and "medians of 3" in found.basis
    assert "where 5% of the frame moves" in str(found)
    assert delta.stats().frames == frames and torch.equal(delta(frame), expected)
    assert delta.stats().work == 0, "the state is as it was"


class Counted(nn.Module):
    """A backbone and a detector's code behind it, whose number of boxes depends on values."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x):
        y = self.backbone(x)
        return y[y > 0][: int((y > 0).sum())]


def test_a_network_that_is_converted_in_parts():
    """The speed is measured against the original network, not against the converted parts."""
    delta = deltaconvert.convert(Counted().eval(), torch.rand(SIZE))
    dense = Dense(delta)
    assert not any(isinstance(module, DeltaModel) for module in dense.graph.modules())
    (network,) = delta.explain().islands
    assert "branches on values" in network.way_out and "\n" not in network.runs_as
    frame = torch.rand(SIZE)
    torch.testing.assert_close(dense(frame)[0], delta(frame), rtol=1e-4, atol=1e-5)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.opened, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.opened.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]


def test_the_page_needs_nothing_else_and_says_what_the_text_does(delta, monkeypatch):
    text = explain_page.html(delta.explain(speed=True), title="<b>net</b> & co")
    tags = Tags()
    tags.feed(text)
    assert tags.links == [] and "script" not in tags.opened and "@import" not in text, "it needs nothing else"
    assert "<h1>&lt;b&gt;net&lt;/b&gt; &amp; co</h1>" in text
    for said in (
        "leave the name out",
        "keep_dense names it",
        "nodes sparse",
        "25 % moves",
        "medians of 3 frames",
    ):
        assert said in text
    monkeypatch.setattr("deltaconvert.drawing.dot.shutil.which", lambda name: None)
    without = explain_page.html(delta.explain())
    assert "Graphviz draws it here" in without and "Expected speed" not in without and "<svg" not in without


def test_the_command_writes_json_page_and_speed(delta, tmp_path):
    delta.save(tmp_path / "net.delta")

    def told(*args):
        return call("explain", tmp_path / "net.delta", *args).stdout

    facts = json.loads(told("--json", "--speed", "--html", tmp_path / "net.html"))
    assert [row["asked"] for row in facts["speed"]["rows"]] == [0.01, 0.05, 0.25] and facts["speed"]["basis"]
    assert next(row for row in facts["nodes"] if row["path"] == "second")["way_out"]
    assert "net.delta" in (tmp_path / "net.html").read_text()
    assert "--speed measures" in told() and "expected speed" in told("--speed")

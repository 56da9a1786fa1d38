"""What runs after a frame's CUDA graph, without a GPU: the graph is one of tests/kernels/graph_on_cpu.py."""

import pytest
import torch
import torch.nn.functional as F
from graph_on_cpu import with_graphs
from on_cpu import GXX
from oracle import Call, Dense, assert_close, scripted_video
from torch import nn

import deltaconvert

SHAPE = (2, 3, 9, 8)


class Waits(nn.Module):
    def forward(self, x):
        return x * 2 if float(x.mean()) > 1e9 else x + 1


def late_and_early(m, x):
    """The second of two comparisons is in the graph, the first one behind it, and the sum reads what both find."""
    rows = x[:, :, :2].cumsum(3)  # an island of a graph; it does not change where other rows do
    return m.last(m.waits(m.first(x)).sigmoid() + m.first(F.pad(rows, (0, 0, 0, x.shape[2] - 2))))


@pytest.mark.skipif(GXX is None, reason="needs g++ to run CUDA sources on the CPU")
def test_what_is_listed_waits_for_what_compares_after_the_graph(monkeypatch):
    with_graphs(monkeypatch)
    torch.manual_seed(0)
    network = Call(
        late_and_early, first=nn.Conv2d(3, 4, 3, padding=1), last=nn.Conv2d(4, 2, 1), waits=Waits()
    )
    network, video = network.eval(), scripted_video(SHAPE, torch.float32)[:5]
    dense, model = Dense(network), deltaconvert.convert(network, video[0], backend="cuda")
    for t, frame in enumerate(video):
        assert_close(model(frame.clone()), dense((frame,)), f"frame {t}")
    reasons = model._program.outside.values()
    assert any("compares behind" in reason for reason in reasons) and len(reasons) < len(
        model._program._steps
    )

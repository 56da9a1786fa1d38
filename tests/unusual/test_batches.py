"""Networks that join maps along the batch for one call of a backbone (passes/part_batches.py)."""

import pytest
import torch
import torch.nn.functional as F
from oracle import Call, check_operator
from torch import nn

import deltaconvert

SHAPE = (2, 3, 9, 11)


def backbone():
    layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)]
    return nn.Sequential(*layers, nn.InstanceNorm2d(6, eps=0.1))


def chunked(m, x, y):
    p, q = m.backbone(torch.cat([x, y])).chunk(2, 0)
    return m.head(torch.cat([p, q], 1)).relu()


def sliced(m, x, y):
    z = m.backbone(torch.cat((x, y), dim=0))
    n = x.shape[0]
    return (z[:n] - z[n:]).abs()


def split(m, x, y):
    p, q = torch.split(m.backbone(torch.cat([x, y, x.flip(3)], 0)), [2 * x.shape[0], x.shape[0]])
    p, r = p[: x.shape[0], ...], p[x.shape[0] :]
    return p * q + r


def nested(m, x, y):
    both = torch.cat([x, y])
    z = m.backbone(torch.cat([both, -both]))
    return z[:2] + z[2:4] * z[4:6] - z[6:8]


def twice(m, x, y):
    p, q, r = m.backbone(torch.cat([x, x, y], 0)).chunk(3)
    return p + q * 2 - r


def within(m, x, y):
    """Joined between layers, and with a gate of each map."""
    p, q = m.backbone(x), m.backbone(y)
    z = F.interpolate(torch.cat([p, q], 0), scale_factor=2) * 2
    z = z * z.mean((2, 3), keepdim=True).sigmoid()
    p, q = z.split(x.shape[0])
    return p + q


@pytest.mark.parametrize("call", [chunked, sliced, split, nested, twice, within])
def test_each_map_has_a_call_of_its_own(backend, call):
    torch.manual_seed(0)
    network = Call(call, backbone=backbone(), head=nn.Conv2d(12, 4, 1))
    threshold = 0.1 if call is chunked else 0.0  # the others differ in how they join and part
    check_operator(network, [SHAPE, SHAPE], threshold=threshold, backend=backend)


def dense_between(m, x, y):
    z = m.backbone(torch.cat([x, y], 0))
    return m.last((z.cumsum(3) + z)[: x.shape[0]])


DENSE = {
    "an island in the middle": (dense_between, "it joins 2 maps along the batch"),
    "the outputs together": (lambda m, x, y: m.backbone(torch.cat([x, y], 0)), "it joins 2 maps"),
    "parts of maps": (
        lambda m, x, y: m.backbone(torch.cat([x, y], 0))[1:3],
        "it joins 2 maps along the batch",
    ),
    "every second image": (lambda m, x, y: m.last(torch.cat([x, y], 0)[::2]), "its output has batch 4"),
    "a map of another batch": (
        lambda m, x, y: m.backbone(torch.cat([x[:1], y], 0)),
        "has batch 3, the frame has 2",
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_joined_again_for_what_stays_dense(backend, name):
    call, reason = DENSE[name]
    network = Call(
        call, backbone=backbone(), last=nn.Conv2d(6, 4, 1) if "middle" in name else nn.Conv2d(3, 4, 1)
    )
    check_operator(network, [SHAPE, SHAPE], backend=backend, expect="dense", reason=reason)


def test_paths_and_rules_of_both_calls():
    """The second map's nodes are called as second calls are; rules for a path hold for both."""
    network = Call(chunked, backbone=backbone(), head=nn.Conv2d(12, 4, 1)).eval()
    frames = [torch.randn(SHAPE) for _ in range(2)]
    model = deltaconvert.convert(network, tuple(frames), threshold={"backbone.0": 0.25})
    rows = {row.path: row.threshold for row in model.explain().rows}
    assert rows["backbone.0"] == rows["backbone.0#2"] == 0.25
    model(*frames)
    frames[1][:, :, 3, 4] += 9.0
    model(*frames)
    masks = model.masks()
    assert not masks["backbone.0"].any() and masks["backbone.0#2"].any()


def test_keep_dense_keeps_one_call():
    network = Call(sliced, backbone=backbone()).eval()
    frames = tuple(torch.randn(SHAPE) for _ in range(2))
    model = deltaconvert.convert(network, frames, keep_dense=["backbone.3"])
    rows = {row.path: row for row in model.explain().rows}
    assert rows["backbone.0#2"].kind == "delta" and rows["backbone.3"].reason == "keep_dense names it"
    assert "backbone.3#2" not in rows
    torch.testing.assert_close(model(*frames), network(*frames))

"""deltaconvert/thresholds.py: weighted rules and files of thresholds. Where rules stand is in test_convert.py."""

from __future__ import annotations

import json

import pytest
import torch
from oracle import assert_close, edges, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError
from deltaconvert.gate import Gate
from deltaconvert.thresholds import Thresholds


def network() -> nn.Sequential:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, groups=2))
    net[2].weight.data[:, 0] *= 40  # channels 0 and 4 are what the second layer goes by
    net[2].weight.data[:, 3] *= 0  # nobody reads channels 3 and 7
    return net.eval().double()


def test_weighted_thresholds_follow_the_next_layer(backend):
    """(C) thresholds, inverse to the weights that read a channel; masks and values are what that definition says."""
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


@pytest.mark.parametrize("rule", [0.3, "0.3 weighted"])
def test_convolutions_without_an_activation_compare(backend, rule):
    """A depthwise one before its product, and a projection; the last one, whose output is the network's, never does."""
    torch.manual_seed(5)
    deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), deep, nn.Conv2d(8, 40, 1), nn.Conv2d(40, 5, 1)]
    net = nn.Sequential(*layers).eval().double().to(torch.get_default_device())
    video = scripted_video((2, 3, 13, 18))
    model = deltaconvert.convert(net, video[0], threshold={"linear": rule}, backend=backend)
    assert {path: amount for path, amount in model.thresholds.items() if amount} == {"2": 0.3, "3": 0.3}
    everywhere = deltaconvert.convert(net, video[0], threshold={"*": 0.2, "3": 0.1}).thresholds
    assert sorted(filter(None, everywhere.values())) == [
        0.1,
        0.2,
        0.2,
    ]  # a pattern means the input and the activation
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
    """convert(threshold=FILE) is what it was made with; a gate that is given goes before the file's."""
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

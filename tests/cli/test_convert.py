"""deltaconvert convert: checkpoints and networks of one's own become files."""

import json

import torch
from command_line import BACKEND, NET, call, said


def test_a_checkpoint_becomes_a_file(tmp_path):
    import deltaconvert
    import model_zoo

    model = model_zoo.create(NET, seed=3)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "net.pth"
    )
    out = tmp_path / "net.delta"
    args = ("--arch", NET, "--input", "1x3x64x96", "-o", out, "--threshold", "input=0.04", "--json", *BACKEND)
    facts = json.loads(call("convert", tmp_path / "net.pth", *args, "--threshold", "activation=10%").stdout)
    assert facts["input"] == [1, 3, 64, 96] and facts["weights"] == "net.pth" and facts["delta_share"] > 0.9
    back = deltaconvert.load(out, backend="reference")
    assert back.rules["input"] == 0.04 and back.rules["activation"] == "10%" and back.rules["gate"] == 0
    frame = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(back(frame), model(frame), rtol=1e-3, atol=1e-4)
    assert back.info["recipe"]["std"] == [0.229, 0.224, 0.225]


def test_which_weights_of_several(tmp_path):
    import deltaconvert
    import model_zoo

    net, average = model_zoo.create(NET, seed=0), model_zoo.create(NET, seed=1)
    torch.save({"net": net.state_dict(), "ema": average.state_dict()}, tmp_path / "net.pth")
    args = [
        "convert",
        tmp_path / "net.pth",
        "--arch",
        NET,
        "--input",
        "1x3x32x32",
        "-o",
        tmp_path / "a.delta",
    ]
    assert "the weights are those of its entry ema; it has others: --entry net" in said(call(*args, *BACKEND))
    assert "--entry ema" in said(call(*args, "--entry", "net", *BACKEND))
    frame = torch.rand(1, 3, 32, 32)
    found = deltaconvert.load(tmp_path / "a.delta", backend="reference")(frame)
    torch.testing.assert_close(found, net(frame), rtol=1e-3, atol=1e-4)
    assert "no entry 'emma'" in said(call(*args, "--entry", "emma", code=1))
    args[1:2] = ["--random"]
    assert "untrained ones have none" in said(call(*args, "--entry", "ema", code=2))


def test_a_network_of_ones_own(tmp_path, monkeypatch, clip):
    (tmp_path / "cli_nets.py").write_text(
        "from torch import nn\ndef tiny(width=4):\n    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())\n"
    )
    monkeypatch.chdir(tmp_path)
    arch = "cli_nets:tiny(width=6)"
    options = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--channels", "bgr", "--multiple", "32")
    args = ("convert", "--random", "--arch", arch, "--input", "1x3x32x32", "-o", "a.delta", *BACKEND)
    assert "gets images as RGB in 0..1: --mean, --std" in said(call(*args))
    told = "BGR in 0..1, less 0.5,0.5,0.5, over 0.25,0.25,0.25, cut to multiples of 32 pixels"
    assert told in said(call(*args, *options))
    bytes_of = ("--mean", "123.7,116.3,103.5", "--std", "58.4,57.1,57.4")
    text = said(call(*args, *bytes_of))
    assert "warning: that can hardly be meant: images are in 0..1, the mean is 123.7,116.3,103.5" in text
    assert "warning" not in said(call(*args, *bytes_of, "--scale", 1))
    assert "mean is 0.5,0.5,0.5, as of images in 0..1" in said(call(*args, *options, "--scale", 1))
    found = json.loads(call("run", "a.delta", "--video", clip, "--json", "--limit", 3, *BACKEND).stdout)
    assert found["frames"] == 3 and found["size"] == [96, 64]


def test_a_network_of_the_zoo_with_another_number_of_classes(tmp_path):
    args = ("--random", "--arch", f"{NET}(classes=10)", "--input", "1x3x32x32", "-o", tmp_path / "a.delta")
    result = call("convert", *args, *BACKEND)
    assert "less 0.485,0.456,0.406, over 0.229,0.224,0.225" in said(result)


def test_a_grey_network(tmp_path, clip):
    arch = "torch.nn:Conv2d(in_channels=1, out_channels=2, kernel_size=3)"
    file = tmp_path / "grey.delta"
    call("convert", "--random", "--arch", arch, "--input", "1x1x32x32", "-o", file, *BACKEND)
    found = json.loads(call("run", file, "--video", clip, "--json", "--limit", 3, *BACKEND).stdout)
    assert found["frames"] == 3 and found["difference"]["max"] < 1e-5
    call("bench", "--arch", "dncnn", "--input", "1x1x16x16", "--density", "0", "--frames", 1, *BACKEND)
    rows = json.loads(call("zoo", "dncnn", "--input", "2x3x16x24", "--json").stdout)
    assert rows[0]["input"] == [2, 1, 16, 24]


def test_checkpoints_that_do_not_fit(tmp_path):
    torch.save({"a.weight": torch.ones(1)}, tmp_path / "net.pt")
    args = ("--arch", NET, "--input", "1x3x32x32", "-o", tmp_path / "x.delta")
    text = said(call("convert", tmp_path / "net.pt", *args, code=1))
    assert "net.pt does not fit MobileNetV2" in text and "1 unexpected: a.weight" in text
    assert "No such file" in said(call("convert", tmp_path / "none.pt", *args, code=1))
    assert not (tmp_path / "x.delta").exists()

"""The command line: what it prints, its exit codes, and that a user's mistake is one message."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from deltaconvert.cli import app

pytest.importorskip("av")

ROOT = Path(__file__).resolve().parents[1]
NET = "mobilenetv2"
BACKEND = ["--backend", "reference"]


def call(*args, code=0):
    """The finished command; it fails where it raises anything but an exit."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def said(result):
    """What stands on stderr, its boxes and line breaks taken out."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.stderr)


def shell(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "deltaconvert", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=120,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve frames of 96x64 in which a square moves."""
    from deltaconvert.video import VideoWriter

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, 10, (96, 64), crf=10) as out:
        for number in range(12):
            frame = torch.full((64, 96, 3), 90, dtype=torch.uint8)
            frame[20:36, 4 * number : 4 * number + 16] = 220
            out.write(frame)
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.delta"
    call("convert", "--random", "--arch", NET, "--input", "1x3x64x96", "-o", path, *BACKEND)
    return path


# ---- convert


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


def test_a_network_of_ones_own(tmp_path, monkeypatch, clip):
    (tmp_path / "cli_nets.py").write_text(
        "from torch import nn\ndef tiny(width=4):\n    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())\n"
    )
    monkeypatch.chdir(tmp_path)
    arch = "cli_nets:tiny(width=6)"
    options = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--channels", "bgr", "--multiple", "32")
    call("convert", "--random", "--arch", arch, "--input", "1x3x32x32", "-o", "a.delta", *options, *BACKEND)
    found = json.loads(call("run", "a.delta", "--video", clip, "--json", "--limit", 3, *BACKEND).stdout)
    assert found["frames"] == 3 and found["size"] == [96, 64]


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
    assert "does not fit MobileNetV2" in text and "1 unexpected: a.weight" in text
    assert "No such file" in said(call("convert", tmp_path / "none.pt", *args, code=1))
    assert not (tmp_path / "x.delta").exists()


# ---- explain, zoo


def test_explain_a_file_and_a_name(converted):
    from_file = call("explain", converted, *BACKEND).stdout
    assert "features.0.0" in from_file and "delta nodes do" in from_file
    by_name = json.loads(call("explain", "--arch", NET, "--input", "1x3x64x96", "--json", *BACKEND).stdout)
    ours = json.loads(call("explain", converted, "--json", *BACKEND).stdout)
    assert by_name == ours and 0.9 < ours["delta_share"] <= 1
    other = json.loads(call("explain", converted, "--input", "1x3x128x96", "--json", *BACKEND).stdout)
    assert sum(row["macs"] for row in other["nodes"]) > 1.9 * sum(row["macs"] for row in ours["nodes"])


def test_explain_draws_the_graph(tmp_path, monkeypatch):
    """A network whose middle is dense, between two conversions."""
    (tmp_path / "cli_island.py").write_text(
        "from torch import cumsum, nn\n"
        "class Sums(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return cumsum(x, 3)\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), Sums(), nn.Conv2d(4, 4, 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ("explain", "--arch", "cli_island:net", "--input", "1x3x8x8", *BACKEND)
    call(*command, "--graph", "net.dot")
    text = (tmp_path / "net.dot").read_text()
    (island,) = (line for line in text.splitlines() if "dense: " in line)
    assert "<b>1.cumsum</b>" in island and "<i>cumsum</i>" in island and "1x4x6x6" in island
    delta, dense = ("[" + text.split(f"-> {end} [")[1].split("]")[0] + "]" for end in ('"0"', '"1.cumsum"'))
    assert delta != dense
    drawn = re.findall(r'^  "(.+)" -> "(.+)" (\[.*\])$', text, flags=re.MULTILINE)
    assert drawn == [
        ("frame input_0", "input_0", dense),
        ("input_0", "0", delta),
        ("0", "densify(0)", delta),
        ("densify(0)", "1.cumsum", dense),
        ("1.cumsum", "sparsify(1.cumsum)", dense),
        ("sparsify(1.cumsum)", "2", delta),
        ("2", "densify(2)", delta),
        ("densify(2)", "output", dense),
    ]
    monkeypatch.setenv("PATH", "")
    text = said(call(*command, "--graph", "net.svg", code=1))
    assert "needs Graphviz" in text and "write net.dot" in text and not (tmp_path / "net.svg").exists()


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz: apt install graphviz")
def test_graphviz_takes_the_graph(converted, tmp_path):
    call("explain", converted, "--graph", tmp_path / "net.svg", *BACKEND)
    text = (tmp_path / "net.svg").read_text()
    assert "features.0.0" in text and "blue: dense nodes (" in text
    assert "cannot write" in said(
        call("explain", converted, "--graph", tmp_path / "a.fpga", *BACKEND, code=1)
    )


def test_zoo_lists_what_converting_comes_to():
    args = ("zoo", NET, "fastestdet", "--input", "1x3x64x64")
    rows = json.loads(call(*args, "--json").stdout)
    assert [row["name"] for row in rows] == [NET, "fastestdet"]
    assert all(
        row["state_bytes"] > 0 and row["parameters"] > 1e5 and row["delta_share"] > 0.9 for row in rows
    )
    table = call(*args).stdout.splitlines()
    assert table[0].startswith("network") and "rearrange" in table[2]


def test_zoo_lists_names_at_once():
    """Without a conversion, which takes minutes for all."""
    import model_zoo

    lines = call("zoo").stdout.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(model_zoo.names())
    (line,) = (line for line in lines if line.startswith("resnet18 "))
    assert "11.7 M" in line and "1x3x224x224" in line and "ImageNet classifier" in line


# ---- run


def test_run_compares_and_marks(converted, clip, tmp_path):
    from deltaconvert import video

    out = tmp_path / "out.mp4"
    found = json.loads(call("run", converted, "--video", clip, "--out", out, "--json", *BACKEND).stdout)
    assert found["frames"] == 12 and found["size"] == [96, 64]
    assert 0 < found["density"] < 0.4 and 0 < found["work"] <= 1
    assert found["difference"]["max"] < 1e-3 and found["difference"]["relative_l2"] < 1e-4
    for times in (found["delta_ms"], found["dense_ms"]):
        assert 0 < times["median"] <= times["p95"]
    assert "batch norm folded, channels_last" in found["baseline"]
    with video.read(out) as reader:
        assert (reader.width, reader.height, len(list(reader))) == (96, 64, 12)
    text = call("run", converted, "--video", clip, "--limit", 3, *BACKEND).stdout
    assert "changed pixels" in text and "times as fast" in text and "difference to dense" in text


def test_run_with_a_gate(converted, clip):
    args = ("run", converted, "--video", clip, "--json", "--limit", 4, *BACKEND)
    plain, capped = (json.loads(call(*args, *extra).stdout) for extra in ((), ("--gate", "max_density=0.01")))
    assert capped["density"] < plain["density"] and capped["density"] <= 0.05


def test_run_with_thresholds_of_the_video(converted, clip):
    args = ("run", converted, "--video", clip, "--json", *BACKEND)
    exact, loose = (json.loads(call(*args, *extra).stdout) for extra in ((), ("--threshold", "50%")))
    assert loose["work"] < exact["work"] and loose["difference"]["max"] > exact["difference"]["max"]
    alone = json.loads(call(*args, "--no-compare").stdout)
    assert "dense_ms" not in alone and "difference" not in alone


def test_run_resizes_only_when_asked(converted, clip):
    found = json.loads(call("run", converted, "--video", clip, "--size", "48x32", "--json", *BACKEND).stdout)
    assert found["size"] == [48, 32]


def test_a_network_of_one_size_gets_its_size(clip, tmp_path):
    program, path = tmp_path / "net.pt2", tmp_path / "net.delta"
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())
    torch.export.save(torch.export.export(net.eval(), (torch.rand(1, 3, 32, 48),)), program)
    call("convert", program, "-o", path, *BACKEND)
    found = json.loads(call("run", path, "--video", clip, "--json", *BACKEND).stdout)
    assert found["size"] == [48, 32]
    call("report", path, "--video", clip, "-o", tmp_path / "net.html", *BACKEND)
    for command in ("run", "report"):
        text = said(call(command, path, "--video", clip, "--size", "96x64", *BACKEND, code=2))
        assert "captured for 48x32 alone, not 96x64" in text and "leave the option out" in text


def test_a_size_that_the_network_cannot_run_at(clip, tmp_path, monkeypatch):
    (tmp_path / "cli_halves.py").write_text(
        "from torch import nn\n"
        "class Halves(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.down, self.up = nn.Conv2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 3, 2, 2)\n"
        "    def forward(self, x):\n"
        "        return x + self.up(self.down(x))\n"
    )
    monkeypatch.chdir(tmp_path)
    call(
        "convert", "--random", "--arch", "cli_halves:Halves", "--input", "1x3x8x8", "-o", "a.delta", *BACKEND
    )
    text = said(call("run", "a.delta", "--video", clip, "--size", "33x32", *BACKEND, code=1))
    assert "cannot run on inputs of shape 1x3x32x33" in text


def test_a_size_at_which_the_network_branches_otherwise_says_the_way(clip, tmp_path, monkeypatch):
    (tmp_path / "cli_branches.py").write_text(
        "from torch import nn\n"
        "class Branches(nn.Conv2d):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)\n"
        "        return y if x.shape[2] > 16 else -y\n"
        "def make(): return nn.Sequential(Branches(3, 4, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    shape = ("--input", "1x3x8x8", "-o", "a.delta")
    call("convert", "--random", "--arch", "cli_branches:make", *shape, *BACKEND)
    text = said(call("run", "a.delta", "--video", clip, "--size", "32x32", *BACKEND, code=1))
    assert "convert it for this size: it was traced where" in text and "if x.shape[2] > 16" in text


@pytest.mark.parametrize("command", ["run", "report", "calibrate"])
def test_a_wrong_video_is_told_before_the_network_is_loaded(command, tmp_path, monkeypatch):
    pytest.importorskip("jinja2", reason="report asks for it first")
    monkeypatch.chdir(tmp_path)
    assert "none.mp4: no such file" in said(call(command, "none.delta", "--video", "none.mp4", code=1))


def test_a_wrong_name_of_the_overlay_is_told_before_the_network_is_loaded(clip, tmp_path):
    text = said(call("run", "none.delta", "--video", clip, "--out", tmp_path / "a.txt", code=1))
    assert "a.txt: cannot be written as H.264" in text and list(tmp_path.iterdir()) == []


def test_run_on_what_is_no_video(converted, clip, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:200])
    assert "broken.mp4" in said(call("run", converted, "--video", broken, *BACKEND, code=1))
    assert "no such file" in said(call("run", converted, "--video", "none.mp4", *BACKEND, code=1))
    out = tmp_path / "old.mp4"
    out.write_text("old")
    call("run", converted, "--video", broken, "--out", out, *BACKEND, code=1)
    assert out.read_text() == "old"


def test_a_network_that_takes_no_single_image(tmp_path, clip):
    import deltaconvert

    class Two(torch.nn.Module):
        def forward(self, a, b):
            return torch.relu(a) + b

    model = deltaconvert.convert(Two().eval(), (torch.rand(1, 3, 8, 8),) * 2, backend="reference")
    model.save(tmp_path / "two.delta")
    text = said(call("run", tmp_path / "two.delta", "--video", clip, *BACKEND, code=1))
    assert "does not say how images become its input" in text
    from deltaconvert import feed

    model.info = {"recipe": feed.to_json(feed.recipe_for("two", (1, 3, 8, 8)))}
    model.save(tmp_path / "two.delta")
    assert "takes 2 inputs" in said(call("run", tmp_path / "two.delta", "--video", clip, *BACKEND, code=1))


def test_recipes_in_files_are_checked(converted, clip, tmp_path):
    import deltaconvert
    from deltaconvert import feed
    from deltaconvert.errors import InputError

    model = deltaconvert.load(converted, backend="reference")
    recipe = model.info["recipe"]
    for field, value in (
        ("std", [0, 0, 0]),
        ("mean", "abc"),
        ("multiple", 0),
        ("scale", None),
        ("mean", [1, 2]),
        ("mean", [1]),
        ("channels", "grey"),
        ("channels", ["rgb"]),
    ):
        model.info = {"recipe": {**recipe, field: value}}
        with pytest.raises(InputError):
            feed.from_json(model.info["recipe"])
    model.save(tmp_path / "x.delta")
    call("run", tmp_path / "x.delta", "--video", clip, *BACKEND, code=1)


# ---- bench


def test_bench_says_what_it_measured(converted):
    args = ("bench", converted, "--density", "0,10,100", "--frames", 2, *BACKEND)
    found = json.loads(call(*args, "--json").stdout)
    still, some, everything = found["rows"]
    assert still["density"] == 0 and still["work"] < 0.05
    assert 0.05 < some["density"] < 0.15 and 0 < some["work"] < 1
    assert everything["density"] == everything["work"] == 1
    assert all(row["ratio"] == pytest.approx(row["dense_ms"] / row["delta_ms"]) for row in found["rows"])
    for key in ("date", "command", "torch", "processor", "threads", "baseline"):
        assert found[key]
    assert len(call(*args).stdout.splitlines()) == 6


def test_bench_draws_what_it_measured(converted, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'deltaconvert[plot]'")
    args = ("bench", converted, "--density", "0,100", "--frames", 1, *BACKEND)
    call(*args, "--plot", tmp_path / "speed.svg")
    text = (tmp_path / "speed.svg").read_text()
    assert "1x3x64x96" in text and "milliseconds a frame" in text
    assert "ends in no picture format" in said(call(*args, "--plot", tmp_path / "speed.txt", code=1))


def test_bench_names_the_extra_that_draws(converted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = said(call("bench", converted, "--plot", tmp_path / "speed.svg", code=1))
    assert "pip install 'deltaconvert[plot]'" in text


@pytest.mark.parametrize("form", ["--onnx", "--triton"])
def test_export_names_the_extra_that_writes(tmp_path, monkeypatch, form):
    """Before it asks for the file: a network may take half a minute to load."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    text = said(call("export", tmp_path / "none.delta", form, tmp_path / "out", code=1))
    assert "pip install 'deltaconvert[onnx]'" in text


# ---- mistakes


@pytest.mark.parametrize(
    "args, message",
    [
        (["explain"], "either a converted FILE or --arch"),
        (["explain", "--arch", "resnet81"], "did you mean resnet18"),
        (["explain", "--arch", "torchvision.models.resnet18"], "torchvision.models:resnet18"),
        (["explain", "--arch", "torch.nn:Identity"], "--input"),
        (["explain", "--arch", NET, "--input", "1x3"], "cannot|dimension|run"),
        (["explain", "--arch", NET, "--input", "1x3x0x5"], "no size such as"),
        (["explain", "--arch", NET, "--input", "big"], "no size such as"),
        (["explain", "--arch", NET, "--threshold", "x"], "no threshold"),
        (["explain", "--arch", NET, "--threshold", "-1"], "not negative"),
        (
            ["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x", "--gate", "smooth=4"],
            "odd",
        ),
        (
            ["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x", "--gate", "smooth"],
            "sets nothing",
        ),
        (["explain", "--arch", NET, "--threshold", "0.1", "--threshold", "0.2"], "stands alone"),
        (["bench", "--arch", NET, "--density", "200"], "percentages"),
        (["bench", "--arch", NET, "--density", "a"], "no list of numbers"),
        (["convert", "--random", "--arch", NET, "--input", "1x3x8x8"], "--output"),
        (["convert", "--arch", NET, "--input", "1x3x8x8", "-o", "x"], "either a CHECKPOINT or --random"),
        (
            ["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x", "--std", "0,0,0"],
            "not zero",
        ),
        (
            ["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x", "--mean", "a"],
            "no list of numbers",
        ),
        (["run", "x", "--video", "y", "--size", "5"], "no size such as 640x360"),
        (["run", "x"], "--video"),
        (["run", "x", "--video", "y", "--overlay", "flames"], "none of mask, heatmap"),
        (["calibrate", "x", "--video", "y", "--by", "luck"], "none of work, time"),
        (["calibrate", "x", "--video", "y", "--against", "luck"], "none of torch, compile"),
        (["calibrate", "x", "--video", "y", "--metric", "luck"], "there is no metric 'luck'"),
        (["export", "x", "--onnx", "y", "--dense-above", "7"], "--dense-above"),
        (["explain", NET], f"--arch {NET}"),
        (["run", "x", "--video", "y", "--out", "none/a.mp4"], "no folder none: make it first"),
        (["report", "x", "--video", "y", "-o", "none/a.html"], "no folder none"),
        (["calibrate", "x", "--video", "y", "-o", "none/a.json"], "no folder none"),
        (["calibrate", "x", "--video", "y", "--resume", "none/a"], "no folder none"),
        (["explain", "x", "--html", "none/a.html"], "no folder none"),
        (["explain", "x", "--graph", "none/a.dot"], "no folder none"),
        (["bench", "x", "--plot", "none/a.svg"], "no folder none"),
        (["export", "x", "--onnx", "none/a.onnx"], "no folder none"),
        (["export", "x", "--pt2", "none/a.pt2"], "no folder none"),
        (["export", "x", "--onnx", "."], "is a folder: name a file"),
        (["export", "x", "--triton", __file__], "is a file: name a folder"),
        (["demo", "--folder", __file__], "is a file: name a folder"),
        (["convert", "x", "-o", "none/a.delta"], "no folder none"),
        (["convert", "--random", "--arch", NET, "--input", "1x3x8x8", "-o", "x.onnx"], "Name it x.delta"),
        (["fly"], "No such command"),
        (["zoo", "nonet"], "model_zoo has no network"),
    ],
)
def test_wrong_usage_is_exit_code_2(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = 1 if message.startswith("cannot|") else 2  # the size is a size, but not one for this network
    assert re.search(message, said(call(*args, code=code)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ["convert", "x.delta", "-o", "x.delta"],
        ["convert", "x.delta", "--example", "clip.mp4", "-o", "clip.mp4"],
        ["run", "x.delta", "--video", "clip.mp4", "--out", "clip.mp4"],
        ["report", "x.delta", "--video", "clip.mp4", "-o", "./clip.mp4"],
        ["calibrate", "x.delta", "--video", "clip.mp4", "-o", "x.delta"],
        ["calibrate", "x.delta", "--video", "clip.mp4", "--resume", "clip.mp4"],
        ["bench", "x.delta", "--plot", "x.delta"],
        ["explain", "x.delta", "--html", "x.delta"],
        ["explain", "x.delta", "--graph", "x.delta"],
        ["export", "x.delta", "--onnx", "x.delta"],
        ["export", "x.delta", "--pt2", "x.delta"],
    ],
)
def test_what_a_command_reads_is_not_overwritten(args, converted, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "clip.mp4")
    shutil.copy(converted, "x.delta")
    before = Path(args[-1]).read_bytes()
    assert f"{Path(args[-1])} is what the command reads" in said(call(*args, code=2))
    assert Path(args[-1]).read_bytes() == before


def test_damaged_files_are_exit_code_1(converted, tmp_path):
    (tmp_path / "short").write_bytes(converted.read_bytes()[:-5])
    assert "Copy it again" in said(call("explain", tmp_path / "short", code=1))
    assert "No such file or directory" in said(call("explain", tmp_path / "none", code=1))
    assert "'fpga' is none of auto, cpu, cuda, reference" in said(
        call("explain", converted, "--backend", "fpga", code=2)
    )


def test_words_of_options_are_the_librarys():
    from deltaconvert.calibrate import METHODS
    from deltaconvert.watching import watch

    assert "|".join(watch.MARKS) in call("run", "--help").stdout
    text = said(call("calibrate", "x", "--video", "y", "--method", "luck", code=2))
    assert f"none of {', '.join(METHODS)}" in text


def test_a_file_that_may_not_be_written(tmp_path, monkeypatch):
    from deltaconvert.cli import options

    monkeypatch.setattr(options.os, "access", lambda path, how: False)  # root may write anywhere
    text = said(call("explain", "x", "--html", tmp_path / "a.html", code=2))
    assert "may not be written" in text


def test_serve_says_what_is_missing(converted, monkeypatch):
    pytest.importorskip("uvicorn")
    assert "there is no device 'gpu'" in said(call("serve", converted, "--device", "gpu", code=1))
    monkeypatch.setitem(sys.modules, "ray", None)
    text = said(call("serve", converted, "--workers", 2, code=1))
    assert 'pip install "deltaconvert[serve]"' in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(converted, clip):
    here = [converted, "--device", "cuda"]
    for command in (["run", "--video", clip], ["bench"], ["explain"], ["calibrate", "--video", clip]):
        text = said(call(command[0], *here, *command[1:], code=1))
        assert "cuda is not to be had here" in text and "Take cpu" in text


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(app, ["--debug", "explain", str(tmp_path / "none.delta")])
    assert result.exit_code == 1 and "Traceback" in result.stderr and "No such file" in result.stderr


# ---- as a program


def test_as_a_program(tmp_path, converted, clip):
    shown = shell("explain", converted, "--json", *BACKEND, cwd=tmp_path)
    assert shown.returncode == 0 and shown.stderr == "" and json.loads(shown.stdout)["nodes"]
    failed = shell("explain", "none.delta", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.strip() == "error: none.delta: No such file or directory"


def test_help_does_not_wait_for_torch(tmp_path):
    program = "import sys; from deltaconvert.cli import app; app(['--help'], standalone_mode=False)"
    program += "; assert 'torch' not in sys.modules and 'model_zoo' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for command in ("convert", "explain", "run", "bench", "zoo", "demo"):
        assert command in done.stdout
    assert shell("--version", cwd=tmp_path).stdout.strip() == "0.1.0"


# ---- the demo


def test_the_demo_at_a_tiny_size(tmp_path):
    pytest.importorskip("skimage")
    from deltaconvert.watching.demo import run_demo

    notes = []
    facts, text = run_demo(
        tmp_path / "demo", network=NET, backend="reference", size=(96, 64), seconds=0.4, say=notes.append
    )
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == json.loads(json.dumps(facts))
    assert {p.name for p in (tmp_path / "demo").iterdir()} == {
        "clip.mp4",
        "overlay.mp4",
        "summary.json",
        f"{NET}.delta",
    }
    assert "thresholds for the clip's noise (input 0.09, activation 20%)" in text  # why outputs differ
    assert (
        facts["frames"] == 10 and facts["weights"] == "untrained" and facts["difference"]["max"] is not None
    )
    assert "untrained" in text and any("untrained" in note for note in notes)


SMALL = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))

def worst(ours, dense):
    return max(float((a - b).abs().max()) for a, b in zip(ours, dense))
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    (tmp_path / "cli_small.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    call("convert", "--random", "--arch", "cli_small:net", "--input", "1x3x64x96", "-o", "a.delta", *BACKEND)
    return "a.delta"


def test_calibrate(small, clip):
    options = (
        "--metric",
        "cli_small:worst",
        "--budget",
        0.8,
        "--method",
        "front_to_back",
        "--at-once",
        2,
        "--seconds",
        600,
        "--check",
        clip,
        "--json",
    )
    result = call("calibrate", small, "--video", clip, "--frames", 3, *options)
    assert "weights are untrained" in result.stderr
    facts = json.loads(result.stdout)
    assert facts["file"] == "a.json" and 0 < facts["loss"] <= 0.8 and facts["metric"] == "worst"
    assert 0 < facts["checked"] <= 0.8 and json.loads(Path("a.json").read_text())["found"]["checked"] <= 0.8
    run = ("run", small, "--video", clip, "--limit", 3, "--json", *BACKEND)
    exact, found = (json.loads(call(*run, *extra).stdout) for extra in ((), ("--threshold", "a.json")))
    assert found["work"] < exact["work"] and found["difference"]["max"] <= 0.81  # on another way to add up


def test_calibrate_on_frames_in_which_nothing_moves_says_so(small, tmp_path):
    from deltaconvert.video import VideoWriter

    with VideoWriter(tmp_path / "still.mp4", 10, (96, 64), crf=10) as out:
        for _ in range(3):
            out.write(torch.full((64, 96, 3), 90, dtype=torch.uint8))
    simple = ("--method", "front_to_back")
    assert "something moves" in said(call("calibrate", small, "--video", tmp_path / "still.mp4", *simple))


def test_calibrate_by_time_against_a_compiled_network(small, clip, monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.compile", lambda network: compiled.append(network) or network)
    by_time = ("--by", "time", "--against", "compile", "--method", "front_to_back", "--budget", 0.5, "--json")
    facts = json.loads(call("calibrate", small, "--video", clip, "--frames", 3, *by_time).stdout)
    assert facts["milliseconds"] > 0 and facts["dense_milliseconds"] > 0 and len(compiled) == 1


def test_report(small, clip):
    pytest.importorskip("jinja2")
    pytest.importorskip("PIL")
    call("report", small, "--video", clip, "--limit", 4, *BACKEND)
    assert "multiply-accumulates" in Path("a.report.html").read_text()
    hot = ("--out", "hot.mp4", "--overlay", "heatmap", "--no-compare", "--monitor", 1)
    told = call("run", small, "--video", clip, "--limit", 3, *hot, *BACKEND).stdout
    assert Path("hot.mp4").stat().st_size > 0 and "error observed in 3 frames" in told
    call("report", small, "--video", clip, "--limit", 4, "--no-compare", "--monitor", 1, *BACKEND)
    assert "by the monitor" in Path("a.report.html").read_text()

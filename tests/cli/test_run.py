"""deltaconvert run: a network on a video, beside the dense one."""

import json
import re
import signal

import pytest
import torch
from command_line import BACKEND, NET, call, said


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


def test_ctrl_c_ends_a_video_with_what_was_seen(converted, clip, tmp_path, monkeypatch):
    from deltaconvert import video
    from deltaconvert.cli.show import until_interrupted
    from deltaconvert.watching import watch

    resize, count = watch.resize, iter(range(100))

    def interrupted(frame, size):
        if next(count) == 4:
            signal.raise_signal(signal.SIGINT)
        return resize(frame, size)

    monkeypatch.setattr(watch, "resize", interrupted)
    out = tmp_path / "out.mp4"
    result = call("run", converted, "--video", clip, "--out", out, *BACKEND)
    assert "5 frames of 96x64" in result.stdout and "stopped after this frame" in said(result)
    with video.read(out) as reader:
        assert len(list(reader)) == 5
    with pytest.raises(KeyboardInterrupt), until_interrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_long_path_leaves_room_for_the_bar(capsys, monkeypatch):
    from deltaconvert.cli.show import progress_bar

    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "80"), ("LINES", "24")):
        monkeypatch.setenv(name, value)
    with progress_bar("/recordings" * 9, 50) as follow:
        assert list(follow(range(50))) == list(range(50))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(r"/recordings.*… ━+ 50/50 ", text)


@pytest.mark.parametrize("source", ["damaged.mp4", "0"])
def test_what_was_seen_before_a_video_breaks_is_told(source, converted, tmp_path, monkeypatch):
    """A damaged file, and a camera that is lost: then comes the error."""
    pytest.importorskip("jinja2")
    from deltaconvert import video
    from deltaconvert.video import reader

    noise, path = torch.Generator().manual_seed(0), tmp_path / "damaged.mp4"
    with video.VideoWriter(path, 10, (96, 64)) as out:
        for _ in range(12):
            out.write(torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=noise))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8000] = b"\xff" * 8000
    path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reader, "locate", lambda name: (str(path), {}))
    quick = ("--no-compare", *BACKEND)
    result = call("run", converted, "--video", source, "--out", "seen.mp4", *quick, code=1)
    frames = int(result.stdout.split()[0])
    assert 2 < frames < 12 and "frames of 96x64\n  changed pixels" in result.stdout
    with video.read(str(path), limit=frames) as read:
        assert len(list(read)) == frames
    why = f"camera 0: lost at frame {frames}" if source == "0" else f"frame {frames} cannot be decoded"
    assert said(result).count(why) == 1
    report = call("report", converted, "--video", source, "-o", "seen.html", *quick, code=1)
    assert f"seen.html: {frames} frames" in report.stdout and why in said(report)
    assert f"<b>{frames}</b>frames" in (tmp_path / "seen.html").read_text()


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


def test_settings_of_a_gate_leave_the_others_as_they_are(converted, clip, tmp_path):
    """Those of a file of thresholds, and those of the network's own file."""
    from deltaconvert.gate import Gate
    from deltaconvert.thresholds import Thresholds

    Thresholds({"input": 0.1}, Gate(smooth=3, dilate=2)).write(tmp_path / "found.json")
    found, file = ("--threshold", tmp_path / "found.json"), tmp_path / "a.delta"
    args = ("--random", "--arch", NET, "--input", "1x3x32x32", "-o", file, *BACKEND)
    call("convert", *args, *found, "--gate", "refresh=300")

    def gate_of(*options):
        args = ("run", file, "--video", clip, "--json", "--limit", 1, "--no-compare", *BACKEND)
        return json.loads(call(*args, *options).stdout)["gate"]

    assert gate_of() == {"smooth": 3, "dilate": 2, "refresh": 300}
    assert gate_of("--gate", "dilate=0") == {"smooth": 3, "refresh": 300}
    assert gate_of("--threshold", 0.1, "--gate", "smooth=5") == {"smooth": 5, "dilate": 2, "refresh": 300}
    assert gate_of(*found, "--gate", "cut=0.5") == {"smooth": 3, "dilate": 2, "cut": 0.5}


def test_one_frame_tells_nothing_of_what_is_saved(converted, clip):
    text = call("run", converted, "--video", clip, "--limit", 1, *BACKEND).stdout
    assert "1 frame of 96x64" in text and "a longer video tells" in text


def test_a_fraction_is_a_threshold(converted, clip):
    args = ["run", converted, "--video", clip, "--limit", 2, "--json", *BACKEND]
    found = json.loads(call(*args, "--threshold", "input=10/255").stdout)
    assert found["thresholds"]["input"] == 10 / 255

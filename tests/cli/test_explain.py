"""deltaconvert explain and zoo: what converting comes to, as text, JSON and graphs."""

import io
import json
import re
import shutil
import sys

import pytest
from command_line import BACKEND, NET, call, said


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
    assert "net.dot: the graph" in call(*command, "--graph", "net.dot").stdout
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
    monkeypatch.setenv("PATH", "")  # said before the network is looked for
    text = said(call("explain", "none.delta", "--graph", "net.svg", code=1))
    assert "needs Graphviz" in text and "write net.dot" in text and not (tmp_path / "net.svg").exists()


def test_the_table_keeps_to_the_width_of_a_terminal(converted, monkeypatch):
    import deltaconvert
    from deltaconvert.cli import show

    rows = deltaconvert.load(converted, backend="reference").explain()
    assert max(map(len, str(rows).splitlines())) > 100
    monkeypatch.setenv("COLUMNS", "80")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    show.print_table(("node", "why"), [("a[0]", "[1, 3] " * 40), *(row[:2] for row in rows.cells())])
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "a[0]" in text and "[1, 3]" in text and max(map(len, text.splitlines())) <= 80


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

"""deltaconvert as a program of its own, and its demo."""

import json
import subprocess
import sys

import pytest
from command_line import BACKEND, NET, ROOT, shell


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

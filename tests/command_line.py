"""Calls commands in tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from deltaconvert.cli import app

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
    """The text on stderr without its boxes and line breaks."""
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

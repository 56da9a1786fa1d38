"""docs/operators.md lists what the tests of the operators convert."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_of_operators_is_current():
    """To update the table, run docs/operators.py."""
    command = [sys.executable, str(ROOT / "docs" / "operators.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

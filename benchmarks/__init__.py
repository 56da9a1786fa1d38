"""Benchmarks: one script for each claim of the documentation.

Python puts a script's own folder first in sys.path. There, `import onnx` and numba's `import coverage` would find the
scripts of these names, so importing this package takes the folder out of sys.path."""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != _HERE]

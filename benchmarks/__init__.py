"""One script per claim. A script finds its own folder first in sys.path, and there `import onnx` and numba's `import
coverage` would take the files of these names: what imports this package does without the folder."""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != _HERE]

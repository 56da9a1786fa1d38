"""Build the wheel and hold what is inside against the tree: every source, every kernel, nothing else.

python .ci/check_wheel.py [FOLDER]      leaves the wheel in FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = {".py", ".typed", ".cu", ".cuh", ".html"}
PACKED = {"deltaconvert": "deltaconvert", "model_zoo": "model_zoo", "kernels": "deltaconvert/kernels"}


def build(folder: Path) -> Path:
    """The wheel, built without a network: hatchling is in this environment already."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def expected() -> set[str]:
    """The paths that the wheel must hold, besides its own metadata."""
    return {
        f"{inside}/{path.relative_to(ROOT / outside).as_posix()}"
        for outside, inside in PACKED.items()
        for path in (ROOT / outside).rglob("*")
        if path.is_file() and path.suffix in KINDS
    }


def differences(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = expected()
    return [f"missing: {name}" for name in sorted(wanted - names)] + [
        f"does not belong: {name}" for name in sorted(names - wanted)
    ]


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build(Path(arguments[0] if arguments else scratch))
        found = differences(wheel)
        print(f"wheel: {wheel.name}, {wheel.stat().st_size // 1024} KiB, {len(expected())} files")
    for line in found:
        print(f"  {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Make the environment by uv: what `make setup` does by pip, in half a minute instead of two and a half.

    python .ci/setup.py [VENV]      fails where uv does; `make setup` may do then

uv reads none of pip's settings, so it is told where pip looks on this machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
}


def settings(listed: str) -> dict[str, str]:
    """The environment that tells uv what `pip config list` says. What pip has from its own environment goes first."""
    lines = re.findall(r"^(\S+?)\.([\w-]+)='(.*)'$", listed, re.MULTILINE)
    found = {name: text for _, name, text in sorted(lines, key=lambda line: line[0] == ":env:")}
    told = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # the newest of all indexes, as pip takes it
    for name, ours in SETTINGS.items():
        if name in found:
            told[ours] = ("," if name == "find-links" else " ").join(found[name].replace("\\n", " ").split())
    return told


def reached(url: str) -> bool:
    """Whether an index answers: uv would end without it, where pip goes on with PyPI."""
    try:
        with urllib.request.urlopen(f"{url}/", timeout=10):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False


def main(venv: Path) -> int:
    python = venv / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "uv"], check=True)
    listed = subprocess.run([*pip, "config", "list"], check=True, capture_output=True, text=True).stdout
    source = f"--extra-index-url {CPU_BUILDS}" if reached(CPU_BUILDS) else ""
    install = f"{venv / 'bin' / 'uv'} pip install --python {python}"
    command = ["make", "setup", f"VENV={venv}", f"INSTALL={install}", f"TORCH_FROM={source}"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **settings(listed)}).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT / ".venv"))

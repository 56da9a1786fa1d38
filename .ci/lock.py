"""Write requirements.lock: everything but torch that users install, pinned, with hashes, for every platform.

    python .ci/lock.py           resolves anew, as of today (needs uv)
    python .ci/lock.py audit     asks PyPI for known vulnerabilities of what is locked (needs pip-audit)

torch is left out: its build is chosen for the machine (Makefile). An audit that cannot reach PyPI says so and passes:
it is a question about the outside, not about this tree.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
EXTRAS = ("cpu", "onnx", "video", "plot", "metrics", "report", "serve")


def wanted() -> list[str]:
    """The requirements of the package and its extras, without torch and without the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(r for e in EXTRAS for r in project["optional-dependencies"][e])]
    return [line for line in dict.fromkeys(lines) if not line.startswith(("torch", "deltaconvert"))]


def lock() -> int:
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--universal", "--python-version", "3.10"]
    command += [
        "--generate-hashes",
        "--no-annotate",
        "--no-header",
        "--no-emit-index-url",
        "--no-emit-find-links",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        nothing = Path(scratch) / "override.txt"
        # Nor what torch brings, where a package asks for it.
        nothing.write_text("torch; sys_platform == 'none'\n")
        command += ["--override", str(nothing)]
        done = subprocess.run(command, input="\n".join(wanted()), text=True, capture_output=True)
    if done.returncode:
        print(done.stderr)
        return 1
    packages = [
        text for text in re.split(r"\n(?=\S)", done.stdout.strip()) if "sys_platform == 'none'" not in text
    ]
    LOCK.write_text(
        "\n".join(["# Written by python .ci/lock.py. torch is not in it: see Makefile.", *packages, ""])
    )
    print(f"{LOCK.name}: {len(packages)} packages")
    return 0


def audit() -> int:
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "-f", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], text=True, capture_output=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:  # it found no way out, or is not installed
        print(f"vulnerabilities: not asked: {done.stderr.strip().splitlines()[-1:]}")
        return 0
    found = [(p["name"], v["id"], v["fix_versions"]) for p in packages for v in p.get("vulns", ())]
    for name, known_as, fixed in found:
        print(f"  {name}: {known_as}, mended in {', '.join(fixed) or 'no version yet'}")
    asked = sum("vulns" in package for package in packages)
    if not asked:  # a mirror, which knows packages and no vulnerabilities: no news is not good news
        print(f"vulnerabilities: not asked: nobody here knows any of the {len(packages)} locked packages")
        return 0
    print(
        f"vulnerabilities: {len(found)} known in the {asked} of {len(packages)} locked packages that PyPI answers for"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(audit() if sys.argv[1:] == ["audit"] else lock())

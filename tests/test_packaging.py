"""What is shipped: the wheel's content, what an import loads, and the Python versions."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = (
    "av",
    "cupy",
    "cuda",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "skimage",
    "torchvision",
)


def _tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_wheel():
    return _tool("check_wheel")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling to build the wheel: make setup installs it")
    return _check_wheel().build(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_source_and_kernel_and_nothing_else(wheel):
    tool = _check_wheel()
    assert tool.differences(wheel) == []
    expected = tool.expected()
    assert {"deltaconvert/py.typed", "deltaconvert/kernels/masks.cu", "model_zoo/resnet.py"} <= expected
    assert not any("test" in Path(name).parts for name in expected)


def test_the_wheels_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        scripts = archive.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode()
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    required = {
        line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    assert {line.split()[1].split(">")[0] for line in required} == {
        "torch",
        "numpy",
        "safetensors",
        "typer",
        "rich",
    }
    assert "deltaconvert = deltaconvert.cli:main" in scripts


def test_the_installed_wheel_imports_from_any_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import deltaconvert, model_zoo; print(deltaconvert.__file__, len(model_zoo.names()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, zoo = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path) and int(zoo) > 0


def test_import_pulls_in_no_optional_package():
    code = f"import sys, deltaconvert; print(*[name for name in {OPTIONAL} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_public_names_are_listed_before_they_are_imported():
    code = (
        "import sys, deltaconvert as d; assert set(d.__all__) <= set(dir(d)) and 'torch' not in sys.modules; "
        "from deltaconvert.convert import convert; assert d.convert is convert; import deltaconvert.convert; "
        "assert d.convert is convert"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def _python(version: str) -> str | None:
    """An interpreter of that version; it is called once, since pyenv's shims may lead nowhere."""
    shims = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *shims.glob(f"{version}.*/bin/python{version}")]
    for path in filter(None, candidates):
        if subprocess.run([path, "-V"], capture_output=True).returncode == 0:
            return str(path)
    return None


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_the_sources_compile_on(version, tmp_path):
    python = _python(version)
    if python is None:
        pytest.skip(f"there is no python{version} here")
    for package in ("deltaconvert", "model_zoo"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [python, "-W", "error", "-m", "compileall", "-q", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
@pytest.mark.parametrize(
    "driver, torch, extras",
    [
        ("12.8", "'torch>=2.6,<2.11'", "[cuda12,dev]"),
        ("13.0", "'torch>=2.6'", "[cuda13,dev]"),
        ("", "whl/cpu", "[dev]"),
    ],
)
def test_setup_takes_torch_and_cupy_for_the_drivers_cuda(tmp_path, driver, torch, extras):
    """PyPI's torch is for CUDA 13 from 2.11 on; a driver for 12 cannot run it."""
    told = f"| NVIDIA-SMI 570.1   Driver Version: 570.1   CUDA Version: {driver} |" if driver else ""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{told}'\n")
    tool.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ["make", "-n", "setup", f"VENV={tmp_path / 'none'}"]
    said = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    ).stdout
    assert torch in said and extras in said


@needs_make
def test_a_demo_installs_no_more_than_it_needs(tmp_path):
    def said():
        command = ["make", "-n", "demo", f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "cpu,demo]" in said() and "dev]" not in said()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / ".ready").touch()
    assert "pip" not in said(), "what make setup made has all that it needs"


@needs_make
def test_setup_freezes_torch_at_the_version_that_pip_knows(tmp_path):
    """PyPI's build for CUDA calls itself 2.13.0 and, in torch.__version__, 2.13.0+cu130."""
    site, python = tmp_path / "site", tmp_path / "venv" / "bin" / "python"
    for folder in (site / "torch", site / "torch-2.13.0.dist-info", python.parent):
        folder.mkdir(parents=True)
    cuda = "class cuda:\n    is_available = staticmethod(lambda: False)\n"
    (site / "torch" / "__init__.py").write_text(f"__version__ = '2.13.0+cu130'\n{cuda}")
    metadata = "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n"
    (site / "torch-2.13.0.dist-info" / "METADATA").write_text(metadata)
    # The script's installer does nothing; everything else runs with the present torch.
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] || PYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    venv = tmp_path / "venv"
    subprocess.run(["make", "setup", f"VENV={venv}"], cwd=ROOT, capture_output=True, check=True)
    assert (venv / "constraints.txt").read_text() == "torch==2.13.0\n"


def test_uv_looks_where_pip_does():
    listed = """:env:.find-links='/wheels /more'
:env:.timeout='180'
global.extra-index-url='file:///a\\nhttps://b/simple'
global.find-links='/others'"""
    assert _tool("setup").settings(listed) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_INDEX": "file:///a https://b/simple",
        "UV_FIND_LINKS": "/wheels,/more",
    }


def test_the_lock_pins_what_the_package_asks_for_with_hashes():
    """For every Python, each dependency has a version that the package accepts, and every file has a hash."""
    requirements = pytest.importorskip("packaging.requirements")
    entries = [
        entry.replace("\\\n", " ").split()
        for entry in re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
        if not entry.startswith("#")
    ]
    assert len(entries) > 40
    pinned: dict[str, list[str]] = {}
    for pin, *rest in entries:
        name, version = pin.split("==")
        pinned.setdefault(name, []).append(version)
        assert any(word.startswith("--hash=sha256:") for word in rest), pin
    for line in _tool("lock").wanted():
        wanted = requirements.Requirement(line)
        versions = pinned[re.sub(r"[-_.]+", "-", wanted.name).lower()]
        assert any(wanted.specifier.contains(version) for version in versions), line


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        ({"vulns": []}, 0, "0 known in the 1 of 1"),
        ({"vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}, 1, "a: CVE-1, mended in 2"),
        ({"skip_reason": "not found"}, 0, "not asked"),
        (None, 0, "not asked"),
    ],
)
def test_the_audit_tells_no_news_from_good_news(monkeypatch, capsys, answer, code, text):
    tool = _tool("lock")
    said = "" if answer is None else json.dumps({"dependencies": [{"name": "a", "version": "1", **answer}]})
    done = subprocess.CompletedProcess([], 1, said, "ConnectionError")
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: done)
    assert tool.audit() == code and text in capsys.readouterr().out

"""The tool with which `make check` compiles every CUDA source by itself, for every supported GPU, and fast."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "kernels").glob("*.cu"))


def _load():
    spec = importlib.util.spec_from_file_location("compile_kernels", ROOT / ".ci" / "compile_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _load()
compiler = tool.find_compiler()
needs_compiler = pytest.mark.skipif(compiler is None, reason="needs nvcc or NVRTC to compile a CUDA source")


def test_there_are_kernels():
    assert SOURCES


@needs_compiler
def test_a_kernel_compiles():
    """One of them, for the newest GPU."""
    source = min(SOURCES, key=lambda path: path.stat().st_size)
    log, seconds = compiler.compile(source, compiler.architectures[-1])
    assert log is None, log
    assert seconds <= tool.GATE


@needs_compiler
@pytest.mark.skipif(
    compiler and "90" not in compiler.architectures, reason="the compiler does not know Hopper"
)
@pytest.mark.parametrize(
    "macros", [("TYPE=1",), ("TYPE=2", "BN=64"), ("TYPE=3", "BM=64", "STAGES=4", "SPLIT=4")]
)
def test_tensor_cores_of_hopper(macros):
    log, seconds = compiler.compile(ROOT / "kernels" / "conv_wgmma.cu", "90a", macros)
    assert log is None, log
    assert seconds <= tool.GATE


@needs_compiler
def test_a_broken_kernel_is_reported_with_the_compilers_words(tmp_path, capsys, monkeypatch):
    newest = compiler._replace(architectures=compiler.architectures[-1:])
    monkeypatch.setattr(tool, "find_compiler", lambda nvcc: newest)
    broken = tmp_path / "broken.cu"
    broken.write_text('extern "C" __global__ void f(int* x) { x[0] = nowhere; }')
    assert tool.main([str(broken)]) == 1
    assert "nowhere" in capsys.readouterr().out


@pytest.mark.parametrize("ci, code", [("true", 1), ("", 0)])
def test_no_compiler_is_a_failure_in_ci_only(monkeypatch, capsys, ci, code):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(tool, "find_compiler", lambda nvcc: None)
    assert tool.main([]) == code
    assert "neither nvcc nor NVRTC" in capsys.readouterr().out

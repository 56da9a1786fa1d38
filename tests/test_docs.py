"""The documents are right: their code runs, their links and files exist, their tables are current."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import BACKEND, call

import deltaconvert
import model_zoo
from deltaconvert import errors, video

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
SOURCES = ("deltaconvert", "kernels", "benchmarks", "model_zoo")


def _blocks(document: Path) -> list[str]:
    """The fenced Python blocks of a document, in order."""
    return re.findall(r"^```python\n(.*?)^```$", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def _run(arguments: list[str], folder: Path, *paths: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_the_operator_that_contributing_adds_works(tmp_path):
    files = {}
    for block in _blocks(ROOT / "CONTRIBUTING.md"):
        title = re.match(r"# (\S+\.py)\n", block)
        assert title, f"a block without its path in the first line:\n{block}"
        files[title[1]] = block
    assert [Path(path).parent.as_posix() for path in files] == ["deltaconvert/ops", "tests/ops"]
    for path, text in files.items():
        assert not (ROOT / path).exists(), f"{path} exists now: let CONTRIBUTING.md add another operator"
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    operator, test = files
    folder = str((tmp_path / operator).parent)
    (tmp_path / "more_operators.py").write_text(
        f"import deltaconvert.ops\ndeltaconvert.ops.__path__.append({folder!r})\n"
    )
    plugins = ["-p", "conftest", "-p", "more_operators", "-p", "no:cacheprovider"]
    _run(["-m", "pytest", "-q", *plugins, test], tmp_path, ROOT, ROOT / "tests", tmp_path)


def test_the_readme_runs(tmp_path):
    blocks = _blocks(ROOT / "README.md")
    assert blocks
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks))
    _run([str(script)], tmp_path, ROOT)


def test_the_table_of_networks_is_current():
    """To update it, put the output of deltaconvert zoo --input 1x3x128x128 below the introduction of docs/zoo.md."""
    table = call("zoo", "--input", "1x3x128x128").stdout.strip()
    assert len(table.splitlines()) == 2 + len(model_zoo.names())
    written = (ROOT / "docs" / "zoo.md").read_text().split("```")[1].strip()
    assert written == table


def test_the_first_hour_runs(tmp_path, monkeypatch):
    """Its shell commands run on a clip of few small frames, except those that search or serve; then its Python runs.

    The network is small and runs on the reference backend, since compiling kernels takes half a minute.
    """
    page = ROOT / "docs" / "first_hour.md"
    monkeypatch.chdir(tmp_path)
    with video.VideoWriter("street.mp4", 25, (96, 64)) as clip:
        for place in range(4):
            frame = torch.full((64, 96, 3), 90, dtype=torch.uint8)
            frame[20:40, 10 * place : 10 * place + 20] = 200
            clip.write(frame)
    text = page.read_text().replace("360x640", "64x96").replace("resnet18", "mobilenetv3_small")
    lines = re.findall("^    deltaconvert (.*)$", text, flags=re.MULTILINE)
    assert {line.split()[0] for line in lines} == {
        "convert",
        "explain",
        "run",
        "calibrate",
        "report",
        "serve",
    }
    for line in lines:
        if line.split()[0] not in ("calibrate", "serve"):
            call(*line.split(), *BACKEND)
    program = "\n".join(_blocks(page))
    assert 'load("street.delta")' in program
    (tmp_path / "page.py").write_text(program.replace('delta")', 'delta", backend="reference")'))
    _run(["page.py"], tmp_path, ROOT)


@pytest.mark.parametrize(("name", "needs"), [("export", "onnxruntime"), ("reading", "torch")])
def test_the_page_runs(name, needs, tmp_path):
    pytest.importorskip(needs)
    (tmp_path / "page.py").write_text("\n".join(_blocks(ROOT / "docs" / f"{name}.md")))
    _run(["page.py"], tmp_path, ROOT)


def test_the_reading_page_names_every_kernel():
    named = re.findall(r"`(\w+\.cuh?)`", (ROOT / "docs" / "reading.md").read_text())
    assert set(named) == {path.name for path in (ROOT / "kernels").iterdir()}


def test_the_api_page_names_all_that_is_public():
    """The page names all that is public, and the arguments that it shows exist."""
    text = (ROOT / "docs" / "api.md").read_text()
    inner = {"forward", "frame", "lent_frame", "frame_for", "install", "take_over", "blank_frames"}
    inner |= {"output_forms", "of", "to_json", "check_frames", "doubts"}
    # docs/thresholds.md describes these.
    inner |= {field.name for field in dataclasses.fields(deltaconvert.Gate)}
    public = {name: [getattr(deltaconvert, name)] for name in deltaconvert.__all__}
    for owner in [*deltaconvert.DeltaModel.__mro__, *(value for (value,) in list(public.values()))]:
        if isinstance(owner, type) and owner.__module__.startswith("deltaconvert."):
            for name in set(vars(owner)) - inner:
                if not name.startswith("_"):
                    public.setdefault(name, []).append(getattr(owner, name))
    names = {*public, *(name for name in vars(errors) if name.endswith(("Error", "Model")))}
    missing = [name for name in sorted(names) if not re.search(rf"`[^`]*\b{name}\b[^`]*`", text)]
    assert not missing
    for name, shown in re.findall(r"`(\w+)\(([^)`]*)\)`", text):
        given = {word.split("=")[0].strip() for word in shown.split(",") if not word.strip().startswith("*")}
        if name in public:
            assert any(given - {"", "..."} <= _parameters(value) for value in public[name]), (name, shown)


def test_the_table_of_real_clips_is_that_of_its_records():
    command = [sys.executable, "benchmarks/real_video.py", "--markdown", "benchmarks/results/real_video"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    table = "\n".join(line for line in done.stdout.splitlines() if line.startswith("|"))
    assert len(table.splitlines()) > 2 and table in (ROOT / "docs" / "real_video.md").read_text()


def _parameters(call: object) -> set[str]:
    return set(inspect.signature(call).parameters) if callable(call) else set()


def test_every_benchmark_is_in_their_table():
    named = re.findall(r"`(\w+)\.py`", (ROOT / "benchmarks/README.md").read_text())
    scripts = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__"]
    assert sorted(named) == sorted(scripts)


def test_the_map_of_contributing_names_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    where = text[text.index("## Where things are") : text.index("## How to add")]
    modules = {
        path.name for path in (ROOT / "deltaconvert").iterdir() if path.suffix == ".py" or path.is_dir()
    }
    assert [name for name in sorted(modules) if name[0] != "_" and not re.search(rf"\b{name}", where)] == []


def test_every_page_is_in_the_index():
    listed = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "README.md").read_text())
    assert sorted([*listed, "README.md"]) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_files_that_are_named_exist():
    """Files that pages name in backticks, and that sources name anywhere."""
    elsewhere = {"train.py", "ring.cuh"}  # a file of another project, and one that was tried and removed
    found = [path for part in SOURCES for path in (ROOT / part).rglob("*")]
    sources = [path for path in found if path.suffix in (".py", ".cu", ".cuh")]
    others = [path for part in ("tests", "docs", ".ci") for path in (ROOT / part).rglob("*.py")]
    there = "\n".join(path.as_posix() for path in [*sources, *others]) + "\n"
    for path in [*PAGES, *sources]:
        before = "`" if path.suffix == ".md" else r"(?<![\w/.])"
        named = re.findall(before + r"([a-z][a-z0-9_/]*\.(?:py|cuh?))\b", path.read_text())
        assert [name for name in named if f"/{name}\n" not in there and name not in elsewhere] == [], path


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in PAGES])
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, place = target.partition("#")
        if "://" in target:
            continue
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        assert not place or place in _places(linked), target


def test_records_are_named_where_their_numbers_are():
    """Each record is named by a page, a script or a constant that follows from it; and pages name no missing record."""
    results = ROOT / "benchmarks" / "results"
    pages = "\n".join(page.read_text() for page in PAGES)
    sources = [
        *ROOT.glob("benchmarks/**/*.py"),
        *ROOT.glob("deltaconvert/**/*.py"),
        *ROOT.glob("kernels/*.cu*"),
    ]
    text = pages + "\n".join(source.read_text() for source in sources)
    for record in results.rglob("*.json"):
        folder = record.parent.relative_to(results).parts[:1]
        assert record.name in text or any(f"results/{name}" in pages for name in folder), record
    for name in re.findall(r"results/([\w/*.-]+\.json)", pages):
        assert any(results.glob(name)), name


def _places(document: Path) -> set[str]:
    """The anchors that #... may name: headings, as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

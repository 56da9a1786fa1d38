"""A small converted file, images of it, and a video."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from serving import HEIGHT, PATIENCE, WIDTH, frame, free_port
from torch import nn

import deltaconvert
from deltaconvert import feed, video
from deltaconvert.serve import worker


@pytest.fixture(scope="session")
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)
    ).eval()


@pytest.fixture(scope="session")
def recipe():
    return feed.recipe_for("small", (1, 3, HEIGHT, WIDTH))


@pytest.fixture(scope="session")
def file(network, recipe, tmp_path_factory):
    model = deltaconvert.convert(network, torch.rand(1, 3, HEIGHT, WIDTH), backend="cpu")
    model.info = {"recipe": feed.to_json(recipe)}
    path = tmp_path_factory.mktemp("serve") / "small.delta"
    model.save(path)
    return path


@pytest.fixture
def expected(network, recipe):
    """The values that the dense network gives for an image."""

    @torch.no_grad()
    def values(image: torch.Tensor) -> torch.Tensor:
        return network(recipe.prepare(image))[0]

    return values


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    pytest.importorskip("av", reason="writing a video needs the extra `video`")
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with video.VideoWriter(path, 20, (WIDTH, HEIGHT)) as out:
        for seed in range(12):
            out.write(frame(seed))
    return path


@pytest.fixture
def no_hurry(monkeypatch):
    """A stream that was looked at is drawn, however long its frames take; nobody waits for a newer picture."""
    monkeypatch.setattr(worker, "LOOKED_AT", float("inf"))
    monkeypatch.setattr(worker, "NEWER", 0.0)


@pytest.fixture
def address(server):
    return server[1]


@pytest.fixture
def server(file, clip):
    """One that was started from the command line: its process and its address."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "deltaconvert",
        "serve",
        str(file),
        "--port",
        str(port),
        "--max-fps",
        "100000",
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([*command, "--files", str(clip.parent)], env=env)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1800):  # torch and Starlette take a while to import on a busy machine
            try:
                urllib.request.urlopen(f"{address}/healthz")
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield process, address
    finally:
        process.terminate()
        process.wait(PATIENCE)

"""A clip, and a converted network, for every command."""

import pytest
import torch
from command_line import BACKEND, NET, call


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve frames of 96x64 in which a square moves."""
    pytest.importorskip("av")
    from deltaconvert.video import VideoWriter

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, 10, (96, 64), crf=10) as out:
        for number in range(12):
            frame = torch.full((64, 96, 3), 90, dtype=torch.uint8)
            frame[20:36, 4 * number : 4 * number + 16] = 220
            out.write(frame)
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.delta"
    call("convert", "--random", "--arch", NET, "--input", "1x3x64x96", "-o", path, *BACKEND)
    return path

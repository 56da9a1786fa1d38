"""examples/onnxruntime-node: the state is passed from frame to frame in JavaScript as in Python."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from oracle import assert_close, scripted_video
from torch import nn

import deltaconvert

pytest.importorskip("onnx", reason="needs the extra onnx")
EXAMPLE = Path(__file__).parents[2] / "examples" / "onnxruntime-node"
# Where `npm install` put onnxruntime-node: beside the example, or where the environment says.
MODULES = Path(os.environ.get("DELTACONVERT_NODE_MODULES", EXAMPLE / "node_modules"))


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.skipif(not (MODULES / "onnxruntime-node").exists(), reason=f"npm install in {EXAMPLE}")
def test_javascript_gives_what_python_does(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2)).eval()
    video = scripted_video((1, 3, 20, 24), torch.float32)
    model = deltaconvert.convert(network, video[0], threshold={"input": 0.2}, backend="reference")
    deltaconvert.export_onnx(model, tmp_path / "m.onnx")
    for name in ("session.js", "clip.js", "package.json"):
        shutil.copy(EXAMPLE / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES)
    clip = {"shape": [1, 3, 20, 24], "frames": [frame.flatten().tolist() for frame in video]}
    (tmp_path / "clip.json").write_text(json.dumps(clip))
    subprocess.run(
        ["node", "clip.js", "m.onnx", "clip.json", "out.json"], cwd=tmp_path, check=True, timeout=120
    )
    for t, (frame, (found,)) in enumerate(
        zip(video, json.loads((tmp_path / "out.json").read_text()), strict=True)
    ):
        expected = model(frame)
        assert_close(torch.tensor(found).view(expected.shape), expected, f"frame {t}")

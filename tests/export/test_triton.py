"""export_triton: the repository in Triton's protobuf, called as its sequence batcher calls it, and in its server."""

import importlib.util
import json
import os
import shutil
import subprocess
import sysconfig
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from one_each import small
from oracle import assert_close, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.errors import ExportError
from deltaconvert.export import export_triton

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
BACKEND = Path(__file__).parent / "triton_backend"
CAMERAS = 5


def converted():
    return deltaconvert.convert(small()[:-1].eval(), torch.rand(1, 3, 16, 20), threshold={"input": 0.2})


def videos():
    return [scripted_video((1, 3, 16, 20), torch.float32, seed=camera) for camera in range(CAMERAS)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    export_triton(converted(), folder / "small")
    return folder


@pytest.fixture
def config(repository):
    """The configuration, read back by Triton's own protobuf."""
    from google.protobuf import text_format

    # The module alone: the package around it wants gRPC.
    package = importlib.util.find_spec("tritonclient")
    if package is None:
        pytest.skip("needs tritonclient")
    file = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    model_config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model_config)
    text = (repository / "small" / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config.ModelConfig())


def test_the_configuration(repository, config):
    proto = onnx.load(repository / "small" / "1" / "model.onnx")
    assert config.name == "small" and config.max_batch_size == 0
    assert [(value.name, list(value.dims)) for value in config.input] == [("frame", [1, 3, 16, 20])]
    assert [value.name for value in config.output] == ["output"]
    batching = config.sequence_batching
    assert [control.name for control in batching.control_input] == ["everything_changed"]
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    states = [(s.input_name, s.output_name) for s in batching.state]
    assert states == [(name, f"{name}_out") for name in shapes if name.endswith(".state")]
    assert len(states) == len(set(states)) > 1
    for state in batching.state:
        assert list(state.dims) == shapes[state.input_name] == shapes[state.output_name]
        assert list(state.initial_state[0].dims) == list(state.dims) and state.initial_state[0].zero_data


def test_as_its_sequence_batcher_calls_it(repository, config):
    """Nothing but what the configuration says: states by name, zeros at first, the control at a sequence's start."""
    session = onnxruntime.InferenceSession(repository / "small" / "1" / "model.onnx")
    (control,) = config.sequence_batching.control_input
    off, on = control.control[0].bool_false_true
    (frame,), (output,) = config.input, config.output
    model, states = converted(), config.sequence_batching.state
    for video in videos()[:2]:  # one sequence after the other
        model.reset()
        held = {state.input_name: np.zeros(state.initial_state[0].dims, np.float32) for state in states}
        for t, image in enumerate(video):
            start = np.array([on if t == 0 else off])
            names = [output.name, *(state.output_name for state in states)]
            got, *new = session.run(names, {frame.name: image.numpy(), control.name: start, **held})
            held = {state.input_name: value for state, value in zip(states, new, strict=True)}
            assert_close(torch.from_numpy(got), model(image), f"frame {t}")


def test_one_sequence_is_one_stream(tmp_path):
    frames = torch.rand(2, 3, 16, 20)
    with pytest.raises(ExportError, match="2 streams"):
        export_triton(deltaconvert.convert(nn.Conv2d(3, 4, 3).eval(), frames), tmp_path / "two")


@pytest.mark.slow
def test_in_a_server(repository, tmp_path):
    """Triton itself, as the package nvidia-pytriton brings it, keeps the states of five cameras at once.

    Its onnxruntime backend is not in that package: tests/export/triton_backend stands in for it.
    """
    with running(repository, tmp_path / "backends", tmp_path / "log.txt") as address:
        models, played = [converted() for _ in range(CAMERAS)], videos()
        with ThreadPoolExecutor(CAMERAS) as pool:
            for t in range(len(played[0])):
                last = t == len(played[0]) - 1
                calls = [(address, camera + 1, played[camera][t], t == 0, last) for camera in range(CAMERAS)]
                for camera, found in enumerate(pool.map(lambda call: infer(*call), calls)):
                    assert_close(found, models[camera](played[camera][t]), f"camera {camera}, frame {t}")
        # Another camera in the place of one that left.
        models[0].reset()
        assert_close(infer(address, 77, played[0][3], True), models[0](played[0][3]), "")


@contextmanager
def running(repository, backends, log):
    """The address of the model in a Triton server."""
    package = importlib.util.find_spec("pytriton")
    if package is None:
        pytest.skip("needs the server in nvidia-pytriton: pip install --no-deps nvidia-pytriton")
    program = Path(package.submodule_search_locations[0]) / "tritonserver" / "bin" / "tritonserver"
    program.chmod(0o755)
    _build(backends / "onnxruntime")
    port = 18000 + os.getpid() % 1000
    command = [str(program), f"--model-repository={repository}", f"--backend-directory={backends}"]
    command += [
        f"--http-port={port}",
        "--http-address=127.0.0.1",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]
    folders = [str(BACKEND), *(str(Path(module.__file__).parents[1]) for module in (np, onnxruntime))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    address = f"http://127.0.0.1:{port}/v2/models/small"
    with open(log, "w") as lines:
        server = subprocess.Popen(command, env=environment, stdout=lines, stderr=lines)
    try:
        while not _ready(address):
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


def _ready(address):
    try:
        with urllib.request.urlopen(f"{address}/ready") as answer:
            return answer.status == 200
    except OSError:
        return False


def _build(folder):
    library = sysconfig.get_config_var("INSTSONAME")
    if shutil.which("gcc") is None or not library or not str(library).endswith((".so", ".so.1.0")):
        pytest.skip("needs gcc and Python as a shared library")
    folder.mkdir(parents=True)
    place = sysconfig.get_config_var("LIBDIR")
    command = ["gcc", "-shared", "-fPIC", f'-DPYTHON="{library}"', str(BACKEND / "backend.c")]
    command += [f"-I{sysconfig.get_path('include')}", f"-L{place}", f"-l:{library}", f"-Wl,-rpath,{place}"]
    subprocess.run([*command, "-o", str(folder / "libtriton_onnxruntime.so")], check=True)


def infer(address, camera, frame, start, end=False):
    given = {
        "name": "frame",
        "datatype": "FP32",
        "shape": list(frame.shape),
        "data": frame.flatten().tolist(),
    }
    controls = {"sequence_id": camera, "sequence_start": start, "sequence_end": end}
    body = json.dumps({"parameters": controls, "inputs": [given]}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{address}/infer", body), timeout=30) as answer:
        (output,) = json.load(answer)["outputs"]
    return torch.tensor(output["data"]).view(output["shape"])

"""Networks in files of other programs convert, and equal the program that they come from."""

import json
import sys
from pathlib import Path

import pytest
import torch
from command_line import call
from network_files import exported_tiny, onnx_tiny, tiny

import deltaconvert
import model_zoo
from deltaconvert.checkpoint import read_state_dict
from deltaconvert.errors import CheckpointError, InputError
from deltaconvert.formats import Kind, kind_of, load_network

SIZE = (1, 3, 14, 10)
WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "weights"


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    pytest.importorskip("onnx2fx", reason='ONNX needs onnx2fx: pip install "deltaconvert[onnx]"')
    return onnx_tiny(tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_tiny(tmp_path_factory.mktemp("pt2") / "tiny.pt2")


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "tiny.pt"
    torch.jit.save(torch.jit.trace(tiny(), torch.rand(SIZE)), path)
    return path


def test_kinds_by_content(tmp_path, onnx, exported, scripted):
    weights = tmp_path / "weights.pt"
    torch.save(tiny().state_dict(), weights)
    found = {}
    for number, path in enumerate((onnx, exported, scripted, weights)):
        blank = tmp_path / f"{number}"  # no ending tells
        blank.write_bytes(path.read_bytes())
        found[path.name] = kind_of(blank)
    assert list(found.values()) == [Kind.ONNX, Kind.EXPORTED, Kind.TORCHSCRIPT, Kind.WEIGHTS]
    converted = tmp_path / "net.delta"
    deltaconvert.convert(tiny(), torch.rand(SIZE), backend="reference").save(converted)
    assert kind_of(converted) is Kind.CONVERTED
    (tmp_path / "text").write_text("hello")
    assert kind_of(tmp_path / "text") is Kind.UNKNOWN
    for path, text in (
        (converted, "deltaconvert.load"),
        (weights, "--arch"),
        (tmp_path / "text", "no network"),
    ):
        with pytest.raises(CheckpointError, match=text):
            load_network(path)


def check_video(network, example, dense):
    """Six frames of the converted network, all deltas, equal `dense`; a moving patch, then a still frame."""
    delta = deltaconvert.convert(network, example, backend="cpu")
    frame = torch.rand(example[0].shape)
    for number in range(6):
        if number < 5:
            frame[:, :, number : number + 3, number : number + 4] = torch.rand(1)
        torch.testing.assert_close(delta(frame), dense(frame), rtol=1e-4, atol=1e-5)
    assert delta.stats().work == 0 and not delta.explain().islands
    return delta


def test_onnx_equals_its_network_and_onnxruntime(onnx):
    runtime = pytest.importorskip("onnxruntime")
    network, example = load_network(onnx)
    delta = check_video(network, example, tiny())
    session = runtime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    frame = torch.rand(SIZE)
    torch.testing.assert_close(
        delta(frame), torch.from_numpy(session.run(None, {"x": frame.numpy()})[0]), rtol=1e-4, atol=1e-5
    )
    assert delta.explain().islands == []
    with pytest.raises(InputError, match="captured for 1x3x14x10 alone"):
        delta(torch.rand(1, 3, 16, 10))


def test_onnx_with_an_open_size(tmp_path, onnx):
    path = onnx_tiny(tmp_path / "open.onnx", size=("batch", 3, "h", "w"))
    with pytest.raises(
        CheckpointError, match=r"open.onnx: leaves its input's size open \(\?x3x\?x\?\).*--input"
    ):
        load_network(path)
    network, example = load_network(path, input=(2, 3, 8, 6))
    assert example[0].shape == (2, 3, 8, 6)
    torch.testing.assert_close(network(example[0]), tiny()(example[0]), rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="takes 1x3x14x10, not 1x3x8x8"):
        load_network(onnx, input=(1, 3, 8, 8))
    with pytest.raises(InputError, match="give a shape"):
        load_network(onnx, input=())
    with pytest.raises(InputError, match=r"give its shape, \(1, 3, 8, 8\)"):
        load_network(onnx, input=torch.rand(1, 3, 8, 8))


def test_onnx_with_weights_beside_it(tmp_path, onnx):
    path = onnx_tiny(tmp_path / "net.onnx", external="tiny.data")
    network, (frame,) = load_network(path)
    torch.testing.assert_close(network(frame), tiny()(frame), rtol=1e-4, atol=1e-5)


def test_onnx_without_the_importer(onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2fx", None)
    with pytest.raises(CheckpointError, match=r'pip install "deltaconvert\[onnx\]"'):
        load_network(onnx)


def test_an_exported_program_equals_its_network_at_its_size(exported):
    program, (frame,) = load_network(exported)
    check_video(program, (frame,), tiny())
    torch.testing.assert_close(program.module()(frame), tiny()(frame))
    with pytest.raises(CheckpointError, match="was exported for 1x3x14x10, not 1x3x8x8"):
        load_network(exported, input=(1, 3, 8, 8))


def test_exported_for_many_sizes(tmp_path):
    path, half = tmp_path / "open.pt2", torch.export.Dim("half", min=2, max=64)
    shapes = ({2: 2 * half},)
    torch.export.save(torch.export.export(tiny(), (torch.rand(SIZE),), dynamic_shapes=shapes), path)
    program, (frame,) = load_network(path, input=(1, 3, 20, 10))
    torch.testing.assert_close(program.module()(frame), tiny()(frame))


def test_torchscript_is_a_program(scripted):
    with pytest.raises(CheckpointError, match=r"is TorchScript, a program.*--trust"):
        load_network(scripted, input=SIZE)
    with pytest.raises(CheckpointError, match="the size of its input"):
        load_network(scripted, trust=True)
    program, (frame,) = load_network(scripted, input=SIZE, trust=True)
    check_video(program, (frame,), tiny())
    torch.testing.assert_close(program.module()(frame), tiny()(frame))


def test_networks_are_no_weights(onnx, exported, scripted):
    for path in (onnx, exported, scripted):
        with pytest.raises(CheckpointError, match="a whole network"):
            read_state_dict(path)


def test_convert_takes_files_of_networks_and_runs_no_program_untrusted(tmp_path, onnx, scripted):
    out = tmp_path / "net.delta"
    facts = json.loads(call("convert", onnx, "-o", out, "--backend", "reference", "--json").stdout)
    assert facts["input"] == list(SIZE) and facts["delta_share"] == 1 and facts["weights"] == "tiny.onnx"
    frame = torch.rand(SIZE)
    torch.testing.assert_close(deltaconvert.load(out)(frame), tiny()(frame), rtol=1e-4, atol=1e-5)
    assert "leave the option out" in call("convert", onnx, "--arch", "resnet18", "-o", out, code=2).stderr
    assert "--trust" in call("convert", scripted, "--input", "1x3x14x10", "-o", out, code=1).stderr
    trusted = call("convert", scripted, "--trust", "--input", "1x3x14x10", "-o", out, "--json")
    assert json.loads(trusted.stdout)["delta_share"] == 1


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs shared/data: FastestDet as its authors exported it")
def test_fastestdet_as_onnx_equals_the_zoos(onnx, tmp_path):
    """From file to video: ONNX, onnxruntime and model_zoo's FastestDet agree, and all of the work is in delta nodes."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("av")
    from deltaconvert.video import read
    from deltaconvert.watching.watch import resize

    path = WEIGHTS / "fastestdet_coco.onnx"
    network, example = load_network(path)
    delta = deltaconvert.convert(network, example)
    dense = model_zoo.create("fastestdet")
    dense.load_state_dict(read_state_dict(next(WEIGHTS.glob("fastestdet*.pth"))), strict=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert delta.explain().delta_share >= 0.95 and delta.explain().islands == []
    recipe = model_zoo.recipe("fastestdet")
    with read(str(WEIGHTS.parent / "videos" / "pets_vtest_480x360.mp4"), limit=8) as frames:
        for number, frame in enumerate(frames):
            x = recipe.prepare(resize(frame, (352, 352)))
            out = delta(x)
            if number in (0, 1, 4, 7):
                theirs = torch.from_numpy(session.run(None, {"input.1": x.numpy()})[0])
                # Sums of 960 products in other orders.
                torch.testing.assert_close(out, theirs, rtol=1e-3, atol=2e-4)
                torch.testing.assert_close(out, dense(x), rtol=1e-3, atol=2e-4)
    assert delta.stats().work < 0.9

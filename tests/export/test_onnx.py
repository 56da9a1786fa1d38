"""export_onnx and DeltaSession: exported networks in onnxruntime against the Python backends."""

import json
import subprocess
import sys

import command_line
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from one_each import ONE_EACH, network_of, small
from oracle import Call, generator, leaves, rounding, scripted_video, scripted_videos
from torch import nn

import deltaconvert
import model_zoo
from deltaconvert.errors import ExportError

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

ALWAYS_SPARSE, ALWAYS_DENSE = 2.0, -1.0
# Sums in another order, through some layers: the largest error seen is 4e-6 of the largest value.
TOLERANCE = 2e-5


CPU = "CPUExecutionProvider"
# float32 is float32, as on the CPU; a search for the fastest convolution at each number of tiles takes minutes; and
# several processes share a GPU.
CUDA = (
    "CUDAExecutionProvider",
    {
        "use_tf32": 0,
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": 0,
        "arena_extend_strategy": "kSameAsRequested",
    },
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def providers(request):
    """onnxruntime's, as DeltaSession takes them."""
    if request.param == "cpu":
        return [CPU]
    if CUDA[0] not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")
    return [CUDA, CPU]


def session_of(model, path, dense_above=None, providers=(CPU,)):
    from deltaconvert.session import DeltaSession

    deltaconvert.export_onnx(model, path, dense_above=dense_above)
    session = DeltaSession(path, providers=providers)
    # onnxruntime goes on without a provider whose libraries are missing: such a test would test nothing.
    assert (CUDA in providers) == (CUDA[0] in session._session.get_providers())
    return session


def assert_equal(got, expected, where, tolerance=TOLERANCE):
    got = got if isinstance(got, list) else [got]
    for a, b in zip(got, leaves(expected), strict=True):
        b = b.numpy()
        assert a.shape == b.shape and a.dtype == b.dtype, where
        if b.dtype.kind == "f":
            assert np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max()), where
        else:
            assert (a == b).all(), where


def check(
    network,
    shapes,
    path,
    *,
    dense_above=(ALWAYS_SPARSE,),
    repeats=1,
    seed=0,
    resets=(),
    amplifies=False,
    providers=(CPU,),
    **options,
):
    """The scripted video through the model and one session for each `dense_above`; the outputs of earlier frames stay
    as they were."""
    shapes = [shapes] if isinstance(shapes[0], int) else shapes
    calls = scripted_videos(shapes, torch.float32, seed) * repeats
    model = deltaconvert.convert(network.eval(), calls[0], backend="reference", **options)
    sessions = [session_of(model, path, share, providers) for share in dense_above]
    kept = []
    for t, call in enumerate(calls):
        if t in resets:
            for each in (model, *sessions):
                each.reset(0)
        expected = model(*call)
        # Two ways to round differ: of ten outputs the worst was seen at five times the own error of the reference.
        rounded = 8 * rounding(expected, network, call) if amplifies else 0
        for session in sessions:
            got = session(*(frame.numpy() for frame in call))
            assert_equal(got, expected, f"frame {t}", max(TOLERANCE, rounded))
            kept.append((got, [x.copy() for x in (got if isinstance(got, list) else [got])]))
    for got, copies in kept:
        for a, b in zip(got if isinstance(got, list) else [got], copies, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ONE_EACH)
def test_operators(tmp_path, name, batch, providers):
    check(network_of(name), (batch, 3, 13, 19), tmp_path / "m.onnx", providers=providers)


def test_padding_beside_a_constant_of_each_pixel(tmp_path, providers):
    """It is computed whole, between transpositions that onnxruntime moves."""
    network = Call(
        lambda m, x: m.conv(
            torch.cat([x.relu(), torch.linspace(-1, 1, 19).expand(x.shape[0], 1, 13, -1)], 1)
        ),
        conv=nn.Conv2d(4, 2, 3),
    )
    check(network, (2, 3, 13, 19), tmp_path / "m.onnx", providers=providers)


@pytest.mark.parametrize("kind", ["max", "average", "average of what is there"])
def test_windows_that_begin_behind_the_map(tmp_path, kind, providers):
    """With ceil_mode torch computes none of them, ONNX does; along one side here, both, and with gaps between."""
    options = {"count_include_pad": False} if kind == "average of what is there" else {}
    pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
    for window, stride, size in [(2, (2, 3), (3, 2)), (2, 3, (3, 5)), (3, 4, (6, 7)), (2, 2, (3, 4))]:
        network = nn.Sequential(pool(window, stride, 1, ceil_mode=True, **options))
        check(
            network,
            (1, 3, *size),
            tmp_path / "m.onnx",
            dense_above=(ALWAYS_SPARSE, ALWAYS_DENSE),
            providers=providers,
        )


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize("means", [(None, 1), (1, None)])
def test_means_of_rows_and_columns_of_narrow_maps(tmp_path, size, means, providers):
    network = Call(lambda self, x: x * F.adaptive_avg_pool2d(x, means))
    check(
        network,
        (2, 3, *size),
        tmp_path / "m.onnx",
        dense_above=(ALWAYS_SPARSE, ALWAYS_DENSE),
        providers=providers,
    )


BOTH = (ALWAYS_SPARSE, 0.3)
SMALL = {"fastestdet": (ALWAYS_SPARSE,), "mobilenetv3_small": BOTH}
LONG = [pytest.param(name, 7, marks=pytest.mark.slow) for name in model_zoo.names()]


@pytest.mark.parametrize("name, repeats", [*((name, 2) for name in SMALL), *LONG])
def test_every_network_of_the_zoo_equals_its_file(tmp_path, name, repeats, providers):
    """112 frames, on a GPU and of small networks 32: by the sparse functions alone, and with the dense network taking
    its turns."""
    size = (128, 128) if "efficientdet" in name else (32, 64)
    shape = (1, model_zoo.recipe(name).input_size[0], *size)
    network = model_zoo.create(name, seed=0).eval()
    check(
        network,
        shape,
        tmp_path / "m.onnx",
        dense_above=SMALL.get(name, BOTH),
        repeats=2 if CUDA in providers else repeats,
        amplifies="efficientdet" in name,
        providers=providers,
    )


@pytest.mark.parametrize("dense_above", [ALWAYS_SPARSE, 0.5, ALWAYS_DENSE])
@pytest.mark.parametrize("rules", [0.0, {"input": 0.3}, {"input": 0.1, "activation": 0.2}])
def test_thresholds_streams_and_resets(tmp_path, rules, dense_above, providers):
    check(
        small(),
        (3, 3, 20, 33),
        tmp_path / "m.onnx",
        dense_above=(dense_above,),
        threshold=rules,
        resets=(3, 7),
        repeats=2,
        providers=providers,
    )


def test_what_stays_dense_goes_through_torchs_exporter(tmp_path):
    network = Call(
        lambda self, x: (self.conv(torch.cumsum(self.first(x), 2)), x.flatten(1).sort(1)[0]),
        first=nn.Conv2d(3, 4, 3),
        conv=nn.Conv2d(4, 5, 3),
    )
    check(network, (1, 3, 12, 9), tmp_path / "m.onnx")


def test_bytes_and_thresholds_by_channel(tmp_path, providers):
    """Frames of a camera, cast and scaled before the first delta node."""
    network = Call(lambda self, x: self.conv(x.float() / 255), conv=small()).eval()
    frames = [
        (frame * 60 + 128).clamp(0, 255).byte()
        for (frame,) in scripted_videos([(1, 3, 16, 20)], torch.float32)
    ]
    model = deltaconvert.convert(
        network, frames[0], threshold={"activation": "40% weighted"}, backend="reference"
    )
    session = session_of(model, tmp_path / "m.onnx", ALWAYS_SPARSE, providers)
    for t, frame in enumerate(frames):
        assert_equal(session(frame.numpy()), model(frame), f"frame {t}")


def test_narrow_changes(tmp_path):
    rules = {"input": "0.1 narrow", "activation": "0.05 narrow"}
    shape = (2, 3, 21, 30)
    check(small(), shape, tmp_path / "m.onnx", threshold=rules)
    narrow, wide = (
        deltaconvert.convert(small(), torch.zeros(shape), threshold=each, backend="reference")
        for each in (rules, {name: rule.removesuffix(" narrow") for name, rule in rules.items()})
    )
    session = session_of(narrow, tmp_path / "dense.onnx", ALWAYS_DENSE)
    for t, (frame,) in enumerate(scripted_videos([shape], torch.float32)):
        assert_equal(session(frame.numpy()), wide(frame), f"frame {t}: the dense branch renews every pixel")


def test_several_inputs(tmp_path):
    check(
        Call(lambda self, x, y: {"a": x + y, "b": x * 2}), [(1, 3, 9, 8), (1, 3, 9, 8)], tmp_path / "m.onnx"
    )


def test_names_and_metadata(tmp_path):
    frame = torch.rand(1, 3, 16, 20)
    model = deltaconvert.convert(small(), frame, threshold={"input": 0.1}, backend="reference")
    model.info = {"arch": "small"}
    deltaconvert.export_onnx(model, tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert {(entry.domain, entry.version) for entry in proto.opset_import} == {("", 20), ("deltaconvert", 1)}
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    states = json.loads(facts["deltaconvert.states"])
    assert [value.name for value in proto.graph.input] == [
        "frame",
        "everything_changed",
        *(state["input"] for state in states),
    ]
    assert [value.name for value in proto.graph.output] == ["output", *(state["output"] for state in states)]
    assert states[0] == {
        "input": "input_0.state",
        "output": "input_0.state_out",
        "node": "input_0",
        "layout": "NHWC",
        "threshold": 0.1,
    }
    assert json.loads(facts["deltaconvert.thresholds"])["input"] == 0.1
    assert json.loads(facts["deltaconvert.info"]) == {"arch": "small"}
    for function in proto.functions:
        assert function.domain == "deltaconvert"
        assert all(not node.domain for node in function.node), "a body has standard operators only"


def test_a_still_frame_computes_no_pixel(tmp_path, providers):
    """What is stored comes out, whatever computing it would give; it stays where it is, on the GPU if that computes."""
    frame = torch.rand(1, 3, 16, 20)
    session = session_of(deltaconvert.convert(small(), frame), tmp_path / "m.onnx", providers=providers)
    places = [value.data_ptr() for value in session._states.values()]
    session(frame.numpy())
    device = "cuda" if CUDA in providers else "cpu"
    assert {value.device_name() for value in session._states.values()} == {device}
    *bound, _ = session._binding.get_outputs()
    assert [value.data_ptr() for value in bound] == places
    marked = {name: value for name, value in session._states.items() if not name.startswith("input")}
    for value in marked.values():
        value.update_inplace(np.full(value.shape(), 7, np.float32))
    assert (session(frame.numpy()) == 7).all()


@pytest.mark.gpu
def test_beside_the_cuda_backend(tmp_path, gpu, providers):
    """A model on the GPU, and what it exports on either device."""
    video = [frame.to(gpu) for frame in scripted_video((2, 3, 20, 33), torch.float32)]
    model = deltaconvert.convert(small().to(gpu), video[0], threshold={"input": 0.1}, backend="cuda")
    session = session_of(model, tmp_path / "m.onnx", ALWAYS_SPARSE, providers)
    for t, frame in enumerate(video):
        assert_equal(session(frame.cpu().numpy()), model(frame).cpu(), f"frame {t}")


def test_a_network_of_its_own_each(tmp_path, providers):
    frames = torch.rand(2, 1, 3, 16, 20, generator=generator(0))
    model = deltaconvert.convert(small(), frames[0], backend="reference")
    first = session_of(model, tmp_path / "m.onnx", providers=providers)
    second = first.another()
    for session, frame in ((first, frames[0]), (second, frames[1]), (first, frames[0]), (second, frames[0])):
        model.reset()
        assert_equal(session(frame.numpy()), model(frame), "")


def test_wrong_frames_files_and_streams_are_refused(tmp_path, providers):
    frame = torch.rand(1, 3, 16, 20)
    model = deltaconvert.convert(small(), frame, backend="reference")
    session = session_of(model, tmp_path / "m.onnx", providers=providers)
    session(frame.numpy())
    for wrong in (frame.numpy()[:, :2], frame.double().numpy()):
        with pytest.raises(ValueError, match="exported for float32"):
            session(wrong)
    with pytest.raises(FileNotFoundError):
        deltaconvert.DeltaSession(tmp_path / "there is none.onnx")
    for number, content in enumerate((b"a text", b"", (tmp_path / "m.onnx").read_bytes()[:-9])):
        other = tmp_path / f"{number}.onnx"
        other.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no ONNX file, or is damaged: deltaconvert.export_onnx"):
            deltaconvert.DeltaSession(other)
    with pytest.raises(ValueError, match="takes 1 frames"):
        session(frame.numpy(), frame.numpy())
    with pytest.raises(ValueError, match="no stream 1"):
        session.reset(1)
    assert_equal(session(frame.numpy()), model(frame), "after errors")
    with pytest.raises(ExportError, match=r"input 0 is torch.float64.*again in float32"):
        deltaconvert.export_onnx(deltaconvert.convert(small().double(), frame.double()), tmp_path / "d.onnx")
    pool = deltaconvert.convert(nn.Sequential(nn.LPPool2d(2, 2), nn.ReLU()).eval(), frame)
    with pytest.raises(ExportError, match=r"LpPool2d.*keep_dense=\['0'\]"):
        deltaconvert.export_onnx(pool, tmp_path / "p.onnx")
    gated = deltaconvert.convert(small(), frame, threshold=0.1, gate={"dilate": 1})
    masked = deltaconvert.convert(Call(lambda self, x, mask: x * mask).eval(), (frame.float(), frame > 0.5))
    with pytest.raises(ExportError, match=r"input 1 is torch.bool.*let it take torch.uint8"):
        deltaconvert.export_onnx(masked, tmp_path / "b.onnx")
    with pytest.raises(ExportError, match="gate"):
        deltaconvert.export_onnx(gated, tmp_path / "g.onnx")
    round_trip = deltaconvert.convert(Call(lambda self, x: torch.nan_to_num(x)).eval(), frame)
    with pytest.raises(ExportError, match="nan_to_num"):
        deltaconvert.export_onnx(round_trip, tmp_path / "n.onnx")
    labels = Call(lambda self, x: x.argmax(1, keepdim=True) + 1).eval()
    with pytest.raises(ExportError, match=r"mixes types.*keep_dense="):
        deltaconvert.export_onnx(deltaconvert.convert(labels, frame), tmp_path / "l.onnx")
    deltaconvert.export_onnx(deltaconvert.convert(labels, frame, keep_dense=["*"]), tmp_path / "l.onnx")


def test_onnxruntime_logs_errors_alone_unless_asked(tmp_path):
    import onnxruntime

    deltaconvert.export_onnx(deltaconvert.convert(small(), torch.rand(1, 3, 16, 20)), tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    for given, level in ((None, 3), (options, options.log_severity_level)):
        session = deltaconvert.DeltaSession(tmp_path / "m.onnx", options=given)
        assert session._session.get_session_options().log_severity_level == level


def test_the_runner_needs_no_torch(tmp_path):
    frame = torch.rand(1, 3, 16, 20)
    model = deltaconvert.convert(small(), frame, backend="reference")
    deltaconvert.export_onnx(model, tmp_path / "m.onnx")
    np.save(tmp_path / "frame.npy", frame.numpy())
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\nfrom deltaconvert.session import DeltaSession\n"
        f"session = DeltaSession({str(tmp_path / 'm.onnx')!r})\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, session(np.load({str(tmp_path / 'frame.npy')!r})))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert_equal(np.load(tmp_path / "out.npy"), model(frame), "")


def test_from_the_shell(tmp_path):
    from deltaconvert.session import DeltaSession

    frame = torch.rand(1, 3, 16, 20)
    model = deltaconvert.convert(small(), frame)
    model.save(tmp_path / "m.delta")
    export = "export", tmp_path / "m.delta"
    facts = json.loads(command_line.call(*export, "--onnx", tmp_path / "m.onnx", "--json").stdout)
    assert facts["input"] == [[1, 3, 16, 20]]
    assert facts["files"][0]["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert_equal(DeltaSession(tmp_path / "m.onnx")(frame.numpy()), model(frame), "")
    command_line.call(*export, code=2)

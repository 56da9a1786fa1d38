"""torch.compile around a DeltaModel: one operator in the graph, no breaks, the same state."""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from oracle import assert_close, assert_same_bits, no_waiting, scripted_video
from torch import nn

import deltaconvert
from deltaconvert.errors import DeltaConvertError


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, *, y):
        return {"a": self.conv(x) + y, "b": [x * 2, (y,)]}


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x), x.shape[2]


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2)).eval()


def both(network, *call, **options):
    """A converted network, and another one with the same plan."""
    model = deltaconvert.convert(network.eval(), *call, **options)
    return model, copy.deepcopy(model)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_equals_itself_on_a_video(backend, compiler):
    """With work before and after it in the same graph; a reset between frames."""
    video = scripted_video((2, 3, 20, 24), torch.float32)
    if backend == "cuda":
        video = [frame.cuda() for frame in video]
    model, twin = both(small(), video[0], threshold=0.1, backend=backend)
    compiled = torch.compile(lambda x: model(x * 2 + 1).sigmoid(), fullgraph=True, backend=compiler)
    for t, frame in enumerate(video):
        if t == 5:
            for each in (model, twin):
                each.reset(1)
        assert_close(compiled(frame), twin(frame * 2 + 1).sigmoid(), f"frame {t}")
    assert model.stats() == twin.stats()


def test_the_model_itself():
    video = scripted_video((1, 3, 20, 24), torch.float32)
    model, twin = both(small(), video[0])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for frame in video:
        assert_same_bits(compiled(frame), twin(frame), "")


def test_frames_keep_their_order_and_number():
    """Equal calls are two frames, also where nothing reads the first one's outputs."""
    video = scripted_video((1, 3, 20, 24), torch.float32)
    model, twin = both(small(), video[0])

    def calls(network, x, y):
        network(y)
        return network(x), network(y), network(x)

    compiled = torch.compile(lambda x, y: calls(model, x, y), fullgraph=True)
    for x, y in pairwise(video):
        assert_same_bits(compiled(x, y), calls(twin, x, y), "")
    assert model.stats() == twin.stats()


def test_two_models_in_one_graph():
    video = scripted_video((1, 3, 20, 24), torch.float32)
    first, first_twin = both(small(), video[0])
    second, second_twin = both(nn.Conv2d(4, 2, 3), torch.rand(1, 4, 9, 11))
    compiled = torch.compile(lambda x: second(first(x)), fullgraph=True, backend="aot_eager")
    for frame in video:
        assert_close(compiled(frame), second_twin(first_twin(frame)))


def test_nested_outputs_and_named_inputs():
    video = scripted_video((1, 3, 20, 24), torch.float32)
    model, twin = both(Nested(), {"x": video[0], "y": video[1]})
    compiled = torch.compile(lambda x, y: model(x=x, y=y), fullgraph=True, backend="aot_eager")
    for x, y in pairwise(video):
        assert_close(compiled(x, y), twin(x=x, y=y))


def test_a_compiled_network_takes_other_sizes():
    model, twin = both(small(), torch.rand(1, 3, 20, 24))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in ((20, 24), (31, 17), (12, 40)):
            frame = torch.rand(1, 3, *size)
            assert_close(compiled(frame), twin(frame))


def test_outputs_that_are_no_tensors():
    frame = torch.rand(1, 3, 20, 24)
    model, twin = both(Sized(), frame)
    with pytest.raises(Exception, match="disable"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(frame)
    assert_close(torch.compile(model, backend="aot_eager")(frame), twin(frame))


def test_a_new_size_is_said_to_the_caller():
    model = deltaconvert.convert(small(), torch.rand(1, 3, 20, 24))
    with pytest.warns(UserWarning, match="planned anew") as told:
        model(torch.rand(1, 3, 21, 24))
    assert told[0].filename == __file__


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_on_the_gpu(gpu, mode):
    """Beside torch's own CUDA graphs, without waiting."""
    video = [frame.to(gpu) for frame in scripted_video((2, 3, 20, 24), torch.float32)]
    model, twin = both(small(), video[0])
    compiled = torch.compile(lambda x: model(x * 2 + 1).sigmoid() * 3, fullgraph=True, mode=mode)
    for t, frame in enumerate(video):
        assert_close(compiled(frame), twin(frame * 2 + 1).sigmoid() * 3, f"frame {t}")
    with no_waiting():
        compiled(video[0])


@pytest.mark.parametrize("strict", [False, True])
def test_exporters_of_torch_say_the_way_out(strict):
    """What they would write calls a model of this process, by its number."""
    frame = torch.rand(1, 3, 12, 10)
    model = deltaconvert.convert(nn.Conv2d(3, 2, 3).eval(), frame, backend="reference")
    with pytest.raises(Exception, match=r"cannot keep a network's state|KEEPS_NO_STATE"):
        torch.export.export(model, (frame,), strict=strict)
    assert_close(model(frame), model(frame))


class _Around(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + 1


TRANSFORMS = {
    "torch.fx.symbolic_trace": (lambda m, x: torch.fx.symbolic_trace(m), "is_leaf_module"),
    "torch.jit.script": (lambda m, x: torch.jit.script(m), "export_pt2"),
    "torch.jit.trace": (torch.jit.trace, "export_pt2"),
    "make_fx": (lambda m, x: torch.fx.experimental.proxy_tensor.make_fx(m)(x), "export_pt2"),
    "torch.vmap": (lambda m, x: torch.vmap(m)(x[None]), "streams"),
    "torch.func": (lambda m, x: torch.func.jvp(m, (x,), (x,)), "streams"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformations_of_torch_are_refused(backend, name, around):
    """None of them would keep its state: make_fx made a graph that gives one frame's answer for ever."""
    transform, way_out = TRANSFORMS[name]
    first, *frames = scripted_video((2, 3, 12, 10), torch.float32)[:4]
    model, twin = both(nn.Conv2d(3, 2, 3).eval(), first, backend=backend)
    assert_same_bits(model(first), twin(first), "first")
    with pytest.raises(DeltaConvertError, match=way_out) as e:
        transform(_Around(model).eval() if around else model, first)
    assert name.partition(".symbolic")[0] in str(e.value)
    for frame in frames:
        assert_same_bits(model(frame), twin(frame), "after it")


def test_torchs_onnx_exporter_says_the_way_out(tmp_path):
    pytest.importorskip("onnxscript")
    frame = torch.rand(1, 3, 12, 10)
    model = deltaconvert.convert(nn.Conv2d(3, 2, 3).eval(), frame, backend="reference")
    with pytest.raises(Exception, match=r"use deltaconvert\.export_pt2 or export_onnx"):
        torch.onnx.export(model, (frame,), tmp_path / "net.onnx", dynamo=True, verbose=False)

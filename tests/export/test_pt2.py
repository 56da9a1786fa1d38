"""export_pt2 and DeltaProgram: exported programs against the Python backends; the operators of torch in them."""

import copy
import json

import command_line
import pytest
import torch
from one_each import ONE_EACH, network_of, small
from oracle import Call, assert_close, leaves, rounding, scripted_video, scripted_videos
from torch import fx, nn

import deltaconvert
import model_zoo
from deltaconvert.errors import ExportError, InputError
from deltaconvert.export.planned import planned
from deltaconvert.export.pt2 import in_operators
from deltaconvert.ops.base import operator_types
from deltaconvert.program import DeltaProgram


def spoilt(state):
    """Overwrites the stored maps: what they hold before the first frame must not matter."""
    for each in state:
        each.fill_(7)
    return state


def check(network, shape, path, *, resets=(), **options):
    calls = scripted_videos([shape], torch.float32)
    model = deltaconvert.convert(network.eval(), calls[0], backend="reference", **options)
    deltaconvert.export_pt2(model, path)
    program = DeltaProgram(path)
    spoilt(program.state.values())
    for t, call in enumerate(calls):
        if t in resets:
            for each in (model, program):
                each.reset(0)
        assert_close(program(*call), model(*call), f"frame {t}")
    return program


class Eagerly:
    """The operators of a plan, one after the other, as a program calls them."""

    def __init__(self, model):
        found = planned(model, "a .pt2")
        self.network = in_operators(found)
        states = found.names.states.values()
        self.state = spoilt([torch.empty(each.shape, dtype=each.node.meta["dtype"]) for each in states])
        self.every = torch.ones(found.plan.streams, dtype=torch.bool)

    def __call__(self, *frames):
        every, self.every = self.every, torch.zeros_like(self.every)
        return self.network(*frames, every, *self.state)


@pytest.mark.parametrize(("batch", "threshold"), [(1, 0.0), (2, 0.3)])
@pytest.mark.parametrize("name", ONE_EACH)
def test_operators(name, batch, threshold):
    calls = scripted_videos([(batch, 3, 13, 19)], torch.float32)
    rules = {"input": threshold, "activation": threshold}
    model = deltaconvert.convert(network_of(name), calls[0], backend="reference", threshold=rules)
    eagerly = Eagerly(model)
    for t, call in enumerate(calls):
        assert_close(eagerly(*call)[0], model(*call), f"frame {t}")


def test_every_operator_is_registered():
    for name in set(operator_types()) - {"Fused"}:  # which goes by its head's name
        assert getattr(torch.ops.deltaconvert, name).default._schema.arguments[2].alias_info.is_write


class Checked(fx.Interpreter):
    """Shows every call of an operator of deltaconvert to torch's own check."""

    def __init__(self, network):
        super().__init__(network)
        self.seen = set()

    def call_function(self, target, args, kwargs):
        if getattr(target, "namespace", None) == "deltaconvert":
            self.seen.add(target.name())
            torch.library.opcheck(target, copy.deepcopy(args), kwargs)
        return super().call_function(target, args, kwargs)


def test_operators_pass_opcheck():
    network = Call(
        lambda self, x: self.pool(self.conv(x).relu()) * x.mean((2, 3), keepdim=True).sigmoid(),
        conv=nn.Conv2d(3, 3, 3, padding=1),
        pool=nn.MaxPool2d(2),
    )
    calls = scripted_videos([(2, 3, 13, 19)], torch.float32)
    model = deltaconvert.convert(
        network.eval(), calls[0], backend="reference", threshold={"activation": "40% weighted"}
    )
    eagerly = Eagerly(model)
    eagerly(*calls[0])
    checked = Checked(eagerly.network)
    checked.run(*calls[2], eagerly.every, *eagerly.state)
    names = ("forget", "sparsify", "Conv2d", "MaxPool2d", "Pointwise", "SpatialMean")
    assert checked.seen == {f"deltaconvert::{name}" for name in names}


@pytest.mark.parametrize("rules", [0.0, {"input": 0.1, "activation": 0.2}])
def test_streams_and_resets(tmp_path, rules):
    check(small(), (3, 3, 20, 33), tmp_path / "m.pt2", threshold=rules, resets=(3, 7))


def test_narrow_changes(tmp_path):
    rules = {"input": "0.1 narrow", "activation": "0.05 weighted narrow"}
    check(small(), (2, 3, 21, 30), tmp_path / "m.pt2", threshold=rules)


@pytest.mark.slow
@pytest.mark.parametrize("name", model_zoo.names())
def test_every_network_of_the_zoo_equals_its_program(tmp_path, name):
    size = (128, 128) if "efficientdet" in name else (32, 64)
    shape = (1, model_zoo.recipe(name).input_size[0], *size)
    network = model_zoo.create(name, seed=0).eval()
    model = deltaconvert.convert(network, torch.randn(shape), backend="reference")
    deltaconvert.export_pt2(model, tmp_path / "m.pt2")
    program = DeltaProgram(tmp_path / "m.pt2")
    for t, frame in enumerate(scripted_video(shape, torch.float32)):
        expected = model(frame)
        # The difference of two ways to round, as in test_onnx.py.
        bound = max(2e-5, 8 * rounding(expected, network, [frame]))
        for a, b in zip(leaves(program(frame)), leaves(expected), strict=True):
            assert (a - b).abs().max() <= bound * max(1, b.abs().max()), f"frame {t}"


def test_islands_names_and_nesting(tmp_path):
    """Dense parts are torch's own operators; outputs come back as the network nests them."""
    network = Call(
        lambda self, x: {"a": [self.conv(torch.cumsum(self.first(x), 2))], "b": x.flatten(1).sort(1)[0]},
        first=nn.Conv2d(3, 4, 3),
        conv=nn.Conv2d(4, 5, 3),
    )
    program = check(network, (1, 3, 12, 9), tmp_path / "m.pt2")
    assert set(program.state) == {"input_0", "first", "sparsify(cumsum)", "conv"}
    loaded = torch.export.load(tmp_path / "m.pt2")
    assert any("cumsum" in str(node.target) for node in loaded.graph.nodes)


class Doubles(nn.Module):
    def forward(self, x):
        return x.mul_(2) + 1


def test_a_module_that_writes_to_its_input(tmp_path):
    frame = torch.rand(1, 3, 12, 9)
    network = nn.Sequential(Doubles(), nn.Conv2d(3, 4, 3), Doubles()).eval()
    model = deltaconvert.convert(network, frame.clone(), leaves=["0", "2"], backend="reference")
    deltaconvert.export_pt2(model, tmp_path / "m.pt2")
    program, before = DeltaProgram(tmp_path / "m.pt2"), frame.clone()
    for _ in range(2):
        assert_close(program(frame), model(frame))
        assert torch.equal(frame, before)


def test_the_program_alone(tmp_path):
    """torch.export.load and a dictionary of maps: what DeltaProgram does."""
    video = scripted_video((1, 3, 16, 20), torch.float32)
    model = deltaconvert.convert(small(), video[0], threshold={"input": 0.1}, backend="reference")
    model.info = {"arch": "small"}
    deltaconvert.export_pt2(model, tmp_path / "m.pt2")
    files = {"deltaconvert.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=files)
    facts = json.loads(files["deltaconvert.json"])
    assert facts["info"] == {"arch": "small"} and facts["thresholds"]["input"] == 0.1
    assert facts["states"][0] == {
        "name": "input_0",
        "shape": [1, 16, 20, 3],
        "dtype": "float32",
        "node": "input_0",
        "layout": "NHWC",
        "threshold": 0.1,
    }
    state = {each["name"]: torch.empty(each["shape"]) for each in facts["states"]}
    network = program.module()
    for t, frame in enumerate(video):
        everything = torch.tensor([t == 0])
        assert_close(
            network(frame=frame, everything_changed=everything, state=state), model(frame), f"frame {t}"
        )
    functional = program.run_decompositions()
    assert len(functional.graph_signature.user_inputs_to_mutate) == len(state)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_program_equals_its_network(tmp_path, compiler):
    """Compilers update the maps in place as well."""
    video = scripted_video((1, 3, 16, 20), torch.float32)
    model = deltaconvert.convert(small(), video[0], backend="reference")
    deltaconvert.export_pt2(model, tmp_path / "m.pt2")
    program = DeltaProgram(tmp_path / "m.pt2")
    program._call = torch.compile(program._call, fullgraph=True, backend=compiler)
    for t, frame in enumerate(video):
        assert_close(program(frame), model(frame), f"frame {t}")


def test_a_state_of_its_own_each(tmp_path):
    frames = torch.rand(2, 1, 3, 16, 20)
    model = deltaconvert.convert(small(), frames[0], backend="reference")
    deltaconvert.export_pt2(model, tmp_path / "m.pt2")
    first = DeltaProgram(tmp_path / "m.pt2")
    second = first.another()
    for program, frame in ((first, frames[0]), (second, frames[1]), (first, frames[0]), (second, frames[0])):
        model.reset()
        assert_close(program(frame), model(frame))


def test_a_still_frame_computes_no_pixel(tmp_path):
    frame = torch.rand(1, 3, 16, 20)
    deltaconvert.export_pt2(deltaconvert.convert(small(), frame), tmp_path / "m.pt2")
    program = DeltaProgram(tmp_path / "m.pt2")
    program(frame)
    spoilt(value for name, value in program.state.items() if not name.startswith("input"))
    assert (program(frame) == 7).all()


def test_wrong_frames_and_streams_are_refused(tmp_path):
    frame = torch.rand(1, 3, 16, 20)
    model = deltaconvert.convert(small(), frame, backend="reference")
    deltaconvert.export_pt2(model, tmp_path / "m.pt2")
    program = DeltaProgram(tmp_path / "m.pt2")
    program(frame)
    for wrong in (frame[:, :2], frame.double()):
        with pytest.raises(InputError, match=r"exported for torch\.float32"):
            program(wrong)
    with pytest.raises(InputError, match="is a ndarray: give a tensor"):
        program(frame.numpy())
    with pytest.raises(InputError, match="takes 1 frames"):
        program(frame, frame)
    with pytest.raises(InputError, match="no stream 1"):
        program.reset(1)
    assert_close(program(frame), model(frame))
    gated = deltaconvert.convert(small(), frame, threshold=0.1, gate={"dilate": 1})
    with pytest.raises(ExportError, match="gate"):
        deltaconvert.export_pt2(gated, tmp_path / "g.pt2")
    with pytest.raises(deltaconvert.DeltaConvertError, match="export_pt2"):
        torch.export.export(model, (frame,), strict=False)
    torch.export.save(torch.export.export(small(), (frame,)), tmp_path / "o.pt2")
    with pytest.raises(InputError, match="export_pt2"):
        DeltaProgram(tmp_path / "o.pt2")
    for missing in (
        lambda: DeltaProgram(tmp_path / "there is none.pt2"),
        lambda: deltaconvert.export_pt2(model, tmp_path / "no folder" / "m.pt2"),
    ):
        with pytest.raises(FileNotFoundError):
            missing()


def test_from_the_shell(tmp_path):
    frame = torch.rand(1, 3, 16, 20)
    model = deltaconvert.convert(small(), frame)
    model.save(tmp_path / "m.delta")
    told = command_line.call("export", tmp_path / "m.delta", "--pt2", tmp_path / "m.pt2").stdout
    assert "for 1x3x16x20; run it with deltaconvert.DeltaProgram" in told
    assert_close(DeltaProgram(tmp_path / "m.pt2")(frame), model(frame))


@pytest.mark.gpu
@pytest.mark.parametrize("rules", [0.0, {"input": 0.1, "activation": 0.2}])
def test_on_the_gpu(gpu, tmp_path, rules):
    video = scripted_video((2, 3, 20, 33), torch.float32)
    model = deltaconvert.convert(small().to(gpu), video[0].to(gpu), threshold=rules)
    deltaconvert.export_pt2(model, tmp_path / "m.pt2")
    program = DeltaProgram(tmp_path / "m.pt2", device=gpu)
    for t, frame in enumerate(video):
        if t == 4:
            for each in (model, program):
                each.reset(1)
        assert_close(program(frame.to(gpu)), model(frame.to(gpu)), f"frame {t}")

"""tracing/capture.py, exported.py: networks that symbolic tracing cannot see, and what torch.export makes of them."""

import threading

import pytest
import torch
import torch.nn.functional as F
from oracle import (
    Call,
    anatomy,
    assert_close,
    assert_kind,
    assert_untouched,
    check_exact,
    scripted_video,
    scripted_videos,
)
from torch import nn

import deltaconvert
from deltaconvert.errors import InputError, UnsupportedModel
from deltaconvert.passes.spell_aten import aten_name
from deltaconvert.tracing.capture import capture

AUTO = torch.export.Dim.AUTO
SHAPE = (2, 4, 13, 18)


def conv(inner=4, outer=4, **options):
    return nn.Conv2d(inner, outer, 3, padding=1, **options)


def call(function, **parts):
    torch.manual_seed(0)
    network = Call(function, **parts).eval().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return network


def exported(network, shape=SHAPE, **options):
    return torch.export.export(network, (torch.randn(shape, dtype=torch.float64),), **options)


class Branches(nn.Module):
    """Splits like YOLO's C2f, if there are images: how many is what symbolic tracing does not tell."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.act = conv(4, 8), nn.BatchNorm2d(8), nn.SiLU(inplace=True)
        self.steps = nn.ModuleList([conv(), conv()])

    def forward(self, x):
        parts = list(self.act(self.norm(self.first(x))).chunk(2, 1)) if x.shape[0] else []
        parts.extend(step(parts[-1]) for step in self.steps)
        return torch.cat(parts, 1)


def test_what_symbolic_tracing_cannot_see_is_exported(backend):
    network = call(lambda m, x: m.block(x), block=Branches())
    calls = scripted_videos([SHAPE], torch.float64)
    before = anatomy(network)

    def convert():
        return deltaconvert.convert(network, calls[0], backend=backend)

    model = convert()
    check_exact(network, model, convert, calls)
    assert_untouched(network, before)
    assert_kind(model, "delta")
    how = model.info["capture"]
    assert how.startswith("captured by torch.export") and "cannot trace" in how, how
    # Nodes go by their modules' paths, as they would after symbolic tracing.
    assert {"block.first", "block.norm", "block.act", "block.steps.0", "block.steps.1"} <= set(model.names)
    ruled = deltaconvert.convert(network, calls[0], threshold={"block.act": 0.25}, backend=backend)
    assert 0.25 in ruled.thresholds.values()


def test_symbolic_tracing_comes_first():
    model = deltaconvert.convert(call(lambda m, x: m.a(x), a=conv()), torch.randn(SHAPE).double())
    assert model.info["capture"] == "traced symbolically"
    model(torch.randn(1, 4, 9, 7).double())


def test_an_exported_graph_holds_for_its_size(backend):
    network = call(lambda m, x: m.block(x), block=Branches())
    frame = torch.randn(SHAPE).double()
    model = deltaconvert.convert(network, frame, backend=backend)
    model(frame)
    with pytest.raises(InputError, match=r"was captured for Nx4x13x18 alone"):
        model(torch.randn(2, 4, 13, 16).double())
    frame[:, :, 3:5, 4:9] += 1
    assert_close(model(frame), network(frame))


def test_an_exported_conversion_is_saved_with_its_size(backend, tmp_path):
    network = call(lambda m, x: m.block(x), block=Branches())
    frame = torch.randn(SHAPE).double()
    model = deltaconvert.convert(network, frame, backend=backend)
    model.save(tmp_path / "network.delta")
    again = deltaconvert.load(tmp_path / "network.delta", device=frame.device)
    assert_close(again(frame), network(frame))
    assert again.info == model.info
    with pytest.raises(InputError, match="alone"):
        again(torch.randn(2, 4, 13, 16).double())


def test_an_exported_graph_holds_for_every_batch(backend, tmp_path):
    network = call(lambda m, x: m.block(x).flatten(2).mean(2), block=Branches())
    frame = torch.randn(1, 4, 13, 18).double()
    model = deltaconvert.convert(network, frame, backend=backend)
    assert "any batch" in model.info["capture"]
    model.save(tmp_path / "network.delta")
    for each in (model, deltaconvert.load(tmp_path / "network.delta", device=frame.device)):
        wider = each.for_streams(3)
        calls = scripted_videos([(3, 4, 13, 18)], torch.float64)
        for frames in calls:
            assert_close(wider(*frames), network(*frames))
        assert_close(each(frame), network(frame))
        with pytest.raises(InputError, match=r"was captured for Nx4x13x18 alone"):
            each(torch.randn(1, 4, 13, 16).double())


@pytest.mark.parametrize(("most", "how"), [(65535, "and any batch"), (16, "for this size alone:")])
def test_a_bound_of_the_batch_that_no_batch_reaches_is_none(most, how):
    """cuDNN's batch norms take 65,535 images, and torch notes that it asked."""
    network = call(lambda m, x: m.block(x) if x.shape[0] <= most else m.block(x) * 2, block=Branches())
    model = deltaconvert.convert(network, torch.randn(1, 4, 13, 18).double())
    assert how in model.info["capture"]


def test_a_graph_that_depends_on_the_batch_holds_for_that_of_the_example():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Branches()

        def forward(self, x):
            return (
                self.block(x).reshape(1, -1, 13, 18) if int(x.shape[0]) == 1 else self.block(x) * x.shape[0]
            )

    torch.manual_seed(0)
    network, frame = Counts().eval().double(), torch.randn(1, 4, 13, 18).double()
    model = deltaconvert.convert(network, frame)
    assert "any batch" not in model.info["capture"]
    assert_close(model(frame), network(frame))
    with pytest.raises(InputError, match="alone"):
        model.for_streams(2)


def test_programs_convert_without_their_class(backend):
    network = call(lambda m, x: m.b(m.norm(m.a(x)).relu()), a=conv(), norm=nn.BatchNorm2d(4), b=conv())
    program = exported(network)
    dynamic = exported(network, dynamic_shapes=(({2: AUTO, 3: AUTO},),))
    for each in (program, dynamic):
        calls = scripted_videos([SHAPE], torch.float64)
        model = deltaconvert.convert(each, calls[0], backend=backend)
        assert_kind(model, "delta")
        for frames in calls:
            assert_close(model(*frames), network(*frames))
    with pytest.raises(InputError, match="does not run"):
        deltaconvert.convert(program, torch.randn(2, 4, 9, 9).double(), backend=backend)


# Each reaches torch.export's graph under a name or with inputs that networks do not write.
SPELLINGS = {
    "slices": lambda m, x: m.a(x)[:, 1:3, 2:-1, ::2],
    "a channel": lambda m, x: m.a(x[:, 1:2].expand(-1, 4, -1, -1)) * x[:, 2].unsqueeze(1),
    "channels by a list": lambda m, x: m.a(x)[:, [2, 0, 1]],
    "nearest": lambda m, x: F.interpolate(m.a(x), scale_factor=2),
    "nearest, exact": lambda m, x: F.interpolate(m.a(x), size=(20, 31), mode="nearest-exact"),
    "bilinear": lambda m, x: F.interpolate(m.a(x), size=(20, 31), mode="bilinear"),
    "bilinear, corners": lambda m, x: F.interpolate(
        m.a(x), scale_factor=(1.5, 2.0), mode="bilinear", align_corners=True
    ),
    "bicubic, antialias": lambda m, x: F.interpolate(m.a(x), size=(7, 9), mode="bicubic", antialias=True),
    "max pool": lambda m, x: F.max_pool2d(m.a(x), 3, 2, 1),
    "adaptive max pool": lambda m, x: F.adaptive_max_pool2d(m.a(x), (3, 5)),
    "adaptive pool": lambda m, x: F.adaptive_avg_pool2d(m.a(x), (3, 5)),
    "a gate": lambda m, x: m.a(x) * m.a(x).mean((2, 3), keepdim=True).sigmoid(),
    "elu": lambda m, x: F.elu(m.a(x), 0.7),
    "log sigmoid": lambda m, x: F.logsigmoid(m.a(x)),
    "in place": lambda m, x: F.hardswish(m.a(x).mul_(2).add_(x), inplace=True),
    "a norm of channels": lambda m, x: F.normalize(m.a(x), dim=1),
    "instance norm": lambda m, x: F.instance_norm(m.a(x)),
    "group norm": lambda m, x: m.norm(m.a(x)),
    "batch norm": lambda m, x: m.bn(m.pool(m.a(x))),
    "reflected": lambda m, x: m.a(F.pad(x, (1, 2, 3, 0), mode="reflect")),
    "tokens": lambda m, x: m.a(x).permute(0, 2, 3, 1).contiguous().relu().permute(0, 3, 1, 2),
    "a shuffle": lambda m, x: F.pixel_shuffle(m.a(x), 2),
    "a gated unit": lambda m, x: F.glu(m.a(x), 1),
    "a cast": lambda m, x: m.a(x).to(torch.float32).double(),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_exported_operators_are_known(backend, name):
    network = call(
        SPELLINGS[name], a=conv(), norm=nn.GroupNorm(2, 4), bn=nn.BatchNorm2d(4), pool=nn.AvgPool2d(2)
    )
    calls = scripted_videos([SHAPE], torch.float64)
    program = exported(network)
    traced = capture(program, calls[0], {})
    assert [node for node in traced.graph.graph.nodes if aten_name(node)] == []
    model = deltaconvert.convert(program, calls[0], backend=backend)
    dense = {row.reason for row in model.explain().islands} - {"its result has no channels, so it is no map"}
    assert not dense or name == "a channel", model.explain()
    for frames in calls:
        assert_close(model(*frames), network(*frames))


# Under names that only torch.export gives them; a file knows them by their public ones.
NAMES = {
    "a spectrum": lambda m, x: torch.fft.irfft2(torch.fft.rfft2(m.a(x), norm="ortho") * 0.5, (13, 18)),
    "all dimensions": lambda m, x: torch.fft.ifftn(torch.fft.fftn(m.a(x), dim=(2, 3)), dim=(2, 3)).real,
    "a transpose": lambda m, x: (m.a(x).movedim(1, -1) @ m.a.weight[:, :, 0, 0].T).movedim(-1, 1),
    "transposes of maps": lambda m, x: m.a(m.a(x).mT).mT,
    "broadcast": lambda m, x: torch.broadcast_tensors(m.a(x), m.a.bias.view(-1, 1, 1))[1] + m.a(x),
    "a room of a type": lambda m, x: torch.DoubleTensor(*x.shape).zero_().add_(m.a(x)),
}


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_what_programs_call(name, tmp_path):
    network, frame = call(NAMES[name], a=conv()), torch.randn(SHAPE).double()
    deltaconvert.convert(exported(network), frame, backend="reference").save(tmp_path / "program.delta")
    assert_close(deltaconvert.load(tmp_path / "program.delta", backend="reference")(frame), network(frame))


def test_programs_of_core_operators(backend):
    """run_decompositions leaves some two hundred operators, which no network is written with."""
    network = call(
        lambda m, x: m.c(F.max_pool2d(m.groups(m.b(m.norm(m.a(x)).relu())), 2)).mul(
            m.last(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mean((2, 3), keepdim=True)
        ),
        a=conv(),
        norm=nn.BatchNorm2d(4),
        b=nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2),
        groups=nn.GroupNorm(2, 6),
        c=conv(6, 4, groups=2, bias=False),
        last=nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)),
    )
    program = exported(network).run_decompositions()
    calls = scripted_videos([SHAPE], torch.float64)
    model = deltaconvert.convert(program, calls[0], backend=backend)
    assert not model.explain().islands, model.explain()
    assert sum("BatchNorm" in row.operator for row in model.explain().rows) == 0
    for frames in calls:
        assert_close(model(*frames), network(*frames))


def test_a_program_for_any_batch(backend):
    network = call(lambda m, x: m.b(m.norm(m.a(x)).relu()), a=conv(), norm=nn.BatchNorm2d(4), b=conv())
    program = exported(network, dynamic_shapes=(({0: AUTO, 2: AUTO},),))
    model = deltaconvert.convert(program, torch.randn(SHAPE).double(), backend=backend)
    assert model.info["capture"].endswith("for this size alone and any batch")
    wider = model.for_streams(3)
    for frames in scripted_videos([(3, *SHAPE[1:])], torch.float64):
        assert_close(wider(*frames), network(*frames))


def test_views_of_what_lies_otherwise_in_memory(backend):
    """What a graph calls contiguous need not be: a converted network has strides of its own."""
    network = call(lambda m, x: m.a(x).flatten(2).transpose(1, 2).contiguous().view(2, -1), a=conv())
    calls = scripted_videos([SHAPE], torch.float64)
    model = deltaconvert.convert(exported(network), calls[0], backend=backend)
    for frames in calls:
        assert_close(model(*frames), network(*frames))


def test_what_no_way_captures_says_why():
    network = call(lambda m, x: x + torch.randn(1))
    with pytest.raises(UnsupportedModel, match="random"):
        capture(network, (torch.randn(SHAPE).double(),), {})


def test_networks_in_threads():
    """Each thread captures its own network, some with torch.export, while another thread calls dense and delta ones."""
    networks = [call(lambda m, x: m.c(x).relu(), c=conv()), Branches().eval().double()] * 3
    frames = scripted_video(SHAPE, torch.float64, 3)
    other = call(lambda m, x: m.b(m.a(x).relu() + x), a=conv(), b=conv())
    delta, want = deltaconvert.convert(other, frames[0]), other(frames[1])
    failures, over = [], threading.Event()

    def work(network):
        try:
            model = deltaconvert.convert(network, frames[0])
            for frame in frames:
                assert_close(model(frame), network(frame), "in a thread")
        except BaseException as error:  # a thread's own failure would be printed and forgotten
            failures.append(error)

    def look_on():
        try:
            while not over.is_set():
                assert torch.equal(other(frames[1]), want)
                assert_close(delta(frames[1]), want, "beside")
        except BaseException as error:
            failures.append(error)

    beside = threading.Thread(target=look_on)
    threads = [threading.Thread(target=work, args=(network,)) for network in networks]
    for thread in (beside, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    beside.join()
    assert not failures, failures
    assert not torch.compiler.is_compiling() and not torch.compiler.is_exporting()


EXPORTS = {
    "export": lambda m, x: torch.export.export(m, (x,), strict=False),
    "trace": torch.jit.trace,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", EXPORTS)
def test_a_delta_model_is_not_for_torch_export(way):
    frames = scripted_video(SHAPE, torch.float64, 3)
    network = call(lambda m, x: m.c(x).relu(), c=conv())
    delta = deltaconvert.convert(network, frames[0])
    with pytest.raises(Exception, match="export_pt2"):
        EXPORTS[way](delta, frames[0])
    assert_close(delta(frames[1]), network(frames[1]), "after")


def test_the_module_of_a_program(backend, tmp_path):
    """It calls itself training, and refuses eval()."""
    network = (
        nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), conv())
        .eval()
        .double()
    )
    frames = scripted_video(SHAPE)
    model = deltaconvert.convert(exported(network).module(), frames[0], backend=backend)
    assert "it is the module of a program of torch.export" in model.info["capture"]
    assert not model.explain().islands
    for t, frame in enumerate(frames):
        with torch.no_grad():
            assert_close(model(frame), network(frame), f"frame {t}")
    model.save(tmp_path / "net.delta")


def test_a_gradient_in_forward_is_refused(backend):
    """torch.export leaves a fake tensor in its graph, torch's counter of work fails in it."""
    network = call(lambda self, x: torch.func.grad(lambda y: self.first(y).square().sum())(x), first=conv())
    with pytest.raises(UnsupportedModel, match=r"cannot trace Call\.forward"):
        deltaconvert.convert(network, scripted_video(SHAPE)[0], backend=backend)


def test_a_generator_that_forward_seeds_is_no_constant(backend):
    """It gives the same numbers in every frame; one generator in a graph would not."""

    def noise(m, x):
        seeded = torch.Generator(x.device).manual_seed(0)
        return m.a(x) + torch.rand(4, 1, 1, generator=seeded, dtype=x.dtype, device=x.device)

    network = nn.Sequential(conv(), call(noise, a=conv())).eval().double()
    frames = scripted_videos([SHAPE], torch.float64)[:3]
    model = deltaconvert.convert(network, frames[0], backend=backend)
    for frame in frames:
        assert_close(model(*frame), network(*frame))


def by_count(m, x):
    y = m.a(x) if [*x] else x  # what torch.fx does not see
    return y * 2 if x.shape[0] > 4 else y


def by_remainder(m, x):
    y = m.a(x) if x.shape[0] * 2 else x
    return y * 2 if x.shape[0] % 4 == 1 else y


def by_length(m, x):
    y = m.a(x) if len(x) else x
    return y * 2 if x.shape[0] > 4 else y


@pytest.mark.parametrize("forward", [by_count, by_remainder, by_length])
def test_a_branch_on_the_number_of_images_holds_for_the_same(forward):
    """It goes the same way for the two images of the example, and for one more."""
    network, frame = call(forward, a=conv()), torch.randn(SHAPE).double()
    model = deltaconvert.convert(network, frame, backend="reference")
    assert_close(model(frame), network(frame))
    for batch in (1, 3, 5):
        more = torch.randn(batch, *SHAPE[1:]).double()
        try:
            ours = model(more)
        except InputError:
            continue
        assert_close(ours, network(more), f"{batch} images, {model.info['capture']}")

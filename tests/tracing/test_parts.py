"""tracing/parts.py: networks that no way captures run as they were, around the modules that convert."""

import copy

import pytest
import torch
from oracle import anatomy, assert_close, assert_untouched, clones, dense, scripted_videos
from torch import nn

import deltaconvert
from deltaconvert.errors import ContainerError, InputError, UnsupportedModel
from deltaconvert.tracing.parts import parts_of
from deltaconvert.tracing.twin import twin

SHAPE = (2, 3, 17, 22)


class Heads(nn.Module):
    """Traceable heads in a module that is not: it keeps boxes by their scores, as detectors do."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.score, self.box = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 4, 1)
        self.per_region = nn.Conv2d(4, 2, 3)
        self.strides = [4]

    def forward(self, maps):
        scores, boxes = [], []
        for m in maps:
            shared = self.shared(m)
            scores.append(self.score(shared).flatten(1))
            boxes.append(self.box(shared).flatten(2).transpose(1, 2))
        scores, boxes = torch.cat(scores, 1), torch.cat(boxes, 1)
        if scores.max() > 1e6:
            raise ValueError("not a score")
        kept = [boxes[i][scores[i] > 0] for i in range(len(scores))]
        regions = torch.cat([maps[0][:, :, :5, :5]] * 3)
        return kept, self.per_region(regions)


class Detector(nn.Module):
    """List of images -> what Heads gives: boxes, as many as there are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3, 2)
        )
        self.backbone.out_channels = 4
        self.heads = Heads()

    def forward(self, images):
        assert self.backbone.out_channels == 4
        if max(image.abs().max() for image in images) > 1e6:
            raise ValueError("not an image")
        kept, regions = self.heads([self.backbone(torch.stack(list(images)))])
        return [{"boxes": boxes} for boxes in kept], regions


@pytest.fixture
def network():
    return Detector().eval().double()


def test_a_detector_converts_in_its_largest_parts(backend, network):
    calls = scripted_videos([SHAPE], torch.float64)
    before = anatomy(network)
    model = deltaconvert.convert(network, (list(calls[0][0]),), backend=backend)
    for t, (frames,) in enumerate(calls):
        assert_close(model(list(clones([frames])[0])), dense(network, [list(frames)]), f"frame {t}")
    assert_untouched(network, before)
    rows = {row.path: row for row in model.explain().rows}
    # The heads keep boxes by value; below them are the largest that can be captured. Regions have no last frame.
    delta = {path for path, row in rows.items() if row.kind == "delta"}
    assert delta == {"backbone.0", "backbone.3", "heads.shared.0", "heads.score", "heads.box"}
    assert "cannot trace Detector.forward" in rows["network"].reason
    assert "torch.export cannot capture it" in rows["network"].reason
    assert 0 < rows["network"].macs < sum(row.macs for row in rows.values()) / 2
    assert abs(sum(row.share for row in rows.values()) - 1) < 1e-9
    assert model.info["capture"].startswith("runs as it was, around its parts backbone, heads.shared")


def test_still_frames_and_reset_reach_the_parts(backend, network):
    ((frames,), *_) = scripted_videos([SHAPE], torch.float64)
    model = deltaconvert.convert(network, (list(frames),), backend=backend)
    model(list(frames))
    model(list(frames))
    assert not any(mask.any() for mask in model.masks().values())
    assert model.stats().macs_done < model.stats().macs_dense / 2
    model.reset()
    model(list(frames))
    assert all(mask.all() for mask in model.masks().values())


def test_parts_report_nan(backend, network):
    frames = torch.randn(SHAPE).double()
    model = deltaconvert.convert(network, (list(frames),), backend=backend)
    model(list(frames))
    assert model.stats().nonfinite == {}
    frames[0, 1, 3, 4] = torch.nan
    model(list(frames))
    found = model.stats().nonfinite
    assert found["backbone.input_0"] == 1 and found["heads.shared.input_0"] > 1, "its windows read it"


def test_thresholds_by_the_networks_own_names(backend, network):
    frames = list(torch.randn(SHAPE).double())
    model = deltaconvert.convert(network, (frames,), threshold={"heads.shared.*": 0.5}, backend=backend)
    assert model.thresholds["heads.shared.0"] == 0.5
    with pytest.raises(InputError, match="nothing"):
        deltaconvert.convert(network, (frames,), threshold={"nothing": 0.5}, backend=backend)


def test_other_sizes_run(network):
    model = deltaconvert.convert(network, (list(torch.randn(SHAPE).double()),))
    for shape in ((2, 3, 12, 9), SHAPE):
        frames = list(torch.randn(shape).double())
        assert_close(model(frames), network(frames))


def test_what_parts_do_not_have(network, tmp_path):
    frames = list(torch.randn(SHAPE).double())
    model = deltaconvert.convert(network, (frames,))
    with pytest.raises(ContainerError, match=r"class Detector: its parts \S.* convert by themselves"):
        model.save(tmp_path / "detector.delta")
    with pytest.raises(InputError, match="convert it again"):
        model.for_streams(3)


def test_parts_take_other_thresholds(backend, network):
    calls = scripted_videos([SHAPE], torch.float64)
    exact = deltaconvert.convert(network, (list(calls[0][0]),), backend=backend)
    exact(list(calls[0][0]))
    model = exact.with_thresholds({"heads.shared.*": "50%", "backbone.0": 0.3}, list(calls[0][0]))
    fresh = deltaconvert.convert(
        network, (list(calls[0][0]),), threshold={"heads.shared.*": "50%", "backbone.0": 0.3}, backend=backend
    )
    assert model.thresholds == fresh.thresholds and max(model.thresholds.values()) == 0.3
    assert set(exact.thresholds.values()) == {0.0}
    for (frames,) in calls:
        assert_close(model(list(frames)), fresh(list(frames)))
        assert_close(exact(list(frames)), dense(network, [list(frames)]))
    with pytest.raises(InputError, match="nothing"):
        exact.with_thresholds({"nothing": 0.1}, list(calls[0][0]))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y if y.mean() > 1e9 else y * 2


def test_parts_of_a_module_that_stays_whole(backend):
    """The rest of the network is traced; in the module that cannot be, its convolution converts."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Inner(), nn.ReLU()).eval().double()
    calls = scripted_videos([SHAPE], torch.float64)
    model = deltaconvert.convert(network, calls[0], backend=backend)
    for t, frames in enumerate(calls):
        assert_close(model(*clones(frames)), dense(network, frames), f"frame {t}")
    kinds = {row.path: row.kind for row in model.explain().rows}
    assert kinds["0"] == kinds["1.conv"] == "delta" and kinds["1"] == "dense"


def test_nothing_to_convert_is_refused():
    class Nothing(nn.Module):
        def forward(self, x):
            return x if x.mean() > 0 else -x

    with pytest.raises(UnsupportedModel, match=r"(?s)cannot trace Nothing.*torch\.export cannot"):
        deltaconvert.convert(Nothing().eval(), torch.zeros(1, 3, 4, 4))


class Settings:
    gain = 0

    def __init__(self):
        self.name = "text"


class Keeps(nn.Module):
    """Keeps the mean of wide maps."""

    def __init__(self):
        super().__init__()
        self.inner, self.gain = nn.Conv2d(4, 4, 3, padding=1), 1
        self.facts, self.log, self.settings = {}, [], Settings()
        self.register_buffer("seen", torch.zeros(1, 4, 1, 1))

    def forward(self, x):
        if x.shape[3] > 11:
            self.seen.copy_(x.mean((2, 3), keepdim=True))
        gain = self.gain + self.facts.get("gain", 0) + len(self.log) + self.settings.gain
        return self.inner(x) * gain + self.seen


def writes_a_weight(self):
    self.part.inner.bias.add_(0.5)


def sets_an_attribute(self):
    self.part.gain = self.part.gain + 1


def swaps_a_module(self):
    self.part.inner = self.other


def scales_uncounted(self):
    self.part.inner.weight.data.mul_(0.5)


def scales_all_uncounted(self):
    for weight in self.part.inner.parameters():
        weight.detach().numpy()[:] *= 0.5


def sets_an_item(self):
    self.part.facts["gain"] = 2


def appends(self):
    self.part.log.append(2)


def changes_settings(self):
    self.part.settings.gain = 2


def writes_nothing(self):
    pass


class Around(nn.Module):
    """Goes by values, and where those are bright it writes to its part."""

    def __init__(self, write):
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 4, 3, padding=1), Keeps()
        self.other, self.write = nn.Conv2d(4, 4, 3, padding=1), write

    def forward(self, x):
        if x.max() > 0.9:
            self.write(self)
        return self.part(self.first(x))


def around(write):
    torch.manual_seed(0)
    return Around(write).eval().double(), torch.rand(1, 3, 13, 11).double()


WRITES = [
    writes_a_weight,
    sets_an_attribute,
    swaps_a_module,
    scales_uncounted,
    scales_all_uncounted,
    sets_an_item,
    appends,
    changes_settings,
    writes_nothing,
]


@pytest.mark.parametrize("write", WRITES)
def test_a_part_that_is_written_to_stays_dense(write):
    dense, frame = around(write)
    model = deltaconvert.convert(dense, frame * 0.5, backend="reference")
    assert "parts first, part" in model.info["capture"]
    copied, apart, wide = copy.deepcopy(model), twin(dense), torch.cat([frame, frame], 3)
    narrow = [frame * bright for bright in (0.5, 2, 0.5, 0.2)]
    for each in (narrow, [frame * 0.5, wide * 0.5, frame * 0.5, frame]):
        for t, image in enumerate(each):
            with torch.no_grad():
                assert_close(model(image), apart(image), f"frame {t}")
    (part,) = (each for path, each in parts_of(copied.graph).items() if path.endswith("part"))
    assert part.stamp.holds(), "a copy of one that nobody wrote to runs as deltas"
    (part,) = (each for path, each in parts_of(copy.deepcopy(model).graph).items() if path.endswith("part"))
    assert not part.stamp.holds()

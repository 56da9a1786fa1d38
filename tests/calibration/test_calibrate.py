"""calibrate: thresholds within a budget, from clips of every kind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from calibrating import clip, network
from oracle import assert_close, edges
from torch import Tensor

import deltaconvert
from deltaconvert import progress
from deltaconvert.calibration.asked import gates_of
from deltaconvert.calibration.search import Search
from deltaconvert.calibration.setting import Outcome, Setting
from deltaconvert.calibration.trials import Trials
from deltaconvert.errors import InputError, VideoError
from deltaconvert.gate import Gate
from deltaconvert.metrics import detection, nrmse, relative_l2
from deltaconvert.progress import trials_told


@pytest.mark.parametrize("method", ["allocate", "front_to_back"])
def test_the_budget_is_kept_and_work_is_saved(delta, method):
    """What is promised on the clip is what the model does on it."""
    frames = clip()
    found = deltaconvert.calibrate(
        delta, frames, budget=0.05, method=method, gates=[Gate(), Gate(smooth=3)], rounds=1, progress=False
    )
    assert 0 < found.loss <= 0.05 and found.work < 0.9
    assert max(delta.thresholds.values()) == 0  # it stays as it was
    ours, dense, work = [], [], []
    model = deltaconvert.convert(network(), frames[0], threshold=found.thresholds, backend="reference")
    for frame in frames:
        ours.append(model(frame))
        dense.append(network()(frame).detach())
        work.append(model.stats().work)
    assert relative_l2(ours, dense) == pytest.approx(found.loss, rel=1e-3)
    assert sum(work[1:]) / 5 == pytest.approx(found.work, rel=1e-3)
    assert found.model.thresholds.keys() == model.thresholds.keys()
    assert found.model.gate == model.gate
    assert "of 0.05" in str(found)


def test_it_tells_how_far_it_is(capsys, monkeypatch):
    """A line now and then where no terminal is: the last trial, what one takes, and the best within the budget."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with trials_told(True, budget=0.1) as tell:
        tell.expect(known=10, about=900)
        for loss, work in ((0.2, 0.3), (0.05, 0.6), (0.1, 0.5), (0.01, 0.9)):
            tell(Setting(()), Outcome(loss, loss, work))
    first, *_, last = capsys.readouterr().err.splitlines()
    each = re.compile(r", [\d.e-]+ s each")
    assert each.search(first) and each.search(last)
    assert (
        each.sub("", first)
        == "calibrating: trial 11 of some 900: loss 0.2, work 30.0%; none within the budget yet"
    )
    assert (
        each.sub("", last) == "calibrating: trial 14 of some 900: loss 0.01, work 90.0%; least so far 50.0%"
    )


def test_a_terminal_of_80_columns_holds_the_bar(capsys, monkeypatch):
    """The bar, the time and all that is told of a trial: nothing is cut off."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "80"), ("LINES", "24")):
        monkeypatch.setenv(name, value)
    with trials_told(True, budget=0.1) as tell:
        tell.expect(known=1230, about=1400)
        tell(Setting(()), Outcome(0.09876, 0.09876, 0.3))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(r"calibrating: trial 1231 of some 1400, [\d.e-]+ s each ━+.*0:00:00", text)
    assert "loss 0.09876, work 30.0%; least so far 30.0%" in text


@pytest.mark.parametrize("method", ["allocate", "front_to_back"])
def test_it_takes_as_long_as_it_may(delta, method):
    """Where the time is over it has the best so far, or the exact network."""
    frames = clip()
    none = deltaconvert.calibrate(delta, frames, budget=0.05, method=method, seconds=1e-9, progress=False)
    assert none.cut_off and none.trials == 1  # the exact network, whose work it tells
    assert max(none.model.thresholds.values()) == 0 and none.loss < 1e-6
    with pytest.raises(InputError, match="seconds"):
        deltaconvert.calibrate(delta, frames, seconds=0)
    works = []
    for most in (2, 8, 30):
        trials = Trials(delta, [[x] for x in frames], relative_l2)
        search = Search(trials, 0.05, until=1e12)

        def done_by(until, settings, ask=trials.done_by, search=search, most=most):
            return ask(until, settings[: most - len(search.tried)])

        trials.done_by = done_by
        try:
            found = search.allocate([Gate()], 1) if method == "allocate" else search.front_to_back()
        except TimeoutError:
            found = search.best()
        assert len(search.tried) <= most
        assert found == search.exact() or search.tried[found].loss <= 0.05
        works.append(1.0 if found == search.exact() else search.tried[found].work)
    assert works[0] >= works[1] >= works[2] < 0.9


def test_a_users_metric_and_decode(delta):
    def wrong_pixels(ours, dense):
        assert all(label.dtype == torch.int64 for label in ours + dense)
        return sum(float((a != b).float().mean()) for a, b in zip(ours, dense, strict=True)) / len(dense)

    found = deltaconvert.calibrate(
        delta,
        clip(),
        budget=0.02,
        metric=wrong_pixels,
        decode=lambda out: out.argmax(1),
        gates=[Gate()],
        rounds=0,
    )
    assert found.metric == "wrong_pixels" and found.loss <= 0.02 and found.work < 1


def test_it_goes_on_where_it_was(delta, tmp_path, monkeypatch):
    kept, options = tmp_path / "trials.jsonl", {"budget": 0.05, "gates": [Gate()], "rounds": 1}
    first = deltaconvert.calibrate(delta, clip(), resume=kept, **options)
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    tried = []
    real = Trials._try
    monkeypatch.setattr(Trials, "_try", lambda self, *ask, **by: tried.append(ask) or real(self, *ask, **by))
    again = deltaconvert.calibrate(delta, clip(), resume=kept, **options)
    assert again.thresholds == first.thresholds
    assert 0 < len(tried) == len(lines) - len(lines) // 2
    deltaconvert.calibrate(delta, clip(seed=1), resume=kept, **options)  # another clip has its own trials
    assert len(tried) > len(lines)


def test_trials_are_of_their_weights_frames_and_functions(delta, tmp_path, monkeypatch):
    """What a file keeps is not taken for what was trained further, decoded otherwise, or played in between."""
    tried, real = [], Trials._try
    monkeypatch.setattr(Trials, "_try", lambda self, *ask, **by: tried.append(1) or real(self, *ask, **by))

    def trials(model=delta, frames=None, metric=relative_l2, **options):
        tried.clear()
        calls = [[x] for x in (frames or clip())]
        file = tmp_path / "trials.jsonl"
        run = Trials(model, calls, metric, file=file, **options)
        run(Setting((0.1,) * len(run.sites)))
        return len(tried)

    def halved(output):
        return output / 2

    trained, between = network(), clip()
    trained[4].bias.data += 0.1
    between[3] += 0.1
    assert trials() == 1 and trials() == 0
    assert trials(deltaconvert.convert(trained, clip()[0])) == 1
    assert trials(frames=between) == 1
    assert trials(decode=halved) == 1
    assert trials(guide=nrmse) == 1
    assert trials(metric=partial(nrmse)) == 1
    assert trials(deltaconvert.convert(network(), clip()[0], gate={"refresh": 2})) == 1
    assert trials() == 0


def test_a_file_of_trials_that_was_cut_off(delta, tmp_path):
    """A line that a kill cut in the middle is tried again; other files stay as they are."""
    kept, options = tmp_path / "trials.jsonl", {"budget": 0.05, "method": "front_to_back"}
    first = deltaconvert.calibrate(delta, clip(), resume=kept, **options)
    whole = kept.read_text()
    kept.write_text(whole[:-20])
    assert deltaconvert.calibrate(delta, clip(), resume=kept, **options).thresholds == first.thresholds
    assert sorted(kept.read_text().splitlines()) == sorted(whole.splitlines())
    for other in ('{"format": "deltaconvert-thresholds"}', "[1]\n", "\x89PNG\n\n", '["abc"]\n', "a note"):
        kept.write_text(other)
        with pytest.raises(InputError, match="holds no trials"):
            deltaconvert.calibrate(delta, clip(), resume=kept, **options)
        assert kept.read_text() == other


def test_the_guards_of_the_model_stay(tmp_path):
    """A gate is found; how old, how many and how broken pixels may be is not for a clip to say."""
    guards = {"cut": 0.9, "refresh": 4, "max_density": 0.75, "nonfinite": "hold"}
    delta = deltaconvert.convert(network(), clip()[0], gate={**guards, "smooth": 5})
    found = deltaconvert.calibrate(delta, clip(), budget=0.3, gates=[Gate(dilate=2)], rounds=0)
    assert found.model.gate == found.thresholds.gate == replace(found.model.gate, **guards)
    assert found.model.gate.smooth == 1 and found.model.gate.dilate > 0  # those are sought
    paper = deltaconvert.calibrate(delta, clip(), budget=0.3, method="front_to_back")
    assert paper.model.gate == Gate(dilate=3, **guards)
    work = []
    for frame in clip():  # they are in force in the trials as well
        paper.model(frame)
        work.append(paper.model.stats().work)
    assert sum(work[1:]) / 5 == pytest.approx(paper.work, rel=1e-3)


def test_the_file_is_what_convert_takes(delta, tmp_path):
    file = tmp_path / "found.json"
    found = deltaconvert.calibrate(delta, clip(), budget=0.05, gates=[Gate(smooth=3)], rounds=0)
    found.write(file)
    assert json.loads(file.read_text())["found"]["budget"] == 0.05
    model = deltaconvert.convert(network(), clip()[0], threshold=file)
    assert model.thresholds == found.model.thresholds and model.gate == found.setting.gate != Gate()
    for frame in clip():
        assert_close(model(frame), found.model(frame))
    assert any(isinstance(e.threshold, float | Tensor) for e in edges(model).values())


@pytest.mark.gpu
def test_what_was_found_travels_to_cuda_and_back(gpu, tmp_path):
    with torch.device("cpu"):
        frames = clip()
        model = deltaconvert.convert(network(), frames[0])
        found = deltaconvert.calibrate(model, frames, budget=0.05, rounds=1, progress=False)
        ours = deltaconvert.convert(network(), frames[0], threshold=found.thresholds)
        ours.save(tmp_path / "here.delta")
    on_gpu = deltaconvert.load(tmp_path / "here.delta", device="cuda")
    assert on_gpu.backend == "cuda" and on_gpu.thresholds == ours.thresholds
    assert max(ours.thresholds.values()) > 0
    on_gpu.save(tmp_path / "there.delta")
    with torch.device("cpu"):
        back = deltaconvert.load(tmp_path / "there.delta")
        assert back.thresholds == ours.thresholds and back.rules == ours.rules
        for t, frame in enumerate(frames):
            expected = ours(frame)
            assert torch.equal(back(frame), expected), f"frame {t}"
            assert_close(on_gpu(frame.to(gpu)).cpu(), expected, f"frame {t} on the GPU")


def test_frames_from_files(delta, tmp_path, monkeypatch):
    """uint8 images, a folder of them and a video come to the same inputs, by the recipe in the model's file."""
    pytest.importorskip("av")
    image = pytest.importorskip("PIL.Image")
    from deltaconvert import feed
    from deltaconvert.watching.inputs import inputs_of

    delta.info["recipe"] = feed.to_json(feed.recipe_for("plain", (1, 3, 32, 48)))
    pictures = [(frame[0].permute(1, 2, 0).clamp(0, 1) * 255).to(torch.uint8) for frame in clip(3)]
    for place, picture in enumerate(pictures):
        image.fromarray(picture.numpy()).save(tmp_path / f"{place}.png")
    direct, folder = inputs_of(delta, pictures), inputs_of(delta, tmp_path)
    assert len(folder) == 3 and all(torch.equal(a[0], b[0]) for a, b in zip(direct, folder, strict=True))
    assert len(inputs_of(delta, str(tmp_path), limit=2)) == 2
    assert direct[0][0].shape == (1, 3, 32, 48) and float(direct[0][0].max()) <= 1
    sizes = ((1, 3, 16, 24),)
    monkeypatch.setattr(delta, "signature", dataclasses.replace(delta.signature, sizes=sizes))
    assert inputs_of(delta, pictures)[0][0].shape == sizes[0], "a network of one size gets its size"
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no images"):
        inputs_of(delta, tmp_path / "none")


@pytest.mark.parametrize(("good", "kept"), [(3, True), (1, False)])
def test_frames_of_a_camera_that_is_lost(delta, good, kept, monkeypatch):
    """They do not come again: two of them are a clip. Of a file, an error says how to go on."""
    from deltaconvert import feed, video
    from deltaconvert.watching.inputs import inputs_of

    @contextlib.contextmanager
    def broken(source, **_):
        def frames():
            yield from pictures
            raise VideoError("lost")

        yield frames()

    pictures = [torch.zeros(32, 48, 3, dtype=torch.uint8)] * good
    delta.info["recipe"] = feed.to_json(feed.recipe_for("plain", (1, 3, 32, 48)))
    monkeypatch.setattr(video, "read", broken)
    for camera in (0, "0", "rtsp://door"):
        if kept:
            with pytest.warns(RuntimeWarning, match="lost; going on with the 3 frames before it"):
                assert len(inputs_of(delta, camera, limit=40)) == 3
        else:
            with pytest.raises(VideoError, match="lost"):
                inputs_of(delta, camera)
    with pytest.raises(VideoError, match="lost"):
        inputs_of(delta, "street.mp4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget=0"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"budget": "1%"}, "budget='1%'"),
        ({"budget": True}, "budget=True"),
        ({"budget": 2}, "budget=2: relative_l2 is a share, and at 1 all is lost; 2 % is 0.02"),
        ({"budget": 1.0, "metric": "top1"}, "budget=1.0: top1 is a share"),
        ({"budget": 5, "metric": partial(detection, iou=0.75)}, "is a share.*5 % is 0.05"),
        ({"guide": "beauty"}, "no metric 'beauty'"),
        ({"decode": "boxes"}, "decode is a str: it is a function"),
        ({"against": 3, "by": "time"}, "against is a int: it is a function"),
        ({"against": network()}, "against= is timed beside the network, which by='time' asks for"),
        ({"limit": 1}, "limit=1: it is a whole number from 2"),
        ({"limit": "40"}, "limit='40'"),
        ({"rounds": -1}, "rounds=-1: it is a whole number from 0"),
        ({"at_once": 0}, "at_once=0: it is a whole number from 1"),
        ({"seconds": "60"}, "seconds='60': the search needs some"),
        ({"gates": []}, r"gates=\[\]: give a list of them"),
        ({"gates": Gate()}, "give a list of them"),
        ({"gates": ["smooth=3"]}, "gates has a str: give each as Gate"),
        ({"resume": "nowhere/trials.jsonl"}, "there is no folder nowhere: make it first"),
        ({"metric": lambda ours, dense: None}, "gives NoneType: it has to give one number"),
        ({"metric": lambda ours, dense: torch.zeros(3)}, "gives Tensor: it has to give one number"),
        ({"metric": "beauty"}, "no metric 'beauty'"),
        ({"method": "luck"}, "no method 'luck'"),
        ({"by": "heart"}, "by='heart'"),
    ],
    # By the message: a function's address is another in each process.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_options(delta, options, message):
    with pytest.raises(InputError, match=message):
        deltaconvert.calibrate(delta, clip(), **options)


def test_the_guide_by_name_gates_as_dicts_and_a_loss_in_decibels(delta):
    """As they are written elsewhere; a loss of one's own may be of any size."""
    assert gates_of([{"dilate": 2}, Gate()]) == (Gate(dilate=2), Gate())

    def decibels(ours, dense):
        return -20 * math.log10(1 - relative_l2(ours, dense))

    asked = {"method": "front_to_back", "guide": "nrmse", "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a large threshold that was asked for
        found = deltaconvert.calibrate(delta, clip(), budget=2, metric=decibels, **asked)
    assert 0.5 < found.loss <= 2, found


def test_a_score_is_no_loss(delta):
    def agreement(ours, dense):
        return 1 - relative_l2(ours, dense)

    with pytest.raises(InputError, match=r"gives 1 for the dense network's own outputs.*has to be a loss"):
        deltaconvert.calibrate(delta, clip(), metric=agreement)
    with pytest.raises(InputError, match="gives nan"):
        deltaconvert.calibrate(delta, clip(), metric=lambda ours, dense: float("nan"))


def test_bad_frames(delta):
    with pytest.raises(InputError, match="at least 2 frames"):
        deltaconvert.calibrate(delta, clip(1))
    with pytest.raises(InputError, match="one tensor"):
        deltaconvert.calibrate(delta, clip(1)[0])
    with pytest.raises(InputError, match="frames are a NoneType: give a list"):
        deltaconvert.calibrate(delta, None)
    with pytest.raises(InputError, match=r"frame 1: input 0 has shape \(3, 32, 48\).*frame\[None\]"):
        deltaconvert.calibrate(delta, [clip(1)[0], clip(1)[0][0]])
    with pytest.raises(InputError, match="frame 1 has the size 1x3x16x48, those before it 1x3x32x48"):
        deltaconvert.calibrate(delta, [clip(1)[0], clip(1)[0][:, :, :16]])
    still = deltaconvert.convert(torch.nn.Flatten().eval(), clip(1)[0], backend="reference")
    with pytest.raises(InputError, match="nothing in the network runs as a delta"):
        deltaconvert.calibrate(still, clip())

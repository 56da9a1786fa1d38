"""report_page.py and the heat map: one page that needs no other file."""

from __future__ import annotations

import itertools
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import deltaconvert
from deltaconvert.drawing.overlay import heatmap
from deltaconvert.errors import DeltaConvertError, InputError
from deltaconvert.watching.measure import Dense
from deltaconvert.watching.watch import watch

pytest.importorskip("jinja2")
pytest.importorskip("PIL")
from deltaconvert.drawing.charts import chart
from deltaconvert.drawing.report_page import Page


def run(frames: int, compare: bool = True, **options) -> Page:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    video = [torch.randint(0, 256, (40, 56, 3), dtype=torch.uint8)]
    for t in range(1, frames):
        video.append(video[-1].clone())
        video[-1][2 * t : 2 * t + 6, 10:20] = torch.randint(0, 256, (6, 10, 3), dtype=torch.uint8)

    def prepare(frame):
        return frame.permute(2, 0, 1)[None].float() / 255

    model = deltaconvert.convert(
        network,
        prepare(video[0]),
        threshold={"activation": 0.05},
        gate={"refresh": 50, "cut": 0.9},
        **options,
    )
    page = Page(model, "a <small> network")
    page.follow(watch(model, video, prepare, dense=Dense(model) if compare else None))
    return page


@pytest.mark.parametrize("times", [1, 3, 30])
def test_names_of_layers_do_not_lie_on_each_other(tmp_path, times):
    page = run(3)
    page.layers = [layers * times for layers in page.layers]
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    tops = [float(top) for top in re.findall(r'<span style="top: ([\d.]+)%', text)]
    height = int(re.search(r"height: (\d+)px", text)[1])
    assert len(tops) == min(14, len(page.layers[0]))
    assert all((after - top) / 100 * height > 15.9 for top, after in itertools.pairwise(tops))


@pytest.mark.parametrize("compare", [True, False])
def test_a_page_needs_nothing_beside_it(tmp_path, compare):
    page = run(7, compare)
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    HTMLParser().feed(text)
    assert "a &lt;small&gt; network" in text and "refresh 50" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert text.count("<polyline") == (5 if compare else 3)
    # Three stills, twice; the heat map.
    assert text.count("data:image/jpeg") == 7 and text.count("data:image/png") == 3
    for row in page.model.explain().rows:
        if row.kind in ("sparsify", "delta"):
            assert f"<td>{row.path}<td>" in text
    assert f"{sum(frame.work for frame in page.frames[1:]) / 6:.1%}" in text
    # The table, too, is of all frames but the first.
    density = sum(frame.density for frame in page.frames[1:]) / 6
    assert f"<td>input_0<td>sparsify<td>0<td>{density:.1%}<td>" in text and density < 0.2
    assert "0 pixels held, 0 full frames after a cut, 0 tiles waiting" in " ".join(text.split())
    assert "frame 1</text>" in text and ">frame 6</text>" in text
    assert ("dense is the same network dense" in text) == compare


def test_pixels_that_are_not_finite_are_told(tmp_path):
    page = run(3, compare=False)
    frame = torch.rand(1, 3, 40, 56)
    frame[0, 1, 3, 4:6] = math.nan
    page.write(tmp_path / "page.html")
    assert "NaN" not in (tmp_path / "page.html").read_text()
    page.model(frame)
    page.write(tmp_path / "page.html")
    assert (
        "<p>input_0: 2 pixels came in with NaN or infinity; in a frame"
        in (tmp_path / "page.html").read_text()
    )


def test_a_frame_far_above_the_others_does_not_flatten_the_chart():
    values = [2.0, 900.0, *[3.0] * 40]
    drawn = chart("Milliseconds", {"delta": (values, "red")}, "{:.1f} ms")
    assert drawn["top"] == "4.5 ms" and drawn["beyond"] == "cut off: 1, up to 900.0 ms"
    heights = [float(point.split(",")[1]) for point in drawn["lines"][0]["points"].split()]
    assert heights[1] == 10 and heights[2] == pytest.approx(160 - 100) and heights[0] > heights[2]
    plain = chart("Error", {"error": ([0.0, 0.2, 0.1], "red")}, "{:.3g}")
    assert plain["top"] == "0.2" and not plain["beyond"] and plain["last"] == "frame 3"
    assert chart("Error", {"error": ([0.0, 0.0], "red")}, "{:.3g}")["top"] == "1"
    far = chart("Error", {"error": ([0.1, math.inf, 0.2], "red")}, "{:.3g}")
    assert far["top"] == "0.2" and far["beyond"] == "cut off: 1, up to inf"


def test_dense_nodes_have_their_share_of_the_work(tmp_path):
    page = run(3, keep_dense=["2"])
    page.write(tmp_path / "page.html")
    row = re.search(
        r"<td>2<td>\S+<td><td>([\d.]+%)<td>([\d.]+%)<td>([\d.]+%)<td", (tmp_path / "page.html").read_text()
    )
    assert row is not None and row[3] == "37.9%"


def test_one_frame_is_no_report(tmp_path):
    with pytest.raises(DeltaConvertError, match="at least 2 frames"):
        run(1).write(tmp_path / "page.html")


def test_heatmap_is_warm_where_it_changed():
    frame = torch.full((8, 8, 3), 100, dtype=torch.uint8)
    heat = torch.zeros(8, 8)
    heat[2, 2], heat[4, 4] = 0.2, 1.0
    shown = heatmap(frame, heat).int()
    assert shown[0, 0].tolist() == [45, 45, 45]
    assert shown[2, 2, 0] > shown[2, 2, 2] and shown[4, 4, 1] > shown[2, 2, 1] > 0
    assert frame.eq(100).all()


def test_unknown_marks_are_refused_with_the_known_ones(tmp_path):
    from deltaconvert.watching.watch import watch_video

    model = run(2).model
    with pytest.raises(InputError, match="choose from mask, heatmap"):
        watch_video(model, None, lambda frame: frame, marks="fire")  # type: ignore[arg-type]

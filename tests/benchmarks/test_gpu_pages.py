"""benchmarks/cost_law.py and gpu_profile.py, and their parts: what they make of measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cost_law, gpu_goals, gpu_ncu, gpu_pages, gpu_profile, gpu_record, gpu_timeline


def test_cost_law():
    """It finds the line through points that lie on one, weighs relative errors, and needs two shares of work."""
    law = cost_law.fit([(w, 0.2 + 3 * w) for w in (0.0, 0.05, 0.3, 1.0)])
    assert law.a == pytest.approx(0.2) and law.b == pytest.approx(3) and law.off < 1e-9
    bent = cost_law.fit([(0.0, 0.1), (0.1, 0.4), (1.0, 3.0)])
    assert bent.off < 0.05 and bent.a == pytest.approx(0.1, rel=0.05)
    for points in ([], [(0.5, 1.0)], [(0.5, 1.0), (0.5, 2.0)]):
        with pytest.raises(ValueError, match="two different shares"):
            cost_law.fit(points)
    row = {"network": "one", "type": "half", "batch": 1, "threshold": 0.0, "dense_ms": 4.0, "commit": "abc"}
    rows = [{**row, "density": w, "work": w, "delta_ms": 1 + 2 * w} for w in (0.0, 0.5, 1.0)]
    clip = {**row, "density": None, "work": 0.3, "delta_ms": 9.0}
    assert cost_law.of([*rows, clip]).b == pytest.approx(2)
    *_, line = cost_law.table({"results": [*rows, clip]}).splitlines()
    assert line == "| one:half:1 | 4 | 1.00 | 2 | 0.50 | 0% | abc |"


def test_kernels_of_layers():
    """Kernels of one name belong to their launches in order; those of torch to the layer that follows."""
    launches = [
        gpu_timeline.Launch(*pair) for pair in (("", "spread"), ("a", "conv"), ("b", "rows"), ("c", "conv"))
    ]
    names = ["copy", "spread(x)", "conv(x)", "torch", "rows(x)", "conv(y)", "copy"]
    assert gpu_timeline.layers_of(names, launches) == ["a", "", "a", "b", "b", "c", ""]
    events = [gpu_timeline.Event(name, t, t + 1.5) for t, name in enumerate(names)]
    assert gpu_timeline.by_layer(events, launches)["b"] == [1.0, 1.0]


def test_idle_time_is_left_out():
    """What only a profiler makes the GPU wait for; kernels that overlap, and short waits, stay as they are."""
    events = [
        gpu_timeline.Event(*e) for e in (("copy", 0, 5), ("a", 305, 315), ("b", 310, 320), ("c", 325, 330))
    ]
    moved = [(e.start, e.end) for e in gpu_timeline.without_idle(events)]
    assert moved == [(0, 5), (5, 15), (10, 20), (25, 30)]


def test_what_ncu_prints():
    metric = gpu_ncu.METRICS["alone_us"]
    text = f"""==PROF== Connected
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","conv","{metric}","nsecond","1,500"
"1","rows","{metric}","nsecond","700"
"""
    assert gpu_ncu.read_ncu(text) == [
        {"name": "conv", "alone_us": 1.5},
        {"name": "rows", "alone_us": 0.7},
    ]
    assert gpu_ncu.read_ncu("no GPU") == []


def test_the_pages_say_what_was_measured():
    root = Path(__file__).parents[2]
    for name in gpu_pages.PAGES:
        text = (root / name).read_text()
        assert "<!-- gpu: end -->" in text and gpu_pages.rewritten(text) == text, (
            "python benchmarks/gpu_pages.py"
        )
    texts = [gpu_record.times_faster(ratio) for ratio in (0.9, 7.349, 9.97, 13.2, 152)]
    assert texts == ["0.90x", "7.3x", "10x", "13x", "150x"]


def test_goals():
    """Of several boxes the worst counts; what was not measured is counted, and short frames need no efficiency."""
    row = {
        "network": "resnet50",
        "type": "half",
        "batch": 1,
        "threshold": 0.0,
        "delta_ms": 0.3,
    }
    rows = [
        {**row, "case": case, "density": w, "ratio": ratio, "efficiency": e, "dense_ms": 3.0, "work": w}
        for case, w, ratio, e in (
            ("still", 0.0, 9, 0),
            ("1%", 0.01, 8, 0.1),
            ("5%", 0.05, 4, 0.6),
            ("50%", 0.5, 1, 0.4),
            ("100%", 1.0, 0.5, 0.9),
        )
    ]
    lines = gpu_goals.table({"results": rows}).splitlines()
    (some,) = [line for line in lines if "e at 5-50 %, dense over" in line]
    assert "|  | resnet50:half:1 0.40 (50%) | 30 |" in some
    (faster,) = [line for line in lines if "ResNet-50 half, batch 1, 1%" in line]
    assert faster.endswith("| 8.00 |  |  |")
    (everything, _) = [line for line in lines if "100 % changed" in line]
    assert "|  | resnet50:half:1 2.00 | 30 |" in everything
    short = gpu_goals.table({"results": [{**row, "dense_ms": 1.0} for row in rows]})
    assert "0.40 (50%)" not in short


def test_profile_of_frames_that_skip_groups():
    """The table has a row for each group of any frame, and nothing where a frame launched none of it."""
    lists = {"kernels": 2, "floor_us": 1.0, "now_us": 3.0, "operations": 0.0}
    of_layers = {"kernels": 7, "floor_us": 10.0, "now_us": 12.0, "operations": 4.0}
    rows = [
        {"density": 0.0, "groups": {"lists": lists}},
        {"density": 0.01, "groups": {"lists": lists, "3x3 8x8": of_layers}},
    ]
    table = gpu_profile.tables({"units": [{"network": "one", "type": "half", "batch": 1, "rows": rows}]})
    assert "| 3x3 8x8 | 7 |  | 10 / 12 / 2 |" in table
    assert "| all | 9 | 1 / 3 / 2 | 11 / 15 / 4 |" in table

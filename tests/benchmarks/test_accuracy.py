"""benchmarks/accuracy*.py: what becomes of curves of loss and work."""

import pytest


def test_accuracy_page(tmp_path):
    """The work at the accepted loss lies on a curve that rises; a lucky point counts with its neighbours."""
    from benchmarks.accuracy_page import STYLES, draw, least, plain, rising, side_by_side, table

    assert rising([0, 2, 1, 3]) == [0, 1.5, 1.5, 3] and rising([3, 2, 1]) == [2, 2, 2]
    curve = {0.8: 0.0, 0.4: 0.004, 0.2: 0.012, 0.1: 0.0, 0.05: 0.5}
    rows = [
        {"way": way, "work": work * (2 if way == "paper 1" else 1), "loss": loss, "accepted": 0.005}
        for way in ("ours 1", "paper 1", *(way for way in STYLES if way not in ("ours", "paper")))
        for work, loss in curve.items()
    ]
    rows.append({"way": "dense", "work": 1.0, "loss": 0.0, "accepted": 0.005, "truth": "T", "score": 0.9})
    ours = least(rows, "ours")
    assert 0.2 < ours < 0.4 and least(rows, "paper") == pytest.approx(2 * ours)
    assert table({"a": rows}).splitlines()[-1].endswith("| 0.50 |")
    assert side_by_side({"a": rows}).splitlines()[-1].startswith(f"| a | .{round(100 * ours)} : ")
    assert least(rows, "ours", 2) < ours
    firmer = [row | {"plain_loss": row["loss"] * 2} for row in rows]
    assert float(plain({"a": firmer}).splitlines()[-1].split("|")[2]) > ours
    pytest.importorskip("matplotlib")
    draw({"a": rows}, tmp_path / "a.svg")
    assert "calibrate" in (tmp_path / "a.svg").read_text()


def test_a_lucky_point_behind_a_loss_does_not_count():
    from benchmarks.accuracy_families import highest

    def curve(*losses: float) -> list[dict[str, float]]:
        return [{"loss": loss, "accepted": 0.005, "strength": n} for n, loss in enumerate(losses)]

    assert highest(curve(-0.01, 0.005, 0.02, 0.0))["strength"] == 1
    assert highest(curve(0.01, 0.0)) is None


def test_accuracy_check_chooses_by_the_frames_between():
    """The least work at so many times the accepted loss; ours has the paper's candidates too."""
    from benchmarks.accuracy_check import FACTORS, HIGHER, best_of, higher_and_lower, ours
    from deltaconvert.calibration.search import GATES
    from deltaconvert.calibration.setting import Setting
    from deltaconvert.gate import Gate

    rows = [
        {"way": way, "strength": n, "work": work, "loss": loss, "accepted": 0.004}
        for way, points in {
            "ours": [(0.1, 0.02), (0.3, 0.004), (0.5, 0.0)],
            "paper": [(0.2, 0.006), (0.4, 0.003), (0.9, 0.0)],
        }.items()
        for n, (work, loss) in enumerate(points)
    ]
    chosen = {key: (row["way"], row["work"]) for key, row in best_of(rows).items()}
    assert chosen == {
        ("ours checked", 0.5): ("ours", 0.5),
        ("ours checked", 1.0): ("ours", 0.3),
        ("ours checked", 2.0): ("paper", 0.2),
        ("paper checked", 0.5): ("paper", 0.9),
        ("paper checked", 1.0): ("paper", 0.4),
        ("paper checked", 2.0): ("paper", 0.2),
    }
    paper = Setting((0.1, 0.2))
    assert len(higher_and_lower([paper])) == len(FACTORS) and paper in higher_and_lower([paper])
    tried = [
        Setting((0.5, share), gate=Gate(dilate=2), narrow=frozenset({1})).to_json()
        | {"loss": loss, "work": work}
        for share, loss, work in ((0.1, 0.01, 0.8), (0.2, 0.02, 0.9), (0.3, 0.03, 0.5))
    ]
    found = ours(tried, [paper], inputs=[0])
    assert [setting.shares[1] for setting in found[:2]] == [0.1, 0.3]  # the other is beaten
    assert {(setting.gate, setting.narrow) for setting in found[:2]} == {(Gate(dilate=2), frozenset({1}))}
    assert len(found) == 2 + len(HIGHER) * len(GATES) and {s.gate for s in found[2:]} == set(GATES)
    assert {s.shares[1] for s in found[2:]} == {0.2 * factor for factor in HIGHER}


def test_accuracy_check_forgets_what_it_chose_before():
    from benchmarks.accuracy_check import forget_earlier

    kept = {
        "rows": [{"way": "paper"}, {"way": "paper checked"}],
        "settings": {"paper 1": 1, "paper checked 1": 2},
    }
    forget_earlier(kept)
    assert kept == {"rows": [{"way": "paper"}], "settings": {"paper 1": 1}}


def test_a_way_that_was_not_played_is_told_from_one_that_loses_more():
    from benchmarks.accuracy_page import LOSES_MORE, NOT_PLAYED, table

    dense = {"way": "dense", "work": 1.0, "loss": 0.0, "accepted": 0.005, "truth": "T", "score": 0.9}
    rows = [dense, {"way": "skipped frames", "work": 0.5, "loss": 0.4, "accepted": 0.005}]
    cells = [cell.strip() for cell in table({"a": rows}).splitlines()[-1].split("|")]
    assert cells[6:9] == [NOT_PLAYED, LOSES_MORE, NOT_PLAYED]


def test_tasks_without_their_data_end_in_one_message(tmp_path, monkeypatch):
    from benchmarks import tasks

    monkeypatch.setattr(tasks, "DATA", tmp_path)
    with pytest.raises(SystemExit, match=r"pets: there is no .*zoo\.py.*--video"):
        tasks.TASKS["pets"](24, 200)


def test_denoise_goes_by_the_worst():
    """The mean loss is told, the worst of the draws of noise and of the parts of a run is what is chosen by."""
    from benchmarks.accuracy_denoise import row_of
    from deltaconvert.gate import Gate

    class Draw:
        def __init__(self, *losses):
            self.found = list(losses)

        def losses(self, gate, threshold, runs):
            return self.found[:runs], 0.4

    row = row_of([Draw(0.05, 0.09), Draw(0.06, 0.04)], Gate(dilate=24), 0.02, runs=2)
    assert row["loss"] == pytest.approx(0.06) and row["worst"] == 0.09 and row["work"] == 0.4
    assert row["losses"] == [[0.05, 0.09], [0.06, 0.04]] and row["gate"] == {"dilate": 24}

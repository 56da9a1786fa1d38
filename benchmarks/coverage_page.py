"""docs/coverage.md from benchmarks/results/coverage.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
ROUNDING, ROUNDING_DOUBLE = 1e-5, 1e-9  # of the largest output
MIXERS = ("mixer_", "gmixer_", "gmlp_", "resmlp_", "sequencer")  # linear layers or LSTMs over all pixels
ATTENTION = tuple(  # families that multiply maps with each other; how much of that torch counts depends on the kernel
    "beit botnet cait coat convit cpubone crossvit csatv2 davit deit edgenext efficientformer efficientvit eva fastvit "
    "gcvit halonet hiera levit lowformer maxvit mobilenetv4_hybrid mobilenetv5 mobilevit mvitv2 nest nextvit pit_ pvt "
    "samvit swiftformer swin test_vit tiny_vit twins visformer vit volo xcit".split()
)
ATTENTION_TEXT = """
## What attention comes to

*Windows* (Swin, MaxViT and their kind): the layout of a map is followed into its windows and through their attention,
so that shifts, padding, norms, merged patches and Linear layers compute only the pixels that changed. What is left
dense is the product of the attention itself, and what a network reads by indices that no layout describes; its result
is compared, and goes on as the map it is. Functions that torch.fx keeps whole (torchvision's shifted_window_attention)
are looked into.

*All tokens with all tokens*: one change reaches every token, so nothing could be saved behind it at threshold 0. Where
tokens are those of a map alone, Linear layers and norms are delta nodes, which pays with a threshold; a class token
among them ends the layout, and all that follows is dense.

*Attention pooling* (one query over a map) is a softmax over all pixels: an island. It holds about a tenth of the work
of timm's resnet50_clip, nearly all of it in the projections of the last map, where most pixels change anyway.
"""
WAYS = {
    "symbolic": "symbolic tracing",
    "export": "torch.export",
    "whole": "symbolic tracing, a module stays whole",
    "parts": "as it was, around its parts",
}


def page(results: dict[str, Any]) -> str:
    networks: dict[str, Row] = results["networks"]
    packages = dict.fromkeys(name.partition(".")[0] for name in networks)
    of_each = {
        package: {n: r for n, r in networks.items() if n.startswith(package + ".")} for package in packages
    }
    wrong = {n: r for n, r in networks.items() if "error" not in r and not matches(r)}
    failed = {n: r for n, r in networks.items() if "error" in r}
    text = _head(networks)
    columns = ("", "networks", "convert and match", "mismatch", *WAYS.values())
    columns += ("pure CNNs", "of them >= 95 % in deltas")
    text += _table(columns, (_summary(package, rows) for package, rows in of_each.items()))
    if wrong:
        text += "\n## What does not match\n\n"
        text += _table(
            ("network", "difference", ""), ((n, _difference(r), _why(r)) for n, r in wrong.items())
        )
    if failed:
        text += "\n## What does not convert\n\n"
        text += _table(("network", "why"), ((n, _line(r["error"])) for n, r in failed.items()))
    text += "\n## Why work stays dense\n\n"
    text += "Islands of more than 1 % of a network's work, by the networks that have one.\n\n"
    reasons = ((operator, *counted) for operator, counted in _reasons(networks).items())
    text += _table(("operator", "networks", "for example"), reasons)
    text += ATTENTION_TEXT
    for package, rows in of_each.items():
        text += f"\n## {package}\n\n"
        columns = ("network", "size", "way", "work in deltas", "nodes", "largest islands", "difference")
        text += _table(columns, (_network(n, row) for n, row in rows.items() if n not in failed))
    text += "\n## Where it was measured\n\n"
    places = Counter(row["where"] for row in networks.values())
    return text + _table(("networks", "on"), ((count, place) for place, count in places.items()))


def _head(networks: dict[str, Row]) -> str:
    fast = sum("difference_cpu" in row for row in networks.values())
    return f"""# Coverage

Which public networks convert, and whether they then equal themselves. Written by `python benchmarks/coverage.py --docs`
from [coverage.json](../benchmarks/results/coverage.json), where `python benchmarks/coverage.py` keeps its results.

Random weights, norms with the statistics of a frame; threshold 0, 6 frames of odd size; reference backend, and {fast}
networks on the cpu backend too, held to the same. *Difference* is the reference's largest one to the dense network in
any frame, as a part of the largest value of that output. A *match* differs by less than {ROUNDING:g}. Where a random
network amplifies the rounding of float32, both run in float64 (marked 64) and differ by less than {ROUNDING_DOUBLE:g}
there, or by less than ten times what the dense output moves by when each weight moves by its last bit (*its own*).
Detectors keep boxes however unsure they are, R-CNNs ten of them. timm: of each family with convolutions the smallest
variant and the largest one of up to 45 million parameters; and, asked for by name, the smallest of most networks whose
names differ by more than numbers and words of size. *Work in deltas* is the share of all multiply-accumulates; a *pure
CNN* multiplies no maps with each other (attention) and mixes no tokens.

Rows from before 56f805c, which is all of them so far, count F.scaled_dot_product_attention as no work where torch's
counter does not know its kernel on a CPU: of networks that call it they name too large a share in deltas.

"""


def _summary(package: str, rows: dict[str, Row]) -> tuple[Any, ...]:
    good = {n: r for n, r in rows.items() if matches(r)}
    wrong = [n for n, r in rows.items() if "error" not in r and not matches(r)]
    ways = Counter(r["way"] for r in good.values())
    pure = [r for n, r in good.items() if is_pure(n, r)]
    most = sum(r["share"] >= 0.95 for r in pure)
    share = f"{len(good)} ({len(good) / max(len(rows), 1):.1%})"
    return (
        package,
        len(rows),
        share,
        len(wrong),
        *(ways[way] for way in WAYS),
        len(pure),
        f"{most} ({most / max(len(pure), 1):.0%})",
    )


def matches(row: Row) -> bool:
    """Whether a network equals itself up to rounding on every backend, in float32 or at least in float64."""
    if "error" in row or row["finite"] < 0.99:
        return False
    names = [name for name in row if name.startswith("difference") and not name.endswith("_double")]
    own = row.get("sensitivity", 0.0)  # a network that nearly drowns in rounding could hide errors: no match
    double = max(ROUNDING_DOUBLE, 10 * own if own < 1e-3 else 0.0)
    return all(row[name] < ROUNDING or row.get(f"{name}_double", float("inf")) < double for name in names)


def is_pure(name: str, row: Row) -> bool:
    return row["attention"] == 0 and not name.partition(".")[2].startswith((*MIXERS, *ATTENTION))


def _reasons(networks: dict[str, Row]) -> dict[str, tuple[int, str]]:
    found: dict[str, set[str]] = {}
    examples: dict[str, str] = {}
    for name, row in networks.items():
        for island in row.get("islands", ()):
            if island["share"] > 0.01:
                found.setdefault(island["operator"], set()).add(name)
                examples.setdefault(island["operator"], f"{name}: {_line(island['reason'])}")
    ordered = sorted(found, key=lambda operator: -len(found[operator]))
    return {operator: (len(found[operator]), examples[operator]) for operator in ordered}


def _network(name: str, row: Row) -> tuple[Any, ...]:
    islands = dict.fromkeys(i["operator"] for i in row["islands"] if i["share"] > 0.001)
    return (
        name.partition(".")[2],
        "x".join(map(str, row["size"])),
        row["way"],
        f"{row['share']:.1%}",
        f"{row['delta']} of {row['nodes']}",
        ", ".join(islands) or "",
        _difference(row) + ("" if matches(row) else " **mismatch**"),
    )


def _why(row: Row) -> str:
    if row["finite"] < 0.99:
        return f"{row['finite']:.0%} of the dense outputs are numbers: nothing to compare"
    return _line(row.get("double", ""))


def _difference(row: Row) -> str:
    double, own = row.get("difference_double"), row.get("sensitivity")
    text = f"{row['difference']:.0e}"
    text += "" if double is None else f", {double:.0e} (64)"
    return text if own is None else f"{text}, its own {own:.0e}"


def _line(text: str) -> str:
    return " ".join(text.split())[:160].replace("|", "\\|")


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return "".join(
        f"| {' | '.join(map(str, cells))} |\n" for cells in (columns, ["---"] * len(columns), *rows)
    )

"""Writes the tables of the GPU's records into README.md and docs/.

    python benchmarks/gpu_pages.py

Each table stands between `<!-- gpu: its name -->` and `<!-- gpu: end -->`.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import cost_law, gpu_goals, gpu_profile, gpu_record

PAGES = ("README.md", "docs/performance.md", "docs/performance_tables.md")


def main() -> None:
    for name in PAGES:
        page = ROOT / name
        page.write_text(rewritten(page.read_text()))


def rewritten(text: str) -> str:
    """A page with its tables written anew from the records."""
    record, h200, profiles = _read("gpu"), _read("gpu_h200"), _read("gpu_profile")
    tables = {
        "networks": gpu_record.readme(record),
        "milliseconds": gpu_record.milliseconds(record),
        "goals": gpu_goals.table(record),
        "goals on h200": gpu_goals.table(h200),
        "cost law on h200": cost_law.table(h200),
        "cost law": cost_law.table(record),
        "clips": gpu_record.clips(record),
        "memory": gpu_record.beside_the_ratio(record),
        "profile": gpu_profile.tables(profiles),
        "measured": measured(record),
    }

    def table(found: re.Match[str]) -> str:
        return f"<!-- gpu: {found[1]} -->\n\n{tables[found[1]]}\n\n<!-- gpu: end -->"

    return re.sub(r"<!-- gpu: ([a-z0-9 ]+) -->\n.*?<!-- gpu: end -->", table, text, flags=re.DOTALL)


def measured(record: dict[str, Any]) -> str:
    """Where, when and against what the record was measured, in a few sentences."""
    units = gpu_record.by_unit(record)
    runs: dict[str, list[str]] = {}
    for unit, rows in units.items():
        runs.setdefault(f"{rows[0]['date']} at {rows[0]['commit']}", []).append(str(unit))
    # The run with most units is given with their number, the others with their names.
    (most, all_of_it), *others = sorted(runs.items(), key=lambda run: -len(run[1]))
    told = [
        f"{most}: {len(all_of_it)} of {len(units)} units",
        *(f"{run}: {', '.join(of)}" for run, of in others),
    ]
    tuned = ", ".join(str(unit) for unit, rows in units.items() if "max-autotune" in rows[0]["dense_all_ms"])
    beside = sum(rows[0].get("beside", 0) > 0 for rows in units.values())
    apart = ", ".join(str(unit) for unit, rows in units.items() if "dense_apart_ms" in rows[0])
    versions = f"torch {record['torch'].partition('+')[0]}, CUDA {record['cuda']}"
    text = (
        f"{record['gpu']}, {versions}. {'; '.join(told)}. {beside} units were measured while others ran on other GPUs "
        f"of the same host, each on one GPU by itself. torch.compile with max-autotune was among the dense engines of "
        f"{tuned or 'none'}."
    )
    if apart:
        text += f" Dense was timed before and after, not beside: {apart}."
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return found


if __name__ == "__main__":
    main()

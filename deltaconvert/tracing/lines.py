"""The line of the network's own code that an error shows."""

from __future__ import annotations

from pathlib import Path

_OURS = str(Path(__file__).parents[1])


def is_the_networks(file: str) -> bool:
    """Neither torch's nor deltaconvert's."""
    return "/torch/" not in file and not file.startswith(_OURS)

"""The tests of a network run one after the other, so that one of the zoo is in memory at a time."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = [place for place, item in enumerate(items) if item.path.name == "test_zoo_networks.py"]
    for place, item in zip(places, sorted((items[place] for place in places), key=_network), strict=True):
        items[place] = item


def _network(item: pytest.Item) -> str:
    """The name that a test is for; those for none come first."""
    return item.callspec.params.get("name", "") if hasattr(item, "callspec") else ""

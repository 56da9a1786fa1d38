"""The network, converted."""

from __future__ import annotations

import pytest
from calibrating import clip, network

import deltaconvert


@pytest.fixture(scope="module")
def delta():
    return deltaconvert.convert(network(), clip()[0])

"""A file is written whole or not at all."""

import os

import pytest

import deltaconvert
from deltaconvert import container
from deltaconvert.errors import ContainerError, InputError


def test_info_must_be_plain(saved):
    _, converted, path = saved
    before = path.read_bytes()
    converted.info = {"when": object()}
    with pytest.raises(ContainerError, match="info takes plain values"):
        converted.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(saved, monkeypatch, broken):
    _, converted, path = saved
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space"):
        converted.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_not_there(saved, tmp_path):
    path = tmp_path / "none" / "net.delta"
    with pytest.raises(FileNotFoundError) as caught:
        container.save(saved[1], path)
    assert caught.value.filename == str(path), "the name that was given"


def test_devices_that_are_not_there(saved):
    _, _, path = saved
    with pytest.raises(InputError, match="there is no device 'gpu': take cpu, cuda or cuda:1"):
        deltaconvert.load(path, device="gpu")
    with pytest.raises(InputError, match=r"device cuda:99 is not to be had here"):
        deltaconvert.load(path, device="cuda:99")

"""Damaged files, and files of others, are refused."""

import pytest
import safetensors.torch
import torch
from contained import load, rewrite

from deltaconvert.errors import ContainerError


def test_every_part_of_the_file_is_covered(saved, tmp_path):
    data = saved[2].read_bytes()
    size = len(data)
    head = 8 + int.from_bytes(data[:8], "little")
    places = {*range(0, 40), *range(40, head, 37), *range(head, size, 101), size - 1}
    for place in sorted(places):
        broken = bytearray(data)
        broken[place] ^= 0x10
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(ContainerError):
            load(tmp_path / "broken")


def test_truncated_at_any_length(saved, tmp_path):
    data = saved[2].read_bytes()
    for length in [*range(0, 20), *range(20, len(data), 211), len(data) - 1]:
        (tmp_path / "short").write_bytes(data[:length])
        with pytest.raises(ContainerError):
            load(tmp_path / "short")
    (tmp_path / "long").write_bytes(data + b"\0")
    with pytest.raises(ContainerError, match="SHA-256"):
        load(tmp_path / "long")


def test_files_of_others(tmp_path):
    path = tmp_path / "other"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ContainerError, match="checkpoint of torch"):
        load(path)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ContainerError, match="no converted network: convert it first"):
        load(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ContainerError, match="is not a converted network"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def test_a_newer_version(saved):
    rewrite(saved[2], version="2")
    with pytest.raises(ContainerError, match=r"version 2.*reads up to 1.*upgrade"):
        load(saved[2])

"""Mutated converted files: each loads or is a ContainerError; no crash, no hang, no code, bounded memory.

DELTACONVERT_MUTATIONS=20000 tries that many. A mutation depends on its number alone, so that a failure can be
reproduced.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import deltaconvert

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = int(os.environ.get("DELTACONVERT_MUTATIONS", "500"))
MEMORY = 2**30  # bytes above what the process has after its imports
SECONDS = 30  # for one file, on a machine that others use too

FUZZ = """
import copy, hashlib, json, random, resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch, deltaconvert
from deltaconvert import container
from deltaconvert.errors import DeltaConvertError
source, count, memory = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = source.read_bytes()
deltaconvert.load(source, backend="reference")
size = int.from_bytes(data[:8], "little")
header = json.loads(data[8 : 8 + size])
network = json.loads(header["__metadata__"]["network"])
VALUES = [
    None, True, -1, 0, 1, 7, 2**31, 2**63, 10**30, 1e308, "", "x", "__class__", "os.system", "torch.load", "../x",
    "relu", [], [[]], {}, {"node": "x"}, {"tensor": ["x", "contiguous"]}, {"slice": [None, None, 0]},
    {"tuple": []}, "a\\nimport os",
]

def places(value):
    found = []
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += [(value, key), *places(value[key])]
    return found

def described(pick):
    # A value of the description replaced, removed, doubled or taken from elsewhere.
    changed = copy.deepcopy(network)
    for _ in range(pick.choice((1, 1, 2, 5))):
        all_places = places(changed)
        where, key = pick.choice(all_places)
        what = pick.randrange(4)
        if what == 0:
            where[key] = copy.deepcopy(pick.choice(VALUES))
        elif what == 1:
            del where[key]
        elif what == 2 and isinstance(where, list):
            where.insert(pick.randrange(len(where) + 1), copy.deepcopy(where[key]))
        else:
            other, name = pick.choice(all_places)
            try:
                where[key] = copy.deepcopy(other[name])
            except (KeyError, IndexError):
                pass
    text = {**header["__metadata__"], "network": json.dumps(changed)}
    head = json.dumps({**header, "__metadata__": text}, separators=(",", ":")).encode()
    return len(head).to_bytes(8, "little") + head + data[8 + size :]

def bytewise(pick):
    out = bytearray(data)
    for _ in range(pick.choice((1, 2, 8))):
        out[pick.randrange(len(out))] = pick.randrange(256)
    return bytes(out[: pick.choice((len(out), len(out), pick.randrange(len(out))))])

def sealed(raw):
    # With a checksum that fits, so that the mutation is looked at.
    try:
        place = container._digest_place(raw[: 8 + int.from_bytes(raw[:8], "little")])
    except DeltaConvertError:
        return raw
    out = bytearray(raw)
    out[place : place + 64] = b"0" * 64
    out[place : place + 64] = hashlib.sha256(out).hexdigest().encode()
    return bytes(out)

own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (own + memory,) * 2)
target = source.with_name("mutated.delta")
kinds = {}
for number in range(count):
    pick = random.Random(number)
    raw = (described if number % 4 else bytewise)(pick)
    target.write_bytes(sealed(raw))
    begin = time.monotonic()
    try:
        deltaconvert.load(target, backend="reference")
        kind = "loaded"
    except (DeltaConvertError, MemoryError) as error:
        kind = type(error).__name__
    except BaseException as error:
        kind = f"number {number} raised {type(error).__name__}: {str(error)[:200]}"
    kinds[kind] = kinds.get(kind, 0) + 1
    spent = time.monotonic() - begin
    kinds["slowest"] = max(kinds.get("slowest", 0), spent)
print(json.dumps(kinds))
"""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.norm(self.conv(x)).relu()
        y = nn.functional.interpolate(nn.functional.max_pool2d(y, 2), scale_factor=2.0)
        return {"map": torch.cat((y, x), 1).flip(1), "mean": y.mean((2, 3))}


@pytest.mark.slow
@pytest.mark.timeout(300 + MUTATIONS)
def test_mutated_files(tmp_path):
    path = tmp_path / "net.delta"
    deltaconvert.convert(Net().eval(), torch.rand(1, 3, 8, 8), backend="reference").save(path)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(path), str(MUTATIONS), str(MEMORY)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        timeout=250 + MUTATIONS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kinds = json.loads(done.stdout)
    slowest = kinds.pop("slowest")
    assert set(kinds) <= {"loaded", "ContainerError", "InputError"}, kinds
    assert slowest < SECONDS and sum(kinds.values()) == MUTATIONS
    assert kinds["ContainerError"] > MUTATIONS / 4, "most of them are damaged"
    assert {file.name for file in tmp_path.iterdir()} == {"net.delta", "mutated.delta"}, "nothing was written"

"""Outcomes that are known, so that no setting is tried twice, not even by a later process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from deltaconvert.calibration.setting import Outcome, Setting
from deltaconvert.errors import InputError


class Known:
    """Outcomes by the key of their setting."""

    def __init__(self, clip: str, file: Path | None):
        """clip: what else an outcome depends on. file: keeps outcomes, a line each; those in it are known."""
        self._clip, self._file = clip, file
        self._outcomes: dict[str, Outcome] = {}
        if file is not None and not file.parent.is_dir():
            raise InputError(f"resume={file}: there is no folder {file.parent}: make it first")
        if file is not None and file.exists():
            self._outcomes = _kept(file)

    def key(self, setting: Setting) -> str:
        parts = [[f"{s:.6g}" for s in setting.shares], setting.weighted, setting.gate.to_json()]
        text = json.dumps([*parts, sorted(setting.narrow)] if setting.narrow else parts)
        return f"{self._clip}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        """The number of outcomes of this clip."""
        return sum(key.startswith(self._clip) for key in self._outcomes)

    def __contains__(self, key: str) -> bool:
        return key in self._outcomes

    def __getitem__(self, key: str) -> Outcome:
        return self._outcomes[key]

    def add(self, key: str, outcome: Outcome) -> None:
        self._outcomes[key] = outcome
        if self._file is not None:
            with self._file.open("a") as out:
                out.write(json.dumps([key, vars(outcome)]) + "\n")


def _kept(file: Path) -> dict[str, Outcome]:
    """The outcomes in a file. A last line that was cut off, by a kill or a full disk, is removed from the file."""
    content = file.read_bytes()
    lines, torn = content.split(b"\n")[:-1], content.rpartition(b"\n")[2]
    foreign = InputError(f"{file} holds no trials of a calibration: name another file to go on from")
    try:
        kept = {key: Outcome(**outcome) for key, outcome in map(json.loads, lines)}
    except (ValueError, TypeError) as error:
        raise foreign from error
    if torn and not torn.startswith(b'["'):
        raise foreign
    if torn:
        with file.open("r+b") as out:
            out.truncate(len(content) - len(torn))
    return kept

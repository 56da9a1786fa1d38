"""The zip files that torch writes, read with a bound on what they unpack to."""

from __future__ import annotations

import zipfile
from pathlib import Path

from deltaconvert.errors import CheckpointError

# torch stores weights as they are; the little that it packs is code. More than this is a bomb.
MAX_RATIO, FREE = 4, 16 * 2**20
MAX_ENTRIES = 200_000


def check_archive(path: Path) -> None:
    """CheckpointError, before anything is unpacked, where a zip file unpacks to much more than its own size.

    A file that is no zip passes: it is for its reader.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises many kinds for damaged directories
        raise CheckpointError(f"is a damaged archive ({error}): copy it again") from error
    size, total = path.stat().st_size, sum(entry.file_size for entry in entries)
    if total > MAX_RATIO * size + FREE or len(entries) > MAX_ENTRIES:
        raise CheckpointError(
            f"is {size} bytes that unpack to {total} in {len(entries)} entries: torch writes no such file. "
            "If it is yours, save the network again with torch"
        )


def read_archive(path: Path) -> dict[str, bytes]:
    """The entries of an archive by name, without its top folder. CheckpointError as above, and for names that two
    readers could understand in two ways."""
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        tops = {name.partition("/")[0] for name in names}
        if len({name.lower() for name in names}) != len(names) or len(tops) != 1:
            raise CheckpointError("is an archive with ambiguous names: export the network again")
        return {name.partition("/")[2]: archive.read(name) for name in names}

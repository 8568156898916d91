"""Writes the files of a job below a directory. The job chose the names, so no name is trusted."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from ._directory import sha256_of
from ._text import plain
from .errors import ChangedFile, UnsafePath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .models import Artifact


def target(directory: Path, name: str) -> Path:
    """The place of a file. Refuses a name that leads out of the directory, or through a link."""
    path = PurePosixPath(name)
    is_plain = plain(name) == name and "\\" not in name and ":" not in name
    if not is_plain or path.is_absolute() or not path.parts or ".." in path.parts or str(path) != name:
        raise UnsafePath(f"The name {name!a} is not safe: the file is not downloaded.")
    place = directory
    for part in path.parts:
        place /= part
        if place.is_symlink():
            raise UnsafePath(f"{place} is a link: no file is written through a link.")
    return place


def has_content(path: Path, file: Artifact) -> bool:
    """True if the file is there already."""
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as source:
        return sha256_of(source) == file.sha256


class Writer:
    """Takes the pieces of one file, and compares them with its hash."""

    def __init__(self, sink: IO[bytes], file: Artifact) -> None:
        self._sink, self._file = sink, file
        self._digest, self._bytes = hashlib.sha256(), 0

    def begin(self) -> Callable[[bytes], None]:
        """Begins anew, for another try."""
        self._sink.seek(0)
        self._sink.truncate()
        self._digest, self._bytes = hashlib.sha256(), 0
        return self.write

    def write(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._bytes > self._file.bytes:
            raise ChangedFile(f"{self._file.path} is longer than the machine signed.")
        self._digest.update(piece)
        self._sink.write(piece)

    def check(self) -> None:
        if self._bytes != self._file.bytes or self._digest.hexdigest() != self._file.sha256:
            raise ChangedFile(f"{self._file.path} does not have the hash that the machine signed.")


@contextmanager
def writer(path: Path, file: Artifact) -> Iterator[Writer]:
    """Writes a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as sink:
            opened = Writer(sink, file)
            yield opened
            opened.check()
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

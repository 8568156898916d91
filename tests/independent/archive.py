"""Reads an archive: the manifest, the parts, and the leaves.

No document describes the files; their form was taken from a sample.
"""

import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from report import Report, amount, get, show, text, whole

LONGEST_LINE = 64 * 1024 * 1024
LONGEST_MANIFEST = 256 * 1024 * 1024
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


class Unreadable(Exception):
    """The archive cannot be read at all."""


class Part(NamedTuple):
    """One file of events."""

    file: str
    first: int
    last: int
    sha256: str


class Message(NamedTuple):
    """One message of the log. Without `payload`, its leaf cannot be computed."""

    seq: int
    nanos: int
    subject: str
    headers: Dict[str, str]
    payload: Optional[bytes]


def open_file(directory: str, name: str) -> Any:
    """Opens a plain file of the archive; never a pipe, a link or a file elsewhere."""
    path = os.path.join(directory, name)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise Unreadable(f"{name} is not a plain file")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise Unreadable(f"{name} cannot be opened: {error}") from error


def decode(data: bytes, what: str) -> Any:
    """JSON from bytes."""
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{what} is not JSON: {show(str(error))}") from error


class Archive:
    """An archive that was opened. Its events can be read once, in order."""

    def __init__(self, directory: str, report: Report) -> None:
        self._directory = directory
        self._report = report
        with open_file(directory, "manifest.json") as file:
            manifest = decode(file.read(LONGEST_MANIFEST), "manifest.json")
        if get(manifest, "format") != 1 or isinstance(get(manifest, "format"), bool):
            raise Unreadable(f"manifest.json has the format {show(get(manifest, 'format'))}; this reader knows 1")
        last = amount(manifest.get("last"))
        heads = manifest.get("heads")
        if last is None or not isinstance(heads, list):
            raise Unreadable("manifest.json lacks `last` or `heads`")
        self.last = last
        self.heads: List[Any] = heads
        self.parts = self._parts(manifest.get("parts"))

    def _parts(self, listed: Any) -> List[Part]:
        """The parts, in order. Gaps between them are violations."""
        if not isinstance(listed, list):
            raise Unreadable("manifest.json has no list of parts")
        parts, expected = [], 1
        for one in listed:
            file, digest = text(get(one, "file")), text(get(one, "sha256"))
            first, last = amount(get(one, "first")), amount(get(one, "last"))
            if file is None or digest is None or first is None or last is None or not PLAIN_NAME.fullmatch(file):
                raise Unreadable(f"manifest.json names an impossible part: {show(one)}")
            if first != expected or last < first:
                self._report.violation(first, f"{file} should begin at {expected}: it has {first} to {last}")
            expected = last + 1
            parts.append(Part(file, first, last, digest))
        if expected != self.last + 1:
            self._report.violation(self.last, f"the manifest ends at {self.last}, its parts end at {expected - 1}")
        return parts

    def messages(self) -> Iterator[Message]:
        """Every message of every part. Sequences must be without gaps."""
        expected = 1
        for part in self.parts:
            self._check_hash(part)
            begin = expected
            for number, line in enumerate(self._lines(part), 1):
                message = self._message(line, f"{part.file}, line {number}")
                if message.seq != expected:
                    self._report.violation(message.seq, f"the sequence should be {expected}")
                expected = message.seq + 1
                if not part.first <= message.seq <= part.last:
                    self._report.violation(message.seq, f"{part.file} should have {part.first} to {part.last} only")
                yield message
            if expected != part.last + 1:
                self._report.violation(part.last, f"{part.file} has {begin} to {expected - 1}, and should end here")

    def _check_hash(self, part: Part) -> None:
        """Compares the hash of the compressed file."""
        digest = hashlib.sha256()
        with open_file(self._directory, part.file) as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != part.sha256:
            self._report.violation(part.first, f"the hash of {part.file} is {digest.hexdigest()}, "
                                               f"the manifest has {show(part.sha256)}")

    def _lines(self, part: Part) -> Iterator[bytes]:
        """The lines of a part, decompressed one by one."""
        with open_file(self._directory, part.file) as file:
            try:
                with gzip.GzipFile(fileobj=file) as plain:
                    while True:
                        line = plain.readline(LONGEST_LINE)
                        if not line:
                            return
                        if len(line) == LONGEST_LINE:
                            raise Unreadable(f"{part.file} has a line of more than {LONGEST_LINE} bytes")
                        yield line
            except (OSError, EOFError, zlib.error) as error:
                raise Unreadable(f"{part.file} cannot be decompressed: {error}") from error

    def _message(self, line: bytes, where: str) -> Message:
        """One message from its line."""
        one = decode(line, where)
        seq, nanos = amount(get(one, "seq")), whole(get(one, "nanos"))
        subject, headers = text(get(one, "subject")), get(one, "headers")
        if seq is None or nanos is None or subject is None:
            raise Unreadable(f"{where} is not a message of the log: {show(one)}")
        payload = text(get(one, "payload"))
        known = {} if headers is None else headers
        if not isinstance(known, dict) or not all(isinstance(value, str) for value in known.values()):
            known, payload = {}, None
        data = None if payload is None else payload.encode("utf-8", "surrogatepass")
        return Message(seq, nanos, subject, known, data)

    def leaves(self) -> Iterator[bytes]:
        """The leaves that the archive claims."""
        with open_file(self._directory, "leaves.bin") as file:
            yield from iter(lambda: file.read(32), b"")

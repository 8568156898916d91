"""Reads an archive: the manifest, the parts, and the leaves (docs/verification.md, The archive)."""

import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from report import Report, amount, get, show, text, whole

LONGEST_LINE = 16 * 1024 * 1024
LONGEST_MANIFEST = 256 * 1024 * 1024
MESSAGES_IN_A_PART = 50_000
COVERED = ("Nats-Msg-Id", "Gpubnb-Type", "Gpubnb-Actor", "Gpubnb-Cause", "Gpubnb-Correlation")
FIELDS = {"seq", "nanos", "subject", "headers", "payload", "bytes"}
HEXADECIMAL = re.compile(r"([0-9a-fA-F]{2})*")


class Unreadable(Exception):
    """The archive cannot be read at all."""


class Part(NamedTuple):
    """One file of messages."""

    file: str
    first: int
    last: int
    sha256: str


class Message(NamedTuple):
    """One message of the log. Without a body, its leaf cannot be computed."""

    seq: int
    nanos: int
    subject: str
    headers: Dict[str, str]
    body: Optional[bytes]


def open_file(directory: str, name: str) -> Any:
    """Opens a plain file of the archive; never a pipe, a link or a file elsewhere."""
    path = os.path.join(directory, name)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise Unreadable(f"{name} is not a plain file")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise Unreadable(f"{name} cannot be opened: {error}") from error


def once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """An object. A field that occurs twice is refused: two readers could take two different values."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a field occurs twice")
    return result


def decode(data: bytes, what: str) -> Any:
    """JSON from bytes."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{what} cannot be read as JSON: {show(str(error))}") from error


class Archive:
    """An archive that was opened. Its messages can be read once, in order."""

    def __init__(self, directory: str, report: Report) -> None:
        self._directory = directory
        self._report = report
        with open_file(directory, "manifest.json") as file:
            manifest = decode(file.read(LONGEST_MANIFEST), "manifest.json")
        if whole(get(manifest, "format")) != 1:
            raise Unreadable(f"manifest.json has the format {show(get(manifest, 'format'))}; this reader knows 1")
        last = amount(manifest.get("last"))
        heads = manifest.get("heads")
        if last is None or not isinstance(heads, list):
            raise Unreadable("manifest.json lacks `last` or `heads`")
        self.last = last
        self.heads: List[Any] = heads
        self.parts = self._parts(manifest.get("parts"))

    def _violation(self, seq: int, what: str) -> None:
        self._report.violation("archive", seq, what)

    def _parts(self, listed: Any) -> List[Part]:
        """The parts, in order. Gaps between them are violations."""
        if not isinstance(listed, list):
            raise Unreadable("manifest.json has no list of parts")
        parts, expected = [], 1
        for number, one in enumerate(listed, 1):
            file, digest = text(get(one, "file")), text(get(one, "sha256"))
            first, last = amount(get(one, "first")), amount(get(one, "last"))
            if (file is None or digest is None or first is None or last is None
                    or file != f"events-{first:012}.jsonl.gz"):
                raise Unreadable(f"manifest.json names an impossible part: {show(one)}")
            if first != expected or last < first:
                self._violation(first, f"{file} should begin at {expected}: it has {first} to {last}")
            size = last - first + 1
            if size > MESSAGES_IN_A_PART or (size < MESSAGES_IN_A_PART and number < len(listed)):
                self._violation(first, f"{file} has {size} messages; only the last part may have fewer than 50,000")
            expected = last + 1
            parts.append(Part(file, first, last, digest))
        if expected != self.last + 1:
            self._violation(self.last, f"the manifest ends at {self.last}, its parts end at {expected - 1}")
        return parts

    def messages(self) -> Iterator[Message]:
        """Every message of every part. Sequences must be without gaps."""
        expected = 1
        for part in self.parts:
            self._report.count("archive")
            self._check_hash(part)
            begin = expected
            for number, line in enumerate(self._lines(part), 1):
                message = self._message(line, f"{part.file}, line {number}")
                if message.seq != expected:
                    self._violation(message.seq, f"the sequence should be {expected}")
                expected = message.seq + 1
                if not part.first <= message.seq <= part.last:
                    self._violation(message.seq, f"{part.file} should have {part.first} to {part.last} only")
                yield message
            if expected != part.last + 1:
                self._violation(part.last, f"{part.file} has {begin} to {expected - 1}, and should end here")

    def _check_hash(self, part: Part) -> None:
        """Compares the hash of the compressed file."""
        digest = hashlib.sha256()
        with open_file(self._directory, part.file) as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != part.sha256.lower():
            self._violation(part.first, f"the hash of {part.file} is {digest.hexdigest()}, "
                                        f"the manifest has {show(part.sha256)}")

    def _lines(self, part: Part) -> Iterator[bytes]:
        """The lines of a part, decompressed one by one."""
        with open_file(self._directory, part.file) as file:
            try:
                with gzip.GzipFile(fileobj=file) as plain:
                    while True:
                        line = plain.readline(LONGEST_LINE + 1)
                        if not line:
                            return
                        if len(line) > LONGEST_LINE:
                            raise Unreadable(f"{part.file} has a line of more than 16 MiB")
                        if not line.endswith(b"\n"):
                            self._violation(part.last, f"{part.file}: the last line does not end")
                        yield line
            except (OSError, EOFError, zlib.error) as error:
                raise Unreadable(f"{part.file} cannot be decompressed: {error}") from error

    def _message(self, line: bytes, where: str) -> Message:
        """One message from its line."""
        one = decode(line, where)
        seq, nanos = amount(get(one, "seq")), whole(get(one, "nanos"))
        subject, headers = text(get(one, "subject")), get(one, "headers")
        if seq is None or nanos is None or nanos >= 2**63 or subject is None or not isinstance(headers, dict):
            raise Unreadable(f"{where} is not a message of the log: {show(one)}")
        for name in sorted(set(one) - FIELDS):
            self._violation(seq, f"the line has another field: {show(name)}")
        for name, value in headers.items():
            if name not in COVERED or not isinstance(value, str):
                self._violation(seq, f"the line has another header: {show(name)}")
        known = {name: value for name, value in headers.items() if name in COVERED and isinstance(value, str)}
        return Message(seq, nanos, subject, known, self._body(seq, one))

    def _body(self, seq: int, one: Dict[str, Any]) -> Optional[bytes]:
        """The body, as text or in hexadecimal. A line has exactly one of them."""
        payload, data = text(one.get("payload")), text(one.get("bytes"))
        if ("payload" in one) == ("bytes" in one) or (payload is None and data is None):
            self._violation(seq, "the line should have either `payload` or `bytes`")
            return None
        if payload is not None:
            return payload.encode("utf-8", "surrogatepass")
        if data is None or not HEXADECIMAL.fullmatch(data):
            self._violation(seq, "`bytes` is not hexadecimal")
            return None
        return bytes.fromhex(data)

    def leaves(self) -> Iterator[bytes]:
        """The leaves that the archive claims."""
        with open_file(self._directory, "leaves.bin") as file:
            yield from iter(lambda: file.read(32), b"")

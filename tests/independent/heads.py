"""Checks the leaves, the signed tree heads, and the machines' signatures of their lists of files."""

import hashlib
import re
from typing import Any, Dict, List, Optional, Set

import ed25519
from archive import Archive, Message
from events import Event
from merkle import Tree, head_text, leaf
from report import Report, amount, get, show, text

ENDINGS = ("Completed", "Failed", "Cancelled")
ROOT = re.compile(r"[0-9a-f]{64}")
SIGNATURE = re.compile(r"[0-9a-fA-F]{128}")


class Heads:
    """Recomputes the tree while the log is read."""

    def __init__(self, report: Report, archive: Archive) -> None:
        self._report = report
        self._archive = archive
        self._heads = archive.heads
        self._leaves = archive.leaves()
        self._tree = Tree()
        self._sizes = {amount(get(head, "size")) for head in archive.heads}
        self._roots: Dict[int, str] = {}

    def fold(self, message: Message) -> None:
        """The leaf of one message. If it cannot be computed, the archive's own leaf takes its place in the tree."""
        claimed = next(self._leaves, b"")
        if message.body is None:
            self._report.violation("leaves", message.seq, "the leaf cannot be recomputed: the message has no body")
            computed = claimed
        else:
            computed = leaf(message.nanos, message.subject, message.headers, message.body)
            self._report.count("leaves")
        if len(claimed) != 32:
            self._report.violation("leaves", message.seq, "leaves.bin has no leaf of this message")
        elif computed != claimed:
            self._report.violation("leaves", message.seq,
                                   f"the leaf is {computed.hex()}, leaves.bin has {claimed.hex()}")
        self._tree.append(computed)
        if self._tree.size in self._sizes:
            self._roots[self._tree.size] = self._tree.root().hex()

    def finish(self, trusted: Set[str]) -> None:
        """Every signed head against the tree. `trusted` are the keys that the caller trusts, if any."""
        size = self._tree.size
        if next(self._leaves, b""):
            self._report.violation("leaves", size, "leaves.bin has more leaves than the log has messages")
        keys: Set[str] = set()
        good = [head for head in self._heads if self._good(head, trusted, keys)]
        sizes = [amount(get(head, "size")) or 0 for head in self._heads]
        if any(later <= earlier for earlier, later in zip(sizes, sizes[1:])):
            self._report.violation("heads", size, "the heads are not in order, or two of them have the same size")
        self._report.key = next(iter(keys)) if len(keys) == 1 else None
        self._report.covered = max((head["size"] for head in good), default=0)
        if trusted and not good:
            self._report.violation("heads", size, "no good head is signed by a trusted key")
        if self._report.covered < size:
            self._report.note(f"{size - self._report.covered} messages after the newest good head have no signature")
        elif trusted and self._report.covered == self._archive.last and size > 0:
            self._report.vouched = "the named key"

    def _good(self, head: Any, trusted: Set[str], keys: Set[str]) -> bool:
        """Whether a head has the right root, a trusted key, and a valid signature."""
        self._report.count("heads")
        size, root, key = amount(get(head, "size")), text(get(head, "root")), text(get(head, "key"))
        signature = text(get(head, "signature"))
        if size is None or root is None or key is None or signature is None:
            self._report.violation("heads", self._tree.size, f"a head cannot be read: {show(head)}")
            return False
        keys.add(key)
        problems: List[str] = []
        if size > self._tree.size or size == 0:
            problems.append(f"the archive has {self._tree.size} messages")
        elif not ROOT.fullmatch(root) or root != self._roots.get(size):
            problems.append(f"its root is {show(root)}, the messages have {self._roots.get(size)}")
        if trusted and key not in trusted:
            problems.append(f"its key {show(key)} is not trusted")
        public = ed25519.decode_nats_key(key)
        if public is None:
            problems.append(f"its key {show(key)} is not a key of the form U...")
        elif not SIGNATURE.fullmatch(signature) or not ed25519.verify(public, head_text(size, root),
                                                                      bytes.fromhex(signature)):
            problems.append("its signature is not valid")
        for problem in problems:
            self._report.violation("heads", size, f"the signed head of {size} messages: {problem}")
        return not problems


class Manifests:
    """The machine's signatures over the list of a job's files, and over its log (docs/jobs.md, Files)."""

    def __init__(self, report: Report, keys: Dict[str, Set[str]]) -> None:
        self._report = report
        self._keys = keys

    def check(self, event: Event, machine: Optional[str]) -> None:
        """The ending of an attempt, if it has signatures."""
        if event.name not in ENDINGS or machine is None:
            return
        self._check_log(event, machine)
        signature = text(event.body.get("signature"))
        if signature is None:
            return
        self._report.count("manifests")
        lines = "".join(f"{one['sha256']} {one['bytes']} {one['path']}\n" for one in event.body.get("outputs") or [])
        digest = hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()
        signed = f"manifest.{event.body.get('job')}.{event.body.get('lease')}.{digest}".encode()
        if not self._has_signed(machine, signed, signature):
            self._report.violation("manifests", event.seq, "no key of the machine has signed this list of files")

    def _check_log(self, event: Event, machine: str) -> None:
        log = event.body.get("log")
        if log is None:
            return
        self._report.count("logs")
        place = f"{event.body.get('job')}.{event.body.get('lease')}"
        signed = f"log.{place}.{log['lines']}.{log['sha256']}".encode()
        if not self._has_signed(machine, signed, log["signature"]):
            self._report.violation("logs", event.seq, "no key of the machine has signed this log")

    def _has_signed(self, machine: str, signed: bytes, signature: str) -> bool:
        given = ed25519.decode_base64url(signature) or b""
        publics = [ed25519.decode_nats_key(key) for key in sorted(self._keys.get(machine, ()))]
        return any(key is not None and ed25519.verify(key, signed, given) for key in publics)

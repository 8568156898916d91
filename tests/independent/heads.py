"""Checks the leaves, the signed tree heads, and the machines' signatures of their lists of files."""

import hashlib
from typing import Any, Dict, List, Optional, Set

import ed25519
from archive import Archive, Message
from leases import ENDINGS, At
from merkle import Tree, head_text, leaf
from report import Report, amount, get, show, text


class Heads:
    """Recomputes the tree while the log is read."""

    def __init__(self, report: Report, archive: Archive) -> None:
        self._report = report
        self._heads = archive.heads
        self._leaves = archive.leaves()
        self._tree = Tree()
        self._sizes = {amount(get(head, "size")) for head in archive.heads}
        self._roots: Dict[int, str] = {}

    def fold(self, message: Message) -> None:
        """The leaf of one message. If it cannot be computed, the archive's own leaf takes its place in the tree."""
        claimed = next(self._leaves, b"")
        if message.payload is None:
            self._report.violation(message.seq, "the leaf cannot be recomputed: the message is no text")
            computed = claimed
        else:
            computed = leaf(message.nanos, message.subject, message.headers, message.payload)
        if len(claimed) != 32:
            self._report.violation(message.seq, "leaves.bin has no leaf of this event")
        elif computed != claimed:
            self._report.violation(message.seq, f"the leaf is {computed.hex()}, leaves.bin has {claimed.hex()}")
        self._tree.append(computed)
        if self._tree.size in self._sizes:
            self._roots[self._tree.size] = self._tree.root().hex()

    def finish(self, wanted: Optional[str]) -> None:
        """Every signed head against the tree. `wanted` is the key that the caller trusts."""
        if next(self._leaves, b""):
            self._report.violation(self._tree.size, "leaves.bin has more leaves than the log has events")
        keys: Set[str] = set()
        good = [head for head in self._heads if self._good(head, wanted, keys)]
        self._report.key = next(iter(keys)) if len(keys) == 1 else None
        self._report.covered = max((head["size"] for head in good), default=0)
        if wanted is not None and not good:
            self._report.violation(self._tree.size, "no good head is signed by the named key")
        elif wanted is not None and len(good) == len(self._heads):
            self._report.vouched = "the named key"

    def _good(self, head: Any, wanted: Optional[str], keys: Set[str]) -> bool:
        """Whether a head has the right root, the right key, and a valid signature."""
        self._report.heads += 1
        size, root, key = amount(get(head, "size")), text(get(head, "root")), text(get(head, "key"))
        if size is None or root is None or key is None:
            self._report.violation(self._tree.size, f"a head cannot be read: {show(head)}")
            return False
        keys.add(key)
        problems: List[str] = []
        if size > self._tree.size or size == 0:
            problems.append(f"the archive has {self._tree.size} events")
        elif root != self._roots.get(size):
            problems.append(f"its root is {show(root)}, the events have {self._roots.get(size)}")
        if wanted is not None and key != wanted:
            problems.append(f"its key is {show(key)}, not the named one")
        public = ed25519.decode_nats_key(key)
        if public is None or not ed25519.verify(public, head_text(size, root), from_hex(get(head, "signature"))):
            problems.append("its signature is not valid")
        for problem in problems:
            self._report.violation(size, f"the signed head of {size} events: {problem}")
        return not problems


def from_hex(value: Any) -> bytes:
    """Bytes from their hexadecimal form; none if the text is another."""
    try:
        return bytes.fromhex(text(value) or "")
    except ValueError:
        return b""


class Manifests:
    """The machine's signature over the list of a job's files (docs/jobs.md, Files)."""

    def __init__(self, report: Report, keys: Dict[str, Set[str]]) -> None:
        self._report = report
        self._keys = keys

    def check(self, at: At, machine: Optional[str]) -> None:
        """The ending of an attempt, if it has a signature."""
        if at.name not in ENDINGS or at.body.get("signature") is None or machine is None:
            return
        lines = b""
        outputs = at.body.get("outputs")
        for one in outputs if isinstance(outputs, list) else []:
            size = get(one, "bytes") if get(one, "bytes") is not None else get(one, "size")
            digest, path = text(get(one, "sha256")), text(get(one, "path"))
            if digest is None or path is None or amount(size) is None:
                self._report.note("a list of files could not be read, so its signature was not checked")
                return
            lines += f"{digest} {size} {path}\n".encode("utf-8", "surrogatepass")
        signed = f"manifest.{at.body.get('job')}.{at.body.get('lease')}.{hashlib.sha256(lines).hexdigest()}"
        signature = ed25519.decode_base64url(at.body.get("signature")) or b""
        publics = [ed25519.decode_nats_key(key) for key in self._keys.get(machine, ())]
        if not any(key is not None and ed25519.verify(key, signed.encode("utf-8", "replace"), signature)
                   for key in publics):
            self._report.violation(at.seq, "no key of the machine has signed this list of files")

"""The hash tree over the log: leaves, roots, and the text of a signed head (docs/verification.md, The hash tree).

The tree is the one of RFC 6962, section 2.1 (https://www.rfc-editor.org/rfc/rfc6962#section-2.1).
"""

import hashlib
import struct
from typing import Dict, List, Optional

from archive import COVERED

ABSENT = b"\xff" * 8


def sized(data: bytes) -> bytes:
    """Bytes after their length."""
    return struct.pack(">Q", len(data)) + data


def leaf(nanos: int, subject: str, headers: Dict[str, str], body: bytes) -> bytes:
    """The leaf of one message."""
    data = b"\x00" + struct.pack(">q", nanos) + sized(subject.encode("utf-8", "surrogatepass"))
    for name in COVERED:
        value = headers.get(name)
        data += ABSENT if value is None else sized(value.encode("utf-8", "surrogatepass"))
    return hashlib.sha256(data + sized(body)).digest()


class Tree:
    """The roots of complete subtrees, largest first: enough to compute the root after each leaf."""

    def __init__(self) -> None:
        self.size = 0
        self._stack: List[bytes] = []

    def append(self, value: bytes) -> None:
        """Adds a leaf."""
        node, size = value, self.size
        while size & 1:
            node = hashlib.sha256(b"\x01" + self._stack.pop() + node).digest()
            size >>= 1
        self._stack.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The root of the leaves so far."""
        result: Optional[bytes] = None
        for node in reversed(self._stack):
            result = node if result is None else hashlib.sha256(b"\x01" + node + result).digest()
        return hashlib.sha256(b"").digest() if result is None else result


def head_text(size: int, root: str) -> bytes:
    """The text that a tree head signs."""
    return f"gpubnb tree head\n{size}\n{root}\n".encode("utf-8", "replace")

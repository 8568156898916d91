"""The hash tree over the log: leaves, roots, and signed tree heads.

The tree is the one of RFC 6962, section 2.1 (https://www.rfc-editor.org/rfc/rfc6962#section-2.1).
"""

import hashlib
import struct
from typing import List, Optional

ABSENT = b"\xff" * 8
HEADERS = ("Nats-Msg-Id", "Gpubnb-Type", "Gpubnb-Actor", "Gpubnb-Cause", "Gpubnb-Correlation")


def sized(data: bytes) -> bytes:
    """Bytes after their length."""
    return struct.pack(">Q", len(data)) + data


def leaf(nanos: int, subject: str, headers: dict, payload: bytes) -> bytes:
    """The leaf of one message.

    docs/adr/0012 says what the hash covers. The order, the 64-bit big-endian numbers and the mark of an absent header
    (a length of 2^64 - 1) are not documented; they were found by trying on a sample archive.
    """
    data = b"\x00" + struct.pack(">Q", nanos & (2**64 - 1)) + sized(subject.encode("utf-8", "surrogatepass"))
    for name in HEADERS:
        value = headers.get(name)
        data += sized(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else ABSENT
    return hashlib.sha256(data + sized(payload)).digest()


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
    """The text that a tree head signs. It is not documented; it was found by trying on a sample archive."""
    return f"gpubnb tree head\n{size}\n{root}\n".encode("utf-8", "replace")

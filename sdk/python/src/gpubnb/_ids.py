"""Ids that this computer makes, so that a request may be repeated without a second job."""

from __future__ import annotations

import hashlib
import os
import time
import uuid


def _version_7(millis: int, random: bytes) -> str:
    """A UUID of version 7 (RFC 9562, section 5.7), from a time and ten bytes."""
    bits = int.from_bytes(random, "big")
    return str(uuid.UUID(int=millis << 80 | 7 << 76 | (bits >> 68) << 64 | 0b10 << 62 | (bits & ((1 << 62) - 1))))


def new_id() -> str:
    """The id of something new."""
    return _version_7(time.time_ns() // 1_000_000, os.urandom(10))


def new_batch_id() -> str:
    """The id of a batch: a UUID of version 7 whose last 20 bits are zero."""
    return str(uuid.UUID(int=uuid.UUID(new_id()).int >> 20 << 20))


def derived_id(parent: str, name: str) -> str:
    """An id that is the same for the same parent and name, with the time of the parent."""
    return _version_7(uuid.UUID(parent).int >> 80, hashlib.sha256(f"{parent}/{name}".encode()).digest()[:10])


def is_id(text: str) -> bool:
    """True for a UUID of version 7 in its usual form."""
    try:
        return str(uuid.UUID(text)) == text and uuid.UUID(text).version == 7
    except ValueError:
        return False

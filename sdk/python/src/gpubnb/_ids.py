"""Ids that this computer makes, so that a request may be repeated without a second job."""

from __future__ import annotations

import hashlib
import os
import time
import uuid


def new_id() -> str:
    """A UUID of version 7 (RFC 9562, section 5.7)."""
    millis = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    number = millis << 80 | 7 << 76 | (random >> 68) << 64 | 0b10 << 62 | (random & ((1 << 62) - 1))
    return str(uuid.UUID(int=number))


def new_batch_id() -> str:
    """The id of a batch: a UUID of version 7 whose last 20 bits are zero."""
    return str(uuid.UUID(int=uuid.UUID(new_id()).int >> 20 << 20))


def derived_id(parent: str, name: str) -> str:
    """An id that is the same for the same parent and name, with the time of the parent."""
    digest = hashlib.sha256(f"{parent}/{name}".encode()).digest()
    random = int.from_bytes(digest[:10], "big")
    number = (
        uuid.UUID(parent).int >> 80 << 80 | 7 << 76 | (random >> 68) << 64 | 0b10 << 62 | (random & ((1 << 62) - 1))
    )
    return str(uuid.UUID(int=number))


def is_id(text: str) -> bool:
    """True for a UUID of version 7 in its usual form."""
    try:
        return str(uuid.UUID(text)) == text and uuid.UUID(text).version == 7
    except ValueError:
        return False

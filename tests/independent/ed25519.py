"""Ed25519 verification in pure Python, and the text form of a NATS key.

Follows RFC 8032, section 5.1 (https://www.rfc-editor.org/rfc/rfc8032#section-5.1). It only verifies, so it need not
run in constant time.
"""

import base64
import binascii
import hashlib
import re
from typing import Optional, Tuple

Point = Tuple[int, int, int, int]

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)
NEUTRAL: Point = (0, 1, 1, 0)
USER_KEY = 20 << 3  # the first byte of a NATS user key: its text begins with U


def add(a: Point, b: Point) -> Point:
    """The sum of two points in extended coordinates (RFC 8032, 5.1.4)."""
    x = (a[1] - a[0]) * (b[1] - b[0]) % P
    y = (a[1] + a[0]) * (b[1] + b[0]) % P
    t = 2 * a[3] * b[3] * D % P
    z = 2 * a[2] * b[2] % P
    e, f, g, h = y - x, z - t, z + t, y + x
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def multiply(scalar: int, point: Point) -> Point:
    """The multiple of a point."""
    result = NEUTRAL
    while scalar > 0:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def same(a: Point, b: Point) -> bool:
    """Whether two points in extended coordinates are the same point."""
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0


def recover_x(y: int, sign: int) -> Optional[int]:
    """The x coordinate of a point with this y, or nothing if there is none (RFC 8032, 5.1.3)."""
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    if square == 0:
        return None if sign else 0
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P != 0:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P != 0:
        return None
    return P - x if (x & 1) != sign else x


def decode_point(data: bytes) -> Optional[Point]:
    """A point from its 32 bytes, or nothing."""
    if len(data) != 32:
        return None
    number = int.from_bytes(data, "little")
    y = number & ((1 << 255) - 1)
    x = recover_x(y, number >> 255)
    return None if x is None else (x, y, 1, x * y % P)


def base_point() -> Point:
    """The generator of the group."""
    y = 4 * pow(5, P - 2, P) % P
    x = recover_x(y, 0) or 0
    return (x, y, 1, x * y % P)


BASE = base_point()


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is this key's signature of `message` (RFC 8032, 5.1.7)."""
    if len(signature) != 64:
        return False
    key, commitment = decode_point(public), decode_point(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or scalar >= ORDER:
        return False
    if same(multiply(8, key), NEUTRAL):
        return False  # a key of small order would accept signatures that nobody made
    digest = hashlib.sha512(signature[:32] + public + message).digest()
    challenge = int.from_bytes(digest, "little") % ORDER
    return same(multiply(scalar, BASE), add(commitment, multiply(challenge, key)))


def decode_nats_key(text: object) -> Optional[bytes]:
    """The 32 bytes of a NATS user key (`U…`), or nothing if the text is none.

    The text is base32 without padding of: one byte for the kind of key, the key, and a CRC-16/XMODEM of both, low byte
    first (docs/verification.md, A signed head).
    """
    if not isinstance(text, str) or len(text) != 56:
        return None
    try:
        raw = base64.b32decode(text)
    except (binascii.Error, ValueError):
        return None
    if len(raw) != 35 or raw[0] != USER_KEY:
        return None
    if binascii.crc_hqx(raw[:33], 0) != int.from_bytes(raw[33:], "little"):
        return None
    return raw[1:33]


def decode_base64url(text: object) -> Optional[bytes]:
    """Bytes from base64url without padding, or nothing."""
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        return None
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None

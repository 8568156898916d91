"""Texts that others wrote. A terminal obeys control characters, so none of them is printed."""

from __future__ import annotations

import unicodedata


def plain(text: str, *, lines: bool = False) -> str:
    """A text without control characters and invisible signs. With `lines`, ends of lines and tabs stay."""
    kept = "\n\t" if lines else ""
    return "".join(
        sign
        if sign in kept or unicodedata.category(sign) not in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
        else "\N{REPLACEMENT CHARACTER}"
        for sign in text
    )

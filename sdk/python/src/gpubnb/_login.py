"""The market and the token: from arguments, from the environment, or from the login of the command `gpubnb`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from .errors import GpubnbError, NotLoggedIn

DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Login:
    """A market, and the token of an account there."""

    url: str
    token: str = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A client has the token of your account, so it is never sent to a machine: make it inside main()."
        )


def _saved_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "gpubnb" / "login.json"


def _saved() -> dict[str, str]:
    path = _saved_path()
    try:
        saved = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise GpubnbError(f"{path} cannot be read ({error}): log in again with `gpubnb login`.") from error
    return saved if isinstance(saved, dict) else {}


def find_login(url: str | None, token: str | None) -> Login:
    """Finds the market and the token. A saved token is sent only to the market that gave it."""
    url = (url or os.environ.get("GPUBNB_URL") or "").rstrip("/")
    token = (token or os.environ.get("GPUBNB_TOKEN") or "").strip()
    if not (url and token):
        saved = _saved()
        url = url or saved.get("url", "")
        if saved.get("url") == url:
            token = token or saved.get("token", "")
    url = url or DEFAULT_URL
    if "://" not in url:
        raise GpubnbError(
            f"{url} is not the address of a market: write https://{url}, or http://{url} for a local one."
        )
    if not token:
        raise NotLoggedIn(
            f"There is no token for {url}. Run `gpubnb login`, or set GPUBNB_TOKEN to a token of the page Account."
        )
    if not (token.isascii() and token.isprintable()):
        raise NotLoggedIn("The token has signs that no token has: is GPUBNB_TOKEN what the page Account showed?")
    return Login(url, token)

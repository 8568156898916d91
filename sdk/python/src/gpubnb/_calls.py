"""Two functions that the package has with and without `async`."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")


def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function that reads or writes files."""
    return function(*args, **kwargs)


async def async_call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function that reads or writes files, in a thread, so that other tasks go on."""
    return await anyio.to_thread.run_sync(functools.partial(function, *args, **kwargs))


def sleep(seconds: float) -> None:
    """Waits."""
    time.sleep(seconds)


async def async_sleep(seconds: float) -> None:
    """Waits, while other tasks go on."""
    await anyio.sleep(seconds)

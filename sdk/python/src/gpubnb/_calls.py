"""Two functions that the package has with and without `async`."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")

Lock = threading.Lock
AsyncLock = anyio.Lock


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


@contextmanager
def closing(iterator: Iterator[T]) -> Iterator[Iterator[T]]:
    """Closes a generator at once when it is left, and with it the connection that it reads from."""
    try:
        yield iterator
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


@asynccontextmanager
async def async_closing(iterator: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Like `closing`."""
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()

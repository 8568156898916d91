"""Python functions that run on the market's machines."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import ParamSpec, Self, TypeVar

from .._calls import async_call
from .._functions import Call, check_python, default_image, pack, request_with
from ..errors import MarketUnreachable
from .batch import AsyncFunctionBatch

if TYPE_CHECKING:
    import os

    from ..requests import JobRequest
    from .client import AsyncClient
    from .job import AsyncJob

P = ParamSpec("P")
R = TypeVar("R")


class AsyncFunction(Generic[P, R]):
    """A function that runs here when it is called, and on a machine with `remote`, `spawn` or `map`.

    The function and its arguments travel by cloudpickle to the machine, whose owner can read them. What comes back is
    data: None, numbers, texts, bytes, lists and dictionaries of these (tuples arrive as lists), NumPy arrays, and
    dictionaries of arrays.
    """

    def __init__(
        self,
        client: AsyncClient,
        function: Callable[P, R],
        *,
        python: str | None,
        directory: str | os.PathLike[str] | None,
        trust_results: bool,
        request: JobRequest,
    ) -> None:
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError("The function must return its result: it cannot be `async`, and cannot `yield`.")
        functools.update_wrapper(self, function)
        self._client, self._function = client, function
        self._directory, self._trust_results = directory, trust_results
        name = getattr(function, "__name__", "function")
        self._request: JobRequest = {"image": default_image(), "name": name, "time_seconds": 600, **request}
        check_python(self._request.get("image") or "", python)

    def __reduce__(self) -> Any:
        # In the job, and in other functions that use this one, there is no client: only the function itself.
        return operator.itemgetter(0), ((self._function,),)

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        if instance is None:
            return self
        raise TypeError("A method cannot run on a machine: decorate a function outside of the class.")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function on this computer."""
        return self._function(*args, **kwargs)

    async def _upload(self, calls: list[Call]) -> JobRequest:
        """Uploads the function and its calls, and returns the job that makes them."""
        directory = Path(self._directory) if self._directory is not None else None
        dataset = await async_call(pack, self._function, calls, trusted=self._trust_results, directory=directory)
        await self._client.datasets.upload(dataset)
        request = request_with(self._request, dataset.id())
        return await self._client.with_directory(request, self._directory)

    async def spawn(self, *args: P.args, **kwargs: P.kwargs) -> AsyncJob:
        """Submits one call, and returns its job. `Job.wait` waits for it, and `Job.result` has its result."""
        await self._client.check(self._request)
        request = await self._upload([(args, kwargs)])
        return await self._client.run(**request)

    async def remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs one call on a machine, and returns its result. Raises `RemoteError` if the function raised."""
        job = await self.spawn(*args, **kwargs)
        try:
            result: R = await job.result(trust_results=self._trust_results)
        except MarketUnreachable as error:
            error.submitted = job.id
            raise
        return result

    async def map(
        self, items: Iterable[Any], *, max_running: int | None = None, max_failures: int | None = None
    ) -> AsyncFunctionBatch[R]:
        """Calls the function once for each item, on many machines: one quote, one hold, one task for each item."""
        return await self.starmap(((item,) for item in items), max_running=max_running, max_failures=max_failures)

    async def starmap(
        self, items: Iterable[tuple[Any, ...]], *, max_running: int | None = None, max_failures: int | None = None
    ) -> AsyncFunctionBatch[R]:
        """Like `map`, for functions of several arguments: each item is a tuple of them."""
        calls: list[Call] = [(tuple(item), {}) for item in items]
        if not calls:
            raise ValueError("There are no items.")
        array = f"0-{len(calls) - 1}"
        await self._client.check_batch({"job": self._request, "array": array})
        request = await self._upload(calls)
        bounds = {"max_running": max_running, "max_failures": max_failures}
        submitted = await self._client.submit_batch({"job": request, "array": array}, **bounds)
        return self._client.function_batch(submitted.id, trust_results=self._trust_results, seq=submitted.seq)

"""The account's side of a market."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import ParamSpec, Self, TypeVar, Unpack

from .. import _directory
from .._calls import async_call
from .._ids import derived_id, new_batch_id, new_id
from .._money import check_funds
from .._text import plain
from ..errors import InvalidDirectory, MarketUnreachable
from ..models import (
    BatchDetails,
    CurrentAccount,
    ListedTemplate,
    MachineRow,
    QuotedBatch,
    QuotedJob,
    Submitted,
    SubmittedBatch,
    Wallet,
)
from .batch import AsyncBatch, AsyncFunctionBatch
from .datasets import AsyncDatasets, AsyncSecrets
from .function import AsyncFunction
from .job import AsyncJob
from .transport import SILENCE, AsyncTransport

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from ..requests import BatchRequest, JobRequest

P = ParamSpec("P")
R = TypeVar("R")

Command = str | Sequence[str]
# The most files in `files`, each of which is a request of its own. A dataset takes more.
MAX_FILES = 100


def _words(command: Command) -> list[str]:
    """A command as a list. In a text, quotes keep words together; no shell reads it."""
    return shlex.split(command) if isinstance(command, str) else list(command)


def _size_of(path: str | os.PathLike[str]) -> int:
    return Path(path).stat().st_size


class AsyncClient:
    """One account at one market.

    Without arguments, the market and the token are those of `gpubnb login`, or of the variables `GPUBNB_URL` and
    `GPUBNB_TOKEN`. `ca` is a PEM file with the certificates to trust, and `timeout` the seconds for one request.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        ca: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.transport = AsyncTransport(url, token, ca, timeout)
        self.datasets = AsyncDatasets(self.transport)
        self.secrets = AsyncSecrets(self.transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self.transport.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Any endpoint of the API (`docs/api.md`), as JSON. The request is sent again while the market does not answer,
        except a `POST` without the header `Idempotency-Key`."""
        repeat = method != "POST" or any(name.lower() == "idempotency-key" for name in headers or {})
        response = await self.transport.request(method, path, body=body, params=params, headers=headers, repeat=repeat)
        return response.json() if response.content else None

    # --- jobs -----------------------------------------------------------------------------------------------------

    async def run(
        self,
        command: Command | None = None,
        /,
        *,
        directory: str | os.PathLike[str] | None = None,
        files: Mapping[str, str | os.PathLike[str] | bytes] | None = None,
        **request: Unpack[JobRequest],
    ) -> AsyncJob:
        """Submits a job. The other arguments are the fields of `POST /jobs`.

        `directory` goes along and is the job's working directory, without what its `.gitignore` names. `files` are
        input files, by their path below `/input`: paths on this computer, or bytes.
        """
        job = request.get("job") or new_id()
        complete = await self._complete(command, directory, files, {**request, "job": job})
        submitted = Submitted.model_validate(await self._submit("/jobs", complete, job))
        return AsyncJob(self.transport, submitted.job, seq=submitted.seq)

    async def _submit(self, path: str, body: Mapping[str, Any], id: str) -> Any:  # noqa: A002
        try:
            return await self.transport.json("POST", path, body=body)
        except MarketUnreachable as error:
            error.submitted = id
            advice = f"The market may have it under the id {id}. With the same id, another try submits nothing twice."
            error.args = (f"{error} {advice}",)
            raise

    async def quote(self, command: Command | None = None, /, **request: Unpack[JobRequest]) -> QuotedJob:
        """What a job would cost, and on which machine it would run. Nothing is submitted."""
        body = await self._complete(command, None, None, request)
        return QuotedJob.model_validate(await self.transport.json("POST", "/quote", body=body))

    async def check(self, request: JobRequest) -> None:
        """Refuses a job that the market would refuse, or that the account cannot pay, before files are uploaded."""
        quote = QuotedJob.model_validate(await self.transport.json("POST", "/quote", body=request))
        check_funds(quote.hold, quote.available)

    async def job(self, job: str) -> AsyncJob:
        """The job with an id."""
        found = AsyncJob(self.transport, job)
        await found.refresh()
        return found

    async def jobs(
        self, *, state: str | None = None, text: str | None = None, limit: int | None = None
    ) -> AsyncIterator[AsyncJob]:
        """The jobs, newest first. `text` is a part of their name, image or id."""
        left = limit
        async for row in self.transport.rows("/jobs", {"state": state, "text": text}):
            if left is not None:
                if left == 0:
                    return
                left -= 1
            yield AsyncJob(self.transport, row["job"])

    async def _complete(
        self,
        command: Command | None,
        directory: str | os.PathLike[str] | None,
        files: Mapping[str, str | os.PathLike[str] | bytes] | None,
        request: JobRequest,
    ) -> JobRequest:
        complete: JobRequest = {**request}
        if command is not None:
            complete["command"] = _words(command)
        if directory is not None or files:
            await self.check(complete)
        if len(files or {}) > MAX_FILES:
            raise InvalidDirectory(f"There are {len(files or {})} files, and a job takes {MAX_FILES}: push a dataset.")
        for path, source in (files or {}).items():
            name = derived_id(complete.get("job") or new_id(), path)
            await self._upload(name, source)
            complete["inputs"] = [*complete.get("inputs", []), {"input": name, "path": path}]
        return await self.with_directory(complete, directory)

    async def _upload(self, name: str, source: str | os.PathLike[str] | bytes) -> None:
        """Uploads an input file under an id."""
        size = len(source) if isinstance(source, bytes) else await async_call(_size_of, source)

        def pieces() -> Iterator[bytes]:
            if isinstance(source, bytes):
                yield source
                return
            with Path(source).open("rb") as opened:
                while piece := opened.read(1 << 20):
                    yield piece

        headers = {"content-length": str(size)}
        async with self.transport.uploading:
            await self.transport.request("PUT", f"/inputs/{name}", pieces=pieces, headers=headers, timeout=SILENCE)

    async def with_directory(self, request: JobRequest, directory: str | os.PathLike[str] | None) -> JobRequest:
        """The request of a job whose working directory is a copy of a directory, which is uploaded."""
        if directory is None:
            return request
        code_files = await async_call(_directory.of_code, directory)
        if code_files.secrets:
            advice = "Store a secret with client.secrets.set, and name it in `secrets`."
            names = plain(", ".join(code_files.secrets))
            warnings.warn(f"Left out, because they may have passwords or keys: {names}. {advice}", stacklevel=3)
        stored = await self.datasets.upload(code_files)
        code: dict[str, Any] = {"dataset": stored.dataset, "directory": "code", "writable": True}
        datasets: Any = [*request.get("datasets", []), code]
        return {"workdir": "/scratch/code", **request, "datasets": datasets}

    # --- batches --------------------------------------------------------------------------------------------------

    async def map(
        self,
        command: Command,
        items: Iterable[object] | Mapping[str, Iterable[object]],
        /,
        *,
        directory: str | os.PathLike[str] | None = None,
        max_running: int | None = None,
        max_failures: int | None = None,
        **request: Unpack[JobRequest],
    ) -> AsyncBatch:
        """Runs a command once for each item, in which `{}` stands for the item: `client.map("wc {}", ["a", "b"], …)`.

        With a dictionary of lists, once for each combination of their values, for which `{name}` stands:
        `client.map("train --lr {lr}", {"lr": ["0.1", "0.01"]}, …)`. For a Python function, see `function`.
        """
        body = self._batch(command, items, request)
        if directory is not None:
            await self.check_batch(body)
            body["job"] = await self.with_directory(body["job"], directory)
        return await self.submit_batch(body, max_running=max_running, max_failures=max_failures)

    async def quote_map(
        self,
        command: Command,
        items: Iterable[object] | Mapping[str, Iterable[object]],
        /,
        **request: Unpack[JobRequest],
    ) -> QuotedBatch:
        """What a batch would cost. Nothing is submitted."""
        body = self._batch(command, items, request)
        return QuotedBatch.model_validate(await self.transport.json("POST", "/batches/quote", body=body))

    def _batch(
        self, command: Command, items: Iterable[object] | Mapping[str, Iterable[object]], request: JobRequest
    ) -> BatchRequest:
        job: JobRequest = {**request, "command": _words(command)}
        if isinstance(items, Mapping):
            return {"job": job, "sweep": {name: [str(value) for value in values] for name, values in items.items()}}
        return {"job": job, "items": [str(item) for item in items]}

    async def submit_batch(
        self, body: BatchRequest, *, max_running: int | None = None, max_failures: int | None = None
    ) -> AsyncBatch:
        """Submits the body of `POST /batches`. The client chooses the id, so that a repeated request is one batch."""
        batch = body.get("batch") or new_batch_id()
        complete: dict[str, Any] = {**body, "batch": batch}
        bounds = {"max_running": max_running, "max_failures": max_failures}
        complete.update({name: bound for name, bound in bounds.items() if bound is not None})
        submitted = SubmittedBatch.model_validate(await self._submit("/batches", complete, batch))
        return AsyncBatch(self.transport, submitted.batch, seq=submitted.seq)

    async def check_batch(self, body: BatchRequest) -> None:
        """Like `check`, for a batch."""
        quote = QuotedBatch.model_validate(await self.transport.json("POST", "/batches/quote", body=body))
        check_funds(quote.hold, quote.task.available)

    async def batch(self, batch: str) -> AsyncBatch:
        """The batch with an id."""
        found = AsyncBatch(self.transport, batch)
        await found.refresh()
        return found

    async def batches(self) -> AsyncIterator[AsyncBatch]:
        """The batches, newest first."""
        async for row in self.transport.rows("/batches", {}):
            yield AsyncBatch(self.transport, row["batch"], view=BatchDetails.model_validate(row))

    def function_batch(self, batch: str, *, trust_results: bool = False, seq: int = 0) -> AsyncFunctionBatch[Any]:
        """The batch with an id that `Function.map` submitted, for example before this program was started anew."""
        return AsyncFunctionBatch(self.transport, batch, seq=seq, trust_results=trust_results)

    # --- functions ------------------------------------------------------------------------------------------------

    def function(
        self,
        *,
        python: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        trust_results: bool = False,
        **request: Unpack[JobRequest],
    ) -> Callable[[Callable[P, R]], AsyncFunction[P, R]]:
        """Makes a Python function one that runs on the market's machines: `@client.function(gpus=1, time_seconds=300)`.

        The image must have the same version of Python as this computer; without `image`, it is `python:3.x-slim` of the
        same version. `python` says which version another image has. The packages that the function imports must be in
        the image; modules of its own come along with `directory`.

        With `trust_results=True`, results that are no data are pickled, and reading a pickle runs code of the machine
        that made it on this computer.
        """

        def wrap(function: Callable[P, R]) -> AsyncFunction[P, R]:
            return AsyncFunction(
                self, function, python=python, directory=directory, trust_results=trust_results, request=request
            )

        return wrap

    # --- the market and the account -------------------------------------------------------------------------------

    async def machines(
        self, *, only: Literal["free", "tested"] | None = None, **filters: str | float | None
    ) -> AsyncIterator[MachineRow]:
        """The machines on offer. The filters are the parameters of `GET /machines`, such as `gpu`, `max_price` (dollars
        per hour), `min_vram` (GiB) and `region`."""
        async for row in self.transport.rows("/machines", {"only": only, **filters}):
            yield MachineRow.model_validate(row)

    async def templates(self) -> list[ListedTemplate]:
        """The jobs that the market has approved, with their parameters."""
        return [ListedTemplate.model_validate(row) for row in await self.transport.json("GET", "/templates")]

    async def account(self) -> CurrentAccount:
        """The account, and the rights of the token."""
        return CurrentAccount.model_validate(await self.transport.json("GET", "/account"))

    async def wallet(self) -> Wallet:
        """The balance, and the newest lines of the statement."""
        return Wallet.model_validate(await self.transport.json("GET", "/wallet"))

"""One job."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .. import _downloads, _results
from .._calls import async_call, async_closing, async_sleep
from .._log import LogLine
from .._pauses import Pauses
from .._progress import Progress
from ..errors import InvalidResult, JobCancelled, JobFailed, UnsafePath
from ..models import Artifact, Done, JobDetails, Receipt, TrailEvent
from .transport import AsyncTransport

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator


class AsyncJob:
    """A job of the account. `view` is the job as the market last showed it."""

    def __init__(self, transport: AsyncTransport, job: str, *, seq: int = 0) -> None:
        self._transport = transport
        self.id = job
        # Answers include the events up to this sequence: those that this object has caused or seen.
        self._seq = seq
        self._view: JobDetails | None = None

    def __repr__(self) -> str:
        state = f" {self._view.status}" if self._view else ""
        return f"<{type(self).__name__} {self.id}{state}>"

    @property
    def url(self) -> str:
        """The page of the job."""
        return f"{self._transport.login.url}/jobs/{self.id}"

    @property
    async def view(self) -> JobDetails:
        """The job as the market last showed it; `refresh` asks again."""
        return self._view or await self.refresh()

    @property
    async def state(self) -> str:
        """The state now, such as `Running` or `Completed`."""
        if self._view is None or not self._view.settled:
            await self.refresh()
        return (await self.view).state

    async def refresh(self) -> JobDetails:
        """Asks the market for the job."""
        answer = await self._transport.json("GET", f"/jobs/{self.id}", params={"min_seq": self._seq})
        self._view = JobDetails.model_validate(answer)
        self._seq = max(self._seq, self._view.seq)
        return self._view

    async def wait(
        self, *, timeout: float | None = None, check: bool = True, progress: bool | None = None
    ) -> JobDetails:
        """Waits until the job is settled. Raises `JobFailed` or `JobCancelled` if the job did not complete, unless
        `check` is false, and `WaitTimeout` after `timeout` seconds; the job then goes on."""
        pauses = Pauses(timeout, f"The job {self.id}")
        with Progress(f"Job {self.id[-12:]}", progress) as bar:
            while not (view := await self.refresh()).settled:
                done = view.progress.fraction if view.progress and view.progress.fraction else 0.0
                bar.show(round(100 * done), 100, view.status)
                await async_sleep(pauses.next())
        if check and view.state != "Completed":
            raise _failure(view)
        return view

    async def cancel(self) -> Done:
        """Asks the job to stop."""
        return Done.model_validate(await self._transport.json("POST", f"/jobs/{self.id}/cancel", body={}))

    async def logs(self, *, follow: bool = False) -> AsyncIterator[LogLine]:
        """The lines that the job printed, each once. With `follow`, also the lines to come, until the output ends."""
        if not follow:
            async for row in self._transport.rows(f"/jobs/{self.id}/logs", {}):
                yield LogLine.model_validate(row)
            return
        next_numbers: dict[int, int] = {}
        await self.refresh()
        async with async_closing(self._transport.events(f"/jobs/{self.id}/logs/stream")) as events:
            async for name, data in events:
                if name == "end":
                    return
                if name == "line":
                    line = LogLine.model_validate(data)
                    if line.number >= next_numbers.get(line.lease, 0):
                        next_numbers[line.lease] = line.number + 1
                        yield line

    async def events(self) -> AsyncIterator[TrailEvent]:
        """The trail of the job: its events in the market's log, oldest first."""
        async for row in self._transport.rows(f"/jobs/{self.id}/events", {}):
            yield TrailEvent.model_validate(row)

    @property
    async def outputs(self) -> list[Artifact]:
        """The files that the job left in `/output`."""
        return (await self.refresh()).outputs or []

    @property
    async def receipt(self) -> Receipt:
        """The bill of a settled job, with the event that proves it. `gpubnb verify` checks the proof."""
        params = {"min_seq": self._seq}
        return Receipt.model_validate(await self._transport.json("GET", f"/jobs/{self.id}/receipt", params=params))

    async def read(self, path: str, *, max_bytes: int = _results.MAX_RESULT_BYTES) -> bytes:
        """The content of one output file. Its hash is compared with the one that the market has."""
        for file in await self.outputs:
            if file.path == path:
                return await self._read(file, max_bytes)
        raise FileNotFoundError(f"The job {self.id} has no output file {path!a}.")

    async def _read(self, file: Artifact, max_bytes: int) -> bytes:
        if file.bytes > max_bytes:
            raise InvalidResult(f"{file.path} has {file.bytes} bytes, and {max_bytes} are allowed.")
        content = BytesIO()
        writer = _downloads.Writer(content, file)
        await self._transport.download(self._path(file), writer.begin)
        writer.check()
        return content.getvalue()

    async def download(
        self, directory: str | os.PathLike[str], *, overwrite: bool = False, progress: bool | None = None
    ) -> list[Path]:
        """Saves the output files below a directory, and returns their paths. A file that is there already, with the
        same content, is not sent again. One with another content is kept, and is an error, unless `overwrite` is true:
        the job chose the names. Each file has the hash that the market has of it."""
        files = await self.outputs
        places = [_downloads.target(Path(directory), file.path) for file in files]
        total, done = sum(file.bytes for file in files), 0
        with Progress("Downloading", progress, unit="B") as bar:
            for file, place in zip(files, places, strict=True):
                if not await async_call(_downloads.has_content, place, file):
                    if place.exists() and not overwrite:
                        raise UnsafePath(f"{place} is there, with another content: overwrite=True replaces it.")
                    with _downloads.writer(place, file) as writer:
                        await self._transport.download(self._path(file), writer.begin)
                done += file.bytes
                bar.show(done, total)
        return places

    def _path(self, file: Artifact) -> str:
        return f"/jobs/{self.id}/artifacts/{quote(file.path)}"

    async def result(
        self,
        *,
        timeout: float | None = None,
        trust_results: bool = False,
        max_bytes: int = _results.MAX_RESULT_BYTES,
    ) -> Any:
        """Waits, and returns the value that the job's function returned (see `Client.function`). Raises `RemoteError`
        if the function raised an exception."""
        view = await self.wait(timeout=timeout, check=False)
        outputs = view.outputs or []
        if view.state != "Completed":
            error = _results.find(outputs, (_results.ERROR,))
            if error is not None:
                raise _results.remote_error(self.id, await self._read(error, _results.MAX_ERROR_BYTES))
            raise _failure(view)
        result = _results.find(outputs, _results.RESULTS)
        if result is None:
            raise InvalidResult(f"The job {self.id} left no result.")
        return _results.decode(result.path, await self._read(result, max_bytes), trusted=trust_results)


def _failure(view: JobDetails) -> JobFailed:
    """The error of a job that ended without success."""
    reason = view.reason
    kind = JobCancelled if view.state == "Cancelled" else JobFailed
    return kind(view.job, view.summary, reason.name if reason else None, reason.code if reason else None)

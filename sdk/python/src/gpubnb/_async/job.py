"""One job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .. import _downloads, _results
from .._calls import async_call, async_sleep
from .._pauses import Pauses
from .._progress import Progress
from ..errors import InvalidResult, JobCancelled, JobFailed
from ..models import Artifact, Done, JobDetails, JobLogLine, Receipt, TrailEvent
from .transport import AsyncTransport

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator


class AsyncJob:
    """A job of the account. `view` is the job as the market last showed it."""

    def __init__(self, transport: AsyncTransport, job: str, view: JobDetails | None = None) -> None:
        self._transport = transport
        self.id = job
        self._view = view

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
        """The state, such as `Running` or `Completed`, as the market last showed it."""
        return (await self.view).state

    async def refresh(self, *, min_seq: int = 0) -> JobDetails:
        """Asks the market for the job. The answer includes all events up to `min_seq`."""
        answer = await self._transport.json("GET", f"/jobs/{self.id}", params={"min_seq": min_seq})
        self._view = JobDetails.model_validate(answer)
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
            reason = view.reason
            kind = JobCancelled if view.state == "Cancelled" else JobFailed
            raise kind(self.id, view.summary, reason.name if reason else None, reason.code if reason else None)
        return view

    async def cancel(self) -> Done:
        """Asks the job to stop."""
        return Done.model_validate(await self._transport.json("POST", f"/jobs/{self.id}/cancel", body={}))

    async def logs(self, *, follow: bool = False) -> AsyncIterator[JobLogLine]:
        """The lines that the job printed, each once. With `follow`, also the lines to come, until the output ends."""
        if not follow:
            async for row in self._transport.rows(f"/jobs/{self.id}/logs", {}):
                yield JobLogLine.model_validate(row)
            return
        next_numbers: dict[int, int] = {}
        async for name, data in self._transport.events(f"/jobs/{self.id}/logs/stream"):
            if name == "end":
                return
            if name == "line":
                line = JobLogLine.model_validate(data)
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
        return Receipt.model_validate(await self._transport.json("GET", f"/jobs/{self.id}/receipt"))

    async def read(self, path: str, *, max_bytes: int = _results.MAX_RESULT_BYTES) -> bytes:
        """The content of one output file. Its hash is compared with the one that the machine signed."""
        for file in await self.outputs:
            if file.path == path:
                return await self._read(file, max_bytes)
        raise FileNotFoundError(f"The job {self.id} has no output file {path!a}.")

    async def _read(self, file: Artifact, max_bytes: int) -> bytes:
        if file.bytes > max_bytes:
            raise InvalidResult(f"{file.path} has {file.bytes} bytes, and {max_bytes} are allowed.")
        content = bytearray()
        async with self._transport.download(self._path(file)) as pieces:
            async for piece in pieces:
                content += piece
                if len(content) > file.bytes:
                    break
        return _results.check(bytes(content), file)

    async def download(self, directory: str | os.PathLike[str], *, progress: bool | None = None) -> list[Path]:
        """Saves the output files below a directory, and returns their paths. A file that is there already, with the
        same content, is not sent again. Each file is compared with the hash that the machine signed."""
        files = await self.outputs
        total, done, saved = sum(file.bytes for file in files), 0, []
        with Progress("Downloading", progress, unit="B") as bar:
            for file in files:
                place = _downloads.target(Path(directory), file.path)
                if not await async_call(_downloads.has_content, place, file):
                    await self._save(file, place)
                done += file.bytes
                bar.show(done, total)
                saved.append(place)
        return saved

    async def _save(self, file: Artifact, place: Path) -> None:
        with _downloads.writer(place, file) as writer:
            async with self._transport.download(self._path(file)) as pieces:
                async for piece in pieces:
                    writer.write(piece)

    def _path(self, file: Artifact) -> str:
        return f"/jobs/{self.id}/artifacts/{quote(file.path)}"

    async def result(self, *, trust_results: bool = False, max_bytes: int = _results.MAX_RESULT_BYTES) -> Any:
        """The value that the function of an ended job returned (see `Client.function`). Raises `RemoteError` if the
        function raised an exception."""
        outputs = await self.outputs
        error = _results.find(outputs, (_results.ERROR,))
        view = await self.view
        if view.state != "Completed":
            if error is not None:
                raise _results.remote_error(self.id, await self._read(error, _results.MAX_ERROR_BYTES))
            raise JobFailed(self.id, view.summary, view.reason.name if view.reason else None)
        result = _results.find(outputs, _results.RESULTS)
        if result is None:
            raise InvalidResult(f"The job {self.id} left no result.")
        return _results.decode(result.path, await self._read(result, max_bytes), trusted=trust_results)

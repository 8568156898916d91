"""Many tasks: one quote, one hold, and one job for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, overload

from typing_extensions import Self, TypeVar

from .._calls import async_sleep
from .._ids import new_batch_id
from .._pauses import Pauses
from .._progress import Progress
from ..errors import BatchFailed, GpubnbError, JobCancelled
from ..models import BatchDetails, Done, SubmittedBatch, TaskView
from .job import AsyncJob
from .transport import AsyncTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


R = TypeVar("R")


class AsyncBatch:
    """A batch of the account. `view` is the batch as the market last showed it."""

    def __init__(
        self, transport: AsyncTransport, batch: str, *, seq: int = 0, view: BatchDetails | None = None
    ) -> None:
        self._transport = transport
        self.id = batch
        # Answers include the events up to this sequence: those that this object has caused or seen.
        self._seq = seq
        self._view = view

    def __repr__(self) -> str:
        state = f" {self._view.status}" if self._view else ""
        return f"<{type(self).__name__} {self.id}{state}>"

    @property
    def seq(self) -> int:
        """The sequence of the newest event about the batch that this object has seen."""
        return self._seq

    @property
    def url(self) -> str:
        """The page of the batch."""
        return f"{self._transport.login.url}/batches/{self.id}"

    @property
    async def view(self) -> BatchDetails:
        """The batch as the market last showed it; `refresh` asks again."""
        return self._view or await self.refresh()

    async def refresh(self) -> BatchDetails:
        """Asks the market for the batch."""
        answer = await self._transport.json("GET", f"/batches/{self.id}", params={"min_seq": self._seq})
        self._view = BatchDetails.model_validate(answer)
        self._seq = max(self._seq, self._view.seq)
        return self._view

    async def wait(
        self, *, timeout: float | None = None, check: bool = True, progress: bool | None = None
    ) -> BatchDetails:
        """Waits until the last task is settled. Raises `BatchFailed` if a task did not complete, unless `check` is
        false, and `WaitTimeout` after `timeout` seconds; the batch then goes on."""
        pauses = Pauses(timeout, f"The batch {self.id}")
        with Progress(f"Batch {self.id[:8]}", progress) as bar:
            while True:
                view = await self.refresh()
                counts = view.counts
                ended = counts.completed + counts.failed + counts.cancelled
                bar.show(ended, view.tasks, f"{counts.running} running, {counts.failed} failed")
                if view.ended_at is not None:
                    break
                await async_sleep(pauses.next())
        if check and view.counts.completed < view.tasks:
            raise BatchFailed(self.id, view.counts.completed, view.tasks, view.status)
        return view

    async def tasks(self, *, state: str | None = None, failed_first: bool = False) -> AsyncIterator[TaskView]:
        """The tasks, in the order of their numbers or the failed ones first. `state` chooses tasks of one state."""
        order = "failed_first" if failed_first else None
        async for row in self._transport.rows(
            f"/batches/{self.id}/tasks", {"state": state, "order": order, "min_seq": self._seq}
        ):
            yield TaskView.model_validate(row)

    def job(self, task: TaskView) -> AsyncJob:
        """The job of a task that is open or was open."""
        return AsyncJob(self._transport, task.job)

    async def results_csv(self) -> str:
        """A table with a line for each task: parameters, result and last measurements."""
        return (await self._transport.request("GET", f"/batches/{self.id}/results.csv")).text

    async def cancel(self) -> Done:
        """Cancels the tasks that have not ended."""
        return Done.model_validate(await self._transport.json("POST", f"/batches/{self.id}/cancel", body={}))

    async def retry(self) -> Self:
        """Submits a new batch of the tasks that failed or were cancelled, after this batch has ended. A batch with
        values in `env` cannot be retried, because the market has deleted them: use `secrets`."""
        headers = {"idempotency-key": new_batch_id()}
        answer = await self._transport.json("POST", f"/batches/{self.id}/retry", body={}, headers=headers)
        submitted = SubmittedBatch.model_validate(answer)
        return self._again(submitted.batch, submitted.seq)

    def _again(self, batch: str, seq: int) -> Self:
        return type(self)(self._transport, batch, seq=seq)


class AsyncFunctionBatch(AsyncBatch, Generic[R]):
    """The calls of a function. Iterating over it gives the results, in the order of the items."""

    def __init__(self, transport: AsyncTransport, batch: str, *, seq: int = 0, trust_results: bool = False) -> None:
        super().__init__(transport, batch, seq=seq)
        self.trust_results = trust_results

    def _again(self, batch: str, seq: int) -> Self:
        return type(self)(self._transport, batch, seq=seq, trust_results=self.trust_results)

    @overload
    def results(self) -> AsyncIterator[R]: ...

    @overload
    def results(self, *, return_exceptions: bool) -> AsyncIterator[R | GpubnbError]: ...

    async def results(self, *, return_exceptions: bool = False) -> AsyncIterator[Any]:
        """The results in the order of the items, each as soon as it and those before it are there. If a call failed,
        raises its error, or gives the error in the place of the result with `return_exceptions`."""
        pauses, number = Pauses(None, f"The batch {self.id}"), 0
        total = (await self.refresh()).tasks
        while number < total:
            before = number
            params = {"cursor": number, "limit": 200, "min_seq": self._seq}
            page = await self._transport.json("GET", f"/batches/{self.id}/tasks", params=params)
            for row in page["rows"]:
                task = TaskView.model_validate(row)
                if task.state not in ("Completed", "Failed", "Cancelled"):
                    break
                yield await self._result(task, return_exceptions=return_exceptions)
                number += 1
            if number == before:
                await async_sleep(pauses.next())
            else:
                pauses = Pauses(None, f"The batch {self.id}")

    async def _result(self, task: TaskView, *, return_exceptions: bool) -> Any:
        try:
            if task.state == "Cancelled" and task.started_at is None:
                raise JobCancelled(task.job, f"Task {task.index} was cancelled before it ran.", "Cancelled")
            return await self.job(task).result(trust_results=self.trust_results)
        except GpubnbError as error:
            if return_exceptions:
                return error
            raise

    def __aiter__(self) -> AsyncIterator[R]:
        return self.results()

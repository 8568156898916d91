"""The errors of this package. Each says what happened and what to do."""

from __future__ import annotations

from typing import Any

from ._text import plain


class GpubnbError(Exception):
    """The base of all errors of this package."""


class NotLoggedIn(GpubnbError):
    """There is no token: neither a login of the command `gpubnb`, nor the variable `GPUBNB_TOKEN`."""


class MarketUnreachable(GpubnbError):
    """The market does not answer, after several tries.

    `submitted` is the id of the job or batch that the market may have got before; with the same id, another try submits
    nothing twice.
    """

    submitted: str | None = None


class MarketError(GpubnbError):
    """The market refused a request (RFC 9457). `title` is the name of the error, such as `InsufficientFunds`."""

    def __init__(self, status: int, title: str, detail: str, field: str | None = None) -> None:
        title, field = plain(title), plain(field) if field else None
        named = f"{title} ({field})" if field else title
        super().__init__(f"{named}: {detail}")
        self.status, self.title, self.detail, self.field = status, title, detail, field


class Unauthorized(MarketError):
    """The token is missing, wrong or expired."""


class InsufficientFunds(MarketError):
    """The account has less money than the job may cost."""


class Forbidden(MarketError):
    """The token lacks the right for this request."""


class NotFound(MarketError):
    """The thing does not exist, or belongs to somebody else: the market does not tell these two apart."""


class Conflict(MarketError):
    """The id was used for something else, or the thing is in a state that does not allow this."""


class InvalidRequest(MarketError):
    """A field of the request is wrong; `field` names it."""


class TooManyRequests(MarketError):
    """The market asked to wait, again and again."""


class NoRoom(MarketError):
    """The account's share of the market's store is used up, or the store is full."""


class MarketFailure(MarketError):
    """The market has an error of its own."""


_KINDS: dict[int, type[MarketError]] = {
    401: Unauthorized,
    402: InsufficientFunds,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: InvalidRequest,
    422: InvalidRequest,
    429: TooManyRequests,
    507: NoRoom,
}


def market_error(status: int, problem: dict[str, Any]) -> MarketError:
    """The error for an answer whose status is not a success."""
    kind = _KINDS.get(status, MarketFailure if status >= 500 else MarketError)
    title = str(problem.get("title") or f"Status {status}")
    detail = str(problem.get("detail") or "The market gave no reason.")
    field = problem.get("field")
    return kind(status, title, plain(detail), field if isinstance(field, str) else None)


class WaitTimeout(GpubnbError, TimeoutError):
    """The job or the batch has not ended in time. It goes on: wait again, or cancel it."""


class JobFailed(GpubnbError):
    """A job failed. `reason` is its name, such as `NonZeroExit` or `TimeLimit`, and `exit_code` the program's."""

    def __init__(self, job: str, summary: str, reason: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(f"Job {job}: {plain(summary)}")
        self.job, self.reason, self.exit_code = job, reason, exit_code


class JobCancelled(JobFailed):
    """A job was cancelled."""


class BatchFailed(GpubnbError):
    """Tasks of a batch failed or were cancelled. `Batch.tasks(state="Failed")` lists those that failed."""

    def __init__(self, batch: str, completed: int, tasks: int, status: str) -> None:
        super().__init__(f"Batch {batch}: {completed} of {tasks} tasks completed ({status}).")
        self.batch, self.completed, self.tasks = batch, completed, tasks


class RemoteError(GpubnbError):
    """A function raised an exception on the machine. All of this is text that the machine sent."""

    def __init__(self, job: str, type_name: str, message: str, traceback: str) -> None:
        self.job, self.type_name = job, plain(type_name)
        self.message, self.traceback = plain(message), plain(traceback, lines=True)
        super().__init__(f"{self.type_name}: {self.message}\n\nOn the machine:\n{self.traceback}")


class InvalidResult(GpubnbError):
    """What a machine sent is not a result that this computer reads: it is no data, is damaged, or is too large."""


class PythonMismatch(GpubnbError):
    """The image has another version of Python than this computer, and so it cannot read the function."""


class InvalidDirectory(GpubnbError):
    """A directory cannot be uploaded."""


class UnsafePath(GpubnbError):
    """A job chose a name for a file that is not safe to write."""


class ChangedFile(GpubnbError):
    """A file does not have the hash that the machine signed, or changed while it was uploaded."""

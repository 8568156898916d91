"""Runs jobs, batches and Python functions on the spare GPU machines of a GPUbnb market.

    import gpubnb

    client = gpubnb.Client()
    job = client.run("python -c 'print(6 * 7)'", image="python:3.12-slim", time_seconds=60)
    job.wait()

`Client` is the interface without `async`, and `AsyncClient` the same one with it.
"""

from ._async.batch import AsyncBatch, AsyncFunctionBatch
from ._async.client import AsyncClient
from ._async.function import AsyncFunction
from ._async.job import AsyncJob
from ._ids import new_batch_id, new_id
from ._log import LogLine
from ._money import dollars
from ._sync.batch import Batch, FunctionBatch
from ._sync.client import Client
from ._sync.function import Function
from ._sync.job import Job
from .errors import (
    BatchFailed,
    ChangedFile,
    Conflict,
    Forbidden,
    GpubnbError,
    InsufficientFunds,
    InvalidDirectory,
    InvalidRequest,
    InvalidResult,
    JobCancelled,
    JobFailed,
    MarketError,
    MarketFailure,
    MarketUnreachable,
    NoRoom,
    NotFound,
    NotLoggedIn,
    PythonMismatch,
    RemoteError,
    TooManyRequests,
    Unauthorized,
    UnsafePath,
    WaitTimeout,
)

__version__ = "0.1.0"

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "AsyncFunction",
    "AsyncFunctionBatch",
    "AsyncJob",
    "Batch",
    "BatchFailed",
    "ChangedFile",
    "Client",
    "Conflict",
    "Forbidden",
    "Function",
    "FunctionBatch",
    "GpubnbError",
    "InsufficientFunds",
    "InvalidDirectory",
    "InvalidRequest",
    "InvalidResult",
    "Job",
    "JobCancelled",
    "JobFailed",
    "LogLine",
    "MarketError",
    "MarketFailure",
    "MarketUnreachable",
    "NoRoom",
    "NotFound",
    "NotLoggedIn",
    "PythonMismatch",
    "RemoteError",
    "TooManyRequests",
    "Unauthorized",
    "UnsafePath",
    "WaitTimeout",
    "dollars",
    "new_batch_id",
    "new_id",
]

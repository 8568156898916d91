"""Reads the result of a function. The bytes come from a stranger's machine, so they are read only as data."""

from __future__ import annotations

import json
import pickle
import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any

from .errors import InvalidResult, RemoteError

if TYPE_CHECKING:
    from .models import Artifact

RESULTS = ("result.json", "result.bin", "result.npy", "result.npz", "result.safetensors", "result.pickle")
ERROR = "error.json"
# The largest result that is read into memory, unless the caller names another bound.
MAX_RESULT_BYTES = 256 << 20
# JSON takes up to thirty times its size in memory.
MAX_JSON_BYTES = 16 << 20
MAX_ERROR_BYTES = 1 << 20


def find(outputs: list[Artifact], names: tuple[str, ...]) -> Artifact | None:
    """The one file of these names."""
    found = [file for file in outputs if file.path in names]
    if len(found) > 1:
        raise InvalidResult(f"The job left {len(found)} results: {', '.join(file.path for file in found)}.")
    return found[0] if found else None


def decode(name: str, content: bytes, *, trusted: bool) -> Any:
    """The value in a file of a result."""
    try:
        if name == "result.json":
            if len(content) > MAX_JSON_BYTES:
                raise InvalidResult(f"result.json has {len(content)} bytes: return large results as bytes or arrays.")
            return json.loads(content)
        if name == "result.bin":
            return content
        if name == "result.npy":
            return _array(content)
        if name == "result.npz":
            return _archive(content)
        if name == "result.safetensors":
            return _tensors(content)
    except InvalidResult:
        raise
    except ImportError as error:
        raise InvalidResult(f"{error}. The result has arrays: pip install 'gpubnb[arrays]'.") from error
    except Exception as error:
        raise InvalidResult(f"{name} is damaged, or no result: {type(error).__name__}.") from error
    if not trusted:
        raise InvalidResult(
            "The result is a pickle. Reading a pickle runs code of the machine that made it on this computer, so it is "
            "read only with trust_results=True."
        )
    return pickle.loads(content)  # noqa: S301 - the caller said trust_results=True


def _array(content: bytes) -> Any:
    import numpy as np

    source = BytesIO(content)
    version = np.lib.format.read_magic(source)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(source)
    count = 1
    for length in shape:
        count *= length
    # The header is the machine's word. No memory is taken for what is not there.
    if dtype.hasobject or count * dtype.itemsize != len(content) - source.tell():
        raise InvalidResult("result.npy is no array of plain numbers, or has another size than it says.")
    return np.load(BytesIO(content), allow_pickle=False)


def _archive(content: bytes) -> dict[str, Any]:
    """Arrays by name. The archive is not packed, so it cannot grow when it is read."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InvalidResult("result.npz is packed, and a result is not.")
        if sum(member.file_size for member in members) > len(content):
            raise InvalidResult("result.npz has another size than it says.")
        return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}


def _tensors(content: bytes) -> Any:
    from safetensors.numpy import load

    return load(content)


def remote_error(job: str, content: bytes) -> RemoteError:
    """The exception that the function raised, as text."""
    try:
        error = json.loads(content)
        texts = [error[key] for key in ("type", "message", "traceback")]
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise InvalidResult(f"{ERROR} of the job {job} is damaged.") from cause
    if not all(isinstance(text, str) for text in texts):
        raise InvalidResult(f"{ERROR} of the job {job} is damaged.")
    return RemoteError(job, *texts)

"""A Python function and its calls as a dataset, and the check that the image can read them."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from . import _directory, _runner
from .errors import PythonMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .requests import DatasetRequest, JobRequest

# The arguments of one call, by position and by name.
Call = tuple[tuple[Any, ...], dict[str, Any]]
# The directory below `/data` at which the job finds the function, and the program that calls it.
DIRECTORY = "call"
COMMAND = ["python3", f"/data/{DIRECTORY}/run.py"]
# `python:3.12-slim`, `my/python:3.12`, but not `my/tool:3.12`: a version of something else.
_VERSION = re.compile(r"(?:^|/)python:(\d+\.\d+)(?:[.\-].*)?$")


def local_version() -> str:
    """The version of Python on this computer, such as `3.12`."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def default_image() -> str:
    """The public image with the Python of this computer."""
    return f"python:{local_version()}-slim"


def check_python(image: str, python: str | None) -> None:
    """Refuses an image whose Python is another one, or of which nobody said which Python it has. A pickled function has
    the byte code of one version."""
    found = _VERSION.search(image.split("@", 1)[0])
    stated = python or (found.group(1) if found else None)
    if stated is None:
        raise PythonMismatch(
            f'Which Python does {image} have? Say python="{local_version()}". Functions need the same version.'
        )
    if stated != local_version():
        raise PythonMismatch(
            f"{image} has Python {stated}, and this computer has {local_version()}. Name an image with the same, "
            f"such as {default_image()}, or run this with Python {stated}."
        )


def dumps(value: Any) -> bytes:
    """Pickles a function or its arguments. The function's own module travels with it, if it is no installed package."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    source = getattr(module, "__file__", None)
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    is_own = (
        source
        and module
        and module.__name__ != "__main__"
        and not any(Path(source).resolve().is_relative_to(Path(path).resolve()) for path in installed)
    )
    if not (is_own and module):
        return bytes(cloudpickle.dumps(value))
    cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(value))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _cloudpickle_files() -> Iterator[tuple[str, bytes]]:
    root = Path(cloudpickle.__file__).parent
    for path in root.glob("*.py"):
        yield f"cloudpickle/{path.name}", path.read_bytes()


def pack(function: Callable[..., Any], calls: list[Call], *, trusted: bool) -> _directory.Dataset:
    """The function and the arguments of its calls as a dataset."""
    arguments, places, end = [], [], 0
    for call in calls:
        arguments.append(dumps(call))
        places.append((end, end + len(arguments[-1])))
        end = places[-1][1]
    about = {"python": local_version(), "trusted": trusted, "arguments": places}
    return _directory.of_memory(
        {
            "run.py": Path(_runner.__file__).read_bytes(),
            "function.pickle": dumps(function),
            "arguments.bin": b"".join(arguments) or b"\0",
            "call.json": json.dumps(about).encode(),
            **dict(_cloudpickle_files()),
        }
    )


def request_with(request: JobRequest, dataset: str) -> JobRequest:
    """The job that calls the function of a dataset."""
    mount: DatasetRequest = {"dataset": dataset, "directory": DIRECTORY}
    return {**request, "command": COMMAND, "datasets": [*request.get("datasets", []), mount]}

"""A Python function and its calls as a dataset, and the check that the image can read them."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from . import _directory, _runner
from .errors import InvalidDirectory, PythonMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from .requests import DatasetRequest, JobRequest

# The arguments of one call, by position and by name.
Call = tuple[tuple[Any, ...], dict[str, Any]]
# The most bytes of all arguments of a batch: each task gets them all.
MAX_ARGUMENTS = 256 << 20
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


# cloudpickle has one list of modules for all threads.
_pickling = threading.Lock()


def _travels(name: str | None, directory: Path | None) -> ModuleType | None:
    """The module with this name, if it is a person's own and no part of the directory that goes along."""
    module = sys.modules.get(name or "")
    source = getattr(module, "__file__", None)
    if module is None or source is None or module.__name__ == "__main__":
        return None
    path = Path(source).resolve()
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    if directory is not None:
        in_directory = directory.resolve().joinpath(*module.__name__.split("."))
        if path in (in_directory.with_suffix(".py"), in_directory / "__init__.py"):
            return None
    return None if any(path.is_relative_to(place.resolve()) for place in installed) else module


def dumps(function: Callable[..., Any], calls: list[Call], directory: Path | None) -> tuple[bytes, list[bytes]]:
    """Pickles a function and its calls. Modules of the person's own, in which the function or the classes of the
    arguments are, travel with them."""
    arguments = (value for args, kwargs in calls for value in (*args, *kwargs.values()))
    names = {getattr(function, "__module__", None), *(type(value).__module__ for value in arguments)}
    with _pickling:
        known = cloudpickle.list_registry_pickle_by_value()
        found = [module for name in names if (module := _travels(name, directory)) and module.__name__ not in known]
        for module in found:
            cloudpickle.register_pickle_by_value(module)
        try:
            return bytes(cloudpickle.dumps(function)), [bytes(cloudpickle.dumps(call)) for call in calls]
        finally:
            for module in found:
                cloudpickle.unregister_pickle_by_value(module)


def _cloudpickle_files() -> Iterator[tuple[str, bytes]]:
    root = Path(cloudpickle.__file__).parent
    for path in root.glob("*.py"):
        yield f"cloudpickle/{path.name}", path.read_bytes()


def pack(
    function: Callable[..., Any], calls: list[Call], *, trusted: bool, directory: Path | None = None
) -> _directory.Dataset:
    """The function and the arguments of its calls as a dataset."""
    pickled, arguments = dumps(function, calls, directory)
    total = sum(map(len, arguments))
    if total > MAX_ARGUMENTS:
        advice = "Push the data as a dataset, name it in `datasets`, and give each call the name of its part"
        raise InvalidDirectory(f"The arguments have {total >> 20} MiB, and may have {MAX_ARGUMENTS >> 20}. {advice}.")
    places, end = [], 0
    for one in arguments:
        places.append((end, end + len(one)))
        end += len(one)
    about = {"python": local_version(), "trusted": trusted, "arguments": places}
    return _directory.of_memory(
        {
            "run.py": Path(_runner.__file__).read_bytes(),
            "function.pickle": pickled,
            "arguments.bin": b"".join(arguments) or b"\0",
            "call.json": json.dumps(about).encode(),
            **dict(_cloudpickle_files()),
        }
    )


def request_with(request: JobRequest, dataset: str) -> JobRequest:
    """The job that calls the function of a dataset."""
    mount: DatasetRequest = {"dataset": dataset, "directory": DIRECTORY}
    return {**request, "command": COMMAND, "datasets": [*request.get("datasets", []), mount]}

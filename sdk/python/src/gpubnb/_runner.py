"""Runs on the machine, in the job: calls the function, and writes its result into `/output` as data.

This file is sent as it is, with the package `cloudpickle` beside it. It needs nothing else but Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

OUTPUT = Path(os.environ.get("GPUBNB_OUTPUT", "/output"))
# The longest texts of an error. They end in this computer's memory at the other side.
MAX_MESSAGE, MAX_TRACEBACK = 4_000, 64_000


def fail(type_name: str, message: str, trace: str) -> None:
    sys.stdout.flush()
    error = {"type": type_name, "message": message[:MAX_MESSAGE], "traceback": trace[-MAX_TRACEBACK:]}
    (OUTPUT / "error.json").write_text(json.dumps(error))
    sys.stderr.write(trace or f"{type_name}: {message}\n")
    sys.exit(1)


def as_json(value: Any) -> Any:
    """The value as JSON keeps it: tuples become lists, and numbers of NumPy plain numbers. Raises `TypeError` for
    others."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic) and not value.dtype.hasobject:
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [as_json(item) for item in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: as_json(item) for key, item in value.items()}
    raise TypeError


def is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic) and not value.dtype.hasobject


def as_array(tensor: Any) -> Any:
    """A tensor of PyTorch as an array. NumPy has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def tensors(value: Any) -> dict[str, Any] | None:
    """The value as arrays by name, if it is a dictionary of arrays or of PyTorch tensors."""
    if type(value) is not dict or not value or not all(type(key) is str for key in value):
        return None
    torch = sys.modules.get("torch")
    is_tensor = [torch is not None and isinstance(item, torch.Tensor) for item in value.values()]
    arrays = {
        key: as_array(item) if found else item for (key, item), found in zip(value.items(), is_tensor, strict=True)
    }
    return arrays if all(map(is_array, arrays.values())) else None


def save_arrays(arrays: dict[str, Any]) -> None:
    try:
        from safetensors.numpy import save_file
    except ImportError:
        import numpy

        numpy.savez(OUTPUT / "result.npz", **arrays)
    else:
        save_file({name: array.copy() for name, array in arrays.items()}, OUTPUT / "result.safetensors")


def save(value: Any, *, trusted: bool) -> None:
    """Writes a result: as JSON, bytes, `npy` or `safetensors`. A pickle only for a reader who trusts this machine."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = as_array(value)
    text = None
    with contextlib.suppress(TypeError):
        text = None if is_array(value) else json.dumps(as_json(value))
    if text is not None:
        (OUTPUT / "result.json").write_text(text)
    elif type(value) in (bytes, bytearray):
        (OUTPUT / "result.bin").write_bytes(value)
    elif is_array(value):
        import numpy

        numpy.save(OUTPUT / "result.npy", value, allow_pickle=False)
    elif (arrays := tensors(value)) is not None:
        save_arrays(arrays)
    elif trusted:
        import cloudpickle

        (OUTPUT / "result.pickle").write_bytes(cloudpickle.dumps(value))
    else:
        kinds = "None, numbers, texts, bytes, lists and dictionaries of these, NumPy arrays, or a dictionary of arrays"
        raise TypeError(
            f"The function returned {type(value).__qualname__}. It may return {kinds}. With trust_results=True it may "
            "return anything, and then this machine can run code on the computer that reads the result."
        )


def main() -> None:
    here = Path(__file__).parent
    call = json.loads((here / "call.json").read_text())
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if own != call["python"]:
        fail("PythonMismatch", f"The image has Python {own}, and the function was made by Python {call['python']}.", "")
    # Lines arrive when they are printed.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    index = int(os.environ.get("GPUBNB_TASK_INDEX", "0"))
    begin, end = call["arguments"][index]
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = pickle.loads((here / "function.pickle").read_bytes())  # noqa: S301 - the consumer's own
        with (here / "arguments.bin").open("rb") as source:
            source.seek(begin)
            args, kwargs = pickle.loads(source.read(end - begin))  # noqa: S301
        save(function(*args, **kwargs), trusted=call["trusted"])
    except BaseException as error:
        try:
            message = str(error)
        except Exception:
            message = "(the exception has no text)"
        fail(type(error).__qualname__, message, traceback.format_exc())


if __name__ == "__main__":
    main()

"""Functions and their results: what travels, and that what a hostile machine sends runs nothing."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpubnb
from gpubnb import _results
from gpubnb._downloads import target, writer
from gpubnb._functions import check_python, default_image, local_version, pack
from gpubnb.models import Artifact


class Attack:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def call(
    tmp_path: Path, function: Any, *args: Any, trusted: bool = False
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Calls a function as a job does, in another process, without the packages of this one."""
    files, output = tmp_path / "call", tmp_path / "output"
    for path, content in pack(function, [(args, {})], trusted=trusted).in_memory.items():
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_bytes(content)
    output.mkdir()
    environment = {**os.environ, "GPUBNB_OUTPUT": str(output), "PYTHONPATH": ""}
    # No text of this package is on the path of the other process.
    ran = subprocess.run(
        [sys.executable, str(files / "run.py")],
        cwd=output,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran, output


def returned(tmp_path: Path, value: Any, *, trusted: bool = False) -> Any:
    ran, output = call(tmp_path, lambda: value, trusted=trusted)
    assert ran.returncode == 0, ran.stderr
    (file,) = output.iterdir()
    return _results.decode(file.name, file.read_bytes(), trusted=trusted)


@pytest.mark.parametrize(
    "value",
    [None, True, 1, -(10**30), 0.1, "hällo\n\x00", [], {}, {"a": [1, {"b": None}]}, b"", b"\x00\xff", [float("inf")]],
)
def test_data_arrives_as_it_was(tmp_path: Path, value: Any) -> None:
    assert returned(tmp_path, value) == value


def test_numbers_of_numpy_in_lists_and_dictionaries_arrive_as_numbers(tmp_path: Path) -> None:
    value = {"loss": np.float64(1.5), "counts": (np.int32(2), [np.bool_(True)])}
    assert returned(tmp_path, value) == {"loss": 1.5, "counts": [2, [True]]}


def test_arrays_by_name_need_no_package_but_numpy(tmp_path: Path) -> None:
    def without_safetensors() -> Any:
        sys.modules["safetensors.numpy"] = None  # type: ignore[assignment]
        return {"a": np.arange(3), "b": np.zeros((2, 2), np.float32)}

    ran, output = call(tmp_path, without_safetensors)
    assert ran.returncode == 0, ran.stderr
    content = (output / "result.npz").read_bytes()
    arrays = _results.decode("result.npz", content, trusted=False)
    assert (sorted(arrays), arrays["a"].tolist(), arrays["b"].dtype) == (["a", "b"], [0, 1, 2], np.float32)
    packed = BytesIO()
    np.savez_compressed(packed, a=np.zeros(1 << 20))
    with pytest.raises(gpubnb.InvalidResult, match="packed"):
        _results.decode("result.npz", packed.getvalue(), trusted=False)
    with pytest.raises(gpubnb.InvalidResult, match="large results"):
        _results.decode("result.json", b" " * (_results.MAX_JSON_BYTES + 1), trusted=False)


def test_each_end_of_a_function_leaves_its_text(tmp_path: Path) -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def raises() -> None:
        raise Silent

    for number, (function, expected) in enumerate([(raises, "no text"), (lambda: sys.exit("stopped"), "stopped")]):
        (tmp_path / str(number)).mkdir()
        ran, output = call(tmp_path / str(number), function)
        assert ran.returncode == 1
        assert expected in _results.remote_error("j", (output / "error.json").read_bytes()).message


def test_tuples_arrive_as_lists(tmp_path: Path) -> None:
    assert returned(tmp_path, (1, ("a",))) == [1, ["a"]]


def test_arrays_arrive_with_their_type_and_shape(tmp_path: Path) -> None:
    for number, array in enumerate([np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 4)), np.float32(2.5)]):
        (tmp_path / str(number)).mkdir()
        arrived = returned(tmp_path / str(number), array)
        assert arrived.dtype == array.dtype
        np.testing.assert_array_equal(arrived, array)
    (tmp_path / "many").mkdir()
    many = returned(tmp_path / "many", {"a": np.ones(3), "b": np.arange(4)[::2]})
    assert sorted(many) == ["a", "b"]
    np.testing.assert_array_equal(many["b"], [0, 2])


@pytest.mark.parametrize("value", [{1: "a"}, {"a": object}, [b"x"], {1, 2}, 1j, np.array([object()])])
def test_what_is_no_data_is_an_error_of_the_function_unless_the_reader_trusts_the_machine(
    tmp_path: Path, value: Any
) -> None:
    ran, output = call(tmp_path, lambda: value)
    assert ran.returncode == 1
    error = _results.remote_error("j", (output / "error.json").read_bytes())
    assert (error.type_name, "trust_results=True" in error.message) == ("TypeError", True)
    assert not (output / "result.pickle").exists()


def test_with_trust_anything_may_come_back(tmp_path: Path) -> None:
    assert returned(tmp_path, {1, 2j}, trusted=True) == {1, 2j}


def test_an_exception_comes_back_as_text(tmp_path: Path) -> None:
    def fails(number: int) -> int:
        return 1 // number

    ran, output = call(tmp_path, fails, 0)
    assert ran.returncode == 1
    assert "ZeroDivisionError" in ran.stderr
    error = _results.remote_error("j", (output / "error.json").read_bytes())
    assert isinstance(error, gpubnb.RemoteError)
    assert error.type_name == "ZeroDivisionError"
    assert "in fails" in error.traceback


def test_another_version_of_python_does_not_unpickle(tmp_path: Path) -> None:
    files = pack(lambda: 1, [((), {})], trusted=False).in_memory
    about = {**json.loads(files["call.json"]), "python": "2.7"}
    for path, content in {**files, "call.json": json.dumps(about).encode(), "function.pickle": b"no pickle"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    environment = {**os.environ, "GPUBNB_OUTPUT": str(tmp_path)}
    ran = subprocess.run([sys.executable, str(tmp_path / "run.py")], env=environment, capture_output=True, check=False)
    assert ran.returncode == 1
    assert json.loads((tmp_path / "error.json").read_text())["type"] == "PythonMismatch"


@pytest.mark.parametrize("name", _results.RESULTS)
def test_a_pickle_under_any_name_runs_nothing(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "attacked"
    content = pickle.dumps(Attack(marker))
    if name == "result.bin":
        assert _results.decode(name, content, trusted=False) == content
    else:
        with pytest.raises(gpubnb.InvalidResult):
            _results.decode(name, content, trusted=False)
    assert not marker.exists()


def hostile_arrays(marker: Path) -> list[bytes]:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }"
    huge = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with_code = (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"{'descr':'|O','fortran_order':False,'shape':(1,),}".ljust(60)
    )
    return [huge, with_code + pickle.dumps((Attack(marker),)), b"\x93NUMPY\x09\x00", b"", b"PK\x03\x04"]


def test_hostile_arrays_run_nothing_and_take_no_memory(tmp_path: Path) -> None:
    marker = tmp_path / "attacked"
    for content in hostile_arrays(marker):
        with pytest.raises(gpubnb.InvalidResult):
            _results.decode("result.npy", content, trusted=False)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"1" * 5_000, b"\xff", b"NaN2"])
def test_damaged_json_is_an_error_of_this_package(content: bytes) -> None:
    with pytest.raises(gpubnb.InvalidResult):
        _results.decode("result.json", content, trusted=False)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"type": 1, "message": "", "traceback": ""}', b"[" * 100_000])
def test_a_damaged_error_is_an_error_of_this_package(content: bytes) -> None:
    with pytest.raises(gpubnb.InvalidResult):
        raise _results.remote_error("j", content)


def test_the_text_of_an_error_cannot_control_a_terminal() -> None:
    content = json.dumps({"type": "E\x1b[2J", "message": "a\rb", "traceback": "line\n\x07\u202eend"})
    error = _results.remote_error("j", content.encode())
    assert not any(sign in str(error) for sign in "\x1b\r\x07\u202e")
    assert "line\n" in str(error)


def test_two_results_are_refused() -> None:
    files = [Artifact(path=name, bytes=1, sha256="x") for name in ("result.json", "result.bin", "other")]
    with pytest.raises(gpubnb.InvalidResult, match="2 results"):
        _results.find(files, _results.RESULTS)
    assert _results.find(files[2:], _results.RESULTS) is None


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../../b", "a//b", "./a", "a/", "", ".", "..", "a\\b", "a\x00b", "c:a", "a\u202eb", "a\nb"]
)
def test_a_file_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(gpubnb.UnsafePath):
        target(tmp_path, name)


def test_no_file_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/tmp")
    with pytest.raises(gpubnb.UnsafePath, match="link"):
        target(tmp_path, "link/a")
    assert target(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"


def test_a_download_is_whole_or_not_there(tmp_path: Path) -> None:
    file = Artifact(path="a", bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
    for content in (b"abd", b"ab", b"abcd"):
        with pytest.raises(gpubnb.ChangedFile), writer(tmp_path / "a", file) as opened:
            opened.write(content)
        assert not list(tmp_path.iterdir())
    with writer(tmp_path / "a", file) as opened:
        opened.write(b"abc")
    assert (tmp_path / "a").read_bytes() == b"abc"


@pytest.fixture
def client() -> gpubnb.Client:
    return gpubnb.Client("http://127.0.0.1:9", "secret-token")


def test_functions_that_use_themselves_and_each_other_travel_without_the_client(
    client: gpubnb.Client, tmp_path: Path
) -> None:
    @client.function(python=local_version(), image="a:1")
    def double(number: int) -> int:
        return 2 * number

    @client.function(python=local_version(), image="a:1")
    def fibonacci(number: int) -> int:
        return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2) + double(0)

    ran, output = call(tmp_path, fibonacci, 10)
    assert ran.returncode == 0, ran.stderr
    assert json.loads((output / "result.json").read_text()) == 55
    assert b"secret-token" not in b"".join(pack(fibonacci, [((), {})], trusted=False).in_memory.values())


def test_the_token_never_travels(client: gpubnb.Client) -> None:
    login, wallet = client.transport.login, lambda: client.wallet()
    for function in (lambda: login.token, wallet):
        with pytest.raises(TypeError, match="never sent"):
            pack(function, [((), {})], trusted=False)


def test_classes_of_an_own_module_travel_with_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings_of_mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Settings:\n    rate: float\n"
        "def train(settings):\n    assert isinstance(settings, Settings)\n    return settings.rate\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import settings_of_mine  # type: ignore[import-not-found]

    for number, function in enumerate([settings_of_mine.train, lambda settings: settings.rate]):
        (tmp_path / str(number)).mkdir()
        ran, output = call(tmp_path / str(number), function, settings_of_mine.Settings(0.5))
        assert ran.returncode == 0, ran.stderr
        assert json.loads((output / "result.json").read_text()) == 0.5


def test_what_cannot_run_on_a_machine_is_refused_at_once(client: gpubnb.Client) -> None:
    decorate = client.function(image="a:1", python=local_version())

    async def waits() -> None:
        pass

    def yields() -> Any:
        yield 1

    for function in (waits, yields):
        with pytest.raises(TypeError, match="return its result"):
            decorate(function)

    class Model:
        method = decorate(lambda self: self)

    with pytest.raises(TypeError, match="outside of the class"):
        Model().method  # noqa: B018
    with pytest.raises(gpubnb.InvalidDirectory, match="dataset"):
        pack(len, [((b"x" * (129 << 20),), {})] * 2, trusted=False)


def test_an_image_with_another_python_is_refused_before_anything_is_sent() -> None:
    check_python(default_image(), None)
    check_python(f"docker.io/library/python:{local_version()}.1-alpine@sha256:00", None)
    check_python("my/tool:3.1", local_version())
    for image, python in [("python:2.7", None), ("my/tool:1", "2.7"), ("my/tool:3.12", None), ("python", None)]:
        with pytest.raises(gpubnb.PythonMismatch):
            check_python(image, python)
    with pytest.raises(gpubnb.PythonMismatch):
        gpubnb.Client("http://127.0.0.1:9", "t").function(image="python:2.7")(len)

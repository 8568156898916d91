"""The package against a running market with real machines."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import gpubnb
from gpubnb import models
from gpubnb._ids import new_id

pytestmark = pytest.mark.market

GUIDE = Path(__file__).parents[3] / "docs" / "python.md"
QUICK: dict[str, Any] = {"time_seconds": 60, "max_attempts": 1}


def test_the_examples_of_the_guide_run(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The guide names a public image. The tests have no internet, so they use one with the same content.
    monkeypatch.setattr("gpubnb._sync.function.default_image", lambda: image)
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text().replace("python:3.12-slim", image)
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(GUIDE), "exec"), names)  # noqa: S102 - the guide's own code
    printed = capsys.readouterr().out
    assert "42\n" in printed
    assert "b'6'" in printed
    assert str([2, 3, 5, 7, 11, 13, 17, 19, 23, 29]) in printed
    assert "memory" in printed
    assert (tmp_path / "results" / "count.txt").read_text() == "6"
    names["client"].close()


def test_a_failed_job_is_an_error_with_its_reason(client: gpubnb.Client, image: str) -> None:
    job = client.run("sh -c 'echo no >&2; exit 3'", image=image, **QUICK)
    with pytest.raises(gpubnb.JobFailed) as raised:
        job.wait(timeout=60)
    assert (raised.value.reason, raised.value.exit_code) == ("NonZeroExit", 3)
    assert [(line.text, line.stream) for line in job.logs()] == [("no", "stderr")]
    assert job.receipt.cost >= 0
    with pytest.raises(FileNotFoundError):
        job.read("missing")


def test_lines_come_as_they_are_printed_and_each_once(client: gpubnb.Client, image: str) -> None:
    code = "import time\nfor n in range(20): print(n, flush=True); time.sleep(0.05)"
    job = client.run(["python3", "-c", code], image=image, **QUICK)
    assert [line.text for line in job.logs(follow=True)] == [str(number) for number in range(20)]
    assert job.wait(timeout=60).state == "Completed"


def test_a_job_can_be_cancelled_and_is_found_again_by_its_id(client: gpubnb.Client, image: str) -> None:
    name = f"sleep {uuid.uuid4()}"
    job = client.run("sleep 60", image=image, name=name, gpu_model="H999", budget_usd="0.10", **QUICK)
    with pytest.raises(gpubnb.WaitTimeout):
        job.wait(timeout=0.5)
    assert client.job(job.id).state == "Queued"
    assert [found.id for found in client.jobs(text=name)] == [job.id]
    job.cancel()
    with pytest.raises(gpubnb.JobCancelled):
        job.wait(timeout=60)
    assert next(iter(job.events())).event == "JobSubmitted"


def test_one_id_is_one_job(client: gpubnb.Client, image: str) -> None:
    chosen = new_id()
    first = client.run("true", image=image, job=chosen, gpu_model="H999", budget_usd="0.10", **QUICK)
    again = client.run("true", image=image, job=chosen, gpu_model="H999", budget_usd="0.10", **QUICK)
    assert first.id == again.id == chosen
    with pytest.raises(gpubnb.Conflict) as raised:
        client.run("false", image=image, job=chosen, gpu_model="H999", budget_usd="0.10", **QUICK)
    assert raised.value.title == "IdReused"
    first.cancel()


def test_a_refusal_comes_before_the_upload(client: gpubnb.Client, image: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(str(uuid.uuid4()))
    before = client.datasets.list()
    with pytest.raises(gpubnb.InvalidRequest):
        client.run("true", image=image, directory=tmp_path, memory_mib=1)
    with pytest.raises(gpubnb.InsufficientFunds):
        client.run("true", image=image, directory=tmp_path, budget_usd="9999")
    assert client.datasets.list() == before


def test_the_package_and_the_client_make_the_same_dataset(client: gpubnb.Client, tmp_path: Path) -> None:
    for path in ("z", "a/ü", "a.b/c", "a/run.sh", ".hidden", "skipped/x", "a/__init__.py", "a.b/__init__.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("" if "init" in path else path)
    (tmp_path / "a/run.sh").chmod(0o755)
    (tmp_path / "a/link").symlink_to("../z")
    (tmp_path / ".gpubnbignore").write_text("skipped")
    stored = client.datasets.push(tmp_path, "same")
    program = os.environ["GPUBNB_TEST_CLIENT"]
    command = [program, "data", "push", str(tmp_path), "--json"]
    pushed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(pushed.stdout)["dataset"] == stored.dataset
    assert [file.path for file in client.datasets.info("same").files] == [
        ".gpubnbignore", ".hidden", "a.b/__init__.py", "a.b/c", "a/__init__.py", "a/run.sh", "a/ü", "z",
    ]  # fmt: skip
    client.datasets.delete(stored.dataset[:12])
    with pytest.raises(gpubnb.NotFound):
        client.datasets.info("same")


def test_an_error_of_a_function_comes_back_and_the_other_calls_go_on(client: gpubnb.Client, image: str) -> None:
    @client.function(image=image, **QUICK)
    def inverse(number: int) -> float:
        print("called with", number)
        return 1 / number

    assert inverse(4) == inverse.remote(4) == 0.25
    with pytest.raises(gpubnb.RemoteError, match="ZeroDivisionError") as raised:
        inverse.remote(0)
    assert "return 1 / number" in raised.value.traceback or "in inverse" in raised.value.traceback
    batch = inverse.map([1, 0, 2])
    first, error, last = batch.results(return_exceptions=True)
    assert (first, last) == (1.0, 0.5)
    assert isinstance(error, gpubnb.RemoteError)
    with pytest.raises(gpubnb.BatchFailed, match="2 of 3"):
        batch.wait(timeout=60)
    (failed,) = batch.tasks(state="Failed")
    # The lines of stdout and those of stderr arrive on two ways.
    assert [line.text for line in batch.job(failed).logs() if line.stream == "stdout"] == ["called with 0"]


def test_a_retry_reads_results_as_the_first_try_did(client: gpubnb.Client, image: str) -> None:
    @client.function(image=image, trust_results=True, **QUICK)
    def odd(number: int) -> set[int]:
        assert number % 2, "even"
        return {number}

    batch = odd.map([1, 2, 3], max_failures=0)
    found = list(batch.results(return_exceptions=True))
    assert isinstance(found[1], gpubnb.GpubnbError)
    with pytest.raises(gpubnb.BatchFailed):
        batch.wait(timeout=60)
    again = batch.retry()
    for result in again.results(return_exceptions=True):
        assert isinstance(result, set | gpubnb.RemoteError | gpubnb.JobCancelled)
    assert again.wait(timeout=60, check=False).tasks == 3 - sum(isinstance(result, set) for result in found)
    same = client.function_batch(batch.id, trust_results=True)
    assert [type(result) for result in same.results(return_exceptions=True)] == list(map(type, found))


def test_a_hostile_result_runs_nothing_here(client: gpubnb.Client, image: str, tmp_path: Path) -> None:
    marker = tmp_path / "attacked"
    code = (
        "import os, pathlib, pickle\n"
        f"class Attack:\n  def __reduce__(self): return os.mkdir, ({str(marker)!r},)\n"
        "pathlib.Path('/output/NAME').write_bytes(pickle.dumps(Attack()))"
    )
    for name in ("result.pickle", "result.npy", "result.safetensors", "result.json"):
        job = client.run(["python3", "-c", code.replace("NAME", name)], image=image, **QUICK)
        job.wait(timeout=60)
        with pytest.raises(gpubnb.InvalidResult):
            job.result()
    assert not marker.exists()
    # With trust, the attack succeeds: this shows that the test would see one.
    last = client.run(["python3", "-c", code.replace("NAME", "result.pickle")], image=image, **QUICK)
    last.wait(timeout=60)
    last.result(trust_results=True)
    assert marker.exists()


def test_a_function_of_an_own_module_travels_with_its_directory(
    client: gpubnb.Client, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helpers_of_mine.py").write_text("def double(number):\n    return 2 * number\n")
    (tmp_path / "work_of_mine.py").write_text(
        "def work(number):\n    import helpers_of_mine\n    return helpers_of_mine.double(number)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import work_of_mine  # type: ignore[import-not-found]

    function = client.function(image=image, directory=tmp_path, **QUICK)(work_of_mine.work)
    assert function.remote(21) == 42


def test_a_mismatch_of_versions_is_said_before_anything_is_uploaded(client: gpubnb.Client) -> None:
    before = client.datasets.list()
    with pytest.raises(gpubnb.PythonMismatch, match=r"2\.7"):
        client.function(image="python:2.7")(len)
    assert client.datasets.list() == before


async def test_many_jobs_at_once_without_blocking(image: str) -> None:
    async with gpubnb.AsyncClient() as client:

        async def double(number: int) -> str:
            job = await client.run(["python3", "-c", f"print({number} * 2)"], image=image, **QUICK)
            await job.wait(timeout=120)
            (line,) = [line.text async for line in job.logs()]
            return line

        assert await asyncio.gather(*map(double, range(6))) == ["0", "2", "4", "6", "8", "10"]

        @client.function(image=image, **QUICK)
        def add(one: int, other: int) -> int:
            return one + other

        batch = await add.starmap([(1, 2), (3, 4)])
        assert [result async for result in batch] == [3, 7]
        assert await add.remote(1, other=1) == 2


def test_many_functions_at_once(client: gpubnb.Client, image: str) -> None:
    @client.function(image=image, **QUICK)
    def double(number: int) -> int:
        return 2 * number

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(double.remote, range(8))) == [2 * number for number in range(8)]


def test_answers_have_no_field_that_the_models_do_not_know(client: gpubnb.Client, image: str) -> None:
    job = client.run("python -V", image=image, **QUICK)
    job.wait(timeout=60)
    answers: list[Any] = [job.view, job.receipt, client.account(), client.wallet(), *client.templates()]
    answers += [*client.machines(), *job.events(), client.quote("true", image=image)]
    for answer in answers:
        assert not answer.model_extra, answer


def test_the_installed_package_is_a_wheel_with_its_types() -> None:
    root = Path(models.__file__).parent
    assert root.is_relative_to(sys.prefix)
    assert (root / "py.typed").exists()

"""Requests: what is sent again, what is not, and where the token goes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import gpubnb
from gpubnb._pauses import Pauses, Retries
from gpubnb._sync.transport import Transport
from gpubnb.models import Artifact, JobDetails

from .local_server import Answer, serve


def problem(status: int, title: str) -> Answer:
    body = {"status": status, "title": f"{title}\x1b", "detail": "Why.\x1b[2J", "field": "budget"}
    return Answer(status, json.dumps(body).encode())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Retries, "FIRST", 0.01)
    monkeypatch.setattr(Retries, "LONGEST", 0.02)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("GPUBNB_URL", "GPUBNB_TOKEN", "GPUBNB_CA"):
        monkeypatch.delenv(name, raising=False)


def test_a_job_is_submitted_once_under_one_id_however_often_the_request_is_sent() -> None:
    submitted = Answer(201, b'{"job": "x", "seq": 1}')
    with serve([problem(503, "Unavailable"), Answer(breaks=True), submitted]) as (url, seen):
        gpubnb.Client(url, "t").run("noop", image="a:1")
    ids = {json.loads(request.body)["job"] for request in seen}
    assert len(seen) == 3
    assert len(ids) == 1
    assert seen[0].headers["authorization"] == "Bearer t"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, gpubnb.Unauthorized),
        (402, gpubnb.InsufficientFunds),
        (403, gpubnb.Forbidden),
        (404, gpubnb.NotFound),
        (409, gpubnb.Conflict),
        (422, gpubnb.InvalidRequest),
        (507, gpubnb.NoRoom),
    ],
)
def test_a_refusal_is_final_and_has_a_type_of_its_own(status: int, kind: type[gpubnb.MarketError]) -> None:
    with serve([problem(status, "Name")]) as (url, seen), pytest.raises(kind) as raised:
        gpubnb.Client(url, "t").quote("noop", image="a:1")
    assert len(seen) == 1
    assert (raised.value.title, raised.value.field, raised.value.status) == ("Name\ufffd", "budget", status)
    assert "\x1b" not in str(raised.value)


def test_a_market_that_fails_or_asks_to_wait_for_ever_is_given_up() -> None:
    with serve([problem(500, "Internal")]) as (url, seen), pytest.raises(gpubnb.MarketFailure):
        gpubnb.Client(url, "t").wallet()
    assert len(seen) == Retries.MOST
    limited = Answer(429, b"{}", {"retry-after": "0"})
    with serve([limited]) as (url, seen), pytest.raises(gpubnb.TooManyRequests):
        gpubnb.Client(url, "t").wallet()
    assert len(seen) == Retries.MOST
    with pytest.raises(gpubnb.MarketUnreachable, match="GPUBNB_URL"):
        gpubnb.Client("http://127.0.0.1:9", "t").wallet()


def test_answers_that_are_no_json_of_the_market_are_errors_of_this_package() -> None:
    with serve([Answer(404, b"<html>")]) as (url, _), pytest.raises(gpubnb.NotFound, match="no reason"):
        gpubnb.Client(url, "t").wallet()
    with serve([Answer(200, b"<html>")]) as (url, _), pytest.raises(gpubnb.MarketError, match="no JSON"):
        gpubnb.Client(url, "t").wallet()


def test_the_token_follows_no_redirection() -> None:
    with (
        serve([Answer()]) as (elsewhere, reached),
        serve([Answer(302, b"", {"location": f"{elsewhere}/api/v1/wallet"})]) as (url, _),
        pytest.raises(gpubnb.MarketError),
    ):
        gpubnb.Client(url, "t").wallet()
    assert not reached


def test_a_saved_token_goes_only_to_the_market_that_gave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "gpubnb" / "login.json"
    saved.parent.mkdir()
    saved.write_text(json.dumps({"url": "https://market.example", "token": "saved"}))
    login = gpubnb.Client().transport.login
    assert (login.url, login.token) == ("https://market.example", "saved")
    assert "saved" not in repr(login)
    with pytest.raises(gpubnb.NotLoggedIn, match="gpubnb login"):
        gpubnb.Client("https://other.example")
    monkeypatch.setenv("GPUBNB_URL", "https://third.example/")
    monkeypatch.setenv("GPUBNB_TOKEN", "mine")
    login = gpubnb.Client().transport.login
    assert (login.url, login.token) == ("https://third.example", "mine")
    with pytest.raises(gpubnb.GpubnbError, match="https://market"):
        gpubnb.Client("market", "t")
    saved.write_text("[")
    monkeypatch.delenv("GPUBNB_TOKEN")
    with pytest.raises(gpubnb.GpubnbError, match="log in again"):
        gpubnb.Client()


def test_a_market_that_has_answered_is_waited_for_longer() -> None:
    answers = [Answer(), *[Answer(breaks=True)] * 12, Answer(200, b'{"a": 1}')]
    with serve(answers) as (url, seen):
        client = gpubnb.Client(url, "t")
        client.request("GET", "/market")
        assert client.request("GET", "/market") == {"a": 1}
    assert len(seen) == 14


def test_a_job_whose_answer_is_lost_can_be_submitted_again_under_its_id() -> None:
    with serve([Answer(breaks=True)]) as (url, seen), pytest.raises(gpubnb.MarketUnreachable) as raised:
        gpubnb.Client(url, "t").run("noop", image="a:1")
    job = json.loads(seen[0].body)["job"]
    assert raised.value.submitted == job
    assert job in str(raised.value)


def test_a_request_that_must_not_be_repeated_is_sent_once() -> None:
    with serve([Answer(breaks=True)]) as (url, seen), pytest.raises(gpubnb.MarketUnreachable):
        gpubnb.Client(url, "t").request("POST", "/jobs", body={})
    assert len(seen) == 1
    with serve([Answer(breaks=True), Answer()]) as (url, seen):
        gpubnb.Client(url, "t").request("POST", "/jobs", body={}, headers={"Idempotency-Key": gpubnb.new_id()})
    assert len(seen) == 2


def test_an_upload_that_breaks_is_sent_again_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    missing = Answer(200, b'{"stored": null, "missing": [{"first": 0, "count": 1}]}')
    stored = {"dataset": "0" * 64, "files": 1, "bytes": 3, "uploaded_at": "2026-01-01T00:00:00Z"}
    stored["kept_until"] = stored["uploaded_at"]
    done = Answer(200, json.dumps({"stored": stored, "missing": []}).encode())
    busy = Answer(409, b'{"title": "InProgress"}')
    with serve([missing, busy, Answer(429, b"{}"), Answer(204, b""), done]) as (url, seen):
        gpubnb.Client(url, "t").datasets.push(tmp_path)
    assert [len(request.body) for request in seen[1:4]] == [3 << 20] * 3


def test_a_download_that_breaks_is_begun_again(tmp_path: Path) -> None:
    file = Artifact(path="a", bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
    shown = JobDetails.model_construct(job="j", state="Completed", settled=True, seq=1, outputs=[file])
    with serve([Answer(200, b"ab", breaks=True), problem(503, "Unavailable"), Answer(200, b"abc")]) as (url, _):
        client = gpubnb.Client(url, "t")
        job = gpubnb.Job(client.transport, "j")
        job.refresh = lambda: shown  # type: ignore[method-assign]
        assert job.read("a") == b"abc"
        (tmp_path / "a").write_text("mine")
        with pytest.raises(gpubnb.UnsafePath, match="overwrite"):
            job.download(tmp_path)
        assert (tmp_path / "a").read_text() == "mine"
        job.download(tmp_path, overwrite=True)
    assert (tmp_path / "a").read_text() == "abc"


@pytest.mark.parametrize("token", ["secret-token\n", "  secret-token"])
def test_spaces_around_a_token_do_not_matter(token: str) -> None:
    with serve([Answer()]) as (url, seen):
        gpubnb.Client(url, token).request("GET", "/market")
    assert seen[0].headers["authorization"] == "Bearer secret-token"


@pytest.mark.parametrize("token", ["secret\ntoken", "sécret-token"])
def test_a_token_that_is_none_is_not_shown(token: str) -> None:
    with pytest.raises(gpubnb.NotLoggedIn) as raised:
        gpubnb.Client("http://127.0.0.1:9", token)
    assert "token" in str(raised.value)
    assert token not in str(raised.value)


def test_a_line_may_have_any_sign() -> None:
    text = "a\u2028b\x85c"
    stream = f"event: line\nid: 1\ndata: {json.dumps(text, ensure_ascii=False)}\n\nevent: end\ndata: 0\n\n"
    with serve([Answer(200, stream.encode(), {"content-type": "text/event-stream"})]) as (url, _):
        assert next(iter(Transport(url, "t", None, 5.0).events("/x"))) == ("line", text)


def test_a_stream_that_breaks_goes_on_after_its_last_event() -> None:
    first = b": hello\n\nevent: line\nid: 7\ndata: 1\n\nevent: line\nid: 8\ndata: 2\n\nevent: li"
    rest = b"event: line\nid: 9\ndata: 3\n\nevent: end\ndata: {}\n\n"
    stream = {"content-type": "text/event-stream"}
    answers = [Answer(200, first, stream, breaks=True), problem(503, "Unavailable"), Answer(200, rest, stream)]
    with serve(answers) as (url, seen):
        events = []
        for name, data in Transport(url, "t", None, 5.0).events("/x"):
            if name == "end":
                break
            events.append(data)
    assert events == [1, 2, 3]
    assert [request.headers.get("last-event-id") for request in seen] == [None, "8", "8"]


def test_a_stream_without_events_is_given_up() -> None:
    stream = Answer(200, b": nothing\n\n", {"content-type": "text/event-stream"})
    with serve([stream]) as (url, seen), pytest.raises(gpubnb.MarketUnreachable):
        list(Transport(url, "t", None, 5.0).events("/x"))
    assert len(seen) == Retries.MOST


def test_a_time_limit_ends_the_wait_and_not_the_job() -> None:
    pauses = Pauses(0.0, "The job")
    with pytest.raises(gpubnb.WaitTimeout, match="It goes on"):
        pauses.next()
    assert Pauses(None, "x").next() == Pauses.SHORTEST

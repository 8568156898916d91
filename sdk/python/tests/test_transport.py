"""Requests: what is sent again, what is not, and where the token goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gpubnb
from gpubnb._pauses import Pauses, Retries
from gpubnb._sync.transport import Transport

from .local_server import Answer, serve


def problem(status: int, title: str) -> Answer:
    body = {"status": status, "title": title, "detail": "Why.\x1b[2J", "field": "budget"}
    return Answer(status, json.dumps(body).encode())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Retries, "FIRST", 0.01)
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
    assert (raised.value.title, raised.value.field, raised.value.status) == ("Name", "budget", status)
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

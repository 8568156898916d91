"""Requests to the market, with tries, time limits and errors."""

from __future__ import annotations

import json
import os
import ssl
from typing import TYPE_CHECKING, Any, NoReturn

import httpx
from httpx_sse import ServerSentEvent, aconnect_sse

from .._calls import AsyncLock, async_closing, async_sleep
from .._login import Login, find_login
from .._pauses import Retries
from ..errors import MarketError, MarketUnreachable, market_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

# The longest silence of a stream, and of an upload. The market sends something every 15 seconds.
SILENCE = 60.0


class AsyncTransport:
    """A connection to one market, as one account."""

    def __init__(self, url: str | None, token: str | None, ca: str | os.PathLike[str] | None, timeout: float) -> None:
        self.login: Login = find_login(url, token)
        ca = ca or os.environ.get("GPUBNB_CA")
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=ca) if ca else True
        if self.login.url.startswith("http://"):
            verify = False
        self._http = httpx.AsyncClient(
            base_url=f"{self.login.url}/api/v1",
            headers={"authorization": f"Bearer {self.login.token}"},
            timeout=httpx.Timeout(timeout, connect=5.0),
            # A redirection could lead the token elsewhere.
            follow_redirects=False,
            verify=verify,
        )
        self._has_answered = False
        # The market takes one upload of an account at a time.
        self.uploading = AsyncLock()

    def __reduce__(self) -> NoReturn:
        self.login.__reduce__()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: bytes | None = None,
        pieces: Callable[[], Iterable[bytes]] | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        repeat: bool = True,
    ) -> httpx.Response:
        """Sends a request until there is an answer. One that may not be sent twice without harm has `repeat=False`.

        The body is `body` as JSON, `content`, or `pieces`: a function that gives the bytes anew for each try.
        """
        options: dict[str, Any] = {"params": {key: value for key, value in (params or {}).items() if value is not None}}
        options["headers"] = dict(headers or {})
        if body is not None:
            options["content"] = json.dumps(body).encode()
            options["headers"]["content-type"] = "application/json"
        if content is not None:
            options["content"] = content
        if timeout is not None:
            options["timeout"] = httpx.Timeout(timeout, connect=5.0)
        retries = self._retries()
        while True:
            pause: float | None
            if pieces is not None:
                options["content"] = _stream(pieces())
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                pause = self._pause_after(error, retries, repeat=repeat)
            else:
                self._has_answered = True
                pause = retries.after_answer(_status(response), response.headers.get("retry-after"))
                if pause is None or not repeat:
                    return _accepted(response)
            await async_sleep(pause)

    def _retries(self) -> Retries:
        return Retries(has_answered=self._has_answered)

    def _pause_after(self, error: httpx.TransportError, retries: Retries, *, repeat: bool = True) -> float:
        """The pause after a request without an answer. Raises `MarketUnreachable` if there is no other try."""
        pause = None
        if not isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            pause = retries.after_failure(connected=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout))
        if pause is None or not repeat:
            advice = "Is this the market's address? The argument `url` or GPUBNB_URL names another."
            why = f"{self.login.url} does not answer ({type(error).__name__}). {advice}"
            raise MarketUnreachable(why) from None
        return pause

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """The answer to a request, as JSON."""
        response = await self.request(method, path, **options)
        try:
            return response.json()
        except ValueError as error:
            raise MarketError(response.status_code, "BadAnswer", "The answer is no JSON. Is it a market?") from error

    async def rows(self, path: str, params: Mapping[str, Any]) -> AsyncIterator[Any]:
        """The rows of a list, page after page."""
        cursor: Any = None
        while True:
            page = await self.json("GET", path, params={**params, "cursor": cursor})
            for row in page["rows"]:
                yield row
            cursor = page["next"]
            if cursor is None:
                return

    async def download(self, path: str, receive: Callable[[], Callable[[bytes], None]]) -> None:
        """Gives the pieces of a body to a receiver. Each try has a receiver of its own, which `receive` makes."""
        retries = self._retries()
        while True:
            try:
                async with self._http.stream("GET", path) as response:
                    pause = retries.after_answer(response.status_code, response.headers.get("retry-after"))
                    if not response.is_success and pause is None:
                        await response.aread()
                    if pause is None:
                        _accepted(response)
                        receiver = receive()
                        async for piece in response.aiter_bytes():
                            receiver(piece)
                        return
            except httpx.TransportError as error:
                pause = self._pause_after(error, retries)
            await async_sleep(pause)

    async def events(self, path: str) -> AsyncIterator[tuple[str, Any]]:
        """The events of a stream: their names and their data. A stream that breaks is opened again, and goes on after
        its last event. The caller leaves at the event that it takes for the last."""
        last, retries = "", self._retries()
        timeout = httpx.Timeout(SILENCE, connect=5.0)
        while True:
            pause: float | None = None
            try:
                headers = {"last-event-id": last} if last else {}
                async with aconnect_sse(self._http, "GET", path, headers=headers, timeout=timeout) as source:
                    response = source.response
                    pause = retries.after_answer(response.status_code, response.headers.get("retry-after"))
                    if not response.is_success and pause is None:
                        await response.aread()
                        _accepted(response)
                    if response.is_success:
                        self._has_answered = True
                        async with async_closing(source.aiter_sse()) as events:
                            async for event in events:
                                last, retries = event.id or last, self._retries()
                                if event.data:
                                    yield event.event, _data(event)
                        pause = retries.after_failure(connected=True)
            except httpx.TransportError as error:
                pause = self._pause_after(error, retries)
            if pause is None:
                raise MarketUnreachable(f"{path} ends again and again without an event.")
            await async_sleep(pause)


async def _stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _data(event: ServerSentEvent) -> Any:
    try:
        return event.json()
    except ValueError as error:
        raise MarketError(200, "BadAnswer", "An event of the stream is no JSON.") from error


def _status(response: httpx.Response) -> int:
    """The status of an answer. While an earlier try of the same upload goes on, the market is busy."""
    if response.status_code == 409 and b"InProgress" in response.content[:1_000]:
        return 503
    return response.status_code


def _accepted(response: httpx.Response) -> httpx.Response:
    """The answer, if its status is a success."""
    if response.is_success:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = None
    raise market_error(response.status_code, problem if isinstance(problem, dict) else {})

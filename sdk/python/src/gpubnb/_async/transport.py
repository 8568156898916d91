"""Requests to the market, with tries, time limits and errors."""

from __future__ import annotations

import json
import os
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from httpx_sse import aconnect_sse

from .._calls import async_sleep
from .._login import Login, find_login
from .._pauses import Retries
from ..errors import MarketError, MarketUnreachable, market_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

# The longest silence of a stream. The market sends something every 15 seconds.
STREAM_SILENCE = 60.0
# The largest answer that is read into memory.
MAX_ANSWER = 64 << 20


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

    async def aclose(self) -> None:
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        """Sends a request that may be repeated without harm, until there is an answer."""
        options: dict[str, Any] = {"params": {key: value for key, value in (params or {}).items() if value is not None}}
        options["headers"] = dict(headers or {})
        if body is not None:
            options["content"] = json.dumps(body).encode()
            options["headers"]["content-type"] = "application/json"
        if content is not None:
            options["content"] = content
        if timeout is not None:
            options["timeout"] = httpx.Timeout(timeout, connect=5.0)
        retries = Retries()
        while True:
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                pause = retries.after_failure(
                    connected=not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                )
                if pause is None:
                    raise self._unreachable(error) from error
            else:
                pause = retries.after_answer(response.status_code, response.headers.get("retry-after"))
                if pause is None:
                    return _accepted(response)
            await async_sleep(pause)

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

    @asynccontextmanager
    async def download(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of an answer, in pieces."""
        try:
            async with self._http.stream("GET", path) as response:
                if not response.is_success:
                    await response.aread()
                _accepted(response)
                yield response.aiter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def events(self, path: str) -> AsyncIterator[tuple[str, Any]]:
        """The events of a stream: their names and their data. A stream that breaks is opened again, and goes on after
        its last event. The caller leaves at the event that it takes for the last."""
        last, retries = "", Retries()
        timeout = httpx.Timeout(STREAM_SILENCE, connect=5.0)
        while True:
            pause: float | None = retries.FIRST
            try:
                headers = {"last-event-id": last} if last else {}
                async with aconnect_sse(self._http, "GET", path, headers=headers, timeout=timeout) as source:
                    status = source.response.status_code
                    pause = retries.after_answer(status, source.response.headers.get("retry-after"))
                    if not source.response.is_success and pause is None:
                        await source.response.aread()
                        _accepted(source.response)
                    if source.response.is_success:
                        async for event in source.aiter_sse():
                            last, retries = event.id or last, Retries()
                            if event.data:
                                yield event.event, event.json()
                        pause = retries.after_failure(connected=True)
            except httpx.TransportError as error:
                pause = retries.after_failure(connected=not isinstance(error, httpx.ConnectError))
                if pause is None:
                    raise self._unreachable(error) from error
            if pause is None:
                raise MarketUnreachable(f"{path} ends again and again without an event.")
            await async_sleep(pause)

    def _unreachable(self, error: Exception) -> MarketUnreachable:
        advice = "Is this the market's address? The argument `url` or GPUBNB_URL names another."
        return MarketUnreachable(f"{self.login.url} does not answer ({type(error).__name__}). {advice}")


def _accepted(response: httpx.Response) -> httpx.Response:
    """The answer, if its status is a success."""
    if response.is_success:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = None
    raise market_error(response.status_code, problem if isinstance(problem, dict) else {})

"""Pauses between two looks at something that goes on, and between two tries of a request."""

from __future__ import annotations

import time

from .errors import WaitTimeout


class Pauses:
    """Pauses that grow with the time waited, so that an end is seen at most a tenth later than it came."""

    SHORTEST, LONGEST = 0.2, 5.0

    def __init__(self, timeout: float | None, what: str) -> None:
        self._began = time.monotonic()
        self._timeout, self._what = timeout, what

    def next(self) -> float:
        """The next pause, seconds. Raises `WaitTimeout` at the end of the time."""
        waited = time.monotonic() - self._began
        pause = min(max(waited / 10, self.SHORTEST), self.LONGEST)
        if self._timeout is None:
            return pause
        if waited >= self._timeout:
            raise WaitTimeout(f"{self._what} has not ended within {self._timeout:g} seconds. It goes on.")
        return min(pause, self._timeout - waited)


class Retries:
    """Decides whether a request that may be repeated is sent again, and when."""

    MOST, FIRST, LONGEST = 8, 0.5, 15.0
    # A market that has answered before comes back, for example after an update: it is waited for, about five minutes.
    MOST_AFTER_ANSWER = 24
    # An address at which nobody listens is given up soon: more tries would not help.
    MOST_WITHOUT_CONNECTION = 4

    def __init__(self, *, has_answered: bool = False) -> None:
        self._most = self.MOST_AFTER_ANSWER if has_answered else self.MOST
        self._most_unconnected = self._most if has_answered else self.MOST_WITHOUT_CONNECTION
        self._tries = 0
        self._unconnected = 0

    def _pause(self) -> float:
        pause: float = min(self.FIRST * 2 ** (self._tries - 1), self.LONGEST)
        return pause

    def after_failure(self, *, connected: bool) -> float | None:
        """The pause after a try without an answer; None if there is no other try."""
        self._tries += 1
        self._unconnected += not connected
        is_over = self._tries >= self._most or self._unconnected >= self._most_unconnected
        return None if is_over else self._pause()

    def after_answer(self, status: int, retry_after: str | None = None) -> float | None:
        """The pause after an answer that asks for another try; None if the answer is final."""
        # Room (507) comes back after days, not after seconds.
        if status != 429 and (status < 500 or status == 507):
            return None
        self._tries += 1
        if self._tries >= self.MOST:
            return None
        asked = float(retry_after) if retry_after and retry_after.isdigit() else self._pause()
        return min(asked, 4 * self.LONGEST)

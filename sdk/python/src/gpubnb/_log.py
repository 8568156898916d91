"""A line of a log, which is printed without the control characters that could command a terminal."""

from __future__ import annotations

from ._text import plain
from .models import JobLogLine


class LogLine(JobLogLine):
    """A line that a job printed. `print(line)` is safe in a terminal; `line.text` is the text as the job wrote it."""

    def __str__(self) -> str:
        return plain(self.text)

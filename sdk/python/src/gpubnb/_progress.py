"""Progress bars, in terminals and notebooks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


def _is_watched() -> bool:
    """True if somebody sees a bar: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Progress:
    """A bar, which is shown if `enabled` is true, or is None and somebody watches."""

    def __init__(self, label: str, enabled: bool | None, *, unit: str = "") -> None:
        self._bar: Any = None
        if enabled or (enabled is None and _is_watched()):
            from tqdm.auto import tqdm

            scale = {"unit": unit, "unit_scale": True} if unit == "B" else {"unit": unit}
            self._bar = tqdm(desc=label, total=0, leave=False, **scale)

    def show(self, done: float, total: float, words: str = "") -> None:
        """Moves the bar. `words` stand at its end."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(done - self._bar.n)
            self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

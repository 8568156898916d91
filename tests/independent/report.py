"""What the reader found, and safe access to the fields of events that nobody has checked yet."""

import json
from typing import Any, Dict, List, Optional

MOST_VIOLATIONS = 10_000
LARGEST = 2**63 - 1


def whole(value: Any) -> Optional[int]:
    """A whole number of 64 bits, or nothing. In Python, true and false are numbers; here they are not."""
    if isinstance(value, int) and not isinstance(value, bool) and -LARGEST - 1 <= value <= LARGEST:
        return value
    return None


def amount(value: Any) -> Optional[int]:
    """A whole number that is not negative, or nothing."""
    number = whole(value)
    return number if number is not None and number >= 0 else None


def text(value: Any) -> Optional[str]:
    """A text, or nothing."""
    return value if isinstance(value, str) else None


def get(body: Any, path: str) -> Any:
    """The value at a path such as `terms.price`, or nothing."""
    for name in path.split("."):
        if not isinstance(body, dict):
            return None
        body = body.get(name)
    return body


def show(value: Any) -> str:
    """A short form of any value that is safe to print on a terminal."""
    shown = ascii(value)
    return shown if len(shown) <= 120 else shown[:117] + "..."


def plain(value: str) -> str:
    """A text for a terminal, without quotes where it is harmless."""
    return value if value.isascii() and value.isprintable() and len(value) <= 120 else show(value)


class Report:
    """The violations and the counters."""

    def __init__(self) -> None:
        self.events = 0
        self.violations: List[Dict[str, Any]] = []
        self.left_out = 0
        self.strays: List[int] = []
        self.notes: Dict[str, int] = {}
        self.bills = 0
        self.total_cost = 0
        self.leases = 0
        self.placements = 0
        self.heads = 0
        self.covered = 0
        self.key: Optional[str] = None
        self.vouched = "nobody"
        self.balances: Dict[str, int] = {}

    def violation(self, seq: int, what: str) -> None:
        """Records one broken rule. Of a flood only the first ones are kept, and the rest is counted."""
        if len(self.violations) < MOST_VIOLATIONS:
            self.violations.append({"seq": seq, "what": what})
        else:
            self.left_out += 1

    def note(self, what: str) -> None:
        """Counts something that this reader could not check, or that is no violation."""
        self.notes[what] = self.notes.get(what, 0) + 1

    def finish(self) -> None:
        """Says how many violations were left out."""
        if self.left_out:
            self.violations.append({"seq": self.events, "what": f"{self.left_out} further violations are left out"})
        self.violations.sort(key=lambda one: one["seq"])

    def json(self) -> str:
        """The report as one JSON object."""
        return json.dumps({
            "clean": not self.violations,
            "events": self.events,
            "violations": self.violations,
            "bills": {"checked": self.bills, "total_cost": self.total_cost},
            "balances": self.balances,
            "leases": {"checked": self.leases},
            "placements": {"checked": self.placements},
            "heads": {"checked": self.heads, "key": self.key},
            "vouched": self.vouched,
        })

    def words(self) -> str:
        """The report as a short text."""
        lines = [
            "clean" if not self.violations else f"NOT CLEAN: {len(self.violations)} violations",
            f"{self.events} events, {len(self.strays)} of them are not valid events",
            f"{self.bills} bills recomputed, ${self.total_cost / 1e6:.6f} in total",
            f"{self.leases} leases and {self.placements} placements checked",
            f"{self.heads} signed heads checked; the newest good one covers {self.covered} events; "
            f"key {self.key or 'none, or several'}",
            f"vouched for by: {self.vouched}",
        ]
        lines += [f"  {plain(name)}: {value / 1e6:.6f}" for name, value in sorted(self.balances.items())]
        lines += [f"violation at {one['seq']}: {one['what']}" for one in self.violations]
        lines += self.remarks()
        return "\n".join(lines)

    def remarks(self) -> List[str]:
        """What does not make the log unclean, but should be known."""
        lines = [f"note: {what} ({count} times)" for what, count in sorted(self.notes.items())]
        if self.strays:
            lines.append(f"note: not valid events: {self.strays[:20]}")
        return lines

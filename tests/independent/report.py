"""What the reader found, and safe access to fields of any JSON value."""

import json
from typing import Any, Dict, List, Optional

MOST_VIOLATIONS = 10_000
SMALLEST, LARGEST = -2**63, 2**64 - 1

# The name of each check, and what its number counts.
CHECKS = {
    "archive": "parts",
    "leaves": "leaves recomputed and compared",
    "heads": "signed heads",
    "envelopes": "messages: headers, type, fields, subject",
    "ledger": "events that move money",
    "leases": "leases, from their assignment to their end",
    "batches": "events of batches: task numbers, ends, authors",
    "steps": "events of jobs: state, live lease, author, fault, attempt, pause",
    "bills": "bills recomputed",
    "placements": "assignments decided again",
    "reliability": "assignments that depend on the records of machines",
    "manifests": "machines' signatures of lists of files",
    "logs": "machines' signatures of logs",
}


def whole(value: Any) -> Optional[int]:
    """A whole number of 64 bits, or nothing. In Python, true and false are numbers; here they are not."""
    if isinstance(value, int) and not isinstance(value, bool) and SMALLEST <= value <= LARGEST:
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
        self.checked: Dict[str, int] = dict.fromkeys(CHECKS, 0)
        self.total_cost = 0
        self.older_state = 0  # placements that follow only from a state a little before the assignment
        self.covered = 0
        self.key: Optional[str] = None
        self.vouched = "nobody"
        self.balances: Dict[str, int] = {}

    def count(self, check: str) -> None:
        """Counts one thing that a check has looked at."""
        self.checked[check] += 1

    def violation(self, check: str, seq: int, what: str) -> None:
        """Records one broken rule. Of a flood only the first ones are kept, and the rest is counted."""
        if len(self.violations) < MOST_VIOLATIONS:
            self.violations.append({"seq": seq, "check": check, "what": what})
        else:
            self.left_out += 1

    def note(self, what: str) -> None:
        """Counts something that this reader could not check, or that is no violation."""
        self.notes[what] = self.notes.get(what, 0) + 1

    def finish(self) -> None:
        """Says how many violations were left out."""
        if self.left_out:
            what = f"{self.left_out} further violations are left out"
            self.violations.append({"seq": self.events, "check": "archive", "what": what})
            self.left_out = 0
        self.violations.sort(key=lambda one: one["seq"])

    def exit_code(self) -> int:
        """0: clean and vouched for. 1: a violation. 3: consistent, and nobody vouches for all of it."""
        if self.violations:
            return 1
        return 3 if self.vouched == "nobody" else 0

    def json(self) -> str:
        """The report as one JSON object."""
        result: Dict[str, Any] = {
            "clean": not self.violations,
            "vouched": self.vouched,
            "events": self.events,
            "strays": len(self.strays),
            "violations": self.violations,
            "balances": self.balances,
        }
        result.update({name: {"checked": number} for name, number in self.checked.items()})
        result["bills"]["total_cost"] = self.total_cost
        result["heads"].update({"key": self.key, "covered": self.covered})
        result["placements"]["older_state"] = self.older_state
        result["notes"] = self.remarks()
        return json.dumps(result)

    def words(self) -> str:
        """The report as a short text."""
        lines = ["clean" if not self.violations else f"NOT CLEAN: {len(self.violations)} violations",
                 f"{self.events} messages, {len(self.strays)} of them are strays"]
        lines += [f"{name}: {self.checked[name]} checked ({what})" for name, what in CHECKS.items()]
        lines += [f"total of all bills: ${self.total_cost / 1e6:.6f}",
                  f"the newest good head covers {self.covered} messages; key {self.key or 'none, or several'}",
                  f"vouched for by: {self.vouched}"]
        lines += [f"  {plain(name)}: {value / 1e6:.6f}" for name, value in sorted(self.balances.items())]
        lines += [f"violation at {one['seq']}, {one['check']}: {one['what']}" for one in self.violations]
        return "\n".join(lines + self.remarks())

    def remarks(self) -> List[str]:
        """What does not make the log unclean, but should be known."""
        lines = [f"note: {what} ({count} times)" for what, count in sorted(self.notes.items())]
        if self.strays:
            lines.append(f"note: strays: {self.strays[:20]}")
        if self.older_state:
            lines.append(f"note: {self.older_state} placements follow from a state a little before the assignment")
        return lines

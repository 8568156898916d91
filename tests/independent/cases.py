"""What the self-tests share: small logs, and the two questions that a test asks of a log."""

import tempfile
import unittest
from typing import Any, Callable, List, Optional, Tuple

from reader import examine
from report import Report
from synthetic import CONSUMER, FAR, MARKET_KEY, NEAR, PROVIDER, Key, Line, Log, four

METERING = {"broker": 1000, "worker": 720, "limit": 600_000, "budget": 1_800_000, "billed": 720}


def begun(dollars: int = 10) -> Log:
    """A market with money and two machines: the near one costs $1, the far one $2 an hour."""
    log = Log()
    log.opened(CONSUMER, dollars)
    log.opened(PROVIDER)
    log.listed(NEAR, 1_000_000)
    log.listed(FAR, 2_000_000)
    return log


def running(**wishes: Any) -> Tuple[Log, int, int, int]:
    """A job that runs on the near machine: the log, and the sequences of submission, lease and `Started`."""
    log = begun()
    submission = log.submitted(**wishes)
    lease = log.assigned(submission)
    return log, submission, lease, log.started(lease)


def billed(**changes: Any) -> Log:
    """A whole job, with changes to its bill: 720 ms at $1 an hour cost 200, of which the fee is 20."""
    log, submission, lease, started = running()
    ended = log.completed(lease, 720)
    bill = {"outcome": ended, "postings": four(500_000, 200, 20), "cost": 200, "fee": 20, "earned": 180,
            "submission": submission, "provider": PROVIDER, "lease": lease,
            "metering": {**METERING, "started": started, "ended": ended}}
    log.settled(**{**bill, **changes})
    return log


class Case(unittest.TestCase):
    """A test that writes an archive and reads it."""

    def read(self, log: Log, keys: Optional[List[str]] = None, key: Key = MARKET_KEY,
             sizes: Optional[List[int]] = None, change: Optional[Callable[[Line], None]] = None) -> Report:
        """The report about the archive of a log."""
        with tempfile.TemporaryDirectory() as directory:
            log.write(directory, key, sizes, change)
            return examine(directory, [MARKET_KEY.text] if keys is None else keys)

    def clean(self, log: Log, strays: int = 0) -> Report:
        """The log must be clean."""
        report = self.read(log)
        self.assertEqual(report.violations, [])
        self.assertEqual(report.exit_code(), 0)
        self.assertEqual(len(report.strays), strays)
        return report

    def found(self, log: Log, check: str, what: str, others: Tuple[str, ...] = (), **how: Any) -> Report:
        """One check must find this violation, and no check may find anything else, but for the named others."""
        report = self.read(log, **how)
        mine = [one["what"] for one in report.violations if one["check"] == check]
        self.assertTrue(any(what in one for one in mine), f"{what!r} is not in {report.violations}")
        self.assertEqual([one for one in report.violations if one["check"] not in (check, *others)], [])
        self.assertEqual(report.exit_code(), 1)
        return report

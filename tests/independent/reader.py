"""An independent reader of the archives that `gpubnb-projector export` writes.

It was written from docs/ alone, without a look at the market's code, so that a fault of that code is not repeated here.

    python3 tests/independent/reader.py ARCHIVE [--key U…] [--json]

Exit code 0: clean. 1: violations. 2: the archive cannot be read.
"""

import argparse
import json
import re
import sys
from typing import Any, Dict, Optional, Tuple

sys.dont_write_bytecode = True

from archive import Archive, Message, Unreadable  # noqa: E402
from bills import Bills  # noqa: E402
from ed25519 import decode_nats_key  # noqa: E402
from heads import Heads, Manifests  # noqa: E402
from leases import At, Leases  # noqa: E402
from ledger import Ledger  # noqa: E402
from placements import Placements  # noqa: E402
from report import Report, show, text  # noqa: E402

OF_ACCOUNT = ("AccountOpened", "AccountSuspended", "AccountReinstated", "FundsDeposited", "JobSubmitted",
              "PayoutRequested", "PayoutPaid", "PayoutFailed")
OF_MACHINE = ("MachineListed", "MachineRepriced", "MachineDelisted", "MachinePaused", "MachineResumed",
              "MachineDrainStarted", "MachineTested", "MachineSuspected", "MachineLost", "MachineRecovered")
OF_JOB = ("Declined", "Accepted", "Started", "Exited", "Requeued", "CancelRequested", "Completed", "Failed",
          "Cancelled", "Settled")
SECOND_VERSIONS = ("MachineTested", "JobAssigned")
TYPE = re.compile(r"([A-Za-z]{1,40})\.v([1-9])")


def event(message: Message) -> Optional[Tuple[str, Dict[str, Any]]]:
    """The name and the body of an event, or nothing if the message is no valid event (a stray)."""
    kind = TYPE.fullmatch(message.headers.get("Gpubnb-Type", ""))
    if kind is None or message.payload is None:
        return None
    name, version = kind.group(1), int(kind.group(2))
    if name not in OF_ACCOUNT + OF_MACHINE + OF_JOB + ("JobAssigned",):
        return None
    if version > (2 if name in SECOND_VERSIONS else 1):
        return None
    try:
        body = json.loads(message.payload.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return (name, body) if isinstance(body, dict) else None


def subject(name: str, body: Dict[str, Any]) -> str:
    """The subject that an event belongs under."""
    if name == "JobAssigned":
        return f"market.job.{body.get('job')}.assigned.{body.get('machine')}"
    kind = "account" if name in OF_ACCOUNT else "machine" if name in OF_MACHINE else "job"
    return f"market.{kind}.{body.get(kind)}.event"


class Reader:
    """Reads the whole log once and checks every rule on the way."""

    def __init__(self, archive: Archive, report: Report) -> None:
        self._report = report
        self._archive = archive
        self._heads = Heads(report, archive)
        self._ledger = Ledger(report)
        self._leases = Leases(report)
        self._bills = Bills(report, self._leases)
        self._placements = Placements(report, self._leases)
        self._manifests = Manifests(report, self._placements.keys)

    def read(self, key: Optional[str]) -> None:
        """Fills the report."""
        nanos = 0
        for message in self._archive.messages():
            self._report.events += 1
            nanos = message.nanos
            self._heads.fold(message)
            decoded = event(message)
            if decoded is None:
                self._report.strays.append(message.seq)
                continue
            try:
                self._fold(message, *decoded)
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                self._report.violation(message.seq, f"the event cannot be understood: {show(str(error))}")
        self._heads.finish(key)
        self._leases.finish(nanos)
        self._ledger.finish(self._report.events, self._leases.held())
        self._report.balances = dict(sorted(self._ledger.balances.items()))
        self._report.finish()

    def _fold(self, message: Message, name: str, body: Dict[str, Any]) -> None:
        """One event, through every check. A check of the state before the event comes before its fold."""
        at = At(message.seq, message.nanos, name, body)
        self._envelope(message, name, body)
        if name == "Settled":
            self._bills.check(at)
        if name == "JobAssigned":
            self._placements.check(at)
        job = self._leases.jobs.get(text(body.get("job")) or "")
        machine = job.live.machine if job is not None and job.live is not None else None
        self._manifests.check(at, machine)
        self._ledger.fold(at.seq, name, body)
        self._leases.fold(at, message.headers.get("Gpubnb-Actor"))
        self._placements.fold(at)

    def _envelope(self, message: Message, name: str, body: Dict[str, Any]) -> None:
        """The subject and the headers (docs/events.md). An absent cause or correlation is no violation."""
        if message.subject != subject(name, body):
            self._report.violation(message.seq, f"{name} is under the subject {show(message.subject)}")
        for header in ("Nats-Msg-Id", "Gpubnb-Actor"):
            if not message.headers.get(header):
                self._report.violation(message.seq, f"{name} has no {header}")
        cause = message.headers.get("Gpubnb-Cause")
        if cause is not None and not (re.fullmatch(r"[0-9]{1,19}", cause) and int(cause) < message.seq):
            self._report.violation(message.seq, f"the cause {show(cause)} is no earlier event")
        job = message.headers.get("Gpubnb-Correlation")
        if job is not None and "job" in body and job != body["job"]:
            self._report.violation(message.seq, f"the correlation {show(job)} is not the job")


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Checks an archive of a GPUbnb market, independently of its code.")
    parser.add_argument("archive", metavar="ARCHIVE", help="the directory that `gpubnb-projector export` wrote")
    parser.add_argument("--key", help="accept only heads that this key (U...) has signed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.key is not None and decode_nats_key(options.key) is None:
        print(f"--key: {show(options.key)} is not a public key of the form U...", file=sys.stderr)
        return 2
    report = Report()
    try:
        Reader(Archive(options.archive, report), report).read(options.key)
    except (Unreadable, OSError) as error:
        print(f"{show(options.archive)} cannot be read: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(report.json())
        for remark in report.remarks():
            print(remark, file=sys.stderr)
    else:
        print(report.words())
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())

"""An independent reader of the archives that `gpubnb-projector export` writes.

It was written from docs/ alone, without a look at the market's code, so that a fault of that code is not repeated here.

    python3 tests/independent/reader.py ARCHIVE [--key U…]… [--at SEQUENCE] [--json]

Exit code 0: clean, and a trusted key vouches for all messages. 1: a violation, or the archive cannot be read.
2: an option is wrong. 3: consistent with itself, and nobody vouches for all of it.
"""

import argparse
import sys
from typing import List, Optional

sys.dont_write_bytecode = True

from archive import Archive, Message, Unreadable  # noqa: E402
from batches import Batches  # noqa: E402
from bills import Bills  # noqa: E402
from ed25519 import decode_nats_key  # noqa: E402
from events import OF_JOB, Doubtful, Event, decode, envelope_problems  # noqa: E402
from heads import Heads, Manifests  # noqa: E402
from leases import Leases  # noqa: E402
from ledger import Ledger  # noqa: E402
from market import Market  # noqa: E402
from placements import Placements  # noqa: E402
from report import Report, show  # noqa: E402


class Reader:
    """Reads the whole log once and checks every rule on the way."""

    def __init__(self, archive: Archive, report: Report) -> None:
        self._report = report
        self._archive = archive
        self._heads = Heads(report, archive)
        self._batches = Batches(report)
        self._ledger = Ledger(report, self._batches)
        self._market = Market(report)
        self._leases = Leases(report, self._market, self._batches)
        self._bills = Bills(report, self._leases)
        self._placements = Placements(report, self._leases, self._market)
        self._manifests = Manifests(report, self._market.keys)

    def read(self, keys: List[str], at: Optional[int] = None) -> None:
        """Fills the report. Its balances are those after the sequence `at`, or else after the last one."""
        nanos = 0
        for message in self._archive.messages():
            self._report.events += 1
            nanos = message.nanos
            self._heads.fold(message)
            self._event(message)
            if message.seq == at:
                self._report.balances = dict(sorted(self._ledger.balances.items()))
        self._heads.finish(set(keys))
        self._leases.finish(nanos)
        self._ledger.finish(self._report.events)
        if at is None:
            self._report.balances = dict(sorted(self._ledger.balances.items()))
        self._report.finish()

    def _event(self, message: Message) -> None:
        """One message, if it is an event."""
        self._report.count("envelopes")
        try:
            event = decode(message)
        except Doubtful as error:
            self._report.violation("envelopes", message.seq, str(error))
            return
        if event is None:
            self._report.strays.append(message.seq)
            return
        for problem in envelope_problems(message, event):
            self._report.violation("envelopes", message.seq, problem)
        self._fold(event)

    def _fold(self, event: Event) -> None:
        """One event, through every check. A check of the state before the event comes before its fold."""
        if event.name == "Settled":
            self._bills.check(event)
        if event.name == "JobAssigned":
            self._placements.check(event)
        job = self._leases.jobs.get(event.body["job"]) if event.name in OF_JOB else None
        machine = job.live.machine if job is not None and job.live is not None else None
        self._manifests.check(event, machine)
        self._batches.fold(event)
        self._ledger.fold(event)
        self._leases.fold(event)
        self._market.fold(event)


def examine(directory: str, keys: List[str], at: Optional[int] = None) -> Report:
    """The report about an archive. An archive that cannot be read is a violation."""
    report = Report()
    try:
        Reader(Archive(directory, report), report).read(keys, at)
    except (Unreadable, OSError) as error:
        report.violation("archive", report.events, f"the archive cannot be read: {error}")
        report.finish()
    return report


def main(arguments: Optional[List[str]] = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description="Checks an archive of a GPUbnb market, independently of its code.")
    parser.add_argument("archive", metavar="ARCHIVE", help="the directory that `gpubnb-projector export` wrote")
    parser.add_argument("--key", action="append", default=[],
                        help="accept only heads that this key (U...) has signed; repeat it for former keys")
    parser.add_argument("--at", type=int, help="print the balances after this sequence")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    for key in options.key:
        if decode_nats_key(key) is None:
            print(f"--key: {show(key)} is not a public key of the form U...", file=sys.stderr)
            return 2
    report = examine(options.archive, options.key, options.at)
    if options.json:
        print(report.json())
    else:
        print(report.words())
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main())

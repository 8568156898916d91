"""Recomputes every bill from the events that it cites (docs/consumer.md, Receipt; docs/events.md, Billing rules)."""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import ledger
from leases import CONSUMER, At, Job, Lease, Leases
from report import Report, amount, get, show, text

HOUR = 3_600_000  # milliseconds


class Metering(NamedTuple):
    """How the billed time comes about, in milliseconds. `budget` is absent if the machine is free of charge."""

    broker: int
    worker: Optional[int]
    limit: int
    budget: Optional[int]
    billed: int
    started: int
    ended: int


class Bill(NamedTuple):
    """What a bill should say."""

    metering: Optional[Metering]
    cost: int
    fee: int
    earned: int


def milliseconds(at: At) -> int:
    """The recorded time, cut to the millisecond."""
    return at.nanos // 1_000_000


def pays(ending: At) -> bool:
    """Whether an ending of this kind is billed at all."""
    if ending.name == "Failed":
        return text(get(ending.body, "reason.name")) in CONSUMER
    return True


def meter(job: Job, lease: Lease, ending: At, rule: int) -> Optional[Metering]:
    """The billed time. Without `Started` there is none."""
    started = lease.started
    if started is None:
        return None
    ends = [ending]
    if rule >= 2 and lease.exited is not None:
        ends.append(lease.exited)
    if ending.name == "Cancelled" and job.cancel is not None:
        ends.append(job.cancel)
    ended = min(ends, key=lambda at: at.seq)
    reporter = lease.exited or ending if rule >= 2 else ending
    worker = amount(get(reporter.body, "usage.run"))
    broker = max(0, milliseconds(ended) - milliseconds(started))
    limit = (amount(get(job.submitted.body, "limits.time")) or 0) * 1000
    price = amount(get(lease.terms, "price")) or 0
    budget = job.hold * HOUR // price if price else None
    billed = min(time for time in (broker, worker, limit, budget) if time is not None)
    if not pays(ending) or (worker is None and rule >= 2):
        billed = 0
    return Metering(broker, worker, limit, budget, billed, started.seq, ended.seq)


def compute(job: Job, ending: At, rule: int) -> Bill:
    """The bill of a job that has ended."""
    lease = job.ended_lease
    metering = None if lease is None else meter(job, lease, ending, rule)
    if lease is None or metering is None:
        return Bill(None, 0, 0, 0)
    price = amount(get(lease.terms, "price")) or 0
    points = amount(get(lease.terms, "fee_basis_points")) or 0
    cost = min(price * metering.billed // HOUR, job.hold)
    fee = cost * points // 10_000
    return Bill(metering, cost, fee, cost - fee)


def net(changes: List[Tuple[str, int]]) -> Dict[str, int]:
    """The change of each account of the ledger, without zeros."""
    result: Dict[str, int] = {}
    for name, value in changes:
        result[name] = result.get(name, 0) + value
    return {name: value for name, value in result.items() if value}


class Bills:
    """Checks every `Settled`."""

    def __init__(self, report: Report, leases: Leases) -> None:
        self._report = report
        self._leases = leases

    def check(self, at: At) -> None:
        """One bill. It must be called before the bill is folded elsewhere."""
        self._report.bills += 1
        self._report.total_cost += amount(at.body.get("cost")) or 0
        job = self._leases.jobs.get(text(at.body.get("job")) or "")
        if job is None:
            return
        if job.settled:
            self._report.violation(at.seq, "the job is settled a second time")
        if job.ending is None:
            self._report.violation(at.seq, "the job is settled, and has not ended")
            return
        rule = at.body.get("rule", 1)
        if isinstance(rule, bool) or rule not in (1, 2):
            self._report.violation(at.seq, f"the billing rule {show(rule)} is not documented")
            return
        self._cites(at, job, job.ending)
        bill = compute(job, job.ending, rule)
        self._metering(at, bill.metering)
        for name in ("cost", "fee", "earned"):
            self._same(at, name, at.body.get(name), getattr(bill, name))
        self._postings(at, job, bill)

    def _same(self, at: At, name: str, have: Any, due: Any) -> None:
        """Compares one figure."""
        if have != due or isinstance(have, bool) or isinstance(have, float):
            self._report.violation(at.seq, f"the bill's {name} is {show(have)}, and should be {show(due)}")

    def _cites(self, at: At, job: Job, ending: At) -> None:
        """The events and the accounts that the bill names."""
        lease = job.ended_lease
        self._same(at, "consumer", at.body.get("consumer"), job.account)
        self._same(at, "submission", at.body.get("submission"), job.submitted.seq)
        self._same(at, "outcome", at.body.get("outcome"), ending.seq)
        if lease is not None or at.body.get("lease") is not None:
            self._same(at, "lease", at.body.get("lease"), None if lease is None else lease.seq)
            self._same(at, "provider", at.body.get("provider"), None if lease is None else get(lease.terms, "provider"))

    def _metering(self, at: At, due: Optional[Metering]) -> None:
        """The metered times. The documents do not say when they are left out, so they may be if nothing is billed."""
        have = at.body.get("metering")
        if have is None:
            if due is not None and due.billed:
                self._report.violation(at.seq, f"the bill has no metering; {due.billed} ms should be billed")
            return
        if not isinstance(have, dict) or due is None:
            self._report.violation(at.seq, "the bill has a metering, and the program never started")
            return
        for name, value in due._asdict().items():
            if name == "budget" and value is None:
                continue
            self._same(at, f"metering.{name}", have.get(name), value)

    def _postings(self, at: At, job: Job, bill: Bill) -> None:
        """The hold is released in full, and goes to the consumer, the provider and the fees."""
        have = ledger.postings(at.body)
        if have is None:
            return
        available = f"available:{job.account}"
        due = [(f"held:{job.account}", -job.hold), (available, job.hold - bill.cost), ("fees", bill.fee)]
        if job.ended_lease is not None:
            provider = text(get(job.ended_lease.terms, "provider")) or ""
            due.append((f"available:{provider}", bill.earned))
        if net(have) != net(due):
            self._report.violation(at.seq, f"the postings are {show(net(have))}, and should be {show(net(due))}")

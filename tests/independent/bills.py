"""Recomputes every bill from the events that it cites (docs/verification.md, Bills)."""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from events import Event
from leases import UNRUN, Job, Lease, Leases
from report import Report, get, show

HOUR = 3_600_000  # milliseconds
RULES = (1, 2)


class Metering(NamedTuple):
    """How the billed time comes about, in milliseconds. Fields without a value are absent in the bill."""

    broker: int
    worker: Optional[int]
    limit: int
    budget: Optional[int]
    billed: int
    started: int
    ended: int


class Bill(NamedTuple):
    """What a bill should say."""

    lease: Optional[int]
    provider: Optional[str]
    metering: Optional[Metering]
    cost: int
    fee: int
    earned: int
    postings: List[Tuple[str, int]]


def milliseconds(event: Event) -> int:
    """The recorded time, cut to the millisecond."""
    return event.nanos // 1_000_000


def worker_time(lease: Lease, ending: Event, rule: int) -> Optional[int]:
    """The run time that the machine reported, or nothing."""
    reporter = lease.exited if rule == 2 and lease.exited is not None else ending
    run: Optional[int] = get(reporter.body, "usage.run")
    return run


def end_of_time(job: Job, lease: Lease, ending: Event, rule: int) -> Event:
    """The event that ends the broker's time."""
    ends = [ending]
    if ending.name == "Cancelled" and job.cancel is not None:
        ends.append(job.cancel)
    if rule == 2 and lease.exited is not None:
        ends.append(lease.exited)
    return min(ends, key=lambda event: event.seq)


def meter(job: Job, ending: Event, rule: int) -> Optional[Metering]:
    """The billed time, or nothing if the attempt is not metered."""
    lease = job.ended_lease
    if lease is None or lease.started is None:
        return None
    if ending.name == "Failed" and ending.body["fault"] != "consumer":
        return None
    worker = worker_time(lease, ending, rule)
    if rule == 2 and worker is None:
        return None
    ended = end_of_time(job, lease, ending, rule)
    broker = max(0, milliseconds(ended) - milliseconds(lease.started))
    limit, price = job.submitted.body["limits"]["time"] * 1000, lease.terms["price"]
    budget = job.hold * HOUR // price if price else None
    billed = min(time for time in (broker, worker, limit, budget) if time is not None)
    return Metering(broker, worker, limit, budget, billed, lease.started.seq, ended.seq)


def compute(job: Job, ending: Event, rule: int) -> Bill:
    """The bill of a job that has ended."""
    held, available = f"held:{job.account}", f"available:{job.account}"
    metering, lease = meter(job, ending, rule), job.ended_lease
    if metering is None or lease is None:
        return Bill(None, None, None, 0, 0, 0, [(held, -job.hold), (available, job.hold)])
    provider: str = lease.terms["provider"]
    cost = min(lease.terms["price"] * metering.billed // HOUR, job.hold)
    fee = cost * lease.terms["fee_basis_points"] // 10_000
    postings = [(held, -job.hold), (available, job.hold - cost), (f"available:{provider}", cost - fee), ("fees", fee)]
    return Bill(lease.seq, provider, metering, cost, fee, cost - fee, postings)


class Bills:
    """Checks every `Settled`."""

    def __init__(self, report: Report, leases: Leases) -> None:
        self._report = report
        self._leases = leases

    def check(self, event: Event) -> None:
        """One bill. It must be called before the bill is folded elsewhere."""
        body = event.body
        self._report.count("bills")
        self._report.total_cost += body["cost"]
        job = self._leases.jobs.get(body["job"])
        if job is None or job.ending is None:
            return  # the state of the job is checked with its lease
        rule = 1 if body.get("rule") is None else body["rule"]
        if rule not in RULES:
            self._report.violation("bills", event.seq, f"the billing rule {show(rule)} is not documented")
            return
        if rule == 1 and self._leases.second_rule:
            self._report.note("a bill by rule 1 after a bill by rule 2")
        bill = compute(job, job.ending, rule)
        self._same(event, body, {"consumer": job.account, "submission": job.submitted.seq, "outcome": job.ending.seq,
                                 "lease": bill.lease, "provider": bill.provider, "cost": bill.cost, "fee": bill.fee,
                                 "earned": bill.earned})
        self._metering(event, bill.metering)
        have = [(one["account"], one["amount"]) for one in body["postings"]]
        if have != bill.postings:
            self._report.violation("bills", event.seq,
                                   f"the postings are {show(have)}, and should be {show(bill.postings)}")
        reason = get(job.ending.body, "reason.name")
        if reason in UNRUN and body["cost"] > 0:
            self._report.violation("bills", event.seq, f"{body['cost']} is billed for {reason}: the program never ran")

    def _same(self, event: Event, body: Any, due: Dict[str, Any], prefix: str = "") -> None:
        """Compares figures. An absent one has no value."""
        for name, value in due.items():
            if body.get(name) != value:
                self._report.violation("bills", event.seq, f"the bill's {prefix}{name} is {show(body.get(name))}, "
                                                           f"and should be {show(value)}")

    def _metering(self, event: Event, due: Optional[Metering]) -> None:
        """The metered times. They are also in a bill of 0, if the attempt is metered."""
        have = event.body.get("metering")
        if have is None and due is not None:
            self._report.violation("bills", event.seq, f"the bill has no metering; {due.billed} ms should be billed")
        elif have is not None and due is None:
            self._report.violation("bills", event.seq, "the bill has a metering, and nothing should be metered")
        elif have is not None and due is not None:
            self._same(event, have, due._asdict(), "metering.")

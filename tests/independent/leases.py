"""Follows each job and each lease through its events (docs/events.md, docs/consumer.md, docs/operator.md).

A lease is the sequence of `JobAssigned`. It is live until the attempt is declined, requeued, or ends the job.
"""

from typing import Any, Dict, List, NamedTuple, Optional

from report import Report, amount, get, show, text

STEPS = ("Declined", "Accepted", "Started", "Exited", "Requeued")
ENDINGS = ("Completed", "Failed", "Cancelled")
BY_MACHINE = ("Declined", "Accepted", "Started", "Exited", "Completed")
LATE = 600 * 10**9  # nanoseconds after which a job that has ended should be settled

CONSUMER = ("NonZeroExit", "OutOfMemory", "TimeLimit", "BudgetExhausted", "OutputTooLarge", "LogFlood")
UNRUN = ("BadImage", "BadCommand", "BadInput")
PROVIDER = ("ProviderLost", "NotReported", "Preempted", "GpuLost", "DiskFull", "RuntimeMisconfigured", "Interrupted",
            "AssignTimeout")
NOBODY = ("RegistryUnavailable", "InputUnavailable", "PrepareTimeout", "UploadTimeout")
FAULTS = {**dict.fromkeys(CONSUMER + UNRUN, "consumer"), **dict.fromkeys(PROVIDER, "provider"),
          **dict.fromkeys(NOBODY, "nobody"), "NoMachine": "platform", "Internal": "platform"}


class At(NamedTuple):
    """An event of a job: its place, its time, and its body."""

    seq: int
    nanos: int
    name: str
    body: Dict[str, Any]


class Lease:
    """One attempt of a job."""

    def __init__(self, assigned: At) -> None:
        self.seq = assigned.seq
        self.machine = text(assigned.body.get("machine")) or ""
        self.terms: Any = assigned.body.get("terms")
        self.accepted = False
        self.started: Optional[At] = None
        self.exited: Optional[At] = None


class Job:
    """What the log says about a job so far."""

    def __init__(self, submitted: At) -> None:
        self.submitted = submitted
        self.account = text(submitted.body.get("account")) or ""
        self.hold = amount(submitted.body.get("hold")) or 0
        self.live: Optional[Lease] = None
        self.last: Optional[Lease] = None
        self.used = 0  # attempts
        self.cancel: Optional[At] = None
        self.ending: Optional[At] = None
        self.ended_lease: Optional[Lease] = None
        self.settled = 0
        self.requeued: Optional[At] = None
        self.declined: List[str] = []


class Leases:
    """All jobs, and the accepted leases of every machine."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.jobs: Dict[str, Job] = {}
        self.extra_holds: Dict[str, int] = {}
        self.slots: Dict[str, int] = {}
        self.accepted: Dict[str, int] = {}
        self.records: Dict[str, List[int]] = {}  # machine -> attempts that prove something, and those without fault

    def fold(self, at: At, actor: Optional[str]) -> None:
        """One event. A bill is checked elsewhere, before it is folded here."""
        if at.name == "MachineListed":
            self.slots[text(at.body.get("machine")) or ""] = amount(get(at.body, "offer.slots")) or 0
        if at.name == "JobSubmitted":
            self._submitted(at)
        if at.name not in STEPS + ENDINGS + ("JobAssigned", "CancelRequested", "Settled"):
            return
        job = self.jobs.get(text(at.body.get("job")) or "")
        if job is None:
            self._report.violation(at.seq, f"{at.name} of a job that nobody submitted")
        elif at.name == "Settled":
            job.settled += 1
        elif job.ending is not None:
            self._report.violation(at.seq, f"{at.name} after the job ended at {job.ending.seq}")
        elif at.name == "JobAssigned":
            self._assigned(at, job)
        elif at.name == "CancelRequested":
            job.cancel = job.cancel or at
        else:
            self._step(at, job, actor)

    def _submitted(self, at: At) -> None:
        """The first submission of an id makes the job; a later one only holds money (docs/adr/0003)."""
        id = text(at.body.get("job"))
        hold, budget = amount(at.body.get("hold")), amount(get(at.body, "limits.budget"))
        if id is None or hold is None:
            self._report.violation(at.seq, "a submission without a job or a hold")
            return
        if hold == 0 or hold > 10_000_000_000 or (budget is not None and budget != hold):
            self._report.violation(at.seq, f"the hold is {hold}, the budget {budget}")
        earlier = self.jobs.get(id)
        if earlier is None:
            self.jobs[id] = Job(at)
            return
        account = text(at.body.get("account")) or ""
        if account == earlier.account:
            self._report.violation(at.seq, f"the same account submitted this job at {earlier.submitted.seq}")
        name = f"held:{account}"
        self.extra_holds[name] = self.extra_holds.get(name, 0) + hold

    def _assigned(self, at: At, job: Job) -> None:
        """A new lease."""
        self._report.leases += 1
        if job.live is not None:
            self._report.violation(at.seq, f"the lease {job.live.seq} of this job is still live")
            self._end(job, job.live)
        if at.body.get("submission") not in (None, job.submitted.seq):
            self._report.violation(at.seq, f"the submission is {job.submitted.seq}, not {show(at.body['submission'])}")
        most, attempt = amount(get(job.submitted.body, "limits.max_attempts")), at.body.get("attempt")
        if attempt is not None and attempt != job.used + 1:
            self._report.violation(at.seq, f"this is attempt {job.used + 1}, not {show(attempt)}")
        if most is not None and job.used >= most:
            self._report.violation(at.seq, f"all {most} attempts are used up")
        job.live = job.last = Lease(at)

    def _step(self, at: At, job: Job, actor: Optional[str]) -> None:
        """A report about an attempt, or the end of a job."""
        named, live = at.body.get("lease"), job.live
        if named is None and at.name in ENDINGS + ("Requeued",) and (live is None or at.name != "Completed"):
            if at.name in ("Completed", "Requeued"):
                self._report.violation(at.seq, f"{at.name} without a lease")
        elif live is None or isinstance(named, bool) or named != live.seq:
            have = "none" if live is None else str(live.seq)
            self._report.violation(at.seq, f"{at.name} under the lease {show(named)}; the live lease is {have}")
            if at.name not in ENDINGS:
                return
        if live is not None and at.name in BY_MACHINE and actor != f"machine:{live.machine}":
            self._report.violation(at.seq, f"{at.name} is not by the machine of the lease, but by {show(actor)}")
        self._fault(at)
        if at.name in ENDINGS:
            self._ended(at, job)
        elif live is not None:
            self._attempt(at, job, live)

    def _attempt(self, at: At, job: Job, live: Lease) -> None:
        """A step of the live attempt."""
        if at.name == "Accepted":
            if live.accepted:
                self._report.violation(at.seq, "the lease was already accepted")
            elif live.machine in self.slots:
                count = self.accepted.get(live.machine, 0) + 1
                if count > self.slots[live.machine]:
                    self._report.violation(at.seq, f"the machine has {count} jobs and {self.slots[live.machine]} slots")
            self.accepted[live.machine] = self.accepted.get(live.machine, 0) + (0 if live.accepted else 1)
            live.accepted = True
        elif at.name == "Started":
            if not live.accepted or live.started is not None:
                self._report.violation(at.seq, "Started without Accepted, or twice")
            live.started = live.started or at
        elif at.name == "Exited":
            if live.started is None or live.exited is not None:
                self._report.violation(at.seq, "Exited without Started, or twice")
            live.exited = live.exited or at
        elif at.name == "Declined":
            if live.accepted:
                self._report.violation(at.seq, "Declined after Accepted")
            job.declined.append(live.machine)
            self._end(job, live)
        else:
            self._requeued(at, job, live)

    def _requeued(self, at: At, job: Job, live: Lease) -> None:
        """An attempt that ended without ending the job."""
        if text(get(at.body, "reason.name")) not in PROVIDER + NOBODY:
            self._report.violation(at.seq, f"requeued for {show(get(at.body, 'reason'))}")
        if at.body.get("fault") != "nobody" or live.started is not None:
            job.used += 1
        job.requeued = at
        self._count(at, live)
        self._end(job, live)

    def _ended(self, at: At, job: Job) -> None:
        """The outcome of a job."""
        live = job.live
        if at.name == "Completed" and (live is None or live.started is None):
            self._report.violation(at.seq, "Completed without Started")
        if at.name == "Failed" and text(get(at.body, "reason.name")) in CONSUMER:
            if live is None or live.started is None:
                self._report.violation(at.seq, f"{show(get(at.body, 'reason.name'))} without Started")
        job.ending, job.ended_lease = at, live
        if live is not None:
            self._count(at, live)
            self._end(job, live)

    def _fault(self, at: At) -> None:
        """Compares the fault with the table in docs/events.md. Older events blame the machine for nobody's faults."""
        if at.name not in ("Failed", "Requeued"):
            return
        reason, fault = text(get(at.body, "reason.name")), at.body.get("fault")
        if reason not in FAULTS:
            self._report.violation(at.seq, f"the ending {show(get(at.body, 'reason'))} is not documented")
        elif fault != FAULTS[reason] and not (FAULTS[reason] == "nobody" and fault == "provider"):
            self._report.violation(at.seq, f"{reason} is the fault of {FAULTS[reason]}, not {show(fault)}")

    def _count(self, at: At, lease: Lease) -> None:
        """The machine's record: a program that ran to its end, or a fault of the machine."""
        good = at.name == "Completed" or text(get(at.body, "reason.name")) in CONSUMER
        if good or at.body.get("fault") == "provider":
            record = self.records.setdefault(lease.machine, [0, 0])
            record[0] += 1
            record[1] += 1 if good else 0

    def _end(self, job: Job, lease: Lease) -> None:
        """A lease is over."""
        if lease.accepted:
            self.accepted[lease.machine] = self.accepted.get(lease.machine, 0) - 1
        job.live = None

    def held(self) -> Dict[str, int]:
        """What should be held for jobs that are not settled."""
        result = dict(self.extra_holds)
        for job in self.jobs.values():
            if not job.settled:
                name = f"held:{job.account}"
                result[name] = result.get(name, 0) + job.hold
        return result

    def finish(self, nanos: int) -> None:
        """Reports jobs that ended long before the end of the log and have no bill."""
        for job in self.jobs.values():
            if job.ending is not None and not job.settled and nanos - job.ending.nanos > LATE:
                self._report.violation(job.ending.seq, "the job ended here and was never settled")

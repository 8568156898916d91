"""Follows each job and each lease through its events (docs/verification.md, Leases and endings).

A lease is the sequence of `JobAssigned`. It is live until the attempt is declined, requeued, or ends the job.
"""

from typing import Any, Dict, Optional

from batches import Batch, Batches, personal
from events import OF_JOB, Event, instant
from market import Market, Need, need
from report import Report, get, show

ENDINGS = ("Completed", "Failed", "Cancelled")
LATE = 600 * 10**9  # nanoseconds after which a job that has ended should be settled; this reader's own choice
SLACK = 2 * 10**9  # nanoseconds by which `until` may differ; the document says "some milliseconds"
SECOND = 10**9
NEVER = 2**63

# The states in which each event is allowed, and the state after it.
ALLOWED = {
    "JobAssigned": ("Queued",),
    "Declined": ("Assigned",),
    "Accepted": ("Assigned",),
    "Started": ("Accepted",),
    "Exited": ("Running",),
    "CancelRequested": ("Accepted", "Running"),
    "Requeued": ("Assigned", "Accepted", "Running", "Collecting"),
    "Completed": ("Running", "Collecting"),
    "Failed": ("Assigned", "Accepted", "Running", "Collecting"),
    "Cancelled": ("Queued", "Assigned", "Accepted", "Running", "Collecting"),
    "Settled": ("ended",),
}
AFTER = {"JobAssigned": "Assigned", "Declined": "Queued", "Accepted": "Accepted", "Started": "Running",
         "Exited": "Collecting", "Requeued": "Queued", "Completed": "ended", "Failed": "ended", "Cancelled": "ended",
         "Settled": "settled"}

RAN = ("NonZeroExit", "OutOfMemory", "TimeLimit", "BudgetExhausted", "OutputTooLarge", "LogFlood")
UNRUN = ("BadImage", "BadCommand", "BadInput")
PROVIDER = ("ProviderLost", "NotReported", "Preempted", "GpuLost", "DiskFull", "RuntimeMisconfigured", "Interrupted",
            "AssignTimeout")
NOBODY = ("RegistryUnavailable", "InputUnavailable", "PrepareTimeout", "UploadTimeout", "Internal")
FAULTS = {**dict.fromkeys(RAN + UNRUN, "consumer"), **dict.fromkeys(PROVIDER, "provider"),
          **dict.fromkeys(NOBODY, "nobody"), "NoMachine": "platform"}
OBSERVED = ("ProviderLost", "AssignTimeout", "NotReported", "PrepareTimeout", "UploadTimeout", "NoMachine")
EVIDENCE = {"AssignTimeout": "Assigned", "PrepareTimeout": "Accepted", "NotReported": "Running",
            "UploadTimeout": "Collecting"}  # the states in which the evidence for these endings exists
ONCE_OBSERVED = ("TimeLimit", "BudgetExhausted", "RuntimeMisconfigured")  # in the time of rule 1


class Lease:
    """One attempt of a job."""

    def __init__(self, assigned: Event) -> None:
        self.seq = assigned.seq
        self.machine: str = assigned.body["machine"]
        self.terms: Dict[str, Any] = assigned.body["terms"]
        self.accepted = False
        self.started: Optional[Event] = None
        self.exited: Optional[Event] = None


class Job:
    """What the log says about a job so far.

    A task of a batch is a job, too. Its submission is that of the batch, whose `hold`, limits, placement and
    specification are those of each task.
    """

    def __init__(self, submitted: Event, batch: Optional[Batch] = None) -> None:
        self.submitted = submitted
        self.batch = batch
        self.account: str = submitted.body["account"]
        self.hold: int = submitted.body["hold"]
        self.wish: Dict[str, Any] = submitted.body["placement"]
        self.max_price: Optional[int] = submitted.body["limits"].get("max_price")
        self.need: Need = need(submitted)
        self.state = "Queued"
        self.last_seq = submitted.seq
        self.tried = False  # whether a machine has ever got the job
        self.live: Optional[Lease] = None
        self.used = 0  # attempts
        self.pauses = 0
        self.paused = 0  # nanoseconds until which no machine gets the job
        self.excluded: Dict[str, int] = {}  # machine -> nanoseconds until which it does not get the job
        self.cancel: Optional[Event] = None
        self.ending: Optional[Event] = None
        self.ended_lease: Optional[Lease] = None

    def pause(self) -> int:
        """The length of the next pause, in nanoseconds."""
        return 5 * SECOND * 2 ** min(self.pauses, 10)

    def excludes(self, machine: str, nanos: int) -> bool:
        """Whether the job pauses at this time, for this machine or for all."""
        return nanos < self.paused or nanos < self.excluded.get(machine, 0)

    def exclude(self, machine: str, until: int) -> None:
        """A pause for one machine."""
        self.excluded[machine] = max(until, self.excluded.get(machine, 0))


class Leases:
    """All jobs, and the accepted leases of every machine."""

    def __init__(self, report: Report, market: Market, batches: Batches) -> None:
        self._report = report
        self._market = market
        self._batches = batches
        self.jobs: Dict[str, Job] = {}
        self._accepted: Dict[str, int] = {}
        self._unsettled: Dict[str, Job] = {}
        self.second_rule = False  # whether a bill by rule 2 was seen: the market is not that of rule 1 any more

    def _violation(self, seq: int, what: str) -> None:
        self._report.violation("steps", seq, what)

    def _lease_violation(self, seq: int, what: str) -> None:
        self._report.violation("leases", seq, what)

    def fold(self, event: Event) -> None:
        """One event. A bill and an assignment are checked elsewhere, before they are folded here."""
        if event.name == "JobSubmitted":
            self._submitted(event)
        elif event.name == "TasksOpened":
            self._opened(event)
        if event.name not in OF_JOB:
            return
        self._report.count("steps")
        job = self.jobs.get(event.body["job"])
        if job is None:
            self._violation(event.seq, f"{event.name} of a job that nobody submitted")
            return
        self._check_state(event, job)
        self._check_author(event, job)
        if event.name == "Settled":
            self._settled(event, job)
        elif job.ending is None:
            self._step(event, job)
        job.last_seq = event.seq

    def _submitted(self, event: Event) -> None:
        """A job on its own, if the submission makes one."""
        id, account = event.body["job"], event.body["account"]
        if self._batches.made(event.seq):
            self.jobs[id] = Job(event)
            return
        earlier = self.jobs.get(id)
        if earlier is not None and earlier.batch is None and earlier.account == account:
            self._violation(event.seq, f"the same account submitted this job at {earlier.submitted.seq}")

    def _opened(self, event: Event) -> None:
        """The tasks that the batch now counts as opened become jobs. No decision about them is older than this."""
        batch = self._batches.find(event.body["batch"])
        while batch is not None and batch.jobs < batch.opened:
            job = self.jobs[batch.task(batch.jobs)] = Job(batch.submitted, batch)
            job.last_seq = event.seq
            batch.jobs += 1

    def _check_state(self, event: Event, job: Job) -> None:
        """Whether the event is allowed in the job's state."""
        name, allowed = event.name, ALLOWED[event.name]
        no_machine = name == "Failed" and get(event.body, "reason.name") == "NoMachine"
        if name == "JobAssigned" and job.live is not None:
            return  # a second live lease is reported with the lease
        if job.state not in (("Queued",) if no_machine else allowed):
            what = "NoMachine" if no_machine else name
            ended = "" if job.ending is None else f": the job ended at {job.ending.seq}"
            self._violation(event.seq, f"{what} in the state {job.state}{ended}")
        if name == "Started" and job.cancel is not None:
            self._violation(event.seq, "Started after CancelRequested")
        if name == "CancelRequested" and job.cancel is not None:
            self._violation(event.seq, "CancelRequested a second time")
        if name == "Cancelled" and job.state in ("Accepted", "Running", "Collecting") and job.cancel is None:
            self._violation(event.seq, f"Cancelled in the state {job.state}, without CancelRequested")

    def _check_author(self, event: Event, job: Job) -> None:
        """Whether the event is written in the name of somebody who may."""
        name, actor, reason = event.name, event.actor, get(event.body, "reason.name")
        machine = None if job.live is None else f"machine:{job.live.machine}"
        person = personal(actor, job.account)
        if actor == "platform" and job.batch is not None and job.batch.closed is not None:
            person = True  # The market cancels the tasks of a closed batch as a person would.
        if name in ("JobAssigned", "Settled"):
            good = actor == "platform"
        elif name == "CancelRequested":
            good = person
        elif name == "Cancelled":
            good = person if job.state in ("Queued", "Assigned") else actor in (machine, "platform")
        elif name in ("Failed", "Requeued") and reason in OBSERVED:
            good = actor == "platform"
        else:
            once = name in ("Failed", "Requeued") and reason in ONCE_OBSERVED and not self.second_rule
            good = actor == machine or (actor == "platform" and once)
        if not good and (job.ending is None or name == "Settled"):
            self._violation(event.seq, f"{name} may not be written by {show(actor)}")

    def _settled(self, event: Event, job: Job) -> None:
        """The end of a job's events."""
        self.second_rule = self.second_rule or event.body.get("rule") == 2
        if job.ending is not None:
            if job.batch is not None and job.state != "settled":
                job.batch.settled += 1
            job.state = "settled"
            self._unsettled.pop(event.body["job"], None)

    def _step(self, event: Event, job: Job) -> None:
        """An event of a job that has not ended."""
        name, live, named = event.name, job.live, event.body.get("lease")
        if name == "JobAssigned":
            self._assigned(event, job)
            return
        if name == "CancelRequested":
            job.cancel = job.cancel or event
            return
        if named != (None if live is None else live.seq):
            have = "none" if live is None else str(live.seq)
            self._lease_violation(event.seq, f"{name} under the lease {show(named)}; the live lease is {have}")
            if name not in ENDINGS:
                return
        if name in ("Failed", "Requeued"):
            self._fault(event, job)
        if name in ENDINGS:
            self._ended(event, job)
        elif live is not None:
            self._attempt(event, job, live)
        job.state = AFTER[name]

    def _assigned(self, event: Event, job: Job) -> None:
        """A new lease."""
        self._report.count("leases")
        body = event.body
        if job.live is not None:
            self._lease_violation(event.seq, f"the lease {job.live.seq} of this job is still live")
            self._end(event, job, job.live)
        if body["submission"] != job.submitted.seq:
            self._violation(event.seq, f"the submission is {job.submitted.seq}, not {body['submission']}")
        most = job.submitted.body["limits"]["max_attempts"]
        if body["attempt"] != job.used + 1:
            self._violation(event.seq, f"this is attempt {job.used + 1}, not {body['attempt']}")
        if job.used >= most:
            self._violation(event.seq, f"all {most} attempts are used up")
        job.live, job.state, job.tried = Lease(event), "Assigned", True
        self._market.take(event, job.live.machine, job.need, 1)

    def _attempt(self, event: Event, job: Job, live: Lease) -> None:
        """A step of the live attempt."""
        if event.name == "Accepted":
            state = self._market.now(live.machine)
            count = self._accepted.get(live.machine, 0) + (0 if live.accepted else 1)
            if state is not None and count > state.slots:
                self._lease_violation(event.seq, f"the machine has {count} accepted leases and {state.slots} slots")
            self._accepted[live.machine] = count
            live.accepted = True
        elif event.name == "Started":
            live.started = live.started or event
        elif event.name == "Exited":
            live.exited = live.exited or event
        elif event.name == "Declined":
            if event.body["machine"] != live.machine:
                self._violation(event.seq, "Declined names another machine than the lease")
            job.exclude(live.machine, event.nanos + job.pause())
            job.pauses += 1
            self._end(event, job, live)
        else:
            self._requeued(event, job, live)

    def _requeued(self, event: Event, job: Job, live: Lease) -> None:
        """An attempt that ended without ending the job, and the pause after it."""
        until = instant(event.body.get("until"))
        if event.body["excluded"] != live.machine:
            self._violation(event.seq, "Requeued excludes another machine than that of the lease")
        if until is None:
            if self.second_rule:
                self._violation(event.seq, "Requeued without `until`, after a bill by rule 2")
            job.exclude(live.machine, event.nanos + 5 * SECOND if job.wish["by"] == "machine" else NEVER)
        else:
            due = event.nanos + job.pause()
            if abs(until - due) > SLACK:
                self._violation(event.seq, f"the pause ends {(until - due) / SECOND:+.3f} s from where it should: "
                                           f"it should last {job.pause() // SECOND} s")
            if event.body["fault"] == "nobody":
                job.paused = max(job.paused, until)
            else:
                job.exclude(live.machine, until)
            job.pauses += 1
        job.used = used_after(event, job)
        self._market.prove(event, live.machine)
        self._end(event, job, live)

    def _ended(self, event: Event, job: Job) -> None:
        """The ending of a job."""
        live = job.live
        job.ending, job.ended_lease = event, live
        if job.batch is not None:
            job.batch.failed += 1 if event.name == "Failed" else 0
            if not job.tried and event.cause != job.submitted.seq:
                self._violation(event.seq, f"the cause is {show(event.cause)}; of an ending without an attempt it is "
                                           f"the submission, {job.submitted.seq}")
        self._unsettled[event.body["job"]] = job
        if live is not None:
            self._market.prove(event, live.machine)
            self._end(event, job, live)

    def _fault(self, event: Event, job: Job) -> None:
        """The fault of an ending, its evidence, and whether the job may try again."""
        reason, fault, live = event.body["reason"]["name"], event.body["fault"], job.live
        due = FAULTS.get(reason)
        if due is None:
            self._violation(event.seq, f"the ending {show(reason)} is not documented")
        elif fault != due and not (due == "nobody" and fault == "provider" and not self.second_rule):
            self._violation(event.seq, f"{reason} is the fault of {due}, not of {fault}")
        if EVIDENCE.get(reason, job.state) != job.state:
            self._violation(event.seq, f"{reason} in the state {job.state}")
        if reason in RAN and (live is None or live.started is None):
            if self.second_rule:
                self._violation(event.seq, f"{reason} without Started under the same lease")
            else:
                self._report.note("an ending of a program that never started; earlier programs did not refuse it")
        again = fault in ("provider", "nobody") and job.cancel is None and (
            used_after(event, job) < job.submitted.body["limits"]["max_attempts"])
        if event.name == "Requeued" and not again:
            self._violation(event.seq, f"requeued after a fault of {fault}, with {used_after(event, job)} attempts "
                                       f"used up{' and a request to cancel' if job.cancel else ''}")
        if event.name == "Failed" and again and live is not None:
            self._violation(event.seq, "the job failed, and should have been requeued")

    def _end(self, event: Event, job: Job, lease: Lease) -> None:
        """A lease is over."""
        if lease.accepted:
            self._accepted[lease.machine] -= 1
        self._market.take(event, lease.machine, job.need, -1)
        job.live = None

    def finish(self, nanos: int) -> None:
        """Reports jobs that ended long before the end of the log and have no bill."""
        for job in self._unsettled.values():
            if job.ending is not None and nanos - job.ending.nanos > LATE:
                self._violation(job.ending.seq, "the job ended here and was never settled")


def used_after(event: Event, job: Job) -> int:
    """How many attempts are used up if the live attempt ends with this event."""
    free = event.body["fault"] == "nobody" and (job.live is None or job.live.started is None)
    return job.used + (0 if free else 1)

"""Follows each batch, and tells which submission makes a job or a batch (docs/verification.md, Batches).

The id of a batch ends in 20 zero bits. Its tasks are the jobs with the next ids, and become jobs with `TasksOpened`.
"""

from typing import Any, Dict, List, Optional, Set

from events import OF_BATCH, Event
from report import Report, show

NUMBERS = 5  # hexadecimal digits of an id in which the ids of a batch's tasks differ: 20 bits
MOST_TASKS = 16**NUMBERS - 1  # with one more, the last task would have the id of another batch


def stem(id: str) -> str:
    """The 108 bits of an id that a batch shares with its tasks."""
    return id[:-NUMBERS]


def personal(actor: str, account: str) -> bool:
    """Whether an event is written in the name of this consumer or of an operator."""
    return actor == f"account:{account}" or actor == "operator" or actor.startswith("operator:")


class Batch:
    """What the log says about a batch so far."""

    def __init__(self, submitted: Event) -> None:
        self.submitted = submitted
        self.id: str = submitted.body["batch"]
        self.account: str = submitted.body["account"]
        self.hold: int = submitted.body["hold"]  # of each task
        self.count: int = submitted.body["tasks"]["count"]
        self.opened = 0  # the tasks with a lower number than this were opened
        self.jobs = 0  # the tasks with a lower number than this are followed as jobs
        self.failed = 0
        self.settled = 0
        self.closed: Optional[Event] = None

    def task(self, number: int) -> str:
        """The id of a task. The numbers begin at 0, and the id of the first task is the next one after the batch's."""
        return stem(self.id) + format(number + 1, f"0{NUMBERS}x")

    def has_opened(self, job: str) -> bool:
        """Whether a job is one of the tasks that were opened."""
        return stem(job) == stem(self.id) and 1 <= int(job[-NUMBERS:], 16) <= self.opened

    def rest(self) -> int:
        """The hold of the tasks that were not opened."""
        return self.hold * (self.count - self.opened)


class Batches:
    """All batches, and the ids that are taken."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._batches: Dict[str, Batch] = {}  # by the first 108 bits of the id
        self._jobs: Set[str] = set()  # the ids of all jobs that were submitted on their own
        self._stems: Set[str] = set()  # the first 108 bits of these ids
        self._made: Set[int] = set()  # the submissions that made a job or a batch

    def _violation(self, seq: int, what: str) -> None:
        self._report.violation("batches", seq, what)

    def made(self, submission: int) -> bool:
        """Whether a submission made a job or a batch. The hold of another one is only waiting for its release."""
        return submission in self._made

    def find(self, id: str) -> Optional[Batch]:
        """The batch with this id, if a submission made it."""
        batch = self._batches.get(stem(id))
        return batch if batch is not None and batch.id == id else None

    def fold(self, event: Event) -> None:
        """One event. It must be folded here before it is folded in the ledger and with the leases."""
        if event.name == "JobSubmitted":
            self._job_submitted(event)
        elif event.name == "BatchSubmitted":
            self._report.count("batches")
            self._batch_submitted(event)
        elif event.name in OF_BATCH:
            self._report.count("batches")
            batch = self.find(event.body["batch"])
            if batch is None:
                self._violation(event.seq, f"{event.name} of a batch that no submission made")
                return
            if event.body["submission"] != batch.submitted.seq:
                self._violation(event.seq,
                                f"the submission is {batch.submitted.seq}, not {event.body['submission']}")
            if event.name == "TasksOpened":
                self._opened(event, batch)
            else:
                self._closed(event, batch)

    def _job_submitted(self, event: Event) -> None:
        """A job on its own. It makes no job if its id is taken, or lies in the range of an earlier batch."""
        job = event.body["job"]
        if job not in self._jobs and stem(job) not in self._batches:
            self._made.add(event.seq)
        self._jobs.add(job)
        self._stems.add(stem(job))

    def _batch_submitted(self, event: Event) -> None:
        """A batch. It is made if no id in its range is taken."""
        id, count = event.body["batch"], event.body["tasks"]["count"]
        if int(id[-NUMBERS:], 16) != 0:
            self._violation(event.seq, f"the id of the batch ends in {id[-NUMBERS:]}, and not in 20 zero bits")
        if count > MOST_TASKS:
            self._violation(event.seq, f"the ids of {count} tasks do not fit into the range of the batch")
        for problem in table_problems(event.body["tasks"]):
            self._violation(event.seq, problem)
        earlier = self._batches.get(stem(id))
        if earlier is not None and (earlier.id, earlier.account) == (id, event.body["account"]):
            self._violation(event.seq, f"the same account submitted this batch at {earlier.submitted.seq}")
        if earlier is None and stem(id) not in self._stems:
            self._made.add(event.seq)
            self._batches[stem(id)] = Batch(event)

    def _opened(self, event: Event, batch: Batch) -> None:
        """Some tasks become jobs."""
        first, up_to = event.body["first"], event.body["up_to"]
        if event.actor != "platform":
            self._violation(event.seq, f"TasksOpened may not be written by {show(event.actor)}")
        if first != batch.opened:
            self._violation(event.seq, f"the next task to open is number {batch.opened}, not {first}")
        if not first < up_to <= batch.count:
            self._violation(event.seq, f"the tasks from {first} to below {up_to} are opened, of {batch.count} tasks")
        if batch.closed is not None:
            self._violation(event.seq, f"TasksOpened of a batch that was closed at {batch.closed.seq}")
        else:
            batch.opened = max(batch.opened, min(up_to, batch.count, MOST_TASKS))

    def _closed(self, event: Event, batch: Batch) -> None:
        """No other task is opened. The ledger checks what is released."""
        body, reason = event.body, event.body["reason"]
        if not (personal(event.actor, batch.account) if reason == "cancelled" else event.actor == "platform"):
            self._violation(event.seq, f"BatchClosed with {reason} may not be written by {show(event.actor)}")
        if batch.closed is not None:
            self._violation(event.seq, f"the batch was already closed at {batch.closed.seq}")
            return
        for name, due in (("opened", batch.opened), ("account", batch.account)):
            if body[name] != due:
                self._violation(event.seq, f"{name} is {show(body[name])}, and should be {show(due)}")
        if reason == "finished" and not batch.opened == batch.settled == batch.count:
            self._violation(event.seq, f"the batch is not finished: {batch.opened} of {batch.count} tasks are opened, "
                                       f"and {batch.settled} are settled")
        most = batch.submitted.body["max_failures"]
        if reason == "too_many_failures" and batch.failed <= most:
            self._violation(event.seq, f"{batch.failed} tasks have failed, and {most} may fail")
        batch.closed = event


def table_problems(tasks: Dict[str, Any]) -> List[str]:
    """What is wrong with the indices and the parameters of a batch's tasks."""
    count, problems = tasks["count"], []
    indices, names, rows = (tasks.get(name) or [] for name in ("indices", "names", "rows"))
    if indices and len(indices) != count:
        problems.append(f"the batch has {count} tasks and {len(indices)} indices")
    if len(rows) != (count if names else 0):
        problems.append(f"the batch has {count} tasks, {len(names)} names of parameters and {len(rows)} rows")
    if any(len(row) != len(names) for row in rows):
        problems.append(f"a row of parameters has not one text for each of the {len(names)} names")
    return problems

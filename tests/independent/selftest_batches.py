"""The self-test of batches: their money, their tasks, and their ends."""

import sys
from typing import Any, Tuple

sys.dont_write_bytecode = True

from cases import METERING, Case, begun  # noqa: E402
from synthetic import (BATCH, CONSUMER, FAR, JOB, NEAR, OTHER, PROVIDER, SECOND_JOB, Log, cheapest, four,  # noqa: E402
                       number, task, two)

OPERATOR, PERSON = f"operator:{OTHER}", f"account:{CONSUMER}"


def opened(up_to: int = 2, **batch: Any) -> Log:
    """A batch of three tasks, of which the first ones are opened."""
    log = begun()
    log.batch_submitted(**batch)
    log.tasks_opened(0, up_to)
    return log


def completed(log: Log, value: int, **changes: Any) -> None:
    """A task that costs 200, with changes to its bill."""
    job, submission = task(value), log.batch
    lease = log.assigned(submission, job=job)
    started = log.started(lease, job)
    ended = log.completed(lease, 720, job)
    metering = {**METERING, "started": started, "ended": ended}
    bill = {"outcome": ended, "postings": four(500_000, 200, 20), "cost": 200, "fee": 20, "earned": 180, "job": job,
            "submission": submission, "provider": PROVIDER, "lease": lease, "metering": metering}
    log.settled(**{**bill, **changes})


def failed(log: Log, value: int) -> None:
    """A task for which no machine came free. It costs nothing."""
    ended = log.step("Failed", None, task(value), actor="platform", reason={"name": "NoMachine"}, fault="platform")
    log.settled(ended, two(500_000), job=task(value), submission=log.batch)


def finished() -> Log:
    """A whole batch: two tasks are opened, then the last one, and then it is closed."""
    log = opened(max_failures=1, table={"indices": [5, 6, 9], "names": ["lr"], "rows": [["1"], ["2"], ["3"]]})
    completed(log, 0)
    log.tasks_opened(2, 3)
    completed(log, 2)
    failed(log, 1)
    log.batch_closed("finished", 3, 0)
    return log


class Tasks(Case):
    """The submission of a batch, and its tasks."""

    def test_clean(self) -> None:
        report = self.clean(finished())
        self.assertEqual((report.checked["batches"], report.checked["bills"], report.checked["placements"]), (4, 3, 2))
        balances = report.balances
        self.assertEqual((balances[f"available:{CONSUMER}"], balances[f"held:{CONSUMER}"]), (9_999_600, 0))
        self.assertEqual(report.notes, {})

    def test_hold(self) -> None:
        """`hold` is held for each task."""
        self.assertEqual(self.clean(opened()).balances[f"held:{CONSUMER}"], 1_500_000)
        log = begun(dollars=1)
        log.batch_submitted(hold=333_334)
        self.found(log, "ledger", "falls to -2")
        log = begun(dollars=30_000)
        log.batch_submitted(hold=10_000_000_001, count=2)
        self.found(log, "ledger", "more than $10,000")

    def test_suspended(self) -> None:
        log = begun()
        log.add("AccountSuspended", {"account": CONSUMER, "reason": "r"}, OPERATOR)
        log.batch_submitted()
        self.found(log, "ledger", "BatchSubmitted of a suspended account")

    def test_tables(self) -> None:
        for table, what in (({"indices": [1, 2]}, "3 tasks and 2 indices"),
                            ({"names": ["x"], "rows": [["1"], ["2"]]}, "1 names of parameters and 2 rows"),
                            ({"rows": [[], [], []]}, "0 names of parameters and 3 rows"),
                            ({"names": ["x"], "rows": [["1"], ["2"], ["3", "4"]]}, "not one text for each")):
            self.found(opened(table=table), "batches", what)
        self.clean(opened(table={"indices": [3, -1, 0]}))
        log = begun()
        log.batch_submitted(table={"indices": ["1", "2", "3"]})
        self.clean(log, strays=1)

    def test_ids(self) -> None:
        log = begun()
        log.batch_submitted(batch=task(0))
        self.found(log, "batches", "ends in 00001")
        log = begun()
        log.batch_submitted(count=2**20, hold=0)
        self.found(log, "batches", "do not fit")

    def test_envelopes(self) -> None:
        log = opened()
        log.lines[-1]["headers"]["Gpubnb-Correlation"] = BATCH
        self.found(log, "envelopes", "TasksOpened has the correlation")
        for log in (opened(), finished()):
            del log.lines[-1]["headers"]["Gpubnb-Cause"]
            self.found(log, "envelopes", "names no cause")
        log = opened()
        log.lines[-1]["subject"] = f"market.job.{BATCH}.event"
        self.clean(log, strays=1)

    def test_opened(self) -> None:
        """A forged `TasksOpened` after one that opened two of three tasks."""
        for first, up_to, changes, what in ((1, 3, {}, "the next task to open is number 2, not 1"),
                                            (0, 2, {}, "the next task to open is number 2, not 0"),
                                            (2, 4, {}, "the tasks from 2 to below 4 are opened, of 3 tasks"),
                                            (2, 2, {}, "the tasks from 2 to below 2"),
                                            (2, 3, {"submission": 1}, "the submission is 6, not 1"),
                                            (2, 3, {"actor": PERSON}, "TasksOpened may not be written by"),
                                            (2, 3, {"batch": JOB}, "of a batch that no submission made")):
            log = opened()
            log.tasks_opened(first, up_to, **changes)
            self.found(log, "batches", what)

    def test_not_opened(self) -> None:
        log = opened()
        log.assigned(log.batch, job=task(2))
        self.found(log, "steps", "JobAssigned of a job that nobody submitted")

    def test_submission(self) -> None:
        """An assignment or a bill of a task that names another submission than that of the batch."""
        log = opened()
        log.assigned(log.batch + 1, job=task(0))
        self.found(log, "steps", "the submission is 6, not 7")
        log = opened()
        another = log.submitted()
        completed(log, 0, submission=another)
        self.found(log, "bills", f"submission is {another}, and should be {log.batch}", ("ledger",))
        log = opened()
        log.submitted()
        ended = log.step("Cancelled", None, actor=PERSON)
        log.settled(ended, two(500_000), submission=log.batch)
        self.found(log, "ledger", f"{log.batch} has no open hold for this task by this account", ("bills",))

    def test_settled_twice(self) -> None:
        """The share of one task does not close that of another."""
        log = opened()
        completed(log, 0)
        log.lines.append({**log.lines[-1], "seq": len(log.lines) + 1})
        self.found(log, "ledger", "no open hold for this task", ("steps",))

    def test_limits(self) -> None:
        """The limits and the placement of the batch are those of its tasks."""
        log = opened(time=1, max_price=1_500_000)
        lease = log.assigned(log.batch, job=task(1), candidates=1, rejected=(("Price", 1),))
        started = log.started(lease, task(1))
        ended = log.completed(lease, 1500, task(1), after=2)
        metering = {"broker": 2000, "worker": 1500, "limit": 1000, "budget": 1_800_000, "billed": 1000,
                    "started": started, "ended": ended}
        log.settled(ended, four(500_000, 277, 27), 277, 27, 250, task(1), log.batch, provider=PROVIDER, lease=lease,
                    metering=metering)
        self.clean(log)
        log = opened(wish=cheapest(price_cap=999_999))
        log.assigned(log.batch, job=task(0), candidates=0, rejected=(("Price", 2),))
        self.found(log, "placements", "the machine is no candidate: Price")

    def test_no_older_than_the_opening(self) -> None:
        """The decision is made when the task is opened, and so it knows the price before that."""
        log = begun()
        log.batch_submitted()
        log.machine("MachineRepriced", NEAR, price=3_000_000)
        log.tasks_opened(0, 1)
        log.assigned(log.batch, job=task(0))
        self.found(log, "placements", f"the machine {FAR} comes before this one")

    def test_cause(self) -> None:
        log = opened()
        failed(log, 0)
        self.clean(log)
        log.lines[-2]["headers"]["Gpubnb-Cause"] = str(log.batch + 1)
        self.found(log, "steps", f"the cause is {log.batch + 1}; of an ending without an attempt it is the submission")


class Ends(Case):
    """`BatchClosed`, and submissions whose id is taken."""

    def cancelled(self, **changes: Any) -> Log:
        """A batch that the consumer cancels, with one opened task."""
        log = opened(1)
        log.batch_closed(**{"reason": "cancelled", "opened": 1, "released": 1_000_000, "actor": PERSON, **changes})
        return log

    def test_cancelled(self) -> None:
        balances = self.clean(self.cancelled()).balances
        self.assertEqual((balances[f"available:{CONSUMER}"], balances[f"held:{CONSUMER}"]), (9_500_000, 500_000))
        log = self.cancelled(actor=OPERATOR)
        completed(log, 0)
        self.assertEqual(self.clean(log).balances[f"held:{CONSUMER}"], 0)

    def test_forged(self) -> None:
        for changes, what in (({"opened": 2}, "opened is 2, and should be 1"),
                              ({"submission": 1}, "the submission is 6, not 1"),
                              ({"actor": "platform"}, "BatchClosed with cancelled may not be written by 'platform'"),
                              ({"reason": "too_old"}, "BatchClosed with too_old may not be written by"),
                              ({"batch": JOB}, "of a batch that no submission made")):
            self.found(self.cancelled(**changes), "batches", what, ("ledger",) if "batch" in changes else ())
        self.found(self.cancelled(account=OTHER), "batches", "account is", ("ledger",))

    def test_released(self) -> None:
        for value in (0, 999_999, 1_000_001, 1_500_000):
            self.found(self.cancelled(released=value), "ledger",
                       f"{value} is released, the hold of the tasks that were not opened is 1000000")

    def test_unknown_reason(self) -> None:
        self.clean(self.cancelled(reason="bored"), strays=1)

    def test_after_the_end(self) -> None:
        log = self.cancelled()
        log.tasks_opened(1, 2)
        self.found(log, "batches", "TasksOpened of a batch that was closed at 8")
        log = self.cancelled()
        log.batch_closed("too_old", 1, 0)
        self.found(log, "batches", "the batch was already closed at 8")
        log.lines.pop()
        log.batch_closed("too_old", 1, 500_000)
        self.found(log, "ledger", "500000 is released", ("batches",))

    def test_too_old(self) -> None:
        self.clean(self.cancelled(reason="too_old", actor="platform"))

    def test_finished(self) -> None:
        log = opened(3)
        completed(log, 0)
        completed(log, 1)
        log.batch_closed("finished", 3, 0)
        self.found(log, "batches", "not finished: 3 of 3 tasks are opened, and 2 are settled")
        log = opened(1)
        completed(log, 0)
        log.batch_closed("finished", 1, 1_000_000)
        self.found(log, "batches", "not finished: 1 of 3 tasks are opened")

    def test_too_many_failures(self) -> None:
        for failures, good in ((2, True), (1, False)):
            log = opened(max_failures=1)
            for value in range(failures):
                failed(log, value)
            log.batch_closed("too_many_failures", 2, 500_000)
            if good:
                self.clean(log)
            else:
                self.found(log, "batches", "1 tasks have failed, and 1 may fail")

    def stopped(self, state: str, closed: bool) -> Tuple[Log, str]:
        """The market cancels a task, perhaps of a batch that was closed. Returns the log and the event's name."""
        log, job, lease = opened(1), task(0), None
        if state != "Queued":
            lease = log.assigned(log.batch, job=job)
        if state == "Running":
            log.started(lease or 0, job)
        if closed:
            log.batch_closed("too_old", 1, 1_000_000)
        if state != "Running":
            log.step("Cancelled", lease, job, actor="platform")
            return log, "Cancelled"
        log.step("CancelRequested", None, job, actor="platform")
        return log, "CancelRequested"

    def test_the_market_cancels(self) -> None:
        """It may cancel the tasks of a closed batch only."""
        for state in ("Queued", "Assigned", "Running"):
            self.clean(self.stopped(state, True)[0])
            log, name = self.stopped(state, False)
            self.found(log, "steps", f"{name} may not be written by 'platform'")
        log, _ = self.stopped("Queued", True)
        log.submitted()
        log.step("Cancelled", None, actor="platform")
        self.found(log, "steps", "Cancelled may not be written by 'platform'")

    def taken(self, second: str, **changes: Any) -> Log:
        """Another account submits a batch or a job in the range of the first batch, and gets its money back."""
        log = opened()
        made = log.batch
        log.opened(OTHER, 2, number(0xD, 2))
        if second == BATCH:
            later, amount = log.batch_submitted(account=OTHER), 1_500_000
        else:
            later, amount = log.submitted(second, account=OTHER), 500_000
        log.batch = made
        log.add("HoldReleased", {"account": OTHER, "job": second, "submission": later, "amount": amount, **changes})
        return log

    def test_taken(self) -> None:
        for second in (BATCH, task(0), task(2), task(99)):
            log = self.taken(second)
            completed(log, 0)
            report = self.clean(log)
            self.assertEqual((report.balances[f"available:{OTHER}"], report.notes), (2_000_000, {}))
            log = self.taken(second)
            log.lines.pop()
            self.assertIn("a submission made no job, and its hold is not released", self.clean(log).notes)
        self.found(self.taken(BATCH, amount=500_000), "ledger", "500000 is released, the hold was 1500000")
        self.found(self.taken(BATCH, submission=6), "ledger", "the submission made the batch")
        self.found(self.taken(BATCH, job=SECOND_JOB), "ledger", "no open submission")

    def test_taken_by_a_job(self) -> None:
        """A job whose id lies in the range of a later batch."""
        log = begun()
        log.submitted(task(7))
        later = log.batch_submitted()
        log.add("HoldReleased", {"account": CONSUMER, "job": BATCH, "submission": later, "amount": 1_500_000})
        self.clean(log)
        log.lines.pop()
        log.tasks_opened(0, 1)
        self.found(log, "batches", "of a batch that no submission made")

    def test_the_same_account_twice(self) -> None:
        log = opened()
        log.batch_submitted()
        self.found(log, "batches", "the same account submitted this batch at 6")

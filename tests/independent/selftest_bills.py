"""The self-test of the bills."""

import sys
from typing import Any

sys.dont_write_bytecode = True

from cases import METERING, Case, begun, billed, running  # noqa: E402
from synthetic import CONSUMER, NEAR, PROVIDER, SECOND_JOB, Log, four, two  # noqa: E402


class Bills(Case):
    """Every rule of a bill."""

    def test_one_off(self) -> None:
        postings = [(f"held:{CONSUMER}", -500_000), (f"available:{CONSUMER}", 499_799), (f"available:{PROVIDER}", 181),
                    ("fees", 20)]
        self.found(billed(cost=201, earned=181, postings=postings), "bills", "cost is 201, and should be 200")
        self.found(billed(cost=201, earned=181), "bills", "cost is 201, and should be 200")
        self.found(billed(fee=19, earned=181), "bills", "fee is 19")

    def test_postings(self) -> None:
        right = four(500_000, 200, 20)
        self.found(billed(postings=right[:3]), "ledger", "the postings sum to -20", ("bills",))
        self.found(billed(postings=right[1:]), "ledger", "the postings sum to 500000", ("bills",))
        self.found(billed(postings=[right[1], right[0], *right[2:]]), "bills", "the postings are")
        self.found(billed(postings=right + [("reserve", 0)]), "ledger", "no account", ("bills",))

    def test_metering(self) -> None:
        for name, value in (("broker", 999), ("worker", 721), ("limit", 600), ("budget", None), ("billed", 719)):
            metering = {**METERING, "started": 9, "ended": 10, name: value}
            self.found(billed(metering={key: one for key, one in metering.items() if one is not None}), "bills",
                       f"metering.{name} is")
        self.found(billed(metering=None), "bills", "no metering")

    def test_cites(self) -> None:
        self.found(billed(outcome=9), "bills", "outcome is 9")
        self.found(billed(provider=CONSUMER), "bills", "provider is")
        self.found(billed(rule=3), "bills", "the billing rule 3")

    def test_smallest_time(self) -> None:
        """The example of the document: the time limit is the smallest time."""
        log, submission, lease, started = running(time=2)
        ended = log.failed(lease, "TimeLimit", "consumer", usage={"run": 2026})
        log.lines[-1]["nanos"] += 1_257_000_000
        metering = {"broker": 2257, "worker": 2026, "limit": 2000, "budget": 1_800_000, "billed": 2000,
                    "started": started, "ended": ended}
        log.settled(ended, four(500_000, 555, 55), 555, 55, 500, submission=submission, provider=PROVIDER, lease=lease,
                    metering=metering)
        self.clean(log)

    def test_times_are_cut_first(self) -> None:
        log, submission, lease, started = running()
        log.lines[-1]["nanos"] += 332_800
        ended = log.completed(lease, 720, after=0.3456)
        log.lines[-1]["nanos"] += 134_083
        bill = dict(postings=four(500_000, 96, 9), cost=96, fee=9, earned=87, submission=submission, provider=PROVIDER,
                    lease=lease)
        self.assertEqual(log.lines[-1]["nanos"] - log.lines[-2]["nanos"], 345_734_083)
        metering = {**METERING, "started": started, "ended": ended, "broker": 346, "billed": 346}
        log.settled(ended, **bill, metering=metering)
        self.clean(log)
        for line in log.lines[-3:-1]:
            line["nanos"] -= 332_800
        self.found(log, "bills", "metering.broker is 346, and should be 345")

    def test_unmetered(self) -> None:
        log, submission, lease, _ = running(attempts=1)
        ended = log.failed(lease, "Preempted", "provider", usage={"run": 500})
        log.settled(ended, two(500_000), submission=submission)
        self.clean(log)
        log, submission, lease, started = running(attempts=1)
        ended = log.failed(lease, "Preempted", "provider", usage={"run": 720})
        log.settled(ended, four(500_000, 200, 20), 200, 20, 180, submission=submission, provider=PROVIDER, lease=lease,
                    metering={**METERING, "started": started, "ended": ended})
        self.found(log, "bills", "nothing should be metered")

    def test_program_never_ran(self) -> None:
        """A report of 0 ms is metered, and has four postings."""
        log, submission, lease, started = running()
        ended = log.failed(lease, "BadCommand", "consumer", usage={"run": 0})
        bill: Any = dict(submission=submission, provider=PROVIDER, lease=lease)
        metering = {**METERING, "worker": 0, "billed": 0, "started": started, "ended": ended}
        log.settled(ended, four(500_000, 0, 0), **bill, metering=metering)
        self.clean(log)
        log.lines.pop()
        log.settled(ended, two(500_000), submission=submission)
        self.found(log, "bills", "no metering")

    def test_bill_for_a_program_that_never_ran(self) -> None:
        log, submission, lease, started = running()
        ended = log.failed(lease, "BadImage", "consumer", usage={"run": 720})
        log.settled(ended, four(500_000, 200, 20), 200, 20, 180, submission=submission, provider=PROVIDER, lease=lease,
                    metering={**METERING, "started": started, "ended": ended})
        self.found(log, "bills", "200 is billed for BadImage")

    def test_exited(self) -> None:
        """The time ends at `Exited`, and its run time counts."""
        log, submission, lease, started = running()
        exited = log.step("Exited", lease, usage={"run": 720})
        ended = log.completed(lease, 9999)
        bill = dict(postings=four(500_000, 200, 20), cost=200, fee=20, earned=180, submission=submission,
                    provider=PROVIDER, lease=lease)
        log.settled(ended, **bill, metering={**METERING, "started": started, "ended": exited})
        self.clean(log)
        log.lines.pop()
        log.settled(ended, **bill, metering={**METERING, "broker": 2000, "started": started, "ended": ended})
        self.found(log, "bills", "metering.ended is 11, and should be 10")

    def cancelled(self, rule: Any, reported: bool) -> tuple:
        """A job that was cancelled one second after its start, and ended two seconds after its start."""
        log, submission, lease, started = running()
        wished = log.step("CancelRequested", None, actor=f"account:{CONSUMER}")
        actor, usage = ("", {"usage": {"run": 720}}) if reported else ("platform", {})
        ended = log.step("Cancelled", lease, actor=actor, **usage)
        bill = dict(submission=submission, rule=rule)
        return log, ended, bill, dict(provider=PROVIDER, lease=lease,
                                      metering={**METERING, "started": started, "ended": wished})

    def test_cancelled(self) -> None:
        log, ended, bill, metered = self.cancelled(2, True)
        log.settled(ended, four(500_000, 200, 20), 200, 20, 180, **bill, **metered)
        self.clean(log)
        log, ended, bill, metered = self.cancelled(2, False)
        log.settled(ended, two(500_000), **bill)
        self.clean(log)

    def test_cancelled_by_rule_1(self) -> None:
        """Without a report, rule 1 billed the broker's time."""
        log, ended, bill, metered = self.cancelled(None, False)
        metered["metering"].pop("worker")
        metered["metering"]["billed"] = 1000
        log.settled(ended, four(500_000, 277, 27), 277, 27, 250, **bill, **metered)
        self.clean(log)
        log.lines.pop()
        log.settled(ended, two(500_000), **bill)
        self.found(log, "bills", "no metering; 1000 ms should be billed")

    def test_request_without_effect(self) -> None:
        """A request to cancel does not shorten the time of a job that completed."""
        log, submission, lease, started = running()
        log.step("CancelRequested", None, actor=f"account:{CONSUMER}")
        ended = log.completed(lease, 720)
        log.settled(ended, four(500_000, 200, 20), 200, 20, 180, submission=submission, provider=PROVIDER, lease=lease,
                    metering={**METERING, "broker": 2000, "started": started, "ended": ended})
        self.clean(log)

    def free(self, price: int, hold: int) -> Log:
        """A job that costs nothing, because the price or the hold is 0."""
        log = begun()
        log.add("MachineRepriced", {"machine": NEAR, "price": price})
        submission = log.submitted(hold=hold)
        lease = log.assigned(submission, price=price)
        started = log.started(lease)
        ended = log.completed(lease, 720)
        metering: Any = {**METERING, "started": started, "ended": ended}
        metering.pop("budget")
        if price:
            metering.update(budget=0, billed=0)
        log.settled(ended, four(hold, 0, 0), submission=submission, provider=PROVIDER, lease=lease, metering=metering)
        return log

    def test_free(self) -> None:
        self.clean(self.free(0, 0))
        self.clean(self.free(0, 500_000))
        self.clean(self.free(1_000_000, 0))

    def test_fee_is_rounded_down(self) -> None:
        """36,036 ms cost 10,010 and the fee of a tenth is 1,001; one more millisecond changes neither."""
        for run in (36_036, 36_037):
            log, submission, lease, started = running()
            ended = log.completed(lease, run, after=60)
            log.settled(ended, four(500_000, 10_010, 1001), 10_010, 1001, 9009, submission=submission, lease=lease,
                        provider=PROVIDER, metering={**METERING, "broker": 60_000, "worker": run, "billed": run,
                                                     "started": started, "ended": ended})
            self.clean(log)

    def test_the_budget_is_the_smallest_time(self) -> None:
        log, submission, lease, started = running(hold=100)
        ended = log.completed(lease, 720)
        log.settled(ended, four(100, 100, 10), 100, 10, 90, submission=submission, lease=lease, provider=PROVIDER,
                    metering={**METERING, "budget": 360, "billed": 360, "started": started, "ended": ended})
        self.clean(log)

    def test_rule_1_after_rule_2(self) -> None:
        log = billed()
        self.assertEqual(self.clean(log).notes, {})
        submission = log.submitted(SECOND_JOB)
        ended = log.step("Cancelled", None, SECOND_JOB, actor=f"account:{CONSUMER}")
        log.settled(ended, two(500_000), job=SECOND_JOB, submission=submission, rule=None)
        self.assertEqual(list(self.clean(log).notes), ["a bill by rule 1 after a bill by rule 2"])

    def test_settled_twice(self) -> None:
        log = billed()
        log.lines.append({**log.lines[-1], "seq": len(log.lines) + 1})
        self.found(log, "steps", "Settled in the state settled", ("ledger",))


"""The self-test of the ledger, and of the leases and endings."""

import sys
from typing import Any

sys.dont_write_bytecode = True

from cases import Case, begun, billed, running  # noqa: E402
from synthetic import (CONSUMER, DEPOSIT, FAR, FOREIGN_KEY, JOB, NEAR, OTHER, PAYOUT, PROVIDER,  # noqa: E402
                       SECOND_JOB, THIRD_JOB, Log, cheapest, number, offer, two)

OPERATOR = f"operator:{OTHER}"


class Money(Case):
    """The ledger."""

    def test_deposit_twice(self) -> None:
        log = begun()
        log.add("FundsDeposited", {"account": CONSUMER, "deposit": DEPOSIT, "amount": 1})
        self.found(log, "ledger", "the deposit is in the log twice")
        log.lines.pop()
        log.add("FundsDeposited", {"account": PROVIDER, "deposit": DEPOSIT, "amount": 1})
        self.clean(log)

    def test_overdrawn(self) -> None:
        log = begun(dollars=1)
        log.submitted(hold=1_000_001)
        self.found(log, "ledger", "falls to -1")

    def test_holds(self) -> None:
        log = begun()
        log.submitted(hold=0)
        self.clean(log)
        log = begun(dollars=20_000)
        log.submitted(hold=10_000_000_000)
        self.clean(log)
        log = begun(dollars=20_000)
        log.submitted(hold=10_000_000_001)
        self.found(log, "ledger", "more than $10,000")
        log = begun()
        log.submitted()
        log.lines[-1]["payload"] = log.lines[-1]["payload"].replace('"budget":500000', '"budget":500001')
        self.found(log, "ledger", "the hold is 500000, the budget 500001")

    def payout(self, name: str, **changes: Any) -> Log:
        """A payout of $2 that is closed."""
        log = begun()
        requested = log.add("PayoutRequested", {"account": CONSUMER, "payout": PAYOUT, "amount": 2_000_000})
        reason = {"reason": "r"} if name == "PayoutFailed" else {}
        log.add(name, {"account": CONSUMER, "payout": PAYOUT, "amount": 2_000_000, "requested": requested, **reason,
                       **changes}, OPERATOR)
        return log

    def test_payouts(self) -> None:
        paid = self.clean(self.payout("PayoutPaid")).balances
        self.assertEqual((paid[f"available:{CONSUMER}"], paid[f"payable:{CONSUMER}"], paid["external"]),
                         (8_000_000, 0, -8_000_000))
        failed = self.clean(self.payout("PayoutFailed")).balances
        self.assertEqual((failed[f"available:{CONSUMER}"], failed[f"payable:{CONSUMER}"]), (10_000_000, 0))
        self.found(self.payout("PayoutPaid", amount=1), "ledger", "1 requested at 6 is closed")
        self.found(self.payout("PayoutPaid", requested=5), "ledger", "requested at 5 is closed")
        log = self.payout("PayoutPaid")
        log.lines.append({**log.lines[-1], "seq": len(log.lines) + 1})
        self.found(log, "ledger", "the end of the payout is in the log twice")
        log = begun()
        log.add("PayoutRequested", {"account": CONSUMER, "payout": PAYOUT, "amount": 10_000_001})
        self.found(log, "ledger", "falls to -1")

    def released(self, amount: int = 100, submission: int = 0, **body: Any) -> Log:
        """Two accounts submit the same id. The second submission makes no job, and its hold is released."""
        log = begun()
        log.opened(OTHER, 1, number(0xD, 2))
        log.submitted()
        second = log.submitted(account=OTHER, hold=100)
        log.add("HoldReleased", {"account": OTHER, "job": JOB, "submission": submission or second, "amount": amount,
                                 **body})
        return log

    def test_hold_released(self) -> None:
        balances = self.clean(self.released()).balances
        self.assertEqual((balances[f"available:{OTHER}"], balances[f"held:{OTHER}"]), (1_000_000, 0))
        self.found(self.released(amount=99), "ledger", "99 is released, the hold was 100")
        self.found(self.released(submission=8), "ledger", "made the job")
        self.found(self.released(job=SECOND_JOB), "ledger", "no open submission")
        log = self.released()
        log.lines.append({**log.lines[-1], "seq": len(log.lines) + 1})
        self.found(log, "ledger", "no open submission")

    def test_hold_not_released(self) -> None:
        log = self.released()
        log.lines.pop()
        notes = self.clean(log).notes
        self.assertNotIn("a submission made no job, and its hold is not released", self.clean(self.released()).notes)
        self.assertIn("a submission made no job, and its hold is not released", notes)

    def test_the_same_account_twice(self) -> None:
        log = begun()
        log.submitted()
        log.submitted()
        self.found(log, "steps", "the same account submitted this job")

    def test_suspended(self) -> None:
        log = begun()
        log.add("AccountSuspended", {"account": CONSUMER, "reason": "r"}, OPERATOR)
        log.submitted()
        self.found(log, "ledger", "JobSubmitted of a suspended account")
        log.lines.pop()
        log.add("AccountReinstated", {"account": CONSUMER}, OPERATOR)
        log.submitted()
        self.clean(log)

    def test_closed(self) -> None:
        def closed(given_up: int) -> Log:
            log = begun()
            log.add("AccountClosed", {"account": CONSUMER, "given_up": given_up})
            return log

        balances = self.clean(closed(10_000_000)).balances
        self.assertEqual((balances[f"available:{CONSUMER}"], balances["fees"]), (0, 10_000_000))
        self.found(closed(10_000_001), "ledger", "10000001 is given up, which is more than what is available")
        log = closed(10_000_000)
        log.add("AccountReinstated", {"account": CONSUMER}, OPERATOR)
        self.found(log, "ledger", "AccountReinstated of a closed account")
        log = begun()
        log.submitted()
        log.add("AccountClosed", {"account": CONSUMER, "given_up": 9_500_000})
        self.found(log, "ledger", f"held:{CONSUMER} is not empty")


class Jobs(Case):
    """States, leases, authors, faults, and attempts."""

    def test_lease_live_twice(self) -> None:
        log, submission, lease, _ = running()
        log.assigned(submission, FAR, 2_000_000)
        self.found(log, "leases", f"the lease {lease} of this job is still live", ("placements",))

    def test_another_lease(self) -> None:
        log, _, lease, _ = running()
        log.completed(lease + 1, 1)
        self.found(log, "leases", f"the live lease is {lease}", ("manifests",))

    def test_after_the_end(self) -> None:
        log, _, lease, _ = running()
        log.completed(lease, 1)
        log.failed(lease, "NonZeroExit", "consumer", usage={"run": 1})
        self.found(log, "steps", "Failed in the state ended: the job ended at 10")

    def test_states(self) -> None:
        log, submission, lease, _ = running()
        log.step("Accepted", lease)
        self.found(log, "steps", "Accepted in the state Running")
        log = begun()
        lease = log.assigned(log.submitted())
        log.step("Started", lease, image_digest="d")
        self.found(log, "steps", "Started in the state Assigned")
        log = begun()
        lease = log.assigned(log.submitted())
        log.completed(lease, 1)
        self.found(log, "steps", "Completed in the state Assigned")
        log = begun()
        log.step("Accepted", 5)
        self.found(log, "steps", "nobody submitted")

    def test_cancel(self) -> None:
        log, _, lease, _ = running()
        log.step("Cancelled", lease)
        self.found(log, "steps", "without CancelRequested")
        log, _, lease, _ = running()
        log.step("Exited", lease, usage={"run": 1})
        log.step("CancelRequested", None, actor=OPERATOR)
        self.found(log, "steps", "CancelRequested in the state Collecting")
        log, _, lease, _ = running()
        log.step("CancelRequested", None, actor=OPERATOR)
        log.step("Exited", lease, usage={"run": 1})
        log.step("Cancelled", lease, usage={"run": 1})
        self.clean(log)
        log = begun()
        lease = log.assigned(log.submitted())
        log.step("Cancelled", lease, actor=f"account:{CONSUMER}")
        self.clean(log)
        log.lines.pop()
        log.step("Cancelled", None, actor=f"account:{CONSUMER}")
        self.found(log, "leases", "Cancelled under the lease None")
        log = begun()
        log.submitted()
        log.step("Cancelled", None, actor=OPERATOR)
        self.clean(log)

    def test_authors(self) -> None:
        for name, actor, fields in (("Completed", "platform", {"outputs": [], "usage": {"run": 1},
                                                               "occurred_at": "2026-01-31T12:00:00Z"}),
                                    ("Exited", f"machine:{FAR}", {"usage": {"run": 1}}),
                                    ("CancelRequested", f"account:{OTHER}", {}),
                                    ("CancelRequested", "platform", {})):
            log, _, lease, _ = running()
            log.step(name, None if name == "CancelRequested" else lease, actor=actor, **fields)
            self.found(log, "steps", f"{name} may not be written by")
        log, _, lease, _ = running(attempts=1)
        log.failed(lease, "ProviderLost", "provider")
        self.found(log, "steps", "Failed may not be written by")
        log = billed(rule=1)
        log.lines[-1]["headers"]["Gpubnb-Actor"] = f"machine:{NEAR}"
        self.found(log, "steps", "Settled may not be written by")

    def test_authors_in_the_time_of_rule_1(self) -> None:
        """The market itself ended jobs at their time limit, until rule 2."""
        log, _, lease, _ = running()
        log.failed(lease, "TimeLimit", "consumer", actor="platform")
        self.clean(log)
        log, _, lease, _ = running()
        log.failed(lease, "OutOfMemory", "consumer", actor="platform")
        self.found(log, "steps", "Failed may not be written by")
        log = billed()
        lease = log.assigned(log.submitted(SECOND_JOB), job=SECOND_JOB)
        log.started(lease, SECOND_JOB)
        log.step("Failed", lease, SECOND_JOB, actor="platform", reason={"name": "TimeLimit"}, fault="consumer")
        self.found(log, "steps", "Failed may not be written by")

    def test_wrong_lease_changes_nothing(self) -> None:
        log = begun()
        lease = log.assigned(log.submitted())
        log.step("Accepted", lease - 1)
        log.step("Accepted", lease)
        violations = self.found(log, "leases", f"Accepted under the lease {lease - 1}").violations
        self.assertEqual(len(violations), 1)

    def test_submission(self) -> None:
        log = begun()
        log.assigned(log.submitted() - 1)
        self.found(log, "steps", "the submission is 6, not 5")

    def test_faults(self) -> None:
        log, _, lease, _ = running()
        log.failed(lease, "NonZeroExit", "provider", usage={"run": 1})
        self.found(log, "steps", "NonZeroExit is the fault of consumer, not of provider")
        log, _, lease, _ = running()
        log.failed(lease, "Unheard", "consumer", usage={"run": 1})
        self.found(log, "steps", "the ending 'Unheard' is not documented")
        log, _, lease, _ = running()
        log.failed(lease, "GpuLost", "provider")
        self.found(log, "steps", "should have been requeued")
        log, _, lease, _ = running(attempts=1)
        log.failed(lease, "AssignTimeout", "provider", actor="platform")
        self.found(log, "steps", "AssignTimeout in the state Running")

    def test_no_machine(self) -> None:
        log = begun()
        submission = log.submitted()
        ended = log.failed(None, "NoMachine", "platform", actor="platform")
        log.settled(ended, two(500_000), submission=submission)
        self.clean(log)
        log, _, lease, _ = running()
        log.failed(lease, "NoMachine", "platform", actor="platform")
        self.found(log, "steps", "NoMachine in the state Running")

    def test_program_never_started(self) -> None:
        """Earlier programs did not refuse such a report; the present ones do."""
        log = begun()
        lease = log.assigned(log.submitted())
        log.failed(lease, "NonZeroExit", "consumer", usage={"run": 1})
        self.assertIn("an ending of a program that never started; earlier programs did not refuse it",
                      self.clean(log).notes)
        log = billed()
        lease = log.assigned(log.submitted(SECOND_JOB), job=SECOND_JOB)
        log.step("Failed", lease, SECOND_JOB, reason={"name": "NonZeroExit"}, fault="consumer", usage={"run": 1})
        self.found(log, "steps", "NonZeroExit without Started")

    def test_attempts(self) -> None:
        log, submission, lease, _ = running(attempts=1)
        log.step("Requeued", lease, reason={"name": "GpuLost"}, fault="provider", excluded=NEAR)
        self.found(log, "steps", "requeued after a fault of provider, with 1 attempts used up")
        log, submission, lease, _ = running()
        log.step("CancelRequested", None, actor=OPERATOR)
        log.step("Requeued", lease, reason={"name": "GpuLost"}, fault="provider", excluded=NEAR)
        self.found(log, "steps", "and a request to cancel")
        log, submission, lease, _ = running()
        log.step("Requeued", lease, reason={"name": "GpuLost"}, fault="provider", excluded=NEAR)
        log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=(("Excluded", 1),), attempt=2)
        self.clean(log)
        log.lines.pop()
        log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=(("Excluded", 1),), attempt=1)
        self.found(log, "steps", "this is attempt 2, not 1")

    def test_slots(self) -> None:
        log = begun()
        log.listed(NEAR, 1_000_000, slots=2)
        leases = [log.assigned(log.submitted(job), job=job) for job in (JOB, SECOND_JOB)]
        log.listed(NEAR, 1_000_000, slots=1)
        log.started(leases[0])
        self.clean(log)
        log.started(leases[1], SECOND_JOB)
        self.found(log, "leases", "the machine has 2 accepted leases and 1 slots")

    def test_never_settled(self) -> None:
        log, _, lease, _ = running()
        log.completed(lease, 1)
        self.clean(log)
        log.submitted(THIRD_JOB, wish=cheapest())
        log.lines[-1]["nanos"] += 601 * 10**9
        self.found(log, "steps", "was never settled")

    def test_list_of_files(self) -> None:
        log, _, lease, _ = running()
        log.completed(lease, 1)
        log.lines[-1]["payload"] = log.lines[-1]["payload"].replace(
            '"outputs":[]', '"outputs":[{"path":"p","bytes":1,"sha256":"00"}]')
        self.found(log, "manifests", "no key of the machine")
        log, _, lease, _ = running()
        log.completed(lease, 1)
        log.lines[-1]["payload"] = log.lines[-1]["payload"].replace('"lines":0', '"lines":1')
        self.found(log, "logs", "no key of the machine")
        log, _, lease, _ = running()
        log.add("MachineListed", {"machine": NEAR, "owner": PROVIDER, "public_key": FOREIGN_KEY.text,
                                  "offer": offer(1_000_000)}, f"machine:{NEAR}")
        log.completed(lease, 1)
        self.clean(log)


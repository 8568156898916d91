"""Folds the ledger: where the money is after each event (docs/verification.md, The ledger)."""

from typing import Any, Dict, List, NamedTuple, Set, Tuple

from batches import Batch, Batches
from events import OF_ACCOUNT, Event
from report import Report, show

LARGEST_HOLD = 10_000 * 1_000_000
SUBMISSIONS = ("JobSubmitted", "BatchSubmitted")
POSTS = SUBMISSIONS + ("FundsDeposited", "PayoutRequested", "PayoutPaid", "PayoutFailed", "HoldReleased", "BatchClosed",
                       "AccountClosed", "Settled")


class Payout(NamedTuple):
    """A payout that was asked for."""

    seq: int
    amount: int


class Submission(NamedTuple):
    """A submission whose hold is not closed yet. That of a batch is here only if it made no batch."""

    account: str
    id: str  # of the job or of the batch
    hold: int  # of all tasks


class Ledger:
    """The balances, in millionths of a dollar."""

    def __init__(self, report: Report, batches: Batches) -> None:
        self._report = report
        self._batches = batches
        self.balances: Dict[str, int] = {}
        self._opened: Set[str] = set()
        self._suspended: Set[str] = set()
        self._deposits: Set[Tuple[str, str]] = set()
        self._payouts: Dict[Tuple[str, str], Payout] = {}
        self._closed: Set[Tuple[str, str]] = set()
        self._left: Set[str] = set()  # accounts whose owners closed them
        self._submissions: Dict[int, Submission] = {}
        self._tasks: Dict[int, Batch] = {}  # the submission of each batch
        self._closed_tasks: Set[str] = set()
        self._due: Dict[str, int] = {}  # account -> what should be held

    def _violation(self, seq: int, what: str) -> None:
        self._report.violation("ledger", seq, what)

    def fold(self, event: Event) -> None:
        """The effect of one event on the ledger."""
        name, body, seq = event.name, event.body, event.seq
        if name in POSTS:
            self._report.count("ledger")
        if name == "Settled":
            self._settled(event)
        elif name == "BatchClosed":
            self._closed_batch(event, body["account"])
        elif name in OF_ACCOUNT:
            self._account(event, body["account"])
        else:
            return
        account = body["consumer"] if name == "Settled" else body["account"]
        held, due = self.balances.get(f"held:{account}", 0), self._due.get(account, 0)
        if name in POSTS and held != due:
            self._violation(seq, f"held:{account} is {held}, the open holds of the account are {due}")

    def _account(self, event: Event, account: str) -> None:
        """An event of an account."""
        name, seq = event.name, event.seq
        if name == "AccountOpened":
            if account in self._opened:
                self._violation(seq, "the account was already opened")
            self._opened.add(account)
            return
        if account not in self._opened:
            self._violation(seq, f"{name} of an account that was never opened")
        if account in self._left:
            self._violation(seq, f"{name} of a closed account")
        if name in SUBMISSIONS + ("PayoutRequested", "AccountClosed") and account in self._suspended:
            self._violation(seq, f"{name} of a suspended account")
        if name == "AccountSuspended":
            self._suspended.add(account)
        elif name == "AccountReinstated":
            self._suspended.discard(account)
        elif name == "AccountClosed":
            self._closed_account(event, account)
        elif name == "FundsDeposited":
            self._once(seq, self._deposits, (account, event.body["deposit"]), "deposit")
            self._move(seq, "external", f"available:{account}", event.body["amount"])
        elif name in SUBMISSIONS:
            self._submitted(event, account)
        elif name == "HoldReleased":
            self._released(event, account)
        else:
            self._payout(event, account)

    def _closed_account(self, event: Event, account: str) -> None:
        """The owner closes the account, and gives up what is left."""
        seq, given_up = event.seq, event.body["given_up"]
        # Earnings that arrive in the moment of closing stay in the account.
        if given_up > self.balances.get(f"available:{account}", 0):
            self._violation(seq, f"{given_up} is given up, which is more than what is available")
        for rest in ("held", "payable"):
            if self.balances.get(f"{rest}:{account}", 0) != 0:
                self._violation(seq, f"{rest}:{account} is not empty")
        self._left.add(account)
        self._move(seq, f"available:{account}", "fees", given_up)

    def _submitted(self, event: Event, account: str) -> None:
        """A hold. That of a batch is held for each of its tasks. Only the first submission of an id makes something."""
        body, hold, budget = event.body, event.body["hold"], event.body["limits"]["budget"]
        if hold != budget:
            self._violation(event.seq, f"the hold is {hold}, the budget {budget}")
        if hold > LARGEST_HOLD:
            self._violation(event.seq, f"the hold is {hold}, more than $10,000")
        batch = self._batches.find(body["batch"]) if event.name == "BatchSubmitted" else None
        total = hold if event.name == "JobSubmitted" else hold * body["tasks"]["count"]
        if batch is not None and batch.submitted.seq == event.seq:
            self._tasks[event.seq] = batch
        else:
            id = body["job"] if event.name == "JobSubmitted" else body["batch"]
            self._submissions[event.seq] = Submission(account, id, total)
        self._due[account] = self._due.get(account, 0) + total
        self._move(event.seq, f"available:{account}", f"held:{account}", total)

    def _close(self, seq: int, submission: int, account: str, id: str) -> int:
        """Closes a hold, and returns it."""
        known = self._submissions.get(submission)
        if known is None or known.account != account or known.id != id:
            self._violation(seq, f"{submission} is no open submission of this job by this account")
            return 0
        del self._submissions[submission]
        self._due[account] -= known.hold
        return known.hold

    def _close_task(self, seq: int, batch: Batch, account: str, job: str) -> None:
        """Closes the share that one task has in the hold of its batch."""
        if account != batch.account or not batch.has_opened(job) or job in self._closed_tasks:
            self._violation(seq, f"{batch.submitted.seq} has no open hold for this task by this account")
            return
        self._closed_tasks.add(job)
        self._due[account] -= batch.hold

    def _closed_batch(self, event: Event, account: str) -> None:
        """The hold of the tasks that were not opened comes back. It does so once."""
        batch, value = self._batches.find(event.body["batch"]), event.body["released"]
        due = batch.rest() if batch is not None and batch.closed is event else 0
        if value != due:
            self._violation(event.seq, f"{value} is released, the hold of the tasks that were not opened is {due}")
        if batch is not None:
            self._due[batch.account] -= due
        self._move(event.seq, f"held:{account}", f"available:{account}", value)

    def _released(self, event: Event, account: str) -> None:
        """The hold of a submission that made no job and no batch comes back."""
        id, submission, value = event.body["job"], event.body["submission"], event.body["amount"]
        if submission in self._tasks:
            self._violation(event.seq, "the submission made the batch: only its bills and its end may release the hold")
        elif self._batches.made(submission):
            self._violation(event.seq, "the submission made the job: only its bill may release the hold")
        hold = self._close(event.seq, submission, account, id)
        if value != hold:
            self._violation(event.seq, f"{value} is released, the hold was {hold}")
        self._move(event.seq, f"held:{account}", f"available:{account}", value)

    def _settled(self, event: Event) -> None:
        """A bill brings its own postings. Whether they are the right ones is checked with the bill."""
        body = event.body
        batch = self._tasks.get(body["submission"])
        if batch is None:
            self._close(event.seq, body["submission"], body["consumer"], body["job"])
        else:
            self._close_task(event.seq, batch, body["consumer"], body["job"])
        self._post(event.seq, [(one["account"], one["amount"]) for one in body["postings"]])

    def _payout(self, event: Event, account: str) -> None:
        """A payout: first payable, then outside or back."""
        seq, name, body = event.seq, event.name, event.body
        available, payable = f"available:{account}", f"payable:{account}"
        id = (account, body["payout"])
        if name == "PayoutRequested":
            if id in self._payouts:
                self._violation(seq, "the payout was already requested")
            self._payouts.setdefault(id, Payout(seq, body["amount"]))
            self._move(seq, available, payable, body["amount"])
            return
        known = self._payouts.get(id)
        self._once(seq, self._closed, id, "end of the payout")
        if known is None:
            self._violation(seq, f"{name} of a payout that nobody requested")
        elif body["amount"] != known.amount or body["requested"] != known.seq:
            self._violation(seq, f"{body['amount']} requested at {body['requested']} is closed; "
                                 f"{known.amount} was requested at {known.seq}")
        self._move(seq, payable, "external" if name == "PayoutPaid" else available, body["amount"])

    def _once(self, seq: int, seen: Set[Tuple[str, str]], id: Tuple[str, str], what: str) -> None:
        """Reports an id that occurs twice."""
        if id in seen:
            self._violation(seq, f"the {what} is in the log twice")
        seen.add(id)

    def _move(self, seq: int, source: str, target: str, value: int) -> None:
        """Moves an amount."""
        self._post(seq, [(source, -value), (target, value)])

    def _post(self, seq: int, changes: List[Tuple[str, int]]) -> None:
        """Adds postings, and checks the rules that hold after every event."""
        total = sum(value for _, value in changes)
        if total != 0:
            self._violation(seq, f"the postings sum to {total}")
        for name, value in changes:
            if not known_account(name):
                self._violation(seq, f"{show(name)} is no account of the ledger")
            self.balances[name] = self.balances.get(name, 0) + value
        for name in dict.fromkeys(name for name, _ in changes):
            if self.balances[name] < 0 and name.startswith(("available:", "held:", "payable:")):
                self._violation(seq, f"{show(name)} falls to {self.balances[name]}")

    def finish(self, seq: int) -> None:
        """The rules over all accounts, once more at the end of the log."""
        if sum(self.balances.values()) != 0:
            self._violation(seq, "the balances of all accounts do not sum to zero")
        held: Dict[str, Any] = {name: value for name, value in self.balances.items() if name.startswith("held:")}
        for account, due in self._due.items():
            if held.pop(f"held:{account}", 0) != due:
                self._violation(seq, f"held:{account} is not the sum of the open holds, {due}")
        for name, value in held.items():
            if value:
                self._violation(seq, f"{show(name)} is {value}, and the account has no open hold")
        for submission in self._submissions:
            if not self._batches.made(submission):
                self._report.note("a submission made no job, and its hold is not released")


def known_account(name: str) -> bool:
    """Whether the ledger has accounts with such a name."""
    kind, colon, _ = name.partition(":")
    return name in ("fees", "external") or (colon == ":" and kind in ("available", "held", "payable"))

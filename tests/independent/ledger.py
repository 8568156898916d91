"""Folds the ledger: where the money is after each event.

Only `Settled` has its postings in its body. Those of the other events follow from docs/consumer.md, docs/provider.md
and docs/operator.md; the names `payout:<account>` and `outside` are this reader's own.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from report import Report, amount, get, show, text, whole


class Payout(NamedTuple):
    """A payout that was asked for."""

    account: str
    amount: int


class Ledger:
    """The balances, in millionths of a dollar."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.balances: Dict[str, int] = {}
        self._opened: Set[str] = set()
        self._suspended: Set[str] = set()
        self._deposits: Set[Tuple[str, str]] = set()
        self._payouts: Dict[Tuple[str, str], Payout] = {}
        self._closed: Set[Tuple[str, str]] = set()

    def fold(self, seq: int, name: str, body: Dict[str, Any]) -> None:
        """The effect of one event on the ledger."""
        if name == "Settled":
            self._post(seq, self._written(seq, body))
            return
        account = text(body.get("account"))
        known = ("AccountOpened", "AccountSuspended", "AccountReinstated", "FundsDeposited", "JobSubmitted",
                 "PayoutRequested", "PayoutPaid", "PayoutFailed")
        if name not in known:
            return
        if account is None:
            self._report.violation(seq, f"{name} names no account")
        elif name == "AccountOpened":
            if account in self._opened:
                self._report.violation(seq, "the account was already opened")
            self._opened.add(account)
        elif account not in self._opened:
            self._report.violation(seq, f"{name} of an account that was never opened")
            self._money(seq, name, account, body)
        elif name == "AccountSuspended":
            self._suspended.add(account)
        elif name == "AccountReinstated":
            self._suspended.discard(account)
        else:
            self._money(seq, name, account, body)

    def _money(self, seq: int, name: str, account: str, body: Dict[str, Any]) -> None:
        """An event that moves money and has no postings in its body."""
        if name in ("JobSubmitted", "PayoutRequested") and account in self._suspended:
            self._report.violation(seq, f"{name} of a suspended account")
        available = f"available:{account}"
        if name == "FundsDeposited":
            self._once(seq, self._deposits, (account, text(body.get("deposit")) or ""), "deposit")
            self._move(seq, "outside", available, body.get("amount"))
        elif name == "JobSubmitted":
            self._move(seq, available, f"held:{account}", body.get("hold"))
        elif name in ("PayoutRequested", "PayoutPaid", "PayoutFailed"):
            self._payout(seq, name, account, body)

    def _payout(self, seq: int, name: str, account: str, body: Dict[str, Any]) -> None:
        """A payout: first on its way, then outside or back."""
        available, leaving = f"available:{account}", f"payout:{account}"
        id = (account, text(body.get("payout")) or "")
        if name == "PayoutRequested":
            if id in self._payouts:
                self._report.violation(seq, "the payout was already requested")
            self._payouts[id] = Payout(account, amount(body.get("amount")) or 0)
            self._move(seq, available, leaving, body.get("amount"))
            return
        known = self._payouts.get(id)
        self._once(seq, self._closed, id, "end of the payout")
        if known is None:
            self._report.violation(seq, f"{name} of a payout that nobody requested")
            return
        if body.get("amount") is not None and body.get("amount") != known.amount:
            self._report.violation(seq, f"the amount is {show(body.get('amount'))}, {known.amount} was requested")
        self._move(seq, leaving, "outside" if name == "PayoutPaid" else available, known.amount)

    def _once(self, seq: int, seen: Set[Tuple[str, str]], id: Tuple[str, str], what: str) -> None:
        """Reports an id that occurs twice."""
        if id in seen:
            self._report.violation(seq, f"the {what} is in the log twice")
        seen.add(id)

    def _move(self, seq: int, source: str, target: str, value: Any) -> None:
        """Moves an amount."""
        number = amount(value)
        if number is None:
            self._report.violation(seq, f"an amount is {show(value)}")
            return
        self._post(seq, [(source, -number), (target, number)])

    def _written(self, seq: int, body: Dict[str, Any]) -> List[Tuple[str, int]]:
        """The postings in a body."""
        result = postings(body)
        if result is None:
            self._report.violation(seq, "the postings cannot be read")
        return result or []

    def _post(self, seq: int, changes: List[Tuple[str, int]]) -> None:
        """Adds postings, and checks the rules that hold after every event."""
        total = sum(value for _, value in changes)
        if total != 0:
            self._report.violation(seq, f"the postings sum to {total}")
        for name, value in changes:
            self.balances[name] = self.balances.get(name, 0) + value
        for name in dict.fromkeys(name for name, _ in changes):
            if self.balances[name] < 0 and name.startswith(("available:", "held:", "payout:")):
                self._report.violation(seq, f"{show(name)} falls to {self.balances[name]}")

    def finish(self, seq: int, held: Dict[str, int]) -> None:
        """Compares what is held with the holds of the jobs that are not settled."""
        names = {name for name in self.balances if name.startswith("held:")} | set(held)
        for name in sorted(names):
            have, due = self.balances.get(name, 0), held.get(name, 0)
            if have != due:
                self._report.violation(seq, f"{show(name)} is {have}, the holds of unsettled jobs are {due}")
        if sum(self.balances.values()) != 0:
            self._report.violation(seq, "the sums of the ledger are not zero together")


def postings(body: Dict[str, Any]) -> Optional[List[Tuple[str, int]]]:
    """The postings of a bill, or nothing if they cannot be read."""
    listed = body.get("postings")
    if not isinstance(listed, list):
        return None
    result = []
    for one in listed:
        name, value = text(get(one, "account")), whole(get(one, "amount"))
        if name is None or value is None:
            return None
        result.append((name, value))
    return result

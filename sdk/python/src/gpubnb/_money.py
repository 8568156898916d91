"""Amounts. The market counts in whole millionths of a dollar."""

from __future__ import annotations

from decimal import Decimal

from .errors import InsufficientFunds


def dollars(micro_usd: int) -> Decimal:
    """An amount of the market in dollars, without rounding: `dollars(job.receipt.charge)`."""
    return Decimal(micro_usd).scaleb(-6)


def check_funds(hold: int, available: int) -> None:
    """Refuses a job that may cost more than the account has."""
    if hold > available:
        needs = f"This needs ${dollars(hold)}, and ${dollars(available)} is available"
        advice = "add funds on the page Wallet, or set a smaller budget_usd"
        raise InsufficientFunds(402, "InsufficientFunds", f"{needs}: {advice}.", "budget")

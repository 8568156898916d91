"""Checks why a job was given to a machine, as far as the log and docs/consumer.md tell.

Which machines were online is not in the log, so nobody can recompute that the chosen machine was the cheapest, the
fastest or the most reliable one. An assignment is guarded by the job only (docs/adr/0001): an event of the machine may
come a moment before it. So the state of a machine counts only once it is older than `GRACE`.
"""

import datetime
import math
from typing import Any, Dict, List, Optional, Set, Tuple

from leases import At, Job, Leases
from report import Report, amount, get, show, text

GRACE = 5 * 10**9  # nanoseconds; this reader's own choice
LONGEST_PAUSE = 85 * 60 + 20  # seconds: 5, doubled ten times
STOPS = {"MachinePaused": "paused", "MachineDrainStarted": "draining", "MachineSuspected": "suspect",
         "MachineLost": "lost", "MachineDelisted": "off the market"}
STRATEGIES = ("cheapest", "fastest", "most_reliable")


class Machine:
    """What the log says about a machine."""

    def __init__(self, listed: At) -> None:
        self.owner = text(listed.body.get("owner")) or ""
        self.offer: Any = listed.body.get("offer")
        price = amount(get(self.offer, "price")) or 0
        self.prices: List[Tuple[int, int]] = [(listed.nanos, price)]
        self.stops: Dict[str, int] = {}
        self.tests: List[Tuple[int, int]] = []  # 1: every check passed

    def fair_prices(self, nanos: int) -> List[int]:
        """The prices that may have been known at a time."""
        return in_force(self.prices, nanos)


def in_force(values: List[Tuple[int, int]], nanos: int) -> List[int]:
    """Of values with their times: the newest, and those in force within the grace before a time."""
    result = []
    for since, value in reversed(values):
        result.append(value)
        if since <= nanos - GRACE:
            break
    return result


def instant(value: Any) -> Optional[int]:
    """Nanoseconds of a time in RFC 3339, or nothing. Fractions below the microsecond are dropped."""
    given = text(value)
    if given is None or len(given) > 40:
        return None
    head, dot, fraction = given.rstrip("Z").partition(".")
    try:
        moment = datetime.datetime.strptime(head, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
        micros = int(fraction[:6].ljust(6, "0")) if dot else 0
    except (ValueError, OverflowError):
        return None
    return (int(moment.timestamp()) * 1_000_000 + micros) * 1000


class Placements:
    """All machines, and the check of every `JobAssigned`."""

    def __init__(self, report: Report, leases: Leases) -> None:
        self._report = report
        self._leases = leases
        self._machines: Dict[str, Machine] = {}
        self._suspended: Dict[str, int] = {}
        self.keys: Dict[str, Set[str]] = {}

    def fold(self, at: At) -> None:
        """An event of a machine, or of the account of its owner."""
        if at.name == "AccountSuspended":
            self._suspended.setdefault(text(at.body.get("account")) or "", at.nanos)
        elif at.name == "AccountReinstated":
            self._suspended.pop(text(at.body.get("account")) or "", None)
        elif at.name == "Requeued":
            self._pause(at)
        elif at.name.startswith("Machine"):
            self._machine(at)

    def _machine(self, at: At) -> None:
        """One event of a machine."""
        id = text(at.body.get("machine")) or ""
        machine = self._machines.get(id)
        if at.name == "MachineListed":
            self._listed(at, id, machine)
        elif machine is None:
            self._report.violation(at.seq, f"{at.name} of a machine that was never listed")
        elif at.name == "MachineRepriced":
            price = amount(at.body.get("price"))
            if price is None:
                self._report.violation(at.seq, f"the new price is {show(at.body.get('price'))}")
            else:
                machine.prices.append((at.nanos, price))
        elif at.name == "MachineTested":
            checks = at.body.get("checks")
            passed = isinstance(checks, list) and all(get(one, "passed") is True for one in checks)
            machine.tests.append((at.nanos, 1 if passed else 0))
        elif at.name in STOPS:
            machine.stops.setdefault("away" if at.body.get("away") else at.name, at.nanos)
        elif at.name == "MachineResumed":
            for name in ("away",) if at.body.get("away") else ("MachinePaused", "MachineDrainStarted"):
                machine.stops.pop(name, None)
        elif at.name == "MachineRecovered":
            for name in ("MachineSuspected", "MachineLost"):
                machine.stops.pop(name, None)

    def _listed(self, at: At, id: str, earlier: Optional[Machine]) -> None:
        """An offer. Whether it ends a pause is not documented, so it ends all of them here."""
        self._machines[id] = Machine(at)
        if earlier is not None:
            self._machines[id].prices = earlier.prices + self._machines[id].prices
            self._machines[id].tests = earlier.tests
            if earlier.owner != self._machines[id].owner:
                self._report.note("a machine was listed again with another owner")
        key = text(at.body.get("public_key"))
        if key is not None:
            self.keys.setdefault(id, set()).add(key)

    def _pause(self, at: At) -> None:
        """A pause is at most 85 minutes."""
        until = instant(at.body.get("until"))
        if until is not None and until - at.nanos > LONGEST_PAUSE * 10**9 + GRACE:
            self._report.violation(at.seq, f"the pause lasts {(until - at.nanos) // 10**9} seconds, at most 85 minutes")

    def check(self, at: At) -> None:
        """One assignment. It must be called before the assignment is folded elsewhere."""
        job = self._leases.jobs.get(text(at.body.get("job")) or "")
        id = text(at.body.get("machine")) or ""
        machine = self._machines.get(id)
        if job is None:
            return
        self._report.placements += 1
        if machine is None:
            self._report.violation(at.seq, "the machine was never listed")
            return
        self._terms(at, machine)
        self._state(at, job, id, machine)
        self._resources(at, job, machine)
        self._requirements(at, job, id, machine)
        self._reasons(at, job, machine)

    def _terms(self, at: At, machine: Machine) -> None:
        """The locked price, the fee, and who earns."""
        price, points = amount(get(at.body, "terms.price")), amount(get(at.body, "terms.fee_basis_points"))
        if price is None or points is None or points > 10_000:
            self._report.violation(at.seq, f"the terms are {show(at.body.get('terms'))}")
        elif price not in machine.fair_prices(at.nanos):
            self._report.violation(at.seq, f"the price is {price}, the machine asks {machine.prices[-1][1]}")
        if get(at.body, "terms.provider") != machine.owner:
            self._report.violation(at.seq, "the provider is not the owner of the machine")

    def _state(self, at: At, job: Job, id: str, machine: Machine) -> None:
        """Whether the machine takes jobs, and no pause of the job is on."""
        for name, since in machine.stops.items():
            if at.nanos - since > GRACE:
                self._report.violation(at.seq, f"the machine is {STOPS.get(name, 'in use by its owner')}")
        if machine.owner in self._suspended and at.nanos - self._suspended[machine.owner] > GRACE:
            self._report.violation(at.seq, "the account of the machine's owner is suspended")
        requeued = job.requeued
        until = None if requeued is None else instant(requeued.body.get("until"))
        if requeued is None or until is None or at.nanos + GRACE // 5 >= until:
            return
        if requeued.body.get("fault") == "nobody" or requeued.body.get("excluded") == id:
            self._report.violation(at.seq, f"the job pauses until {show(requeued.body.get('until'))}")

    def _resources(self, at: At, job: Job, machine: Machine) -> None:
        """Whether the machine has what the job asked for."""
        need, have = get(job.submitted.body, "spec.resources"), get(machine.offer, "hardware")
        cores = amount(get(have, "cpu_cores"))
        pairs = (("cpu_millis", None if cores is None else cores * 1000), ("memory", amount(get(have, "memory"))),
                 ("output", amount(get(have, "disk"))))
        for name, most in pairs:
            asked = amount(get(need, name))
            if asked is not None and most is not None and asked > most:
                self._report.violation(at.seq, f"the job needs {asked} {name}, the machine has {most}")
        gpus = get(have, "gpus")
        asked = amount(get(need, "gpus")) or 0
        if isinstance(gpus, list) and asked > len(gpus):
            self._report.violation(at.seq, f"the job needs {asked} GPUs, the machine has {len(gpus)}")
        if get(job.submitted.body, "spec.egress") is True and get(machine.offer, "policy.egress") is not True:
            self._report.violation(at.seq, "the job needs the network, the machine does not allow it")

    def _requirements(self, at: At, job: Job, id: str, machine: Machine) -> None:
        """What the consumer demanded of the machine."""
        placement = job.submitted.body.get("placement")
        wanted = get(placement, "requirements")
        cap, price = amount(get(wanted, "price_cap")), amount(get(at.body, "terms.price"))
        if cap is not None and price is not None and price > cap:
            self._report.violation(at.seq, f"the price is {price}, over the price cap {cap}")
        for named in (get(placement, "machine"), get(wanted, "machine")):
            if isinstance(named, str) and named != id:
                self._report.violation(at.seq, "the consumer named another machine")
        region = text(get(wanted, "region"))
        if region is not None and region != get(machine.offer, "region"):
            self._report.violation(at.seq, f"the machine is not in the region {show(region)}")
        if get(wanted, "verified") is True and 1 not in in_force(machine.tests, at.nanos):
            self._report.violation(at.seq, "the machine did not pass every check of its self-test")
        simulated = get(machine.offer, "hardware.simulated") is True
        if get(wanted, "allow_simulated") is False and simulated and amount(get(job.submitted.body,
                                                                                "spec.resources.gpus")):
            self._report.violation(at.seq, "the machine's GPUs are simulated")
        self._reliability(at, get(wanted, "min_reliability"), id)

    def _reliability(self, at: At, least: Any, id: str) -> None:
        """The machine's record. The unit is percent in the API; in events it is not documented, and 1 may be either."""
        if least is None:
            return
        if isinstance(least, bool) or not isinstance(least, (int, float)) or not math.isfinite(least) or least > 100:
            self._report.note("a least reliability could not be understood")
            return
        attempts, good = self._leases.records.get(id, [0, 0])
        share = least if isinstance(least, float) and least <= 1 else least / 100
        if least > 0 and (attempts == 0 or good / attempts < share - 0.01):
            self._report.violation(at.seq, f"the record is {good} of {attempts}, the job asked for {show(least)}")

    def _reasons(self, at: At, job: Job, machine: Machine) -> None:
        """The explanation in the event."""
        placement = at.body.get("placement")
        candidates = amount(get(placement, "candidates"))
        counted = count(get(placement, "rejected"))
        if placement is None:
            return
        if candidates is None or candidates == 0:
            self._report.violation(at.seq, f"the number of candidates is {show(get(placement, 'candidates'))}")
        elif counted is None:
            self._report.note("the rejected machines of a placement could not be read")
        elif candidates + counted > len(self._machines):
            self._report.violation(at.seq, f"{candidates} machines fit and {counted} do not; "
                                           f"{len(self._machines)} were ever listed")
        chosen, asked = get(placement, "chosen"), get(job.submitted.body, "placement.by")
        if not isinstance(chosen, dict):
            return
        if chosen.get("price") != get(at.body, "terms.price"):
            self._report.violation(at.seq, "the price of the chosen machine is not the price of the terms")
        if chosen.get("name") != get(machine.offer, "name"):
            self._report.note("a chosen machine has another name than its offer")
        won = chosen.get("won")
        if isinstance(won, str) and asked in STRATEGIES and won in STRATEGIES and won != asked:
            self._report.violation(at.seq, f"the job asked for the {asked} machine, and got it as the {won}")


def count(rejected: Any) -> Optional[int]:
    """The number of machines that did not fit. The form of an entry is not documented: any with one whole number."""
    if not isinstance(rejected, (list, dict)):
        return None
    total = 0
    for one in rejected.values() if isinstance(rejected, dict) else rejected:
        values = list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else [one]
        numbers = [number for number in map(amount, values) if number is not None]
        if len(numbers) != 1:
            return None
        total += numbers[0]
    return total

"""Decides every assignment again (docs/verification.md, Placement)."""

import itertools
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from events import Event
from leases import Job, Leases
from market import Market, Need, State, value_at
from report import Report, get, show

OLDEST = 10 * 10**9  # nanoseconds by which the state of a decision may be older; this reader's own choice
CLOCK = 2 * 10**9  # nanoseconds by which the time of a decision may differ; this reader's own choice
MOST_STATES = 2_000  # that are tried for one assignment; this reader's own choice
HIGHEST_FEE = 5_000
DISKS_SINCE = 1_795_910_400 * 10**9  # 2026-11-29: before, `output` was compared instead of the size of the disk
ADDRESS = re.compile(r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*")  # the last label of a host's name is no number
DAY = 86_400 * 10**9
REASONS = ("NotNamed", "Delisted", "Paused", "Away", "OwnerSuspended", "Offline", "Excluded", "NoFreeSlot", "Busy",
           "GpuTooSmall", "Simulated", "GpuModel", "TooSmall", "Cuda", "Region", "Price", "Reliability", "NotVerified",
           "NoEgress", "ImageNotAllowed")  # in the order of the list `rejected`


class Wish(NamedTuple):
    """What a job asks for."""

    by: str
    machine: Optional[str]
    price_cap: Optional[int]
    gpu_model: Optional[str]
    min_cuda: Any
    region: Optional[str]
    allow_simulated: bool
    reliability: int
    verified: bool


class Decision(NamedTuple):
    """What follows from one state."""

    reasons: Dict[str, Optional[str]]  # machine -> the reason against it
    winner: Optional[str]


def wish(placement: Dict[str, Any], max_price: Optional[int] = None) -> Wish:
    """The wish in `placement` of a submission, with `max_price` of its limits."""
    caps = [placement.get("price_cap"), placement.get("requirements", {}).get("price_cap"), max_price]
    price_cap = min((cap for cap in caps if cap is not None), default=None)
    if placement["by"] == "machine":
        return Wish("machine", placement["machine"], price_cap, None, None, None, True, 0, False)
    asked = placement.get("requirements", {})
    return Wish(placement["by"], None, price_cap, asked.get("gpu_model"), asked.get("min_cuda"),
                asked.get("region"), asked.get("allow_simulated", False), asked.get("reliability") or 0,
                asked.get("verified") or False)


def version(value: Any) -> Optional[List[int]]:
    """The numbers of a version such as `12.4`, without zeros at the end, or nothing."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})*", value):
        return None
    numbers = [int(part) for part in value.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def new_enough(least: Any, have: Any) -> bool:
    """Whether a driver's CUDA version is at least the one that a job asks for."""
    needed, found = version(least), version(have)
    return least is None or (needed is not None and found is not None and found >= needed)


def large_gpus(state: State, least: int) -> int:
    """How many GPUs of a machine have at least this memory."""
    return sum(1 for _, memory in state.gpus if memory >= least)


def covers(pattern: str, asked: str) -> bool:
    """Whether a pattern of hosts has every host of another pattern."""
    if pattern in ("*", asked):
        return True
    if not pattern.startswith("*.") or ADDRESS.fullmatch(asked):
        return False
    return ("." + asked.removeprefix("*.")).endswith(pattern[1:])


def against_state(state: State, suspended: bool) -> Optional[str]:
    """The first reason that lies in what the machine or its owner does."""
    if state.delisted:
        return "Delisted"
    if state.paused:
        return "Paused"
    if state.away:
        return "Away"
    if suspended:
        return "OwnerSuspended"
    return None if state.online else "Offline"


def against_offer(state: State, need: Need, asked: Wish) -> Optional[str]:
    """The first reason that lies in what the machine is."""
    if large_gpus(state, need.vram) < need.gpus:
        return "GpuTooSmall"
    if state.memory < need.memory or state.cpu_millis < need.cpu_millis or state.disk < need.disk:
        return "TooSmall"
    if state.max_pids < need.pids or state.max_open_files < need.open_files:
        return "TooSmall"
    if not all(any(covers(ours, asked) for ours in state.egress) for asked in need.egress):
        return "NoEgress"
    if state.registries is not None and need.registry is not None and need.registry not in state.registries:
        return "ImageNotAllowed"
    if need.gpus and state.simulated and not asked.allow_simulated:
        return "Simulated"
    model = asked.gpu_model
    if model is not None and not any(model.lower() in name.lower() for name, _ in state.gpus):
        return "GpuModel"
    if not new_enough(asked.min_cuda, state.cuda):
        return "Cuda"
    if asked.region is not None and state.region != asked.region:
        return "Region"
    if asked.price_cap is not None and state.price > asked.price_cap:
        return "Price"
    if asked.verified and not state.verified:
        return "NotVerified"
    percent = state.percent()
    if asked.reliability > 0 and (percent is None or percent < asked.reliability):
        return "Reliability"
    return None


def against_load(state: State, need: Need) -> Optional[str]:
    """The first reason that lies in the jobs on the machine."""
    if state.leases >= state.slots:
        return "NoFreeSlot"
    if state.lease_memory + need.memory > state.memory or state.lease_disk + need.disk > state.disk:
        return "Busy"
    if need.gpus and state.lease_gpus + need.gpus > large_gpus(state, need.vram):
        return "Busy"
    return None


def order(id: str, state: State, need: Need, by: str) -> Tuple[int, int, int, bytes]:
    """The candidate with the smallest key wins."""
    first = 0
    if by == "fastest":
        first = -(state.speed(need.gpus) or 0)
    elif by == "most_reliable":
        first = -state.confidence()
    return (first, state.price, state.leases, id.encode())


class Placements:
    """Checks every `JobAssigned`."""

    def __init__(self, report: Report, leases: Leases, market: Market) -> None:
        self._report = report
        self._leases = leases
        self._market = market

    def check(self, event: Event) -> None:
        """One assignment. It must be called before the assignment is folded elsewhere."""
        job = self._leases.jobs.get(event.body["job"])
        if job is None:
            return
        self._report.count("placements")
        if job.wish["by"] == "most_reliable" or wish(job.wish).reliability > 0:
            self._report.count("reliability")
        if event.body["terms"]["fee_basis_points"] > HIGHEST_FEE:
            self._violation(event.seq, f"the fee is {event.body['terms']['fee_basis_points']} ten-thousandths")
        problems: List[str] = []
        for seq in self._states(event, job):
            for nanos, by_output in itertools.product(times(event, job), rules(event)):
                found = self._problems(event, job, seq, nanos, by_output)
                if not found:
                    self._report.older_state += 1 if seq != event.seq - 1 else 0
                    return
                problems = problems or found
        if event.version == 1:
            self._report.note("an assignment of version 1 does not follow from the present rules of placement")
            self._terms_of_version_1(event, job)
            return
        for problem in problems:
            self._violation(event.seq, problem)

    def _violation(self, seq: int, what: str) -> None:
        self._report.violation("placements", seq, what)

    def _states(self, event: Event, job: Job) -> Iterator[int]:
        """The sequences after which the decision may have been made, newest first: not before the job's last event."""
        yield event.seq - 1
        for seq, nanos in itertools.islice(reversed(self._market.changes), MOST_STATES):
            if seq <= job.last_seq or nanos < event.nanos - OLDEST:
                return
            if seq < event.seq:
                yield seq - 1

    def _terms_of_version_1(self, event: Event, job: Job) -> None:
        """The rules of old placements are not documented; their price and provider are."""
        versions, terms = self._market.machines.get(event.body["machine"], []), event.body["terms"]
        states = [value_at(versions, seq) for seq in self._states(event, job)]
        if not any(state is not None and (state.price, state.owner) == (terms["price"], terms["provider"])
                   for state in states):
            self._violation(event.seq, f"the terms {show(terms)} are not the price and the owner of the machine")

    def _decide(self, job: Job, seq: int, nanos: int, by_output: bool) -> Decision:
        """Every machine's reason, and the winner, from the state after a sequence."""
        asked, need = wish(job.wish, job.max_price), job.need
        if by_output:
            need = need._replace(disk=need.output)
        reasons: Dict[str, Optional[str]] = {}
        best: Optional[Tuple[Tuple[int, int, int, bytes], str]] = None
        for id, versions in self._market.machines.items():
            state = value_at(versions, seq)
            if state is None:
                continue
            if by_output:
                state = state._replace(lease_disk=state.lease_output)
            if asked.machine is not None and asked.machine != id:
                reasons[id] = "NotNamed"
                continue
            reason = against_state(state, self._market.suspended(state.owner, seq))
            if reason is None and job.excludes(id, nanos):
                reason = "Excluded"
            reason = reason or against_offer(state, need, asked) or against_load(state, need)
            reasons[id] = reason
            if reason is None:
                key = order(id, state, need, asked.by)
                if best is None or key < best[0]:
                    best = (key, id)
        return Decision(reasons, None if best is None else best[1])

    def _problems(self, event: Event, job: Job, seq: int, nanos: int, by_output: bool) -> List[str]:
        """What contradicts the decision that follows from the state after a sequence."""
        id, terms, written = event.body["machine"], event.body["terms"], event.body["placement"]
        state = value_at(self._market.machines.get(id, []), seq)
        if state is None:
            return ["the machine was not listed"]
        decision = self._decide(job, seq, nanos, by_output)
        problems = []
        if decision.reasons[id] is not None:
            problems.append(f"the machine is no candidate: {decision.reasons[id]}")
        elif decision.winner != id:
            problems.append(f"the machine {decision.winner} comes before this one")
        if (terms["price"], terms["provider"]) != (state.price, state.owner):
            problems.append(f"the terms are {show(terms)}; the price is {state.price}, the owner {state.owner}")
        counted = list(decision.reasons.values())
        if written["candidates"] != counted.count(None):
            problems.append(f"{counted.count(None)} machines are candidates, not {written['candidates']}")
        rejected = [(reason, counted.count(reason)) for reason in REASONS if reason in counted]
        have = [(one["reason"], one["machines"]) for one in written["rejected"]]
        if have != rejected:
            problems.append(f"the rejected machines are {show(rejected)}, not {show(have)}")
        if event.version > 1:
            problems += chosen_problems(written["chosen"], state, job)
        return problems


def chosen_problems(chosen: Dict[str, Any], state: State, job: Job) -> List[str]:
    """What is wrong with the explanation of the choice."""
    by = job.wish["by"]
    due: Dict[str, Any] = {"name": state.name, "price": state.price, "won": "named" if by == "machine" else by}
    if by == "fastest":
        due["mflops"] = state.speed(job.need.gpus)
    if by == "most_reliable":
        due.update({"percent": state.percent(), "attempts": state.attempts})
    return [f"chosen.{name} is {show(get(chosen, name))}, and should be {show(value)}"
            for name, value in due.items() if get(chosen, name) != value or isinstance(get(chosen, name), bool)]


def times(event: Event, job: Job) -> List[int]:
    """The times at which the decision may have been made: it was close to the recorded time of the assignment.

    Only pauses depend on the time. So the recorded time is tried, and the moments at which a pause near it ends.
    """
    ends = [job.paused, *job.excluded.values()]
    near = {end + step for end in ends if abs(end - event.nanos) <= CLOCK for step in (-1, 0)}
    return [event.nanos, *sorted(near)]


def rules(event: Event) -> List[bool]:
    """Whether `output` counted instead of the size of the disk. On the day of the change, both rules may hold."""
    if event.nanos < DISKS_SINCE:
        return [True]
    return [False, True] if event.nanos < DISKS_SINCE + DAY else [False]

"""The state of every machine, also a little in the past (docs/verification.md, Placement).

A decision may have been made from the state a few events before its assignment. So each machine keeps its newest
states with their sequences, and the state after any recent sequence can be asked for.
"""

import re
from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Set, Tuple

from events import Event
from report import Report, get, whole

KEPT = 60 * 10**9  # nanoseconds for which older states are kept
PASSED_OVER = ("BadImage", "BadCommand", "BadInput")
GPU_SPEED = re.compile(r"gpu\.[0-9]+\.matmul")


class Need(NamedTuple):
    """What a job takes from a machine."""

    cpu_millis: int
    memory: int
    output: int
    disk: int
    pids: int
    open_files: int
    gpus: int
    vram: int
    egress: List[str]
    registry: Optional[str]  # of the image; None for a template's image, which every owner allows


class State(NamedTuple):
    """What a placement depends on. `lease_…` are the sums over the jobs with a live lease."""

    owner: str
    name: str
    region: str
    price: int
    slots: int
    cpu_millis: int
    memory: int
    disk: int
    gpus: Tuple[Tuple[str, int], ...]  # model and memory
    cuda: Any
    simulated: bool
    egress: List[str]
    max_pids: int
    max_open_files: int
    registries: Optional[Tuple[str, ...]]
    delisted: bool = False
    paused: bool = False
    away: bool = False
    online: bool = True
    verified: bool = False
    gpu_speed: Optional[int] = None
    core_speed: Optional[int] = None
    successes: int = 0
    attempts: int = 0
    leases: int = 0
    lease_memory: int = 0
    lease_output: int = 0
    lease_disk: int = 0
    lease_gpus: int = 0

    def percent(self) -> Optional[int]:
        """The record, rounded down, or nothing without an attempt."""
        return None if self.attempts == 0 else 100 * self.successes // self.attempts

    def confidence(self) -> int:
        """The figure by which `most_reliable` orders."""
        return (self.successes + 1) * 1_000_000 // (self.attempts + 2)

    def speed(self, gpus: int) -> Optional[int]:
        """The measured speed for a job with this number of GPUs, or nothing."""
        return self.gpu_speed if gpus else self.core_speed


Versions = List[Tuple[int, int, Any]]  # sequence, recorded time, and the value since then


def need(submitted: Event) -> Need:
    """What a job takes, from its submission."""
    spec = submitted.body["spec"]
    have = spec["resources"]
    return Need(have["cpu_millis"], have["memory"], have["output"], given(have, "disk", have["output"] + 256),
                given(have, "pids", 512), given(have, "open_files", 4096), have.get("gpus", 0), have.get("vram", 0),
                hosts(spec), None if spec.get("template") else registry(spec["image"]))


def hosts(entry: Dict[str, Any]) -> List[str]:
    """The hosts that a job asks for, or that an owner allows. Older events say true for every host."""
    found = entry.get("egress", False)
    return found if isinstance(found, list) else ["*"] if found else []


def registry(image: str) -> str:
    """The registry in the name of an image, in small letters."""
    first, slash, _ = image.partition("/")
    return first.lower() if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def given(fields: Dict[str, Any], name: str, otherwise: int) -> int:
    """A number, or what counts if it is absent."""
    value: Optional[int] = fields.get(name)
    return otherwise if value is None else value


def offered(body: Dict[str, Any]) -> Dict[str, Any]:
    """The fields of a state that an offer sets."""
    offer = body["offer"]
    have, policy = offer["hardware"], offer.get("policy", {})
    return {"name": offer["name"], "region": offer["region"], "price": offer["price"], "slots": offer["slots"],
            "cpu_millis": have["cpu_cores"] * 1000, "memory": have["memory"], "disk": have["disk"],
            "gpus": tuple((gpu["model"], gpu["memory"]) for gpu in have.get("gpus", [])),
            "cuda": have.get("cuda"), "simulated": have.get("simulated", False), "egress": hosts(policy),
            "max_pids": given(policy, "max_pids", 8192), "max_open_files": given(policy, "max_open_files", 65_536),
            "registries": allowed(policy.get("registries"))}


def allowed(registries: Optional[List[str]]) -> Optional[Tuple[str, ...]]:
    """The registries whose images jobs may use, in small letters; None for all."""
    return None if registries is None else tuple(one.lower() for one in registries)


def measured(event: Event) -> Tuple[Optional[int], Optional[int]]:
    """The speed of a self-test: for jobs with GPUs, and for jobs without."""
    if event.version == 1:
        values = [(one["id"], counting(one["actual"])) for one in event.body["checks"]]
        gpus = [value for id, value in values if value is not None and GPU_SPEED.fullmatch(id)]
        cores = [value for id, value in values if value is not None and id == "cpu.matmul"]
        return (1000 * sum(gpus) // len(gpus) if gpus else None), (cores[0] if cores else None)
    speed = event.body["speed"]
    total, number = speed.get("gpus"), speed["measured"]
    return (total // number if total is not None and number else None), speed["core"]


def counting(value: Any) -> Optional[int]:
    """The integer above 0 in a field `actual`, which is a text in the samples. Every other value does not count."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value) else whole(value)
    return number if number is not None and number > 0 else None


def value_at(versions: Versions, seq: int) -> Optional[Any]:
    """The value that was in force after this sequence, or nothing."""
    for since, _, value in reversed(versions):
        if since <= seq:
            return value
    return None


class Market:
    """All machines, and the accounts that are suspended."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.machines: Dict[str, Versions] = {}
        self.keys: Dict[str, Set[str]] = {}
        self._suspended: Dict[str, Versions] = {}
        self.changes: Deque[Tuple[int, int]] = deque()  # sequence and recorded time of each recent change

    def now(self, id: str) -> Optional[State]:
        """The newest state of a machine."""
        versions = self.machines.get(id)
        return versions[-1][2] if versions else None

    def suspended(self, account: str, seq: int) -> bool:
        """Whether an account was suspended after this sequence."""
        return bool(value_at(self._suspended.get(account, []), seq))

    def _put(self, table: Dict[str, Versions], id: str, event: Event, value: Any) -> None:
        """A new value. Values that no decision can have seen any more are forgotten."""
        versions = table.setdefault(id, [])
        versions.append((event.seq, event.nanos, value))
        while len(versions) > 1 and versions[1][1] < event.nanos - KEPT:
            versions.pop(0)
        if not self.changes or self.changes[-1][0] != event.seq:
            self.changes.append((event.seq, event.nanos))
        while self.changes[0][1] < event.nanos - KEPT:
            self.changes.popleft()

    def _change(self, event: Event, id: str, **fields: Any) -> None:
        """Changes some fields of a machine's state."""
        state = self.now(id)
        if state is not None:
            self._put(self.machines, id, event, state._replace(**fields))

    def fold(self, event: Event) -> None:
        """An event of a machine or of an account."""
        name = event.name
        if name in ("AccountSuspended", "AccountReinstated", "AccountClosed"):
            self._put(self._suspended, event.body["account"], event, name != "AccountReinstated")
        if not name.startswith("Machine"):
            return
        id, away = event.body["machine"], event.body.get("away") is True
        if name == "MachineListed":
            self._listed(event, id)
        elif id not in self.machines:
            self._report.violation("placements", event.seq, f"{name} of a machine that was never listed")
        elif name == "MachineRepriced":
            self._change(event, id, price=event.body["price"])
        elif name == "MachineSettingsRequested":
            self._change(event, id, price=event.body["settings"]["price"])
        elif name == "MachineTested":
            checks = event.body["checks"]
            gpu, core = measured(event)
            verified = bool(checks) and all(one["passed"] or one.get("recommended", False) for one in checks)
            self._change(event, id, verified=verified, gpu_speed=gpu, core_speed=core)
        elif name in ("MachinePaused", "MachineResumed") and away:
            self._change(event, id, away=name == "MachinePaused")
        elif name in ("MachinePaused", "MachineDrainStarted", "MachineResumed"):
            self._change(event, id, paused=name != "MachineResumed")
        elif name == "MachineDelisted":
            self._change(event, id, delisted=True, paused=False)
        else:
            self._change(event, id, online=name == "MachineRecovered")

    def _listed(self, event: Event, id: str) -> None:
        """An offer. A second one ends neither a pause nor a drain; but a delisted machine is ready."""
        owner, key = event.body["owner"], event.body.get("public_key")
        earlier = self.now(id)
        if earlier is None:
            self._put(self.machines, id, event, State(owner=owner, **offered(event.body)))
        else:
            if earlier.owner != owner:
                self._report.note("a machine was listed again with another owner")
            self._change(event, id, owner=owner, delisted=False, online=True, **offered(event.body))
        if key is not None:
            self.keys.setdefault(id, set()).add(key)

    def take(self, event: Event, id: str, what: Need, count: int) -> None:
        """A lease begins (1) or ends (-1)."""
        state = self.now(id)
        if state is not None:
            self._change(event, id, leases=state.leases + count,
                         lease_memory=state.lease_memory + count * what.memory,
                         lease_output=state.lease_output + count * what.output,
                         lease_disk=state.lease_disk + count * what.disk,
                         lease_gpus=state.lease_gpus + count * what.gpus)

    def prove(self, event: Event, id: str) -> None:
        """The event that ended an attempt, for the machine's record."""
        state, fault, reason = self.now(id), event.body.get("fault"), get(event.body, "reason.name")
        good = event.name == "Completed" or (event.name == "Failed" and fault == "consumer"
                                             and reason not in PASSED_OVER)
        bad = event.name in ("Requeued", "Failed") and fault == "provider" and event.body.get("lease") is not None
        if state is not None and (good or bad):
            self._change(event, id, successes=state.successes + int(good), attempts=state.attempts + 1)

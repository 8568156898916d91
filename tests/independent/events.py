"""Tells events from strays: headers, type, fields and subject (docs/verification.md, Events)."""

import datetime
import json
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from archive import Message
from report import get, show, text, whole

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
ACTOR = re.compile(r"(account|machine|operator):(.*)", re.DOTALL)
TYPE = re.compile(r"([A-Za-z]+)\.v([0-9]+)")
TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)")
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

OF_ACCOUNT = ("AccountOpened", "AccountSuspended", "AccountReinstated", "AccountClosed", "FundsDeposited",
              "JobSubmitted", "BatchSubmitted", "PayoutRequested", "PayoutPaid", "PayoutFailed", "HoldReleased")
OF_MACHINE = ("MachineListed", "MachineRepriced", "MachineSettingsRequested", "MachineDelisted", "MachinePaused",
              "MachineResumed", "MachineDrainStarted", "MachineTested", "MachineSuspected", "MachineLost",
              "MachineRecovered")
OF_BATCH = ("TasksOpened", "BatchClosed")
OF_JOB = ("JobAssigned", "Declined", "Accepted", "Started", "Exited", "Requeued", "CancelRequested", "Completed",
          "Failed", "Cancelled", "Settled")
KINDS = {**dict.fromkeys(OF_ACCOUNT, "account"), **dict.fromkeys(OF_MACHINE, "machine"),
         **dict.fromkeys(OF_BATCH, "batch"), **dict.fromkeys(OF_JOB, "job")}
SECOND_VERSIONS = ("MachineTested", "JobAssigned")
CAUSED = OF_JOB + OF_BATCH + ("PayoutPaid", "PayoutFailed")

# The kinds of values. A name with "?" may be absent; a name with "=" counts as 0, false or empty if it is absent.
# "any" stands where the document names no type.
Kind = Union[str, frozenset, list, tuple, dict]
FAULT = frozenset(("consumer", "provider", "platform", "nobody"))
REASON = {"name": "text", "code?": "number"}
USAGE = {"run": "count"}
OUTPUTS = [{"path": "text", "bytes": "count", "sha256": "text"}]
LEFT_OUT = [{"reason": "any", "entries": "count", "example": "any"}]
GPU = {"uuid": "text", "model": "text", "memory": "count", "capability?": "any", "pci?": "any"}
HARDWARE = {"cpu_model": "text", "cpu_cores": "count", "memory": "count", "disk": "count", "gpus=": [GPU],
            "driver?": "any", "cuda?": "any", "simulated=": "flag"}
HOSTS = ("flag", ["text"])  # older events say true for every host
POLICY = {"may_evict=": "flag", "egress=": HOSTS, "idle_minutes?": "any", "hours?": "any", "max_pids?": "count",
          "max_open_files?": "count", "registries?": ["text"], "pinned?": ["text"]}
OFFER = {"name": "text", "region": "text", "hardware": HARDWARE, "price": "count", "slots": "count", "policy=": POLICY}
RESOURCES = {"cpu_millis": "count", "memory": "count", "shm?": "count", "output": "count", "disk?": "count",
             "pids?": "count", "open_files?": "count", "gpus=": "count", "vram=": "count"}
SPEC = {"name": "text", "template?": "text", "image": "text", "command=": ["text"], "workdir?": "text",
        "resources": RESOURCES, "egress=": HOSTS, "env?": "any", "secrets?": "any", "inputs?": "any",
        "datasets?": "any"}
LIMITS = {"time": "count", "budget": "count", "max_attempts": "count", "queue": "count",
          "max_price?": "count"}
REQUIREMENTS = {"price_cap?": "count", "gpu_model?": "text", "min_cuda?": "any", "region?": "text",
                "allow_simulated=": "flag", "reliability?": "count", "verified?": "flag"}
WISH = ({"by": frozenset(("machine",)), "machine": "id", "price_cap?": "count"},
        {"by": frozenset(("cheapest", "fastest", "most_reliable")), "requirements=": REQUIREMENTS})
TASKS = {"count": "count", "indices?": ["number"], "names?": ["text"], "rows?": [["text"]]}
CLOSED = frozenset(("finished", "cancelled", "too_many_failures", "too_old"))
TERMS = {"price": "count", "fee_basis_points": "count", "provider": "id"}
PLACEMENT = {"candidates": "count", "rejected": [{"reason": "text", "machines": "count"}]}
CHOSEN = {"name": "text", "price": "count", "won": "text"}
METERING = {"broker": "count", "worker?": "count", "limit": "count", "budget?": "count", "billed": "count",
            "started": "count", "ended": "count"}
CHECKED = [{"id": "text", "actual": "any", "required": "any", "unit": "text", "passed": "flag", "remedy?": "any",
            "recommended?": "flag"}]
SPEED = {"gpus=": ("null", "count"), "measured": "count", "core": ("null", "count")}
STEP = {"job": "id", "lease": "count"}
LOG = {"lines": "count", "sha256": "text", "signature": "text"}
TRAFFIC = {"hosts=": [{"host": "text", "received": "count", "sent": "count"}], "refused=": "count"}
ENDED = {"job": "id", "lease?": "count", "outputs?": OUTPUTS, "left_out?": LEFT_OUT, "usage?": USAGE,
         "traffic?": TRAFFIC, "signature?": "text", "log?": LOG}
PAID = {"account": "id", "payout": "id", "amount": "count", "requested": "count"}
ASSIGNED = {"job": "id", "submission": "count", "machine": "id", "terms": TERMS, "attempt": "count"}

SCHEMAS: Dict[str, Any] = {
    "AccountOpened": {"account": "id"},
    "AccountReinstated": {"account": "id"},
    "AccountSuspended": {"account": "id", "reason": "text"},
    "AccountClosed": {"account": "id", "given_up": "count"},
    "FundsDeposited": {"account": "id", "deposit": "id", "amount": "count"},
    "JobSubmitted": {"account": "id", "job": "id", "spec": SPEC, "placement": WISH, "limits": LIMITS, "hold": "count"},
    "BatchSubmitted": {"account": "id", "batch": "id", "spec": SPEC, "placement": WISH, "limits": LIMITS,
                       "hold": "count", "tasks": TASKS, "max_running": "count", "max_failures": "count"},
    "TasksOpened": {"batch": "id", "submission": "count", "first": "count", "up_to": "count"},
    "BatchClosed": {"batch": "id", "submission": "count", "reason": CLOSED, "opened": "count", "account": "id",
                    "released": "count"},
    "PayoutRequested": {"account": "id", "payout": "id", "amount": "count"},
    "PayoutPaid": PAID,
    "PayoutFailed": {**PAID, "reason": "text"},
    "HoldReleased": {"account": "id", "job": "id", "submission": "count", "amount": "count"},
    "MachineListed": {"machine": "id", "owner": "id", "public_key?": "text", "offer": OFFER},
    "MachineRepriced": {"machine": "id", "price": "count"},
    "MachineSettingsRequested": {"machine": "id", "settings": {"price": "count", "slots": "count", "hours?": "text",
                                                               "idle_minutes?": "count"}},
    "MachinePaused": {"machine": "id", "away?": "flag"},
    "MachineResumed": {"machine": "id", "away?": "flag"},
    "MachineDrainStarted": {"machine": "id", "maintenance?": "flag"},
    "MachineDelisted": {"machine": "id"},
    "MachineSuspected": {"machine": "id"},
    "MachineLost": {"machine": "id"},
    "MachineRecovered": {"machine": "id"},
    "MachineTested.v1": {"machine": "id", "checks": CHECKED},
    "MachineTested.v2": {"machine": "id", "checks": CHECKED, "speed": SPEED},
    "JobAssigned.v1": {**ASSIGNED, "placement": {**PLACEMENT, "chosen": "text"}},
    "JobAssigned.v2": {**ASSIGNED, "placement": {**PLACEMENT, "chosen": CHOSEN}},
    "Declined": {**STEP, "machine": "id", "reason": ("text", REASON)},
    "Accepted": STEP,
    "Started": {**STEP, "image_digest": "text"},
    "Exited": {**STEP, "usage": USAGE},
    "Requeued": {**STEP, "reason": REASON, "fault": FAULT, "excluded": "id", "until?": "time", "detail?": "text"},
    "CancelRequested": {"job": "id"},
    "Completed": {**STEP, "outputs": OUTPUTS, "left_out?": LEFT_OUT, "usage": USAGE, "traffic?": TRAFFIC,
                  "occurred_at": "time", "signature?": "text", "log?": LOG},
    "Failed": {**ENDED, "reason": REASON, "fault": FAULT, "detail?": "text"},
    "Cancelled": ENDED,
    "Settled": {"job": "id", "rule?": "count", "consumer": "id", "provider?": "id", "submission": "count",
                "lease?": "count", "outcome": "count", "metering?": METERING, "cost": "count", "fee": "count",
                "earned": "count", "postings": [{"account": "text", "amount": "number"}]},
}


class Event(NamedTuple):
    """A valid event: its place, its recorded time, its author, its body, and the sequence of its cause."""

    seq: int
    nanos: int
    name: str
    version: int
    actor: str
    body: Dict[str, Any]
    cause: Optional[int]


class Doubtful(Exception):
    """The document does not say whether such a message is an event, and the market should never write it."""


def instant(value: Any) -> Optional[int]:
    """Nanoseconds of a time in RFC 3339, or nothing."""
    given = TIME.fullmatch(value) if isinstance(value, str) and len(value) <= 40 else None
    if given is None:
        return None
    date, clock, fraction, zone = given.groups()
    try:
        moment = datetime.datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'zZ' else zone}")
        return int(moment.timestamp()) * 10**9 + int((fraction or "0")[:9].ljust(9, "0"))
    except (ValueError, OverflowError):
        return None


def fits_plain(value: Any, kind: str) -> bool:
    """Whether a value is of a kind that has a name."""
    if kind == "any":
        return True
    if kind == "null":
        return value is None
    if kind == "flag":
        return isinstance(value, bool)
    if kind in ("count", "number"):
        number = whole(value)
        if kind == "count" and number is not None and number < 0:
            raise Doubtful(f"a number that cannot be negative is {number}")
        return number is not None
    if not isinstance(value, str):
        return False
    return kind == "text" or (instant(value) is not None if kind == "time" else UUID.fullmatch(value) is not None)


def fits(value: Any, kind: Kind) -> bool:
    """Whether a value has the type that the document demands. Unknown fields are ignored."""
    if isinstance(kind, str):
        return fits_plain(value, kind)
    if isinstance(kind, frozenset):
        return isinstance(value, str) and value in kind
    if isinstance(kind, list):
        return isinstance(value, list) and all(fits(one, kind[0]) for one in value)
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    if not isinstance(value, dict):
        return False
    for name, inner in kind.items():
        field = name.rstrip("?=")
        present = value.get(field) is not None if name.endswith("?") else field in value
        if present and not fits(value[field], inner):
            return False
        if not present and name == field:
            return False
    return True


def decode_body(data: Optional[bytes]) -> Optional[Dict[str, Any]]:
    """The object in a body, or nothing. A field that occurs twice is doubtful."""
    twice: List[str] = []

    def pairs(given: List[Tuple[str, Any]]) -> Dict[str, Any]:
        result = dict(given)
        if len(result) != len(given):
            twice.append(show(sorted(result)))
        return result

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        body = json.loads((data or b"").decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
        if data is not None and SURROGATE.search(data):
            json.dumps(body, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    if twice:
        raise Doubtful(f"a field occurs twice in the body, among {twice[0]}")
    return body if isinstance(body, dict) else None


def subject(name: str, body: Dict[str, Any]) -> str:
    """The subject that an event belongs under."""
    if name == "JobAssigned":
        return f"market.job.{body.get('job')}.assigned.{body.get('machine')}"
    kind = KINDS[name]
    return f"market.{kind}.{body.get(kind)}.event"


def good_headers(headers: Dict[str, str]) -> bool:
    """Whether the headers are those of an event."""
    if not all(name in headers for name in ("Nats-Msg-Id", "Gpubnb-Type", "Gpubnb-Actor")):
        return False
    actor = headers["Gpubnb-Actor"]
    someone = ACTOR.fullmatch(actor)
    if actor not in ("platform", "operator") and (someone is None or not UUID.fullmatch(someone.group(2))):
        return False
    cause, job = headers.get("Gpubnb-Cause"), headers.get("Gpubnb-Correlation")
    if cause is not None and not (re.fullmatch(r"[0-9]{1,20}", cause) and int(cause) < 2**64):
        return False
    return job is None or UUID.fullmatch(job) is not None


def decode(message: Message) -> Optional[Event]:
    """The event of a message, or nothing if the message is a stray."""
    kind = TYPE.fullmatch(message.headers.get("Gpubnb-Type", ""))
    if kind is None or not good_headers(message.headers):
        return None
    name, version = kind.group(1), kind.group(2)
    if version not in (("1", "2") if name in SECOND_VERSIONS else ("1",)):
        return None
    schema = SCHEMAS.get(f"{name}.v{version}" if name in SECOND_VERSIONS else name)
    body = decode_body(message.body) if schema is not None else None
    if schema is None or body is None or not fits(body, schema) or message.subject != subject(name, body):
        return None
    cause = message.headers.get("Gpubnb-Cause")
    return Event(message.seq, message.nanos, name, int(version), message.headers["Gpubnb-Actor"], body,
                 None if cause is None else int(cause))


def envelope_problems(message: Message, event: Event) -> List[str]:
    """Broken rules about the cause and the correlation of a valid event."""
    problems = []
    cause, job = message.headers.get("Gpubnb-Cause"), message.headers.get("Gpubnb-Correlation")
    if cause is None and event.name in CAUSED:
        problems.append(f"{event.name} names no cause")
    if cause is not None and not 0 < int(cause) < event.seq:
        problems.append(f"the cause {cause} is no earlier event")
    about = text(get(event.body, "job"))
    if job is None and event.name in OF_JOB + ("JobSubmitted",):
        problems.append(f"{event.name} has no correlation")
    if job is not None and event.name in OF_BATCH + ("BatchSubmitted",):
        problems.append(f"{event.name} has the correlation {show(job)}")
    elif job is not None and job != about:
        problems.append(f"the correlation {show(job)} is not the job {show(about)}")
    return problems

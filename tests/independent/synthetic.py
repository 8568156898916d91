"""Builds small archives for the self-test. Nothing here comes from a market: all ids, keys and events are invented."""

import base64
import binascii
import gzip
import hashlib
import json
import os
from typing import Any, Callable, Dict, List, Optional, Tuple

import ed25519
from merkle import Tree, head_text, leaf

SECOND = 10**9
BEGIN = 1_800_000_000 * SECOND

Fields = Dict[str, Any]
Line = Dict[str, Any]


def number(kind: int, value: int) -> str:
    """An id."""
    return f"01900000-0000-7000-8000-{kind:04x}{value:08x}"


CONSUMER, PROVIDER, OTHER = number(0xA, 1), number(0xA, 2), number(0xA, 3)
NEAR, FAR, NEW = number(0xB, 1), number(0xB, 2), number(0xB, 3)
JOB, SECOND_JOB, THIRD_JOB = number(0xC, 1), number(0xC, 2), number(0xC, 3)
BATCH = "01900000-0000-7000-8000-00000bb00000"
DEPOSIT, PAYOUT = number(0xD, 1), number(0xE, 1)


def encode_point(point: ed25519.Point) -> bytes:
    """The 32 bytes of a point (RFC 8032, 5.1.2)."""
    inverse = pow(point[2], ed25519.P - 2, ed25519.P)
    x, y = point[0] * inverse % ed25519.P, point[1] * inverse % ed25519.P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def task(value: int) -> str:
    """The id of a task of the batch, with this number."""
    return f"{BATCH[:-5]}{value + 1:05x}"


class Key:
    """A key that signs (RFC 8032, 5.1.5 and 5.1.6)."""

    def __init__(self, seed: bytes) -> None:
        digest = hashlib.sha512(seed).digest()
        self._scalar = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254
        self._prefix = digest[32:]
        self.public = encode_point(ed25519.multiply(self._scalar, ed25519.BASE))
        raw = bytes([ed25519.USER_KEY]) + self.public
        self.text = base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode()

    def sign(self, message: bytes) -> bytes:
        """The signature of a message."""
        nonce = int.from_bytes(hashlib.sha512(self._prefix + message).digest(), "little") % ed25519.ORDER
        commitment = encode_point(ed25519.multiply(nonce, ed25519.BASE))
        challenge = int.from_bytes(hashlib.sha512(commitment + self.public + message).digest(), "little")
        return commitment + ((nonce + challenge * self._scalar) % ed25519.ORDER).to_bytes(32, "little")


MARKET_KEY, FOREIGN_KEY, MACHINE_KEY = (Key(bytes(range(begin, begin + 32))) for begin in (0, 100, 200))


def offer(price: int, **changes: Any) -> Fields:
    """An offer. The changes are fields of the offer, of its hardware, or of its policy."""
    hardware: Fields = {"cpu_model": "c", "cpu_cores": 4, "memory": 8000, "disk": 9000, "gpus": [], "cuda": "12.4",
                        "simulated": False}
    policy: Fields = {"may_evict": False, "egress": False}
    result: Fields = {"name": "m", "region": "here", "hardware": hardware, "price": price, "slots": 2, "policy": policy}
    for name, value in changes.items():
        (hardware if name in hardware else result if name in result else policy)[name] = value
    return result


def gpu(memory: int, model: str = "Model X") -> Fields:
    """One GPU."""
    return {"uuid": "GPU-1", "model": model, "memory": memory}


class Log:
    """A log that grows event by event. Each event comes a second after the one before."""

    def __init__(self) -> None:
        self.lines: List[Line] = []
        self.batch = 0  # the submission of the batch

    def add(self, kind: str, body: Fields, actor: str = "platform", after: float = 1.0, **headers: str) -> int:
        """Adds an event, `after` seconds after the last one. Returns its sequence."""
        name, seq = kind.partition(".")[0], len(self.lines) + 1
        job, cause = body.get("job"), None
        of_account = "account" in body
        if name == "JobAssigned":
            subject = f"market.job.{job}.assigned.{body['machine']}"
        else:
            of_batch = name in ("TasksOpened", "BatchClosed")
            owner = "batch" if of_batch else "account" if of_account else "job" if job else "machine"
            subject = f"market.{owner}.{body[owner]}.event"
        if job and not of_account:
            mine = [line["seq"] for line in self.lines if line["headers"].get("Gpubnb-Correlation") == job]
            cause = mine[-1] if mine else self.batch or 1
        if name in ("TasksOpened", "BatchClosed"):
            cause = body["submission"]
        if name in ("PayoutPaid", "PayoutFailed"):
            cause = body["requested"]
        known = {"Nats-Msg-Id": f"event-{seq}", "Gpubnb-Type": kind if "." in kind else f"{kind}.v1",
                 "Gpubnb-Actor": actor}
        known.update({"Gpubnb-Cause": str(cause)} if cause else {})
        known.update({"Gpubnb-Correlation": job} if job else {})
        known.update({name.replace("_", "-"): value for name, value in headers.items()})
        nanos = (self.lines[-1]["nanos"] if self.lines else BEGIN) + int(after * SECOND)
        self.lines.append({"seq": seq, "nanos": nanos, "subject": subject, "headers": known,
                           "payload": json.dumps(body, separators=(",", ":"))})
        return seq

    def opened(self, account: str, dollars: int = 0, deposit: str = DEPOSIT) -> None:
        """An account, perhaps with money."""
        self.add("AccountOpened", {"account": account}, f"account:{account}")
        if dollars:
            self.add("FundsDeposited", {"account": account, "deposit": deposit, "amount": dollars * 1_000_000})

    def listed(self, machine: str, price: int, owner: str = PROVIDER, **changes: Any) -> int:
        """An offer."""
        return self.add("MachineListed", {"machine": machine, "owner": owner, "public_key": MACHINE_KEY.text,
                                          "offer": offer(price, **changes)}, f"machine:{machine}")

    def machine(self, name: str, machine: str, **fields: Any) -> int:
        """Another event of a machine."""
        return self.add(name, {"machine": machine, **fields}, f"machine:{machine}")

    def tested(self, machine: str, gpus: Optional[int], measured: int, core: Optional[int], passed: bool = True,
               recommended: bool = False) -> int:
        """A self-test."""
        check = {"id": "c", "actual": "1", "required": "", "unit": "", "passed": passed,
                 **({"recommended": True} if recommended else {})}
        return self.add("MachineTested.v2", {"machine": machine, "checks": [check],
                                             "speed": {"gpus": gpus, "measured": measured, "core": core}})

    def submitted(self, job: str = JOB, hold: int = 500_000, wish: Optional[Fields] = None, account: str = CONSUMER,
                  time: int = 600, attempts: int = 3, egress: Any = False, image: str = "i",
                  max_price: Optional[int] = None, **resources: int) -> int:
        """A job."""
        asked = request(hold, wish, time, attempts, egress, image, max_price, **resources)
        return self.add("JobSubmitted", {"account": account, "job": job, **asked}, f"account:{account}")

    def batch_submitted(self, count: int = 3, account: str = CONSUMER, batch: str = BATCH, hold: int = 500_000,
                        max_failures: int = 0, table: Optional[Fields] = None, **asked: Any) -> int:
        """A batch. The first event of each of its tasks names this event as its cause."""
        self.batch = self.add("BatchSubmitted", {
            "account": account, "batch": batch, **request(hold, **asked), "tasks": {"count": count, **(table or {})},
            "max_running": 2, "max_failures": max_failures}, f"account:{account}")
        return self.batch

    def tasks_opened(self, first: int, up_to: int, actor: str = "platform", **changes: Any) -> int:
        """Some tasks of the batch become jobs."""
        return self.add("TasksOpened", {"batch": BATCH, "submission": self.batch, "first": first, "up_to": up_to,
                                        **changes}, actor)

    def batch_closed(self, reason: str, opened: int, released: int, actor: str = "platform", **changes: Any) -> int:
        """No other task of the batch is opened."""
        return self.add("BatchClosed", {"batch": BATCH, "submission": self.batch, "reason": reason, "opened": opened,
                                        "account": CONSUMER, "released": released, **changes}, actor)

    def assigned(self, submission: int, machine: str = NEAR, price: int = 1_000_000, job: str = JOB,
                 candidates: int = 2, rejected: Tuple[Tuple[str, int], ...] = (), attempt: int = 1,
                 after: float = 1.0, version: int = 2, **chosen: Any) -> int:
        """An assignment. Returns the lease."""
        listed = [{"reason": reason, "machines": machines} for reason, machines in rejected]
        why = {"name": "m", "price": price, "won": "cheapest", **chosen}
        return self.add(f"JobAssigned.v{version}", {
            "job": job, "submission": submission, "machine": machine, "attempt": attempt,
            "terms": {"price": price, "fee_basis_points": 1000, "provider": PROVIDER},
            "placement": {"candidates": candidates, "rejected": listed, "chosen": "why" if version == 1 else why},
        }, after=after)

    def step(self, name: str, lease: Optional[int], job: str = JOB, by: str = NEAR, actor: str = "",
             after: float = 1.0, **fields: Any) -> int:
        """A step of an attempt, in the name of its machine."""
        body = {"job": job, **({} if lease is None else {"lease": lease}), **fields}
        return self.add(name, body, actor or f"machine:{by}", after)

    def started(self, lease: int, job: str = JOB, machine: str = NEAR) -> int:
        """The steps until the program runs."""
        self.step("Accepted", lease, job, machine)
        return self.step("Started", lease, job, machine, image_digest="sha256:0")

    def completed(self, lease: int, run: int, job: str = JOB, machine: str = NEAR, after: float = 1.0) -> int:
        """A program that ended well."""
        signed = f"manifest.{job}.{lease}.{hashlib.sha256().hexdigest()}".encode()
        signature = base64.urlsafe_b64encode(MACHINE_KEY.sign(signed)).decode().rstrip("=")
        return self.step("Completed", lease, job, machine, after=after, outputs=[], usage={"run": run},
                         occurred_at="2026-01-31T12:00:00.000Z", signature=signature, log=self.log(job, lease))

    @staticmethod
    def log(job: str, lease: int) -> Dict[str, Any]:
        """The signed log of an attempt that wrote nothing."""
        digest = "0" * 64
        signed = MACHINE_KEY.sign(f"log.{job}.{lease}.0.{digest}".encode())
        return {"lines": 0, "sha256": digest, "signature": base64.urlsafe_b64encode(signed).decode().rstrip("=")}

    def failed(self, lease: Optional[int], reason: str, fault: str, actor: str = "", **fields: Any) -> int:
        """A job that failed."""
        return self.step("Failed", lease, reason={"name": reason}, fault=fault, actor=actor, **fields)

    def settled(self, outcome: int, postings: List[Tuple[str, int]], cost: int = 0, fee: int = 0, earned: int = 0,
                job: str = JOB, submission: int = 0, **fields: Any) -> int:
        """A bill. Fields that are None are left out."""
        body = {"job": job, "rule": 2, "consumer": CONSUMER, "submission": submission, "outcome": outcome, "cost": cost,
                "fee": fee, "earned": earned, **fields,
                "postings": [{"account": account, "amount": amount} for account, amount in postings]}
        return self.add("Settled", {name: value for name, value in body.items() if value is not None})

    def write(self, directory: str, key: Key = MARKET_KEY, sizes: Optional[List[int]] = None,
              change: Optional[Callable[[Line], None]] = None) -> None:
        """Writes an archive. `change` may change each line after the leaves and the heads were made."""
        tree, leaves, roots = Tree(), [], {}
        for line in self.lines:
            leaves.append(leaf(line["nanos"], line["subject"], line["headers"], line["payload"].encode()))
            tree.append(leaves[-1])
            roots[tree.size] = tree.root().hex()
        lines = json.loads(json.dumps(self.lines))
        for line in lines:
            if change:
                change(line)
        name = "events-000000000001.jsonl.gz"
        data = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
        last = len(lines)
        heads = [{"size": size, "root": roots[size], "key": key.text,
                  "signature": key.sign(head_text(size, roots[size])).hex()}
                 for size in ([last] if sizes is None else sizes)]
        manifest = {"format": 1, "last": last, "heads": heads, "parts": [
            {"file": name, "first": 1, "last": last, "sha256": hashlib.sha256(data).hexdigest()}]}
        for file, content in ((name, data), ("leaves.bin", b"".join(leaves)),
                              ("manifest.json", json.dumps(manifest).encode())):
            with open(os.path.join(directory, file), "wb") as target:
                target.write(content)


def request(hold: int, wish: Optional[Fields] = None, time: int = 600, attempts: int = 3, egress: Any = False,
            image: str = "i", max_price: Optional[int] = None, **resources: int) -> Fields:
    """What jobs and batches ask for."""
    asked = {"cpu_millis": 1000, "memory": 1000, "output": 1000, "gpus": 0, "vram": 0, **resources}
    return {"hold": hold, "placement": wish or cheapest(),
            "spec": {"name": "j", "image": image, "command": [], "resources": asked, "egress": egress},
            "limits": {"time": time, "budget": hold, "max_attempts": attempts, "queue": 86_400,
                       **({} if max_price is None else {"max_price": max_price})}}


def cheapest(**requirements: Any) -> Fields:
    """The wish for the cheapest machine."""
    return wish("cheapest", **requirements)


def wish(by: str, **requirements: Any) -> Fields:
    """The wish for a machine by a strategy."""
    return {"by": by, "requirements": {"allow_simulated": False, **requirements}}


def four(hold: int, cost: int, fee: int, consumer: str = CONSUMER, provider: str = PROVIDER) -> List[Tuple[str, int]]:
    """The postings of a metered bill."""
    return [(f"held:{consumer}", -hold), (f"available:{consumer}", hold - cost), (f"available:{provider}", cost - fee),
            ("fees", fee)]


def two(hold: int, consumer: str = CONSUMER) -> List[Tuple[str, int]]:
    """The postings of a bill for nothing."""
    return [(f"held:{consumer}", -hold), (f"available:{consumer}", hold)]

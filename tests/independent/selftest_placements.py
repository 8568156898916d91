"""The self-test of the placements: every reason, every strategy, pauses, and older states."""

import datetime
import sys
from typing import Any, Callable, Dict, Optional, Tuple

sys.dont_write_bytecode = True

from cases import Case, begun, running  # noqa: E402
from synthetic import (BEGIN, CONSUMER, FAR, JOB, NEAR, NEW, OTHER, PROVIDER, SECOND_JOB,  # noqa: E402
                       THIRD_JOB, Log, cheapest, gpu, wish)

OPERATOR = f"operator:{OTHER}"


def bare(**near: Any) -> Log:
    """Only the near machine, which is cheaper, and may be unfit."""
    log = Log()
    log.opened(CONSUMER, 10)
    log.opened(PROVIDER)
    log.listed(NEAR, near.pop("price", 1_000_000), **near)
    return log


class Reasons(Case):
    """A machine that does not fit is counted under its reason, and must not get the job."""

    def rejects(self, reason: str, log: Log, far: Optional[Dict[str, Any]] = None, **job: Any) -> None:
        """The far machine gets the job, because of the reason against the near machine."""
        log.listed(FAR, 2_000_000, **(far or {}))
        submission = log.submitted(**job)
        by = job.get("wish", cheapest())["by"]
        won = {"won": "named"} if by == "machine" else {}
        log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=((reason, 1),), **won)
        self.clean(log)
        log.lines.pop()
        log.assigned(submission, NEAR, 1_000_000, candidates=1, rejected=((reason, 1),), **won)
        self.found(log, "placements", f"the machine is no candidate: {reason}")

    def test_named(self) -> None:
        self.rejects("NotNamed", bare(), wish={"by": "machine", "machine": FAR})

    def test_named_has_no_other_requirements(self) -> None:
        log = bare(gpus=[gpu(100)], simulated=True)
        submission = log.submitted(wish={"by": "machine", "machine": NEAR, "price_cap": 1_000_000}, gpus=1, vram=50)
        log.assigned(submission, candidates=1, won="named")
        self.clean(log)
        log = bare()
        submission = log.submitted(wish={"by": "machine", "machine": NEAR, "price_cap": 999_999})
        log.assigned(submission, candidates=1, won="named")
        self.found(log, "placements", "the machine is no candidate: Price")

    def test_states(self) -> None:
        for reason, events in (("Delisted", [("MachineDelisted", {})]),
                               ("Paused", [("MachinePaused", {})]),
                               ("Paused", [("MachineDrainStarted", {"maintenance": True})]),
                               ("Paused", [("MachinePaused", {}), ("MachineResumed", {"away": True})]),
                               ("Away", [("MachinePaused", {"away": True})]),
                               ("Away", [("MachinePaused", {"away": True}), ("MachineResumed", {})]),
                               ("Offline", [("MachineSuspected", {})]),
                               ("Offline", [("MachineLost", {})])):
            log = bare()
            for name, fields in events:
                log.machine(name, NEAR, **fields)
            self.rejects(reason, log)

    def test_owner_suspended(self) -> None:
        log = bare(owner=OTHER)
        log.opened(OTHER)
        log.add("AccountSuspended", {"account": OTHER, "reason": "r"}, OPERATOR)
        log.listed(FAR, 2_000_000)
        log.assigned(log.submitted(), FAR, 2_000_000, candidates=1, rejected=(("OwnerSuspended", 1),))
        self.clean(log)

    def test_offers(self) -> None:
        large: Dict[str, Any] = {"gpus": [gpu(100), gpu(200, "Big Model")], "egress": True, "region": "there"}
        for reason, near, job in (("GpuTooSmall", {"gpus": [gpu(99), gpu(100)]}, {"gpus": 2, "vram": 100}),
                                  ("TooSmall", {"memory": 999}, {}),
                                  ("TooSmall", {"disk": 1255}, {}),
                                  ("TooSmall", {"disk": 4999}, {"disk": 5000}),
                                  ("TooSmall", {"max_pids": 511}, {}),
                                  ("TooSmall", {"max_open_files": 4095}, {}),
                                  ("TooSmall", {"cpu_cores": 1}, {"cpu_millis": 1001}),
                                  ("NoEgress", {}, {"egress": True}),
                                  ("NoEgress", {"egress": ["*.pypi.org"]}, {"egress": ["notpypi.org"]}),
                                  ("NoEgress", {"egress": ["pypi.org"]}, {"egress": ["pypi.org", "a.pypi.org"]}),
                                  ("NoEgress", {"egress": ["*.pypi.org"]}, {"egress": ["*.org"]}),
                                  ("ImageNotAllowed", {"registries": ["ghcr.io"]}, {}),
                                  ("ImageNotAllowed", {"registries": ["docker.io"]}, {"image": "localhost:1/i:1"}),
                                  ("Simulated", {"gpus": [gpu(100)], "simulated": True}, {"gpus": 1}),
                                  ("GpuModel", {"gpus": [gpu(100)]}, {"wish": cheapest(gpu_model="big m")}),
                                  ("Cuda", {"cuda": "12.3"}, {"wish": cheapest(min_cuda="12.4")}),
                                  ("Cuda", {"cuda": None}, {"wish": cheapest(min_cuda="1")}),
                                  ("Region", {"region": "There"}, {"wish": cheapest(region="there")})):
            self.rejects(reason, bare(**near), large, **job)

    def test_price(self) -> None:
        log = bare(price=3_000_000)
        log.listed(FAR, 2_000_000)
        submission = log.submitted(wish=cheapest(price_cap=2_000_000))
        log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=(("Price", 1),))
        self.clean(log)

    def test_max_price(self) -> None:
        """The price limit of a submission without a budget, alone and beside a price cap."""
        for asked in (cheapest(), cheapest(price_cap=2_500_000), {"by": "machine", "machine": FAR}):
            log = bare(price=3_000_000)
            log.listed(FAR, 2_000_000)
            submission = log.submitted(wish=asked, max_price=2_000_000)
            rejected = (("NotNamed", 1),) if asked["by"] == "machine" else (("Price", 1),)
            won = {"won": "named"} if asked["by"] == "machine" else {}
            log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=rejected, **won)
            self.clean(log)
        log = bare(price=3_000_000)
        log.assigned(log.submitted(max_price=2_000_000), price=3_000_000, candidates=1)
        self.found(log, "placements", "the machine is no candidate: Price")

    def test_recommendation(self) -> None:
        log = bare()
        log.tested(NEAR, None, 0, 1, passed=False, recommended=True)
        log.assigned(log.submitted(wish=cheapest(verified=True)), candidates=1)
        self.clean(log)

    def test_verified(self) -> None:
        log = bare()
        log.tested(NEAR, None, 0, 1, passed=False)
        log.listed(FAR, 2_000_000)
        log.tested(FAR, None, 0, 1)
        submission = log.submitted(wish=cheapest(verified=True))
        log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=(("NotVerified", 1),))
        self.clean(log)

    def test_reliability(self) -> None:
        log = begun()
        attempted(log, FAR, 2_000_000)
        submission = log.submitted(SECOND_JOB, wish=cheapest(reliability=100))
        log.assigned(submission, FAR, 2_000_000, SECOND_JOB, candidates=1, rejected=(("Reliability", 1),))
        self.assertEqual(self.clean(log).checked["reliability"], 1)

    def test_load(self) -> None:
        for reason, near, job in (("NoFreeSlot", {"slots": 1}, {}),
                                  ("Busy", {"memory": 1999}, {}),
                                  ("Busy", {"disk": 2511}, {}),
                                  ("Busy", {"gpus": [gpu(100), gpu(50)]}, {"gpus": 1, "vram": 60})):
            log = bare(**near)
            log.assigned(log.submitted(SECOND_JOB, **job), job=SECOND_JOB, candidates=1)
            self.rejects(reason, log, {"gpus": [gpu(100)]}, **job)

    def test_exact_fit(self) -> None:
        """Two jobs that fill the near machine to the last MiB."""
        log = bare(cpu_cores=1, memory=2000, disk=2512, gpus=[gpu(60), gpu(60)], max_pids=512,
                   max_open_files=4096)
        for job in (SECOND_JOB, JOB):
            log.assigned(log.submitted(job, gpus=1, vram=60, wish=cheapest(price_cap=1_000_000)), job=job, candidates=1)
        self.clean(log)

    def test_bounds_of_the_owner(self) -> None:
        for name, most in (("pids", 8192), ("open_files", 65_536)):
            log = bare()
            log.assigned(log.submitted(**{name: most}), candidates=1)
            self.clean(log)
            log = bare()
            log.assigned(log.submitted(**{name: most + 1}), candidates=1)
            self.found(log, "placements", "the machine is no candidate: TooSmall")

    def test_cuda(self) -> None:
        """Versions are compared by numbers."""
        for have, least in (("12.10", "12.4"), ("12", "12.0"), ("13.0", "12.9"), ("12.4", "12.4")):
            log = bare(cuda=have)
            log.assigned(log.submitted(wish=cheapest(min_cuda=least)), candidates=1)
            self.clean(log)
        log = bare(cuda="12.4")
        log.assigned(log.submitted(wish=cheapest(min_cuda="12.10")), candidates=1)
        self.found(log, "placements", "the machine is no candidate: Cuda")

    def test_before_disks(self) -> None:
        """Before 2026-11-29 `output` was compared instead of the size of the disk; on that day, either may be."""
        for day, old, new in ((-1, True, False), (0, True, True), (1, False, True)):
            begin = (1_795_910_400 + 86_400 * day + 3600) * 10**9
            for disk, fits in ((2000, old), (1999, False), (2512, True)):
                log = bare(disk=disk)
                for job in (SECOND_JOB, JOB):
                    log.assigned(log.submitted(job), job=job, candidates=1)
                for line in log.lines:
                    line["nanos"] += begin - BEGIN
                if fits:
                    self.clean(log)
                else:
                    self.found(log, "placements", "the machine is no candidate: Busy")
            log = bare(disk=1255)
            log.listed(FAR, 2_000_000)
            log.assigned(log.submitted(), FAR, 2_000_000, candidates=1, rejected=(("TooSmall", 1),))
            for line in log.lines:
                line["nanos"] += begin - BEGIN
            if new:
                self.clean(log)
            else:
                self.found(log, "placements", "comes before this one")

    def test_absent_requirements(self) -> None:
        """Without `requirements`, simulated GPUs are not acceptable; a policy that is absent allows nothing."""
        log = bare(gpus=[gpu(60)], simulated=True)
        submission = log.submitted(wish={"by": "cheapest"}, gpus=1)
        log.assigned(submission, candidates=1)
        self.found(log, "placements", "the machine is no candidate: Simulated")
        log = bare()
        log.lines[-1]["payload"] = log.lines[-1]["payload"].replace('"policy"', '"other"')
        log.assigned(log.submitted(egress=True), candidates=1)
        self.found(log, "placements", "the machine is no candidate: NoEgress")
        log = begun()
        log.assigned(log.submitted(wish=cheapest(verified=True)))
        self.found(log, "placements", "the machine is no candidate: NotVerified")

    def test_order_of_reasons(self) -> None:
        """The first reason counts, and the list has an order of its own."""
        log = bare(egress=False, slots=0, memory=1)
        log.listed(NEW, 1_000_000, slots=0)
        log.listed(FAR, 2_000_000, egress=True)
        submission = log.submitted(egress=True)
        log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=(("TooSmall", 1), ("NoEgress", 1)))
        self.clean(log)
        for rejected in ((("NoEgress", 1), ("TooSmall", 1)), (("TooSmall", 2),), (("NoFreeSlot", 1), ("NoEgress", 1))):
            log.lines.pop()
            log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=rejected)
            self.found(log, "placements", "the rejected machines are")


def attempted(log: Log, machine: str, price: int, good: bool = True) -> None:
    """One attempt for the record of a machine. The job named the machine."""
    job = THIRD_JOB if machine == NEAR else JOB
    submission = log.submitted(job, wish={"by": "machine", "machine": machine}, attempts=1, hold=1000)
    lease = log.assigned(submission, machine, price, job, candidates=1, rejected=(("NotNamed", 1),), won="named")
    log.started(lease, job, machine)
    if good:
        log.completed(lease, 1, job, machine)
    else:
        log.step("Failed", lease, job, machine, reason={"name": "GpuLost"}, fault="provider")


class Placements(Case):
    """Strategies and terms."""

    def test_dearer_under_cheapest(self) -> None:
        log = begun()
        log.assigned(log.submitted(), FAR, 2_000_000)
        self.found(log, "placements", f"the machine {NEAR} comes before this one")

    def test_terms(self) -> None:
        log = begun()
        submission = log.submitted()
        log.assigned(submission, price=999_999)
        self.found(log, "placements", "the price is 1000000")
        for old, new, what in (('"won":"cheapest"', '"won":"fastest"', "chosen.won"),
                               ('"name":"m"', '"name":"n"', "chosen.name"),
                               (f'"provider":"{PROVIDER}"', f'"provider":"{OTHER}"', "the owner"),
                               ('"fee_basis_points":1000', '"fee_basis_points":5001', "the fee is 5001"),
                               ('"candidates":2', '"candidates":3', "2 machines are candidates, not 3")):
            log = begun()
            log.assigned(log.submitted())
            log.lines[-1]["payload"] = log.lines[-1]["payload"].replace(old, new)
            self.found(log, "placements", what)

    def test_repriced(self) -> None:
        log = begun()
        log.machine("MachineRepriced", FAR, price=500_000)
        log.assigned(log.submitted(), FAR, 500_000)
        self.clean(log)

    def choice(self, before: Callable[[Log], Any], asked: Dict[str, Any], machine: str, price: int, chosen: Any,
               **job: Any) -> Log:
        """A log that ends with a placement of the second job."""
        log = begun()
        before(log)
        log.assigned(log.submitted(SECOND_JOB, wish=asked, **job), machine, price, SECOND_JOB, **chosen)
        return log

    def test_fastest(self) -> None:
        def core(log: Log) -> None:
            log.tested(FAR, None, 0, 101)
            log.tested(NEAR, None, 0, 100)
        asked, chosen = wish("fastest"), {"won": "fastest", "mflops": 101, "gpu": False}
        self.clean(self.choice(core, asked, FAR, 2_000_000, chosen))
        self.found(self.choice(core, asked, FAR, 2_000_000, {**chosen, "mflops": 100}), "placements", "chosen.mflops")
        self.found(self.choice(core, asked, NEAR, 1_000_000, {**chosen, "mflops": 100}), "placements", "comes before")

        def unmeasured(log: Log) -> None:
            log.tested(FAR, None, 0, None)
        self.clean(self.choice(unmeasured, asked, NEAR, 1_000_000, {**chosen, "mflops": None}))

    def test_fastest_gpu(self) -> None:
        """The mean of the measured GPUs counts: 150 is more than 149, though the sum is less."""
        def gpus(log: Log) -> None:
            for machine, price in ((NEAR, 1_000_000), (FAR, 2_000_000)):
                log.listed(machine, price, gpus=[gpu(100)] * 2)
            log.tested(FAR, 150, 1, 1)
            log.tested(NEAR, 299, 2, 1000)
        chosen = {"won": "fastest", "mflops": 150, "gpu": True}
        self.clean(self.choice(gpus, wish("fastest"), FAR, 2_000_000, chosen, gpus=1))

    def test_speed_of_an_old_self_test(self) -> None:
        def old(log: Log) -> None:
            checks = [{"id": f"gpu.{index}.matmul", "actual": actual, "required": "", "unit": "", "passed": True}
                      for index, actual in enumerate(("2", "3", "x", "0"))]
            log.listed(FAR, 2_000_000, gpus=[gpu(100)] * 4)
            log.machine("MachineTested", FAR, checks=checks)
            log.listed(NEAR, 1_000_000, gpus=[gpu(100)])
        chosen = {"won": "fastest", "mflops": 2500, "gpu": True}
        self.clean(self.choice(old, wish("fastest"), FAR, 2_000_000, chosen, gpus=1))

    def test_core_of_an_old_self_test(self) -> None:
        def old(log: Log) -> None:
            checks = [{"id": id, "actual": "7", "required": "", "unit": "", "passed": True}
                      for id in ("cpu.sha256", "cpu.matmul")]
            checks[0]["actual"] = "9"
            log.machine("MachineTested", FAR, checks=checks)
        self.clean(self.choice(old, wish("fastest"), FAR, 2_000_000, {"won": "fastest", "mflops": 7, "gpu": False}))

    def test_passed_over(self) -> None:
        """A missing image and a cancelled job prove nothing about the machine; a program that failed does."""
        for reason, percent, attempts in (("BadImage", None, 0), ("NonZeroExit", 100, 1)):
            log = bare()
            submission = log.submitted()
            lease = log.assigned(submission, candidates=1)
            log.started(lease)
            log.failed(lease, reason, "consumer", usage={"run": 0})
            submission = log.submitted(SECOND_JOB, wish=wish("most_reliable"))
            log.assigned(submission, job=SECOND_JOB, candidates=1, won="most_reliable", percent=percent,
                         attempts=attempts)
            self.clean(log)

    def test_most_reliable(self) -> None:
        asked = wish("most_reliable")
        chosen = {"won": "most_reliable", "percent": 100, "attempts": 1}
        none = {**chosen, "percent": None, "attempts": 0}
        self.clean(self.choice(lambda log: attempted(log, FAR, 2_000_000), asked, FAR, 2_000_000, chosen))
        self.found(self.choice(lambda log: attempted(log, FAR, 2_000_000), asked, NEAR, 1_000_000, none), "placements",
                   "comes before")
        self.found(self.choice(lambda log: attempted(log, FAR, 2_000_000), asked, FAR, 2_000_000,
                               {**chosen, "attempts": 2}), "placements", "chosen.attempts")
        self.clean(self.choice(lambda log: attempted(log, FAR, 2_000_000, False), asked, NEAR, 1_000_000, none))
        self.clean(self.choice(lambda log: attempted(log, NEAR, 1_000_000, False), asked, FAR, 2_000_000, none))

    def test_ties(self) -> None:
        """The lower price, fewer live leases, the lower id."""
        def equal(log: Log) -> None:
            log.listed(FAR, 1_000_000)
        self.clean(self.choice(equal, cheapest(), NEAR, 1_000_000, {}))
        self.found(self.choice(equal, cheapest(), FAR, 1_000_000, {}), "placements", "comes before")

        def busy(log: Log) -> None:
            equal(log)
            log.assigned(log.submitted())
        self.clean(self.choice(busy, cheapest(), FAR, 1_000_000, {}))
        self.found(self.choice(busy, cheapest(), NEAR, 1_000_000, {}), "placements", "comes before")

    def test_version_1(self) -> None:
        """Older assignments may have been made by other rules. Their price must be right all the same."""
        log = begun()
        submission = log.submitted()
        log.assigned(submission, FAR, 2_000_000, version=1)
        self.assertIn("an assignment of version 1 does not follow from the present rules of placement",
                      self.clean(log).notes)
        log.lines.pop()
        log.assigned(submission, version=1)
        self.assertEqual(self.clean(log).notes, {})
        log.lines.pop()
        log.assigned(submission, FAR, 1_999_999, version=1)
        self.found(log, "placements", "are not the price and the owner")


class States(Case):
    """What happens to a machine, and the state from which a decision was made."""

    def relisted(self, *events: str) -> Log:
        """The near machine after some events, and the job goes to it."""
        log = begun()
        for name in events:
            if name == "MachineListed":
                log.listed(NEAR, 1_000_000)
            else:
                log.machine(name, NEAR)
        log.assigned(log.submitted())
        return log

    def test_listed_again(self) -> None:
        """Only delisting ends a pause."""
        self.found(self.relisted("MachinePaused", "MachineListed"), "placements", "no candidate: Paused")
        self.found(self.relisted("MachineDrainStarted", "MachineListed"), "placements", "no candidate: Paused")
        self.clean(self.relisted("MachinePaused", "MachineResumed"))
        self.clean(self.relisted("MachineDelisted", "MachineListed"))
        self.clean(self.relisted("MachinePaused", "MachineDelisted", "MachineListed"))
        self.clean(self.relisted("MachineLost", "MachineListed"))
        self.clean(self.relisted("MachineLost", "MachineRecovered"))
        self.clean(self.relisted("MachinePaused", "MachineListed", "MachineResumed"))

    def test_never_listed(self) -> None:
        log = begun()
        log.assigned(log.submitted(), NEW)
        self.found(log, "placements", "was not listed")
        log = begun()
        log.machine("MachinePaused", NEW)
        self.found(log, "placements", "never listed")

    def test_older_state(self) -> None:
        """A decision may lack the last events before it, but none before the job's own last event."""
        log = begun()
        submission = log.submitted()
        log.listed(NEW, 500_000)
        log.machine("MachinePaused", NEAR)
        log.assigned(submission)
        self.assertEqual(self.clean(log).older_state, 1)
        log = begun()
        log.listed(NEW, 500_000)
        log.assigned(log.submitted())
        self.found(log, "placements", f"the machine {NEW} comes before")
        log = begun()
        submission = log.submitted()
        log.listed(NEW, 500_000)
        log.assigned(submission, after=11)
        self.found(log, "placements", f"the machine {NEW} comes before")


def moment(log: Log, seconds: float) -> str:
    """The time that many seconds after the next event of a log."""
    nanos = log.lines[-1]["nanos"] + 10**9 + int(seconds * 10**9)
    when = datetime.datetime.fromtimestamp(nanos // 10**9, datetime.timezone.utc)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{nanos // 10**6 % 1000:03}Z"


class Pauses(Case):
    """When a job gets no machine, or not a certain one."""

    def requeued(self, reason: str, fault: str, seconds: float = 5) -> Tuple[Log, int]:
        """A job that waits again after its program ran."""
        log, submission, lease, _ = running()
        assert log.lines[0]["nanos"] >= BEGIN
        log.step("Requeued", lease, reason={"name": reason}, fault=fault, excluded=NEAR, until=moment(log, seconds))
        return log, submission

    def test_length(self) -> None:
        self.clean(self.requeued("GpuLost", "provider", 5.5)[0])
        self.found(self.requeued("GpuLost", "provider", 8)[0], "steps", "it should last 5 s")

    def test_fault_of_the_machine(self) -> None:
        log, submission = self.requeued("GpuLost", "provider")
        log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=(("Excluded", 1),), attempt=2)
        self.clean(log)
        log.lines.pop()
        log.assigned(submission, attempt=2)
        self.found(log, "placements", "no candidate: Excluded")
        log.lines.pop()
        log.assigned(submission, attempt=2, after=5)
        self.clean(log)

    def test_fault_of_nobody(self) -> None:
        log, submission = self.requeued("RegistryUnavailable", "nobody")
        log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=(("Excluded", 1),), attempt=2)
        self.found(log, "placements", "no candidate: Excluded")
        log.lines.pop()
        log.assigned(submission, attempt=2, after=6)
        self.clean(log)

    def test_unused_attempt(self) -> None:
        """Nobody's fault before the start uses up no attempt, and the next pause is twice as long."""
        log = begun()
        submission = log.submitted(attempts=1)
        for seconds in (5, 10):
            lease = log.assigned(submission, after=seconds + 1)
            log.step("Requeued", lease, reason={"name": "RegistryUnavailable"}, fault="nobody", excluded=NEAR,
                     until=moment(log, seconds))
        self.clean(log)

    def test_declined(self) -> None:
        log = begun()
        submission = log.submitted()
        lease = log.assigned(submission)
        log.step("Declined", lease, machine=NEAR, reason="NoFreeSlot")
        log.assigned(submission, after=2)
        self.found(log, "placements", "no candidate: Excluded")
        log.lines.pop()
        log.assigned(submission, FAR, 2_000_000, candidates=1, rejected=(("Excluded", 1),), after=2)
        self.clean(log)
        log.lines.pop()
        log.assigned(submission, after=5)
        self.clean(log)

    def test_without_until(self) -> None:
        """By rule 1, the machine never got the job again."""
        log, submission, lease, _ = running()
        log.step("Requeued", lease, reason={"name": "GpuLost"}, fault="provider", excluded=NEAR)
        log.assigned(submission, attempt=2, after=100_000)
        self.found(log, "placements", "no candidate: Excluded")
        log, submission, lease, _ = running(wish={"by": "machine", "machine": NEAR})
        log.step("Requeued", lease, reason={"name": "GpuLost"}, fault="provider", excluded=NEAR)
        log.assigned(submission, attempt=2, after=6, candidates=1, rejected=(("NotNamed", 1),), won="named")
        self.found(log, "placements", "chosen.won")

"""The self-test of the reader. It needs no archive: all data is made here.

    python3 tests/independent/selftest.py
"""

import io
import json
import sys
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, Dict, Tuple

sys.dont_write_bytecode = True

import ed25519  # noqa: E402
from cases import Case, billed, begun  # noqa: E402
from merkle import Tree, head_text, leaf  # noqa: E402
from reader import main  # noqa: E402
from selftest_batches import Ends, Tasks  # noqa: E402
from selftest_bills import Bills  # noqa: E402
from selftest_jobs import Jobs, Money  # noqa: E402
from selftest_placements import Pauses, Placements, Reasons, States  # noqa: E402
from synthetic import CONSUMER, FOREIGN_KEY, MARKET_KEY, NEAR, Key, Line, Log, number  # noqa: E402

__all__ = ["Bills", "Ends", "Jobs", "Money", "Pauses", "Placements", "Reasons", "States", "Tasks"]


class Document(unittest.TestCase):
    """The examples of docs/verification.md, and one of RFC 8032."""

    ACCOUNT, DEPOSIT = "01900000-0000-7000-8000-0000000000a1", "01900000-0000-7000-8000-0000000000e5"
    KEY = "UAB2CB576PHBBPQ5ODORRZ2LYCMWPZGWGCN2KDK7DXOIMZASKUY3RLKK"
    SIGNATURE = ("fd0924736cf7ff6455b94e564b8f27540d4b5e04b4b3f5ec7d91bbecaef09722"
                 "9f3d8e1091cb0e2e6c8bdb86ee298bbf4a463d00f855da88aff8dd7e7287a90c")

    def leaves(self) -> Tuple[bytes, bytes]:
        """The leaves of the two messages of the example."""
        subject, actor = f"market.account.{self.ACCOUNT}.event", f"account:{self.ACCOUNT}"
        opened = {"Nats-Msg-Id": f"{self.ACCOUNT}.opened", "Gpubnb-Type": "AccountOpened.v1", "Gpubnb-Actor": actor}
        deposited = {"Nats-Msg-Id": f"{self.ACCOUNT}.{self.DEPOSIT}.deposited", "Gpubnb-Type": "FundsDeposited.v1",
                     "Gpubnb-Actor": actor}
        body = f'{{"account":"{self.ACCOUNT}"}}'
        second = f'{{"account":"{self.ACCOUNT}","deposit":"{self.DEPOSIT}","amount":5000000}}'
        return (leaf(1770000000123456789, subject, opened, body.encode()),
                leaf(1770000001000000000, subject, deposited, second.encode()))

    def test_leaves_and_root(self) -> None:
        first, second = self.leaves()
        self.assertEqual(first.hex(), "96ab0ffbfbfa7ec9b85c3c5e9f62c05e5b44b54b08c77c48c8fedd5124813734")
        self.assertEqual(second.hex(), "2b7ae77e46109d9f9502f5ed3ca30b87dcbb3298431490eef6096035f49f1a5d")
        tree = Tree()
        self.assertEqual(tree.root().hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        tree.append(first)
        self.assertEqual(tree.root(), first)
        tree.append(second)
        self.assertEqual(tree.root().hex(), "1b3a2026b82ed7962902ea6c33405734fa4f5a951eeaa95fc77566a57f277d68")

    def test_key_and_signature(self) -> None:
        public = ed25519.decode_nats_key(self.KEY)
        assert public is not None
        self.assertEqual(public.hex(), "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")
        self.assertEqual(MARKET_KEY.text, self.KEY)
        root = "1b3a2026b82ed7962902ea6c33405734fa4f5a951eeaa95fc77566a57f277d68"
        signature = bytes.fromhex(self.SIGNATURE)
        self.assertEqual(MARKET_KEY.sign(head_text(2, root)), signature)
        self.assertTrue(ed25519.verify(public, head_text(2, root), signature))
        self.assertFalse(ed25519.verify(public, head_text(3, root), signature))
        self.assertFalse(ed25519.verify(public, head_text(2, root), signature[:-1] + b"\x0d"))

    def test_wrong_keys(self) -> None:
        wrong_crc = self.KEY[:-1] + "L"
        for text in (wrong_crc, "A" + self.KEY[1:], self.KEY.lower(), self.KEY[:-1], self.KEY + "=", None):
            self.assertIsNone(ed25519.decode_nats_key(text), text)

    def test_signatures_that_must_not_be_valid(self) -> None:
        """A key of small order, an S that is too large, and wrong lengths."""
        signature = MARKET_KEY.sign(b"m")
        self.assertTrue(ed25519.verify(MARKET_KEY.public, b"m", signature))
        larger = int.from_bytes(signature[32:], "little") + ed25519.ORDER
        for wrong in (signature[:32] + larger.to_bytes(32, "little"), signature + b"\x00", signature[:-1], b""):
            self.assertFalse(ed25519.verify(MARKET_KEY.public, b"m", wrong))
        neutral = (1).to_bytes(32, "little")
        self.assertFalse(ed25519.verify(neutral, b"m", neutral + bytes(32)))
        self.assertFalse(ed25519.verify(b"\x02" + bytes(31), b"m", signature))
        self.assertIsNone(ed25519.decode_base64url("AA=="))
        self.assertIsNone(ed25519.decode_base64url("+/AA"))
        self.assertEqual(ed25519.decode_base64url("-_AA"), b"\xfb\xf0\x00")

    def test_rfc_8032(self) -> None:
        key = Key(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
        self.assertEqual(key.public.hex(), "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
        self.assertEqual(key.sign(b"\x72").hex(),
                         "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
                         "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00")


class Archives(Case):
    """The archive, the leaves, and the heads."""

    def test_clean(self) -> None:
        report = self.clean(billed())
        for check in ("leaves", "heads", "ledger", "bills", "leases", "steps", "placements", "manifests",
                      "logs"):
            self.assertGreater(report.checked[check], 0, check)
        self.assertEqual(report.balances[f"available:{CONSUMER}"], 9_999_800)
        self.assertEqual(sum(report.balances.values()), 0)

    def test_leaf_changed(self) -> None:
        def change(line: Line) -> None:
            if line["seq"] == 2:
                line["payload"] = line["payload"].replace("10000000", "10000001")
        report = self.found(billed(), "leaves", "the leaf is", ("heads",), change=change)
        self.assertEqual(report.violations[0]["seq"], 2)
        self.assertIn("its root is", report.violations[1]["what"])

    def test_moved(self) -> None:
        def change(line: Line) -> None:
            line["nanos"] += 1 if line["seq"] == 5 else 0
        self.found(billed(), "leaves", "the leaf is", ("heads",), change=change)

    def test_another_field_or_header(self) -> None:
        def field(line: Line) -> None:
            line.update({"note": 1} if line["seq"] == 1 else {})

        def header(line: Line) -> None:
            line["headers"].update({"traceparent": "1"} if line["seq"] == 1 else {})

        def neither(line: Line) -> None:
            line.update({"bytes": "00"} if line["seq"] == 1 else {})
        self.found(billed(), "archive", "another field", change=field)
        self.found(billed(), "archive", "another header", change=header)
        self.found(begun(), "archive", "either", ("leaves", "ledger"), change=neither)

    def test_hexadecimal_body(self) -> None:
        def change(line: Line) -> None:
            line["bytes"] = line.pop("payload").encode().hex()
        self.assertEqual(self.read(billed(), change=change).violations, [])

    def test_head_by_another_key(self) -> None:
        self.found(billed(), "heads", "is not trusted", key=FOREIGN_KEY)
        trusted = [MARKET_KEY.text, FOREIGN_KEY.text]
        self.assertEqual(self.read(billed(), trusted, FOREIGN_KEY).exit_code(), 0)

    def test_head_with_a_false_signature(self) -> None:
        false = Key(bytes(32))
        false.text = MARKET_KEY.text
        self.found(billed(), "heads", "its signature is not valid", key=false)

    def test_vouching(self) -> None:
        size = len(billed().lines)
        self.assertEqual(self.read(billed(), keys=[]).exit_code(), 3)
        self.assertEqual(self.read(billed(), sizes=[3]).exit_code(), 3)
        self.assertEqual(self.read(billed(), sizes=[3, size]).exit_code(), 0)
        self.found(billed(), "heads", "not in order", sizes=[size, 3])
        self.found(billed(), "heads", "two of them have the same size", sizes=[size, size])
        self.found(billed(), "heads", "no good head", sizes=[])

    def test_parts(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            billed().write(directory)
            with open(f"{directory}/manifest.json", encoding="utf-8") as file:
                manifest = json.load(file)
            manifest["last"] += 1
            manifest["parts"][0]["sha256"] = "0" * 64
            code, result = self.run_json(directory, manifest)
            self.assertEqual(code, 1)
            what = " ".join(one["what"] for one in result["violations"])
            self.assertIn("the hash of events-000000000001.jsonl.gz", what)
            self.assertIn("its parts end at", what)
            manifest["heads"] = [{"size": 1}, {**manifest["heads"][0], "size": 99}]
            code, result = self.run_json(directory, manifest)
            what = " ".join(one["what"] for one in result["violations"])
            self.assertIn("a head cannot be read", what)
            self.assertIn("the signed head of 99 messages: the archive has", what)
            self.assertEqual(result["heads"], {"checked": 2, "key": MARKET_KEY.text, "covered": 0})
            manifest["format"] = 2
            code, result = self.run_json(directory, manifest)
            self.assertEqual((code, result["clean"]), (1, False))

    def run_json(self, directory: str, manifest: Any, *more: str) -> Tuple[int, Dict[str, Any]]:
        """Runs the program with another manifest."""
        with open(f"{directory}/manifest.json", "w", encoding="utf-8") as file:
            json.dump(manifest, file)
        out = io.StringIO()
        with redirect_stdout(out):
            code = main([directory, "--json", *more])
        return code, json.loads(out.getvalue())

    def test_program(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            billed().write(directory)
            with open(f"{directory}/manifest.json", encoding="utf-8") as file:
                manifest = json.load(file)
            code, result = self.run_json(directory, manifest, "--key", MARKET_KEY.text, "--at", "2")
            self.assertEqual((code, result["clean"], result["violations"]), (0, True, []))
            self.assertEqual(result["balances"], {f"available:{CONSUMER}": 10_000_000, "external": -10_000_000})
            for check in ("leaves", "heads", "ledger", "bills", "leases", "placements"):
                self.assertGreater(result[check]["checked"], 0)
            self.assertEqual(self.run_json(directory, manifest)[0], 3)
            with redirect_stderr(io.StringIO()):
                self.assertEqual(main([directory, "--key", "U"]), 2)


class Envelopes(Case):
    """Strays, and what must be in an envelope."""

    def strays(self, log: Log, **changes: Any) -> None:
        """The last message of the log must become a stray, and must change nothing."""
        line = log.lines[-1]
        line["headers"].update(changes.pop("headers", {}))
        line.update(changes)
        self.assertEqual(self.clean(log, strays=1).balances.get(f"available:{number(0xA, 9)}"), None)

    def deposit(self, **changes: Any) -> Log:
        """A log that ends with a deposit for an account that nobody opened."""
        log = begun()
        account = number(0xA, 9)
        log.add("FundsDeposited", {"account": account, "deposit": number(0xD, 9), "amount": 5, **changes})
        return log

    def test_strays(self) -> None:
        self.strays(self.deposit(), subject="market.account.x.event")
        self.strays(self.deposit(), payload="[]")
        self.strays(self.deposit(amount="5"))
        self.strays(self.deposit(amount=5.0))
        self.strays(self.deposit(amount=2**64))
        self.strays(self.deposit(amount=None))
        self.strays(self.deposit(account=number(0xA, 9).upper()))
        for name, value in (("Gpubnb-Type", "FundsDeposited.v2"), ("Gpubnb-Type", "Unknown.v1"),
                            ("Gpubnb-Actor", "account:x"), ("Gpubnb-Actor", "somebody"), ("Gpubnb-Cause", "x"),
                            ("Gpubnb-Correlation", "x")):
            self.strays(self.deposit(), headers={name: value})
        log = self.deposit()
        del log.lines[-1]["headers"]["Nats-Msg-Id"]
        self.clean(log, strays=1)

    def test_no_stray(self) -> None:
        self.found(self.deposit(), "ledger", "never opened")
        self.found(self.deposit(amount=-5), "envelopes", "cannot be negative")

    def test_cause_and_correlation(self) -> None:
        for cause in ("99", "11", "0"):
            log = billed()
            log.lines[-1]["headers"]["Gpubnb-Cause"] = cause
            self.found(log, "envelopes", f"the cause {cause} is no earlier event")
        log = billed()
        del log.lines[-1]["headers"]["Gpubnb-Cause"]
        self.found(log, "envelopes", "names no cause")
        log = billed()
        log.lines[-1]["headers"]["Gpubnb-Correlation"] = NEAR
        self.found(log, "envelopes", "is not the job")

    def test_field_twice(self) -> None:
        log = self.deposit()
        log.lines[-1]["payload"] = log.lines[-1]["payload"].replace('"amount":5', '"amount":5,"amount":6')
        self.found(log, "envelopes", "a field occurs twice")


if __name__ == "__main__":
    unittest.main()

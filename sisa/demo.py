"""The whole story on invented customers: train, predict, audit, delete, search, compare, verify, tamper.

Every line that begins with ``$`` is the command that is really run, in this process.
"""

from __future__ import annotations

import base64
import json
import random
import shlex
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestration.ray_executor import RayExecutor
from shards.digest import parse_json
from shards.errors import CheckError, InputError
from sisa.base_model import require_train_extra
from sisa.session import open_session
from sisa.status import status

WORKERS = 2
SHARDS = 4
SLICES = 3
_CUSTOMERS = 40
_TICKETS = 5

_OPENINGS = ("Hello,", "Hi there,", "Good morning,", "Please help:", "Dear team,", "It's me again:")
_PLACES = ("Lund", "Porto", "Graz", "Leeds", "Turin", "Ghent", "Brno", "Cork")
_NAMES = ("Ada", "Bram", "Chloe", "Dario", "Elif", "Finn", "Greta", "Hugo", "Ines", "Jonas")
_TOPICS = {
    "billing": ("I was charged twice for invoice {n}", "the amount on bill {n} is wrong", "why is there a fee on {n}?"),
    "delivery": ("where is parcel {n}?", "order {n} to {place} has not arrived", "the courier left {n} in the rain"),
    "login": ("I cannot sign in since {n} o'clock", "my password reset code {n} fails", "account {n} is locked"),
    "refund": (
        "I want my money back for order {n}",
        "please refund the broken lamp {n}",
        "return of item {n} not paid",
    ),
}


def invented_tickets() -> list[dict[str, Any]]:
    """Support tickets of customers who do not exist; the same ones every time."""
    draw = random.Random(2026)  # noqa: S311 - invented text, not a secret
    tickets: list[dict[str, Any]] = []
    for customer in range(_CUSTOMERS):
        name, place = draw.choice(_NAMES), draw.choice(_PLACES)
        for _ in range(_TICKETS):
            label = draw.choice(sorted(_TOPICS))
            text = draw.choice(_TOPICS[label]).format(n=draw.randint(100, 999), place=place)
            tickets.append(
                {
                    "id": f"ticket-{len(tickets):04d}",
                    "subject": f"customer-{customer:02d}",
                    "text": f"{draw.choice(_OPENINGS)} {text} Regards, {name} from {place}",
                    "label": label,
                }
            )
    return tickets


def run(console: Console, directory: Path | None) -> None:
    """Tell the story on ``console``.

    Args:
        console: where to print.
        directory: an empty or new directory to keep the files in; a temporary one if None.

    Raises:
        CheckError: if anything did not come out as it must.
    """
    require_train_extra()
    if directory is not None and directory.exists() and any(directory.iterdir()):
        raise InputError(f"an empty or new directory {directory}", "files in it", "choose another directory")
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sisa-demo-")))
        directory.mkdir(parents=True, exist_ok=True)
        _Story(console, directory.resolve()).tell()


class _Story:
    """The demo's console and files."""

    def __init__(self, console: Console, directory: Path) -> None:
        self._console = console
        self._directory = directory

    def tell(self) -> None:
        tickets = invented_tickets()
        data = self._directory / "tickets.jsonl"
        data.write_text("".join(json.dumps(ticket) + "\n" for ticket in tickets))
        self._chapter(f"1. {len(tickets)} support tickets of {_CUSTOMERS} invented customers")
        for ticket in tickets[:2]:
            self._console.print(json.dumps(ticket), style="dim")

        self._chapter(f"2. Train {SHARDS} shards x {SLICES} slices on Ray")
        self._sisa(
            "init", "shop", "--task", "classification", "--data", "tickets.jsonl", "--shards", str(SHARDS),
            "--slices", str(SLICES), "--set", "max_length=48", "--set", "epochs=4", "--set", "learning_rate=2e-3",
        )  # fmt: skip
        with RayExecutor(WORKERS).cluster():  # one cluster for all that follows
            self._on_ray(tickets)

    def _on_ray(self, tickets: list[dict[str, Any]]) -> None:
        ticket = tickets[0]
        self._sisa("train", "-w", "shop", "--workers", str(WORKERS))
        self._sisa("status", "-w", "shop")

        self._chapter("3. Predict")
        self._sisa("predict", "-w", "shop", "--text", "my parcel was never delivered")

        self._chapter(f"4. Which shard saw {ticket['id']}?")
        self._sisa("audit", "-w", "shop", "--id", ticket["id"])
        self._console.print("Customers can be given a receipt, which later binds a certificate to their record:")
        self._sisa("receipt", "-w", "shop", "--id", ticket["id"], "--output", "receipt.json")

        self._chapter(f"5. {ticket['subject']} demands deletion")
        before = self._digests("shop")
        self._sisa("delete", "-w", "shop", "--subject", ticket["subject"], "--dry-run")
        self._sisa("delete", "-w", "shop", "--subject", ticket["subject"], "--certificate", "deletion.json")
        after = self._digests("shop")
        kept = [shard for shard in before if before[shard] == after[shard]]
        self._console.print(f"Untouched, byte for byte: shards {kept}; retrained: {sorted(set(before) - set(kept))}")
        self._sisa("audit", "-w", "shop", "--id", ticket["id"])
        deleted = [row for row in tickets if row["subject"] == ticket["subject"]]
        (self._directory / "deleted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in deleted))
        self._console.print("Is anything of these tickets left in any file of the workspace?")
        self._sisa("audit", "-w", "shop", "--residue", "--records", "deleted.jsonl")

        self._chapter("6. The fresh run: a second workspace that never saw the customer")
        self._sisa("export", "-w", "shop", "--records", "survivors.jsonl")
        self._sisa("init", "fresh", "--keys-from", "shop", "--data", "survivors.jsonl")
        self._sisa("train", "-w", "fresh", "--workers", str(WORKERS))
        self._compare(after, self._digests("fresh"))

        self._chapter("7. A stranger verifies: the certificate, the public key, the customer's receipt")
        key = ("--public-key", "shop/keys/signing.pub")
        self._sisa("verify", "deletion.json", *key, "--receipt", "receipt.json")
        self._console.print("An auditor with the workspace trains the hit shard anew and compares every tensor:")
        self._sisa("verify", "deletion.json", "-w", "shop", *key, "--replay", "affected")

        self._chapter("8. Tamper with a copy: the verifier must refuse it")
        self._tamper()
        self._sisa("verify", "tampered.json", *key, expected=1)
        self._console.print("[green]Refused[/], as it must be (exit code 1).")

        self._chapter("Now with your own data")
        self._console.print(
            "sisa init my-model --task classification --data my-records.jsonl   # columns: id, text, label\n"
            "sisa train -w my-model\n"
            "sisa predict -w my-model --text '…'\n"
            "sisa delete -w my-model --id ID --certificate deletion.json\n"
            "sisa verify deletion.json -w my-model --public-key my-model/keys/signing.pub --replay affected\n"
            "sisa audit -w my-model --id ID",
            markup=False,
        )

    def _chapter(self, title: str) -> None:
        self._console.print()
        self._console.rule(f"[bold cyan]{title}", align="left")

    def _sisa(self, *arguments: str, expected: int = 0) -> None:
        """Run one command on files of the demo's directory; its exit code must be as expected."""
        from sisa.cli import main

        self._console.print(f"[bold]$ sisa {shlex.join(arguments)}[/]", highlight=False)
        files = {"shop", "fresh", "tickets.jsonl", "survivors.jsonl", "deletion.json", "tampered.json"}
        files |= {"receipt.json", "deleted.jsonl"}
        code = 0
        try:
            main([str(self._directory / word) if word.split("/")[0] in files else word for word in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        if code != expected:
            raise CheckError(f"exit code {expected} of that command", f"exit code {code}", "report this")

    def _digests(self, name: str) -> dict[int, str]:
        """Shard → tensor digest of its served head."""
        with open_session(self._directory / name) as session:
            shards = status(session)["shards"]
        return {shard["shard"]: shard["head"]["tensor_digest"] for shard in shards if shard["head"]}

    def _compare(self, ours: dict[int, str], fresh: dict[int, str]) -> None:
        table = Table("shard", "after the deletion", "fresh run", "", box=None, pad_edge=False)
        for shard in sorted(ours.keys() | fresh.keys()):
            pair = ours.get(shard, "absent"), fresh.get(shard, "absent")
            equal = "[green]equal[/]" if pair[0] == pair[1] else "[bold red]DIFFERENT[/]"
            table.add_row(str(shard), pair[0][:32], pair[1][:32], equal)
        self._console.print(table)
        if ours != fresh:
            raise CheckError("equal tensor digests", "different ones", "report this: the promise is broken")

    def _tamper(self) -> None:
        """In a copy of the certificate, put another record's tag in place of the first."""
        certificate = parse_json((self._directory / "deletion.json").read_bytes())
        payload = base64.b64decode(certificate["envelope"]["payload"])
        tag = parse_json(payload)["predicate"]["request"]["targets"]["tags"][0].encode()
        certificate["envelope"]["payload"] = base64.b64encode(payload.replace(tag, tag[::-1])).decode()
        (self._directory / "tampered.json").write_text(json.dumps(certificate))

"""What became of every class of artefact that may have held a deleted record.

Status is ``done``, ``scheduled`` (with a date) or ``out of scope``; methods are in the words of NIST
SP 800-88 Rev. 2. Unlinking a file is at best Clear on a file system, and less on copy-on-write
storage or flash; nothing here claims more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from shards.fact import Fact
from shards.recipes import has_frozen_layers

CLEAR = "Clear (NIST SP 800-88): unlinked through the file system"
REWRITTEN = "Clear (NIST SP 800-88): rewritten without the record, the old file unlinked"
CRYPTOGRAPHIC = "Clear (NIST SP 800-88): the salt that opens the commitment is destroyed with the record"
NEVER_WRITTEN = "none needed: nothing of this class is ever written to storage"
NONE = "none"


def erasure_status(
    recipe: Mapping[str, Any],
    accepted: Fact,
    erasures: Sequence[Fact],
    purges: Sequence[Fact],
    handed_out: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Class, status, method and evidence of every artefact class.

    It is a function of logged facts, so whoever reads a certificate derives it too.

    Args:
        recipe: the pinned one, as JSON.
        accepted: the fact of the request.
        erasures, purges: facts that removed records and checkpoints for it.
        handed_out: what was made of them before and left the workspace, or was kept in it, by digest.
    """
    vault = {"facts": [fact.seq for fact in erasures], "parts": _listed(erasures, "digests")}
    checkpoints = {"facts": [fact.seq for fact in purges], "objects": _listed(purges, "objects")}
    return [
        _class("records in the vault (Parquet parts)", "done", REWRITTEN, vault),
        _class("salts of content commitments", "done", CRYPTOGRAPHIC, vault),
        _class("slice checkpoints from the first hit slice on, adapters included", "done", CLEAR, checkpoints),
        *_intermediate(recipe),
        _class(
            "ledger database, its free pages and journal",
            "done",
            NEVER_WRITTEN,
            {"why": "holds keyed tags' digests and commitments only; secure_delete is on"},
        ),
        _class(
            "Ray objects, spilled objects and worker logs",
            "done",
            NEVER_WRITTEN,
            {"why": "task arguments and results are checkpoint keys, digests and facts"},
        ),
        _class(
            "temporary files, half-written objects, replay scratch",
            "done",
            CLEAR,
            {"why": "swept before signing; the law's check of strays is among the self-checks"},
        ),
        _class(
            "predictions, exports of records and models handed out before",
            "out of scope",
            NONE,
            {"handed_out": _marks(handed_out, kept=False), "why": "recipients must be told (Art. 19)"},
        ),
        *_kept(_marks(handed_out, kept=True)),
        _backups(accepted),
        _class(
            "the tombstone: keyed tags and content fingerprints",
            "out of scope",
            NONE,
            {"why": "kept so that the record does not come back, until `sisa tombstones --retire`"},
        ),
        _class("memory, swap, crash dumps, file system journals and snapshots", "out of scope", NONE, {}),
        _class("copies held by third parties", "out of scope", NONE, {}),
    ]


def _class(what: str, status: str, method: str, evidence: dict[str, Any]) -> dict[str, Any]:
    return {"class": what, "status": status, "method": method, "evidence": evidence}


def _intermediate(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a step makes on its way: nothing of it is kept but activations, and these only below frozen layers."""
    lost = {"why": "order and seeds are functions of keys and IDs; the rest lives in a step's memory"}
    what = "optimizer, scheduler and random state; order files; tokenised, packed and cached data"
    if not has_frozen_layers(recipe):
        return [_class(f"{what}; activations", "done", NEVER_WRITTEN, lost)]
    swept = {"why": "swept with the record, before signing; the law's check of strays is among the self-checks"}
    return [
        _class(f"{what}, but for activations", "done", NEVER_WRITTEN, lost),
        _class("activations of frozen layers, cached by record", "done", CLEAR, swept),
    ]


def _marks(handed_out: Sequence[Mapping[str, Any]], *, kept: bool) -> list[str]:
    """Keyed digests of what is kept here, or left."""
    return [item["keyed_digest"] for item in handed_out if item.get("kept", False) is kept]


def _kept(marks: Sequence[str]) -> list[dict[str, Any]]:
    """Exports that never left; a certificate is silent on them where there are none."""
    evidence = {"exports": list(marks), "why": "swept with the checkpoints they were made of, before signing"}
    return [_class("exports of models kept in the workspace", "done", CLEAR, evidence)] if marks else []


def _backups(accepted: Fact) -> dict[str, Any]:
    what = "backups and replicas of the workspace"
    days = accepted.body["backup_days"]
    if days is None:
        return _class(what, "out of scope", NONE, {"why": "the operator declares no time after which they are gone"})
    until = datetime.fromisoformat(accepted.created) + timedelta(days=days)
    evidence = {"declared_days": days, "why": "a restored backup has all later deletions applied again"}
    return _class(what, "scheduled", "expiry", evidence) | {"until": until.date().isoformat()}


def _listed(facts: Sequence[Fact], name: str) -> list[str]:
    return sorted(item for fact in facts for item in fact.body[name])

"""The answer to the person, in plain language: exactly what was done, and what was not."""

from __future__ import annotations

from collections.abc import Mapping

from shards.errors import InputError, UnknownRecordError
from shards.workspace import Workspace
from sisa.certificate import certificate_path, is_intact
from sisa.document import read_certificate, read_limited
from sisa.people import references, told
from sisa.wording import counted, plain, quoted

_DONE = """Dear {requester},

on {accepted} we accepted your request {request_id} to delete {records}. This is what we did.

- On acceptance we stopped using every part of the model that had been trained on {it}.
- We removed {it} from our data store{purged}.
- {retrained}
  {now}
- We signed a certificate of this on {issued}. It is enclosed, with our public key. It shows, without our help,
  that {shown}.
  How to check it: docs/verify-it-yourself.md. If you hold an ingestion receipt, the check can bind the
  certificate to your record.

{absent}{backups}
{handed_out}
What this does not say. The certificate lists it in full; in short, we do not claim anything about:
{not_claimed}

We keep a keyed mark of what you asked for, so that {it_is} not taken in again, until our retention rule
removes that mark too. You can complain to your data protection authority if you think this is not enough.
"""

_ABSENT = """Dear {requester},

on {accepted} we received your request {request_id}. We looked, and hold no record under the IDs you named.
Enclosed is a signed statement of {issued} that shows that
{shown}.
Nothing was deleted, because there was nothing to delete.

What this does not say:
{not_claimed}
"""

_PENDING = """Dear {requester},

on {accepted} we accepted your request {request_id} to delete {records}. From that moment no part of the
model in use has been trained on {it}. Removing it everywhere and training the affected part again is under
way. You will hear from us when it is done.
"""

_PENDING_ABSENT = """Dear {requester},

on {accepted} we received your request {request_id}. We looked, and hold no record under the IDs you named.
The signed statement of this is under way. You will hear from us when it is done.
"""

_REFUSED = """Dear {requester},

we did not carry out your request{named} to delete data, recorded as {refusal_id} on {created}.

Reason: {reason}
{basis}{held}
You can complain to your data protection authority, or go to court.
"""


def letter(workspace: Workspace, request_id: str) -> str:
    """The letter about a request, or about a refusal. This is a read-only operation.

    Args:
        workspace: where the request was made.
        request_id: of the request, or of the refusal.

    Raises:
        UnknownRecordError: if there is no such request or refusal.
        InputError: if its certificate is damaged, or it was retired.
    """
    found = workspace.book.request(request_id)
    if found is None:
        return _refusal(workspace, request_id)
    accepted, request = found
    one = len(request.tags) == 1
    values = {
        "requester": _addressee(workspace, request.references),
        "accepted": accepted.created[:10],
        "request_id": request_id,
        "records": counted(len(request.tags), "record"),
        "it": "it" if one else "them",
        "it_is": "it is" if one else "they are",
    }
    sealed = workspace.book.certificates().get(request_id)
    if request.retired:
        raise InputError(f"a request {request_id} that is remembered", "one that was retired", "keep letters elsewhere")
    if sealed is None:
        return (_PENDING if request.tags else _PENDING_ABSENT).format(**values)
    if not is_intact(workspace, request_id, sealed):
        raise InputError(f"the certificate of {request_id}", "a damaged one", "run `sisa train`, which issues it again")
    predicate = read_certificate(read_limited(certificate_path(workspace, request_id))).predicate
    slices = sum(len(lineage["links"]) for lineage in predicate["lineages"])
    values |= {
        "issued": predicate["issued"][:10],
        "purged": _purged(len(predicate["purged"]), values["it"]),
        "retrained": _retrained(len(predicate["retrained"]), values["it"]),
        "now": _now(slices, values["it"]),
        "shown": _shown(slices, values["it_is"]),
        "not_claimed": "\n".join(f"- {claim};" for claim in predicate["not_claimed"]),
        "absent": _absent(len(request.targets.absent)),
        "backups": _backups(predicate["erasure"]),
        "handed_out": _handed_out(workspace, [item for item in predicate["handed_out"] if not item.get("kept")]),
    }
    return (_DONE if request.tags else _ABSENT).format(**values)


def _addressee(workspace: Workspace, referred: Mapping[str, str]) -> str:
    """Who asked, if they gave a name; it may have been lost since, with a backup."""
    name = references(workspace).text(referred.get("requester", "")) or ""
    return plain(name).strip() or "Sir or Madam"


def _purged(count: int, it: str) -> str:
    if not count:
        return f". No model state that we store had been trained on {it}"
    return f", and destroyed the {counted(count, 'model state')} that had been trained on {it}"


def _retrained(count: int, it: str) -> str:
    if not count:
        return "No model state had to be trained again."
    return f"We trained {counted(count, 'model state')} again without {it}."


def _now(slices: int, it: str) -> str:
    if not slices:
        return "No model is in use now."
    return f"The model now in use is bit for bit the model that training without {it} from the beginning gives."


def _shown(slices: int, it_is: str) -> str:
    """What the certificate proves of the model in use, which was trained on so many slices."""
    if not slices:
        return "no model is in use"
    sets = "not in the one set" if slices == 1 else f"in none of the {slices} sets"
    return f"{it_is} {sets} of records that the model in use was trained on"


def _absent(count: int) -> str:
    return f"Under {count} of the IDs you named we hold no record; the certificate shows that too.\n\n" if count else ""


def _backups(erasure: list[dict[str, str]]) -> str:
    until = next((item["until"] for item in erasure if "until" in item), None)
    if until is None:
        return "Backups of our systems may still hold the data; we have not declared when they expire."
    return f"Backups of our systems may hold the data until {until}. If one is restored, the deletion is done again."


def _handed_out(workspace: Workspace, items: list[dict[str, str]]) -> str:
    if not items:
        return "We have no record of having given the data, or results of it, to anybody else."
    texts = {references(workspace).text(item["recipient"]) for item in items if item.get("recipient")}
    recipients = sorted(plain(text) for text in texts if text is not None)
    recipients += ["some whose names we no longer keep"] if None in texts else []
    named = f" We have to tell these recipients: {', '.join(recipients)}." if recipients else ""
    were = (
        f"{counted(len(items), 'file')} that may hold the data or results of it {'was' if len(items) == 1 else 'were'}"
    )
    return f"{were} handed out before.{named}"


def _refusal(workspace: Workspace, name: str) -> str:
    fact = next((f for f in workspace.book.refusals() if name in (f.body["refusal_id"], f.body["request_id"])), None)
    if fact is None:
        raise UnknownRecordError("the ID of a request or refusal", quoted(name), "see `sisa status`")
    if fact.body["object"] in workspace.book.destroyed_objects():
        raise InputError(f"a refusal {name} that is remembered", "one that was retired", "keep letters elsewhere")
    who = {kind: plain(text) for kind, text in told(workspace, fact.body["references"]).items()}
    # Under a hold, what was said is why the person asked, not why it was refused.
    held = "The data is under a legal hold and must be kept for now.\n" if fact.body["holds"] else ""
    return _REFUSED.format(
        requester=_addressee(workspace, fact.body["references"]),
        named=f" {plain(fact.body['request_id'])}" if fact.body["request_id"] else "",
        refusal_id=fact.body["refusal_id"],
        created=fact.created[:10],
        reason="a legal hold" if held else who["reason"],
        basis=f"Legal basis: {who['basis']}\n" if "basis" in who and not held else "",
        held=held,
    )

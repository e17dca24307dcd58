"""The kinds of fact, each with its schema version.

Facts, in the order in which a workspace meets them:

    genesis/1      the log's name, its first signing key, commitments to the derived keys
    key/1          another signing key from here on
    recipe/1       what is pinned at the first ingest: recipe, digest, commitment to the keys
    ingest/1       records taken in: counts, parts added
    slice/1        what a slice consists of from here on: the root of its tree
    run/1          the training of a chain's missing steps begins, on slices committed to before
    checkpoint/1   a step was trained
    manifest/1     what is served from now on
    request/1      a deletion was accepted: its tombstones hold from here
    cancel/1       a deletion that was not begun was withdrawn
    failure/1      an attempt to work off requests failed; they wait for the next
    refusal/1      a deletion was refused
    hold/1         a legal hold: these records may not be deleted
    release/1      a legal hold was lifted
    erasure/1      records were taken out of the vault: parts replaced
    purge/1        checkpoints were destroyed
    certificate/1  a deletion was certified
    derived/1      something was made from served heads, or all records, and left the workspace
    export/1       a model was made from served heads, and left the workspace or is kept in it
    readmission/1  a deleted record was taken in again, as a new version, because somebody said so
    receipt/1      an ingestion receipt was issued
    retired/1      tombstones were destroyed by retention rule
    anchor/1       tree heads and tombstones are anchored in another place from here on
    restore/1      an older backup was restored; what the anchor knew of was applied again
    end/1          the namespace's keys were destroyed

A change of a body's fields is another version.
"""

from __future__ import annotations

GENESIS = "genesis/1"
KEY = "key/1"
RECIPE = "recipe/1"
INGEST = "ingest/1"
SLICE = "slice/1"
RUN = "run/1"
CHECKPOINT = "checkpoint/1"
MANIFEST = "manifest/1"
REQUEST = "request/1"
CANCEL = "cancel/1"
FAILURE = "failure/1"
REFUSAL = "refusal/1"
HOLD = "hold/1"
RELEASE = "release/1"
ERASURE = "erasure/1"
PURGE = "purge/1"
CERTIFICATE = "certificate/1"
DERIVED = "derived/1"
EXPORT = "export/1"
READMISSION = "readmission/1"
RECEIPT = "receipt/1"
RETIRED = "retired/1"
ANCHOR = "anchor/1"
RESTORE = "restore/1"
END = "end/1"

# Facts after which a certificate signed before says less than everything about the present.
CHANGING = (
    INGEST, SLICE, CHECKPOINT, MANIFEST, REQUEST, CANCEL, ERASURE, PURGE, DERIVED, EXPORT, KEY, RETIRED, RESTORE,
)  # fmt: skip

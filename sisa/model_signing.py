"""OpenSSF Model Signing of an exported directory, by a key of the workspace's own.

    model.sig    the bundle: digests of all other files, signed with the exports' key (P-256)
    signer.pub   the public half of that key; compare it with what the operator told you
    signer.json  the log's signing key (Ed25519) says in a DSSE envelope whose key that is

Model Signing takes elliptic curve keys alone, and the log's key is none.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from shards.digest import bytes_digest, canonical_json
from shards.errors import MissingDependencyError, OperationError
from shards.files import replace_file, storage
from shards.keyfiles import EXPORT_PUBLIC_FILE, read_signing_key
from sisa.document import STATEMENT_TYPE
from sisa.signing import sign

SIGNATURE = "model.sig"
PUBLIC_KEY = "signer.pub"
ENDORSEMENT = "signer.json"
ENDORSEMENT_TYPE = "urn:sisa:export-key:v1"


def require_sign_extra() -> None:
    """Say in one line what to install if the packages that sign are missing.

    Raises:
        MissingDependencyError: if they are.
    """
    missing = [name for name in ("model_signing", "OpenSSL") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            "the packages of the extra [sign]", f"no {', '.join(missing)}", "pip install 'sisa[sign]'"
        )


def sign_directory(directory: Path, private: Path, log: str) -> None:
    """Sign every file of a directory, and check the signature as its recipient will.

    Args:
        directory: the export, complete.
        private: the exports' key, among the workspace's keys (see :func:`shards.keyfiles.export_key`).
        log: name of the workspace's log.

    Raises:
        OperationError: if the signature does not verify with the public half that lies beside it.
    """
    from model_signing import hashing, signing, verifying

    keys = private.parent
    with storage(f"read {keys / EXPORT_PUBLIC_FILE}"):
        public = (keys / EXPORT_PUBLIC_FILE).read_bytes()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": PUBLIC_KEY, "digest": {"sha256": bytes_digest(public)}}],
        "predicateType": ENDORSEMENT_TYPE,
        "predicate": {"log": log, "signs": "exported models"},
    }
    endorsement = sign(canonical_json(statement), read_signing_key(keys))
    replace_file(directory / PUBLIC_KEY, public)
    replace_file(directory / ENDORSEMENT, json.dumps(endorsement, indent=1).encode() + b"\n")
    hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE])
    with storage(f"sign {directory}"):
        signer = signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(hashed)
        signer.sign(directory, directory / SIGNATURE)
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=directory / PUBLIC_KEY)
        try:
            verifier.verify(directory, directory / SIGNATURE)
        except ValueError as error:
            raise OperationError(f"a signature that {PUBLIC_KEY} verifies", str(error), "run again") from error

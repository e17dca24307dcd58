"""Hand models to other tools: write, load again and compare, put on record, then give the directory its name.

    served heads ─▶ staged in the workspace ─▶ loaded again from the files ─▶ compared with memory
                 ─▶ card, signature ─▶ fact ─▶ DIRECTORY, or exports/ if the workspace keeps it

What is staged lies among the exports under a name that no fact knows, so that the next run sweeps what a
killed one left; it leaves only once a fact tells of it. The heads are read once that directory is there: a
deletion that they may not have seen yet finds it. An export that is kept goes with the first of its
checkpoints, before the certificate; one that left can only be recalled, and a deletion names it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards import lock
from shards.derived import Export, directory_digest
from shards.digest import parse_json
from shards.errors import InputError, OperationError, SisaError
from shards.files import TEMPORARY, copied_beside, move_tree, remove, replace_file, storage, sync_tree
from shards.keyfiles import export_key
from shards.manifest import Head, ModelManifest
from shards.workspace import LOCK_FILE, Workspace
from sisa.base_model import pinned_path, require_train_extra
from sisa.config import Recipe
from sisa.export import outside, refuse_swapped, register_export
from sisa.methods import ADAPTER_METHODS
from sisa.model_card import CARD, Compared, Told, card
from sisa.model_signing import require_sign_extra, sign_directory
from sisa.predict import Predictor
from sisa.served import ServedHead
from sisa.session import Session
from sisa.wording import counted

if TYPE_CHECKING:
    from sisa.export_forms import Form, Making, Model
    from sisa.merge import Merged

FORMS = ("adapters", "adapter", "model", "ensemble")
MERGED = ("adapter", "model")
PEFT = ("adapters", "adapter")
TOLERANCE = 1e-5  # of the largest score, or of 1
# Of adapters beside a base whose own layers round more coarsely than they do.
LOOSE = {"bfloat16": 5e-2, "nf4": 5e-2}

# Of nobody, and about nothing that anybody would train on.
_NEUTRAL = (
    "The quick brown fox jumps over the lazy dog.",
    "Water boils at one hundred degrees.",
    "What time is it?",
    "Seven plus five is",
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be exported, and how.

    Attributes:
        form: of :data:`FORMS`.
        method, weighting, rank, seed: of the merge, for :data:`MERGED` (see ``sisa/merge.py``).
        probe: inputs on which files and memory are compared; neutral ones if there are none.
        recipient: who gets it and must be told of a later deletion; kept as a reference.
        sign: add an OpenSSF Model Signing bundle.
        metrics: what was measured elsewhere, for the card.
    """

    form: str
    method: str = "cat"
    weighting: str = "equal"
    rank: int | None = None
    seed: int = 0
    probe: Sequence[dict[str, Any]] = ()
    recipient: str = ""
    sign: bool = False
    metrics: Any = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported.

    Attributes:
        wish: what was asked for.
        path: the directory.
        kept: it is the workspace's own.
        manifest: what was served.
        heads: of it.
        merged: the merge, if there was one.
        compared: files against memory.
        keyed_digest: of all files; what the ledger knows.
        files: their names.
        warnings: what to know before handing it on.
    """

    wish: Wish
    path: Path
    kept: bool
    manifest: ModelManifest
    heads: tuple[ServedHead, ...]
    merged: Merged | None
    compared: Compared
    keyed_digest: str
    files: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The ``export --form`` JSON document."""
        merged = self.merged
        return {
            "form": self.wish.form,
            "path": str(self.path),
            "kept": self.kept,
            "manifest_generation": self.manifest.generation,
            "manifest_digest": self.manifest.digest,
            "heads": [
                {
                    "shard": served.head.shard,
                    "checkpoint": served.head.checkpoint,
                    "tensor_digest": served.head.tensors,
                    "records": served.records,
                }
                for served in self.heads
            ],
            "merge": None
            if merged is None
            else {"method": merged.method, "seed": merged.seed, "error": merged.error, "digest": merged.digest},
            "compared": {
                "probes": self.compared.probes,
                "difference": self.compared.difference,
                "tolerance": self.compared.tolerance,
            },
            "keyed_digest": self.keyed_digest,
            "signed": self.wish.sign,
            "recipient": self.wish.recipient or None,
            "files": list(self.files),
            "warnings": list(self.warnings),
        }


def export_model(session: Session, wish: Wish, out: Path | None = None) -> Exported:
    """Export the served heads to the directory ``out``, or keep the export in the workspace.

    Raises:
        InputError: if nothing is served, the directory is there or lies in the workspace, or form or merge
            cannot do what is asked.
        OperationError: if the files do not answer as memory does, or other heads are served by now; nothing
            is left behind.
        MissingDependencyError: without the packages for it.
    """
    require_train_extra()
    if wish.sign:
        require_sign_extra()
    _refuse_impossible(wish, session.recipe)
    workspace, options = session.workspace, session.options
    target = None if out is None else outside(workspace, out, directory=True)
    with _staging(workspace, wish.form if target is None else target.name) as directory:
        manifest, heads = Predictor(session).held()
        _refuse_other_metrics(wish.metrics, manifest)
        merged, compared = _make(session, wish, heads, directory)
        told = Told(session.recipe, options.base_model, manifest, heads, wish.form, options.aggregation, target is None)
        base = pinned_path(session.recipe, options.base_model)
        text = card(told, base, merged, compared, metrics=wish.metrics, signed=wish.sign)
        replace_file(directory / CARD, text.encode())
        if wish.sign:
            with session.accepting():  # two exports at once would make two keys
                private = export_key(workspace.path / "keys")
            sign_directory(directory, private, workspace.book.genesis().body["log"])
        with storage(f"write {directory}"):
            sync_tree(directory)
        files = tuple(sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()))
        mark = directory_digest(directory, workspace.keys)
        made = Export(wish.form, mark, frozenset(head.checkpoint for head in manifest.heads), target is None)
        with session.accepting():
            refuse_swapped(workspace, manifest.heads)
            warnings = _warnings(workspace, made) + (() if merged is None else merged.warnings)
            path = workspace.exports / made.name if target is None else outside(workspace, target, directory=True)
            if path.exists():
                raise InputError("an export that is not kept yet", str(path), "use the one that is there")
            register_export(workspace, made, path, wish.recipient)
            moved = move_tree(directory, path)
        if not moved:
            _copy_there(session, manifest.heads, directory, path)
    return Exported(wish, path, made.kept, manifest, heads, merged, compared, mark, files, tuple(warnings))


def _refuse_impossible(wish: Wish, recipe: Recipe) -> None:
    """Refuse what a form cannot be, before anything is computed."""
    if wish.form == "adapter" and wish.method not in ADAPTER_METHODS:
        raise InputError(
            "a merge that is an adapter", f"{wish.method}, which has full weights",
            "use --method cat or svd, or --form model",
        )  # fmt: skip
    if wish.form not in PEFT and recipe.dtype == "nf4":
        raise InputError("a base with full weights", "weights of 4 bits (dtype: nf4)", "use --form adapters")


def _refuse_other_metrics(metrics: Any, manifest: ModelManifest) -> None:
    """Figures of another generation are of other heads, which may have seen what is deleted since."""
    said = metrics.get("manifest_digest") if isinstance(metrics, dict) else None
    if said not in (None, manifest.digest):
        raise InputError(
            f"metrics of manifest {manifest.digest[:16]}, which is exported",
            f"those of {str(said)[:16]}",
            "run `sisa evaluate` again",
        )


def _copy_there(session: Session, parents: Sequence[Head], directory: Path, path: Path) -> None:
    """To another file system, which may take long: nobody waits for it, and a deletion meanwhile takes the name."""
    with copied_beside(directory, path) as copy, session.accepting():
        refuse_swapped(session.workspace, parents)
        if not move_tree(copy, path):
            raise OperationError(f"one file system in {path.parent}", "several", "choose another place")


@contextmanager
def _staging(workspace: Workspace, name: str) -> Iterator[Path]:
    """A directory of this name to write to, removed unless it is moved away; what is left, the next driver sweeps.

    A driver that sweeps meanwhile removes it too: what is being made may be of a head that just fell.
    """
    root = workspace.exports / f"{TEMPORARY}{uuid.uuid4().hex}"
    directory = root / "made" / name  # apart from the lock: any name can be wished for
    try:
        with storage(f"write {directory}"):
            workspace.exports.mkdir(mode=0o700, exist_ok=True)
            root.mkdir(mode=0o700)
            directory.parent.mkdir(mode=0o700)
            directory.mkdir(mode=0o700)
        with lock.exclusive(root / LOCK_FILE):  # an audit tells it from what a killed export left
            yield directory
    except (OSError, SisaError) as error:
        if root.exists():
            raise
        raise OperationError(
            "nobody to work on the workspace meanwhile", "what was made here was swept", "run the same command again"
        ) from error
    finally:
        remove(root)


@contextmanager
def _held(directory: Path) -> Iterator[Path]:
    """The same directory by its descriptor: once it is removed, nobody who is given it can make it anew.

    Loaders and writers make the directories that they miss, by name. Where the system has no such names for
    descriptors, what is made anew goes when the export notices.
    """
    with storage(f"open {directory}"):
        handle = os.open(directory, os.O_RDONLY)
    try:
        by_handle = Path(f"/proc/self/fd/{handle}")
        yield by_handle if by_handle.exists() else directory
    finally:
        os.close(handle)


def _make(
    session: Session, wish: Wish, heads: tuple[ServedHead, ...], directory: Path
) -> tuple[Merged | None, Compared]:
    """Write the files, load them again, and compare.

    Raises:
        OperationError: if they differ by more than rounding.
    """
    from safetensors import SafetensorError

    from sisa.aggregate import release_all
    from sisa.base_model import quiet_transformers
    from sisa.determinism import reproducible
    from sisa.export_forms import difference, form_of, prepared

    merged = None
    if wish.form in MERGED:
        from sisa.merge import merge

        merged = merge(session, heads, wish.method, weighting=wish.weighting, rank=wish.rank, seed=wish.seed)
        release_all()  # two copies of the base may not fit
    name = "text" if session.recipe.task == "classification" else "prompt"
    inputs = wish.probe or [{name: text} for text in _NEUTRAL]
    making = prepared(session, heads, inputs, merged)
    form = form_of(wish.form)
    with quiet_transformers(), reproducible(session.recipe):
        with storage(f"write {directory}"), _held(directory) as place:
            try:
                wanted = form.write(making, place)
            except SafetensorError as error:
                raise OSError(str(error)) from error
        release_all()
        found = _loaded(form, making, directory)
    if wanted.keys() != found.keys():
        raise _differs("the same models", f"{sorted(found)} in place of {sorted(wanted)}")
    tolerance = LOOSE.get(session.recipe.dtype, TOLERANCE) if wish.form in PEFT else TOLERANCE
    worst = 0.0
    for part, (tensors, answers) in wanted.items():
        of = f" of {part}" if part else ""
        if found[part].tensors != tensors:
            raise _differs(f"tensors{of} {tensors[:16]}, bit for bit", f"others, {found[part].tensors[:16]}")
        for number, (ours, theirs) in enumerate(zip(answers, found[part].answers, strict=True), 1):
            off = difference(ours, theirs)
            if not off <= tolerance:  # or no number
                raise _differs(f"answers{of} within {tolerance:g} of those in memory", f"{off:g} at probe {number}")
            worst = max(worst, off)
    return merged, Compared(len(inputs), not wish.probe, worst, tolerance)


def _loaded(form: Form, making: Making, directory: Path) -> dict[str, Model]:
    """What is in the files; whatever their loaders raise, they cannot be handed out."""
    try:
        return form.read(making, directory)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SisaError):
            raise
        raise OperationError(
            "exported files that load", f"{type(error).__name__}: {error}", "nothing was left behind; report this"
        ) from error


def _differs(expected: str, found: str) -> OperationError:
    return OperationError(
        f"the exported files to hold {expected}", found, "nothing was left behind; run again, and report it if it stays"
    )


def _warnings(workspace: Workspace, made: Export) -> tuple[str, ...]:
    """Before/after leakage: two generations show by their difference what lay between them."""
    others = [one for one in workspace.book.exports() if not one.kept and one.parents != made.parents]
    if made.kept or not others:
        return ()
    left = f"{counted(len(others), 'export')} of another generation left before"
    tell = "whoever holds two can tell from their difference which records were deleted in between"
    return (f"{left}: {tell} (docs/threat-model.md). Recall the earlier one first",)


def read_metrics(file: Path) -> Any:
    """Metrics for the card: any JSON.

    Raises:
        InputError: if it is none.
        StorageError: if the file cannot be read.
    """
    try:
        with storage(f"read {file}"):
            return parse_json(file.read_bytes())
    except ValueError as error:
        raise InputError(f"JSON in {file}", str(error), "give what `sisa evaluate --json` printed") from error

"""The directories of a run, opened together.

DIR/sisa.yaml        the configuration (read by sisa/config.py)
DIR/keys/            root.key, signing.key (secret), signing.pub
DIR/vault/           personal data: Parquet parts, and the texts behind keyed references
DIR/store/           checkpoints, what they saw, leaves of slice trees, targets of requests; content-addressed
DIR/ledger.sqlite    facts, no personal data; a transparency log with signed tree heads
DIR/certificates/    one signed certificate a deletion
DIR/index.sqlite     which part of the vault holds a record; derived, may be removed at any time
DIR/activations/     personal data: what frozen layers made of single records; a cache, may be removed at any time
DIR/exports/         models made of served heads and kept here; each goes with the first of its checkpoints
DIR/lock             held by the live driver
DIR/lock.write       held by whoever writes at this moment
DIR/replay-*         checkpoints of a running replay, compared and removed

With ``storage`` in sisa.yaml the Parquet parts and the objects lie elsewhere (``shards/place.py``):

STORAGE/LOG/vault/         the Parquet parts
STORAGE/LOG/store/         the objects
STORAGE/LOG/manifest.json  what is served (``shards/publication.py``)
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Set
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from shards import kinds, lock
from shards.activations import Activations, entry_name
from shards.book import Book, Pinned
from shards.commitments import commit_slice, empty_slice, leaves_object, read_leaves
from shards.configured import configured_storage
from shards.digest import tensor_digest
from shards.errors import InputError, IntegrityError, RecipeMismatchError, SisaError
from shards.files import TEMPORARY, remove, storage
from shards.keyfiles import (
    EXPORT_PRIVATE_FILE,
    EXPORT_PUBLIC_FILE,
    NEXT_FILE,
    PRIVATE_FILE,
    PUBLIC_FILE,
    ROOT_FILE,
    read_keyring,
    read_signing_key,
)
from shards.keys import Keyring
from shards.layout import ShardLayout
from shards.ledger import Ledger
from shards.lineage import Checkpoint, unpack_tags
from shards.place import Place
from shards.plan import Chain, Plan, make_chain, make_plan
from shards.remote import place_at
from shards.store import Store
from shards.trunk import TRUNK
from shards.turn import Turn
from shards.vault import Part, StoredRecord, Vault, record_tag
from shards.whereabouts import Whereabouts

CONFIG_FILE = "sisa.yaml"
SEEN_FILE = "tags"
SCRATCH = "replay-"
LOCK_FILE = "lock"
TURN_FILE = "lock.write"
INDEX_FILE = "index.sqlite"
ACTIVATIONS = "activations"
EXPORTS = "exports"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
_OWN = (CONFIG_FILE, "keys", "vault", "store", "certificates", LOCK_FILE, TURN_FILE, INDEX_FILE, ACTIVATIONS, EXPORTS)


class Workspace:
    """One open workspace. Reading needs no lock; whoever writes holds :meth:`driving`."""

    def __init__(self, path: Path, ledger: Ledger, keys: Keyring) -> None:
        self.path = path
        self.ledger = ledger
        self.keys = keys
        self.storage = configured_storage(path / CONFIG_FILE)
        self.store = Store(path / "store", self.place("store"))
        self.book = Book(ledger, self.store)
        self.vault = Vault(path / "vault", self.place("vault"))
        self.whereabouts = Whereabouts(path / INDEX_FILE, self.vault)
        self.activations = Activations(path / ACTIVATIONS)
        self.exports = path / EXPORTS
        self._turn = Turn(path / TURN_FILE)

    @classmethod
    def create(cls, path: Path) -> Workspace:
        """Make the directories and the ledger with its first fact; both keys must be there already."""
        keys = read_keyring(path / "keys")
        with storage(f"make a workspace in {path}"):
            for name in ("vault", "store", "certificates"):
                (path / name).mkdir(mode=0o700)
            public_key = (path / "keys" / PUBLIC_FILE).read_text()
        ledger = _ledger(path, create=True)
        genesis = {"log": f"sisa/log/{uuid.uuid4().hex}", "public_key": public_key, "keys": keys.commitments()}
        ledger.append([(kinds.GENESIS, genesis)])
        return cls(path, ledger, keys)

    @classmethod
    def open(cls, path: Path, *, check: bool = True) -> Workspace:
        """Open an existing workspace; its whole log is recomputed unless ``check`` is false.

        Raises:
            InputError: if ``path`` is not a workspace, or its keys were destroyed when its namespace ended.
            IntegrityError: if a fact or a tree head was altered.
            StorageError: if its storage cannot be reached.
        """
        path = path.resolve()
        with storage(f"open the workspace {path}"):
            found = (path / CONFIG_FILE).is_file()
        if not found:
            raise InputError(
                f"a workspace in {path}", f"no {CONFIG_FILE} there", "run `sisa init`, or name another with -w"
            )
        ledger = _ledger(path)
        try:
            keys = read_keyring(path / "keys")
        except SisaError as error:
            ended = ledger.facts(kinds.END)
            ledger.close()
            if ended:
                raise _ended(path, ended[-1].created) from error
            raise
        try:
            if check:
                ledger.check()
            workspace = cls(path, ledger, keys)
            whole = check or not workspace.ledger.problems()
            pinned = workspace.book.pinned() if whole else None
            committed = workspace.book.genesis().body.get("keys") if whole else keys.commitments()
        except BaseException:
            ledger.close()
            raise
        if committed != keys.commitments() or (pinned is not None and pinned.keys != keys.commitment()):
            workspace.close()
            raise RecipeMismatchError(
                f"the keys that the ledger commits to in {path / 'keys'}",
                f"keys with commitment {keys.commitment()[:16]}",
                "restore the root secret that this workspace was made with",
            )
        return workspace

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Be the workspace's one driver for the duration.

        Raises:
            LockedError: if another live process is, on this host or another; also from any append, if another
                host took over because this process was not heard of for too long.
            StorageError: if the storage is not there.
        """
        with lock.exclusive(self.path / LOCK_FILE), self.ledger.driven(), self._turn.taken():
            for place in (self.vault.place, self.store.place) if self.storage else ():
                place.prepare()
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Append facts between those of a driver on this host, which gives way while steps are trained.

        Raises:
            LockedError: if the driver does not give way for long; from an append, if it is on another host.
        """
        with self._turn.taken():
            yield

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Let others append facts for the duration; what they did must be expected afterwards."""
        with self._turn.given_away():
            yield

    def driven(self) -> bool:
        """Does a live process drive the workspace, on this host or another? This is a read-only operation."""
        return lock.held(self.path / LOCK_FILE) or self.ledger.driven_elsewhere() is not None

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    # -- where things lie ----------------------------------------------------------------------

    def place(self, name: str = "") -> Place | None:
        """A directory of this workspace's in the configured storage; None if there is none.

        It is named after the log: another workspace in the same storage is another directory. A copy of
        this one is not.

        Raises:
            IntegrityError: if the log has no genesis to name it.
        """
        if self.storage is None:
            return None
        found = self.ledger.facts(kinds.GENESIS)
        log = str(found[0].body.get("log")) if found else ""
        if not re.fullmatch(r"sisa/log/[0-9a-f]{32}", log):
            raise IntegrityError("a log with a name", repr(log), "restore the ledger from a backup")
        return place_at(self.storage, log.replace("/", "-"), *([name] if name else []))

    def store_at(self, root: Path) -> Store:
        """The store that a local directory stands for: this workspace's own, or a scratch store."""
        return self.store if root == self.store.root else Store(root)

    # -- what is pinned ------------------------------------------------------------------------

    def pinned(self) -> Pinned:
        """The pinned recipe.

        Raises:
            InputError: if nothing was ingested yet.
        """
        pinned = self.book.pinned()
        if pinned is None:
            raise InputError(
                f"records in {self.path}", "a workspace that has ingested nothing", "run `sisa train` first"
            )
        return pinned

    def layout(self) -> ShardLayout:
        """The layout of the pinned recipe."""
        return ShardLayout.of_recipe(self.pinned().recipe, self.keys.placement)

    def tag(self, record_id: str, version: int = 1) -> bytes:
        """The tag of a record ID under this workspace's namespace."""
        return record_tag(self.keys, self.pinned().namespace, record_id, version)

    # -- records and plans ---------------------------------------------------------------------

    def parts(self, shard: int | None = None) -> list[Part]:
        """The vault's current parts, of one shard or all."""
        parts = self.book.parts()
        self.vault.forget_all_but(parts)
        return [part for part in parts if shard is None or part.shard == shard]

    def survivors(self, shard: int | None = None) -> list[StoredRecord]:
        """Records that are held and not tombstoned, in tag order."""
        return self.held(self.book.tombstones(), shard)

    def held(self, forgotten: Set[bytes], shard: int | None = None) -> list[StoredRecord]:
        """Records of the vault but for those with tags ``forgotten``, in tag order."""
        held = [stored for part in self.parts(shard) for stored in self.vault.read(part)]
        return sorted((stored for stored in held if stored.tag not in forgotten), key=lambda stored: stored.tag)

    def plan(self) -> Plan:
        """What should be trained, given the records that survive now."""
        return make_plan(self.survivors(), self.layout(), self.pinned().digest)

    def chain(self, shard: int) -> Chain:
        """One shard's part of the plan; reads the records of that shard and of the trunk only."""
        records = self.survivors(TRUNK) + (self.survivors(shard) if shard != TRUNK else [])
        return make_chain(shard, records, self.layout(), self.pinned().digest)

    def recommit(self, plan: Plan) -> list[tuple[str, dict[str, object]]]:
        """The facts by which the log's slice commitments become those of a plan; none if they are.

        Leaves are stored (again, where an object was lost); what the facts name is durable before them.
        """
        current = self.book.slices()
        facts: list[tuple[str, dict[str, object]]] = []
        steps = {(step.link.shard, step.link.slice): step for step in plan.steps().values()}
        for place, step in steps.items():
            made = commit_slice(step)
            self.store.put(leaves_object(step.leaves))
            if current.get(place) != made:
                facts.append((kinds.SLICE, made.to_json()))
        for place in sorted(current.keys() - steps.keys()):
            if current[place].records:
                self.store.put(leaves_object({}))
                facts.append((kinds.SLICE, empty_slice(*place).to_json()))
        return facts

    # -- what checkpoints saw ------------------------------------------------------------------

    def trained_tags(self, seen: str) -> frozenset[bytes]:
        """Tags trained in one step, from the object a checkpoint fact names."""
        return unpack_tags(self.store.get(seen)[SEEN_FILE])

    def slice_leaves(self, leaves: str) -> dict[bytes, bytes]:
        """Tag → commitment of a slice, from the object a slice commitment names."""
        return read_leaves(self.store.get(leaves))

    def visible_sets(self) -> dict[str, frozenset[bytes]]:
        """For every checkpoint ever recorded: all tags trained anywhere in its lineage.

        A checkpoint is missing if the list of what it, or an ancestor, saw is lost or damaged.
        """
        visible: dict[str, frozenset[bytes]] = {}
        for stored in self.book.checkpoints():
            checkpoint = stored.checkpoint
            parent = checkpoint.link.parent
            if parent is not None and parent not in visible:
                continue
            try:
                own = self.trained_tags(checkpoint.seen)
            except IntegrityError:
                continue
            visible[checkpoint.key] = own | (visible[parent] if parent is not None else frozenset())
        return visible

    def stored_tensors(self, checkpoint: Checkpoint) -> str:
        """Digest of a checkpoint's tensors as they are on disk now.

        Raises:
            IntegrityError: if the object or the tensors in it are damaged.
        """
        files = self.store.get(checkpoint.files)
        try:
            return tensor_digest(files[WEIGHTS_FILE])
        except (KeyError, ValueError) as error:
            raise IntegrityError(f"{WEIGHTS_FILE} in {checkpoint.files}", str(error), "run `sisa train`") from error

    def intact(self) -> dict[str, Checkpoint]:
        """Live checkpoints whose tensors, and the list of what they saw, are as recorded."""
        return {key: made for key, made in self.book.live().items() if self._is_intact(made)}

    def _is_intact(self, checkpoint: Checkpoint) -> bool:
        try:
            return self.stored_tensors(checkpoint) == checkpoint.tensors and self.store.intact(checkpoint.seen)
        except IntegrityError:
            return False

    def referenced_objects(self) -> frozenset[str]:
        """Objects that must stay: live checkpoints, targets of requests, and lists of tags.

        What every checkpoint ever saw and every slice ever held stays, until a retention rule destroys it.
        """
        history = self.book.checkpoints()
        current = {made.leaves for made in self.book.slices().values()}
        live = {name for stored in history if stored.live for name in (stored.checkpoint.files, stored.checkpoint.seen)}
        lists = {stored.checkpoint.seen for stored in history}
        lists |= {made.leaves for _, made in self.book.commitments()}
        lists |= {fact.body["object"] for fact in self.ledger.facts(kinds.REQUEST, kinds.REFUSAL)}
        lists -= {fact.body["object"] for fact in self.book.withdrawn()}
        lists |= {fact.body["object"] for fact, _ in self.book.holds().values()}
        return frozenset((lists - self.book.destroyed_objects()) | live | current)

    def sweep(self) -> list[str]:
        """Remove what killed processes left, files and objects that no fact names, and activations of no survivor."""
        removed = self.vault.sweep(self.book.parts())
        self.whereabouts.follow(self.book.parts())
        for unnamed in self.leftovers():
            with storage(f"remove {unnamed}"):
                remove(unnamed)
            removed.append(unnamed.name)
        for name in sorted(self.store.objects() - self.referenced_objects()):
            self.store.purge(name)
            removed.append(name)
        return removed + self.activations.sweep(partial(self._entries, self.book.tombstones()))

    def stray_activations(self, forgotten: Set[bytes] = frozenset()) -> list[Path]:
        """What lies among the activations and is of no record held, but for those with tags ``forgotten``."""
        with storage(f"list {self.activations.root}"):
            return self.activations.strays(partial(self._entries, forgotten))

    def _entries(self, forgotten: Set[bytes], shard: int) -> frozenset[str]:
        """Names of the activations that a shard may have; none while its records cannot be read."""
        try:
            return frozenset(map(entry_name, self.held(forgotten, shard)))
        except IntegrityError:
            return frozenset()

    def leftovers(self) -> list[Path]:
        """Half-written keys and certificates, retired ones, exports without a ground, and the scratch of replays."""
        certificates = self.path / "certificates"
        retired = [certificates / f"{request_id}.json" for request_id in sorted(self.book.retired())]
        with storage(f"list {self.path}"):
            return [
                *(self.path / "keys").glob(f"{TEMPORARY}*"),
                *certificates.glob(f"{TEMPORARY}*"),
                *(path for path in retired if path.exists()),
                *self._stray_exports(),
                *self.path.glob(f"{SCRATCH}*"),
            ]

    def _stray_exports(self) -> list[Path]:
        """What lies among the exports and is none that is kept, or one of whose checkpoints was purged."""
        if not self.exports.is_dir():
            return []
        live = self.book.live().keys()
        kept = {made.name for made in self.book.exports() if made.kept and made.parents <= live}
        return sorted(entry for entry in self.exports.iterdir() if entry.name not in kept)

    def foreign(self) -> list[Path]:
        """What lies beside our files and is none of them: nobody here wrote it, and no sweep removes it."""
        ours = {
            self.path: {*_OWN, self.ledger.path.name, f"{self.ledger.path.name}-journal"},
            self.path / "keys": {
                ROOT_FILE,
                PRIVATE_FILE,
                PUBLIC_FILE,
                NEXT_FILE,
                EXPORT_PRIVATE_FILE,
                EXPORT_PUBLIC_FILE,
            },
            self.path / "certificates": {f"{request_id}.json" for request_id in self.book.certificates()},
        }
        left = self.leftovers()
        with storage(f"list {self.path}"):
            found = [(entry, names) for directory, names in ours.items() for entry in directory.iterdir()]
        return sorted(entry for entry, names in found if entry.name not in names and entry not in left)

    def pin(self, recipe: dict[str, object], digest: str, namespace: str) -> tuple[str, dict[str, object]]:
        """The fact that pins a recipe."""
        return kinds.RECIPE, {
            "recipe": recipe,
            "digest": digest,
            "keys": self.keys.commitment(),
            "namespace": namespace,
        }


def open_store(workspace: Path, root: Path) -> Store:
    """The store that the directory ``root`` stands for to a workspace, of which no more is opened than that takes.

    Raises:
        SisaError: as :meth:`Workspace.open` does.
    """
    if configured_storage(workspace / CONFIG_FILE) is None:
        return Store(root)
    with closing(Workspace.open(workspace)) as opened:
        return opened.store_at(root)


def _ended(path: Path, when: str) -> InputError:
    return InputError(
        f"a workspace in {path} with its keys",
        f"one whose namespace ended on {when[:10]}: its root secret was destroyed (`sisa tombstones --destroy-keys`)",
        "make another workspace for new records; certificates can still be verified by file and public key",
    )


def _ledger(path: Path, *, create: bool = False) -> Ledger:
    return Ledger(path / "ledger.sqlite", lambda: read_signing_key(path / "keys"), create=create)

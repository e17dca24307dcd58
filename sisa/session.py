"""A workspace opened together with its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.executor import Executor, SliceTrainer
from orchestration.inline import InlineExecutor
from orchestration.reconcile import Progress
from shards.errors import ConfigError, IntegrityError, MissingDependencyError, RecipeMismatchError
from shards.publication import announce
from shards.workspace import Workspace
from sisa.anchoring import bring_up_to_date, refuse_rollback
from sisa.config import Recipe, RunOptions, parse_overrides, read_settings
from sisa.people import forget_unnamed

if TYPE_CHECKING:
    from sisa.learner import LoraTrainer

Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """A progress report that nobody reads."""


@dataclass(frozen=True, slots=True)
class Session:
    """What every flow works on.

    Attributes:
        workspace: facts, records, checkpoints.
        recipe: what is pinned, or will be at the first ingest.
        options: how to run.
    """

    workspace: Workspace
    recipe: Recipe
    options: RunOptions

    def trainer(self) -> SliceTrainer:
        """The trainer of this recipe, once its base is known to be the pinned one."""
        from sisa.base_model import pinned_path, require_train_extra
        from sisa.learner import LoraTrainer

        require_train_extra()
        path = pinned_path(self.recipe, self.options.base_model)
        trainer = LoraTrainer(self.recipe, str(path), keep=self.options.activation_cache)
        if self.workspace.book.pinned() is None:
            self._prove(trainer)
        return trainer

    def _prove(self, trainer: LoraTrainer) -> None:
        """Refuse a recipe that cannot be trained while it can still be changed."""
        import torch

        from sisa.adapter import check_recipe, release

        check_recipe(self.recipe, trainer.base_model)
        remote = self.options.executor == "ray" and self.options.ray_address is not None
        if self.recipe.device == "cuda" and not torch.cuda.is_available():
            if remote:  # the device is on machines of the cluster; its workers will say
                return
            raise ConfigError("a CUDA device, which device=cuda asks for", "none here", "set device to cpu")
        trainer.prove()
        if self.options.executor == "ray":
            release()  # the workers load their own

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Be the workspace's one driver, on a state that is not older than its anchor and rid of unnamed texts.

        Raises:
            LockedError: if another live process drives it.
            IntegrityError: if the ledger was rolled back.
        """
        with self.workspace.driving():
            refuse_rollback(self.workspace, self.options.anchor)
            announce(self.workspace)  # a driver before may have been killed in between
            with suppress(IntegrityError):  # damaged texts hold back no deletion; `audit --all` tells of them
                forget_unnamed(self.workspace)
            yield
            announce(self.workspace)
            self.anchor()

    @contextmanager
    def accepting(self) -> Iterator[None]:
        """Append facts beside whoever drives the workspace; otherwise as :meth:`driving`.

        Raises:
            LockedError: if the driver does not give way for long.
            IntegrityError: if the ledger was rolled back.
        """
        with self.workspace.writing():
            refuse_rollback(self.workspace, self.options.anchor)
            yield
            announce(self.workspace)
            self.anchor()

    def anchor(self) -> None:
        """Tell the anchor, if there is one, what the ledger holds now."""
        bring_up_to_date(self.workspace, self.options.anchor)

    def refuse_other_recipe(self) -> None:
        """Hold the recipe against the pinned one; asked again once a driver has the lock.

        Raises:
            RecipeMismatchError: naming the keys that differ.
        """
        pinned = self.workspace.book.pinned()
        if pinned is None or pinned.digest == self.recipe.digest:
            return
        now = self.recipe.to_json()
        keys = [key for key in now.keys() | pinned.recipe.keys() if now.get(key) != pinned.recipe.get(key)]
        raise RecipeMismatchError(
            "the recipe pinned at the first ingest: " + ", ".join(f"{k}={pinned.recipe.get(k)}" for k in sorted(keys)),
            ", ".join(f"{key}={now.get(key)}" for key in sorted(keys)),
            "put sisa.yaml back, or make a new workspace for another recipe",
        )

    def executor(self) -> Executor:
        """The executor that the options name."""
        if self.options.executor == "inline":
            return InlineExecutor()
        try:
            from orchestration.ray_executor import RayExecutor
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "the package ray for --executor ray", "none", "pip install 'sisa[train]', or use --executor inline"
            ) from error
        cpus, gpus = self.options.cpus_per_worker, self.options.gpus_per_worker
        return RayExecutor(
            workers=self.options.workers,
            address=self.options.ray_address,
            cpus_per_worker=self.recipe.threads if cpus is None else cpus,
            gpus_per_worker=float(self.recipe.device == "cuda") if gpus is None else gpus,
            init=self.options.ray_init,
            runtime_env=self.options.runtime_env,
        )


@contextmanager
def open_session(path: Path, overrides: Iterable[str] = (), **options: Any) -> Iterator[Session]:
    """Open a workspace and its configuration.

    Args:
        path: the workspace.
        overrides: ``key=value`` texts, as given to ``--set``.
        **options: run options that are not None override the file too.

    Raises:
        InputError: if there is no workspace, or its configuration is wrong.
        RecipeMismatchError: if the recipe is not the pinned one.
    """
    workspace = Workspace.open(path)
    try:
        given = {name: value for name, value in options.items() if value is not None}
        settings = read_settings(workspace.path, {**parse_overrides(overrides), **given})
        session = Session(workspace, settings.recipe, settings.options)
        session.refuse_other_recipe()
        yield session
    finally:
        workspace.close()

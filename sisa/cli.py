"""The command line's entry: the group of commands, and the edge where errors become exit codes.

0 done; 1 a check failed; 2 bad usage or bad input; 3 the operation could not be completed and can
be run again.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper

import click

from shards.errors import SisaError
from sisa import __version__
from sisa.commands import answers, evaluation, flows, merging, people, proof, queue, trust
from sisa.printing import as_ours, err, print_error

_COMMANDS = [
    flows.init,
    flows.ingest,
    flows.train,
    flows.predict,
    answers.explain,
    evaluation.evaluate,
    flows.delete,
    queue.requests,
    queue.work,
    proof.verify,
    proof.audit,
    flows.status,
    flows.export,
    merging.merge,
    trust.receipt,
    trust.key,
    trust.log,
    trust.recover,
    people.hold,
    people.refuse,
    people.letter,
    people.tombstones,
    flows.demo,
]


@click.group(commands=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Exact unlearning for fine-tuned models.

    Train a shardable model, delete by record ID with a certificate, audit which shard saw what.
    Exit codes: 0 done, 1 a check failed, 2 bad usage or input, 3 could not complete (run again).
    """


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a file says is printed, whatever it says
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _terminable():
            cli.main(args=given, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort as stopped:
        told = " ".join(["Stopped.", *map(str, stopped.args)])
        err.print(f"{told} Run the same command again to continue:\n  {shlex.join(['sisa', *given])}", markup=False)
        sys.exit(3)
    except (SisaError, OSError, UnicodeError) as error:
        ours = as_ours(error)
        print_error(ours)
        sys.exit(ours.exit_code)
    except Exception:  # noqa: BLE001 - the program's edge: a defect is shown whole, and is no failed check (1)
        traceback.print_exc()
        sys.exit(3)


@contextmanager
def _terminable() -> Iterator[None]:
    """A signal to terminate stops as cleanly as Ctrl-C does: it unwinds, and says how to continue."""
    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

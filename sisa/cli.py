"""The command line's entry: the group of commands, and the edge where errors become exit codes.

0 done; 1 a check failed; 2 bad usage or bad input; 3 the operation could not be completed and can
be run again.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from io import TextIOWrapper

import click

from shards.errors import InputError, SisaError, StorageError
from sisa import __version__
from sisa.commands import flows, people, proof, queue, trust
from sisa.printing import err, print_error

_COMMANDS = [
    flows.init,
    flows.ingest,
    flows.train,
    flows.predict,
    flows.delete,
    queue.requests,
    queue.work,
    proof.verify,
    proof.audit,
    flows.status,
    flows.export,
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
    try:
        cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        err.print("Stopped. Run the same command again to continue.")
        sys.exit(3)
    except SisaError as error:
        _fail(error)
    except UnicodeError as error:
        _fail(InputError("text in UTF-8", str(error), "convert the file or argument to UTF-8"))
    except OSError as error:
        remedy = "free space or mend permissions, then run again"
        _fail(StorageError("the operating system to go along", str(error), remedy))
    except Exception:  # noqa: BLE001 - the program's edge: a defect is shown whole, and is no failed check (1)
        traceback.print_exc()
        sys.exit(3)


def _fail(error: SisaError) -> None:
    print_error(error)
    sys.exit(error.exit_code)

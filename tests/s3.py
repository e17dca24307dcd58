"""A real S3 server in a process of its own, over loopback (inside our process pyarrow's destructors deadlock).

It can be told to misbehave: a layer around moto's application answers 503, is slow, loses answers,
stores half of what it is sent, or shows listings that are one question old. Run as ``python -m tests.s3``.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",  # or the SDK looks for a cloud's credentials first
}
_ROOT = Path(__file__).parents[1]
_ORDERS = "/test-orders"  # no bucket's name


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server; what it holds is gone with it."""

    address: str
    process: subprocess.Popen[bytes]

    def uri(self, path: str) -> str:
        """The URI of ``bucket/prefix`` for pyarrow."""
        return f"s3://{path}?endpoint_override={self.address}&scheme=http&region=us-east-1"

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self._send("PUT", name)

    def require_credentials(self) -> None:
        """From now on refuse whoever is not a user that the server knows: everybody."""
        self._send("POST", "moto-api/reset-auth", b"0")

    def misbehave(self, **faults: int) -> None:
        """From now on strike every so-maniest request; no faults: behave.

        Args:
            **faults: name → every how many requests. ``refuse``: 503 before anything is done. ``lose``: do it
                and drop the connection without an answer. ``cut``: store the first half of an upload and
                drop the connection. ``shorten``: store the first half of an upload and say that all is well.
                ``delay``: answer after half a second. ``stale``: answer a listing as it was when it was last
                asked for.
        """
        self._send("POST", _ORDERS.strip("/"), json.dumps(faults).encode())

    def struck(self) -> dict[str, int]:
        """How many requests each fault struck since the last order.

        ``requests`` counts them all, ``multipart`` the uploads in several requests.
        """
        with urllib.request.urlopen(f"http://{self.address}{_ORDERS}", timeout=30) as answer:
            told: dict[str, int] = json.load(answer)
        return told

    def pause(self) -> None:
        """Be silent: connections are taken by the kernel and never answered."""
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Be gone, at once."""
        self.process.kill()
        self.process.wait()

    def _send(self, method: str, path: str, body: bytes = b"") -> None:
        headers = {"Content-Type": "text/plain"}  # not a form, which the server would take apart
        request = urllib.request.Request(f"http://{self.address}/{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30):
            pass


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server on a free port of loopback and point the environment's credentials at it; kill it at the end."""
    command = [sys.executable, "-m", "tests.s3"]
    with tempfile.TemporaryFile() as log, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with subprocess.Popen(command, stdout=log, stderr=log, cwd=_ROOT) as process:
            try:
                yield S3Server(_address(log.fileno(), process), process)
            finally:
                process.kill()


def _address(log: int, process: subprocess.Popen[bytes]) -> str:
    """HOST:PORT, as the server says once it listens."""
    for _ in range(600):
        said = os.pread(log, 1 << 16, 0).decode()
        if found := re.search(r"Running on http://(\S+)", said):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not start:\n{said}")


# -- the server's own process ----------------------------------------------------------------------

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class Unruly:
    """An application that misbehaves as it is ordered to."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._faults: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._listings: dict[str, tuple[str, list[tuple[str, str]], bytes]] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if environ["PATH_INFO"] == _ORDERS:
            return self._order(environ, start_response)
        self._count("requests")
        if environ["REQUEST_METHOD"] == "POST" and environ["QUERY_STRING"].startswith("uploads"):
            self._count("multipart")
        if self._strikes("delay"):
            time.sleep(0.5)
        if self._strikes("refuse"):
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        if environ["REQUEST_METHOD"] == "PUT" and "HTTP_X_AMZ_DECODED_CONTENT_LENGTH" in environ:
            return self._upload(environ, start_response)
        if environ["REQUEST_METHOD"] == "GET" and "list-type=2" in environ["QUERY_STRING"]:
            return self._listing(environ, start_response)
        return self._answered(environ, start_response)

    def _order(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            self._faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            self._counts.clear()
            self._listings.clear()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({name: count for name, count in self._counts.items() if " " not in name}).encode()]

    def _count(self, name: str) -> int:
        with self._lock:
            self._counts[name] += 1
            return self._counts[name]

    def _strikes(self, fault: str) -> bool:
        """Is it this request's turn? Only requests that the fault could strike are counted."""
        every = self._faults.get(fault, 0)
        turn = bool(every) and self._count(f"{fault} asked") % every == 0
        if turn:
            self._count(fault)
        return turn

    def _answered(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._strikes("lose"):
            for _ in self._application(environ, lambda *_: lambda _: None):
                pass
            return self._dropped(environ)
        return self._application(environ, start_response)

    def _upload(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        cut, shorten = self._strikes("cut"), self._strikes("shorten")
        if not (cut or shorten):
            return self._answered(environ, start_response)
        body = _decoded(environ["wsgi.input"].read())
        body = body[: len(body) // 2]
        skipped = ("HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING", "HTTP_X_AMZ_DECODED", "HTTP_X_AMZ_TRAILER")
        halved = {name: value for name, value in environ.items() if not name.startswith(skipped)}
        halved |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        halved |= {"wsgi.input_terminated": False, "HTTP_X_AMZ_CONTENT_SHA256": "UNSIGNED-PAYLOAD"}
        if shorten:
            return self._application(halved, start_response)
        for _ in self._application(halved, lambda *_: lambda _: None):
            pass
        return self._dropped(environ)

    def _listing(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        told: list[Any] = []

        def note(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], object]:
            told.extend((status, headers))
            return lambda _: None

        body = b"".join(self._application(environ, note))
        now = (told[0], told[1], body)
        with self._lock:
            question = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
            before = self._listings.get(question, now)
            self._listings[question] = now
        status, headers, shown = before if self._strikes("stale") else now
        start_response(status, headers)
        return [shown]

    @staticmethod
    def _dropped(environ: Environ) -> Iterable[bytes]:
        """Close the connection under the server's feet."""
        environ["werkzeug.socket"].shutdown(2)
        raise ConnectionResetError


def _decoded(body: bytes) -> bytes:
    """What an aws-chunked body says: pieces with their lengths before them, then a checksum."""
    plain = b""
    while True:
        length, _, body = body.partition(b"\r\n")
        size = int(length.partition(b";")[0], 16)
        if not size:
            return plain
        plain += body[:size]
        body = body[size + 2 :]


def serve() -> None:
    """Serve until killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.server import MotoRequestHandler
    from werkzeug.serving import run_simple

    application = Unruly(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    serve()

"""A real S3 server in a process of its own, over loopback (inside our process pyarrow's destructors deadlock)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",  # or the SDK looks for a cloud's credentials first
}


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
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", "0"]
    with tempfile.TemporaryFile() as log, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with subprocess.Popen(command, stdout=log, stderr=log) as process:
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

"""A server of S3 on this machine (moto's), in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROGRAM = """
import os, sys
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def s3_server(bucket: str) -> Iterator[tuple[dict[str, str], Any]]:
    """Serve a bucket; yields the environment of its users, and its file system."""
    import s3fs

    server = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "1000000"},
    )
    try:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        access = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        system = s3fs.S3FileSystem(
            key="testing", secret="testing", endpoint_url=endpoint, use_listings_cache=False
        )
        system.mkdir(bucket)
        yield access, system
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


def refuse_credentials(access: dict[str, str], after: float) -> None:
    """Let the server refuse the credentials after so many more requests."""
    request = urllib.request.Request(
        f"{access['AWS_ENDPOINT_URL']}/moto-api/reset-auth",
        data=str(after).encode(),
        headers={"Content-Type": "text/plain"},
    )
    urllib.request.urlopen(request).close()

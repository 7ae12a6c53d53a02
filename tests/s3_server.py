"""A real S3 server for tests."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer

BUCKET = "edits"


@contextmanager
def running_s3() -> Iterator[dict[str, str]]:
    """Yield the environment in which a server finds an S3 server with an empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        for path, method in (("moto-api/reset", "POST"), (BUCKET, "PUT")):
            with urllib.request.urlopen(urllib.request.Request(f"{address}/{path}", method=method), timeout=20):
                pass
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.stop()

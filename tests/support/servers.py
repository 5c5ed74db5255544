"""Real servers on this machine, started for tests. Where one is not installed, its tests are skipped."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

BUCKET = "samkv"


@contextmanager
def s3_server(port: int = 0) -> Iterator[dict[str, Any]]:
    """Storage options of a server that speaks S3, with an empty bucket."""
    free_port(port)
    moto = pytest.importorskip("moto.server", reason="moto[server], an S3 server, is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    pytest.importorskip("obstore", reason="obstore is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
    try:
        client = boto3.client("s3", aws_access_key_id="testing", aws_secret_access_key="testing", **place)
        client.create_bucket(Bucket=BUCKET)
        yield {
            "endpoint": place["endpoint_url"],
            "region": place["region_name"],
            "access_key_id": "testing",
            "secret_access_key": "testing",
        }
    finally:
        server.stop()


class RedisServer(NamedTuple):
    """Where it listens."""

    url: str


@contextmanager
def redis_server(port: int = 0) -> Iterator[RedisServer]:
    """A process of its own, with nothing kept on disk, that answers."""
    port = free_port(port)
    redis = pytest.importorskip("redis", reason="the package redis is not installed")
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    server = RedisServer(f"redis://127.0.0.1:{port}")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--dir", folder, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
        try:
            client, until = redis.Redis.from_url(server.url), time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    break
                except redis.exceptions.ConnectionError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.05)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=10)


def free_port(port: int = 0) -> int:
    """``port``, or any for 0; OSError where something listens on it."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        return int(listener.getsockname()[1])

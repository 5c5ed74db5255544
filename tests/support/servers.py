"""Real servers on this machine, started for tests. Where one is not installed, its tests are skipped."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BUCKET = "samkv"


@contextmanager
def s3_server(port: int = 0) -> Iterator[dict[str, Any]]:
    """Storage options of a server that speaks S3, with an empty bucket."""
    require_free(port)
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


class RedisServer:
    """A process of its own, with nothing kept on disk."""

    def __init__(self, port: int = 0) -> None:
        require_free(port)
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        redis = pytest.importorskip("redis", reason="the package redis is not installed")
        binary = shutil.which("valkey-server") or shutil.which("redis-server")
        if binary is None:
            pytest.skip("neither valkey-server nor redis-server is installed")
        options = ["--port", str(self.port), "--dir", self._folder.name, "--bind", "127.0.0.1"]
        command = [binary, *options, "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        for _ in range(200):
            try:
                client.ping()
                return
            except redis.exceptions.ConnectionError:
                time.sleep(0.05)
        raise RuntimeError("redis-server does not answer")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)
            self._process = None

    def close(self) -> None:
        """End the process and leave nothing behind."""
        self.stop()
        self._folder.cleanup()


@contextmanager
def redis_server(port: int = 0) -> Iterator[RedisServer]:
    """A started server."""
    server = RedisServer(port)
    try:
        server.start()
        yield server
    finally:
        server.close()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def require_free(port: int) -> None:
    """Raise OSError where something listens on the port; 0 is any free one."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))

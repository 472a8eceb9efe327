"""Stores that tests write to: fsspec's memory and a server on this machine that speaks S3."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from urllib.request import Request, urlopen

import fsspec
import pytest
from upath import UPath


@cache
def _server() -> str:
    """Address of the server, which lives as long as this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[UPath]:
    """An empty bucket, ``s3://music``, the only one of the server."""
    import s3fs
    from moto.s3.models import s3_backends

    for name, value in {
        "AWS_ENDPOINT_URL": _server(),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3_backends["123456789012"]["aws"].create_bucket("music", "us-east-1")
    yield UPath("s3://music")
    urlopen(Request(f"{_server()}/moto-api/reset", method="POST")).close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def memory() -> Iterator[UPath]:
    """An empty folder of fsspec's memory."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield UPath("memory://music")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]

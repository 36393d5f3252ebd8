"""The server behind nginx, configured as the guide says. Runs where nginx is installed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from durable_streams import DurableStream, stream
from durable_streams.server import Server

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
PATIENCE = 20.0

pytestmark = [
    pytest.mark.interop,
    pytest.mark.anyio,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]


def guide() -> str:
    """The configuration in the guide."""
    found = re.search(r"```nginx\n(.*?)```", (ROOT / "docs/guides/run-a-server.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def configuration(folder: Path, port: int, server: Server) -> str:
    """The same without TLS, in a folder of its own."""
    text = guide()
    for written, here in (
        ("/var/cache/nginx/streams", str(folder / "cache")),
        ("127.0.0.1:4437", server.base_url.removeprefix("http://")),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port};"),
    ):
        assert written in text
        text = text.replace(written, here)
    text = re.sub(r"\n *ssl_\w+ .*;", "", text)
    places = "\n".join(
        f"{name}_temp_path {folder / name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""  # workers have to get into pytest's folder
    return f"{user}daemon off;\npid {folder / 'pid'};\nevents {{}}\nhttp {{\naccess_log off;\n{places}\n{text}\n}}\n"


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """A server, and the base URL of an nginx in front of it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Server(cache_visibility="public", inspection=True, metrics=True, sse_keep_alive=0.5) as server:
        path = tmp_path / "nginx.conf"
        path.write_text(configuration(tmp_path, port, server))
        assert NGINX is not None
        command = [NGINX, "-c", str(path), "-e", str(tmp_path / "error.log"), "-p", str(tmp_path)]
        with subprocess.Popen(command) as process:
            try:
                wait_for(port, process)
                yield server, f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
        assert process.returncode == 0, (tmp_path / "error.log").read_text()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, "nginx has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("nginx does not listen")


def get(url: str, **headers: str) -> tuple[int, str | None, bytes]:
    """Status, what the cache did, and body."""
    try:
        with urlopen(Request(url, headers=headers), timeout=PATIENCE) as answer:
            return answer.status, answer.headers["X-Cache"], answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.headers["X-Cache"], error.read()


async def test_what_does_not_change_any_more_comes_from_the_cache(proxied: tuple[Server, str]) -> None:
    url = f"{proxied[1]}/v1/stream/done"
    async with DurableStream(url, content_type="text/plain") as handle:
        await handle.create(body="all of it", closed=True)

    answers = [get(f"{url}?offset=-1") for _ in range(3)]

    assert answers == [(200, "MISS", b"all of it"), (200, "HIT", b"all of it"), (200, "HIT", b"all of it")]


async def test_the_end_of_an_open_stream_never_does(proxied: tuple[Server, str]) -> None:
    url = f"{proxied[1]}/v1/stream/open"
    async with DurableStream(url, content_type="text/plain") as handle:
        await handle.create(body="a")
        first = get(f"{url}?offset=-1")
        await handle.append("b")
        second = get(f"{url}?offset=-1")

    assert (first[2], second[2]) == (b"a", b"ab")
    assert "HIT" not in (first[1], second[1])


async def test_a_private_answer_is_not_kept(proxied: tuple[Server, str]) -> None:
    server, base = proxied
    server.app.cache_visibility = "private"  # type: ignore[attr-defined]
    url = f"{base}/v1/stream/private"
    async with DurableStream(url, content_type="text/plain") as handle:
        await handle.create(body="mine", closed=True)

    assert [get(f"{url}?offset=-1")[1] for _ in range(3)] == ["MISS"] * 3


@pytest.mark.parametrize("live", ["sse", "long-poll"])
async def test_live_readers_see_appends_as_they_come(proxied: tuple[Server, str], live: str) -> None:
    url = f"{proxied[1]}/v1/stream/live"
    async with DurableStream(url, content_type="application/json") as handle:
        await handle.create()
        seen = []
        async with stream(url, live=live) as response:  # type: ignore[arg-type]
            await handle.append_json(0)
            async for number in response:
                seen.append(number)
                if number == 3:
                    await handle.close_stream()
                else:
                    await handle.append_json(number + 1)

    assert seen == [0, 1, 2, 3]


async def test_names_and_large_bodies_arrive_as_they_are(proxied: tuple[Server, str]) -> None:
    server, base = proxied
    body = bytes(range(256)) * (60 << 10)
    async with DurableStream(f"{base}/v1/stream/a%2Fb/c%20d", content_type="application/octet-stream") as handle:
        await handle.create(body=body)

    answer = get(f"{server.url}/a%2Fb/c%20d?offset=-1")
    assert (answer[0], answer[2]) == (200, body)


async def test_what_is_for_operators_is_not_for_everybody(proxied: tuple[Server, str]) -> None:
    assert [get(f"{proxied[1]}{path}")[0] for path in ("/metrics", "/inspect", "/inspect?prefix=/a", "/health")] == [
        403,
        403,
        403,
        200,
    ]

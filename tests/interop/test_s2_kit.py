"""`s2 lite` passes the kit that holds the fake server to it, and both answer the same to the same random calls."""

import json
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import h2.exceptions
import pytest

from durable_streams.s2 import _proto
from durable_streams.s2._frames import Compression, Terminal, encode_frame
from durable_streams.s2._values import MAX_U64, AppendInput, AppendRecord
from durable_streams.testing import S2Fake

from ..s2.kit import checks_manage, checks_records, checks_sessions  # noqa: F401 - importing registers the checks
from ..s2.kit.probe import Bench, Reply
from ..s2.kit.registry import CHECKS, Entry
from . import s2lite

pytestmark = pytest.mark.anyio

CASES = [pytest.param(entry, version, id=f"{entry.name}-{version}") for entry in CHECKS for version in entry.versions]


@pytest.fixture
def anyio_backend() -> str:
    """One loop: what is tested is the server."""
    return "asyncio"


@pytest.mark.parametrize(("entry", "version"), CASES)
async def test_the_real_server_passes_the_kit(entry: Entry, version: str, s2_endpoint: str, s2_basin: str) -> None:
    await entry.check(Bench(s2_endpoint, s2_basin, f"kit-{uuid.uuid4().hex}", version))


# --- The same calls to both -------------------------------------------------------------------------------------------


class Calls:
    """Random calls that have one right answer: every record has a timestamp of the past, and nothing is trimmed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[tuple[str, str, bytes | Any, dict[str, str]]]:
        while True:
            yield self._random.choices([self.append, self.read, self.tail, self.stream], [5, 8, 1, 2])[0]()

    def _path(self) -> str:
        return f"/streams/{self._random.choice('abc')}"

    def append(self) -> tuple[str, str, Any, dict[str, str]]:
        pick = self._random
        conditions: dict[str, Any] = {}
        if pick.random() < 0.3:
            conditions["match_seq_num"] = pick.choice([0, 1, 2, 5, 9, MAX_U64])
        if pick.random() < 0.3:
            conditions["fencing_token"] = pick.choice(["", "x", "y", "z" * 36])
        records = []
        for _ in range(pick.choice([1, 1, 2, 5])):
            timestamp = pick.choice([0, 10, 500, 10_000, 1_700_000_000_000])
            if pick.random() < 0.15:
                records.append(AppendRecord.fence(pick.choice(["", "x", "y"]), timestamp=timestamp))
            else:
                headers = [
                    (pick.randbytes(2), pick.randbytes(pick.choice([0, 3]))) for _ in range(pick.choice([0, 1, 2]))
                ]
                records.append(AppendRecord(pick.randbytes(pick.choice([0, 1, 20, 1500])), headers, timestamp))
        batch = AppendInput(records, **conditions)
        fields = {"content-type": "application/protobuf"}
        if pick.random() < 0.3:
            fields["accept"] = "application/protobuf"
        return "POST", f"{self._path()}/records", _proto.encode_append_input(batch), fields

    def read(self) -> tuple[str, str, Any, dict[str, str]]:
        pick = self._random
        query: dict[str, Any] = {}
        for name, values in {
            "seq_num": [0, 1, 3, 8, 20, MAX_U64, "-1"],
            "timestamp": [0, 10, 11, 500, 1_700_000_000_000, MAX_U64],
            "tail_offset": [0, 1, 4, 100],
            "count": [0, 1, 3, 1000, 5000],
            "bytes": [0, 1, 8, 30, 1000, 1 << 21],
            "until": [0, 1, 10, 500, 1_700_000_000_000],
            "clamp": ["true", "false", "1", ""],
            "wait": [0],
        }.items():
            if pick.random() < (0.7 if name == "seq_num" else 0.2):
                query[name] = pick.choice(values)
        fields = {}
        accept = pick.choice(["", "application/json", "application/protobuf", "text/event-stream", "*/*", "s2s/proto"])
        if accept == "s2s/proto":
            return "GET", f"{self._path()}/records?{urlencode({**query, 'wait': 0})}", b"", {"content-type": accept}
        if accept == "text/event-stream":
            query["wait"] = 0  # it has to end
            if pick.random() < 0.3:
                fields["last-event-id"] = pick.choice(["0,1,20", "3,4,1500", "x", "1,2", f"{MAX_U64},0,0"])
        if accept:
            fields["accept"] = accept
        if pick.random() < 0.5:
            fields["s2-format"] = pick.choice(["raw", "base64", "json", "json-binsafe", "nope"])
        if pick.random() < 0.3:
            fields["accept-encoding"] = "gzip"
        return "GET", f"{self._path()}/records?{urlencode(query)}", b"", fields

    def tail(self) -> tuple[str, str, Any, dict[str, str]]:
        return "GET", f"{self._path()}/records/tail", b"", {}

    def stream(self) -> tuple[str, str, Any, dict[str, str]]:
        pick = self._random
        config: dict[str, Any] = {}
        for name, values in {
            "storage_class": ["standard", "express", None, 5],
            "retention_policy": [{"age": 5_000_000}, {"infinite": {}}, {"age": 0}, None, {}],
            "timestamping": [{"mode": "client-prefer"}, {"uncapped": True}, {"uncapped": None}, {"mode": "nope"}, None],
            "delete_on_empty": [{"min_age_secs": 0}, {"min_age_secs": 999_999}, None, {}],
        }.items():
            if pick.random() < 0.3:
                config[name] = pick.choice(values)
        return {
            "create": ("POST", "/streams", {"stream": pick.choice("abc"), "config": config}, {}),
            "ensure": ("PUT", self._path(), config, {}),
            "patch": ("PATCH", self._path(), config, {}),
            "get": ("GET", self._path(), b"", {}),
            "list": ("GET", f"/streams?limit={pick.choice([-1, 0, 1, 2, 5])}", b"", {}),
        }[pick.choice(["create", "ensure", "patch", "get", "list"])]


def told(reply: Reply) -> Any:
    """What an answer says, without words and times of day."""
    kind = reply.headers.get("content-type", "")
    facts = (reply.headers.get("s2-provision-result"), kind, reply.headers.get("content-encoding"))
    if not kind.startswith("application/json") or not reply.body or facts[2]:
        return reply.status, facts, reply.body if facts[2] is None else len(reply.body) > 0
    return reply.status, facts, plain(json.loads(reply.body))


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key not in ("message", "created_at")}
    return [plain(each) for each in value] if isinstance(value, list) else value


@pytest.fixture
async def fake() -> AsyncIterator[S2Fake]:
    async with S2Fake() as server:
        yield server


@pytest.mark.parametrize("seed", range(4))
async def test_the_fake_and_the_real_server_answer_alike(
    fake: S2Fake, seed: int, s2_endpoint: str, s2_fresh_basin: str
) -> None:
    fake.add_basin(s2_fresh_basin)
    ours, theirs = Bench(fake.url, s2_fresh_basin, ""), Bench(s2_endpoint, s2_fresh_basin, "")

    for number, (method, path, body, fields) in enumerate(Calls(seed)):
        if number == 250:
            break
        expected = told(await theirs.call(method, path, body, headers=fields))
        found = told(await ours.call(method, path, body, headers=fields))
        assert found == expected, (number, method, path, body, fields)


@pytest.fixture
def s2_fresh_basin(s2_endpoint: str) -> str:
    """A basin of its own: random calls list what is in it."""
    return s2lite.make_basin(s2_endpoint)


BAD_FRAMES = ["000000", "20000100", "0000026000", "00000100", "0000038001f4"]


def inputs(seed: int) -> list[bytes]:
    """Frames of an append session, some of which a server has to refuse."""
    pick = random.Random(seed)
    frames = []
    for _ in range(pick.randrange(1, 8)):
        records = [
            AppendRecord(pick.randbytes(pick.choice([0, 3, 2000])), timestamp=pick.choice([0, 5, 100, 10_000]))
            for _ in range(pick.choice([1, 1, 3]))
        ]
        if pick.random() < 0.1:
            records.append(AppendRecord.fence(pick.choice(["", "x"]), timestamp=5))
        match, token = pick.choice([None, None, None, 0, 1, 2, 3]), pick.choice([None, None, "", "x"])
        payload = _proto.encode_append_input(AppendInput(records, match, token))
        if pick.random() < 0.05:
            payload = payload[:-1]
        compression: Compression = pick.choice(["none", "gzip", "zstd"])
        bad = pick.random() < 0.05
        frames.append(bytes.fromhex(pick.choice(BAD_FRAMES)) if bad else encode_frame(payload, compression))
    return frames if pick.random() < 0.9 else [*frames, b"\0\0"]


async def session_told(bench: Bench, frames: list[bytes]) -> list[Any]:
    """What a server says in a session of these frames, and what it has stored then."""
    await bench.create()
    said: list[Any] = []
    async with bench.append_session() as session:
        with suppress(h2.exceptions.ProtocolError):  # the stream may be over before all is sent
            for frame in frames:
                await session.wire.send(frame)
            await session.wire.finish()
        while (answer := await session.frame()) is not None:
            if isinstance(answer, Terminal):
                said.append((answer.status, plain(json.loads(answer.body))))
            else:
                ack = _proto.decode_append_ack(answer.payload)
                said.append((ack.start, ack.end))
    return [*said, (await bench.read("seq_num=0", headers={"s2-format": "base64"})).body]


async def test_append_sessions_with_the_fake_and_the_real_server_go_alike(
    fake: S2Fake, s2_endpoint: str, s2_fresh_basin: str
) -> None:
    fake.add_basin(s2_fresh_basin)
    for seed in range(40):
        frames = inputs(seed)
        expected = await session_told(Bench(s2_endpoint, s2_fresh_basin, f"s{seed}", "2"), frames)
        found = await session_told(Bench(fake.url, s2_fresh_basin, f"s{seed}", "2"), frames)
        assert found == expected, seed

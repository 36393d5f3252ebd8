"""`durable-streams s2 ...` against a fake server over real sockets."""

import base64
import io
import json
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
import trustme

from durable_streams.cli import s2_records
from durable_streams.cli.s2_metrics import bars, drawn
from durable_streams.s2 import Accumulation, Gauge, Scalar
from durable_streams.testing import S2Fake
from tests.s2.serving import s2_in_a_thread

from .conftest import Done, Run, process


@pytest.fixture(scope="module")
def fake() -> Iterator[S2Fake]:
    with s2_in_a_thread() as running:
        yield running


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, fake: S2Fake) -> None:
    monkeypatch.setenv("S2_ACCESS_TOKEN", "ignored-by-the-fake")
    monkeypatch.setenv("S2_ACCOUNT_ENDPOINT", fake.url)
    monkeypatch.setenv("S2_BASIN_ENDPOINT", fake.url)
    monkeypatch.delenv("S2_ENCRYPTION_KEY", raising=False)
    monkeypatch.delenv("S2_SSL_NO_VERIFY", raising=False)


@pytest.fixture
def basin(run: Run) -> str:
    """A basin that makes streams when something is appended."""
    name = f"basin-{uuid4().hex[:8]}"
    assert run("s2", "basins", "create", name, "--create-on-append").code == 0
    return name


def facts(done: Done) -> Any:
    assert (done.code, done.err) == (0, "")
    (line,) = done.lines
    return json.loads(line)


def lines(done: Done) -> list[Any]:
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.lines]


# -- Where the service is --------------------------------------------------------------------------------------


VALUES = [
    {"scalar": {"name": "storage", "unit": "bytes", "value": 5}},
    {"accumulation": {"name": "ops", "unit": "operations", "interval": "hour", "values": [[0, 1], [3600, 2.5]]}},
    {"label": {"name": "basins", "values": ["basin-01"]}},
]


class _Hosted(BaseHTTPRequestHandler):
    """Has no basins, and measurements, which neither the fake nor s2 lite has."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        answer = {"values": VALUES} if "metrics" in self.path else {"basins": [], "has_more": False}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def hosted(context: ssl.SSLContext | None = None) -> Iterator[str]:
    """URL of a server that is like s2.dev."""
    with HTTPServer(("127.0.0.1", 0), _Hosted) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def own_certificate() -> Iterator[str]:
    """URL of a server with a certificate that nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("somewhere.example").configure_cert(context)
    with hosted(context) as url:
        yield url


def test_a_certificate_that_nobody_vouches_for_is_refused(run: Run, own_certificate: str) -> None:
    refused = run("s2", "basins", "list", "--endpoint", own_certificate)

    assert (refused.code, refused.out) == (5, b"")
    assert "certificate" in refused.err


@pytest.mark.parametrize("word", ["1", "true"])
def test_certificates_are_not_checked_if_one_says_so(
    run: Run, own_certificate: str, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    assert run("s2", "basins", "list", "--endpoint", own_certificate, "--insecure") == Done(0, b"", "")

    monkeypatch.setenv("S2_SSL_NO_VERIFY", "0")
    assert run("s2", "basins", "list", "--endpoint", own_certificate).code == 5
    monkeypatch.setenv("S2_SSL_NO_VERIFY", word)
    assert run("s2", "basins", "list", "--endpoint", own_certificate) == Done(0, b"", "")


# -- Basins and streams ----------------------------------------------------------------------------------------


def test_a_basin_lives(run: Run) -> None:
    name = f"basin-{uuid4().hex[:8]}"

    made = facts(run("s2", "basins", "create", name, "--retention", "2d", "--timestamping", "arrival"))
    assert (made["name"], made["provision_result"]) == (name, "created")
    assert [each["name"] for each in lines(run("s2", "basins", "list", "--prefix", name))] == [name]
    config = facts(run("s2", "basins", "config", name))
    assert config["default_stream_config"]["retention_policy"] == 172800
    assert config["default_stream_config"]["timestamping"]["mode"] == "arrival"
    changed = facts(run("s2", "basins", "config", name, "--clear", "retention", "--create-on-read"))
    assert changed["create_stream_on_read"] is True
    assert "retention_policy" not in changed["default_stream_config"]
    assert run("s2", "basins", "delete", name) == Done(0, b"", "")


def test_a_cipher_is_set_or_cleared_and_not_both(run: Run, basin: str) -> None:
    assert facts(run("s2", "basins", "config", basin, "--cipher", "aegis-256"))["stream_cipher"] == "aegis-256"
    assert "stream_cipher" not in facts(run("s2", "basins", "config", basin, "--clear-cipher"))

    both = run("s2", "basins", "config", basin, "--cipher", "aegis-256", "--clear-cipher")
    assert (both.code, both.out) == (2, b"")
    assert "--cipher and --clear-cipher exclude each other" in both.err


def test_a_stream_lives(run: Run, basin: str) -> None:
    target = f"{basin}/logs/web 1"

    made = facts(run("s2", "streams", "create", target, "--retention", "infinite", "--delete-on-empty", "60"))
    assert (made["name"], made["provision_result"]) == ("logs/web 1", "created")
    config = facts(run("s2", "streams", "config", f"s2://{target}", "--storage-class", "standard"))
    assert config["storage_class"] == "standard"
    assert config["retention_policy"] == "infinite"
    assert config["delete_on_empty"] == 60
    ensured = facts(run("s2", "streams", "create", target, "--ensure"))
    assert ensured["provision_result"] == "updated"
    assert facts(run("s2", "streams", "config", target))["retention_policy"] == 604800
    assert [each["name"] for each in lines(run("s2", "streams", "list", basin, "--prefix", "logs/"))] == ["logs/web 1"]
    assert run("s2", "streams", "delete", target) == Done(0, b"", "")
    assert run("s2", "streams", "delete", f"{basin}/none", "--if-exists") == Done(0, b"", "")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["streams", "create", "no-slash"], 2, "is not of the form BASIN/STREAM"),
        (["streams", "create", "my-basin-01/x", "--retention", "soon"], 2, "is no time: give seconds"),
        (["streams", "create", "my-basin-01/x", "--retention", "0"], 2, "is no time: give seconds"),
        (["streams", "config", "my-basin-01/x", "--retention", "5", "--clear", "retention"], 2, "exclude each other"),
        (["basins", "create", "Bad"], 2, "basin must be 8 to 48 characters"),
        (["streams", "list", "no-such-basin"], 3, "create it: durable-streams s2 basins create BASIN"),
        (["metrics", "account-ops"], 1, "s2 lite does not have this, s2.dev has"),
        (["metrics", "account-ops", "--start", "yesterday"], 2, "is no moment"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run: Run, args: list[str], code: int, words: str) -> None:
    done = run("s2", *args)

    assert (done.code, done.out) == (code, b"")
    assert words in done.err
    assert done.err.count("\n") == 1


def test_a_stream_that_is_not_there_exits_with_3(run: Run, basin: str) -> None:
    done = run("s2", "read", f"{basin}/none")

    assert done.code == 3
    assert "create it: durable-streams s2 streams create BASIN/STREAM" in done.err


def test_a_server_that_is_not_there_exits_with_5(run: Run) -> None:
    done = run("s2", "basins", "list", "--endpoint", "http://127.0.0.1:1")

    assert done.code == 5
    assert "is a server running there? `s2 lite` starts one" in done.err


def test_without_a_token_the_next_step_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S2_ACCESS_TOKEN")

    done = run("s2", "basins", "list")

    assert done.code == 2
    assert "S2_ACCESS_TOKEN is not set" in done.err


def test_an_endpoint_needs_no_token(run: Run, monkeypatch: pytest.MonkeyPatch, fake: S2Fake) -> None:
    for name in ("S2_ACCESS_TOKEN", "S2_ACCOUNT_ENDPOINT", "S2_BASIN_ENDPOINT"):
        monkeypatch.delenv(name)

    assert run("s2", "basins", "list", "--endpoint", fake.url).code == 0


# -- Records ---------------------------------------------------------------------------------------------------


def test_records_are_appended_and_read(run: Run, basin: str) -> None:
    target = f"{basin}/chat"

    assert facts(run("s2", "append", target, "héllo")) == {"records": 1, "start": 0, "end": 1, "tail": 1}
    assert facts(run("s2", "append", target, stdin=b"one\n\ntwo\nthree")) == {"records": 4, "start": 1, "end": 5}
    found = lines(run("s2", "read", target))

    assert [record.get("body", "") for record in found] == ["héllo", "one", "", "two", "three"]
    assert [record["seq_num"] for record in found] == [0, 1, 2, 3, 4]
    assert run("s2", "read", target, "--raw", "--from", "3").out == b"two\nthree\n"
    assert run("s2", "read", target, "--raw", "--count", "1").out == "héllo\n".encode()
    assert run("s2", "read", target, "--raw", "--tail-offset", "1").out == b"three\n"
    assert run("s2", "read", target, "--raw", "--from", "99", "--clamp").out == b""
    assert run("s2", "read", target, "--raw", "--transport", "http").out == "héllo\none\n\ntwo\nthree\n".encode()


def test_what_read_prints_append_takes(run: Run, basin: str) -> None:
    shapes = [
        {"headers": [["kind", "text"], ["kind", ""]], "body": "hi", "timestamp": 5},
        {"body": base64.b64encode(b"\xff\x00").decode(), "base64": True},
        {},
    ]
    given = b"".join(json.dumps(shape).encode() + b"\n\n" for shape in shapes)

    assert facts(run("s2", "append", f"{basin}/one", "--json", stdin=given))["records"] == 3
    first = run("s2", "read", f"{basin}/one")
    assert facts(run("s2", "append", f"{basin}/two", "--json", stdin=first.out))["records"] == 3
    second = run("s2", "read", f"{basin}/two")

    assert lines(first) == lines(second)
    assert lines(first)[0] == {"seq_num": 0, "timestamp": 5, "headers": [["kind", "text"], ["kind", ""]], "body": "hi"}
    assert lines(first)[1]["body"] == "/wA="
    assert lines(first)[1]["base64"] is True


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 2 is no record"),
        (b"[]", "it is no JSON object"),
        (b'{"text":"x"}', "there is no field 'text'"),
        (b'{"body":5}', "must be text, got int"),
        (b'{"body":"\\ud800"}', "line 2 is no record"),
        (b'{"body":"x","base64":true}', "it is not base64"),
        (b'{"headers":{"a":"b"}}', "headers must be a list"),
        (b'{"timestamp":-1}', "timestamp must be at least 0"),
        (b'{"timestamp":"now"}', "timestamp must be an int"),
        (b'{"headers":[["",""]]}', "a command is b'fence' or b'trim'"),
    ],
)
def test_a_line_that_is_no_record_is_named_and_what_came_before_is_stored(
    run: Run, basin: str, line: bytes, words: str
) -> None:
    done = run("s2", "append", f"{basin}/s", "--json", stdin=b'{"body":"good"}\n' + line + b"\n")

    assert (done.code, done.out) == (2, b"")
    assert words in done.err
    assert [record["body"] for record in lines(run("s2", "read", f"{basin}/s"))] == ["good"]


def test_nothing_to_append_is_wrong_usage(run: Run, basin: str) -> None:
    done = run("s2", "append", f"{basin}/s")

    assert done.code == 2
    assert "there is nothing to append" in done.err


def test_conditions_are_kept(run: Run, basin: str) -> None:
    target = f"{basin}/s"

    assert run("s2", "append", target, "x", "--match-seq-num", "0", "--fencing-token", "").code == 0
    again = run("s2", "append", target, "x", "--match-seq-num", "0")
    assert again.code == 4
    assert "append with --match-seq-num 1" in again.err
    assert facts(run("s2", "append", target, "--match-seq-num", "1", "--no-duplicates", stdin=b"a\nb"))["end"] == 3


def test_a_stream_is_fenced_and_trimmed(run: Run, basin: str) -> None:
    target = f"{basin}/s"
    run("s2", "append", target, stdin=b"a\nb\nc")

    assert facts(run("s2", "fence", target, "mine", "--old", ""))["start"] == 3
    refused = run("s2", "append", target, "x", "--fencing-token", "theirs")
    assert refused.code == 4
    assert "another writer took over" in refused.err
    assert "mine" not in refused.err
    assert facts(run("s2", "trim", target, "2", "--fencing-token", "mine"))["start"] == 4

    while (done := run("s2", "read", target, "--no-commands", "--raw")).out.startswith(b"a\n"):
        pass  # a real server removes records some milliseconds later
    assert (done.code, done.out) == (0, b"c\n")
    assert "records 0 to 1 are no longer kept" in done.err
    assert facts(run("s2", "tail", target))["seq_num"] == 5


def test_tail_shows_the_position_or_the_last_records(run: Run, basin: str) -> None:
    run("s2", "append", f"{basin}/s", stdin=b"a\nb\nc")

    assert facts(run("s2", "tail", f"{basin}/s"))["seq_num"] == 3
    assert run("s2", "tail", f"{basin}/s", "-n", "2", "--raw").out == b"b\nc\n"


def test_reading_at_the_tail_is_no_error(run: Run, basin: str) -> None:
    run("s2", "append", f"{basin}/s", "a")

    assert run("s2", "read", f"{basin}/s", "--from", "1") == Done(0, b"", "")


def test_an_encrypted_stream_is_read_with_the_key_of_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"basin-{uuid4().hex[:8]}"
    run("s2", "basins", "create", name, "--create-on-append", "--cipher", "aegis-256")
    key = base64.b64encode(bytes(range(32))).decode()

    without = run("s2", "append", f"{name}/s", "secret")
    monkeypatch.setenv("S2_ENCRYPTION_KEY", key)
    assert run("s2", "append", f"{name}/s", "secret").code == 0
    assert run("s2", "read", f"{name}/s", "--raw").out == b"secret\n"

    assert without.code == 2
    assert key not in without.err


def test_a_follower_prints_what_is_appended_until_it_is_interrupted(run: Run, basin: str) -> None:
    run("s2", "append", f"{basin}/s", "first")
    with process("s2", "tail", f"{basin}/s", "-n", "5", "--follow", "--raw") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"first\n"
        run("s2", "append", f"{basin}/s", "second")
        assert follower.stdout.readline() == b"second\n"
        follower.send_signal(signal.SIGINT)

        assert follower.wait() == 130


def test_a_follower_ends_when_nobody_reads_it(run: Run, basin: str) -> None:
    run("s2", "append", f"{basin}/s", "first")
    with process("s2", "read", f"{basin}/s", "--follow", "--raw") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"first\n"
        follower.stdout.close()

        assert follower.wait() == 141


def test_series_are_drawn_as_bars() -> None:
    assert bars([0, 1, 2, 4, 8]) == " ▁▂▄█"
    assert bars([0, 0]) == "  "
    assert bars([5]) == "█"
    assert bars([-3, 4]) == " █"
    assert len(bars(list(range(1000)))) == 60


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, now = Terminal(), iter([0.0, 1.0, 2.0])
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(s2_records.time, "monotonic", lambda: next(now))
    progress = s2_records._Progress("records")
    progress.show(256, lambda: "7 batches pending")
    progress.show(257, lambda: "8 batches pending")
    progress.end(400)

    assert "256 records, 256 per second, 7 batches pending" in terminal.getvalue()
    assert terminal.getvalue().endswith("400 records, 200 per second\x1b[K\n")


def test_measurements_are_printed_line_by_line(run: Run) -> None:
    times = ["--start", "1970-01-01", "--end", "7200", "--interval", "hour"]
    with hosted() as url:
        _Hosted.asked.clear()
        of_stream = lines(run("s2", "metrics", "storage", "basin-01/a b", *times, "--endpoint", url))
        of_basin = lines(run("s2", "metrics", "storage", "s2://basin-01", "--endpoint", url))
        of_account = lines(run("s2", "metrics", "active-basins", "--endpoint", url))

    assert of_stream == of_basin == of_account
    assert of_stream == [
        {"kind": "scalar", "name": "storage", "unit": "bytes", "value": 5},
        {
            "kind": "accumulation",
            "name": "ops",
            "unit": "operations",
            "interval": "hour",
            "values": [[0, 1], [3600, 2.5]],
        },
        {"kind": "label", "name": "basins", "values": ["basin-01"]},
    ]
    assert _Hosted.asked == [
        "/v1/metrics/basin-01/a%20b?set=storage&start=0&end=7200&interval=hour",
        "/v1/metrics/basin-01?set=storage",
        "/v1/metrics?set=active-basins",
    ]


def test_measurements_are_drawn_for_a_person() -> None:
    series = Accumulation("append-ops", "operations", "hour", ((0, 1), (3600, 8)))

    assert drawn(series).splitlines() == [
        "append-ops, operations: least 1, most 8, 1970-01-01T00:00+00:00 to 1970-01-01T01:00+00:00",
        "▁█",
    ]
    assert drawn(Gauge("storage", "bytes", ())) == "storage: nothing in this time\n"
    assert json.loads(drawn(Scalar("active", "operations", 5))) == {
        "kind": "scalar",
        "name": "active",
        "unit": "operations",
        "value": 5,
    }


def test_standard_input_is_a_file_or_a_pipe(tmp_path: Path, basin: str) -> None:
    with process("s2", "append", f"{basin}/s") as running:
        out, err = running.communicate(b"a\nb\n")

    assert (running.returncode, err) == (0, b"")
    assert json.loads(out) == {"records": 2, "start": 0, "end": 2}

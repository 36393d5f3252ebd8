"""`durable-streams serve`: its options, from the command line and from the environment, and what it logs."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import click
import pytest

from durable_streams.cli import logs
from durable_streams.cli.serve import serve
from durable_streams.server import AppOptions, DurableStreamsApp, MemoryStore, SQLiteStore

from .conftest import PATIENCE, ROOT, Run

TOKENS = "k3Yp-71cA_qW8-eXample read,write /v1/stream/mine\n"


class Seen:
    """Stands in for `Server`: remembers what it was to serve."""

    def __init__(self, app: DurableStreamsApp, **options: Any) -> None:
        self.app = app
        self.options = options
        self.url = "http://host/v1/stream"

    def serve_forever(self, on_start: Callable[[], None]) -> None:
        on_start()


@pytest.fixture
def served(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Seen]:
    """Run `serve` with arguments and environment up to the point where it would listen."""

    def serve_with(*args: str, **environment: str) -> Seen:
        seen: list[Seen] = []

        def make(app: DurableStreamsApp, **options: Any) -> Seen:
            seen.append(Seen(app, **options))
            return seen[0]

        monkeypatch.setattr("durable_streams.cli.serve.Server", make)
        with monkeypatch.context() as context:
            for name, value in environment.items():
                context.setenv(f"DURABLE_STREAMS_{name}", value)
            done = run("serve", *args)
        assert (done.code, done.out) == (0, b""), done.err
        return seen[0]

    return serve_with


def of_app(name: str) -> Callable[[Seen], Any]:
    return lambda seen: getattr(seen.app, name)


def of_server(name: str) -> Callable[[Seen], Any]:
    return lambda seen: seen.options[name]


def allowed_origin(seen: Seen) -> object:
    return [value for name, value in seen.app._cors.default if name == b"access-control-allow-origin"]


#: Option -> what it is set to, where that shows, what it is then, and what it is otherwise.
OPTIONS: dict[str, tuple[str, Callable[[Seen], Any], Any, Any]] = {
    "--host": ("0.0.0.0", of_server("host"), "0.0.0.0", "127.0.0.1"),
    "--port": ("8080", of_server("port"), 8080, 4437),
    "--root": ("/logs", of_app("root"), "/logs", "/v1/stream"),
    "--public-url": ("https://a.example", of_app("public_url"), "https://a.example", None),
    "--cors-origin": ("https://a.example", allowed_origin, [b"https://a.example"], [b"*"]),
    "--cache-visibility": ("public", of_app("cache_visibility"), "public", "private"),
    "--long-poll-timeout": ("1.5", of_app("long_poll_timeout"), 1.5, 20.0),
    "--sse-max-age": ("30", of_app("sse_max_age"), 30.0, 60.0),
    "--max-append-bytes": ("1000", of_app("max_append_bytes"), 1000, 16 << 20),
    "--page-bytes": ("2000", of_app("page_bytes"), 2000, 64 << 20),
    "--max-connections": ("5", of_server("max_connections"), 5, None),
    "--max-requests": ("6", of_app("_most_requests"), 6, float("inf")),
    "--max-streams": ("7", lambda seen: seen.app.room and seen.app.room._most, 7, None),
    "--max-readers-per-stream": ("8", lambda seen: seen.app.readers._most, 8, None),
    "--request-timeout": ("9", of_server("request_timeout"), 9.0, 20.0),
    "--stall-timeout": ("10", of_server("stall_timeout"), 10.0, 60.0),
    "--workers": ("1", lambda seen: 1, 1, 1),
}
#: The same for options without a value, which the environment sets to "true" or "false".
FLAGS: dict[str, tuple[Callable[[Seen], Any], Any, Any]] = {
    "--no-compression": (of_app("compression"), False, True),
    "--annotate-state-offsets": (of_app("annotate_state_offsets"), True, False),
    "--webhooks": (lambda seen: seen.app.subscriptions._webhooks is not None, True, False),
    "--allow-insecure-webhooks": (lambda seen: seen.app.subscriptions._allow_insecure, True, False),
    "--no-metrics": (lambda seen: seen.app.metrics is None, True, False),
    "--inspection": (of_app("inspection"), True, False),
    "--access-log": (of_app("access_log"), True, False),
}
ELSEWHERE = {"--store", "--durability", "--auth-token-file", "--log-level", "--log-format"}


def variable_of(option: str) -> str:
    return option.removeprefix("--").removeprefix("no-").replace("-", "_").upper()


def test_every_option_is_tested_here() -> None:
    names = {name for each in serve.params for name in (*each.opts, *each.secondary_opts)}

    positive = {name for name in names if f"--no-{name[2:]}" not in names}
    assert positive == {*OPTIONS, *FLAGS, *ELSEWHERE}


def test_every_option_can_be_set_in_the_environment() -> None:
    for option in serve.params:
        assert isinstance(option, click.Option)
        assert option.envvar == f"DURABLE_STREAMS_{variable_of(option.opts[0])}"


def test_every_setting_of_the_application_has_an_option_or_a_reason() -> None:
    """What cannot be said on a command line, or is for tests, or for programs that embed the server."""
    api_only = {
        *("sse_keep_alive", "authorize", "corp", "sweep_interval", "token_key", "scan_interval", "clock", "rng"),
        "end_on_signals",
    }

    options = {each.name for each in serve.params}
    assert {*AppOptions.__annotations__} - options == api_only


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_reaches_the_server(served: Callable[..., Seen], option: str) -> None:
    text, look, value, default = OPTIONS[option]

    assert look(served()) == default
    assert look(served(option, text)) == value
    assert look(served(**{variable_of(option): text})) == value


@pytest.mark.parametrize("option", FLAGS)
def test_a_flag_reaches_the_server(served: Callable[..., Seen], option: str) -> None:
    look, value, default = FLAGS[option]
    setting = "false" if option.startswith("--no-") else "true"

    assert look(served()) == default
    assert look(served(option)) == value
    assert look(served(**{variable_of(option): setting})) == value


def test_the_command_line_counts_more_than_the_environment(served: Callable[..., Seen]) -> None:
    assert served("--port", "1", PORT="2", HOST="::1").options["port"] == 1


def test_several_origins_may_use_the_server(served: Callable[..., Seen]) -> None:
    both = {b"https://a.example", b"https://b.example"}

    by_option = served("--cors-origin", "https://a.example", "--cors-origin", "https://b.example")
    by_environment = served(CORS_ORIGIN="https://a.example https://b.example")

    assert by_option.app._cors._by_origin.keys() == by_environment.app._cors._by_origin.keys() == both


def test_the_store_is_what_was_asked_for(served: Callable[..., Seen], tmp_path: Path) -> None:
    path = str(tmp_path / "s.db")
    plain, relaxed = served("--store", f"sqlite:{path}"), served(STORE=f"sqlite:{path}", DURABILITY="relaxed")

    assert isinstance(served().app.store, MemoryStore)
    assert isinstance(plain.app.store, SQLiteStore)
    assert isinstance(relaxed.app.store, SQLiteStore)
    assert (plain.app.store.path, plain.app.store._options.durability) == (path, "full")
    assert relaxed.app.store._options.durability == "relaxed"


def test_insecure_webhooks_are_webhooks(served: Callable[..., Seen]) -> None:
    assert served("--allow-insecure-webhooks").app.subscriptions._webhooks is not None


def test_tokens_come_from_a_file(served: Callable[..., Seen], run: Run, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)

    assert served().app.gate is None
    assert served("--auth-token-file", str(path)).app.gate is not None
    assert served(AUTH_TOKEN_FILE=str(path)).app.gate is not None

    path.write_text("k3Yp-71cA_qW8-eXample\n")
    wrong, missing = (run("serve", "--auth-token-file", str(tmp_path / name)) for name in ("tokens", "none"))
    assert (wrong.code, missing.code) == (1, 1)
    assert re.fullmatch(r"durable-streams: .*tokens:1: the second word must be read, write .*\n", wrong.err)
    assert re.fullmatch(r"durable-streams: .*none: cannot be read: No such file or directory\n", missing.err)
    assert "k3Yp" not in wrong.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--workers", "2"], "--workers must be 1: streams and who waits for them live in one process"),
        (["--cors-origin", "*", "--cors-origin", "https://a"], "cors_origin must be '*' or a list"),
        (["--public-url", "a b"], "public_url"),
        (["--max-streams", "0"], "0 is not in the range x>=1"),
        (["--durability", "relaxed"], "--durability is about stores in SQLite"),
        (["--log-level", "loud"], "'loud' is not one of"),
    ],
)
def test_a_value_that_cannot_work_is_a_usage_error(run: Run, args: list[str], words: str) -> None:
    done = run("serve", *args)

    assert (done.code, words in done.err, len(done.err.splitlines())) == (2, True, 1)


# -- logs -------------------------------------------------------------------------------------------------


@contextmanager
def serving(*args: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server in a process of its own: the process, its URL, and the line it began with."""
    command = [sys.executable, "-m", "durable_streams.cli", "serve", "--port", "0", *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://[\w.:]+/v1/stream", line)
            assert found is not None, line + process.stderr.read()
            yield process, found[0], line
        finally:
            watchdog.cancel()
            process.kill()


def ended(process: "subprocess.Popen[str]") -> list[str]:
    """What it has said since it began, after it was asked to end."""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 0
    return err.splitlines()


def status_of(url: str) -> int:
    with urlopen(url) as answer:
        return int(answer.status)


def test_requests_are_not_logged_unless_that_is_wanted() -> None:
    with serving("--log-level", "info") as (process, url, line):
        assert line == f"durable-streams: serving {url} from memory; Ctrl-C stops\n"
        assert status_of(url.removesuffix("/v1/stream") + "/health") == 200

        assert ended(process) == []


def test_requests_are_logged_as_text(run: Run) -> None:
    with serving("--access-log") as (process, url, _):
        run("create", f"{url}/a")
        run("head", f"{url}/none")

        lines = ended(process)
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert len(lines) == 2
    assert re.fullmatch(rf"{time} INFO durable_streams\.access: PUT /v1/stream/a 201 0\.\d{{6}}", lines[0])
    assert " HEAD /v1/stream/none 404 " in lines[1]


def test_requests_are_logged_as_json(run: Run) -> None:
    with serving("--access-log", "--log-format", "json") as (process, url, line):
        begun = json.loads(line)
        assert begun.pop("time").endswith("Z")
        assert begun == {
            "level": "info",
            "logger": "durable_streams.serve",
            "message": "serving",
            "url": url,
            "store": "memory",
        }
        run("create", f"{url}/a")

        (logged,) = map(json.loads, ended(process))
    assert (logged["logger"], logged["level"]) == ("durable_streams.access", "info")
    assert (logged["method"], logged["path"], logged["status"]) == ("PUT", "/v1/stream/a", 201)
    assert 0 < logged["seconds"] < PATIENCE


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--store", "sqlite:/no/such/directory/store.db"], 1, "/no/such/directory/store.db"),
        (["--host", "203.0.113.1"], 1, "choose another with --port"),
        (["--auth-token-file", "/no/such/file"], 1, "/no/such/file"),
    ],
)
def test_what_ends_a_server_is_the_last_line_in_the_form_of_all(
    run: Run, args: list[str], code: int, words: str
) -> None:
    plain = run("serve", "--port", "0", *args)
    done = run("serve", "--port", "0", "--log-format", "json", *args)

    line = json.loads(done.err.splitlines()[-1])
    assert (plain.code, done.code) == (code, code)
    assert line["level"] == "error"
    assert words in line["message"]
    assert plain.err == f"durable-streams: {line['message']}\n"


def test_metrics_and_health_are_there_for_a_server_as_it_comes() -> None:
    with serving() as (process, url, _):
        base = url.removesuffix("/v1/stream")

        assert [status_of(base + path) for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]
        assert ended(process) == []


def record(message: str, **values: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "n", "levelname": "ERROR", "levelno": 40, "msg": message, **values})


def test_a_line_of_text_stays_one_line() -> None:
    line = logs.TextFormatter().format(record("a\nb\x1b[0m é"))

    assert line.endswith("Z ERROR n: a\\nb\\x1b[0m é")


def test_an_exception_is_told_whole() -> None:
    try:
        raise ValueError("five")
    except ValueError:
        info = sys.exc_info()

    text = logs.TextFormatter().format(record("it failed", exc_info=info))
    line = json.loads(logs.JsonFormatter().format(record("it failed", exc_info=info, size={1})))

    assert text.splitlines()[0].endswith("ERROR n: it failed")
    assert text.splitlines()[-1] == "ValueError: five"
    assert line["message"] == "it failed"
    assert line["exception"].endswith("ValueError: five")
    assert line["size"] == "{1}"


def test_logging_is_as_it_was_afterwards() -> None:
    loggers = [logging.getLogger(name) for name in ("durable_streams", "uvicorn")]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]

    with logs.to_stderr("debug", "text"):
        assert all(logger.level == logging.DEBUG for logger in loggers)

    assert [(logger.level, logger.handlers[:]) for logger in loggers] == before

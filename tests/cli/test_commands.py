"""What each command prints, and with which exit code it ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from durable_streams import DurableStream
from durable_streams.cli import output
from durable_streams.server import Server

from .conftest import Run


def on_stream(url: str, do: Callable[[DurableStream], Any]) -> Any:
    """Do something with a stream through the library itself."""

    async def main() -> Any:
        async with DurableStream(url) as handle:
            return await do(handle)

    return anyio.run(main)


def contents(url: str) -> Any:
    """Everything in a stream: a list for JSON streams, else bytes."""

    async def read(handle: DurableStream) -> Any:
        async with handle.stream(live=False) as response:
            return await (response.json() if response.content_type == "application/json" else response.read())

    return on_stream(url, read)


# -- create -----------------------------------------------------------------------------------------------


def test_create_says_whether_it_made_the_stream(run: Run, url: str) -> None:
    first, second = run("create", url, "--json"), run("create", url, "--json")

    assert (first.code, second.code, first.err) == (0, 0, "")
    assert json.loads(first.out) == {
        "created": True,
        "offset": json.loads(second.out)["offset"],
        "content_type": "application/json",
        "closed": False,
    }
    assert json.loads(second.out)["created"] is False


def test_create_takes_content_from_standard_input_and_closes(run: Run, url: str) -> None:
    done = run("create", url, "--content-type", "text/plain", "--data", "-", "--closed", stdin=b"all\nof it")

    assert json.loads(done.out)["closed"] is True
    assert contents(url) == b"all\nof it"


def test_create_of_a_json_stream_makes_a_message_of_each_element(run: Run, url: str) -> None:
    run("create", url, "--json", "--data", '[1, {"a": "é"}]')

    assert contents(url) == [1, {"a": "é"}]


def test_create_sets_the_lifetime(run: Run, url: str) -> None:
    run("create", f"{url}-ttl", "--ttl", "600")
    run("create", f"{url}-at", "--expires-at", "2999-01-01T00:00:00Z")

    assert json.loads(run("head", f"{url}-ttl").out)["ttl_seconds"] == 600
    assert json.loads(run("head", f"{url}-at").out)["expires_at"].startswith("2999-01-01T00:00:00")


def test_create_refuses_another_configuration(run: Run, url: str) -> None:
    run("create", url, "--json")

    done = run("create", url, "--content-type", "text/plain")

    assert (done.code, done.out) == (4, b"")
    assert done.err.endswith(f"see how it differs: durable-streams head {url}\n")


# -- append -----------------------------------------------------------------------------------------------


def test_append_prints_the_offset_after_the_message(run: Run, url: str) -> None:
    run("create", url, "--json")

    done = run("append", url, '{"text": "hi"}')

    assert json.loads(done.out) == {"offset": json.loads(run("head", url).out)["offset"]}
    assert contents(url) == [{"text": "hi"}]


def test_append_without_data_takes_standard_input(run: Run, url: str) -> None:
    run("create", url)
    bytes_of_all_kinds = b"\x00\xff line\r\n and\n"

    run("append", url, stdin=bytes_of_all_kinds)
    run("append", url, "-", stdin=b"more")

    assert contents(url) == bytes_of_all_kinds + b"more"


def test_append_takes_more_than_the_server_takes_at_once(run: Run, url: str) -> None:
    run("create", url)
    data = bytes(range(256)) * (80 << 10)

    done = run("append", url, stdin=data)

    assert json.loads(done.out) == {"offset": json.loads(run("head", url).out)["offset"]}
    assert contents(url) == data


@pytest.mark.parametrize("args", [[], ["--seq", "1"]], ids=["JSON stream", "--seq"])
def test_append_takes_standard_input_as_one_message(run: Run, url: str, args: list[str]) -> None:
    run("create", url, *([] if args else ["--json"]))

    done = run("append", url, *args, stdin=b'{"a":\n1}')

    assert done.code == 0
    assert contents(url) == (b'{"a":\n1}' if args else [{"a": 1}])


def test_append_of_an_array_is_one_message(run: Run, url: str) -> None:
    run("create", url, "--json")

    run("append", url, "[1, 2]")

    assert contents(url) == [[1, 2]]


def test_append_json_makes_a_message_of_each_line(run: Run, url: str) -> None:
    run("create", url, "--json")

    done = run("append", url, "--json", stdin=b'{"n": 1}\n\n[2, 3]\r\n"last, without an end"')

    assert json.loads(done.out)["messages"] == 3
    assert contents(url) == [{"n": 1}, [2, 3], "last, without an end"]


def test_append_json_keeps_the_order_of_many_lines(run: Run, url: str) -> None:
    run("create", url, "--json")

    run("append", url, "--json", stdin=b"".join(b'{"n":%d,"fill":"%100d"}\n' % (n, n) for n in range(20_000)))

    assert [item["n"] for item in contents(url)] == list(range(20_000))


def test_append_json_stops_at_a_bad_line_and_says_which(run: Run, url: str) -> None:
    run("create", url, "--json")

    done = run("append", url, "--json", stdin=b"1\n2\n\n{bad\n3\n")

    assert done.code == 2
    assert done.err.startswith("durable-streams: line 4 is not JSON: ")
    assert contents(url) == [1, 2]


def test_append_json_needs_a_json_stream(run: Run, url: str) -> None:
    run("create", url, "--content-type", "text/plain")

    done = run("append", url, "--json", stdin=b"1\n")

    assert done.code == 4
    assert "this one is text/plain" in done.err


def test_append_json_of_nothing_appends_nothing(run: Run, url: str) -> None:
    run("create", url, "--json")

    done = run("append", url, "--json")

    assert json.loads(done.out) == {"messages": 0}
    assert contents(url) == []


def test_append_refuses_what_is_no_json_before_sending_it(run: Run, url: str) -> None:
    run("create", url, "--json")

    done = run("append", url, "{bad")

    assert done.code == 2
    assert "'{bad'" in done.err


@pytest.mark.parametrize("args", [[""], ["-"], []])
def test_append_refuses_empty_data(run: Run, url: str, args: list[str]) -> None:
    run("create", url)

    done = run("append", url, *args)

    assert (done.code, done.err) == (2, "durable-streams: there is nothing to append: the data is empty\n")


def test_append_with_seq_is_refused_unless_it_rises(run: Run, url: str) -> None:
    run("create", url)

    first, second = run("append", url, "a", "--seq", "007"), run("append", url, "b", "--seq", "007")

    assert (first.code, second.code) == (0, 4)
    assert "give a --seq that sorts after the last one" in second.err
    assert contents(url) == b"a"


def test_append_of_another_content_type_says_where_to_look(run: Run, url: str) -> None:
    run("create", url, "--json")

    done = run("append", url, "a", "--content-type", "text/plain")

    assert done.code == 4
    assert done.err.endswith(f"see its content type: durable-streams head {url}\n")


# -- read -------------------------------------------------------------------------------------------------


def test_read_prints_a_json_stream_as_one_value_per_line(run: Run, url: str) -> None:
    items = [{"text": "é\u2028 \n"}, [1, [2]], None, 12345678901234567890123, "", 1.5]
    run("create", url, "--json", "--data", json.dumps(items))

    done = run("read", url)

    assert [json.loads(line) for line in done.out.decode().split("\n")[:-1]] == items
    assert "é" in done.out.decode()


def test_read_prints_other_streams_byte_for_byte(run: Run, url: str) -> None:
    data = b"  two spaces\r\n\xff\xc3"
    run("create", url, "--content-type", "text/plain", "--data", "-", stdin=data)

    assert run("read", url).out == data


def test_read_begins_where_it_is_told(run: Run, url: str) -> None:
    run("create", url)
    offset = json.loads(run("append", url, "before").out)["offset"]
    run("append", url, "after")

    assert run("read", url, "--from", offset).out == b"after"
    assert run("read", url, "--from", "now").out == b""
    assert run("read", url, "--from", "-1").out == b"beforeafter"


@pytest.mark.parametrize("how", [["--follow"], ["--live", "sse"], ["--live", "long-poll"]], ids=" ".join)
def test_read_follows_until_the_stream_is_closed(run: Run, url: str, how: list[str]) -> None:
    run("create", url, "--json", "--data", "[1, 2]")
    run("close", url, "3")

    assert run("read", url, *how).lines == ["1", "2", "3"]


def test_read_as_json_ignores_the_content_type(run: Run, url: str) -> None:
    run("create", url, "--data", '[{"a": 1}, 2]')

    assert run("read", url, "--json").lines == ['{"a":1}', "2"]


def test_read_as_json_of_something_else_says_where_it_fails(run: Run, url: str) -> None:
    run("create", url, "--data", "no JSON")

    done = run("read", url, "--json")

    assert done.code == 5
    assert done.err.endswith("read it as it is: --bytes\n")


@pytest.mark.parametrize("form", ["--bytes", "--text"])
def test_read_as_bytes_or_text_gives_arrays_of_a_json_stream(run: Run, url: str, form: str) -> None:
    run("create", url, "--json", "--data", '[{"a":1},[2]]')

    assert run("read", url, form).lines == ['[{"a":1},[2]]']


def test_read_as_text_checks_it(run: Run, url: str) -> None:
    run("create", url, "--data", "-", stdin=b"ok\xff")

    done = run("read", url, "--text")

    assert done.code == 5
    assert "invalid UTF-8" in done.err


def test_read_sends_headers(run: Run) -> None:
    with Server(Guarded()) as guarded:
        refused = run("read", f"{guarded.base_url}/a")
        allowed = run("read", f"{guarded.base_url}/a", "-H", "Authorization: Bearer 7", "--header", "x-other: a: b")

    assert refused.code == 6
    assert refused.err.endswith("give credentials: --header 'Authorization: Bearer TOKEN'\n")
    assert (allowed.code, allowed.out) == (0, b"secret a: b")


class Guarded:
    """An application that shows its one stream to those who have a token."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] in ("http", "lifespan")
        if scope["type"] == "lifespan":
            return
        headers = dict(scope["headers"])
        allowed = headers.get(b"authorization") == b"Bearer 7"
        own = [(b"stream-next-offset", b"1"), (b"stream-up-to-date", b"true")] if allowed else []
        await send({"type": "http.response.start", "status": 200 if allowed else 401, "headers": own})
        await send(
            {"type": "http.response.body", "body": b"secret " + headers.get(b"x-other", b"") if allowed else b""}
        )


# -- read --checkpoint ------------------------------------------------------------------------------------


def test_read_goes_on_at_its_checkpoint(run: Run, url: str, tmp_path: Path) -> None:
    file = str(tmp_path / "position")
    run("create", url, "--json", "--data", "[1, 2]")

    first = run("read", url, "--checkpoint", file)
    again = run("read", url, "--checkpoint", file, "--from", "-1")
    run("append", url, "3")
    run("close", url)
    rest = run("read", url, "--follow", "--checkpoint", file)
    end = run("read", url, "--follow", "--checkpoint", file)

    assert [done.lines for done in (first, again, rest, end)] == [["1", "2"], [], ["3"], []]
    assert {done.code for done in (first, again, rest, end)} == {0}


def test_read_refuses_the_checkpoint_of_another_stream(run: Run, url: str, tmp_path: Path) -> None:
    file = str(tmp_path / "position")
    run("create", url)
    run("create", f"{url}-other")
    run("read", url, "--checkpoint", file)

    done = run("read", f"{url}-other", "--checkpoint", file)

    assert done.code == 1
    assert f"is the position in another stream, {url};" in done.err


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON", b"\xff", b"[1]", b'{"offset": 7}'])
def test_read_refuses_a_file_that_is_no_checkpoint(run: Run, url: str, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "position"
    file.write_bytes(content)
    run("create", url)

    done = run("read", url, "--checkpoint", str(file))

    assert (done.code, done.err.count("\n")) == (1, 1)
    assert file.read_bytes() == content


def test_a_checkpoint_that_cannot_be_saved_leaves_the_old_one(
    run: Run, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "position"
    run("create", url, "--data", "a")
    run("read", url, "--checkpoint", str(file))
    before = file.read_text()
    run("append", url, "b")

    def broken(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", broken)
    done = run("read", url, "--checkpoint", str(file))

    assert done.code == 1
    assert "No space left on device" in done.err
    assert file.read_text() == before


def test_half_a_character_waits_for_its_rest_across_runs(run: Run, url: str, tmp_path: Path) -> None:
    file = str(tmp_path / "position")
    run("create", url, "--content-type", "text/plain", "--data", "-", stdin="aé".encode()[:2])
    first = run("read", url, "--text", "--checkpoint", file)
    run("append", url, "-", stdin="é".encode()[1:])

    as_bytes = run("read", url, "--checkpoint", str(Path(file).rename(tmp_path / "for bytes")))

    assert first.out == b"a"
    assert as_bytes.out == "é".encode()


# -- head, close, delete ----------------------------------------------------------------------------------


def test_head_shows_what_the_server_says(run: Run, url: str) -> None:
    run("create", url, "--content-type", "text/plain")

    shown = json.loads(run("head", url).out)

    assert {name: shown[name] for name in ("content_type", "closed")} == {"content_type": "text/plain", "closed": False}
    assert shown["offset"]


def test_close_stores_the_last_message_and_ends_the_stream(run: Run, url: str) -> None:
    run("create", url, "--json", "--data", "[1]")

    closed = run("close", url, "2")
    late = run("append", url, "3")

    assert json.loads(closed.out) == {"final_offset": json.loads(run("head", url).out)["offset"]}
    assert contents(url) == [1, 2]
    assert late.code == 4
    assert late.err.endswith("a closed stream can only be read\n")


def test_close_takes_the_last_message_from_standard_input(run: Run, url: str) -> None:
    run("create", url)

    run("close", url, "-", stdin=b"bye\n")

    assert contents(url) == b"bye\n"


def test_closing_twice_is_fine(run: Run, url: str) -> None:
    run("create", url)

    assert run("close", url).out == run("close", url).out


def test_delete_prints_nothing(run: Run, url: str) -> None:
    run("create", url)

    done = run("delete", url)

    assert (done.code, done.out, done.err) == (0, b"", "")
    assert run("head", url).code == 3


# -- What goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [["append", "URL", "x"], ["read", "URL"], ["head", "URL"], ["close", "URL"], ["delete", "URL"]]
)
def test_a_missing_stream_has_its_exit_code_and_the_next_step(run: Run, url: str, args: list[str]) -> None:
    done = run(*(url if word == "URL" else word for word in args))

    assert (done.code, done.out) == (3, b"")
    assert done.err.startswith("durable-streams: ")
    assert done.err.endswith(f"create it: durable-streams create {url}\n")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Missing command."),
        (["nonsense"], "No such command 'nonsense'."),
        (["read"], "durable-streams read: Missing argument 'URL'."),
        (["read", "URL", "--live", "maybe"], "'maybe' is not one of"),
        (["read", "URL", "-H", "no colon"], "'no colon' is not of the form 'Name: value'"),
        (["create", "URL", "--json", "--content-type", "a/b"], "--json and --content-type exclude each other"),
        (["create", "URL", "--ttl", "5", "--expires-at", "2999-01-01T00:00:00Z"], "exclude each other"),
        (["create", "URL", "--expires-at", "soon"], "must be RFC 3339 with a time zone, got 'soon'"),
        (["append", "URL", "--json", "--content-type", "a/b"], "--json and --content-type exclude each other"),
        (["append", "URL", "--json", "--seq", "1"], "--seq is for a single message"),
        (["append", "ftp://host/a", "x"], "must be an absolute http or https URL"),
        (["read", "URL", "--from", "a,b"], "offset"),
        (["serve", "--port", "70000"], "70000 is not in the range"),
        (["serve", "--root", "a b"], "root must be a URL path such as '/v1/stream'"),
        (["serve", "--long-poll-timeout", "0"], "0.0 is not in the range x>0"),
        (["demo", "--events", "1"], "1 is not in the range x>=2"),
    ],
)
def test_wrong_usage_is_one_line_with_exit_code_2(run: Run, url: str, args: list[str], words: str) -> None:
    done = run(*(url if word == "URL" else word for word in args))

    assert (done.code, done.out) == (2, b"")
    assert words in done.err
    assert done.err.startswith("durable-streams")
    assert done.err.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line_with_exit_code_5(run: Run) -> None:
    done = run("append", "http://127.0.0.1:9/a", "x", "--retry-for", "0")

    assert (done.code, done.out) == (5, b"")
    assert done.err.endswith("is a server running there? `durable-streams serve` starts one\n")
    assert done.err.count("\n") == 1


def test_verbose_tells_of_retries_and_keeps_secrets(run: Run) -> None:
    done = run("head", "http://127.0.0.1:9/a", "--retry-for", "1", "--verbose", "-H", "x: secret")

    assert done.err.count("durable-streams: retrying") > 2
    assert "secret" not in done.err


def test_an_unexpected_status_is_one_line_with_exit_code_1(run: Run) -> None:
    async def teapot(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 418, "headers": []})
            await send({"type": "http.response.body", "body": b"short\nand stout"})

    with Server(teapot) as server:
        done = run("head", server.base_url + "/a")
        read = run("read", server.base_url + "/a")

    assert (done.code, read.code) == (1, 1)
    assert "(418): short and stout" in read.err
    assert (done.err + read.err).count("\n") == 2


# -- Values of its own ------------------------------------------------------------------------------------


def test_a_lone_surrogate_is_escaped() -> None:
    assert output.json_lines(["\ud800", "é"]) == b'"\\ud800"\n"\\u00e9"\n'


def test_a_person_gets_a_table(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    monkeypatch.setattr(output.sys.stdout, "isatty", lambda: True)

    output.facts({"offset": "0_5", "content_type": "text/plain", "closed": True, "etag": None})

    assert capfdbinary.readouterr().out.decode().splitlines() == [
        "offset        0_5",
        "content_type  text/plain",
        "closed        yes",
    ]

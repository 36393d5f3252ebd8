"""Every example in README.md, docs/ and skills/ is executed, on asyncio and on trio.

What a page may rely on:

- Blocks marked `python` run in order, in one namespace per page, as a program would: `__name__` is "__main__".
- `await`, `async with` and `async for` may stand at the top level of a block; such a block runs in an event loop of
  its own, so open connections end with the block.
- `http://localhost:4437` leads to an empty server of the page's own. A page that starts a `Server` itself works too.
- `http://localhost:8080` leads to an empty S2 server of the page's own: `s2 lite` where it is installed, else our fake.
- Files may be written: the working directory is an empty one of the page's own.
- A block marked `output` after a `python` block is exactly what that block printed.
- `<!-- invisible-code: python` ... `-->` is executed and not shown: for preparations and for checks.
- In blocks marked `console`, every line `$ durable-streams ...` is a command that exists, with options that exist.

A block that cannot run carries another mark. A failure names the page and the line.
"""

import ast
import contextlib
import functools
import inspect
import io
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser

from durable_streams.cli import main
from tests.interop.s2lite import Lite, find
from tests.s2.serving import s2_in_a_thread

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("README.md"), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("skills/**/*.md"))]
#: The address that pages use, and seconds after which an example hangs.
ADDRESS = "http://localhost:4437"
S2_ADDRESS = "http://localhost:8080"
PATIENCE = 60


class Page:
    """Runs the examples of one page.

    Args:
        path: The page.
        backend: The event loop for top-level `await`, as anyio names it.
        server: URL that stands in for `ADDRESS`.
        s2: URL that stands in for `S2_ADDRESS`.
    """

    def __init__(self, path: Path, backend: str, server: str, s2: str = S2_ADDRESS) -> None:
        self._path = path
        self._backend = backend
        self._server = server
        self._s2 = s2
        self._printed: str | None = None

    def run(self) -> int:
        """Run all examples in order; returns how many there were."""
        parsers = [
            CodeBlockParser("python", self._python),
            CodeBlockParser("output", self._output),
            CodeBlockParser("console", self._console),
        ]
        document = Sybil(parsers=parsers).parse(self._path)
        document.namespace["__name__"] = "__main__"
        count = 0
        for example in document.examples():
            example.evaluate()
            count += 1
        return count

    def _python(self, example: Example) -> None:
        source = str(example.parsed).replace(ADDRESS, self._server).replace(S2_ADDRESS, self._s2)
        padded = "\n" * (example.line + example.parsed.line_offset) + source
        code = compile(padded, self._path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if code.co_flags & inspect.CO_COROUTINE:
                anyio.run(self._awaited, code, example.namespace, backend=self._backend)
            else:
                exec(code, example.namespace)
        self._printed = printed.getvalue().replace(self._server, ADDRESS)

    async def _awaited(self, code: Any, namespace: dict[str, Any]) -> None:
        with anyio.fail_after(PATIENCE):
            await eval(code, namespace)

    def _output(self, example: Example) -> None:
        assert self._printed is not None, f"{self._path}, line {example.line}: no example before this output"
        assert self._printed.strip() == str(example.parsed).strip(), f"{self._path}, line {example.line}"

    def _console(self, example: Example) -> None:
        for line in str(example.parsed).splitlines():
            if line.startswith("$ durable-streams"):
                check_command(line.removeprefix("$ "))


def check_command(line: str) -> None:
    """Fail unless a command line names a command, and options of it, that exist."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(itertools.takewhile(lambda word: not word or word[0] not in "|&;<>", lexer))
    names = words[1:2]
    while "COMMAND [ARGS]..." in (help_text := help_of(" ".join(names))):
        following = words[len(names) + 1 :]
        if not following or following[0].startswith("-"):
            break
        names.append(following[0])
    for word in words[len(names) + 1 :]:
        if word.startswith("--"):
            option = word.partition("=")[0]
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_text), f"{' '.join(names)} has no {option}"


@functools.cache
def help_of(command: str) -> str:
    """What `durable-streams COMMAND --help` prints; fails if there is no such command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0, f"durable-streams {command}: {err.getvalue()}"
    return out.getvalue()


@pytest.fixture
def server() -> Iterator[str]:
    """URL of an empty server of ours."""
    from durable_streams.server import Server

    with Server() as running:
        yield running.base_url


@contextlib.contextmanager
def s2_server(path: Path) -> Iterator[str]:
    """URL of an empty S2 server, if the page needs one."""
    if S2_ADDRESS not in path.read_text():
        yield S2_ADDRESS
        return
    if find() is not None:
        with Lite() as lite:
            yield lite.url
    else:
        with s2_in_a_thread() as fake:
            yield fake.url


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_runs(
    path: Path, backend: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Examples write files.

    with s2_server(path) as s2:
        assert Page(path, backend, server, s2).run()


# -- The conventions themselves ---------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path, backend: str) -> Callable[[str], Page]:
    """Makes a page of some text; its server does not exist."""

    def write(text: str) -> Page:
        path = tmp_path / "page.md"
        path.write_text(text)
        return Page(path, backend, "http://127.0.0.1:9")

    return write


def test_blocks_share_a_namespace_and_may_await(page: Callable[[str], Page], backend: str) -> None:
    text = """
```python
import sniffio
answers = []
```

<!-- invisible-code: python
answers.append("hidden")
-->

```python
import anyio
await anyio.sleep(0)
answers.append(sniffio.current_async_library())
print(answers)
```

```output
['hidden', 'BACKEND']
```
"""

    assert page(text.replace("BACKEND", backend)).run() == 4


def test_the_address_leads_to_the_server_of_the_page(page: Callable[[str], Page]) -> None:
    text = '```python\nurl = "http://localhost:4437/v1/stream/a"\nassert ":9/" in url\nprint(url)\n```\n'

    assert page(text + "```output\nhttp://localhost:4437/v1/stream/a\n```\n").run() == 2


def test_examples_talk_to_the_server_of_the_page(tmp_path: Path, backend: str, server: str) -> None:
    path = tmp_path / "page.md"
    path.write_text("""
```python
from durable_streams import DurableStream

async with DurableStream("http://localhost:4437/v1/stream/a", content_type="application/json") as handle:
    await handle.create()
    await handle.append_json("hello")
```

```python
from durable_streams import stream

async with stream("http://localhost:4437/v1/stream/a", live=False) as response:
    async for item in response:
        print(item)
```

```output
hello
```
""")

    assert Page(path, backend, server).run() == 3


def test_wrong_output_fails(page: Callable[[str], Page]) -> None:
    with pytest.raises(AssertionError, match="line 4"):
        page("```python\nprint(1)\n```\n```output\n2\n```\n").run()


def test_a_failing_example_names_its_line(page: Callable[[str], Page]) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        page("Text.\n\n```python\nx = 1\nx / 0\n```\n").run()

    assert caught.traceback[-1].lineno + 1 == 5


@pytest.mark.parametrize(
    "line",
    [
        "$ durable-streams serve --port 4437 > log &",
        "$ durable-streams serve --port=4437 --host 127.0.0.1 | grep ready",
    ],
)
def test_commands_that_exist_pass(page: Callable[[str], Page], line: str) -> None:
    assert page(f"```console\n{line}\nServing at ...\n```\n").run() == 1


@pytest.mark.parametrize(
    ("line", "words"), [("durable-streams swerve", "swerve"), ("durable-streams serve --prot 1", "serve has no --prot")]
)
def test_commands_that_do_not_exist_fail(page: Callable[[str], Page], line: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        page(f"```console\n$ {line}\n```\n").run()

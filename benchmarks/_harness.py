"""Cases, how they are measured, and the table that comes out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.interop import node

if TYPE_CHECKING:
    from .peers import Servers

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Goal:
    """A promise: `ours` is at least (for times: at most) `factor` times `peer`."""

    ours: str
    peer: str
    factor: float


@dataclass(frozen=True)
class Case:
    """One piece of work, done by several contenders in turn.

    Attributes:
        work: What is done, for the table.
        unit: Unit of the results. Rates end in "/s", more is better; all others are times, less is better.
        contenders: By name, what does the work once and returns its result in that unit.
        goals: What is promised about pairs of them. Goals about contenders that are absent are left out.
        server: Where the data is, for the table.
    """

    work: str
    unit: str
    contenders: Mapping[str, Callable[[], float]]
    goals: Sequence[Goal]
    server: str = ""

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")


@dataclass
class Result:
    """The samples of a case, by contender."""

    case: Case
    samples: dict[str, list[float]] = field(default_factory=dict)

    def medians(self) -> dict[str, float]:
        return {name: median(values) for name, values in self.samples.items()}


def measure(case: Case, runs: int) -> Result:
    """Let the contenders work in turn: once to warm up, then `runs` times, each round beginning with another one."""
    result = Result(case, {name: [] for name in case.contenders})
    names = list(case.contenders)
    for number in range(runs + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            value = case.contenders[name]()
            if number:
                result.samples[name].append(value)
    return result


def table(results: Sequence[Result]) -> str:
    """Two Markdown tables: what each contender reached, and the ratios beside their goals."""
    reached: list[tuple[str, ...]] = [("work", "server", "who", "median", "lowest", "highest", "unit")]
    ratios: list[tuple[str, ...]] = [("work", "server", "ours", "peer", "ratio", "goal", "")]
    for result in results:
        case, medians = result.case, result.medians()
        for name, values in result.samples.items():
            numbers = [_number(value) for value in (medians[name], min(values), max(values))]
            reached.append((case.work, case.server, name, *numbers, case.unit))
        for goal in case.goals:
            if goal.ours in medians and goal.peer in medians:
                ratio = medians[goal.ours] / medians[goal.peer]
                met = ratio >= goal.factor if case.more_is_better else ratio <= goal.factor
                wanted = f"at {'least' if case.more_is_better else 'most'} {goal.factor:.2g}"
                verdict = "met" if met else "missed"
                ratios.append((case.work, case.server, goal.ours, goal.peer, f"{ratio:.2f}", wanted, verdict))
    return f"{_markdown(reached)}\n\n{_markdown(ratios)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


class Program:
    """A contender or a server in a process of its own. It ends when its standard input closes.

    A server says where it is in its first line; a contender answers each line with one.
    """

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):  # some servers have more to say
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Have the program do something and return its answer, with the `seconds` it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self._process.stdin.flush()
        return self.answer()


class Bench:
    """The servers and contenders that can run here, started on first use and kept until the end."""

    def __init__(self) -> None:
        self._programs = ExitStack()
        self._servers: dict[str, str] | None = None
        self._clients: dict[str, Program] | None = None
        self._peers: Servers | None = None
        self._load: Program | None = None
        self.remarks: list[str] = []

    def __enter__(self) -> Bench:
        missing = node.why_not()
        if missing is not None:
            self.remarks.append(f"The TypeScript client and the Node server are left out: {missing}.")
        self._node = None if missing else node.find_node()
        return self

    def __exit__(self, *error: Any) -> None:
        self._programs.__exit__(*error)

    def _start(self, name: str, *command: str | Path) -> Program:
        return self._programs.enter_context(Program(name, command))

    @property
    def servers(self) -> Mapping[str, str]:
        """URLs by name."""
        if self._servers is None:
            self._servers = {
                "ours": self._start("our server", sys.executable, "-m", "benchmarks.server").answer()["url"]
            }
            if self._node:
                script = ROOT / "tests" / "interop" / "node_server.mjs"
                # Without compression, as with it all clients are as fast as the server's zlib.
                node_server = self._start("Node server", self._node, script, '{"compression": false}')
                self._servers["Node"] = node_server.answer()["url"]
        return self._servers

    @property
    def clients(self) -> Mapping[str, Program]:
        """Contenders by name."""
        if self._clients is None:
            names = ("asyncio", "trio", *(["TypeScript"] if self._node else []))
            self._clients = {name: self._programs.enter_context(self.client(name)) for name in names}
        return self._clients

    def client(self, name: str) -> Program:
        """One more contender, in a process of its own that the caller ends."""
        if name == "TypeScript":
            assert self._node is not None
            return Program("TypeScript client", (self._node, ROOT / "benchmarks" / "ts_client.mjs"))
        return Program(f"our client on {name}", (sys.executable, "-m", "benchmarks.client", name))

    @property
    def peers(self) -> Servers:
        """The servers of the server rows."""
        if self._peers is None:
            from .peers import Servers

            self._peers = self._programs.enter_context(Servers(self.remarks))
        return self._peers

    @property
    def load(self) -> Program:
        """Who makes the load on them."""
        if self._load is None:
            self._load = self._start("load", sys.executable, "-m", "benchmarks.load")
        return self._load


def fill(server: str, name: str, content_type: str, bodies: Iterable[bytes] = ()) -> str:
    """Make a stream of these appends on a server, without any client library, and return its URL."""
    url = f"{server}/v1/stream/bench/{name}-{time.time_ns()}"
    connection = HTTPConnection(urlsplit(server).netloc)
    _send(connection, "PUT", url, content_type)
    for body in bodies:
        _send(connection, "POST", url, content_type, body)
    connection.close()
    return url


def remove(url: str) -> None:
    """Delete a stream."""
    connection = HTTPConnection(urlsplit(url).netloc)
    _send(connection, "DELETE", url)
    connection.close()


def _send(connection: HTTPConnection, method: str, url: str, content_type: str = "", body: bytes = b"") -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    connection.request(method, urlsplit(url).path, body, headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        raise RuntimeError(f"{method} {url}: {answer.status} {text[:200]!r}")

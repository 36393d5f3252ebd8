"""The official conformance suite against our server, on each of its stores.

The suite runs once for a store; each of its groups is a test of its own. A group that the suite adds fails here until
this list says so.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from durable_streams.server import MemoryStore, Server, SQLiteStore

HERE = Path(__file__).parent
#: Long-polls of the server in milliseconds; the suite expects them to be short.
LONG_POLL_MS = 500

#: Groups that must pass completely; the number is how many tests each has.
CLAIMED = {
    "Append Operations": 3,
    "Basic Stream Operations": 5,
    "Browser Security Headers": 9,
    "Caching and ETag": 5,
    "Case-Insensitivity": 3,
    "Chunking and Large Payloads": 2,
    "Content-Type Validation": 3,
    "Fork - Appending": 5,
    "Fork - Creation": 34,
    "Fork - Deletion and Lifecycle": 13,
    "Fork - Edge Cases": 4,
    "Fork - JSON Mode": 2,
    "Fork - Live Modes": 4,
    "Fork - Reading": 6,
    "Fork - Recursive": 5,
    "Fork - TTL and Expiry": 9,
    "HEAD Metadata Edge Cases": 2,
    "HEAD Metadata": 3,
    "HTTP Protocol": 15,
    "Idempotent Producer Operations": 29,
    "JSON Mode": 16,
    "Long-Poll Edge Cases": 5,
    "Long-Poll Operations": 2,
    "Offset Validation and Resumability": 20,
    "Property-Based Tests (fast-check)": 17,
    "Protocol Edge Cases": 12,
    "Read Operations": 3,
    "Read-Your-Writes Consistency": 3,
    "Reserved subscription APIs": 6,
    "SSE Mode": 31,
    "Stream Closure": 34,
    "TTL Expiration Behavior": 14,
    "TTL and Expiry Edge Cases": 9,
    "TTL and Expiry Validation": 5,
}

KINDS = ["memory", "sqlite"]

Group = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Group]]:
    """What has been run, by store."""
    return {}


def run_suite(kind: str, node_command: str, folder: Path) -> dict[str, Group]:
    """The suite's results, by group."""
    report = folder / "report.json"
    store = MemoryStore() if kind == "memory" else SQLiteStore(folder / "streams.db")
    with Server(store, long_poll_timeout=LONG_POLL_MS / 1000, webhooks=True, allow_insecure_webhooks=True) as server:
        facts = {
            "CONFORMANCE_TEST_URL": server.base_url,
            "CONFORMANCE_LONG_POLL_MS": str(LONG_POLL_MS),
        }
        done = subprocess.run(
            [
                *(node_command, str(HERE / "node_modules" / "vitest" / "vitest.mjs"), "run"),
                *("--reporter=json", f"--outputFile={report}"),
            ],
            cwd=HERE,
            env={**os.environ, **facts},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert report.exists(), done.stdout + done.stderr
    answer: dict[str, Group] = {}
    for file in json.loads(report.read_text())["testResults"]:
        for result in file["assertionResults"]:
            answer.setdefault(result["ancestorTitles"][0], []).append(result)
    return answer


def failures(group: Group) -> list[str]:
    """The tests that did not pass, with the first line of each reason."""
    return [
        f"{test['title']}: {test['status']}, {' '.join(test['failureMessages'])[:300]}"
        for test in group
        if test["status"] != "passed"
    ]


@pytest.fixture
def groups(
    kind: str, results: dict[str, dict[str, Group]], node_command: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Group]:
    """The suite's results on a store; it runs when they are first asked for."""
    if kind not in results:
        results[kind] = run_suite(kind, node_command, tmp_path_factory.mktemp("conformance"))
    return results[kind]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", KINDS)
def test_every_group_of_the_suite_is_accounted_for(groups: dict[str, Group]) -> None:
    ran = {name for name, group in groups.items() if any(test["status"] in ("passed", "failed") for test in group)}

    assert ran == {*CLAIMED}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CLAIMED)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_claimed_passes_completely(name: str, groups: dict[str, Group]) -> None:
    assert failures(groups[name]) == []
    assert len(groups[name]) == CLAIMED[name]

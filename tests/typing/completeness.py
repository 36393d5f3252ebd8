"""Asks pyright whether every public name is fully typed, and fails on anything below 100 %.

`python -m tests.typing.completeness` runs `pyright --verifytypes durable_streams --ignoreexternal` and prints the
symbols that lack a type, with pyright's reasons.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def report() -> dict[str, Any]:
    """pyright's report about the public names of the package, as it is imported by this Python."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    command += ["--verifytypes", "durable_streams", "--ignoreexternal", "--outputjson"]
    # pyright looks among the interpreter's own paths, so that a checkout which is not installed needs naming.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    try:
        answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        raise SystemExit(f"pyright gave no report:\n{done.stdout}{done.stderr}") from None
    return answer


def main() -> int:
    """Print the score, and what spoils it; the exit code says whether it is perfect."""
    answer = report()
    result = answer["typeCompleteness"]
    for item in answer["generalDiagnostics"]:
        print(item["severity"], item["message"], sep=": ")
    # What a public name refers to counts too. A missing type makes all that mentions it partially unknown: the causes
    # are enough to know.
    reasons = [
        f"{symbol['name']}: {' '.join(item['message'].split())}"
        for symbol in result["symbols"]
        for item in symbol["diagnostics"]
        if item["severity"] in ("error", "warning") and (symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"])
    ]
    causes = [reason for reason in reasons if "partially unknown" not in reason]
    print(*(causes or reasons), sep="\n", end="\n" if reasons else "")
    counts, score = result["exportedSymbolCounts"], result["completenessScore"]
    total = sum(counts.values())
    print(f"public types: {100 * score:.1f} % known ({counts['withKnownType']} of {total} symbols)")
    return int(score < 1 or not total)


if __name__ == "__main__":
    sys.exit(main())

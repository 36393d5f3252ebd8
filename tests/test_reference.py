"""The pages made from the source are current, and the pages lead to each other."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import durable_streams
import durable_streams.s2
import durable_streams.s2.patterns
import durable_streams.server
import durable_streams.testing
from durable_streams.cli.program import program

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("skills/**/*.md"))]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "api.md"])
def test_the_reference_is_current(generate: ModuleType, page: str) -> None:
    path = DOCS / "reference" / page
    made = generate.cli_page() if page == "cli.md" else generate.api_page()

    assert path.read_text() == made, f"{page} is not current: run python docs/generate.py"


def test_an_outdated_reference_is_reported(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    generate.main()
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    generate.main()
    (tmp_path / "cli.md").write_text("old")

    with pytest.raises(SystemExit) as ended:
        generate.main()

    assert ended.value.code == "not current: cli.md; run python docs/generate.py"


@pytest.mark.parametrize(
    "module",
    [durable_streams, durable_streams.server, durable_streams.s2, durable_streams.s2.patterns, durable_streams.testing],
)
def test_every_public_name_is_in_the_reference(module: ModuleType) -> None:
    headings = re.findall(r"^### (\w+)$", (DOCS / "reference" / "api.md").read_text(), re.MULTILINE)

    assert set(module.__all__) <= set(headings)


def test_every_command_is_used_in_the_documentation() -> None:
    text = "".join(path.read_text() for path in PAGES if path.name != "cli.md")

    assert [name for name in program.commands if f"durable-streams {name}" not in text] == []


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown viewers make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)):
        if re.match(r"https?://", link):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_every_page_is_linked_from_the_index_or_the_readme() -> None:
    linked = {
        (path.parent / link.partition("#")[0]).resolve()
        for path in (ROOT / "README.md", DOCS / "index.md")
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    }

    assert [path.name for path in DOCS.rglob("*.md") if path not in linked and path.name != "index.md"] == []

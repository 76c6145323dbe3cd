"""The documents hold together: links lead somewhere, every decision is in its index, every page can be reached."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?!https?:|#|mailto:)([^)#\s]+)")
IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)\s]+)\)")


def linked_pages(page: Path) -> set[Path]:
    return {(page.parent / target).resolve() for target in LINK.findall(page.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_image_of_a_page_leads_to_a_file(page: Path) -> None:
    targets = LINK.findall(page.read_text()) + IMAGE.findall(page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_index_of_decisions_lists_every_decision() -> None:
    index = ROOT / "docs/decisions/index.md"
    assert linked_pages(index) >= {page.resolve() for page in index.parent.glob("*.md")} - {index.resolve()}


def test_every_page_of_the_documentation_can_be_reached_from_the_readme() -> None:
    reached, todo = set[Path](), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            todo.extend(linked_pages(page))
    assert {page.resolve() for page in ROOT.glob("docs/**/*.md")} <= reached


def test_every_page_of_the_documentation_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert set(re.findall(r"[\w/-]+\.md", menu)) == pages

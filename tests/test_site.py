"""``make docs`` builds without a warning; no link is broken, nothing is fetched from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """What a page names: its own anchors, where it links to, what a browser loads with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link":
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])
        assert "srcset" not in given


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as the Makefile builds it but elsewhere."""
    out = tmp_path_factory.mktemp("site")
    (line,) = re.findall(r"-m (sphinx .*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    line = line.replace("build/site", str(out / "site")).replace("build/", f"{out}/")
    done = subprocess.run(
        [sys.executable, "-m", *line.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    assert len(found) > 30
    return found


def test_no_link_is_broken(site: Path, pages: dict[Path, Page]) -> None:
    n_checked = 0
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            to = urlsplit(link)
            if to.scheme in ("http", "https", "data", "mailto"):
                continue
            assert not to.netloc, (path, link)
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            assert target.is_file(), (path, link)
            assert target.is_relative_to(site), (path, link)
            if to.fragment and target in pages:
                assert unquote(to.fragment) in pages[target].anchors, (path, link)
            n_checked += 1
    assert n_checked > 1000


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in page.loaded:
            assert urlsplit(link).scheme in ("", "data"), (path, link)
    styles = list(site.rglob("*.css"))
    assert styles
    for path in styles:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), path


def test_the_reference_has_what_docstrings_say(site: Path) -> None:
    pages = sorted((site / "docs" / "reference").glob("*.html"))
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert "Rebuilds a trained model from its checkpoint alone." in text
    for raw in (":class:", ":func:", ":meth:", ":data:", ":mod:", "Args:", "Raises:"):
        assert raw not in text
    # Napoleon takes what precedes a colon in a property's first line for its type.
    assert '>Type<span class="colon">' not in text

"""Builds a site of pages, and finds what is wrong in the HTML of it."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]


def build(configuration: Path, site: Path) -> subprocess.CompletedProcess:
    """Build with every warning as an error. Not --quiet: it would drop the warnings that --strict counts."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(configuration), "--site-dir", str(site)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


class Page(HTMLParser):
    """Identifiers and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        for key, value in attributes:
            if key in ("id", "name") and value:
                self.names.add(value)
            if key in ("href", "src") and value:
                self.links.append(value)


def problems(site: Path) -> list[str]:
    """Fences that were not rendered, and links of a built site that lead nowhere."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    found = []
    for path, page in sorted(pages.items()):
        name = path.relative_to(site).as_posix()
        if "```" in path.read_text():
            found.append(f"{name}: a fence was not rendered")
        if name == "404.html":  # its links are of the server's root
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{name}: {link} leads nowhere")
            elif parts.fragment and target in pages and not _has(pages[target], parts.fragment):
                found.append(f"{name}: {link} names no place of that page")
    return found


def _has(page: Page, fragment: str) -> bool:
    return unquote(fragment) in page.names or re.fullmatch(r"top|", fragment) is not None

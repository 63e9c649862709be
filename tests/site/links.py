#!/usr/bin/env python3
"""links.py SITE: every link of every page leads to a file and an anchor that are there, and nothing is loaded from elsewhere."""
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("image", "href"), ("source", "srcset")}


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.resources = {""}, [], []
        self.feed(path.read_text(encoding="utf-8"))
        menu = path.parent / "menudata.js"  # of doxygen's tabs
        if path.name == "index.html" and menu.exists():
            self.links += re.findall(r'url:"([^"]+)"', menu.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif (tag, name) in LOADED:
                self.resources.append(value)
            elif name == "href":
                self.links.append(value)


def is_known(path, anchor):
    """The state of the classroom page; and doxygen 1.9.4 leads to sections of a page that it has left out."""
    return ("=" in anchor and "classroom" in path.parts) or (path.parent.name == "reference" and anchor in ("nested-classes", "define-members"))


def faults(site):
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for target in page.links + page.resources:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.resources and parts.scheme not in ("data", "javascript"):
                    yield path, f"loads {target[:80]}"
                continue
            file, anchor = urldefrag(target)
            wanted = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            if wanted.is_dir() or not wanted.exists():
                yield path, f"there is no {target}"
            elif wanted in pages and unquote(anchor) not in pages[wanted].anchors and not is_known(path, anchor):
                yield path, f"there is no anchor {target}"
    for path in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        for target in re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:|/)[^'\")]*)", path.read_text(encoding="utf-8")):
            yield path, f"loads {target}"
    if len(pages) < 100:
        yield site, f"has only {len(pages)} pages"


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve()
    found = list(faults(root))
    for page, fault in found:
        print(f"{page.relative_to(root)}: {fault}")
    sys.exit(1 if found else 0)

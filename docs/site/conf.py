# The pages of ../../scripts/site, made by Sphinx of the Markdown as it is, README.md the first.
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

project = "mpi_router"
author = "the mpi_router authors"
extensions = ["myst_parser"]
include_patterns = ["README.md", "CHANGELOG.md", "docs/*.md", "packaging/README.md"]
exclude_patterns = ["docs/lecture-slides.md"]  # the source of slides.html
root_doc = "README"
myst_heading_anchors = 4  # named as GitHub names them
suppress_warnings = ["misc.highlighting_failure"]  # of snippets that leave something out, …



def colours(paper, ink, soft, line, link, note):
    """Those of the classroom page, docs/classroom/page.css."""
    return {
        "color-background-primary": paper,
        "color-background-secondary": note,
        "color-foreground-primary": ink,
        "color-foreground-secondary": soft,
        "color-foreground-muted": soft,
        "color-foreground-border": soft,
        "color-background-border": line,
        "color-brand-primary": link,
        "color-brand-content": link,
        "color-code-background": note,
        "color-code-foreground": ink,
        "color-inline-code-background": note,
        "font-stack": "system-ui, sans-serif",
        "font-stack--monospace": "ui-monospace, monospace",
    }


html_theme = "furo"
html_title = "mpi_router"
html_css_files = ["site.css"]
html_static_path = ["site.css"]
templates_path = ["templates"]
html_sidebars = {
    "**": ["sidebar/brand.html", "sidebar/search.html", "sidebar/scroll-start.html", "sidebar/navigation.html",
           "elsewhere.html", "sidebar/scroll-end.html"]
}
html_theme_options = {
    "light_css_variables": colours("#ffffff", "#1b1f24", "#57606a", "#d0d7de", "#0b57b8", "#f3f5f8"),
    "dark_css_variables": colours("#14171c", "#e6e9ee", "#a7b0bb", "#3a424d", "#7db4ff", "#1e232b"),
}
html_copy_source = False
html_show_search_summary = False  # it would have to load the pages that it finds, which a page from disk may not
html_show_sphinx = False
pygments_style = "xcode"
pygments_dark_style = "github-dark"

navigation = """
```{toctree}
:hidden:
:glob:
:caption: Guides
docs/guide-embed
docs/guide-verify
docs/guide-*
```
```{toctree}
:hidden:
:caption: Theory
docs/theory
docs/glossary
docs/lecture-exercises
```
```{toctree}
:hidden:
:glob:
:caption: More
docs/layouts
docs/performance
docs/[!glt]*
docs/lab-notebook
packaging/README
CHANGELOG
```
"""
headers = {}  # the page of the API reference for each


def pages_of_headers(tags):
    """Of doxygen's tag file."""
    for file in ElementTree.parse(tags).getroot().iterfind("compound[@kind='file']"):
        folder = file.findtext("path").rpartition("include/")[2]
        yield folder + file.findtext("name"), file.findtext("filename")


def read(app, page, source):
    """A header leads to its page of the reference, the source of the slides to itself; the first page has the navigation."""
    up = "../" * page.count("/")

    def lead(match):
        text, header = match.groups()
        return f'<a href="{up}reference/{headers[header]}">{text}</a>' if header in headers else match[0]

    source[0] = re.sub(r"\[([^\]]+)\]\((?:\.\./)?include/(mpi_router/[^)]+)\)", lead, source[0])
    source[0] = source[0].replace("[lecture-slides.md](lecture-slides.md)", "{download}`lecture-slides.md`")
    if page == root_doc:
        source[0] += navigation


def dress(app, page, template, context, doctree):
    """What scrolls can be reached by keyboard, headings of the navigation have a level; none of the theme's scripts."""
    body = context.get("body", "").replace("<pre>", '<pre tabindex="0">')
    body = body.replace("<table class=", '<div class="wide" tabindex="0"><table class=').replace("</table>", "</table></div>")
    context["body"] = body
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    context["script_files"] = [script for script in context["script_files"] if "furo" not in str(script)]


def finish(app, error):
    """index.html, where a host begins, and the style sheet that Debian's theme loads from the root of its own host."""
    if error:
        return
    site = Path(app.outdir)
    shutil.copy(site / "README.html", site / "index.html")
    style = site / "_static" / "styles" / "furo.css"
    text = style.read_text()
    for path in re.findall(r"url\((/javascript/[^)]+)\)", text):
        shutil.copy("/usr/share" + path, style.parent)
        text = text.replace(path, Path(path).name)
    style.write_text(text)


def setup(app):
    app.add_config_value("reference_tags", None, "env")
    app.connect("config-inited", lambda _, config: headers.update(pages_of_headers(config.reference_tags)))
    app.connect("source-read", read)
    app.connect("html-page-context", dress, priority=900)  # behind the theme's
    app.connect("build-finished", finish)

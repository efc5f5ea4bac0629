"""Hooks of the site's build: pages outside docs/, help texts, the HTTP API, the notebook, no outside resources."""

from __future__ import annotations

import base64
import os
import posixpath
import re
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
NOTEBOOK = "tour.ipynb"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "THIRD_PARTY.md": "third-party.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages outside docs/, by their path in the repository: where they lie in the site."""

LINKED = {**PAGES, f"docs/{NOTEBOOK}": "tour.md"}

LINK = re.compile(r"(\]\()([^)\s#:]+)(?=[)#])")
ROUTES = "<!-- routes -->"
HELP = re.compile(r"^<!-- help: ([a-z ]+) -->$", re.MULTILINE)
OUTSIDE = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon|modulepreload))[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')\s]+|url\(["']?(?:https?:)?//[^"')\s]+"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/, what benchmarks/ shows and measured, and the executed notebook."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for path in sorted(each for kind in ("*.png", "*.json", "*.html") for each in (ROOT / "benchmarks").rglob(kind)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    page, pictures = executed(Path(config.docs_dir) / NOTEBOOK)
    files.append(File.generated(config, Path(NOTEBOOK).with_suffix(".md").name, content=page))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages, and fill in help texts and routes."""
    if ROUTES in markdown:
        markdown = markdown.replace(ROUTES, http_reference())
    outside = {site: path for path, site in PAGES.items()}
    source = outside.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        site = LINKED.get(target, target.removeprefix("docs/"))
        return match[1] + posixpath.relpath(site, posixpath.dirname(page.file.src_uri) or ".")

    return HELP.sub(lambda match: help_text(match[1].split()), LINK.sub(moved, markdown))


def on_post_build(config: MkDocsConfig) -> None:
    """Fail the build where a page or a style sheet loads something from another site."""
    found = [
        f"{path.relative_to(config.site_dir)}: {match[0]}"
        for path in sorted(Path(config.site_dir).rglob("*"))
        if path.suffix in (".html", ".css")
        for match in OUTSIDE.finditer(path.read_text(encoding="utf-8"))
    ]
    if found:
        raise PluginError("the site loads from other sites: " + "; ".join(found))


def help_text(words: list[str]) -> str:
    """What `hawk ... --help` prints, as a block of text."""
    from typer.testing import CliRunner

    from hawk.cli.app import app

    result = CliRunner().invoke(app, [*words, "--help"], prog_name="hawk", env={"COLUMNS": "100"})
    if result.exit_code:
        raise PluginError(f"hawk {' '.join(words)} --help: {result.output}")
    return f"```text\n{result.output.strip()}\n```"


def http_reference() -> str:
    """The reference of the routes of a server of the bundled model."""
    from hawk import HawkPipeline
    from hawk.server.app import fastapi_app, make_worker
    from hawk.server.config import ServerConfig
    from hawk.server.metrics import ServerMetrics
    from hawk.server.reference import reference

    config = ServerConfig()
    metrics = ServerMetrics(config.places)
    worker = make_worker(HawkPipeline.from_pretrained("bundled", "cpu"), config, metrics)  # its thread is not started
    return reference(fastapi_app(config, worker, metrics).openapi())


def executed(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """Run a notebook: its page in Markdown, and its pictures by their path in the site. A cell that fails raises.

    A page shows what a cell printed, then its pictures, whose alternative text is the cell's metadata `alt`.
    """
    document = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    sockets = Config({"KernelManager": {"transport": "ipc"}})  # no port is opened
    client = NotebookClient(document, timeout=900, kernel_name="python3", resources=resources, config=sockets)
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})  # two threads wait for each other on a busy machine
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in document.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                name = f"{notebook.stem}/{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(output.data["image/png"])
                parts.append(f"![{cell.metadata.alt}]({name})")
    return "\n\n".join(parts) + "\n", pictures

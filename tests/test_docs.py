"""The documentation: links lead somewhere, every page is in the navigation, every public name has a docstring."""

import ast
import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hawk

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md", "benchmarks/README.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
NAVIGATION = re.compile(r"^ +- [^:]+: ([\w-]+\.md)$", re.MULTILINE)
REFERENCE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def text_of(document: str) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def broken_links(document: str) -> list[str]:
    """The links of a document to files or headings that are not there."""
    found = []
    for link in LINK.findall(text_of(document)):
        path, _, anchor = link.partition("#")
        target = ROOT / document if not path else (ROOT / document).parent / path
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in map(slug, HEADING.findall(target.read_text("utf-8")))):
            found.append(link)
    return found


def public_members(name: str) -> Iterator[tuple[str, Any]]:
    """A public name of `hawk`, and what a user calls or reads of it."""
    thing = getattr(hawk, name)
    yield name, thing
    if inspect.isclass(thing):
        for key, member in vars(thing).items():
            if hasattr(member, "__get__") and (key == "__call__" or not key.startswith("_")):
                yield f"{name}.{key}", getattr(member, "__func__", member)


def undocumented(name: str) -> list[str]:
    """What of a public name has no docstring of its own."""
    return [path for path, thing in public_members(name) if not (inspect.getdoc(thing) or "").strip()]


@pytest.mark.parametrize("document", [*OUTSIDE, *PAGES])
def test_links_lead_somewhere(document):
    assert broken_links(document) == []


def test_every_page_is_in_the_navigation():
    listed = NAVIGATION.findall((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert len(listed) == len(set(listed))
    assert {Path(page).name for page in PAGES} <= set(listed)


@pytest.mark.parametrize("name", [name for name in hawk.__all__ if name != "__version__"])
def test_public_names_have_docstrings(name):
    assert undocumented(name) == []


def test_the_reference_has_every_public_name_and_names_only_what_exists():
    listed = REFERENCE.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))
    assert {f"hawk.{name}" for name in hawk.__all__} - {"hawk.__version__"} <= set(listed)
    for path in listed:
        module, _, name = path.rpartition(".")
        assert hasattr(__import__(module, fromlist=[name]), name), path


def test_the_tour_is_committed_without_outputs_and_is_python():
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert [cell["outputs"] for cell in code if cell["outputs"] or cell["execution_count"]] == []
    ast.parse("\n".join("".join(cell["source"]) for cell in code))


def test_the_tools_of_the_site_are_pinned():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = {re.match(r"[\w.-]+", line)[0] for line in extras["docs"]}
    assert wanted <= {pin.lower().replace("_", "-") for pin in pins}


# --- the checks themselves: each sees what is wrong


def test_broken_links_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "b.md").write_text('## Three levels of "the same"\n')
    (tmp_path / "a.md").write_text(
        "[1](b.md) [2](b.md#three-levels-of-the-same) [3](b.md#other) [4](c.md) [5](https://x.org)\n"
        "```text\n[6](d.md)\n```\n"
    )
    assert broken_links("a.md") == ["b.md#other", "c.md"]


def test_missing_docstrings_are_seen(monkeypatch):
    class Bare:
        """Has a docstring, and members without."""

        def told(self):
            """Told."""

        def untold(self): ...

        @property
        def value(self): ...

        @classmethod
        def made(cls): ...

        def _private(self): ...

    monkeypatch.setattr(hawk, "HawkPipeline", Bare)
    assert undocumented("HawkPipeline") == ["HawkPipeline.untold", "HawkPipeline.value", "HawkPipeline.made"]

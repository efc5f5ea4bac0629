"""What the README and its neighbours tell a user to type exists: every command, option, argument and path."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
GUIDES = (
    "benchmarks/README.md",
    *(f"docs/{page}.md" for page in ("bundled", "chameleon", "command-line", "emu3", "gpu", "janus", "llamagen")),
    *(f"docs/{page}.md" for page in ("lumina", "methods", "models", "train")),
)
PYTHON_GUIDES = ("README.md", "docs/python.md", *GUIDES)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(hawk [^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)")


def fences(document: str, *languages: str) -> list[str]:
    """Return the code blocks of a document in one of the languages."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [body for language, body in FENCE.findall(text) if language in languages]


def commands(document: str) -> Iterator[list[str]]:
    """Yield the words of every `hawk ...` command line, in shell blocks and in running text."""
    for block in fences(document, "bash", "sh", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and Path(words[0]).name == "hawk":
                yield words[1:]
    prose = FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    for line in INLINE.findall(prose):
        yield shlex.split(line)[1:]


def unknown_words(words: list[str], command: Any) -> list[str]:
    """Return the subcommands and options in `words` that the click `command` does not have."""
    unknown = []
    for word in words:
        names = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
        if word.startswith("-"):
            if word.partition("=")[0] not in names:
                unknown.append(word)
        elif word in getattr(command, "commands", {}):
            command = command.commands[word]
        elif hasattr(command, "commands"):
            unknown.append(word)
            break
    return unknown


def root_command() -> Any:
    import typer

    from hawk.cli.app import app

    return typer.main.get_command(app)


@pytest.mark.parametrize("document", [*DOCUMENTS, *GUIDES])
def test_commands_and_options_exist(document):
    found = list(commands(document))
    assert found, f"{document} shows no hawk command: is it still read rightly?"
    root = root_command()
    wrong = {shlex.join(["hawk", *words]): unknown_words(words, root) for words in found}
    assert {line: words for line, words in wrong.items() if words} == {}


def test_every_command_explains_itself():
    """`--help` of each command, however deep, ends with 0 and says something about each option."""
    from typer.testing import CliRunner

    from hawk.cli.app import app

    def paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield path, command
        for name, child in getattr(command, "commands", {}).items():
            yield from paths(child, (*path, name))

    found = list(paths(root_command()))
    assert {("generate",), ("compare",), ("bench",), ("verify",)} <= {path for path, _ in found}
    for path, command in found:
        assert CliRunner().invoke(app, [*path, "--help"]).exit_code == 0, path
        assert command.help or not path, f"hawk {' '.join(path)}: no help text"
        silent = [p.name for p in command.params if p.opts[0].startswith("-") and not p.help]
        assert not silent, f"hawk {' '.join(path)}: options without help: {silent}"


def test_python_examples_use_real_names():
    """Every example parses, imports names that exist, and calls the pipeline with arguments it takes."""
    import hawk
    from hawk.pipeline import HawkPipeline

    examples = [block for document in PYTHON_GUIDES for block in fences(document, "python")]
    assert len(examples) > 8
    accepted = set(inspect.signature(HawkPipeline.__call__).parameters)
    calls = 0
    for node in ast.walk(ast.parse("\n".join(examples))):
        if isinstance(node, ast.ImportFrom) and node.module == "hawk":
            assert {alias.name for alias in node.names} <= set(hawk.__all__)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "pipe":
            calls += 1
            assert {keyword.arg for keyword in node.keywords} <= accepted
    assert calls >= 8


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_make_targets_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [a or b for a, b in LINK.findall(text)]
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets


# --- the reader itself: it sees commands wherever they stand, and what is wrong in them


def test_reader_finds_unknown_options(tmp_path, monkeypatch):
    import typer

    app = typer.Typer()
    data = typer.Typer()
    app.add_typer(data, name="data")
    app.command("draw")(lambda prompt: None)

    @data.command()
    def build(out: str = "data") -> None:
        """Build."""

    @data.command()
    def check() -> None:
        """Check."""

    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "README.md").write_text(
        "`hawk data sell` and\n```bash\nhawk data build --out x  # fine\n$ hawk draw 'a cat' \\\n  --sed 1\n```\n"
    )
    root = typer.main.get_command(app)
    found = {shlex.join(words): unknown_words(words, root) for words in commands("README.md")}
    assert found == {"data build --out x": [], "draw 'a cat' --sed 1": ["--sed"], "data sell": ["sell"]}

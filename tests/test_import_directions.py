"""The house rules of the source tree: imports run one way, heavy packages have one home, modules stay small.

    leaves <- verify <- decode <- bundle, pipeline <- training, evaluation, benchmark <- server, cluster <- cli
    leaves <- targets, drafters (never each other)

All of it is read from the source with `ast`: an import inside a function or under TYPE_CHECKING counts too.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hawk"
MAX_LINES = 450

LEAVES = frozenset(
    {
        "errors",
        "files",
        "checkpoint",
        "fingerprint",
        "grid",
        "structure",
        "canvas",
        "layers",
        "cache",
        "packed",
        "machine",
        "noise",
        "sampling",
        "tree",
    }
)
DECODER = LEAVES | {"verify", "relaxed", "forward", "stats", "window", "decode"}
MODELS = frozenset({"targets", "drafters"})
PICTURES = frozenset({"contact_sheet", "png"})  # drawn and written for people; know nothing of decoding
FACES = frozenset(  # a model on disk, and in a person's hands
    {"adapter", "bundle", "cost", "loaded", "loading", "model", "model_config", "pipeline"}
)
MIDDLE = frozenset(
    {"training", "evaluation", "benchmark", "scaling", "steps", "compare", "prompts", "report", "convert"}
)
TOP = frozenset({"server", "cluster", "cli", "cli_shared", "cli_measure", "cli_train", "cli_convert", "__main__"})

# part of the house (a module or a package right under hawk) -> the other parts it may import
MAY_IMPORT: dict[str, frozenset[str]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    "verify": LEAVES,
    "relaxed": LEAVES | {"verify"},
    "forward": LEAVES,
    "stats": LEAVES | {"verify"},
    "window": LEAVES | {"forward", "stats"},
    "decode": LEAVES | {"verify", "relaxed", "forward", "stats", "window"},
    "targets": LEAVES,
    "drafters": LEAVES | {"verify"},  # `observe` is told the verdicts
    **dict.fromkeys(PICTURES, LEAVES),
    **dict.fromkeys(FACES, DECODER | MODELS | PICTURES | FACES),
    **dict.fromkeys(MIDDLE, DECODER | MODELS | PICTURES | FACES | MIDDLE),
    **dict.fromkeys(TOP, DECODER | MODELS | PICTURES | FACES | MIDDLE | TOP),
}
# The command line starts fast: of hawk it loads only this before a command is called.
CLI_MAY_LOAD_AT_ONCE = frozenset({"errors", "cli", "cli_shared", "cli_measure", "cli_train", "cli_convert"})

HEAVY = frozenset(
    {"transformers", "ray", "fastapi", "torchmetrics", "webdataset", "resvg_py", "tensorboard", "diffusers"}
)
# Where one module is too few: the modules that may share a heavy package.
HOMES = {"transformers": frozenset({"targets/pretrained.py", "targets/t5.py", "targets/transformers.py"})}


@dataclass(frozen=True)
class Import:
    """One import: of the dotted `name`, in `line`; `at_load` if it runs when the module is loaded."""

    name: str
    line: int
    at_load: bool


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name under hawk: 'cache', 'targets.vq', 'targets' for its __init__, '' for hawk's."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def nodes(tree: ast.AST, at_load: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Walk the tree, telling of each node whether it runs when the module is loaded."""
    for child in ast.iter_child_nodes(tree):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(child, ast.If) and is_type_checking(child.test)
        )
        yield child, at_load
        yield from nodes(child, at_load and not deferred)


def imports_of(path: Path, root: Path) -> list[Import]:
    """Return every import of a module, relative ones resolved, `import_module("...")` included."""
    module = module_name(path, root)
    package = ["hawk", *module.split(".")] if module else ["hawk"]
    if path.name != "__init__.py":
        package = package[:-1]
    found = []
    for node, at_load in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from hawk.targets import vq` and `from torch.utils import tensorboard` name modules: keep both
            names = [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and "import_module" in ast.unparse(node.func):
            argument = node.args[0]
            names = [argument.value] if isinstance(argument, ast.Constant) else []
        else:
            continue
        found += [Import(str(name), node.lineno, at_load) for name in names]
    return found


def part_of(name: str, parts: Set[str]) -> str | None:
    """Return which of `parts` a dotted name lies in; None outside hawk and for names of hawk itself."""
    package, *inside = name.split(".")
    return inside[0] if package == "hawk" and inside and inside[0] in parts else None


def violations(root: Path) -> list[str]:
    """Return what breaks the house rules in the package folder `root`, one line each."""
    found: list[str] = []
    homes: dict[str, set[str]] = {}
    paths = sorted(root.rglob("*.py"))
    parts = MAY_IMPORT.keys() | {module_name(path, root).split(".")[0] for path in paths} - {""}
    for path in paths:
        module = module_name(path, root)
        place = module.split(".")[0]
        where = path.relative_to(root).as_posix()
        if path.name == "utils.py":
            found.append(f"{where}: name a module for what it does")
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            found.append(f"{where}: {lines} lines, {MAX_LINES} at most")
        if place and place not in MAY_IMPORT:
            found.append(f"{where}: '{place}' has no place in the import directions")
            continue
        for item in imports_of(path, root):
            line = f"{where}:{item.line}"
            for heavy in HEAVY.intersection(item.name.split(".")):
                if not item.name.startswith("hawk."):
                    homes.setdefault(heavy, set()).add(where)
            other = part_of(item.name, parts)
            if other is None:
                continue
            if not place:
                if item.at_load:
                    found.append(f"{line}: hawk/__init__.py loads hawk.{other} at once")
            elif other != place and other not in MAY_IMPORT[place]:
                found.append(f"{line}: {place} must not import {other}")
            elif place == "cli" and item.at_load and other not in CLI_MAY_LOAD_AT_ONCE:
                found.append(f"{line}: cli loads hawk.{other} at once; import it inside the command")
    for heavy, modules in sorted(homes.items()):
        if len(modules) > 1 and not modules <= HOMES.get(heavy, frozenset()):
            found.append(f"{heavy}: imported in {', '.join(sorted(modules))}; one module is its home")
    return found


def test_the_source_tree_keeps_the_house_rules():
    assert sorted(SOURCE.rglob("*.py")), f"no source under {SOURCE}"
    assert violations(SOURCE) == []


@pytest.mark.parametrize("module", ["hawk", "hawk.cli"])
def test_import_is_light(module):
    """Loads neither torch nor any heavy package: `hawk --help` must not wait for them."""
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "hawk" in loaded
    assert not loaded & (HEAVY | {"torch", "numpy", "huggingface_hub", "jaxtyping", "PIL"})


def test_public_names_are_lazy_and_complete():
    import hawk

    assert {"HawkPipeline", "SamplingParams", "HawkError", "__version__", "accelerate", "hawk_generate"} == set(
        hawk.__all__
    )
    for name in hawk.__all__:
        assert getattr(hawk, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        hawk.no_such_name  # noqa: B018


# --- the checker itself: a tree that keeps the rules passes, and each broken rule is seen


CLEAN = {
    "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hawk.pipeline import P\n",
    "errors.py": "",
    "grid.py": "from hawk.errors import HawkError\n",
    "verify.py": "import torch\nfrom hawk.grid import Grid\n",
    "decode.py": "from hawk import grid, verify\n",
    "targets/__init__.py": "from hawk.targets.vq import VQ\n",
    "targets/vq.py": "from hawk.grid import Grid\n",
    "drafters/__init__.py": "",
    "drafters/heads.py": "from hawk.grid import Grid\n",
    "drafters/pool.py": "from hawk.drafters import heads\n",
    "pipeline.py": "from hawk.decode import generate\nfrom hawk.targets import vq\n",
    "training/__init__.py": "",
    "training/data.py": "import webdataset\nfrom hawk import __version__\n",
    "cli.py": "from hawk.errors import HawkError\ndef main():\n    from hawk.pipeline import P\n",
}


def tree(root: Path, changes: dict[str, str]) -> Path:
    for name, text in {**CLEAN, **changes}.items():
        path = root / "hawk" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "hawk"


@pytest.mark.parametrize(
    "changes",
    [{}, dict.fromkeys(("targets/t5.py", "targets/transformers.py"), "def f():\n    import transformers\n")],
    ids=["clean", "shared homes"],
)
def test_checker_passes_a_clean_tree(tmp_path, changes):
    assert violations(tree(tmp_path, changes)) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"grid.py": "from hawk.verify import verify\n"}, "grid.py:1: grid must not import verify"),
        ({"grid.py": "from .verify import verify\n"}, "grid.py:1: grid must not import verify"),
        ({"grid.py": "from hawk import verify\n"}, "grid.py:1: grid must not import verify"),
        ({"grid.py": "import hawk.decode as d\n"}, "grid.py:1: grid must not import decode"),
        (
            {"verify.py": "def f():\n    from hawk.decode import g\n"},
            "verify.py:2: verify must not import decode",
        ),
        (
            {"decode.py": "from hawk.drafters.heads import H\n"},
            "decode.py:1: decode must not import drafters",
        ),
        ({"decode.py": "from hawk import pipeline\n"}, "decode.py:1: decode must not import pipeline"),
        (
            {"targets/vq.py": "from hawk.drafters import heads\n"},
            "targets/vq.py:1: targets must not import drafters",
        ),
        ({"targets/vq.py": "from ..decode import step\n"}, "targets/vq.py:1: targets must not import decode"),
        (
            {"drafters/heads.py": "from hawk.targets import vq\n"},
            "drafters/heads.py:1: drafters must not import targets",
        ),
        (
            {
                "drafters/heads.py": "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    from hawk.decode import State\n"
            },
            "drafters/heads.py:3: drafters must not import decode",
        ),
        (
            {"drafters/heads.py": "import importlib\nimportlib.import_module('hawk.pipeline')\n"},
            "drafters/heads.py:2: drafters must not import pipeline",
        ),
        (
            {"training/data.py": "from hawk.cli import main\n"},
            "training/data.py:1: training must not import cli",
        ),
        ({"pipeline.py": "from hawk.server import app\n"}, "pipeline.py:1: pipeline must not import server"),
        (
            {"cli.py": "from hawk.pipeline import P\n"},
            "cli.py:1: cli loads hawk.pipeline at once; import it inside the command",
        ),
        (
            {"__init__.py": "from hawk.pipeline import P\n"},
            "__init__.py:1: hawk/__init__.py loads hawk.pipeline at once",
        ),
        ({"misc.py": ""}, "misc.py: 'misc' has no place in the import directions"),
        ({"targets/utils.py": ""}, "targets/utils.py: name a module for what it does"),
        ({"grid.py": "x = 1\n" * 451}, "grid.py: 451 lines, 450 at most"),
        (
            {"pipeline.py": "def f():\n    import webdataset as w\n"},
            "webdataset: imported in pipeline.py, training/data.py; one module is its home",
        ),
        (
            {"pipeline.py": "import transformers\n", "targets/transformers.py": "from transformers import Cache\n"},
            "transformers: imported in pipeline.py, targets/transformers.py; one module is its home",
        ),
        (
            dict.fromkeys(("pipeline.py", "targets/t5.py"), "def f():\n    from transformers import AutoTokenizer\n"),
            "transformers: imported in pipeline.py, targets/t5.py; one module is its home",
        ),
        (
            {
                "pipeline.py": "from torch.utils.tensorboard import SummaryWriter\n",
                "training/data.py": "from torch.utils import tensorboard\n",
            },
            "tensorboard: imported in pipeline.py, training/data.py; one module is its home",
        ),
    ],
)
def test_checker_sees_a_broken_rule(tmp_path, changes, complaint):
    assert violations(tree(tmp_path, changes)) == [complaint]

"""The house rules of the source tree: imports run one way, heavy packages have one home, modules stay small.

`FLOORS` is the picture of the house, top floor first: a room may import from every floor below its own. All of it is
read from the source with `ast`: an import inside a function or under TYPE_CHECKING counts too.

    python tests/test_import_directions.py    # prints the import graph's figures
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hawk"
MAX_LINES = 450
MAX_ROOMS = 22

FLOORS = (
    ("__main__",),  # the command
    ("cli",),  # what a person types
    ("server", "batch"),  # what programs and browsers ask, and what is drawn of whole files of prompts
    ("measure", "evaluation"),
    ("wrapping", "training", "proofs"),
    ("pipeline",),  # text in, images out
    ("outputs",),  # what a call gives back
    ("models", "engine"),  # everything that can draw; many images at once
    ("drafters",),  # everything that proposes tokens
    ("decoding",),  # one step, and all that a step touches
    ("nn", "pictures"),
    ("files", "machine", "processes", "intervals"),
    ("errors",),
)
# A room is a module or a package right under hawk. Rooms on one floor do not import each other.
MAY_IMPORT: dict[str, frozenset[str]] = {
    room: frozenset(below for lower in FLOORS[level + 1 :] for below in lower)
    for level, floor in enumerate(FLOORS)
    for room in floor
}

# The command line starts fast: before a command is called, it loads this room alone (`LOADED_BY_COMMANDS` wait).
CLI_MAY_LOAD_AT_ONCE = frozenset({"errors"})
LOADED_BY_COMMANDS = frozenset({"cli/drawing.py", "cli/tables.py", "cli/wanted.py"})

HEAVY = frozenset(
    {
        "transformers",
        "ray",
        "fastapi",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "torchmetrics",
        "tensorboard",
        "diffusers",
    }
)
ROUTES = frozenset(
    f"server/{name}.py"
    for name in ("answers", "app", "guard", "health", "live_api", "openai_api", "page", "sdapi", "service")
)
# Where one module is too few: the modules that may share a heavy package.
HOMES = {
    "fastapi": ROUTES,
    "starlette": ROUTES | {"server/running.py", "server/ray_app.py"},
    "ray": frozenset({"batch/on_ray.py", "server/on_ray.py", "server/ray_app.py"}),
    "transformers": frozenset(
        {
            "measure/published.py",
            "models/hf/janus_origins.py",
            "models/hf/janus_text.py",
            "models/hf/original_janus.py",
            "models/hf/reading.py",
            "models/hf/target.py",
            "models/llamagen/t5.py",
        }
    ),
}


@dataclass(frozen=True)
class Import:
    """One import: of the dotted `name`, in `line`; `at_load` if it runs when the module is loaded."""

    name: str
    line: int
    at_load: bool


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name under hawk: 'errors', 'decoding.cache', 'decoding' for its __init__, '' for hawk's."""
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
            # `from hawk.models import loading` and `from torch.utils import tensorboard` name modules: keep both
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


def loads_at_once(where: str) -> bool:
    """Whether a module is loaded by `hawk --help`."""
    return where.startswith("cli/") and where not in LOADED_BY_COMMANDS


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
            elif loads_at_once(where) and item.at_load and other not in {place, *CLI_MAY_LOAD_AT_ONCE}:
                found.append(f"{line}: cli loads hawk.{other} at once; import it inside the command")
    for heavy, modules in sorted(homes.items()):
        if len(modules) > 1 and not modules <= HOMES.get(heavy, frozenset()):
            found.append(f"{heavy}: imported in {', '.join(sorted(modules))}; one module is its home")
    return found


@dataclass(frozen=True)
class Graph:
    """The import graph of a package folder: whom each room imports, and whom each module imports when it is loaded."""

    rooms: dict[str, set[str]]
    modules: dict[str, set[str]]
    imports: int

    @property
    def circles(self) -> list[str]:
        """One circle of rooms or of modules, where there is any."""
        return circle(self.rooms) or circle(self.modules)

    @property
    def floors(self) -> int:
        """The longest way down."""
        depth: dict[str, int] = {}
        for room in TopologicalSorter(self.rooms).static_order():
            depth[room] = 1 + max((depth[below] for below in self.rooms.get(room, ())), default=0)
        return max(depth.values(), default=0)

    def __str__(self) -> str:
        arrows, climbing = sum(map(len, self.rooms.values())), climbs(self.rooms)
        return (
            f"{len(self.rooms)} rooms on the top sheet, {self.floors} floors, {arrows} arrows between rooms, "
            f"{len(self.circles)} in circles, {climbing} climbing; {len(self.modules)} modules, {self.imports} imports"
        )


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def climbs(rooms: dict[str, set[str]]) -> int:
    """How many arrows run to a room that lies no lower."""
    return sum(below not in MAY_IMPORT.get(room, frozenset()) for room, others in rooms.items() for below in others)


def graph_of(root: Path) -> Graph:
    """Read the import graph of the package folder `root`; its `__init__`, which is lazy, is no room."""
    paths = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    names = paths.keys() - {""}
    rooms: dict[str, set[str]] = {name.split(".")[0]: set() for name in names}
    modules: dict[str, set[str]] = {name: set() for name in names}
    count = 0
    for name in sorted(names):
        room = name.split(".")[0]
        for item in imports_of(paths[name], root):
            other = part_of(item.name, rooms.keys())
            if other is None:
                continue
            count += 1
            if other != room:
                rooms[room].add(other)
            module = next((m for m in ancestry(item.name.removeprefix("hawk.")) if m in names), None)
            if item.at_load and module not in (None, name):
                modules[name].add(module)
    return Graph(rooms, modules, count)


def ancestry(name: str) -> list[str]:
    """A dotted name and the packages that it lies in, innermost first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def test_the_house_has_few_rooms_and_no_circle():
    graph = graph_of(SOURCE)
    assert len(graph.rooms) <= MAX_ROOMS, str(graph)
    assert graph.circles == []
    assert climbs(graph.rooms) == 0


def test_the_graph_sees_a_circle_and_an_import_that_climbs(tmp_path):
    assert "0 in circles, 0 climbing" in str(graph_of(tree(tmp_path, {})))
    graph = graph_of(tree(tmp_path, {"decoding/grid.py": "from hawk.pipeline import P\n"}))
    assert {"decoding", "pipeline"} <= set(graph.circles)
    assert climbs(graph.rooms) == 1


def test_the_source_tree_keeps_the_house_rules():
    assert sorted(SOURCE.rglob("*.py")), f"no source under {SOURCE}"
    assert violations(SOURCE) == []


@pytest.mark.parametrize("module", ["hawk", "hawk.cli.app"])
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
    "nn/__init__.py": "",
    "nn/layers.py": "from hawk.errors import HawkError\n",
    "decoding/__init__.py": "",
    "decoding/grid.py": "from hawk.errors import HawkError\n",
    "decoding/verify.py": "import torch\nfrom hawk.decoding.grid import Grid\nfrom hawk.nn import layers\n",
    "drafters/__init__.py": "",
    "drafters/heads.py": "from hawk.decoding.grid import Grid\n",
    "drafters/pool.py": "from hawk.drafters import heads\n",
    "models/__init__.py": "from hawk.models.vq import VQ\n",
    "models/vq.py": "from hawk.decoding.grid import Grid\n",
    "pipeline.py": "from hawk.decoding import verify\nfrom hawk.models import vq\n",
    "training/__init__.py": "",
    "training/data.py": "import torchmetrics\nfrom hawk import __version__\n",
    "proofs/__init__.py": "from hawk.pipeline import P\n",
    "cli/__init__.py": "",
    "cli/app.py": "from hawk.errors import HawkError\nfrom hawk.cli import options\ndef main():\n"
    "    from hawk.pipeline import P\n",
    "cli/options.py": "",
    "cli/tables.py": "from hawk.pipeline import P\n",
}


def tree(root: Path, changes: dict[str, str]) -> Path:
    for name, text in {**CLEAN, **changes}.items():
        path = root / "hawk" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "hawk"


@pytest.mark.parametrize(
    "changes",
    [{}, dict.fromkeys(("models/llamagen/t5.py", "models/hf/target.py"), "def f():\n    import transformers\n")],
    ids=["clean", "shared homes"],
)
def test_checker_passes_a_clean_tree(tmp_path, changes):
    assert violations(tree(tmp_path, changes)) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"nn/layers.py": "from hawk.decoding import verify\n"}, "nn/layers.py:1: nn must not import decoding"),
        ({"nn/layers.py": "from ..decoding.verify import verify\n"}, "nn/layers.py:1: nn must not import decoding"),
        ({"nn/layers.py": "from hawk import decoding\n"}, "nn/layers.py:1: nn must not import decoding"),
        ({"nn/layers.py": "import hawk.decoding.grid as g\n"}, "nn/layers.py:1: nn must not import decoding"),
        (
            {"decoding/verify.py": "def f():\n    from hawk.models.vq import g\n"},
            "decoding/verify.py:2: decoding must not import models",
        ),
        (
            {"decoding/verify.py": "from hawk.drafters.heads import H\n"},
            "decoding/verify.py:1: decoding must not import drafters",
        ),
        ({"decoding/grid.py": "from hawk import pipeline\n"}, "decoding/grid.py:1: decoding must not import pipeline"),
        (
            {"drafters/heads.py": "from hawk.models import vq\n"},
            "drafters/heads.py:1: drafters must not import models",
        ),
        (
            {
                "drafters/heads.py": "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    from hawk.pipeline import P\n"
            },
            "drafters/heads.py:3: drafters must not import pipeline",
        ),
        (
            {"drafters/heads.py": "import importlib\nimportlib.import_module('hawk.pipeline')\n"},
            "drafters/heads.py:2: drafters must not import pipeline",
        ),
        ({"training/data.py": "from hawk.proofs import P\n"}, "training/data.py:1: training must not import proofs"),
        (
            {"training/data.py": "from hawk.cli.app import main\n"},
            "training/data.py:1: training must not import cli",
        ),
        ({"pipeline.py": "from hawk.server import app\n"}, "pipeline.py:1: pipeline must not import server"),
        (
            {"cli/app.py": "from hawk.pipeline import P\n"},
            "cli/app.py:1: cli loads hawk.pipeline at once; import it inside the command",
        ),
        (
            {"__init__.py": "from hawk.pipeline import P\n"},
            "__init__.py:1: hawk/__init__.py loads hawk.pipeline at once",
        ),
        ({"misc.py": ""}, "misc.py: 'misc' has no place in the import directions"),
        ({"models/utils.py": ""}, "models/utils.py: name a module for what it does"),
        ({"nn/layers.py": "x = 1\n" * 451}, "nn/layers.py: 451 lines, 450 at most"),
        (
            {"pipeline.py": "def f():\n    import torchmetrics as w\n"},
            "torchmetrics: imported in pipeline.py, training/data.py; one module is its home",
        ),
        (
            {"pipeline.py": "import transformers\n", "models/hf/target.py": "from transformers import Cache\n"},
            "transformers: imported in models/hf/target.py, pipeline.py; one module is its home",
        ),
        (
            dict.fromkeys(
                ("pipeline.py", "models/llamagen/t5.py"), "def f():\n    from transformers import AutoTokenizer\n"
            ),
            "transformers: imported in models/llamagen/t5.py, pipeline.py; one module is its home",
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


if __name__ == "__main__":
    print(graph_of(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE))

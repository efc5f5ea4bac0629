"""pyproject.toml, constraints.txt and the imports of the source tree agree on the packages that Hawk needs."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import hawk

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# distributions that are imported under another name
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    """Return the normalised distribution names of requirement lines."""
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in requirements if not line.startswith("#")}


def imported() -> dict[str, set[str]]:
    """Return, for every package except the standard library and hawk, the modules of hawk that import it."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src" / "hawk").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                found.setdefault(module.split(".")[0], set()).add(path.name)
    return {name: where for name, where in found.items() if name not in sys.stdlib_module_names | {"hawk"}}


def import_name(distribution: str) -> str:
    return IMPORT_NAMES.get(distribution, distribution.replace("-", "_"))


def test_every_import_is_declared_and_every_core_dependency_is_used():
    core = {import_name(name) for name in names(PROJECT["dependencies"])}
    extras = PROJECT["optional-dependencies"]
    optional = {import_name(name) for extra in extras for name in names(extras[extra])}
    used = imported()
    assert {name: where for name, where in used.items() if name not in core | optional} == {}
    assert core - used.keys() == set()


def test_constraints_pin_what_make_installs():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    loose = [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert loose == [], "one exact public version a line (no local +cpu)"
    extras = PROJECT["optional-dependencies"]
    assert names([*PROJECT["dependencies"], *extras["dev"], *extras["train"]]) <= names(pins)


def test_library_dependencies_are_not_pinned():
    """Hawk must accept a PyTorch that is already installed, such as a CUDA build."""
    lines = [
        *PROJECT["dependencies"],
        *(line for lines in PROJECT["optional-dependencies"].values() for line in lines),
    ]
    assert [line for line in lines if "==" in line or "<" in line] == []


def test_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", hawk.__version__)

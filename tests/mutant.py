"""A mutant: a function of Hawk with one wrong expression, for which every proof that it names must fail."""

import __future__

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from hawk.proofs.losslessness import Check


@dataclass(frozen=True)
class Mutant:
    """A function `owner.name` in which `old` is written as `new`, and the proofs that must each fail for it.

    The mutant is made from the source of the function. If `old` is no longer in that source exactly once, the mutant
    cannot be installed, and its test fails.
    """

    owner: object
    name: str
    old: str
    new: str
    proofs: tuple[Callable[[], list[Check]], ...]

    def install(self, monkeypatch) -> None:
        """Put the mutant in the place of the function."""
        held = inspect.getattr_static(self.owner, self.name)
        wrapper = type(held) if isinstance(held, property | classmethod) else None
        function = inspect.unwrap(held.fget if isinstance(held, property) else getattr(held, "__func__", held))
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.name} no longer holds {self.old!r} exactly once: adapt the mutant"
        body = source[source.index("def ") :]  # without decorators
        code = compile(
            body.replace(self.old, self.new),
            f"<mutant {self.name}>",
            "exec",
            flags=__future__.annotations.compiler_flag,
        )
        made: dict = {}
        exec(code, function.__globals__, made)
        mutated = made[function.__name__]
        monkeypatch.setattr(self.owner, self.name, wrapper(mutated) if wrapper else mutated)


def failed(proof: Callable[[], list[Check]]) -> list[Check]:
    """The checks of a proof that did not pass."""
    return [check for check in proof() if not check.passed]

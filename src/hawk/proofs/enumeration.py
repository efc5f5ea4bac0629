"""The exact law of any program that draws at random: the program runs once for every outcome of its draws.

Nothing is sampled, and a program may make any number of draws, which may depend on earlier ones. So the exact law of a
whole decoder is found, over several steps, as long as the vocabulary and the image are tiny.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

Outcome = TypeVar("Outcome", bound=Hashable)


class Choices:
    """The random choices of one run of a program. `chance` is the probability of all of them together.

    A run repeats the choices `taken` and then takes the first possible one at each draw; `others` are the ways in which
    another run may differ from it.
    """

    def __init__(self, taken: Sequence[int] = ()) -> None:
        self.chance = 1.0
        self.others: list[list[int]] = []
        self._taken = list(taken)
        self._made = 0

    def draw(self, weights: Sequence[float]) -> int:
        """A number i with probability `weights[i] / sum(weights)`."""
        if self._made == len(self._taken):
            first, *others = [i for i, weight in enumerate(weights) if weight > 0]
            self.others += [[*self._taken, other] for other in others]
            self._taken.append(first)
        chosen = self._taken[self._made]
        self._made += 1
        self.chance *= weights[chosen] / sum(weights)
        return chosen

    def happens(self, chance: float) -> bool:
        """True with this chance."""
        return bool(self.draw((1 - chance, chance)))


def law_of(program: Callable[[Choices], Outcome]) -> dict[Outcome, float]:
    """The probability of every outcome of a program all of whose draws are `Choices`."""
    law: dict[Outcome, float] = {}
    waiting: list[list[int]] = [[]]
    while waiting:
        choices = Choices(waiting.pop())
        outcome = program(choices)
        law[outcome] = law.get(outcome, 0.0) + choices.chance
        waiting += choices.others
    return law


def total_variation(law: Mapping[Outcome, float], other: Mapping[Outcome, float]) -> float:
    """Half the sum of the differences of two laws: the largest difference in the probability of any event."""
    return sum(abs(law.get(outcome, 0.0) - other.get(outcome, 0.0)) for outcome in {*law, *other}) / 2


class Chosen(TorchFunctionMode):
    """A context in which the draws of Hawk's decoders with drawn drafts are `Choices`.

    `torch.multinomial` draws tokens by a choice. A uniform number u is only ever compared, as in `u * q(x) < p(x)`: in
    this context u is 1, so that the comparison shows both sides, and it holds with the chance min(1, p(x) / q(x)).
    """

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self._choices = choices
        self._undecided = False  # whether a uniform number was drawn and not compared yet

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.multinomial:
            weights, count = args[0].tolist(), args[1]
            return torch.tensor([self._choices.draw(weights) for _ in range(count)])
        if func is torch.rand and args == ((),):
            assert not self._undecided, "a uniform number was drawn before the last one was compared"
            self._undecided = True
            return torch.ones((), dtype=torch.float64)
        if self._undecided and func in (torch.Tensor.lt, torch.Tensor.gt):
            self._undecided = False
            scaled, bound = (float(side) for side in (args if func is torch.Tensor.lt else args[::-1]))
            return torch.tensor(self._choices.happens(min(1.0, bound / scaled)))
        return func(*args, **kwargs)

"""Faults of speculative decoders, each in a toy decoder of a few lines, and how far each one moves the law of an image.

    python scripts/lossless_faults.py    # prints the table of docs/lossless.md

An image is a short line of tokens. Without its fault every toy is lossless. All draws are enumerated (nothing is
sampled), so the figures are exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hawk.proofs.enumeration import Choices, law_of, total_variation

Path = tuple[int, ...]
Law = Sequence[float]

NEXT: dict[int | None, Law] = {None: (0.5, 0.3, 0.2), 0: (0.5, 0.4, 0.1), 1: (0.1, 0.6, 0.3), 2: (0.4, 0.1, 0.5)}
"""The target's distribution after each token, and of the first token (None)."""
NEXT_OF_TWO: dict[int | None, Law] = {None: (0.5, 0.5), 0: (0.7, 0.3), 1: (0.2, 0.8)}
"""The same for the toy with noise rows, whose vocabulary has two tokens."""
FLAT: Law = (1 / 3, 1 / 3, 1 / 3)
"""The distribution of a draft at a position that was never scored."""
DRAFTERS: tuple[Law, Law] = ((0.2, 0.3, 0.5), (0.4, 0.5, 0.1))
"""The q of each of the two drafters of the tree."""
WINDOW, LENGTH = 2, 4
"""Drafts of a step, and tokens of an image, of the Jacobi toy."""
HAS_DRAFTS = (True, True, False, False)
"""Whether the step that draws each position of the toy with noise rows has drafts."""

OLD_Q = "the old q is kept for an accepted draft that is not committed"
LONGEST = "the longest accepted path is committed, not that of the first accepted sibling"
REMAINDER = "a sibling is drawn from what is left of q, but p only loses the rejected token"
UNTRIED = "deeper drafts are redrawn from the residual of a sibling that was not tried"
STALE_NOISE = "a step without drafts uses the last noise row again"
PAD = "a uniform pad is the distribution after a kept window"


# --- the rules that all toys share


def accepts(choices: Choices, token: int, p: Law, q: Law) -> bool:
    """Whether a token that was drawn from q is accepted: with the chance min(1, p / q)."""
    return choices.happens(min(1.0, p[token] / q[token]))


def normalised(weights: Law) -> Law:
    """The weights divided by their sum."""
    total = sum(weights)
    return [weight / total for weight in weights]


def unclaimed(p: Law, q: Law) -> Law:
    """max(p - q, 0): the mass of p that a draft from q does not cover."""
    return [max(mass - covered, 0.0) for mass, covered in zip(p, q, strict=True)]


def without(law: Law, token: int) -> Law:
    """The law after a token is taken out."""
    return normalised([0.0 if i == token else mass for i, mass in enumerate(law)])


def p_after(path: Path, table: dict[int | None, Law] = NEXT) -> Law:
    """The target's distribution of the token after a path."""
    return table[path[-1] if path else None]


def plain(choices: Choices, path: Path, length: int, table: dict[int | None, Law] = NEXT) -> Path:
    """The path, continued by plain AR up to a length."""
    while len(path) < length:
        path = (*path, choices.draw(p_after(path, table)))
    return path


# --- a window of drafts that live for several steps


def jacobi(choices: Choices, fault: str) -> Path:
    """A step verifies a window of drafts, and couples the drafts after the first rejected one to what p says now."""
    image: Path = ()
    drafts: list[tuple[int, Law]] = []  # each with the q that it was drawn from
    while len(image) < LENGTH:
        room = min(WINDOW, LENGTH - len(image))
        drafts += [(choices.draw(FLAT), FLAT) for _ in range(room - len(drafts))]
        tokens = tuple(token for token, _ in drafts)
        told = [p_after((*image, *tokens[:depth])) for depth in range(room + 1)]
        kept = 0
        while kept < room and accepts(choices, tokens[kept], told[kept], drafts[kept][1]):
            kept += 1
        if kept == room:
            last = choices.draw(FLAT if fault == PAD else told[room])
        elif kept == 0:
            last = second_candidate(choices, *drafts[0], told[0], fault)
        else:
            last = choices.draw(normalised(unclaimed(told[kept], drafts[kept][1])))
        image = (*image, *tokens[:kept], last)
        drafts = [coupled(choices, *drafts[depth], told[depth], fault) for depth in range(kept + 1, room)]
    return image[:LENGTH]


def second_candidate(choices: Choices, rejected: int, q: Law, p: Law, fault: str) -> int:
    """The token at the first position of a window whose draft was rejected: a sibling of the draft is tried there."""
    rest_of_p = without(p, rejected) if fault == REMAINDER else normalised(unclaimed(p, q))
    rest_of_q = without(q, rejected)
    sibling = choices.draw(rest_of_q)
    if accepts(choices, sibling, rest_of_p, rest_of_q):
        return sibling
    return choices.draw(normalised(unclaimed(rest_of_p, rest_of_q)))


def coupled(choices: Choices, token: int, q: Law, p: Law, fault: str) -> tuple[int, Law]:
    """A draft from q, made a draft from p: it stays if p accepts it, and else it is redrawn. With its new q."""
    if accepts(choices, token, p, q):
        return token, q if fault == OLD_Q else p
    left = unclaimed(p, q)
    if fault == UNTRIED:
        further = unclaimed(normalised(left), without(q, token))
        left = further if sum(further) > 0 else left
    return choices.draw(left), p


# --- a tree of two drafters, each with a path of two drafts


def tree(choices: Choices, fault: str) -> Path:
    """Siblings are tried in order; after the first accepted one its child is tried."""
    paths = [(choices.draw(q), choices.draw(q)) for q in DRAFTERS]
    p, accepted = p_after(()), []
    for (first, second), q in zip(paths, DRAFTERS, strict=True):
        if not accepts(choices, first, p, q):
            p = normalised(unclaimed(p, q))
            continue
        after = p_after((first,))
        if accepts(choices, second, after, q):
            accepted.append((2, (first, second)))
        else:
            accepted.append((1, (first, choices.draw(unclaimed(after, q)))))
        if fault != LONGEST:
            break
    path = max(accepted, key=lambda found: found[0])[1] if accepted else (choices.draw(p),)
    return plain(choices, path, 3)


# --- shared noise


@dataclass
class NoiseRow:
    """The noise of one position. With two tokens, argmax(log p + g) is token 1 where a uniform number is below p(1).

    The number lies between `low` and `high`; a comparison narrows this interval, and so the row can be used twice.
    """

    low: float = 0.0
    high: float = 1.0

    def token(self, choices: Choices, p: Law) -> int:
        """The token that this row selects under p."""
        bound = min(max(p[1], self.low), self.high)
        if choices.happens((bound - self.low) / (self.high - self.low)):
            self.high = bound
            return 1
        self.low = bound
        return 0


@dataclass
class Noise:
    """The noise rows of an image, of which the decoder holds one at a time."""

    row: NoiseRow = field(default_factory=NoiseRow)

    def refresh(self) -> None:
        """Go on to the row of the next position."""
        self.row = NoiseRow()


def shared_noise(choices: Choices, fault: str) -> Path:
    """Every position takes the token that its noise row selects, whatever was drafted there."""
    image, noise = (), Noise()
    for drafted in HAS_DRAFTS:
        if drafted or fault != STALE_NOISE:
            noise.refresh()
        image = (*image, noise.row.token(choices, p_after(image, NEXT_OF_TWO)))
    return image


# --- the table


@dataclass(frozen=True)
class Toy:
    """A toy decoder in words and as a function, and the table of its target."""

    words: str
    decoder: Callable[[Choices, str], Path]
    table: dict[int | None, Law]

    def drift(self, fault: str = "") -> float:
        """Total variation of the law of the drawn images from plain AR's."""
        drawn = law_of(lambda choices: self.decoder(choices, fault))
        length = len(next(iter(drawn)))
        return total_variation(drawn, law_of(lambda choices: plain(choices, (), length, self.table)))


WINDOWS = Toy(f"{LENGTH} tokens, vocabulary 3, window of {WINDOW}", jacobi, NEXT)
TREES = Toy("3 tokens, vocabulary 3, 2 paths of 2 drafts", tree, NEXT)
NOISE = Toy(
    f"{len(HAS_DRAFTS)} tokens, vocabulary 2, {HAS_DRAFTS.count(False)} steps without drafts", shared_noise, NEXT_OF_TWO
)
TOYS = {OLD_Q: WINDOWS, LONGEST: TREES, REMAINDER: WINDOWS, UNTRIED: WINDOWS, STALE_NOISE: NOISE, PAD: WINDOWS}
"""The toy of each fault."""


def table() -> str:
    """The drift of every fault, as a table in Markdown."""
    rows = [f"| {fault} | {toy.words} | {toy.drift(fault):.4f} |" for fault, toy in TOYS.items()]
    return "\n".join(["| fault | toy | total variation |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(table())

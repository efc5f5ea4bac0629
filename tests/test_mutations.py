"""Break the decoder, one line at a time: the proofs of losslessness must go red each time.

A mutant is the source of one function with one piece replaced; a mutant whose piece is no longer there fails too.
"""

import __future__

import inspect
import textwrap

import pytest
import torch

from hawk.decoding import cache, recording, tree, trees, verify, window
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.trees import NoDrafter
from hawk.drafters import feature, jacobi, pool
from hawk.drafters.jacobi import JacobiTree
from hawk.proofs.losslessness import Check, check_all, check_law, check_tree_law, law_cases
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target
from hawk.proofs.tree_law import tree_cases


def mutate(monkeypatch, owner, name, old, new):
    """Replace `owner.name` by the same function with `old` written as `new`."""
    function = inspect.unwrap(getattr(owner, name))
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} no longer has one {old!r}: write the mutant anew"
    code = compile(source.replace(old, new), f"<mutant {name}>", "exec", flags=__future__.annotations.compiler_flag)
    made = {}
    exec(code, function.__globals__, made)
    monkeypatch.setattr(owner, name, made[name])


def seed_exact():
    """The coupled proofs, on trees of any shape; three images at different frontiers, guided."""
    target = tiny_target(0, grid=Grid(3, 4), dim=16)
    drafters = {"random": (tiny_drafters(target)["random"][0], "coupled")}
    return check_all(target, tiny_prompt(target, 3), target.grid, drafters, [SamplingParams(cfg_scale=2.0)], [1, 2, 3])


def windows():
    """Window decoding by a host that reads along and by one that is late: drafts kept, noise of several blocks."""
    target = tiny_target(0, grid=Grid(3, 12), dim=16)
    prompt, params, seeds = tiny_prompt(target, 3), SamplingParams(temperature=0.2, cfg_scale=2.0), [1, 2, 3]
    plain = generate(target, Request(prompt, target.grid, params, seeds), NoDrafter()).tokens
    checks = []
    for chain in (tree.Window(3), tree.Window(3, above=False)):
        hosted = generate(target, Request(prompt, target.grid, params, seeds), chain).tokens
        with torch.inference_mode():
            request = Request(prompt, target.grid, params, seeds)
            fixed = recording.on_device(window.first_window(target, request, chain))
            recording.replay(fixed, lambda state=fixed: window.advance(target, state, 3), None)
        for name, drawn in (("hosted", hosted), ("replayed", fixed.tokens[:, : target.grid.size])):
            checks.append(Check(name, "hawk", "coupled", "", "", torch.equal(drawn, plain)))
    return checks


def joint():
    """The joint distribution of the paper's method, and of arbitrary draws."""
    target = tiny_target(3, vocab=3, grid=Grid(3, 2), dim=16)
    drafters = {
        name: pair for name, pair in tiny_drafters(target).items() if name in ("random-q", "hawk-paper", "eagle")
    }
    prompt, images = tiny_prompt(target, 250, alike=True), list(range(250))
    params = [SamplingParams(temperature=0.8, top_k=2)]
    return check_all(target, prompt, target.grid, drafters, params, images, rounds=1)


def stale_joint():
    """The joint distribution of drafts that live for several steps; a single row, so that each depends on the last."""
    target = tiny_target(1, vocab=3, grid=Grid(1, 5), dim=16)
    drafters = {"sjd-pac": (JacobiTree(3, window=4, branching=2, depth=1), "residual")}
    prompt, images = tiny_prompt(target, 500, alike=True), list(range(500))
    return check_all(target, prompt, target.grid, drafters, [SamplingParams(temperature=0.7)], images, rounds=6)


def law():
    """The exact law of the residual verifier, for two draws below a node."""
    p, cases = law_cases()
    chosen = ("three draws, each from its own q", "three draws from one q, equal ones tried again")
    return [check_law(name, p, cases[name][:2]) for name in chosen]


def tree_law():
    """The exact law of traversal over whole trees, several draws below a node."""
    p, cases = tree_cases()
    return [check_tree_law(name, p, cases[name]) for name in ("a chain of three", "two draws from one q, then one")]


def half_precision():
    """What is kept in bfloat16 stands where plain AR has its keys: node d at depth d."""
    target, kept = tiny_target(0, torch.bfloat16), []
    drafter, keep = tiny_drafters(target)["random"][0], cache.KVCache.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.KVCache, "keep", lambda self, paths: kept.extend(paths) or keep(self, paths))
        generate(target, Request(tiny_prompt(target, 9), target.grid, SamplingParams(), list(range(9))), drafter)
    straight = all(path == list(range(len(path))) for path in kept)
    return [Check("kept nodes", "random", "coupled", "bfloat16", f"{len(kept)} paths", straight)]


@pytest.mark.parametrize("proof", [seed_exact, windows, joint, stale_joint, law, tree_law, half_precision])
def test_proofs_are_green_as_long_as_nothing_is_broken(proof):
    assert [check for check in proof() if not check.passed] == []


KEEP_IF = "uniform(generator) * q[token] < claim(p, token)"

MUTANTS = {
    # the accept rule
    "accepts always": (verify, "walk", KEEP_IF, "True", (law, joint)),
    "never looks at q": (verify, "walk", KEEP_IF, "uniform(generator) < p[token]", (law,)),
    "accepts what is likelier than not": (verify, "walk", KEEP_IF, "q[token] < p[token]", (law,)),
    "accepts a token for its own sake": (trees, "coupled", "chosen.gather(1, tree.parents)", "chosen", (seed_exact,)),
    "forgets a wrong parent": (trees, "coupled", "& ~right[:, None, :]", "& ~right[:, :, None]", (seed_exact,)),
    # the residual update
    "no subtraction": (verify, "unclaimed", "(p - q)", "p", (law, joint)),
    "no normalisation": (verify, "residual_distribution", "left / total", "left", (law,)),
    "tries the next draw against p": (verify, "walk", "p = left", "pass", (law,)),
    "one q for all sources": (pool.CartesianPool, "_grow", "len(rows) + i)", "len(rows))", (joint,)),
    # traversal
    "a path's tokens are judged one by one": (
        verify,
        "_stops_below",
        "weight * float(p[token])",
        "float(p[token])",
        (tree_law,),
    ),
    "the rest is p's, not that of its share": (
        verify,
        "_stops_below",
        "unclaimed(weight * p, q)",
        "unclaimed(p, q)",
        (tree_law,),
    ),
    "a node weighs the same after a rejection": (
        verify,
        "_stops_below",
        "weight, p = rest / (rest + (1 - weight))",
        "weight, p = weight",
        (tree_law,),
    ),
    "eagle's draft with another node's q": (
        feature.FeatureTree,
        "_grow",
        "else len(rows))",
        "else 0)",
        (joint,),
    ),
    "a kept draft takes its old distribution as q": (
        jacobi.JacobiTree,
        "observe",
        "fresh.q.append(p)",
        "fresh.q.append(live.q[offset])",
        (stale_joint,),
    ),
    "a token drawn twice is tried once": (
        tree.TreeBuilder,
        "add",
        "if q is not None:",
        "if q is not None and all(t.node != node for t in self.trials.get(parent, [])):",
        (law,),
    ),
    # what half precision commits
    "commits whatever is right, wherever its key is": (
        trees,
        "coupled_at",
        "if not half:",
        "if True:",
        (half_precision,),
    ),
    "calls every node aligned": (verify.Verdict, "aligned", "if node != depth", "if False", (half_precision,)),
    # the noise indexing
    "noise of the node's own position": (trees, "step", "positions + 1)", "positions)", (seed_exact,)),
    "noise one position late": (trees, "coupled_at", "rows(positions)", "rows(positions + 1)", (seed_exact,)),
    "noise of the root for all": (
        trees,
        "coupled_at",
        "rows(positions)",
        "rows(positions[:, :1].expand_as(positions))",
        (seed_exact,),
    ),
    # the cache selection
    "keeps the first nodes, not the path": (
        cache.KVCache,
        "keep",
        "torch.tensor(path, device=self.keys.device)",
        "torch.arange(len(path))",
        (seed_exact,),
    ),
    "forgets the last node of a path": (
        cache.KVCache,
        "keep",
        "self.lengths[row] = length + len(path)",
        "self.lengths[row] = length + len(path) - (len(path) > 1)",
        (seed_exact,),
    ),
    "keeps the conditional rows' path for the first rows only": (
        trees,
        "keep",
        "paths * (2 if state.params.guided else 1)",
        "paths + [[0] if path else [] for path in paths]",
        (seed_exact,),
    ),
    # the window
    "a window's noise of the node's own position": (
        window,
        "advance",
        "at(positions + 1)",
        "at(positions)",
        (windows,),
    ),
    "keeps right drafts behind a wrong one": (window, "advance", ".cumprod(1)", "", (windows,)),
    "keeps one draft too many": (window, "advance", "accepted + 1, grid", "accepted + 2, grid", (windows,)),
    "leaves a wrong draft where it is": (
        window,
        "advance",
        "scatter_(1, positions + 1, chosen)",
        "scatter_(1, positions + 1, torch.cat((drafted[:, 1:], chosen[:, -1:]), 1))",
        (windows,),
    ),
    "a fixed cache writes one slot late": (
        cache.FixedCache,
        "append",
        "torch.arange(k.shape[2], device=k.device)",
        "torch.arange(1, k.shape[2] + 1, device=k.device)",
        (windows,),
    ),
    "a fixed cache forgets one": (
        cache.FixedCache,
        "advance",
        "+= counts",
        "+= counts - (counts > 1).long()",
        (windows,),
    ),
    "a host forgets one": (cache.KVCache, "advance", "range(count)", "range(count - (count > 1))", (windows,)),
    "a late host lets noise go": (recording, "replay", "hold(state, known, LAG)", "hold(state, [0, 0, 0])", (windows,)),
    "nodes see what comes after them": (window, "first_window", ".tril()", "", (windows,)),
    # what a node sees, and where it stands
    "nodes see their siblings": (
        trees,
        "step",
        "positions, ancestors)",
        "positions, torch.ones_like(ancestors).tril())",
        (seed_exact,),
    ),
    "positions by node, not by depth": (
        trees,
        "step",
        "clamp(min=0) + depths",
        "clamp(min=0) + torch.arange(tree.nodes)",
        (seed_exact,),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_proofs_go_red(mutant, monkeypatch):
    owner, name, old, new, proofs = MUTANTS[mutant]
    mutate(monkeypatch, owner, name, old, new)
    for proof in proofs:
        assert [check for check in proof() if not check.passed], f"{proof.__name__} did not notice: {mutant}"

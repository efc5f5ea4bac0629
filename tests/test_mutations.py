"""Mutants of steps, verifiers and drafters: a proof of losslessness must fail for every one of them."""

import pkgutil

import pytest
import torch

import hawk.decoding
import test_mutations_of_parts
from hawk.decoding import cache, lane, recorded_lane, recording, tree, trees, verify, window
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.decoding.trees import NoDrafter
from hawk.drafters import feature, jacobi, pool
from hawk.drafters.jacobi import JacobiTree
from hawk.engine import DrawingEngine
from hawk.errors import HawkError
from hawk.models.llamagen.target import LlamaGen
from hawk.proofs.lanes import PROMPTS, SETTINGS, Album, Scheduled, check_schedules
from hawk.proofs.losslessness import Check, check_all, check_law, check_tree_law, law_cases
from hawk.proofs.tiny import tiny_drafters, tiny_prompt, tiny_target
from hawk.proofs.tree_law import tree_cases
from mutant import Mutant, failed


def seed_exact():
    """Coupled verification of random trees is seed-exact; three guided images with different frontiers."""
    target = tiny_target(0, grid=Grid(3, 4), dim=16)
    drafters = {"random": (tiny_drafters(target)["random"][0], "coupled")}
    return check_all(target, tiny_prompt(target, 3), target.grid, drafters, [SamplingParams(cfg_scale=2.0)], [1, 2, 3])


def windows():
    """Window decoding is seed-exact, both where the host reads every step at once and where it reads steps late.

    The images accept drafts and need several blocks of noise.
    """
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


def lanes():
    """Images that join and leave between steps have the tokens that they have alone."""
    return check_schedules(2, 2)


def replayed_lanes():
    """The same of a queue for two places of replayed steps, whose images differ in guidance and temperature."""
    album, checks = Album.tiny(), []
    images = [Scheduled(number, number % PROMPTS, (1, len(SETTINGS) - 1)[number % 2], number) for number in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "captured", lambda call, device, pool: call)
        engine = DrawingEngine(album.target, 2, recording.Recordings("graph"))
        for image in images:
            engine.submit([image], album.request(image), tree.Window(5))
        while engine.busy:
            for ended in engine.step():
                same = ended.generation.tokens[0].tolist() == album.plain(ended.key)
                checks.append(Check("replayed", "hawk", "coupled", "", "", same))
    return checks


def recordings():
    """Images with other seeds and settings, drawn in turns from one set of recordings, are those of plain AR."""
    target = tiny_target(0, grid=Grid(2, 4), dim=16)
    kept, checks = recording.Recordings("graph"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "captured", lambda call, device, pool: call)
        for seed, temperature in ((1, 0.2), (2, 0.2), (1, 2.0), (1, 0.0), (2, 0.2)):
            params = SamplingParams(temperature=temperature, cfg_scale=2.0)
            request = Request(tiny_prompt(target, 1, seed), target.grid, params, [seed])
            plain = generate(target, request, NoDrafter()).tokens
            drawn = generate(target, request, tree.Window(3), recordings=kept).tokens
            checks.append(Check("recorded", "hawk", "coupled", "", "", torch.equal(drawn, plain)))
    return checks


def finite():
    """Logits that are not finite at a committed node are refused, in windows and in trees."""
    target, forward = tiny_target(0, grid=Grid(2, 4), dim=16), LlamaGen.forward_nodes

    def overflown(self, tokens, positions, *rest):
        return forward(self, tokens, positions, *rest).masked_fill((positions == 4)[..., None], torch.nan)

    drafters = tiny_drafters(target)
    checks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaGen, "forward_nodes", overflown)
        for name, verifier in (("hawk, untrained", "coupled"), ("random", "coupled"), ("random-q", "residual")):
            request = Request(tiny_prompt(target, 2), target.grid, SamplingParams(cfg_scale=2.0), [1, 2], verifier)
            try:
                generate(target, request, drafters[name][0])
                refused = False
            except HawkError:
                refused = True
            checks.append(Check("finite", name, verifier, "", "", refused))
    return checks


def joint(name):
    """Residual verification keeps the joint distribution of plain AR."""
    target = tiny_target(3, vocab=3, grid=Grid(3, 2), dim=16)
    prompt, images = tiny_prompt(target, 250, alike=True), list(range(250))
    params = [SamplingParams(temperature=0.8, top_k=2)]
    drafter = {name: tiny_drafters(target)[name]}
    return check_all(target, prompt, target.grid, drafter, params, images, rounds=1)


def joint_of_random_trees():
    """Drafts that are drawn from random q."""
    return joint("random-q")


def joint_of_the_paper():
    """The trees of the paper, whose sources have a q each."""
    return joint("hawk-paper")


def joint_of_eagle():
    """Drafts that are drawn path by path."""
    return joint("eagle")


def stale_joint():
    """The joint distribution is kept with drafts that live for several steps; the grid is one row of cells."""
    target = tiny_target(1, vocab=3, grid=Grid(1, 5), dim=16)
    drafters = {"sjd-pac": (JacobiTree(3, window=4, branching=2, depth=1), "residual")}
    prompt, images = tiny_prompt(target, 400, alike=True), list(range(400))
    return check_all(target, prompt, target.grid, drafters, [SamplingParams(temperature=0.7)], images, rounds=4)


def law():
    """The residual verifier has the exact law p, for two draws below a node."""
    p, cases = law_cases()
    chosen = ("three draws, each from its own q", "three draws from one q, a repeated token tried again")
    return [check_law(name, p, cases[name][:2]) for name in chosen]


def tree_law():
    """Traversal has the exact law of p on whole trees, with one and with two draws below the root."""
    p, cases = tree_cases()
    return [check_tree_law(name, p, cases[name]) for name in ("a chain of three", "two draws from one q, then one")]


def half_precision():
    """In bfloat16 every accepted node at depth d is node d, so that its keys are computed where plain AR has them."""
    target, kept = tiny_target(0, torch.bfloat16), []
    drafter, keep = tiny_drafters(target)["random"][0], cache.KVCache.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.KVCache, "keep", lambda self, paths: kept.extend(paths) or keep(self, paths))
        generate(target, Request(tiny_prompt(target, 9), target.grid, SamplingParams(), list(range(9))), drafter)
    straight = all(path == list(range(len(path))) for path in kept)
    return [Check("kept nodes", "random", "coupled", "bfloat16", f"{len(kept)} paths", straight)]


LONG = (joint_of_the_paper, joint_of_eagle, stale_joint)
"""Proofs that take seconds."""


@pytest.mark.parametrize(
    "proof",
    [
        seed_exact,
        windows,
        recordings,
        finite,
        joint_of_random_trees,
        *(pytest.param(proof, marks=pytest.mark.proofs) for proof in LONG),
        law,
        tree_law,
        half_precision,
    ],
)
def test_proofs_pass_without_a_mutant(proof):
    assert failed(proof) == []


KEEP_IF = "uniform(generator) * q[token] < claim(p, token)"

MUTANTS = {
    # the rule of acceptance
    "accepts every draft": Mutant(verify, "walk", KEEP_IF, "True", (law, joint_of_random_trees)),
    "ignores q": Mutant(verify, "walk", KEEP_IF, "uniform(generator) < p[token]", (law,)),
    "accepts a draft wherever p is larger than q": Mutant(verify, "walk", KEEP_IF, "q[token] < p[token]", (law,)),
    "compares a draft with the token chosen at its own node, not at its parent": Mutant(
        trees, "coupled", "chosen.gather(1, tree.parents)", "chosen", (seed_exact,)
    ),
    "accepts drafts below a rejected parent": Mutant(
        trees, "coupled", "& ~right[:, None, :]", "& ~right[:, :, None]", (seed_exact,)
    ),
    # the residual update
    "does not subtract q from p after a rejection": Mutant(
        verify, "unclaimed", "(p - q)", "p", (law, joint_of_the_paper)
    ),
    "does not normalise the residual": Mutant(verify, "residual_distribution", "left / total", "left", (law,)),
    "tries the next draw against p, not the residual": Mutant(verify, "walk", "p = left", "pass", (law,)),
    "gives all sources the same q": Mutant(
        pool.CartesianPool, "_grow", "len(rows) + i)", "len(rows))", (joint_of_the_paper,)
    ),
    # traversal
    "weighs a path by its last token alone": Mutant(
        verify, "_stops_below", "weight * float(p[token])", "float(p[token])", (tree_law,)
    ),
    "subtracts q from all of p, not from the path's share of it": Mutant(
        verify, "_stops_below", "unclaimed(weight * p, q)", "unclaimed(p, q)", (tree_law,)
    ),
    "leaves a node's weight as it was after a rejection": Mutant(
        verify, "_stops_below", "weight, p = rest / (rest + (1 - weight))", "weight, p = weight", (tree_law,)
    ),
    "gives a draft of eagle the q of another node": Mutant(
        feature.FeatureTree, "_grow", "else len(rows))", "else 0)", (joint_of_eagle,)
    ),
    "takes the old q for a draft that lives on": Mutant(
        jacobi.JacobiTree, "observe", "fresh.q.append(p)", "fresh.q.append(live.q[offset])", (stale_joint,)
    ),
    "tries a token that was drawn twice only once": Mutant(
        tree.TreeBuilder,
        "add",
        "if q is not None:",
        "if q is not None and all(t.node != node for t in self.trials.get(parent, [])):",
        (law,),
    ),
    # what is committed in half precision
    "commits accepted nodes whose keys are not where plain AR has them": Mutant(
        trees, "coupled_at", "if not half:", "if True:", (half_precision,)
    ),
    "calls every node aligned": Mutant(verify.Verdict, "aligned", "if node != depth", "if False", (half_precision,)),
    # which noise
    "takes the noise of a node's own position, not of the next": Mutant(
        trees, "step", "positions + 1)", "positions)", (seed_exact,)
    ),
    "takes the noise one position late": Mutant(
        trees, "coupled_at", "rows(positions)", "rows(positions + 1)", (seed_exact,)
    ),
    "takes the noise of the root for all nodes": Mutant(
        trees, "coupled_at", "rows(positions)", "rows(positions[:, :1].expand_as(positions))", (seed_exact,)
    ),
    # what stays in the cache
    "keeps the first nodes in the cache, not the accepted path": Mutant(
        cache.KVCache, "keep", "torch.tensor(path, device=self.keys.device)", "torch.arange(len(path))", (seed_exact,)
    ),
    "leaves the last node of a path out of the cache": Mutant(
        cache.KVCache,
        "keep",
        "self.lengths[row] = length + len(path)",
        "self.lengths[row] = length + len(path) - (len(path) > 1)",
        (seed_exact,),
    ),
    "keeps only the root for the unconditional rows": Mutant(
        trees,
        "keep",
        "[paths[image] for image in state.params.image.tolist()]",
        "paths + [[0] if path else [] for path in paths]",
        (seed_exact,),
    ),
    # the window
    "takes the noise of a position of the window, not of the next": Mutant(
        window, "advance", "at(positions + 1)", "at(positions)", (windows,)
    ),
    "accepts right drafts behind a wrong one": Mutant(window, "advance", ".cumprod(1)", "", (windows,)),
    "commits one draft too many": Mutant(window, "advance", "accepted + 1, grid", "accepted + 2, grid", (windows,)),
    "leaves a wrong draft in its place": Mutant(
        window,
        "advance",
        "scatter_(1, positions + 1, chosen)",
        "scatter_(1, positions + 1, torch.cat((drafted[:, 1:], chosen[:, -1:]), 1))",
        (windows,),
    ),
    "writes one slot late into a fixed cache": Mutant(
        cache.FixedCache,
        "append",
        "torch.arange(k.shape[2], device=k.device)",
        "torch.arange(1, k.shape[2] + 1, device=k.device)",
        (windows,),
    ),
    "counts one token too few in a fixed cache": Mutant(
        cache.FixedCache, "advance", "+= counts", "+= counts - (counts > 1).long()", (windows,)
    ),
    "counts one token too few in a growing cache": Mutant(
        cache.KVCache, "advance", "range(count)", "range(count - (count > 1))", (windows,)
    ),
    "frees noise that a late host still needs": Mutant(
        recording, "replay", "hold(state, committed, LAG)", "hold(state, [0, 0, 0])", (windows,)
    ),
    # recordings
    "replays a recording with the noise of its last image": Mutant(
        window.WindowState, "load", "self.noise.restart(state.noise.seeds)", "pass", (recordings,)
    ),
    "replays a recording with the prompt of its last image": Mutant(
        cache.FixedCache, "load", "mine[:, :, :, :filled] = others[:, :, :, :filled]", "pass", (recordings,)
    ),
    "takes the recording of other sampling parameters": Mutant(
        window.WindowState, "tensors", ", *self.params.tensors.values()", "", (recordings,)
    ),
    "takes the recording of other formulas": Mutant(
        recording.Recordings, "_lent", "state.params.formulas, ", "", (recordings,)
    ),
    # lanes
    "leaves the noise of an image that moves": Mutant(
        lane.Lane, "leave", "store.noise.take(place, store.noise, len(self.seats))", "pass", (lanes,)
    ),
    "leaves the cache of a row that moves": Mutant(
        lane.Lane, "leave", "copy_row(store, last, store, hole, self._lengths[last])", "pass", (lanes,)
    ),
    "copies one entry too few": Mutant(
        lane,
        "copy_row",
        "mine[:, to, :, :length] = others[:, row, :, :length]",
        "mine[:, to, :, 1:length] = others[:, row, :, 1:length]",
        (lanes,),
    ),
    "gives every image the first one's parameters": Mutant(
        lane.Lane, "state", "[seat.params for seat in self.seats]", "[self.seats[0].params] * images", (lanes,)
    ),
    # lanes whose steps are replayed
    "leaves the noise of the image that was at a place": Mutant(
        recorded_lane, "copy_place", "state.noise.replace(to, source.noise.seeds[place])", "pass", (replayed_lanes,)
    ),
    "leaves the parameters of the image that was at a place": Mutant(
        recorded_lane,
        "copy_place",
        "state.params.tensors[name][to] = source.params.tensors[name][place]",
        "pass",
        (replayed_lanes,),
    ),
    "leaves the length of the image that was at a place": Mutant(
        recorded_lane, "copy_place", "state.cache.ends[new] = ends[row]", "pass", (replayed_lanes,)
    ),
    "hears of an image what the one before it at its place had committed": Mutant(
        recorded_lane.RecordedLane,
        "_hear",
        "served = self._served.popleft()",
        "served = (self._served.popleft(), list(self._guests))[1]",
        (replayed_lanes,),
    ),
    # logits that are not finite
    "does not look at the logits of a window": Mutant(
        window, "advance", "state.broken |= (scores.broken & (offsets < count[:, None])).any(1)", "pass", (finite,)
    ),
    "does not look at the logits of a tree": Mutant(
        trees, "step", "refuse_broken(state, scores, verdicts)", "pass", (finite,)
    ),
    "lets nodes attend to the nodes after them": Mutant(window, "first_window", ".tril()", "", (windows,)),
    # what a node attends to, and its position
    "lets nodes attend to their siblings": Mutant(
        trees, "step", "positions, ancestors)", "positions, torch.ones_like(ancestors).tril())", (seed_exact,)
    ),
    "places nodes by their number, not by their depth": Mutant(
        trees, "step", "clamp(min=0) + depths", "clamp(min=0) + torch.arange(tree.nodes)", (seed_exact,)
    ),
}


FAST = (
    "accepts every draft",
    "ignores q",
    "accepts drafts below a rejected parent",
    "does not normalise the residual",
    "weighs a path by its last token alone",
    "tries a token that was drawn twice only once",
    "calls every node aligned",
    "takes the noise of a node's own position, not of the next",
    "keeps the first nodes in the cache, not the accepted path",
    "takes the noise of a position of the window, not of the next",
    "counts one token too few in a fixed cache",
    "replays a recording with the noise of its last image",
    "takes the recording of other sampling parameters",
    "takes the recording of other formulas",
    "leaves the noise of an image that moves",
    "leaves the length of the image that was at a place",
    "does not look at the logits of a window",
    "does not look at the logits of a tree",
    "places nodes by their number, not by their depth",
)
"""The mutants of the fast tests: at least one of every module and of every proof that takes less than a second."""


def module_of(mutant: Mutant) -> str:
    """The name of the module whose code the mutant changes."""
    return getattr(mutant.owner, "__module__", None) or mutant.owner.__name__


@pytest.mark.parametrize("names", [FAST, tuple(MUTANTS)], ids=["fast", "all"])
def test_the_mutants_cover_every_module_of_decoding(names):
    """The mutants of the parts, all of which are fast, with the mutants here."""
    decoding = {f"hawk.decoding.{module.name}" for module in pkgutil.iter_modules(hawk.decoding.__path__)}
    mutants = [*(MUTANTS[name] for name in names), *test_mutations_of_parts.MUTANTS.values()]
    assert decoding - {module_of(mutant) for mutant in mutants} == set()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.proofs) for name in MUTANTS]
)
def test_proofs_fail_for_a_mutant(name, monkeypatch):
    mutant = MUTANTS[name]
    mutant.install(monkeypatch)
    for proof in mutant.proofs:
        assert failed(proof), f"{proof.__name__} passed in spite of: {name}"

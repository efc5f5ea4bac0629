"""Training of drafters: heads, spatial and feature drafters on on-policy grids; the pool on recorded decoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fixtures.tiny_training import GRID, prompts, tiny_target
from hawk.decoding.generate import generate
from hawk.decoding.noise import gumbel_rows
from hawk.decoding.recording import Recordings
from hawk.decoding.request import Request
from hawk.decoding.sampling import SamplingParams
from hawk.drafters.feature import FeatureDrafter, FeatureTree
from hawk.drafters.heads import DraftHeads, HeadsConfig
from hawk.drafters.left import LeftFactor
from hawk.drafters.methods import draws_within, source_named
from hawk.drafters.parts import DraftParts
from hawk.drafters.pool import FusedPool
from hawk.drafters.settings import FusedSettings, TreeLimits
from hawk.drafters.spatial import SpatialConfig, SpatialDrafter
from hawk.errors import HawkError
from hawk.models.llamagen.target import CaptionPrompt, LlamaGen
from hawk.nn.layers import additive_mask
from hawk.training.drafters.feature import FeatureLoss, feature_shape, train_feature
from hawk.training.drafters.grids import Drawing, OnPolicy, draw_on_policy
from hawk.training.drafters.heads import HeadsLoss, head_pairs, train_heads
from hawk.training.drafters.losses import coupled_nats
from hawk.training.drafters.pool import (
    PoolData,
    draft_quality,
    fit_pool,
    fit_weights,
    mass_kept,
    measure_acceptance,
    record_drafts,
    weigh_left,
)
from hawk.training.drafters.recipe import KindRecipe
from hawk.training.drafters.run import FrozenModel, Plan, train_drafter
from hawk.training.drafters.spatial import SpatialLoss, train_spatial, window_noise
from hawk.training.drafters.teacher import forced_hidden, teacher_log_p
from hawk.training.loop import FitConfig
from hawk.training.texts import PromptFile

CONFIG = FitConfig(steps=60, batch_size=16, lr=1e-2, warmup=2, dtype="float32", save_every=50, evaluate_every=60)
SMALL = SpatialConfig(32, width=32, heads=2, window=6, columns=2, left=3)


PARAMS = SamplingParams(cfg_scale=2.0)


@pytest.fixture(scope="module")
def onpolicy(tmp_path_factory: pytest.TempPathFactory) -> OnPolicy:
    target = tiny_target()
    tokens = draw_on_policy(target, Drawing(prompts, GRID, PARAMS), 64, tmp_path_factory.mktemp("grids"))
    hidden = forced_hidden(target, tokens, prompts(0, 64), GRID, PARAMS)
    return OnPolicy(tokens, lambda images: hidden[:, images])


def test_drawn_grids_are_kept_and_not_drawn_again(tmp_path: Path) -> None:
    first = draw_on_policy(tiny_target(), Drawing(prompts, GRID, PARAMS, batch=4), 8, tmp_path)

    def no_prompts(start: int, count: int) -> CaptionPrompt:
        raise AssertionError("a finished shard was drawn again")

    again = draw_on_policy(tiny_target(), Drawing(no_prompts, GRID, PARAMS, batch=4), 8, tmp_path)
    assert torch.equal(first, again)


def test_the_engine_that_the_user_chose_draws_the_grids(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = []

    def drawn(target: object, drawing: object, images: int, out: Path, recordings: Recordings) -> None:
        engines.append(recordings.engine)
        raise InterruptedError

    monkeypatch.setattr("hawk.training.drafters.run.draw_on_policy", drawn)
    frozen = FrozenModel.load(saved_model, torch.device("cpu"), "float32")
    plan = Plan({"heads": KindRecipe(CONFIG, {})}, 64, PARAMS, GRID)
    for chosen in (frozen, replace(frozen, engine="graph")):
        with pytest.raises(InterruptedError):
            train_drafter(chosen, PromptFile(("a cat",)), plan, tmp_path)
    assert engines == ["eager", "graph"]
    with pytest.raises(HawkError, match="engine 'graph' is for GPUs"):
        FrozenModel.load(saved_model, torch.device("cpu"), "float32", "graph")


def test_every_head_is_trained_on_the_position_it_predicts(onpolicy: OnPolicy) -> None:
    heads = DraftHeads(HeadsConfig(32, horizontal=2, vertical=2))
    for name, _, sources, positions in head_pairs(heads, GRID):
        read = torch.arange(GRID.size)[sources]
        predicted = torch.arange(GRID.size)[positions]
        kind, number = name.split("-")
        # State i stands before token i: horizontal heads predict n tokens ahead of i, vertical ones d rows below i - 1.
        expected = read + int(number) if kind == "horizontal" else read - 1 + int(number) * GRID.width
        assert torch.equal(predicted, expected)


def test_heads_learn_and_leave_the_output_head_alone(onpolicy: OnPolicy, tmp_path: Path) -> None:
    target = tiny_target().requires_grad_(False)
    before_all = {name: weight.clone() for name, weight in target.state_dict().items()}
    shape = HeadsConfig(32, horizontal=2, vertical=1)
    start = DraftHeads(shape)
    heads, _ = train_heads(target, onpolicy, GRID, PARAMS, shape, CONFIG, tmp_path)
    held_out = onpolicy.hidden(torch.arange(58, 64))
    before = HeadsLoss(start, target, GRID, PARAMS)(held_out)["loss"]
    after = HeadsLoss(heads, target, GRID, PARAMS)(held_out)["loss"]
    assert after < before - 0.05
    assert all(torch.equal(weight, before_all[name]) for name, weight in target.state_dict().items())


def synthetic_pool(samples: int = 400) -> PoolData:
    """Source 0 is the target itself, source 1 is noise."""
    generator = torch.Generator().manual_seed(5)
    log_p = (2 * torch.randn(samples, 2, 16, generator=generator)).log_softmax(-1)
    noise = torch.randn(samples, 2, 16, generator=generator).log_softmax(-1)
    present = torch.ones(2, samples, 2, dtype=torch.bool)
    return PoolData(torch.stack((log_p, noise)), present, log_p, torch.full((samples, 2), -1))


def test_weights_go_to_the_source_that_knows() -> None:
    weights = fit_weights(synthetic_pool())
    for know, guess in weights["0,1"]:
        assert know == pytest.approx(1.0, abs=0.02)
        assert guess == pytest.approx(0.0, abs=0.02)


def test_a_perfect_source_is_always_accepted_and_a_poor_one_less() -> None:
    data = synthetic_pool()
    _, perfect = measure_acceptance(data, {"0": ((1.0,),), "1": ((1.0,),), "0,1": ((1.0, 0.0),)}, seed=1)
    assert min(rates[0] for rates in perfect) > 0.9
    edges, poor = measure_acceptance(data, {"0": ((1.0,),), "1": ((1.0,),), "0,1": ((0.0, 1.0),)}, seed=1)
    assert sum(rates[0] for rates in poor) / len(poor) < 0.5
    assert list(edges) == sorted(edges)
    quality = draft_quality(data, ("good", "poor"), {"0": ((1.0,),), "1": ((1.0,),), "0,1": ((1.0, 0.0),)}, seed=2)
    assert quality["fused"][1]["mass"] == pytest.approx(1.0, abs=1e-5)
    assert quality["fused"][1]["top1"] == 1.0
    assert quality["poor"][1]["mass"] < 0.6


def test_a_pattern_that_never_occurs_has_weights_all_the_same() -> None:
    data = synthetic_pool()
    data.present[1, :, 1] = False  # the second source has drafts at the first offset only
    weights = fit_weights(data)
    assert weights["1"] == ((1.0,),)
    assert weights["0"] == ((1.0,),), "a source alone has weight 1"
    assert len(weights["0,1"]) == 1


def built(target: LlamaGen, parts: DraftParts) -> FusedPool:
    for module in parts.modules:
        module.eval().requires_grad_(False)
    sources = [source_named(name, parts, target) for name in parts.fused.sources]
    return FusedPool(sources, target.head, parts.fused, parts.left)


def test_recorded_drafts_stand_beside_what_the_target_said_there() -> None:
    """Every recorded log p is the target's log p at some position, which a teacher-forced forward recomputes here."""
    target = tiny_target().requires_grad_(False)
    fused = FusedSettings.unfitted(("horizontal", "vertical-1", "stale"))
    pool = built(target, DraftParts(fused, DraftHeads(HeadsConfig(32, horizontal=2, vertical=1))))
    prompt, seeds = prompts(0, 3), [5, 6, 7]
    data = record_drafts(target, pool, prompt, GRID, PARAMS, seeds, samples=10_000, offsets=5)
    tokens = generate(target, Request(prompt, GRID, PARAMS, seeds), pool).tokens
    log_p = teacher_log_p(target, forced_hidden(target, tokens, prompt, GRID, PARAMS), PARAMS)
    known = data.present.any(0)
    assert known[:, 0].float().mean() > 0.9
    flat = log_p.flatten(0, 1)
    for sample, offset in known.nonzero()[:60].tolist():
        distance = (flat - data.log_p[sample, offset]).abs().amax(-1)
        assert distance.min() < 1e-4
    # untrained heads repeat the newest state, so at the first offset q is p of the position before
    first = data.log_q[0, data.present[0, :, 0], 0]
    assert max(float((flat - row).abs().amax(-1).min()) for row in first) < 1e-4


def test_the_spatial_drafter_decodes_what_it_was_trained_to_say() -> None:
    """In every window of a real decoding run, the drafts equal those that training computes with teacher forcing."""
    target = tiny_target().requires_grad_(False)
    torch.manual_seed(1)
    drafter = SpatialDrafter(SMALL)
    parts = DraftParts(FusedSettings.unfitted(("spatial",)), spatial=drafter)
    pool, prompt = built(target, parts), prompts(0, 2)
    drafted: list[tuple[int, int, torch.Tensor]] = []
    inner = pool.drafts

    def watched(memory, canvas, row, window):  # type: ignore[no-untyped-def]
        drafts = inner(memory, canvas, row, window)
        drafted.extend((row, canvas.committed[row], draft.log_q.clone()) for draft in drafts.values())
        return drafts

    pool.drafts = watched  # type: ignore[method-assign]
    tokens = generate(target, Request(prompt, GRID, PARAMS, [1, 2]), pool).tokens
    states = forced_hidden(target, tokens, prompt, GRID, PARAMS)[0]
    loss = SpatialLoss(drafter, target, GRID, PARAMS)
    assert len(drafted) > 10
    for row, start, log_q in drafted:
        forced = loss.drafts(tokens[row][None], states[row][None], torch.tensor([start]))[0, : len(log_q)]
        torch.testing.assert_close(log_q.clone(), forced, atol=2e-4, rtol=1e-3)


def test_the_spatial_drafter_learns_and_leaves_the_target_alone(onpolicy: OnPolicy, tmp_path: Path) -> None:
    target = tiny_target().requires_grad_(False)
    before = {name: weight.clone() for name, weight in target.state_dict().items()}
    torch.manual_seed(CONFIG.seed)
    start = SpatialLoss(SpatialDrafter(SMALL), target, GRID, PARAMS)
    result = train_spatial(target, onpolicy, GRID, PARAMS, SMALL, CONFIG, tmp_path)
    end = SpatialLoss(result.drafter, target, GRID, PARAMS)
    starts = torch.arange(1, 7)
    noise = window_noise(list(range(6)), SMALL.window, target.vocab_size, "cpu")
    held_out = onpolicy.tokens[58:], onpolicy.hidden(torch.arange(58, 64)), starts, noise
    losses = [loss(*held_out)["nats"].item() for loss in (start, end)]
    assert losses[1] < losses[0] - 0.05
    assert all(torch.equal(weight, before[name]) for name, weight in target.state_dict().items())
    result.drafter.save(tmp_path / "drafter", "target-a")
    again = SpatialDrafter.load(tmp_path / "drafter", "target-a")
    assert again is not None
    assert again.config == SMALL
    with pytest.raises(HawkError, match="trained for target target-a, not target-b"):
        SpatialDrafter.load(tmp_path / "drafter", "target-b")
    assert SpatialDrafter.load(tmp_path / "nowhere", "target-a") is None


def test_the_feature_drafter_decodes_what_it_was_trained_to_say(onpolicy: OnPolicy, tmp_path: Path) -> None:
    """The loss falls, and at each root of a real run the drafter's state equals the teacher-forced one."""
    target = tiny_target().requires_grad_(False)
    drafter, fitted = train_feature(target, onpolicy, PARAMS, feature_shape(32), CONFIG, tmp_path)
    torch.manual_seed(CONFIG.seed)
    start = FeatureLoss(FeatureDrafter(drafter.config), target, PARAMS)
    untrained = start(onpolicy.tokens[57:], onpolicy.hidden(torch.arange(57, 64)))
    assert fitted.scalars["nats"] < untrained["nats"].item() - 0.05
    drafter.requires_grad_(False)
    tree, prompt = FeatureTree(drafter, target.tok_embeddings, target.head), prompts(0, 2)
    states_at_roots: list[tuple[int, int, torch.Tensor]] = []
    inner = tree.propose

    def watched(memory, canvas):  # type: ignore[no-untyped-def]
        for row, count in enumerate(canvas.committed):
            if canvas.room(row):
                states_at_roots.append((row, count, memory.after_root[row][0, 0].clone()))
        return inner(memory, canvas)

    tree.propose = watched  # type: ignore[method-assign]
    tokens = generate(target, Request(prompt, GRID, PARAMS, [1, 2], "residual"), tree).tokens
    states = forced_hidden(target, tokens, prompt, GRID, PARAMS)[0]
    positions = torch.arange(GRID.size)[None]
    mask = additive_mask(positions[..., None] >= positions[:, None], states.dtype)
    forced = [
        drafter(target.tok_embeddings(tokens[r])[None], states[r][None], positions, None, mask)[0][0] for r in (0, 1)
    ]
    assert len(states_at_roots) > 10
    for row, count, state in states_at_roots:
        torch.testing.assert_close(state.clone(), forced[row][count - 1], atol=2e-3, rtol=1e-2)
    drafter.save(tmp_path / "drafter", "target-a")
    assert FeatureDrafter.load(tmp_path / "drafter", "target-a") is not None
    with pytest.raises(HawkError, match="trained for target target-a, not target-b"):
        FeatureDrafter.load(tmp_path / "drafter", "target-b")


def test_a_callers_limits_cut_a_static_tree() -> None:
    assert draws_within(TreeLimits(), (4, 2, 1)) == (4, 2, 1)
    assert draws_within(TreeLimits(window=2), (4, 2, 1)) == (4, 2)
    assert draws_within(TreeLimits(num_draft_tokens=12), (4, 2, 1)) == (4, 2)
    assert draws_within(TreeLimits(num_draft_tokens=3), (4, 2, 1)) == (3,)


@pytest.mark.proofs
def test_the_pool_is_fitted_on_its_own_runs(tmp_path: Path) -> None:
    target = tiny_target().requires_grad_(False)
    parts = DraftParts(
        FusedSettings.unfitted(("horizontal", "vertical-1", "spatial", "stale")),
        DraftHeads(HeadsConfig(32, horizontal=2, vertical=1)),
        SpatialDrafter(SMALL),
        LeftFactor(torch.randn(24, 2).numpy(), torch.randn(24, 2).numpy(), 1.0),
    )
    fitted = fit_pool(target, built(target, parts), prompts, GRID, PARAMS, first=0, images=3, samples=60)
    fitted.settings.save(tmp_path)
    assert FusedSettings.load(tmp_path) == fitted.settings
    assert set(fitted.quality) >= {"horizontal", "vertical-1", "spatial", "stale", "fused"}
    fused = fitted.quality["fused"][1]
    assert 0.1 < fused["mass"] <= 1
    assert 0 < fused["top1"] <= fused["top8"] <= 1


def test_the_left_factor_learns_what_the_left_token_says(onpolicy: OnPolicy) -> None:
    """The target's next token is the left token plus 1, and the drafts are uniform."""
    target, vocab = tiny_target().requires_grad_(False), 24
    loss = SpatialLoss(SpatialDrafter(SMALL), target, GRID, PARAMS)
    generator = torch.Generator().manual_seed(5)
    left = torch.randint(vocab, (400, 2), generator=generator)
    log_p = torch.full((400, 2, vocab), 1e-3).scatter_(-1, (left[..., None] + 1) % vocab, 1.0)
    log_p = (log_p / log_p.sum(-1, keepdim=True)).log()
    optimizer = torch.optim.AdamW([*loss.left.parameters(), *loss.here.parameters()], lr=3e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (-(log_p.exp() * loss.left_term(left).log_softmax(-1)).sum(-1).mean()).backward()
        optimizer.step()
    flat = torch.zeros(1, 400, 2, vocab).log_softmax(-1)
    data = PoolData(flat, torch.ones(1, 400, 2, dtype=torch.bool), log_p, torch.where(torch.arange(2) > 0, left, -1))
    weights = {"0": ((1.0,),)}
    factor = weigh_left(data, weights, loss.factor())
    assert mass_kept(data, weights, factor) > mass_kept(data, weights) + 0.3
    quality = draft_quality(data, ("nothing",), weights, seed=0, factor=factor)
    assert quality["fused, left known"][2]["mass"] > 0.8
    assert quality["fused, left known"][1] == quality["fused"][1]  # right after the root the factor adds nothing


def test_a_left_factor_survives_saving_and_is_checked(tmp_path: Path) -> None:
    factor, vocab = LeftFactor(torch.randn(8, 2).numpy(), torch.randn(8, 2).numpy(), 0.5), 8
    factor.save(tmp_path)
    loaded = LeftFactor.load(tmp_path, vocab)
    assert loaded is not None
    assert (loaded.left == factor.left).all()
    assert loaded.base == pytest.approx(factor.base)
    with pytest.raises(HawkError, match="does not fit a target of 9 tokens"):
        LeftFactor.load(tmp_path, 9)
    (tmp_path / "left.safetensors").write_bytes(b"cut short")
    with pytest.raises(HawkError, match="is damaged: train the drafter again"):
        LeftFactor.load(tmp_path, vocab)
    assert LeftFactor.load(tmp_path / "nowhere", vocab) is None


def test_coupled_nats_are_least_where_the_draft_is_the_target() -> None:
    """A flatter, a sharper or a different q has a larger loss; with a greedy target the loss is finite."""
    torch.manual_seed(0)
    log_p = (2 * torch.randn(12)).log_softmax(-1).expand(20_000, -1)

    noise = gumbel_rows(1, 0, 20_000, 12).float()

    def lost(log_q: torch.Tensor) -> float:
        return float(coupled_nats(log_q.log_softmax(-1), log_p, noise).mean())

    at_p = lost(log_p)
    assert at_p < min(lost(log_p.roll(1, -1)), lost(torch.zeros_like(log_p)), lost(log_p * 0.7), lost(log_p * 2))
    greedy = torch.where(log_p == log_p.max(), 0.0, -torch.inf)
    assert torch.isfinite(coupled_nats(torch.zeros_like(greedy).log_softmax(-1), greedy, noise)).all()

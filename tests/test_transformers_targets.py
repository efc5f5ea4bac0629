"""Hawk draws with Janus, Emu3, Chameleon and Lumina-mGPT what transformers itself draws with them."""

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fixtures.tiny_transformers import CODES, FAMILIES, PROMPTS, Tiny, left_padded, tiny
from hawk import HawkError
from hawk.decoding.forward import guided_logits, guided_state
from hawk.decoding.generate import generate
from hawk.decoding.grid import Grid
from hawk.decoding.planning import step_seconds
from hawk.decoding.recording import on_device, replay
from hawk.decoding.request import Condition, Request
from hawk.decoding.sampling import BatchParams, SamplingParams, guide, log_probs
from hawk.decoding.structure import Structure, lay_out
from hawk.decoding.tree import Window
from hawk.decoding.trees import NoDrafter
from hawk.decoding.window import LAG, advance, first_window, hold
from hawk.drafters.methods import METHODS, build_drafter
from hawk.models.protocol import ImageTarget, Model
from hawk.proofs.losslessness import check_definition, teacher_forced
from hawk.proofs.tiny import tiny_drafters

NEGATIVES = ["", "a mat", ""]
models = cache(tiny)


def conditions(one: Tiny, negatives: list[str] | None = None):
    return one.model.condition(PROMPTS, negatives or [""] * len(PROMPTS), one.grid)


def sequence(one: Tiny, codes: list[int]) -> list[int]:
    """The token ids of an image's first codes, with end-of-row tokens as the model's authors have them."""
    family, ids = one.model.family, []
    for position, code in enumerate(codes):
        ids.append(int(family.code_ids[code]))
        if (position + 1) % one.grid.width == 0 and position + 1 < one.grid.size:
            ids += family.structure.end_of_row
    return ids


def reference_logits(one: Tiny, prompt: tuple[int, ...], codes: list[int]) -> Tensor:
    """The logits of the next code, from one plain forward of transformers' model: no cache, no mask, no batch."""
    hf = one.hf
    if one.model.name == "tiny-janus":
        embedded = hf.get_input_embeddings()(torch.tensor([prompt]))
        if codes:
            embedded = torch.cat((embedded, hf.prepare_embeddings_for_image_generation(torch.tensor([codes]))), dim=1)
        hidden = hf.model.language_model(inputs_embeds=embedded).last_hidden_state
        return hf.model.generation_head(hidden[0, -1])
    ids = torch.tensor([[*prompt, *sequence(one, codes)]])
    if one.model.name == "tiny-emu3":
        return hf(input_ids=ids).logits[0, -1, one.model.family.code_ids]
    return hf.lm_head(hf.model(input_ids=ids).last_hidden_state)[0, -1, one.model.family.code_ids]


def reference_generate(one: Tiny, scale: float) -> Tensor:
    """The greedy codes of transformers' own `generate`, with all prompts in one left-padded batch."""
    condition = conditions(one)
    ids, mask = left_padded(condition.prompts)
    family, grid = one.model.family, one.grid
    if one.model.name == "tiny-janus":
        return one.hf.generate(
            ids, attention_mask=mask, generation_mode="image", do_sample=False, guidance_scale=scale, pad_token_id=3
        )
    if "emu3" not in one.model.name:  # their forward masks image logits; this disables it, as Anole does
        one.hf.model.vocabulary_mapping.__dict__["image_tokens"] = []
    rows = grid.width + len(family.structure.end_of_row)

    def allowed(batch: int, sofar: Tensor) -> list[int]:
        drawn = len(sofar) - ids.shape[1]
        return list(family.structure.end_of_row) if drawn % rows == grid.width else family.code_ids.tolist()

    negative = {}
    if scale != 1:
        negative_ids, negative_mask = left_padded(condition.negatives)
        negative = {"negative_prompt_ids": negative_ids, "negative_prompt_attention_mask": negative_mask}
    drawn = one.hf.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=grid.height * rows,
        prefix_allowed_tokens_fn=allowed,
        guidance_scale=scale,
        pad_token_id=3,
        eos_token_id=None,
        **negative,
    )[:, ids.shape[1] :]
    back = torch.full((int(drawn.max()) + 1,), -1)
    back[family.code_ids[family.code_ids < len(back)]] = torch.arange(CODES)[family.code_ids < len(back)]
    return back[drawn].view(len(ids), grid.height, rows)[:, :, : grid.width].flatten(1)


@pytest.mark.proofs
def test_transformers_own_speculation_with_guidance_changes_the_image_and_ours_does_not():
    """Its unconditional branch has its own KV cache, in which rejected drafts stay."""
    one = tiny("emu3")
    prompt, negative = "a red apple", "a mat"
    condition = one.model.condition([prompt], [negative], one.grid)
    ids = torch.tensor(condition.prompts)
    rows = one.grid.width + 1

    def allowed(batch: int, sofar: Tensor) -> list[int]:
        ends = (len(sofar) - ids.shape[1]) % rows == one.grid.width
        return [41] if ends else one.model.family.code_ids.tolist()

    guided = {"guidance_scale": 3.0, "negative_prompt_ids": torch.tensor(condition.negatives)}
    common = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "max_new_tokens": one.grid.height * rows,
        "prefix_allowed_tokens_fn": allowed,
        "pad_token_id": 3,
        "eos_token_id": None,
    }
    speculation = ({"assistant_model": one.hf}, {"prompt_lookup_num_tokens": 3})

    def codes(ids_drawn: Tensor) -> list[int]:
        return (ids_drawn[0, ids.shape[1] :].view(one.grid.height, rows)[:, :-1].flatten() - 50).tolist()

    plain = codes(one.hf.generate(ids, **common, **guided))
    theirs = [codes(one.hf.generate(ids, **common, **guided, **way)) for way in speculation]
    assert any(drawn != plain for drawn in theirs)
    unguided = codes(one.hf.generate(ids, **common))
    assert all(codes(one.hf.generate(ids, **common, **way)) == unguided for way in speculation)

    params = SamplingParams(temperature=0.0, cfg_scale=3.0)
    for name, (drafter, _) in tiny_drafters(one.model.target).items():
        ours = generate(one.model.target, Request(condition, one.grid, params, [0]), drafter)
        assert ours.tokens[0].tolist() == plain, name


@pytest.mark.parametrize("name", FAMILIES)
def test_the_adapter_is_what_pipeline_and_drafters_ask_for(name):
    one = models(name)
    assert isinstance(one.model, Model)
    assert isinstance(one.model.target, ImageTarget)
    condition = conditions(one, NEGATIVES)
    assert isinstance(condition, Condition)
    assert len(condition) == 3
    assert condition.rows(slice(1, 2)).prompts == condition.prompts[1:2]
    assert condition.negatives[0] != condition.negatives[1] == one.model.family.prompt("a mat", one.grid)
    assert one.model.target.embed(torch.tensor([[0, 3]])).shape == (1, 2, 32)
    assert set(step_seconds(one.model.target, [1, 3], 1)) == {1, 3}


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_codes_are_those_of_transformers_generate(name, scale):
    if name == "janus" and scale == 1.0:
        scale = 1.5  # the image mode of Janus crashes without guidance
    one = tiny(name)
    params = SamplingParams(temperature=0.0, cfg_scale=scale)
    drawn = generate(one.model.target, Request(conditions(one), one.grid, params, [1, 2, 3]), NoDrafter())
    assert drawn.stats.nfe == one.grid.size  # structure tokens cost no forward
    assert torch.equal(drawn.tokens, reference_generate(one, scale))


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_chain_are_those_of_plain_forwards(name, scale):
    one, params = models(name), SamplingParams(cfg_scale=scale)
    codes = torch.randint(0, CODES, (3, one.grid.size), generator=torch.Generator().manual_seed(1))
    condition = conditions(one, NEGATIVES)
    forced = teacher_forced(one.model.target, condition, one.grid, params, codes)
    for row in range(3):
        for position in (0, 1, one.grid.width, 2 * one.grid.width - 1, one.grid.size - 1):
            before = codes[row, :position].tolist()
            expected = reference_logits(one, condition.prompts[row], before)
            if params.guided:
                expected = guide(expected, reference_logits(one, condition.negatives[row], before), scale)
            torch.testing.assert_close(forced[row, position], log_probs(expected, params), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_tree_are_those_of_its_paths(name, attention):
    """A tree that crosses the end of a row, at another position in each image, before and after paths are committed."""
    one = models(name)
    one.hf.set_attn_implementation(attention)
    target, grid, params = one.model.target, one.grid, SamplingParams(cfg_scale=2.0)
    condition, generator = conditions(one), torch.Generator().manual_seed(2)
    prefilled = target.prefill(condition, guided=True, capacity=grid.size + 7)
    parents, depths = [0, 0, 0, 1, 3, 4, 2], torch.tensor([0, 1, 1, 2, 3, 4, 2])
    ancestors = torch.eye(7, dtype=torch.bool)
    for node in range(1, 7):
        ancestors[node] |= ancestors[parents[node]]
    drawn: list[list[int]] = [[], [], []]
    roots = [0, 0, 0]
    for paths in ([[0, 1, 3, 4], [0, 2], [0]], [[0, 2, 6], [0, 1, 3], [0, 1, 3, 4, 5]], [[0], [0], [0]]):
        tokens = torch.randint(0, CODES, (3, 7), generator=generator)
        positions = torch.tensor(roots)[:, None] + depths
        both = [torch.cat((x, x)) for x in (tokens, positions, ancestors.expand(3, 7, 7))]
        hidden = target.forward_nodes(*both, prefilled.padding, prefilled.cache, grid)
        batch = BatchParams.alike(params, 3, target.vocab_size, hidden)
        logits = guided_logits(target, hidden, guided_state(hidden, batch), batch)
        for row in range(3):
            for node in range(7):
                path = [i for i in range(7) if ancestors[node, i]]
                before = drawn[row] + tokens[row, path].tolist()
                rows = (condition.prompts[row], condition.negatives[row])
                expected = guide(*(reference_logits(one, prompt, before) for prompt in rows), 2.0)
                if target.linear_head:
                    torch.testing.assert_close(logits[row, node], expected, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(
                    log_probs(logits[row, node], params), log_probs(expected, params), atol=1e-5, rtol=1e-5
                )
        prefilled.cache.keep(paths * 2)
        for row, path in enumerate(paths):
            drawn[row] += tokens[row, path].tolist()
            roots[row] += len(path)
    one.hf.set_attn_implementation("sdpa")


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.proofs, id="full"), pytest.param(4, id="cover")])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_drafter_draws_the_codes_of_plain_ar(name, share):
    """In float64, for each seed. Methods that need no training also accept drafts under their own verifier.

    A `share` of 4 gives each family every fourth drafter and `hawk`, so that every drafter meets a family.
    """
    one = tiny(name, torch.float64)
    target, grid, condition = one.model.target, one.grid, conditions(one, NEGATIVES)
    every = tiny_drafters(target)
    mine = list(every)[list(FAMILIES).index(name) % share :: share]
    drafters = {name: every[name] for name in {**dict.fromkeys(mine), "hawk": None}}
    unguided = {name: every[name] for name in ("hawk", "random-q")}
    for params, some in (
        (SamplingParams(top_k=5, top_p=0.9), unguided),
        (SamplingParams(cfg_scale=2.0, temperature=0.8), drafters),
    ):
        plain = generate(target, Request(condition, grid, params, [1, 2, 3]), NoDrafter())
        assert check_definition(target, Request(condition, grid, params, [1, 2, 3]), plain).passed
        for drafter_name, (drafter, _) in some.items():
            drawn = generate(target, Request(condition, grid, params, [1, 2, 3]), drafter)
            assert torch.equal(drawn.tokens, plain.tokens), drafter_name
            kept = sum(drawn.stats.accepted_by_source.values())
            assert kept or drafter_name.startswith(("random", "ar")), drafter_name
    alone = generate(target, Request(condition.rows(slice(2, 3)), grid, params, [3]), drafters["hawk"][0])
    assert torch.equal(alone.tokens[0], plain.tokens[2])
    for method in METHODS.values():
        if method.name in ("sjd", "scd-maximal", "sjd-pac") and method.name in drafters:
            drafter = build_drafter(method, None, target)
            drawn = generate(target, Request(condition, grid, params, [1, 2, 3], method.verifier), drafter)
            assert sum(drawn.stats.accepted_by_source.values()) > 0, method.name


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_are_those_of_the_models_own_decoder(name):
    one = models(name)
    codes = torch.randint(0, CODES, (2, one.grid.height, one.grid.width), generator=torch.Generator().manual_seed(3))
    pixels = one.model.pixels(codes)
    side = one.model.cell
    assert pixels.shape == (2, 3, one.grid.height * side, one.grid.width * side)
    if name == "janus":
        expected = one.hf.decode_image_tokens(codes.flatten(1)).permute(0, 3, 1, 2)
    elif name == "emu3":
        ids = torch.cat((one.model.family.code_ids[codes], torch.full((2, one.grid.height, 1), 41)), dim=2).flatten(1)
        ended = torch.cat((ids, torch.zeros(2, 3, dtype=torch.long)), dim=1)
        expected = one.hf.decode_image_tokens(image_tokens=ended, height=one.grid.height, width=one.grid.width)
    else:  # transformers has no decoder; test_vqgan.py compares ours with the published code
        expected = one.model.family.decoder.decode(codes)
    torch.testing.assert_close(pixels, expected)


# --- structure tokens ----------------------------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Records the operations that would make a GPU wait for the host: values read from it, or made on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "equal", "lift_fresh", "masked_select", "unique"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("reach", [0, 3, 11])
def test_a_replayed_window_draws_the_codes_of_plain_ar(name, reach):
    """Even with structure tokens: a chain has entries for all row ends it may hold, and commits those it passes."""
    one = tiny(name, torch.float64)
    target, grid, condition = one.model.target, one.grid, conditions(one, NEGATIVES)
    params, seeds = SamplingParams(cfg_scale=2.0, temperature=0.3), [1, 2, 3]
    plain = generate(target, Request(condition, grid, params, seeds), NoDrafter())
    window = Window(reach)
    with torch.inference_mode():
        state = on_device(first_window(target, Request(condition, grid, params, seeds), window))
        hold(state, [1, 1, 1], LAG)
        advance(target, state, reach)  # makes the tensors that are made only once
        with HostReads() as reads:
            advance(target, state, reach)
        replay(state, lambda: advance(target, state, reach), None)
    assert torch.equal(state.tokens[:, : grid.size], plain.tokens)
    assert reads.found == []


def test_nodes_without_structure_are_entries():
    ancestors = torch.ones(3, 3, dtype=torch.bool).tril().expand(2, 3, 3)
    layout = lay_out(Structure(), torch.tensor([[1, 2, 3], [4, 5, 6]]), ancestors, Grid(3, 4))
    assert layout.owner.tolist() == [[0, 1, 2]] * 2
    assert torch.equal(layout.ancestors, ancestors)
    assert layout.before.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_node_at_the_end_of_a_row_brings_its_structure_tokens():
    ancestors = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool).expand(2, 3, 3)
    positions = torch.tensor([[2, 3, 3], [4, 5, 5]])
    layout = lay_out(Structure((8, 9)), positions, ancestors, Grid(3, 4))
    assert layout.owner.tolist() == [[0, 1, 1, 1, 2, 2, 2], [0, 1, 2, -1, -1, -1, -1]]
    assert layout.offset[0].tolist() == [0, 0, 1, 2, 0, 1, 2]
    assert layout.before.tolist() == [[2, 3, 4, 5, 3, 4, 5], [6, 7, 7, 0, 0, 0, 0]]
    assert layout.last.tolist() == [[0, 3, 6], [0, 1, 2]]
    assert layout.entries() == [[[0], [1, 2, 3], [4, 5, 6]], [[0], [1], [2]]]
    assert layout.ancestors[0, 6].tolist() == [True, False, False, False, True, True, True]
    assert layout.ancestors[1, 3].tolist() == [False, False, False, True, False, False, False]


def test_the_last_row_is_not_ended():
    layout = lay_out(Structure((8,)), torch.tensor([[11]]), torch.ones(1, 1, 1, dtype=torch.bool), Grid(3, 4))
    assert layout.owner.tolist() == [[0]]


# --- what cannot be drawn ------------------------------------------------------------------------------------


def test_grids_and_prompts_that_do_not_fit_are_refused():
    with pytest.raises(HawkError, match="Janus draws 8x8 pixels only"):
        models("janus").model.check_grid(Grid(4, 6))
    with pytest.raises(HawkError, match="multiples of 4 pixels"):
        models("lumina").model.check_grid(Grid(4, 5))
    with pytest.raises(HawkError, match="lacks <reserved08809>"):
        models("lumina").model.condition(["a cat"], [""], Grid(18, 4))
    emu3 = models("emu3").model
    with pytest.raises(HawkError, match="an image of 9899 are too long: 9216 fit"):
        emu3.condition(["a cat"], [""], Grid(99, 99))
    with pytest.raises(HawkError, match="prompt is empty"):
        emu3.condition([" "], [""], Grid(3, 4))
    with pytest.raises(HawkError, match=r"holds <\|image start\|>, which the model reads"):
        emu3.condition(["a cat <|image start|>"], [""], Grid(3, 4))

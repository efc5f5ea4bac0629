"""`model.generate(custom_generate=hawk_generate)` returns the tokens of `generate`, after fewer forwards."""

import pytest
import torch
from torch import Tensor

import hawk
from fixtures.tiny_transformers import CODES, PROMPTS, Tiny, left_padded, tiny
from hawk import HawkError
from hawk.drafters.heads import DraftHeads, HeadsConfig


def call(one: Tiny, negatives: list[str]) -> dict[str, object]:
    """The arguments of `generate` for a left-padded batch, as in transformers' documentation."""
    condition, family, grid = one.model.condition(PROMPTS, negatives, one.grid), one.model.family, one.grid
    ids, mask = left_padded(condition.prompts)
    negative_ids, negative_mask = left_padded(condition.negatives)
    rows = grid.width + len(family.structure.end_of_row)

    def allowed(batch: int, sofar: Tensor) -> list[int]:
        drawn = len(sofar) - ids.shape[1]
        if drawn >= grid.height * rows:
            return [family.closing[drawn - grid.height * rows]]
        return list(family.structure.end_of_row) if drawn % rows == grid.width else family.code_ids.tolist()

    if "emu3" not in one.model.name:
        one.hf.model.vocabulary_mapping.__dict__["image_tokens"] = []
    return {
        "inputs": ids,
        "attention_mask": mask,
        "prefix_allowed_tokens_fn": allowed,
        "negative_prompt_ids": negative_ids,
        "negative_prompt_attention_mask": negative_mask,
        "guidance_scale": 3.0,
        "max_new_tokens": grid.height * rows + len(family.closing),
        "pad_token_id": 3,
        "eos_token_id": None,
    }


@pytest.mark.parametrize("name", ["emu3", "chameleon", "lumina"])
def test_greedy_tokens_are_those_of_generate(name):
    one = tiny(name)
    arguments = call(one, ["", "a mat", ""])
    size = {"height": one.grid.height, "width": one.grid.width}
    expected = one.hf.generate(**arguments, do_sample=False)
    for method in ("ar", "scd"):
        drawn = one.hf.generate(**arguments, do_sample=False, custom_generate=hawk.hawk_generate, method=method, **size)
        assert torch.equal(drawn, expected), method
    del arguments["prefix_allowed_tokens_fn"], arguments["negative_prompt_ids"]
    del arguments["negative_prompt_attention_mask"]
    alone = one.hf.generate(**arguments, do_sample=False, custom_generate=hawk.hawk_generate, **size)
    assert alone.shape == expected.shape  # as in `generate`, the negative prompt is the prompt's last token


def test_samples_are_those_of_the_pipeline():
    one = tiny("emu3")
    pipe = hawk.accelerate(one.hf, one.tokenizer)
    cell = one.model.cell
    expected = pipe(
        PROMPTS,
        guidance_scale=3.0,
        temperature=0.8,
        top_k=6,
        top_p=0.9,
        seed=4,
        method="ar",
        height=one.grid.height * cell,
        width=one.grid.width * cell,
        batch_size=3,
    )
    drawn = one.hf.generate(
        **call(one, [""] * 3),
        do_sample=True,
        temperature=0.8,
        top_k=6,
        top_p=0.9,
        custom_generate=hawk.hawk_generate,
        seed=4,
        height=one.grid.height,
        width=one.grid.width,
    )
    image = drawn[:, -len(one.model.family.closing) - one.grid.height * (one.grid.width + 1) :]
    rows = image[:, :-3].unflatten(1, (one.grid.height, one.grid.width + 1))
    assert torch.equal(rows[:, :, :-1].flatten(1) - 50, expected.tokens)
    assert int((rows[:, :, :-1] - 50).max()) < CODES
    pixels = one.hf.decode_image_tokens(image_tokens=image, height=one.grid.height, width=one.grid.width)
    assert pixels.shape == (3, 3, one.grid.height * cell, one.grid.width * cell)


def test_a_drafter_folder_is_used(tmp_path):
    one = tiny("emu3")
    DraftHeads(HeadsConfig(32, horizontal=2, vertical=1)).save(tmp_path, one.model.fingerprint)
    arguments, size = call(one, [""] * 3), {"height": one.grid.height, "width": one.grid.width}
    expected = one.hf.generate(**arguments, do_sample=False)
    ours = {"custom_generate": hawk.hawk_generate, "method": "hawk", **size}
    assert torch.equal(one.hf.generate(**arguments, do_sample=False, drafter=tmp_path, **ours), expected)
    with pytest.raises(HawkError, match="needs a trained drafter"):
        one.hf.generate(**arguments, do_sample=False, **{**ours, "method": "medusa"})


def test_hawk_needs_no_training():
    one = tiny("emu3")
    arguments, size = call(one, [""] * 3), {"height": one.grid.height, "width": one.grid.width}
    ours = one.hf.generate(**arguments, do_sample=False, custom_generate=hawk.hawk_generate, method="hawk", **size)
    assert torch.equal(ours, one.hf.generate(**arguments, do_sample=False))


def test_what_has_no_counterpart_is_refused():
    one = tiny("emu3")
    ours = {"custom_generate": hawk.hawk_generate, "height": one.grid.height, "width": one.grid.width}
    arguments = call(one, [""] * 3)
    with pytest.raises(HawkError, match="RepetitionPenaltyLogitsProcessor has no counterpart"):
        one.hf.generate(**arguments, repetition_penalty=1.2, **ours)
    with pytest.raises(HawkError, match="leave return_dict_in_generate out"):
        one.hf.generate(**arguments, return_dict_in_generate=True, **ours)

"""`model.generate(custom_generate=hawk_generate)` returns the tokens of `generate`, after fewer forwards."""

import threading

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import TextIteratorStreamer, set_seed
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import hawk
from fixtures.tiny_transformers import CODES, PROMPTS, Tiny, left_padded, tiny
from hawk import HawkError
from hawk.drafters.heads import DraftHeads, HeadsConfig
from hawk.models.hf.session import SESSIONS


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


class Seen(BaseStreamer):
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.parts, self.ends = [], 0

    def put(self, value: Tensor) -> None:
        self.parts.append(value)

    def end(self) -> None:
        self.ends += 1


def ours(one: Tiny, **more: object) -> dict[str, object]:
    """The arguments that make a call Hawk's."""
    size = {"height": one.grid.height, "width": one.grid.width}
    return {"do_sample": False, "custom_generate": hawk.hawk_generate, **size, **more}


@pytest.mark.parametrize("method", ["ar", "scd", "sjd"])
def test_a_streamer_gets_what_generate_streams(method):
    one = tiny("emu3")
    arguments, theirs, mine = call(one, [""] * 3), Seen(), Seen()
    expected = one.hf.generate(**arguments, do_sample=False, streamer=theirs)
    tokens = one.hf.generate(**arguments, **ours(one, streamer=mine, method=method))
    assert mine.ends == theirs.ends == 1
    assert len(mine.parts) == len(theirs.parts) == 1 + expected.shape[1] - arguments["inputs"].shape[1]
    if method != "sjd":
        assert all(torch.equal(a, b) for a, b in zip(mine.parts, theirs.parts, strict=True))
    assert torch.equal(torch.stack(mine.parts[1:], 1), tokens[:, arguments["inputs"].shape[1] :])


@pytest.mark.parametrize("method", ["ar", "scd", "sjd"])
def test_a_streamer_gets_no_token_that_had_no_distribution(method):
    one, streamer = tiny("emu3"), Seen()
    one.hf.model.text_model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(HawkError, match="not finite in float32"):
        one.hf.generate(**call(one, [""] * 3), **ours(one, streamer=streamer, method=method))
    assert (len(streamer.parts), streamer.ends) == (1, 1), "the prompts, which transformers itself gives it"


def test_an_error_of_the_callers_streamer_stays_as_it_is():
    one = tiny("emu3")

    class Full(Seen):
        def put(self, value: Tensor) -> None:
            super().put(value)
            if len(self.parts) == 3:
                raise error

    error = MemoryError("the caller's own")
    with pytest.raises(MemoryError) as caught:
        one.hf.generate(**call(one, [""] * 3), **ours(one, streamer=Full(), method="ar"))
    assert caught.value is error


@pytest.mark.parametrize("name", ["emu3", "lumina", "chameleon"])
def test_the_size_in_a_prompt_is_read(name):
    one = tiny(name)
    family = one.model.family
    prompt = family.prompt("a cat", one.grid)
    assert family.grid_in(prompt) == (None if name == "chameleon" else one.grid)
    assert family.grid_in(prompt[:-1]) is None
    assert family.grid_in(prompt[-1:]) is None


def test_the_reader_of_a_streamer_ends_also_after_a_refusal():
    one = tiny("emu3")
    arguments, streamer, errors = call(one, [""] * 3), TextIteratorStreamer(one.tokenizer, timeout=60), []
    arguments = {name: value[:1] if isinstance(value, Tensor) else value for name, value in arguments.items()}

    def draw() -> None:
        try:
            one.hf.generate(**arguments, **ours(one, streamer=streamer, max_time=9.0))
        except HawkError as error:
            errors.append(str(error))

    thread = threading.Thread(target=draw)
    thread.start()
    list(streamer)
    thread.join()
    assert errors == ["hawk_generate draws whole images and cannot stop in between: leave max_time out"]


class Never(StoppingCriteria):
    """A criterion of a caller's own."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool)


REFUSED = {
    "a criterion": ({"stopping_criteria": StoppingCriteriaList([Never()])}, "leave Never out"),
    "time": ({"max_time": 5.0}, "leave max_time out"),
    "scores": ({"output_scores": True}, "leave output_scores out"),
    "logits": ({"output_logits": True}, "leave output_logits out"),
    "beams": ({"num_beams": 3}, "leave num_beams out"),
    "lookup": ({"prompt_lookup_num_tokens": 3}, "leave prompt_lookup_num_tokens out"),
    "short": ({"max_new_tokens": 13}, "the image has 18 tokens, and max_new_tokens or max_length allows 13"),
    "an image's token as end": ({"eos_token_id": 50}, "leave eos_token_id out"),
    "little guidance": ({"guidance_scale": 0.5}, "guidance_scale must be 1"),
    "negatives": ({"negative_prompt_ids": torch.tensor([[5]] * 2)}, "3 sequences need one negative prompt or 3, not 2"),
    "height": ({"height": 2.5}, "height must be a whole number"),
    "another size than the prompts": (
        {"height": 4, "max_new_tokens": None},
        "prompt 1 asks for an image of 3x4 tokens, and height and width for 4x4: give height=3 and width=4",
    ),
    "a mask of zeros": (
        {"attention_mask": torch.zeros(3, 12, dtype=torch.long)},
        "prompt 1 has no token: attention_mask must be 1 at the tokens",
    ),
    "a mask of another shape": (
        {"attention_mask": torch.zeros(3, 15).long()},
        r"attention_mask must have the shape \(3, 12\)",
    ),
    "a negative id": ({"inputs": torch.tensor([[5, -1]] * 3)}, "prompt 1 holds the token id -1: .* 0 to 69"),
    "an id past the vocabulary": ({"inputs": torch.tensor([[5, 70]] * 3)}, "prompt 1 holds the token id 70"),
    "ids with fractions": ({"inputs": torch.ones(3, 2)}, "the ids of a prompt must be whole numbers in rows"),
    "a negative prompt's id": (
        {"negative_prompt_ids": torch.tensor([[70]])},
        "negative prompt 1 holds the token id 70",
    ),
    "family": ({"family": "x"}, "unknown family 'x': choose one of chameleon, lumina"),
    "method": ({"method": []}, r"unknown method \[\]"),
    "a lossy method": ({"method": "lantern"}, "method 'lantern' is lossy"),
    "positions": ({"position_ids": torch.zeros(3, 12).long()}, "leave position_ids out"),
    "images": ({"image_sizes": torch.tensor([[8, 8]])}, "leave image_sizes out"),
    "labels": ({"labels": torch.zeros(3, 12).long()}, "leave labels out"),
    "some logits": ({"logits_to_keep": torch.tensor([0])}, "leave logits_to_keep out"),
    "a prompt in parts": ({"prefill_chunk_size": 2}, "leave prefill_chunk_size out"),
    "several processes": ({"synced_gpus": True}, "leave synced_gpus out"),
    "drafts of the first layer": ({"assistant_early_exit": 1}, "leave assistant_early_exit out"),
    "guidance as text": ({"guidance_scale": "3"}, "guidance_scale must be a number, not '3'"),
    "much guidance": ({"guidance_scale": 1e9}, "guidance_scale must be .* up to 1000000, not"),
    "a list of negative ids": ({"negative_prompt_ids": [[1, 2]]}, "negative_prompt_ids must be a tensor, not"),
    "a list as negative mask": (
        {"negative_prompt_attention_mask": [[1]]},
        "negative_prompt_attention_mask must be a tensor, not",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_what_hawk_cannot_do_is_refused_in_one_line(case):
    more, message = REFUSED[case]
    one = tiny("emu3")
    arguments = call(one, [""] * 3)
    if "negative_prompt_ids" in more:
        del arguments["negative_prompt_attention_mask"]
    if "inputs" in more:
        del arguments["attention_mask"]
    with pytest.raises(HawkError, match=message) as caught:
        one.hf.generate(**{**arguments, **ours(one), **more})
    assert "\n" not in str(caught.value)


def test_lengths_and_ends_cut_the_closing_tokens_as_in_generate():
    one = tiny("emu3")
    arguments = call(one, [""] * 3)
    whole = one.hf.generate(**arguments, **ours(one))
    for more, cut in ({"max_new_tokens": 16}, 2), ({"eos_token_id": one.model.family.closing[1]}, 1):
        expected = one.hf.generate(**{**arguments, **more}, do_sample=False)
        assert torch.equal(one.hf.generate(**{**arguments, **more}, **ours(one)), expected)
        assert torch.equal(expected, whole[:, :-cut])
    del arguments["max_new_tokens"]  # transformers then allows 20 tokens, which nobody asked for
    assert torch.equal(one.hf.generate(**arguments, **ours(one)), whole)


def test_seeds_come_from_torch_unless_they_are_given():
    one = tiny("emu3")
    arguments = call(one, [""] * 3)

    def drawn(torch_seed: int | None = None, **more: object) -> list[list[int]]:
        if torch_seed is not None:
            set_seed(torch_seed)
        return one.hf.generate(**arguments, **{**ours(one, method="ar"), "do_sample": True, **more}).tolist()

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn() != drawn(), "the generator moves on"
    assert drawn(1, seed=None) == drawn(1)
    assert drawn(1, seed=4) == drawn(2, seed=np.int64(4)) == drawn(seed=[4, 5, 6])


def test_one_negative_prompt_serves_all_sequences():
    one = tiny("emu3")
    each = call(one, ["a mat"] * 3)
    one_row = {name: each[name][:1] for name in ("negative_prompt_ids", "negative_prompt_attention_mask")}
    expected = one.hf.generate(**each, **ours(one)).tolist()
    assert one.hf.generate(**{**each, **one_row}, **ours(one)).tolist() == expected
    twice = one.hf.generate(**each, **{**ours(one), "do_sample": True, "temperature": 1e-4}, num_return_sequences=2)
    assert twice.tolist() == [row for row in expected for _ in range(2)]


def test_the_mode_of_the_callers_model_stays():
    one = tiny("emu3")
    arguments = call(one, [""] * 3)
    expected = one.hf.generate(**arguments, **ours(one)).tolist()
    one.hf.train()
    one.hf.lm_head.eval()
    for module in one.hf.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.9
    pipe = hawk.accelerate(one.hf, one.tokenizer)
    assert one.hf.training
    side = one.grid.height * one.model.cell
    images = [pipe("a cat", seed=1, height=side, width=side, temperature=0.0).tokens for _ in range(2)]
    assert torch.equal(*images), "dropout would draw another image each time"
    assert one.hf.generate(**arguments, **ours(one)).tolist() == expected
    assert one.hf.training
    assert one.hf.model.training
    assert not one.hf.lm_head.training


def test_what_is_kept_of_a_model_follows_its_weights():
    """Chameleon's image head is a copy of rows of `lm_head`, which a caller may change in place."""
    one = tiny("chameleon")
    arguments = call(one, [""] * 3)
    first = one.hf.generate(**arguments, **ours(one, method="ar"))
    torch.nn.init.normal_(one.hf.lm_head.weight, std=0.25)
    expected = one.hf.generate(**arguments, do_sample=False)
    assert not torch.equal(first, expected)
    assert torch.equal(one.hf.generate(**arguments, **ours(one, method="ar")), expected)


def test_step_costs_are_measured_once_for_a_model_even_where_no_file_can_keep_them(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path / "file"))
    measured = []

    def step_seconds(target, widths, repeats, engine):
        measured.append(engine)
        return {width: 1.0 + width for width in widths}

    monkeypatch.setattr("hawk.drafters.settings.step_seconds", step_seconds)
    one = tiny("emu3")
    arguments = call(one, [""] * 3)
    for _ in range(2):
        one.hf.generate(**arguments, **ours(one))
    assert measured == ["eager"]


def test_a_call_beside_another_one_uses_no_recordings():
    one = tiny("emu3")
    one.hf.generate(**call(one, [""] * 3), **ours(one, method="ar"))
    session = SESSIONS[one.hf]
    with session.own_recordings() as mine, session.own_recordings() as others:
        assert mine is session.recordings
        assert others is None
    with session.own_recordings() as again:
        assert again is session.recordings


@pytest.mark.parametrize(("kind", "value"), [("TopK", 1), ("Temperature", 1e-3), ("TopP", 1e-4)])
def test_a_sampler_of_the_caller_that_says_something_else_is_refused(kind, value):
    one = tiny("emu3")
    sampler = getattr(transformers, f"{kind}LogitsWarper")(value)
    drawing = {**ours(one, method="ar"), "do_sample": True, "logits_processor": [sampler]}
    with pytest.raises(HawkError, match=f"{kind}LogitsWarper with .* {value} in logits_processor is not read"):
        one.hf.generate(**call(one, [""] * 3), **drawing)


def test_a_length_criterion_of_the_caller_is_read():
    one = tiny("emu3")
    arguments = call(one, [""] * 3)
    length = arguments["inputs"].shape[1] + 5
    criteria = transformers.StoppingCriteriaList([transformers.MaxLengthCriteria(length)])
    with pytest.raises(HawkError, match="allows 5"):
        one.hf.generate(**arguments, **ours(one, method="ar"), stopping_criteria=criteria)


def test_a_call_without_a_size_is_refused_and_its_streamer_ended():
    one, streamer = tiny("emu3"), Seen()
    drawing = {name: value for name, value in ours(one, method="ar").items() if name != "height"}
    with pytest.raises(HawkError, match="give height= and width="):
        one.hf.generate(**call(one, [""] * 3), **drawing, streamer=streamer)
    assert streamer.ends == 1

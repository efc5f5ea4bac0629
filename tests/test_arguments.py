"""What people pass to the pipeline: numbers of every kind are taken, and anything else is refused by name."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from hawk import HawkError, HawkPipeline, SamplingParams, accelerate
from hawk.decoding.arguments import real_number, whole_number
from hawk.decoding.grid import Grid
from hawk.decoding.sampling import log_probs
from hawk.drafters.settings import MOST_DRAFTS, TreeLimits
from hawk.models.arguments import image_seeds


@pytest.fixture(scope="module")
def pipe(saved_model) -> HawkPipeline:
    return HawkPipeline.from_pretrained(saved_model, device="cpu", dtype="float64")


FIVES = (5, 5.0, np.int64(5), np.uint8(5), np.float32(5), np.array(5), torch.tensor(5), torch.tensor(5.0))
NO_NUMBERS = ("5", True, np.True_, torch.tensor(True), None, [5], np.array([5]), 5j, b"5", Fraction(5), object())


@pytest.mark.parametrize("five", FIVES)
def test_numbers_of_every_kind_are_taken(five):
    assert (whole_number("n", five), type(whole_number("n", five))) == (5, int)
    assert (real_number("x", five), type(real_number("x", five))) == (5.0, float)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_refused_by_name(value):
    for check in (whole_number, real_number):
        with pytest.raises(HawkError, match=r"^width must be a (whole )?number, not") as caught:
            check("width", value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 120


@pytest.mark.parametrize("value", [5.5, float("nan"), float("inf"), np.float32(0.5), torch.tensor(torch.nan)], ids=repr)
def test_fractions_are_no_whole_numbers(value):
    with pytest.raises(HawkError, match="n must be a whole number, not"):
        whole_number("n", value)


def test_bounds_and_infinities_are_refused():
    with pytest.raises(HawkError, match="n must be 1 or more, not 0"):
        whole_number("n", 0.0, least=1)
    for value in (float("inf"), np.float64("nan"), 10**400):
        with pytest.raises(HawkError, match="x must be a finite number, not"):
            real_number("x", value)
    assert whole_number("n", 10**400) == 10**400


def test_sampling_parameters_and_limits_hold_plain_numbers(unchecked):
    params = SamplingParams(np.float32(0.5), torch.tensor(5), np.float64(1), 2)
    assert params == SamplingParams(0.5, 5, 1.0, 2.0)
    assert [type(value) for value in vars(params).values()] == [float, int, float, float]
    limits = TreeLimits(np.int64(4), 2.0)
    assert (limits.num_draft_tokens, type(limits.num_draft_tokens), type(limits.window)) == (4, int, int)
    with pytest.raises(HawkError, match="temperature must be a number, not 'hot'"):
        SamplingParams("hot")
    with pytest.raises(HawkError, match=r"window must be a whole number, not 2\.5"):
        TreeLimits(window=2.5)


def test_the_pipeline_takes_numbers_of_every_kind(pipe):
    expected = pipe("a cat", seed=5, top_k=5, temperature=1.0, guidance_scale=2.0, height=16, width=24, window=3)
    drawn = pipe(
        "a cat",
        seed=torch.tensor(5),
        top_k=5.0,
        temperature=np.float32(1),
        guidance_scale=2,
        num_images_per_prompt=1.0,
        batch_size=np.int64(1),
        height=16.0,
        width=np.int32(24),
        window=3.0,
    )
    assert torch.equal(drawn.tokens, expected.tokens)
    assert (drawn.seeds, type(drawn.seeds[0]), drawn.params) == ([5], int, expected.params)


@pytest.mark.parametrize("seeds", [[3, 4], (np.int64(3), 4.0), range(3, 5), np.arange(3, 5), torch.arange(3, 5)])
def test_a_sequence_of_seeds_of_any_kind(unchecked, seeds):
    assert image_seeds(2, seeds) == [3, 4]


NOWHERE = torch.tensor(3, device="meta")


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Unlistable:
    def __iter__(self):
        raise RuntimeError("no items")


REFUSED = {
    "no prompt": ({"prompt": None}, "no prompt given"),
    "a number as prompt": ({"prompt": 5}, "prompts must be text, not 5"),
    "bytes": ({"prompt": [b"a cat"]}, "prompts must be text, not b'a cat'"),
    "a byte that is no UTF-8": ({"prompt": "a \udcff"}, "holds a byte that is no text: give UTF-8 text"),
    "negative prompt": ({"negative_prompt": 5}, "prompts must be text, not 5"),
    "seed as text": ({"seed": "5"}, "seed must be a whole number, not '5'"),
    "seed as boolean": ({"seed": True}, "seed must be a whole number, not True"),
    "broken seed": ({"seed": [1.5]}, "seed must be a whole number, not 1.5"),
    "generator": ({"generator": 5}, "generator must be a torch.Generator, or a list of them, not 5"),
    "height": ({"height": "16"}, "height must be a whole number, not '16'"),
    "width": ({"width": 16.5}, "width must be a whole number, not 16.5"),
    "top_k": ({"top_k": 2.5}, "top_k must be a whole number, not 2.5"),
    "top_p": ({"top_p": [0.5]}, "top_p must be a number"),
    "temperature": ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
    "guidance_scale": ({"guidance_scale": "3"}, "guidance_scale must be a number, not '3'"),
    "num_images_per_prompt": ({"num_images_per_prompt": "2"}, "num_images_per_prompt must be a whole number"),
    "batch_size": ({"batch_size": "2"}, "batch_size must be a whole number, not '2'"),
    "num_draft_tokens": ({"num_draft_tokens": True}, "num_draft_tokens must be a whole number, not True"),
    "progress": ({"progress": 5}, "progress must be True or False, not 5"),
    "no prompt among several": ({"prompt": ["a cat", None]}, "prompts must be text, not None"),
    "a dictionary as method": ({"method": {}}, "unknown method {}: choose one of"),
    "a tensor as output type": ({"output_type": torch.tensor([1, 2])}, "unknown output_type tensor.*: choose one of"),
    "a long method": ({"method": "x" * 20_000}, "unknown method 'x{30,300}[.]{3}: choose one of"),
    "callback": ({"callback_on_step_end": 5}, "callback_on_step_end must be a function, not 5"),
    "bytes as seed": ({"seed": b"5"}, "seed must be a whole number, not b'5'"),
    "a list as method": ({"method": []}, r"unknown method \[\]: choose one of ar,"),
    "an array as method": ({"method": np.array(["ar", "scd"])}, "unknown method array.*: choose one of ar,"),
    "an array as output_type": ({"output_type": np.array(["pil"])}, "unknown output_type array.*: choose one of pil,"),
    "an object as output_type": ({"output_type": {}}, "unknown output_type {}: choose one of pil, np, pt"),
    "an array as verifier": ({"verifier": np.array(["coupled", "residual"])}, "unknown verifier array.*: choose one"),
    "a number as verifier": ({"verifier": 5}, "unknown verifier 5: choose one of coupled,"),
    "a height without a value": (
        {"height": NOWHERE},
        r"height must be a whole number, not tensor\(\.\.\., device='meta'",
    ),
    "a scale without a value": ({"guidance_scale": NOWHERE}, "guidance_scale must be a number, not tensor"),
    "seeds without a value": ({"seed": [NOWHERE]}, "seed must be a whole number, not tensor"),
    "a seed that cannot be printed": ({"seed": Unprintable()}, "seed must be a whole number, not an object of Unprint"),
    "a method like that": ({"method": Unprintable()}, "unknown method an object of Unprintable that cannot be printed"),
    "a temperature like that": ({"temperature": Unprintable()}, "temperature must be a number, not an object"),
    "prompts that cannot be listed": ({"prompt": Unlistable()}, "prompts must be text, not <.*Unlistable"),
    "such negative prompts": ({"negative_prompt": Unlistable()}, "negative_prompt must be a list, not <.*Unlistable"),
    "seeds that cannot be listed": ({"seed": Unlistable()}, "seed must be a list, not <.*Unlistable"),
    "such generators": ({"generator": Unlistable()}, "generator must be a list, not <.*Unlistable"),
    "return_dict": ({"return_dict": np.array([1, 2])}, r"return_dict must be True or False, not array\(\[1, 2\]\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_everything_else_is_refused_in_one_line_that_names_it(pipe, unchecked, case):
    arguments, message = REFUSED[case]
    with pytest.raises(HawkError, match=message) as caught:
        pipe(**{"prompt": "a cat", "method": "ar"} | arguments)
    assert "\n" not in str(caught.value)


# --- the other entry points: each refuses a value of the wrong type by the argument's name

LOADED = {
    "no model": ({"model": None}, "model must be 'bundled', a folder or a hub id .owner/name., not None"),
    "a number as model": ({"model": 5}, "model must be 'bundled', a folder or a hub id .*, not 5"),
    "an array as model": ({"model": np.array(["bundled", "x"])}, "model must be 'bundled', a folder .*, not array"),
    "a model's name that is too long": ({"model": "a" * 5000}, "model must be 'bundled', .*File name too long"),
    "a model's name with a zero byte": ({"model": "a\0b"}, "model must be 'bundled', a folder or a hub id"),
    "device": ({"device": None}, "unknown device 'None': choose auto, cpu, cuda or mps"),
    "dtype": ({"dtype": {}}, "unknown dtype '{}': choose one of auto, float32"),
    "torch_dtype": ({"torch_dtype": 5}, "unknown dtype '5': choose one of auto, float32"),
    "drafter": ({"drafter": 5}, "drafter must be a folder or a hub id .owner/name., not 5"),
    "engine": ({"engine": np.array(["auto", "eager"])}, "unknown engine array.*: choose one of auto, eager,"),
}


@pytest.mark.parametrize("case", LOADED)
def test_loading_refuses_in_one_line_that_names_the_argument(saved_model, unchecked, case):
    arguments, message = LOADED[case]
    with pytest.raises(HawkError, match=message) as caught:
        HawkPipeline.from_pretrained(**{"model": saved_model, "device": "cpu"} | arguments)
    assert one_short_line(caught)


SAVED = {
    "nothing": (None, "save_directory must be the path of a new folder, not None"),
    "a list": ([], r"save_directory must be the path of a new folder, not \[\]"),
    "a folder of the system": ("/proc/zz", "the model cannot be saved to /proc/zz .*: name another folder"),
}


@pytest.mark.parametrize("case", SAVED)
def test_saving_refuses_in_one_line_that_names_the_argument(pipe, unchecked, case):
    folder, message = SAVED[case]
    with pytest.raises(HawkError, match=message) as caught:
        pipe.save_pretrained(folder)
    assert one_short_line(caught)


def test_saving_to_a_loop_of_links_is_refused_in_one_line(pipe, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "loop", tmp_path / "file" / "x" / "y"):
        with pytest.raises(HawkError, match=r"the model cannot be saved to .*: name another folder") as caught:
            pipe.save_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_encoding_prompts_refuses_in_one_line(pipe, unchecked):
    for prompts, message in (
        ([], "no prompt given"),
        (5, "prompts must be text, not 5"),
        (["a cat", None], "not None"),
    ):
        with pytest.raises(HawkError, match=message):
            pipe.condition(prompts)


@pytest.fixture(scope="module")
def janus():
    from fixtures.tiny_transformers import tiny

    return tiny("janus")


AROUND = {
    "no model": ({"model": None}, "NoneType is no transformers model: give a loaded model"),
    "a name as model": ({"model": "owner/name"}, "str is no transformers model: give a loaded model"),
    "an object with another config": ({"model": Fraction}, "type is no transformers model|ABCMeta is no transformers"),
    "no processor": ({"processor": None}, "names no folder that holds its tokenizer: give processor="),
    "a number as processor": ({"processor": 5}, "processor must be the model's processor or tokenizer, not 5"),
    "a list as processor": ({"processor": []}, r"processor must be the model's processor or tokenizer, not \[\]"),
    "drafter": ({"drafter": 5}, "drafter must be a folder or a hub id .owner/name., not 5"),
    "vqgan": ({"vqgan": 5}, "vqgan must be the file of a pixel decoder .vqgan.ckpt., not 5"),
    "family": ({"family": "x"}, "unknown family 'x': choose one of chameleon, lumina"),
    "an array as family": ({"family": np.array(["lumina", "x"])}, "unknown family array.*: choose one of chameleon,"),
    "engine": ({"engine": None}, "unknown engine None: choose one of auto, eager, graph, compiled"),
}


@pytest.mark.parametrize("case", AROUND)
def test_accelerate_refuses_in_one_line_that_names_the_argument(janus, unchecked, case):
    arguments, message = AROUND[case]
    with pytest.raises(HawkError, match=message) as caught:
        accelerate(**{"model": janus.hf, "processor": janus.tokenizer} | arguments)
    assert one_short_line(caught)


def one_short_line(error: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 250


# --- numbers that are none, or too large

TOO_LARGE = {
    "a scale that is infinite in float32": ({"guidance_scale": 1e39}, "guidance_scale must lie within .* not 1e[+]39"),
    "a temperature like that": ({"temperature": 10**39}, "temperature must lie within"),
    "an infinite scale": ({"guidance_scale": 10**400}, "guidance_scale must be a finite number, not 1000"),
    "images": ({"num_images_per_prompt": 10**11}, "one call draws at most 10000 images, not 100000000000"),
    "images of several prompts": ({"prompt": ["a cat"] * 3, "num_images_per_prompt": 4000}, "not 12000"),
    "height": ({"height": 8 * 10**9}, "too many"),
    "a height of 400 digits": ({"height": 8 * 10**400}, "height must be at most 1048576 pixels, not 8000.* too many"),
    "a height of 5000 digits": ({"height": 8 * 10**5000}, "height must be at most 1048576 pixels, .* too many"),
    "a width of 71 bits": ({"width": 2**71}, "width must be at most 1048576 pixels, not 2361183241434822606848, which"),
    "width": ({"width": 10**9}, "too many"),
    "a height that is too long to print": ({"height": -(10**5000)}, "height must be .* too long to print"),
    "seed": ({"seed": 10**5000}, "a seed must be between .* too long to print"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_numbers_too_large_to_compute_with_are_refused_in_one_line(pipe, case):
    arguments, message = TOO_LARGE[case]
    with pytest.raises(HawkError, match=message) as caught:
        pipe(**{"prompt": "a cat", "method": "ar"} | arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


CLAMPED = {
    "window, batch and top_k": {"window": 10**6, "batch_size": 10**9, "top_k": 10**30},
    "scd's drafts": {"num_draft_tokens": 10**9, "method": "scd"},
    "a product of sources": {"num_draft_tokens": 10**9, "window": 10**9, "method": "hawk-paper"},
    "a Jacobi tree": {"num_draft_tokens": 10**9, "window": 10**9, "method": "sjd-pac"},
}


@pytest.fixture(scope="module")
def plain(pipe) -> torch.Tensor:
    """The tokens of plain AR for seed 5."""
    return pipe("a cat", seed=5, method="ar", height=16, width=24).tokens


@pytest.mark.parametrize("case", CLAMPED)
def test_limits_past_the_image_are_clamped_to_it(pipe, plain, case):
    drawn = pipe("a cat", seed=5, height=16, width=24, **{"verifier": "coupled"} | CLAMPED[case])
    assert torch.equal(drawn.tokens, plain)


def test_limits_within_the_image_stay():
    assert TreeLimits(31, 5).within(Grid(4, 6)) == TreeLimits(31, 5)
    assert TreeLimits(10**9, 10**9).within(Grid(4, 6)) == TreeLimits(MOST_DRAFTS, 23)
    assert TreeLimits().within(Grid(1, 1)) == TreeLimits()
    assert TreeLimits(window=2).within(Grid(1, 1)).window == 1


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-300, 9e-6])
def test_a_temperature_near_0_is_greedy(temperature):
    params = SamplingParams(temperature=temperature)
    assert params.greedy
    assert log_probs(torch.tensor([1.0, 3.0, 3.0, 2.0]), params).exp().tolist() == [0, 1, 0, 0]
    assert not SamplingParams(temperature=1e-5).greedy
    assert log_probs(torch.tensor([1e4, 3.0]), SamplingParams(temperature=1e-5)).exp().tolist() == [1, 0]


def test_a_top_p_near_0_keeps_the_likeliest_token():
    logits = torch.tensor([1.0, 3.0, 2.0])
    assert log_probs(logits, SamplingParams(top_p=1e-320)).exp().tolist() == [0, 1, 0]


@pytest.mark.parametrize("scale", [0, 0.5, 1, -3.0])
def test_guidance_of_1_or_less_is_off(pipe, scale):
    output = pipe("a cat", seed=1, method="ar", guidance_scale=scale)
    assert not output.params.guided
    assert torch.equal(output.tokens, pipe("a cat", seed=1, method="ar", guidance_scale=1.0).tokens)

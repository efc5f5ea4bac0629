"""What people pass to the pipeline: numbers of every kind are taken, and anything else is refused by name."""

from fractions import Fraction

import jaxtyping
import numpy as np
import pytest
import torch

from hawk import HawkError, HawkPipeline, SamplingParams
from hawk.decoding.arguments import real_number, whole_number
from hawk.drafters.settings import TreeLimits
from hawk.pipeline import image_seeds


@pytest.fixture(scope="module")
def pipe(saved_model) -> HawkPipeline:
    return HawkPipeline.from_pretrained(saved_model, device="cpu", dtype="float64")


@pytest.fixture
def unchecked():
    """No type checks: a test sees what a caller sees who passes what the signature does not allow."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
    "callback": ({"callback_on_step_end": 5}, "callback_on_step_end must be a function, not 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_everything_else_is_refused_in_one_line_that_names_it(pipe, unchecked, case):
    arguments, message = REFUSED[case]
    with pytest.raises(HawkError, match=message) as caught:
        pipe(**{"prompt": "a cat", "method": "ar"} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [0, 0.5, 1, -3.0])
def test_guidance_of_1_or_less_is_off(pipe, scale):
    output = pipe("a cat", seed=1, method="ar", guidance_scale=scale)
    assert not output.params.guided
    assert torch.equal(output.tokens, pipe("a cat", seed=1, method="ar", guidance_scale=1.0).tokens)

"""From logits to the target's distribution, and the noise that draws from it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawk.decoding.noise import GumbelNoise, Randomness, counters, gumbel_rows, uniform_rows
from hawk.decoding.sampling import SamplingParams, guide, gumbel_argmax, log_probs
from hawk.errors import HawkError
from hawk.proofs.losslessness import chi_square

F64 = torch.float64
FLAT = 1e-4  # smallest p-value that a right sampler may show; the seeds are fixed


def probs(logits, **params):
    return log_probs(torch.tensor(logits, dtype=F64), SamplingParams(**params)).exp()


# --- guidance


def test_guidance_is_uncond_plus_scale_times_the_difference():
    cond, uncond = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])
    assert guide(cond, uncond, 3.0).tolist() == [7.0, -1.0]
    assert torch.equal(guide(cond, uncond, 1.0), cond)


def test_guiding_states_before_a_linear_head_guides_the_logits():
    cond, uncond = torch.randn(2, 5, 8, dtype=F64), torch.randn(2, 5, 8, dtype=F64)
    head = torch.nn.Linear(8, 11, bias=False, dtype=F64)
    torch.testing.assert_close(head(guide(cond, uncond, 2.5)), guide(head(cond), head(uncond), 2.5))


# --- filters


def test_temperature_divides_the_logits():
    assert probs([0.0, math.log(4.0)], temperature=2.0).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_temperature_zero_is_the_first_largest_logit():
    assert probs([1.0, 3.0, 3.0, 2.0], temperature=0.0, top_k=2, top_p=0.5).tolist() == [0, 1, 0, 0]
    assert log_probs(torch.zeros(2, 3, 4), SamplingParams(temperature=0.0)).exp().sum(-1).eq(1).all()


def test_top_k_keeps_the_k_largest_and_their_proportions():
    kept = probs([math.log(n) for n in (1, 2, 3, 4)], top_k=2)
    assert kept.tolist() == pytest.approx([0, 0, 3 / 7, 4 / 7])
    assert probs([0.0, 1.0], top_k=5).tolist() == probs([0.0, 1.0]).tolist()
    assert probs([0.0, 1.0], top_k=0).tolist() == probs([0.0, 1.0]).tolist()


def test_top_k_keeps_every_token_tied_with_the_kth():
    assert probs([2.0, 1.0, 1.0, 0.0], top_k=2).gt(0).tolist() == [True, True, True, False]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = [math.log(n) for n in (0.1, 0.5, 0.15, 0.25)]
    assert probs(logits, top_p=0.4).tolist() == pytest.approx([0, 1, 0, 0])
    assert probs(logits, top_p=0.6).tolist() == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert probs(logits, top_p=0.8).gt(0).tolist() == [False, True, True, True]
    assert probs(logits, top_p=1.0).gt(0).all()
    assert probs(logits, top_p=1e-9).tolist() == pytest.approx([0, 1, 0, 0])  # never the empty set


def test_filters_apply_in_the_order_temperature_top_k_top_p():
    logits = [math.log(n) for n in (0.4, 0.3, 0.2, 0.1)]
    # top-k first leaves 4/7 and 3/7: 0.5 is then reached by one token, of all four it takes two
    assert probs(logits, top_k=2, top_p=0.5).gt(0).tolist() == [True, False, False, False]
    assert probs(logits, top_p=0.5).gt(0).tolist() == [True, True, False, False]
    # a low temperature sharpens before the nucleus is cut
    assert probs(logits, temperature=0.2, top_p=0.7).gt(0).tolist() == [True, False, False, False]


logit_rows = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12)


@given(logit_rows, st.sampled_from([0.0, 0.3, 1.0, 2.5]), st.integers(0, 14), st.floats(0.01, 1))
def test_log_probs_are_normalised_and_keep_the_likeliest(logits, temperature, top_k, top_p):
    values = torch.tensor(logits, dtype=F64)
    log_p = log_probs(values, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p))
    assert float(log_p.exp().sum()) == pytest.approx(1)
    assert not bool(log_p.isnan().any())
    assert float(values[log_p.argmax()]) == pytest.approx(float(values.max()), abs=1e-12)
    kept = log_p > -torch.inf
    if not bool(kept.all()):  # nothing that was removed is likelier than anything that was kept
        assert values[~kept].max() <= values[kept].min()


@given(logit_rows, st.floats(0.05, 0.99))
def test_no_smaller_set_reaches_top_p(logits, top_p):
    p = probs(logits)
    kept = probs(logits, top_p=top_p) > 0
    assert float(p[kept].sum()) >= top_p - 1e-9
    assert float(p[kept].sum() - p[kept].min()) < top_p + 1e-9


def test_half_precision_is_widened_and_double_is_kept():
    assert log_probs(torch.zeros(3, dtype=torch.bfloat16), SamplingParams()).dtype == torch.float32
    assert log_probs(torch.zeros(3, dtype=F64), SamplingParams()).dtype == F64


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"temperature": math.nan}, "temperature must be a finite number"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"cfg_scale": 0.5}, "cfg_scale must be from 1"),
        ({"cfg_scale": math.inf}, "cfg_scale must be a finite number"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(bad, complaint):
    with pytest.raises(HawkError, match=complaint) as caught:
        SamplingParams(**bad)
    assert "\n" not in str(caught.value)


def test_guided_says_whether_an_unconditional_row_is_needed():
    assert not SamplingParams().guided
    assert SamplingParams(cfg_scale=1.5).guided


# --- noise


def noise_of(seeds, positions=6, vocab=5):
    return GumbelNoise(seeds, positions, vocab, like=torch.zeros(0, dtype=F64))


def test_noise_depends_on_seed_and_position_only():
    together = noise_of([3, 4]).rows(torch.arange(6).repeat(2, 1))
    backwards = noise_of([4, 3])
    for position in (5, 2, 0, 4, 1, 3):  # other batch order, one position at a time, last first
        row = backwards.rows(torch.tensor([[position], [position]]))
        assert torch.equal(row[1, 0], together[0, position])
        assert torch.equal(row[0, 0], together[1, position])
    windows = noise_of([3, 4]).rows(torch.tensor([[4, 2, 2], [0, 5, 1]]))  # each image its own frontier
    assert torch.equal(windows[0], together[0, [4, 2, 2]])
    assert torch.equal(windows[1], together[1, [0, 5, 1]])


def test_noise_of_a_position_does_not_depend_on_how_many_there_are():
    short, long = noise_of([3], positions=4), noise_of([3], positions=9)
    assert torch.equal(short.rows(torch.arange(4)[None]), long.rows(torch.arange(4)[None]))


@pytest.mark.parametrize("vocab", [3, 4, 5, 64])
def test_noise_of_a_position_is_the_same_in_any_block(vocab: int):
    together = gumbel_rows(9, 0, 40, vocab)
    for first in (0, 1, 7, 39):
        np.testing.assert_allclose(gumbel_rows(9, first, 1, vocab)[0], together[first], rtol=1e-12)


def test_noise_past_the_end_repeats_the_last_position():
    noise = noise_of([3])
    assert torch.equal(noise.rows(torch.tensor([[9]])), noise.rows(torch.tensor([[5]])))


def test_noise_differs_between_seeds_positions_and_tokens():
    table = noise_of([1, 2, 3]).rows(torch.arange(6).repeat(3, 1))
    assert table.unique().numel() == table.numel()


def test_noise_is_standard_gumbel():
    """Kolmogorov-Smirnov against exp(-exp(-x)), over positions and over seeds."""
    by_position = gumbel_rows(7, 0, 64, 64).flatten().numpy()
    by_seed = np.concatenate([gumbel_rows(seed, 0, 1, 64)[0] for seed in range(64)])
    for sample in (by_position, by_seed):
        cdf = np.exp(-np.exp(-np.sort(sample)))
        steps = np.arange(len(sample) + 1) / len(sample)
        distance = max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max())
        assert distance < 1.95 / math.sqrt(len(sample))  # 0.1 % level
        assert np.isfinite(sample).all()


def test_argmax_of_log_p_plus_noise_is_distributed_as_p():
    p = torch.tensor([0.5, 0.2, 0.0, 0.25, 0.05], dtype=F64)
    noise = gumbel_rows(11, 0, 6000, 5)
    drawn = gumbel_argmax(p.log().expand_as(noise), noise)
    assert chi_square(torch.bincount(drawn, minlength=5), p).p_value > FLAT


def test_draws_at_neighbouring_positions_are_independent():
    p = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    noise = gumbel_rows(5, 0, 6000, 3)
    drawn = gumbel_argmax(p.log().expand_as(noise), noise).view(-1, 2)
    pairs = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)
    assert chi_square(pairs, torch.outer(p, p).flatten()).p_value > FLAT


def test_the_uniforms_of_an_image_follow_from_its_seed_alone():
    like = torch.zeros(0)
    first = Randomness.from_seeds([1, 2], 4, 3, like).generators[1]
    second = Randomness.from_seeds([2], 9, 7, like).generators[0]
    assert torch.equal(torch.rand(5, generator=first), torch.rand(5, generator=second))


@pytest.mark.parametrize("seed", [0, 7, 2**62, 2**63 - 1])
@pytest.mark.parametrize(("first", "count", "vocab"), [(0, 3, 12), (5, 16, 2048), (100_000, 2, 7)])
def test_an_accelerator_draws_the_very_numbers_that_numpy_draws(seed: int, first: int, count: int, vocab: int) -> None:
    blocks = counters(vocab)
    numpy = np.random.Generator(np.random.Philox(key=seed, counter=first * blocks)).random((count, 4 * blocks))
    ours = uniform_rows(seed, first, count, vocab, torch.device("cpu"))
    np.testing.assert_array_equal(ours.numpy(), numpy[:, :vocab])


def test_the_same_memory_serves_other_seeds():
    noise, positions = noise_of([3, 4]), torch.arange(6).repeat(2, 1)
    noise.rows(positions)
    noise.restart([8, 9])
    assert torch.equal(noise.rows(positions), noise_of([8, 9]).rows(positions))


def test_noise_is_the_same_in_any_order_though_little_of_it_is_held():
    seeds, positions, vocab = [3, 9], 700, 5
    whole = torch.stack([gumbel_rows(seed, 0, positions, vocab) for seed in seeds])
    noise = GumbelNoise(seeds, positions, vocab, whole)
    for first, second in [(0, 3), (60, 90), (500, 640), (620, 699), (10, 12), (699, 300)]:
        asked = torch.tensor([[first, first + 1], [second, second + 2]])
        expected = torch.stack([row[at.clamp(max=positions - 1)] for row, at in zip(whole, asked, strict=True)])
        assert torch.equal(noise.rows(asked), expected)
        assert torch.equal(noise.window(1, second, 1), whole[1, second : second + 1])
        assert torch.equal(noise.window(0, 40, 30), whole[0, 40:70])
    frontier = GumbelNoise(seeds, positions, vocab, whole)
    for start in range(0, positions - 32, 7):
        frontier.window(1, start + 5, 32)
        frontier.rows(torch.arange(start, start + 32).expand(2, 32))
    assert frontier.ring <= 200, "what lies behind the frontier is forgotten"

"""Noise as a function: known answers, accuracy, independence, statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ncsn_fast import noise

ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [
    ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES, ONES), (ONES, ONES, ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def philox_in_python(key, counter):
    """The published algorithm word by word, in Python's own integers."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & ONES, (p0 >> 32) ^ c3 ^ k1, p0 & ONES
        k0, k1 = (k0 + 0x9E3779B9) & ONES, (k1 + 0xBB67AE85) & ONES
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("key", "counter", "words"), KNOWN_ANSWERS)
def test_philox_gives_its_known_answers(key, counter, words):
    assert [f"{int(word):08x}" for word in noise.philox4x32(key, counter)] == words.split()


word = st.integers(0, ONES)


@settings(max_examples=50)
@given(st.tuples(word, word), st.tuples(word, word, word, word))
def test_philox_agrees_with_big_integers(key, counter):
    assert [int(w) for w in noise.philox4x32(key, counter)] == philox_in_python(key, counter)


def test_the_counter_is_laid_out_as_documented():
    seed, step, sample, stream = 0x0123456789ABCDEF, 77, 0xABCD_1234_5678, 5
    u = noise.uniform(
        (9,), seed=seed, stream=stream, sample_ids=[sample], step=step, dtype=torch.float64
    )
    for element in range(9):
        counter = (element // 4, step, sample & ONES, (sample >> 32) | (stream << 16))
        words = philox_in_python((seed & ONES, seed >> 32), counter)
        assert float(u[0, element]) == (words[element % 4] + 0.5) * 2.0**-32


def test_normals_are_box_muller_of_the_words():
    words = philox_in_python((3, 0), (0, 2, 4, 1 << 16))
    z = noise.normal((4,), seed=3, stream=1, sample_ids=[4], step=2, dtype=torch.float64)[0]
    for a, b, pair in ((words[0], words[1], z[:2]), (words[2], words[3], z[2:])):
        r = math.sqrt(-2 * math.log((a + 0.5) / 2**32))
        theta = 2 * math.pi * ((b + 0.5) / 2**32 - 0.5)
        assert pair.tolist() == pytest.approx([r * math.cos(theta), r * math.sin(theta)], rel=1e-12)


def test_integers_are_scaled_words():
    words = philox_in_python((3, 0), (0, 2, 4, 4 << 16))
    drawn = noise.integers(232, (4,), seed=3, stream=4, sample_ids=[4], step=2)
    assert drawn.tolist() == [[(w * 232) >> 32 for w in words]]


def radii(z):
    return z.view(-1, 2).norm(dim=1).repeat_interleave(2).view_as(z)


def test_float32_normals_are_accurate():
    which = {"seed": 11, "stream": 1, "sample_ids": range(8)}
    exact = noise.normal((1 << 17,), **which, dtype=torch.float64)
    error = (noise.normal((1 << 17,), **which) - exact).abs()
    large = radii(exact) > 0.1
    assert float(error[large].max()) < 2e-6
    assert float(error[~large].max()) < 5e-5


@pytest.mark.parametrize("radius_word", [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
@pytest.mark.parametrize("angle_word", [0, 2**31 - 1, 2**31, 2**32 - 1])
def test_normals_are_accurate_at_the_ends_of_the_range(radius_word, angle_word):
    words = tuple(torch.tensor(w) for w in (radius_word, angle_word, radius_word, angle_word))
    exact = noise._box_muller(words, torch.float64)
    single = noise._box_muller(words, torch.float32)
    for a, b in zip(exact, single, strict=True):
        assert float(b) == pytest.approx(float(a), abs=2e-6)


def test_the_largest_radius_is_that_of_the_first_word():
    words = tuple(torch.tensor(w) for w in (0, 2**31, 0, 2**31))
    assert float(noise._box_muller(words, torch.float32)[0]) == pytest.approx(6.7637, abs=1e-3)


def test_uniforms_stay_inside_the_open_interval():
    ends = torch.tensor([0, ONES])
    for dtype in (torch.float32, torch.float64):
        u = noise._uniform((ends,), dtype)[0]
        assert float(u.min()) > 0
        assert float(u.max()) < 1


def test_half_precision_is_the_rounded_single_precision():
    which = {"seed": 1, "stream": 1, "sample_ids": range(4)}
    for dtype in (torch.float16, torch.bfloat16):
        z = noise.normal((100,), **which, dtype=dtype)
        assert torch.equal(z, noise.normal((100,), **which).to(dtype))


def test_a_sample_is_the_same_in_every_batch():
    whole = noise.normal((3, 5, 7), seed=9, stream=1, sample_ids=range(10), step=4)
    for i in (0, 3, 9):
        one = noise.normal((3, 5, 7), seed=9, stream=1, sample_ids=[i], step=4)
        assert torch.equal(one[0], whole[i])


def test_blocks_of_the_computation_leave_no_trace(monkeypatch):
    which = {"seed": 9, "stream": 1, "sample_ids": range(7), "step": 4}
    whole = noise.normal((50,), **which)
    for block in (1, 3, 13, 40):
        monkeypatch.setattr(noise, "_CPU_BLOCK", block)
        assert torch.equal(noise.normal((50,), **which), whole)


def test_an_element_does_not_depend_on_the_shape():
    short = noise.normal((5,), seed=1, stream=1, sample_ids=[0])
    long = noise.normal((2, 4), seed=1, stream=1, sample_ids=[0])
    assert torch.equal(long.flatten()[:5], short[0])


def test_seed_and_step_may_be_tensors():
    seed = 0xFEDCBA9876543210
    as_bits = torch.tensor(seed - 2**64)
    by_int = noise.normal((6,), seed=seed, stream=1, sample_ids=[1, 2], step=3)
    by_tensor = noise.normal((6,), seed=as_bits, stream=1, sample_ids=[1, 2], step=torch.tensor(3))
    assert torch.equal(by_int, by_tensor)


def test_many_steps_are_drawn_at_once_as_one_by_one():
    which = {"seed": 3, "stream": 1, "sample_ids": [4, 7]}
    steps = torch.tensor([5, 6, 9])
    together = noise.normal((3, 2), **which, step=steps)
    assert together.shape == (3, 2, 3, 2)
    for step, z in zip(steps.tolist(), together, strict=True):
        assert torch.equal(z, noise.normal((3, 2), **which, step=step))


def test_the_defaults_of_torch_change_nothing():
    which = {"seed": 3, "stream": 1, "sample_ids": [4, 7]}
    expected = noise.normal((3,), **which)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = noise.normal((3,), **which)
        with pytest.raises(ValueError, match="sample ids from -1"):
            noise.normal((3,), seed=3, stream=1, sample_ids=[-1])
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(found, expected)


def test_empty_draws_have_their_shape():
    assert noise.normal((3, 4), seed=0, stream=1, sample_ids=[]).shape == (0, 3, 4)
    assert noise.normal((0,), seed=0, stream=1, sample_ids=[1]).shape == (1, 0)


def draw(n=1 << 20, **which):
    given = {"seed": 2024, "stream": 1, "sample_ids": [0], "step": 0, **which}
    return noise.normal((n,), **given, dtype=torch.float64)[0].numpy()


def test_normals_have_the_moments_of_a_normal_law():
    z = draw()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)


def test_normals_and_uniforms_pass_kolmogorov_smirnov():
    assert stats.kstest(draw(), "norm").pvalue > 1e-3
    u = noise.uniform((1 << 20,), seed=7, stream=5, sample_ids=[0], dtype=torch.float64)[0].numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_each_lane_of_a_block_is_normal():
    z = draw().reshape(-1, 4)
    for lane in range(4):
        assert stats.kstest(z[:, lane], "norm").pvalue > 1e-3


def test_integers_are_uniform():
    counts = np.bincount(
        noise.integers(10, (1 << 18,), seed=5, stream=4, sample_ids=[0])[0].numpy(), minlength=10
    )
    assert stats.chisquare(counts).pvalue > 1e-3


def correlation(a, b):
    return abs(np.mean(a * b)) * math.sqrt(len(a))


@pytest.mark.parametrize(
    "other",
    [{"step": 1}, {"sample_ids": [1]}, {"stream": 2}, {"seed": 2025}, {"sample_ids": [1 << 32]}],
)
def test_draws_that_differ_in_one_argument_are_uncorrelated(other):
    a, b = draw(1 << 18), draw(1 << 18, **other)
    assert correlation(a, b) < 4.5
    assert correlation(a**2 - 1, b**2 - 1) / 2 < 4.5


def test_elements_and_lanes_are_uncorrelated():
    z = draw(1 << 18)
    for lag in (1, 2, 3, 4, 5, 64):
        assert correlation(z[:-lag], z[lag:]) < 4.5
    lanes = z.reshape(-1, 4).T
    for i in range(4):
        for j in range(i):
            assert correlation(lanes[i], lanes[j]) < 4.5


def test_no_block_repeats_over_samples_steps_streams_and_elements():
    seen = set()
    blocks = 0
    for stream in range(4):
        for step in range(4):
            u = noise.uniform(
                (256,),
                seed=1,
                stream=stream,
                sample_ids=[0, 1, 1 << 32, (1 << 47) + 1],
                step=step,
                dtype=torch.float64,
            )
            rows = u.view(-1, 4).tolist()
            blocks += len(rows)
            seen.update(map(tuple, rows))
    assert len(seen) == blocks


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed = -1: a seed is an integer from 0"),
        ({"seed": 1 << 64}, "a seed is an integer from 0"),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"sample_ids": [-1]}, "sample ids from -1"),
        ({"sample_ids": [1 << 48]}, "allowed are 0 to 2⁴⁸ - 1"),
        ({"sample_ids": torch.zeros(2)}, "1-D int64 tensor"),
        ({"sample_ids": [0.3, 1.9]}, "whole numbers: 'float'"),
        ({"sample_ids": [1 << 64]}, "allowed are 0 to 2⁴⁸ - 1"),
        ({"seed": torch.tensor(3.0).numpy()}, "seed = "),
        ({"step": -1}, "step = -1"),
        ({"step": 1 << 32}, "allowed are 0 to 2³² - 1"),
        ({"stream": 1 << 16}, "stream = 65536"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, message):
    given = {"seed": 0, "stream": 1, "sample_ids": [0], **wrong}
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        noise.normal((4,), **given)


def test_integers_below_less_than_one_are_refused():
    with pytest.raises(ValueError, match="high = 0"):
        noise.integers(0, seed=0, stream=4, sample_ids=[0])


def test_random_seed_follows_torch():
    torch.manual_seed(5)
    first = noise.random_seed()
    second = noise.random_seed()
    torch.manual_seed(5)
    assert noise.random_seed() == first != second


def test_no_two_purposes_share_a_stream():
    streams = {k: v for k, v in vars(noise).items() if k.isupper() and not k.startswith("_")}
    assert sorted(streams.values()) == list(range(10))

"""The native CPU kernels of noise, sampling and loss against the specification, as each capability
of a CPU compiles them."""

import itertools
import math

import pytest
import torch
from cases.common import (
    NATIVE_DTYPES,
    SEED,
    STEP,
    assert_close,
    draw,
    laid,
    normal,
    poisoned,
)
from cases.native import (
    CAPABILITIES,
    CPP,
    norm_parameters,
    run_update,
    specified_update,
    update_inputs,
    which_noise,
)

import ncsn_fast as nf
from ncsn_fast import noise, reference
from ncsn_fast.device import native

pytestmark = pytest.mark.native
EVERYTHING = "noise history guidance mask scale"
VARIANTS = (
    *("", "noise", "history", "noise history", "noise guidance", "noise mask"),
    *("mask", "noise scale", "z", EVERYTHING),
)
# Shapes of batches, and whether what belongs to a network is channels_last.
LAYOUTS = (
    *(((2, 1100), False), ((2, 3, 9, 11), True), ((2, 3, 16, 18), True), ((2, 3, 9, 11), False)),
    *(((1, 3, 40, 50), True), ((260, 4), False), ((70, 3), False), ((5, 2), False)),
    *(((6, 1), False), ((3, 5, 1, 1), True), ((3, 1, 7, 7), True), ((2, 9, 4, 4), True)),
)


@pytest.fixture(autouse=True, params=CAPABILITIES)
def capability(request):
    """Run a test with the code for each capability that this CPU has."""
    CPP.capability(request.param)
    yield request.param
    CPP.capability("")


@pytest.mark.parametrize("count", [1, 64, 130])
def test_words_are_those_of_philox(count):
    generator = torch.Generator().manual_seed(3)
    counters = torch.randint(0, 1 << 32, (count, 4), generator=generator)
    key = (SEED & 0xFFFFFFFF, SEED >> 32)
    expected = torch.stack(noise.philox4x32(key, tuple(counters.T)), 1)
    assert torch.equal(CPP.words(SEED - (1 << 64), counters), expected)


def test_words_are_the_published_ones():
    counters = torch.tensor([[0, 0, 0, 0]])
    words = [f"{word:08x}" for word in CPP.words(0, counters)[0].tolist()]
    assert " ".join(words) == "6627e8d5 e169c58d bc57ac4c 9b00dbd8"
    counters = torch.tensor([[0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]])
    words = [f"{word:08x}" for word in CPP.words(0x299F31D0A4093822, counters)[0].tolist()]
    assert " ".join(words) == "d16cfe09 94fdcceb 5001e420 24126ea1"


def test_normals_are_accurate():
    seed, step, ids = which_noise(2)
    found = CPP.normal(ids, [1 << 20], seed, step, noise.SAMPLER).double()
    exact = normal((2, 1 << 20), noise.SAMPLER, STEP, torch.float64)
    assert (found - exact).abs().max() < 2e-6


@pytest.mark.parametrize("shape", [(3, 1), (130, 3), (2, 5, 7), (1, 4099), (70, 260)])
def test_normals_are_those_of_their_samples(shape):
    seed, step, ids = which_noise(shape[0])
    found = CPP.normal(ids, shape[1:], seed, step, noise.KNOWN)
    exact = normal(shape, noise.KNOWN, STEP, torch.float64)
    assert (found.double() - exact).abs().max() < 2e-6
    for i in (0, shape[0] - 1):
        alone = CPP.normal(ids[i : i + 1], shape[1:], seed, step, noise.KNOWN)
        assert torch.equal(alone[0], found[i])


def check_update(shape, last, uses, n_type):
    inputs = update_inputs(shape, uses, n_type)
    kept = poisoned(shape) if "history" in uses else None
    network_input = poisoned(shape) if "scale" in uses else None
    laid_out = {**inputs, "n": laid(inputs["n"], last)}
    found = run_update(laid_out, uses, (poisoned(shape), kept, network_input))
    exact = specified_update(inputs, uses, torch.float64)
    plain = specified_update(inputs, uses, torch.float32)
    for result, e, p in zip(found, exact, plain, strict=True):
        if result is not None:
            assert_close(result, e, p)


@pytest.mark.parametrize("uses", VARIANTS)
def test_every_variant_of_sampler_update_is_its_specification(uses):
    for n_type in NATIVE_DTYPES:
        check_update((2, 3, 16, 18), True, uses, n_type)
        check_update((2, 1100), False, uses, n_type)


@pytest.mark.parametrize(("shape", "last"), LAYOUTS)
def test_sampler_update_takes_any_layout(shape, last):
    check_update(shape, last, EVERYTHING, torch.bfloat16)
    check_update(shape, last, EVERYTHING, torch.float32)


def test_sampler_update_may_write_where_it_reads():
    inputs = update_inputs((2, 3, 20, 18), EVERYTHING, torch.float32)
    apart = (poisoned((2, 3, 20, 18)), poisoned((2, 3, 20, 18)), None)
    run_update(inputs, EVERYTHING, apart)
    run_update(inputs, EVERYTHING, (inputs["x"], inputs["history"], None))
    assert torch.equal(inputs["x"], apart[0])
    assert torch.equal(inputs["history"], apart[1])


def test_sampler_update_takes_any_view_of_the_output_of_a_network():
    inputs = update_inputs((2, 3, 4, 6), "noise history", torch.bfloat16)
    n = inputs["n"]
    for view in (
        n.mT.contiguous().mT,
        n.repeat(1, 1, 1, 2)[..., ::2],
        n[:1, :, :1].expand(n.shape),
    ):
        found, expected = (
            run_update({**inputs, "n": one}, "noise history", (poisoned(n.shape),) * 2 + (None,))
            for one in (view, view.contiguous())
        )
        assert torch.equal(found[0], expected[0])


def test_only_the_known_region_replaces_a_nan():
    inputs = update_inputs((1, 8), "noise mask", torch.float32)
    inputs["x"][0, :4] = torch.tensor([math.nan, math.nan, math.inf, -math.inf])
    inputs["mask"][0, :4] = torch.tensor([False, True, False, False])
    found, _, _ = run_update(inputs, "noise mask", (poisoned((1, 8)), None, None))
    assert found.isnan().tolist() == [[True] + [False] * 7]
    assert found[0, 2:4].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("shape", sorted({shape for shape, _ in LAYOUTS}))
def test_perturb_is_its_specification(shape):
    x, sigma = draw(shape), torch.rand(shape[0]) + 0.1
    found = poisoned(shape)
    CPP.perturb(x, sigma, *which_noise(shape[0]), found)
    z = normal(shape, noise.PERTURB, STEP, torch.float64)
    exact = reference.perturb(x.double(), sigma.double(), z)
    assert_close(found, exact, reference.perturb(x, sigma, z.float()))


@pytest.mark.parametrize(("shape", "last"), LAYOUTS)
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_dsm_loss_and_its_gradient_are_their_specification(shape, last, dtype, weighted):
    n, upstream = draw(shape, dtype, last), torch.rand(shape[0]) + 0.1
    weight = torch.rand(shape[0]) + 0.5 if weighted else None
    loss, gradient = poisoned(shape[:1]), poisoned(shape, dtype, last)
    CPP.dsm_loss(n, weight, *which_noise(shape[0]), upstream, loss, gradient)
    exact_z = normal(shape, noise.PERTURB, STEP, torch.float64)
    wide = None if weight is None else weight.double()
    exact = reference.dsm_loss(n, exact_z, wide)
    # One sum of many terms: relative to its size.
    size = exact.max()
    assert_close(loss / size, exact / size, reference.dsm_loss(n, exact_z.float(), weight) / size)
    exact = reference.dsm_gradient(n.double(), exact_z, wide, upstream.double())
    plain = reference.dsm_gradient(n, exact_z.float(), weight, upstream)
    assert_close(gradient, exact, plain)


def test_a_sample_has_the_same_loss_in_any_batch():
    for shape in ((3, 5000), (40, 100), (700, 3)):
        n, (seed, step, ids) = draw(shape), which_noise(shape[0])
        loss, alone = poisoned(shape[:1]), poisoned((1,))
        CPP.dsm_loss(n, None, seed, step, ids, None, loss, None)
        for i in (0, 1, shape[0] - 1):
            CPP.dsm_loss(n[i : i + 1], None, seed, step, ids[i : i + 1], None, alone, None)
            assert torch.equal(alone[0], loss[i])


def test_bfloat16_is_rounded_as_pytorch_rounds():
    """In the gradient of the loss, 1.5·(n + z): every odd n of [128, 170]·2ᵏ is a tie."""
    bits = torch.randint(
        -(1 << 15), 1 << 15, (1, 1 << 17), generator=torch.Generator().manual_seed(5)
    )
    n = bits.to(torch.int16).view(torch.bfloat16)
    n[0, :4] = torch.tensor([math.nan, math.inf, -math.inf, 3.38e38])
    exact, found = poisoned(n.shape), poisoned(n.shape, torch.bfloat16)
    for of, gradient in ((n.float(), exact), (n, found)):
        CPP.dsm_loss(of, None, *which_noise(1), torch.tensor([1.5]), None, gradient)
    ties = exact.isfinite() & (exact.view(torch.int32) & 0xFFFF == 0x8000)
    assert ties.sum() > 1000
    torch.testing.assert_close(found, exact.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


def everything(shape, dtype, last):
    """The results of all kernels for one batch."""
    x, other, small = (draw(shape, dtype, last, seed) for seed in (0, 1, 2))
    which, ones, uses = (
        which_noise(shape[0]),
        torch.ones(shape[0]),
        "noise history mask scale",
    )
    inputs = update_inputs(shape, uses, dtype)
    update = (poisoned(shape), poisoned(shape), poisoned(shape))
    run_update({**inputs, "n": laid(inputs["n"], last)}, uses, update)
    found, loss, gradient = poisoned(shape), ones.clone(), poisoned(shape, dtype, last)
    CPP.perturb(inputs["x"], ones, *which, found)
    CPP.dsm_loss(x, None, *which, ones, loss, gradient)
    parameters = norm_parameters(shape, False)
    y, statistics = CPP.instance_norm_plus(x, *parameters, 1e-5, "elu")
    small = small[:, :, ::2, ::2]
    seed, step, ids = which
    return (
        *(*update, found, loss, gradient, y, statistics, CPP.activate(x, "elu")),
        *CPP.instance_norm_plus_backward(other, x, *parameters, statistics, 1e-5, "elu"),
        CPP.normal(ids, shape[1:], seed, step, noise.SAMPLER),
        CPP.activate_backward(x, other, None, "elu"),
        *CPP.residual_add(x, other, "elu"),
        *CPP.max_pool5(x, "elu"),
        CPP.max_pool5_backward(x, other, other, "elu"),
        CPP.resize_add(small, x),
        CPP.resize_add_backward(other, *small.shape[2:]),
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("shape", [(5, 64, 24, 24), (1, 96, 40, 40)])
def test_results_do_not_depend_on_the_number_of_threads(shape, dtype, last):
    expected = everything(shape, dtype, last)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        try:
            found = everything(shape, dtype, last)
        finally:
            torch.set_num_threads(1)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def test_noise_is_drawn_by_the_kernels_where_they_are_built(monkeypatch):
    which = {"seed": SEED, "stream": noise.SAMPLER, "sample_ids": (7, 1 << 40), "step": STEP}
    seed, step, _ = which_noise(2)
    ids = noise.as_sample_ids(which["sample_ids"])
    expected = CPP.normal(ids, [3, 5, 5], seed, step, noise.SAMPLER)
    assert torch.equal(noise.normal((3, 5, 5), **which), expected)
    with nf.use_backend("torch"):
        specified = noise.normal((3, 5, 5), **which)
    assert not torch.equal(specified, expected)
    torch.testing.assert_close(expected, specified, atol=5e-5, rtol=0)
    monkeypatch.setattr(native, "ready", lambda: None)
    monkeypatch.setattr(native, "build", lambda: pytest.fail("built"))
    assert torch.equal(noise.normal((3, 5, 5), **which), specified)


def test_noise_of_many_steps_is_that_of_each():
    which = {"seed": torch.tensor(-5), "stream": noise.KNOWN, "sample_ids": torch.arange(9)[::2]}
    steps = torch.tensor([[3, 9, 3], [0, 1, 2]])
    z = noise.normal((50, 7), **which, step=steps, dtype=torch.bfloat16)
    assert z.shape == (2, 3, 5, 50, 7)
    for i, j in itertools.product(range(2), range(3)):
        one = noise.normal((50, 7), **which, step=int(steps[i, j])).bfloat16()
        assert torch.equal(z[i, j], one)
    assert noise.normal((2,), **which, step=steps[:0]).shape == (0, 3, 5, 2)

"""The kernels of the CPU on several threads: what an item is does not depend on the others."""

import pytest
import torch
from cases.common import COEFFICIENTS, NATIVE_DTYPES, Buffers, draw, every_native_way, poisoned
from cases.states import which_noise

from ncsn_fast import noise
from ncsn_fast.device import native


def everything(shape, dtype, last):
    """The results of all kernels for one batch."""
    kernels = native.ops()
    x, other, small = (draw(shape, dtype, last, seed) for seed in (0, 1, 2))
    state, history, known = (draw(shape, seed=seed) for seed in (3, 4, 5))
    seed, step, ids = which = tuple(which_noise(shape[0], Buffers("cpu")).values())
    ones, mask = torch.ones(shape[0]), known > 0.3
    update = [poisoned(shape) for _ in range(3)]
    kernels.sampler_update(
        *(state, x, torch.tensor(COEFFICIENTS), *which, None, history, None, mask, known),
        *(True, *update),
    )
    found, loss, gradient = poisoned(shape), ones.clone(), poisoned(shape, dtype, last)
    kernels.perturb(state, ones, *which, found)
    kernels.dsm_loss(x, None, *which, ones, loss, gradient)
    gamma, alpha, beta = (draw(shape[1:2], seed=seed) for seed in (6, 7, 8))
    parameters = 1 + 0.1 * gamma, 1 + 0.1 * alpha, 0.1 * beta
    y, statistics = kernels.instance_norm_plus(x, *parameters, 1e-5, "elu")
    small = small[:, :, ::2, ::2]
    return (
        *(*update, found, loss, gradient, y, statistics, kernels.activate(x, "elu")),
        *kernels.instance_norm_plus_backward(other, x, *parameters, statistics, 1e-5, "elu"),
        kernels.normal(ids, shape, int(seed), [int(step), 7], noise.SAMPLER),
        kernels.uniform(ids, shape, int(seed), [int(step)], noise.SAMPLER),
        kernels.activate_backward(x, other, None, "elu"),
        *kernels.residual_add(x, other, "elu"),
        *kernels.max_pool5(x, "elu"),
        kernels.max_pool5_backward(x, other, other, "elu"),
        kernels.resize_add(small, x),
        kernels.resize_add_backward(other, *small.shape[2:]),
    )


@every_native_way
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("shape", [(5, 64, 24, 24), (1, 96, 40, 40)])
def test_results_do_not_depend_on_the_number_of_threads(way, shape, dtype, last):
    expected = everything(shape, dtype, last)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        try:
            found = everything(shape, dtype, last)
        finally:
            torch.set_num_threads(1)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)

"""perturb and dsm_loss through their public functions: one answer from every backend."""

import pytest
import torch
from helpers.operations import (
    KEY,
    LAST,
    SHAPE,
    both,
    close,
    device,
    draw,
    ids,
    sixteen_bits,
)

from ncsn_fast import ops


def test_perturbed_data_are_the_same_on_both_backends(backend):
    sigma = torch.tensor([0.5, 2.0], device=device())
    for x in (draw(*SHAPE), draw(*SHAPE).contiguous(memory_format=LAST)):
        a, b = both(backend, ops.perturb, x, sigma, sample_ids=ids(), **KEY)
        assert a.dtype == b.dtype == torch.float32
        assert a.is_contiguous()
        assert b.is_contiguous()
        assert close(a, b)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0])])
def test_loss_and_gradient_are_the_same_on_both_backends(weight, backend):
    weight = None if weight is None else weight.to(device())
    upstream = torch.tensor([0.3, 0.7], device=device())
    found = []
    for name in ("torch", backend):
        n = draw(*SHAPE).requires_grad_()
        which = {"sample_ids": ids(), "backend": name, **KEY}
        losses = ops.dsm_loss(n, weight, **which)
        (losses * upstream).sum().backward()
        at_once = ops.dsm_loss_and_gradient(n, weight, upstream=upstream, **which)
        assert not any(tensor.requires_grad for tensor in at_once)
        assert close(losses, at_once[0])
        assert close(n.grad, at_once[1])
        found.append(at_once)
    assert close(found[0][0], found[1][0], 1e-4)
    assert close(found[0][1], found[1][1])


def test_the_gradient_takes_after_the_output(backend):
    dtype = sixteen_bits(backend)
    n = draw(*SHAPE, dtype=dtype).contiguous(memory_format=LAST).requires_grad_()
    ops.dsm_loss(n, sample_ids=ids(), backend=backend, **KEY).mean().backward()
    assert n.grad.dtype == dtype
    assert n.grad.is_contiguous(memory_format=LAST)


def test_a_second_derivative_of_the_kernel_is_refused(backend):
    n = draw(*SHAPE).requires_grad_()
    loss = ops.dsm_loss(n, sample_ids=ids(), backend=backend, **KEY).sum()
    (gradient,) = torch.autograd.grad(loss, n, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_sixteen_bits_that_the_cpu_has_no_kernels_for_run_on_the_specification():
    x, sigma, which = draw(*SHAPE).cpu(), torch.ones(2), {"sample_ids": torch.arange(2), **KEY}

    found, expected = (
        ops.dsm_loss_and_gradient(x.half(), upstream=sigma, backend=backend, **which)[1]
        for backend in ("auto", "torch")
    )
    assert found.dtype == torch.float16
    assert torch.equal(found, expected)
    assert ops.perturb(x.half(), sigma, **which).dtype == torch.float16

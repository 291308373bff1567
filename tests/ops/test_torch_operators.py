"""What the operations of sampling and training have in common: PyTorch's own machinery around
them (autograd, opcheck, torch.compile), and what no kernel can take."""

import pytest
import torch
from helpers.operations import (
    KEY,
    LAST,
    SHAPE,
    device,
    draw,
    every_backend,
    ids,
    row,
    sixteen_bits,
    words,
)
from torch.autograd import forward_ad
from torch.library import opcheck

from ncsn_fast import noise, ops
from ncsn_fast.reference import StepResult


@every_backend
def test_autograd_notices_what_is_written(backend):
    x, history = draw(*SHAPE), draw(*SHAPE)
    before = x._version, history._version
    which = {"sample_ids": ids(), "history": history, "backend": backend, **KEY}
    ops.sampler_update(x, draw(*SHAPE, seed=1), row(), out=StepResult(x, history, x), **which)
    assert x._version > before[0]
    assert history._version > before[1]
    counter, step = torch.zeros(2, dtype=torch.int64, device=device()), words(0)[0]
    ops.begin_step(counter, draw(4, 9), None, row(), step, backend=backend)
    assert counter._version > 0
    assert step._version > 0


def test_derivatives_that_kernels_do_not_have_are_refused(backend):
    def loss(n):
        return ops.dsm_loss(n, sample_ids=ids(), backend=backend, **KEY).sum()

    with pytest.raises(ValueError, match=r"cannot be transformed by torch.func"):
        torch.func.grad(loss)(draw(*SHAPE))
    with forward_ad.dual_level(), pytest.raises(ValueError, match="no forward-mode derivative"):
        loss(forward_ad.make_dual(draw(*SHAPE), draw(*SHAPE)))


@every_backend
def test_an_empty_batch_is_an_empty_answer(backend):
    x = torch.empty(0, 3, 4, 4, device=device())
    which = {"sample_ids": ids(0), "backend": backend, **KEY}
    assert ops.sampler_update(x, x, row(), **which).x.shape == x.shape
    assert ops.perturb(x, x[:, 0, 0, 0], **which).shape == x.shape
    assert ops.dsm_loss(x, **which).shape == (0,)
    no_pixels = torch.empty(2, 3, 0, 4, device=device())
    assert ops.dsm_loss(no_pixels, sample_ids=ids(), backend=backend, **KEY).tolist() == [0, 0]


def test_what_the_kernel_cannot_take_runs_on_the_specification():
    x = draw(*SHAPE).double()
    result = ops.sampler_update(x, x, row().double(), sample_ids=ids(), **KEY)
    assert result.x.dtype == torch.float64
    state = draw(*SHAPE).requires_grad_()
    ops.sampler_update(state, draw(*SHAPE), row(), sample_ids=ids(), **KEY).x.sum().backward()
    assert torch.equal(state.grad, row()[0].expand(SHAPE))


def test_an_explicit_wish_that_the_arguments_forbid_is_refused(backend):
    x, sigma = draw(*SHAPE), torch.ones(2, device=device())
    which = {"sample_ids": ids(), "backend": backend, **KEY}
    with pytest.raises(ValueError, match=r"asked for by the backend argument, cannot .* float32"):
        ops.sampler_update(x.double(), x, row(), **which)
    with pytest.raises(ValueError, match="has no gradient"):
        ops.sampler_update(x.clone().requires_grad_(), x, row(), **which)
    for operation in (ops.perturb, ops.dsm_loss):
        with pytest.raises(ValueError, match="noise was given as a tensor"):
            operation(x, sigma, z=x, **which)


def opcheck_cases(backend):
    x, dtype = draw(*SHAPE), sixteen_bits(backend)
    n = draw(*SHAPE, dtype=dtype).contiguous(memory_format=LAST)
    sigma, key = torch.ones(2, device=device()), [*words(1, 2), ids()]
    out = [torch.empty_like(x) for _ in range(3)]
    state = [None, x.clone(), None, None, None, True]
    step = [torch.tensor([0, 3], device=device()), draw(4, 9), torch.arange(4, device=device())]
    written = [row(), *words(0), torch.zeros(3, dtype=torch.int64, device=device())]
    cases = {
        "sampler_update": [x, n, row(), *key, *state, *out],
        "perturb": [x, sigma, *key],
        "dsm_loss": [n.clone().requires_grad_(), sigma, *key],
        "dsm_gradient": [n, sigma, *key, sigma],
        "dsm_loss_and_gradient": [n, None, *key, sigma],
    }
    return {"begin_step": [*step, *written]} | {
        name: [*arguments, backend] for name, arguments in cases.items()
    }


@pytest.mark.parametrize("name", opcheck_cases("triton"))
def test_opcheck(name, backend):
    results = opcheck(getattr(torch.ops.ncsn_fast, name).default, opcheck_cases(backend)[name])
    assert set(results.values()) == {"SUCCESS"}


def update(backend, x, n, seed, step):
    which = {"seed": seed, "step": step, "sample_ids": ids(), "backend": backend}
    result = ops.sampler_update(x, n * 2, row(), history=x, **which)
    return result.x + 1, result.history


def perturbed(backend, x, n, seed, step):
    which = {"seed": seed, "step": step, "sample_ids": ids(), "backend": backend}
    return (ops.perturb(x * 2, n[:, 0, 0, 0], **which) + 1,)


def loss(backend, x, n, seed, step):
    which = {"seed": seed, "step": step, "sample_ids": ids(), "backend": backend}
    return (ops.dsm_loss(n * 1.5, x[:, 0, 0, 0].detach(), **which).mean(),)


@pytest.mark.parametrize("function", [update, perturbed])
def test_torch_compile_takes_it_whole(function, backend):
    arguments = (backend, draw(*SHAPE), draw(*SHAPE, seed=1), *words(5, 3))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*arguments), function(*arguments), strict=True):
        assert torch.equal(a, b)


def test_torch_compile_takes_the_loss_and_its_gradient_whole(backend):
    gradients = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        n = draw(*SHAPE, seed=1).requires_grad_()
        run(backend, draw(*SHAPE), n, *words(5, 3))[0].backward()
        gradients.append(n.grad)
    assert torch.equal(*gradients)


def test_torch_compile_takes_the_specification_whole():
    def both_losses(n):
        which = {"seed": 5, "step": 3, "sample_ids": ids(), "backend": "torch"}
        return ops.dsm_loss(n, **which) + ops.perturb(n, n[:, 0, 0, 0], **which).flatten(1).sum(1)

    n = draw(*SHAPE)
    compiled = torch.compile(both_losses, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(n), both_losses(n))


def test_seeds_are_words_of_64_bits():
    here = torch.empty(0, device=device()).device
    assert int(noise.seed_tensor((1 << 64) - 1, here)) == -1
    assert int(noise.seed_tensor(7, here)) == 7
    z = noise.normal((8,), seed=(1 << 64) - 3, stream=1, sample_ids=[0], device=here)
    seed = noise.seed_tensor((1 << 64) - 3, here)
    assert torch.equal(z, noise.normal((8,), seed=seed, stream=1, sample_ids=ids(1)))

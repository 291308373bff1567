"""The operations through their public functions: one answer from every backend, and from PyTorch's
own machinery around them (autograd, opcheck, torch.compile). Triton's kernels run in its
interpreter, or on the GPU where there is one; those of the CPU where they can be built."""

import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.library import opcheck

import ncsn_fast as nf
from ncsn_fast import noise, ops
from ncsn_fast.device import native
from ncsn_fast.reference import StepResult

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EVERY = ("torch", "triton", "cpp")
LAST = torch.channels_last
SHAPE = (2, 3, 4, 4)
KEY = {"seed": (1 << 63) + 5, "step": 3}


@pytest.fixture(params=EVERY[1:])
def backend(request, monkeypatch):
    """Whose kernels a test is about; its tensors are where these run."""
    if request.param == "triton":
        pytest.importorskip("triton")
    if request.param == "cpp":
        if reason := native.missing():
            pytest.skip(reason)
        monkeypatch.setattr(sys.modules[__name__], "DEVICE", "cpu")
    return request.param


def sixteen_bits(backend):
    return torch.bfloat16 if backend == "cpp" else torch.float16


def rounding(backend):
    """How far apart two roundings to 16 bits may be, on the scale of the results here."""
    return 2e-2 if backend == "cpp" else 2e-3


every_backend = pytest.mark.parametrize("backend", EVERY, indirect=True)


def draw(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def ids(n=2):
    return torch.arange(n, device=DEVICE)


def row():
    return torch.tensor([0.9, 0.3, -0.2, 0.7, 0.1, 0.4, 0.25, 0.5, 0.05], device=DEVICE)


def words(*values):
    return [torch.tensor(value, device=DEVICE) for value in values]


def close(a, b, tolerance=1e-5):
    return a.shape == b.shape and bool(((a.float() - b.float()).abs() <= tolerance).all())


def both(backend, operation, *arguments, **keywords):
    return [operation(*arguments, backend=name, **keywords) for name in ("torch", backend)]


def everything():
    x = draw(*SHAPE)
    return {
        "history": draw(*SHAPE, seed=2),
        "guidance": draw(*SHAPE, seed=3),
        "mask": x > 0,
        "known": draw(*SHAPE, seed=4),
        "scale_input": True,
        "sample_ids": ids(),
        **KEY,
    }


def test_the_update_is_the_same_on_both_backends(backend):
    n = draw(*SHAPE, dtype=torch.float16, seed=1).contiguous(memory_format=LAST)
    found = both(backend, ops.sampler_update, draw(*SHAPE), n, row(), **everything())
    for a, b in zip(*found, strict=True):
        assert close(a, b)


def test_a_scaled_input_is_the_state_times_its_factor(backend):
    wish = {"scale_input": True, "sample_ids": ids(), **KEY}
    for result in both(backend, ops.sampler_update, draw(*SHAPE), draw(*SHAPE), row(), **wish):
        assert torch.equal(result.network_input, result.x * row()[7])


def test_the_networks_input_is_the_state_itself_unless_it_is_scaled(backend):
    for result in both(
        backend, ops.sampler_update, draw(*SHAPE), draw(*SHAPE), row(), sample_ids=ids(), **KEY
    ):
        assert result.network_input is result.x


@every_backend
def test_the_update_can_be_made_in_place(backend):
    x, n, history = draw(*SHAPE), draw(*SHAPE, seed=1), draw(*SHAPE, seed=2)
    which = {"history": history, "sample_ids": ids(), "backend": backend, **KEY}
    expected = ops.sampler_update(x.clone(), n, row(), **which)
    ops.sampler_update(x, n, row(), **which, out=StepResult(x, history, x))
    assert torch.equal(x, expected.x)
    assert torch.equal(history, expected.history)


def memory(offset, like):
    """A tensor on the memory of another one, some elements further on."""
    size = like.numel()
    buffer = torch.zeros(size + offset, device=DEVICE)
    return buffer[:size].view(SHAPE), buffer[offset:].view(SHAPE)


def outputs(**change):
    return StepResult(*{**dict.fromkeys(StepResult._fields, None), **change}.values())


def bad_outputs():
    x, other = memory(7, draw(*SHAPE))
    good = draw(*SHAPE)
    last = good.clone(memory_format=LAST)
    yield "it has to be", x, outputs(x=torch.empty(2, 3, 4, 5, device=DEVICE), network_input=good)
    yield "has to be contiguous", x, outputs(x=last, network_input=good)
    yield "out.x is torch.float64", x, outputs(x=good.double(), network_input=good)
    yield "shares memory with an input", x, outputs(x=other, network_input=good)
    yield "out.network_input has strides", x, outputs(x=good, network_input=last)
    yield "out.network_input is .1, 3", x, outputs(x=good, network_input=good[:1])
    yield "the input is not scaled: give out.x", x, outputs(x=good, network_input=good.clone())
    yield "out.history belongs to history", x, outputs(x=good, history=x, network_input=good)


@pytest.mark.parametrize("case", range(8))
def test_outputs_that_would_corrupt_something_are_refused(case, backend):
    message, x, out = list(bad_outputs())[case]
    for name in ("torch", backend):
        which = {"sample_ids": ids(), "out": out, "backend": name, **KEY}
        with pytest.raises(ValueError, match=message):
            ops.sampler_update(x, draw(*SHAPE), row(), **which)


def test_a_scaled_input_needs_memory_of_its_own():
    x, new = draw(*SHAPE), draw(*SHAPE)
    which = {"sample_ids": ids(), "out": StepResult(new, None, new), **KEY}
    with pytest.raises(ValueError, match="the input is to be scaled"):
        ops.sampler_update(x, x.clone(), row(), scale_input=True, **which)


@every_backend
def test_autograd_notices_what_is_written(backend):
    x, history = draw(*SHAPE), draw(*SHAPE)
    before = x._version, history._version
    which = {"sample_ids": ids(), "history": history, "backend": backend, **KEY}
    ops.sampler_update(x, draw(*SHAPE, seed=1), row(), out=StepResult(x, history, x), **which)
    assert x._version > before[0]
    assert history._version > before[1]
    counter, step = torch.zeros(2, dtype=torch.int64, device=DEVICE), words(0)[0]
    ops.begin_step(counter, draw(4, 9), None, row(), step, backend=backend)
    assert counter._version > 0
    assert step._version > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": torch.zeros(3)}, "row is .3,. on"),
        ({"row": torch.zeros(1, 9)}, "row is .1, 9. on"),
        ({"sample_ids": torch.zeros(2, 1, dtype=torch.int64)}, "one id per sample"),
        ({"seed": -1}, "a seed is an integer"),
        ({"seed": torch.tensor(1.0)}, "needed|0-d int64"),
        ({"seed": torch.tensor([1, 2])}, "0-d int64"),
        ({"step": 1 << 32}, "allowed are 0 to"),
        ({"step": torch.tensor(1, dtype=torch.int32)}, "0-d int64"),
        ({"mask": torch.zeros(SHAPE), "known": torch.zeros(SHAPE)}, "has to be bool"),
    ],
)
def test_what_the_kernel_would_misread_is_refused(change, message, backend):
    change = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    given = {"row": row(), "sample_ids": ids(), **KEY, **change}
    with pytest.raises(ValueError, match=message):
        ops.sampler_update(draw(*SHAPE), draw(*SHAPE), backend=backend, **given)


def test_strides_of_what_enters_do_not_matter(backend):
    wide = draw(2, 3, 4, 8)
    strided = {"n": wide[..., ::2], "history": wide[..., 1::2], "guidance": wide[..., ::2].half()}
    coefficients = torch.stack([row(), row()], 1)[:, 0]
    known = draw(1, 1, 4, 4).expand(SHAPE)
    which = {"sample_ids": torch.arange(4, device=DEVICE)[::2], "mask": known > 0, "known": known}
    n = strided.pop("n")
    given = {**strided, **which, **KEY}
    a, b = both(backend, ops.sampler_update, draw(*SHAPE), n, coefficients, **given)
    assert close(a.x, b.x)
    assert close(a.history, b.history)


def test_derivatives_that_kernels_do_not_have_are_refused(backend):
    def loss(n):
        return ops.dsm_loss(n, sample_ids=ids(), backend=backend, **KEY).sum()

    with pytest.raises(ValueError, match=r"cannot be transformed by torch.func"):
        torch.func.grad(loss)(draw(*SHAPE))
    with forward_ad.dual_level(), pytest.raises(ValueError, match="no forward-mode derivative"):
        loss(forward_ad.make_dual(draw(*SHAPE), draw(*SHAPE)))


def test_a_step_refuses_what_is_not_contiguous():
    given = [torch.zeros(2, dtype=torch.int64), torch.zeros(4, 18)[:, :9], torch.arange(4)]
    given += [torch.zeros(9), torch.tensor(0), torch.zeros(2, dtype=torch.int64)]
    with pytest.raises(ValueError, match=r"table has strides .* has to be contiguous"):
        ops.begin_step(*given)


def test_perturbed_data_are_the_same_on_both_backends(backend):
    sigma = torch.tensor([0.5, 2.0], device=DEVICE)
    for x in (draw(*SHAPE), draw(*SHAPE).contiguous(memory_format=LAST)):
        a, b = both(backend, ops.perturb, x, sigma, sample_ids=ids(), **KEY)
        assert a.dtype == b.dtype == torch.float32
        assert a.is_contiguous()
        assert b.is_contiguous()
        assert close(a, b)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0])])
def test_loss_and_gradient_are_the_same_on_both_backends(weight, backend):
    weight = None if weight is None else weight.to(DEVICE)
    upstream = torch.tensor([0.3, 0.7], device=DEVICE)
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


@every_backend
def test_a_step_begins_with_its_row(backend):
    table, conditions = draw(4, 9), torch.arange(4, device=DEVICE)
    counter = torch.tensor([2, 7], device=DEVICE)
    current, step = torch.empty(9, device=DEVICE), torch.tensor(0, device=DEVICE)
    condition = torch.empty(5, dtype=torch.int64, device=DEVICE)
    for expected in (0, 2, 3, 3):
        if expected == 0:  # before the first row, as beyond the last
            counter[0] = -4
        elif expected == 2:
            counter[0] = 2
        noise_step = int(counter[1])
        ops.begin_step(counter, table, conditions, current, step, condition, backend=backend)
        assert torch.equal(current, table[expected])
        assert condition.tolist() == [expected] * 5
        assert int(step) == noise_step
    assert counter.tolist() == [5, 11]


@pytest.mark.parametrize(
    "change",
    [
        {"counter": torch.zeros(3, dtype=torch.int64)},
        {"counter": torch.zeros(2)},
        {"row": torch.zeros(8)},
        {"table": torch.zeros(4, 9, dtype=torch.float64)},
        {"condition": None},
        {"conditions": torch.zeros(4)},
    ],
)
def test_a_step_refuses_what_does_not_fit(change):
    given = {
        "counter": torch.zeros(2, dtype=torch.int64),
        "table": torch.zeros(4, 9),
        "conditions": torch.arange(4),
        "row": torch.zeros(9),
        "step": torch.tensor(0),
        "condition": torch.zeros(2, dtype=torch.int64),
        **change,
    }
    with pytest.raises(ValueError, match=r"needed are|has to be int64|float32|belong together"):
        ops.begin_step(*given.values())


@every_backend
def test_an_empty_batch_is_an_empty_answer(backend):
    x = torch.empty(0, 3, 4, 4, device=DEVICE)
    which = {"sample_ids": ids(0), "backend": backend, **KEY}
    assert ops.sampler_update(x, x, row(), **which).x.shape == x.shape
    assert ops.perturb(x, x[:, 0, 0, 0], **which).shape == x.shape
    assert ops.dsm_loss(x, **which).shape == (0,)
    no_pixels = torch.empty(2, 3, 0, 4, device=DEVICE)
    assert ops.dsm_loss(no_pixels, sample_ids=ids(), backend=backend, **KEY).tolist() == [0, 0]


def test_a_chain_is_the_same_on_both_backends(monkeypatch, backend):
    torch.manual_seed(0)
    sigmas = nf.geometric_sigmas(5, 0.01, 4)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=4, sigmas=sigmas).to(DEVICE).eval()
    # TF32 would round the same state differently where it differs in the last bit.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = {"step_size": 1e-5, "steps_per_level": 2, "seed": (1 << 63) + 5, "precision": "fp32"}
    mask = torch.zeros(8, 8, device=DEVICE)
    mask[:4] = 1
    inpainting = {"mask": mask, "known": draw(1, 8, 8), "guidance": lambda x, n, sigma, row: -x}
    for more in ({}, inpainting):
        a, b = (nf.sample(net, 3, backend=name, **settings, **more) for name in ("torch", backend))
        assert close(a, b, 1e-5)


def test_what_the_kernel_cannot_take_runs_on_the_specification():
    x = draw(*SHAPE).double()
    result = ops.sampler_update(x, x, row().double(), sample_ids=ids(), **KEY)
    assert result.x.dtype == torch.float64
    state = draw(*SHAPE).requires_grad_()
    ops.sampler_update(state, draw(*SHAPE), row(), sample_ids=ids(), **KEY).x.sum().backward()
    assert torch.equal(state.grad, row()[0].expand(SHAPE))


def test_sixteen_bits_that_the_cpu_has_no_kernels_for_run_on_the_specification():
    x, sigma, which = draw(*SHAPE).cpu(), torch.ones(2), {"sample_ids": torch.arange(2), **KEY}

    found, expected = (
        ops.dsm_loss_and_gradient(x.half(), upstream=sigma, backend=backend, **which)[1]
        for backend in ("auto", "torch")
    )
    assert found.dtype == torch.float16
    assert torch.equal(found, expected)
    assert ops.perturb(x.half(), sigma, **which).dtype == torch.float16


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
def test_on_a_cpu_a_step_begins_without_triton(backend, monkeypatch):
    module = sys.modules["ncsn_fast.ops.begin_step"]
    monkeypatch.setattr(module, "triton_kernel", lambda name: pytest.fail("Triton's kernel"))
    counter, step = torch.zeros(2, dtype=torch.int64), torch.tensor(0)
    ops.begin_step(counter, draw(4, 9), None, row(), step, backend=backend)
    assert counter.tolist() == [1, 1]


def test_an_explicit_wish_that_the_arguments_forbid_is_refused(backend):
    x, sigma = draw(*SHAPE), torch.ones(2, device=DEVICE)
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
    sigma, key = torch.ones(2, device=DEVICE), [*words(1, 2), ids()]
    out = [torch.empty_like(x) for _ in range(3)]
    state = [None, x.clone(), None, None, None, True]
    step = [torch.tensor([0, 3], device=DEVICE), draw(4, 9), torch.arange(4, device=DEVICE)]
    written = [row(), *words(0), torch.zeros(3, dtype=torch.int64, device=DEVICE)]
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
    device = torch.empty(0, device=DEVICE).device
    assert int(noise.seed_tensor((1 << 64) - 1, device)) == -1
    assert int(noise.seed_tensor(7, device)) == 7
    z = noise.normal((8,), seed=(1 << 64) - 3, stream=1, sample_ids=[0], device=DEVICE)
    seed = noise.seed_tensor((1 << 64) - 3, device)
    assert torch.equal(z, noise.normal((8,), seed=seed, stream=1, sample_ids=ids(1)))

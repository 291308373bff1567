"""The same promises on a GPU: python -m pytest -m gpu."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.golden import GOLDEN, load_golden

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.device.precision import float32_mode

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SIGMAS = nf.geometric_sigmas(5, 0.01, 10)
SETTINGS = {"step_size": 2e-5, "steps_per_level": 3, "precision": "fp32"}


@pytest.fixture(autouse=True)
def _full_precision():
    """TF32 would be a tolerance of its own."""
    with float32_mode("fp32", torch.device(DEVICE)):
        yield


def network(device=DEVICE):
    torch.manual_seed(0)
    return nf.NCSNv2(channels=3, image_size=16, ngf=8, sigmas=SIGMAS).to(device).eval()


def test_the_words_are_those_of_the_cpu_bit_for_bit():
    ids = [0, 1, (1 << 47) + 5]
    which = {"seed": 2**64 - 3, "stream": 4, "step": 77}
    here = noise.integers(1 << 31, (1001,), sample_ids=ids, **which)
    there = noise.integers(1 << 31, (1001,), sample_ids=ids, device=DEVICE, **which)
    assert there.device.type == torch.device(DEVICE).type
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_agree_with_the_cpu_in_double_precision(dtype):
    which = {"seed": 3, "stream": 1, "step": 5}
    exact = noise.normal((3, 32, 32), sample_ids=range(64), dtype=torch.float64, **which)
    ids = torch.arange(64, device=DEVICE)
    found = noise.normal((3, 32, 32), sample_ids=ids, dtype=dtype, **which).cpu()
    radius = exact.view(-1, 2).norm(dim=1).repeat_interleave(2).view_as(exact)
    error = (found - exact).abs()
    assert float(error[radius > 0.1].max()) < 2e-6
    assert float(error.max()) < 5e-5


def test_seed_and_step_may_live_on_the_device():
    ids = torch.arange(4, device=DEVICE)
    seed, step = torch.tensor(9, device=DEVICE), torch.tensor(3, device=DEVICE)
    found = noise.normal((5,), seed=seed, stream=1, sample_ids=ids, step=step)
    assert torch.equal(found, noise.normal((5,), seed=9, stream=1, sample_ids=ids, step=3))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    golden = load_golden(name)
    net, s = golden.network().to(DEVICE), golden.settings
    with torch.no_grad():
        score = net(golden.x.to(DEVICE), golden.labels.to(DEVICE)).cpu().numpy()
    settings = {"step_size": s["step_lr"], "steps_per_level": s["steps_per_level"]}
    states = nf.Sampler(net, precision="fp32", **settings)(
        2, initial=golden.x.to(DEVICE), noise=golden.ald_noise
    )
    for found, expected in (
        (score, golden.values["score"]),
        (states.cpu().numpy(), golden.values["ald_denoised"]),
    ):
        scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
        assert (np.abs(found - expected) / scale).max() < 1e-4


def test_samples_do_not_depend_on_the_batch():
    net = network()
    whole = nf.sample(net, 12, seed=3, **SETTINGS)
    parts = [nf.sample(net, 4, seed=3, sample_ids=range(i, i + 4), **SETTINGS) for i in (0, 4, 8)]
    assert whole.device.type == torch.device(DEVICE).type
    assert float((whole - torch.cat(parts)).abs().max()) < 1e-4
    assert float((whole - nf.sample(net, 12, seed=3, batch_size=5, **SETTINGS)).abs().max()) < 1e-4


@pytest.mark.parametrize("shape", [1, 7, 128, 512])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_samples_are_the_same_bit_for_bit_in_all_chunks_of_one_shape(shape, precision):
    settings = {**SETTINGS, "precision": precision, "batch_size": shape}
    net = network()
    whole = nf.sample(net, shape + 3, seed=3, **settings)
    first = nf.sample(net, shape, seed=3, **settings)
    assert torch.equal(whole[:shape], first)
    last = nf.sample(net, shape, seed=3, sample_ids=range(3, shape + 3), **settings)
    assert torch.equal(whole[3:], last)
    assert torch.equal(nf.sample(net, shape, seed=3, **settings), first)


def test_samples_are_those_of_the_cpu_up_to_rounding():
    there = nf.sample(network(), 4, seed=3, **SETTINGS).cpu()
    here = nf.sample(network("cpu"), 4, seed=3, **SETTINGS)
    assert float((there - here).abs().max()) < 1e-3


def test_every_input_of_a_call_works_there():
    sampler = nf.Sampler(network(), device=DEVICE, **SETTINGS)
    known = torch.rand(3, 16, 16, device=DEVICE)
    mask = torch.zeros(3, 16, 16, device=DEVICE)
    mask[:, :8] = 1
    x, states = sampler(
        3,
        seed=1,
        initial=torch.rand(3, 3, 16, 16, device=DEVICE),
        mask=mask,
        known=known,
        guidance=lambda x, n, sigma, row: -0.1 * x,
        clip=1e4,
        every=10,
        batch_size=2,
        sample_ids=torch.arange(3, device=DEVICE),
    )
    assert torch.equal(x[:, :, :8], known[:, :8].expand(3, -1, -1, -1))
    assert states.device.type == "cpu"
    assert torch.isfinite(x).all()


def test_nan_is_found_there():
    net = network()

    def broken(x, labels):
        return torch.where(labels.view(-1, 1, 1, 1) == 5, torch.nan, net(x, labels))

    sampler = nf.Sampler(broken, net.shape, SIGMAS, device=DEVICE, **SETTINGS)
    with pytest.raises(nf.SamplingError, match="after row 15 of 31") as error:
        sampler(2, seed=1)
    assert torch.isfinite(error.value.state).all()


@pytest.mark.parametrize("settings", [{}, {"precision": "fp16", "clip_gradient": 1.0}])
def test_a_training_step_does_not_wait_for_the_device(settings):
    config = nf.TrainConfig(batch_size=8, flip=True, **settings)
    trainer = nf.Trainer(network(), torch.rand(40, 3, 16, 16), config)
    trainer._train_step()  # what is compiled or allocated once
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(trainer.sums.sum)


def test_training_there_resumes_exactly(tmp_path):
    data = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    config = nf.TrainConfig(steps=8, batch_size=8, log_every=2, out=tmp_path, flip=True)
    nf.Trainer(network(), data, replace(config, steps=4)).fit()
    resumed = nf.Trainer(network(), data, config, resume=True)
    resumed.fit()
    whole = nf.Trainer(network(), data, replace(config, out=None))
    whole.fit()
    for a, b in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert resumed.history[-1][1] == pytest.approx(whole.history[-1][1], rel=1e-4)

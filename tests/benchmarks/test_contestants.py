"""The published code written anew: operations, scores, loops and losses are the published ones."""

import pytest
import torch
from helpers.benchmarks import CPU
from helpers.golden import load_golden

import ncsn_fast as nf
from ncsn_fast import noise
from ncsn_fast.benchmarks.contest.plans import Subject
from ncsn_fast.benchmarks.contestants import networks, official, peer

NETWORKS = {
    "NCSNv2": (nf.NCSNv2, 413),
    "NCSN": (nf.NCSN, 1130),
    "NCSNv2Deeper": (nf.NCSNv2Deeper, 521),
    "NCSNv2Deepest": (nf.NCSNv2Deepest, 629),
}


def network(name):
    torch.manual_seed(0)
    cls, operations = NETWORKS[name]
    net = cls(channels=3, image_size=16, ngf=4, sigmas=nf.geometric_sigmas(5, 0.01, 10))
    return net.eval(), operations


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_official_equivalent_has_the_published_number_of_operations(name):
    net, operations = network(name)
    x, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 9])
    with official.OperationCount() as count:
        official.OfficialNetwork(net)(x, labels)
    assert count.total == operations


@torch.no_grad()
def test_the_operations_are_of_the_published_kinds():
    net, _ = network("NCSNv2")
    with official.OperationCount() as count:
        official.OfficialNetwork(net)(torch.rand(2, 3, 16, 16), torch.tensor([0, 9]))
    kinds = ("convolution", "elu", "max_pool2d_with_indices", "upsample_bilinear2d", "var")
    assert [count.operations[kind] for kind in kinds] == [75, 61, 8, 6, 17]


@torch.no_grad()
def test_a_step_of_the_official_loop_has_17_operations_beside_the_network():
    net, operations = network("NCSNv2")
    totals = []
    for rows in (1, 2):
        with official.OperationCount() as count:
            official.chain(
                official.OfficialNetwork(net), torch.rand(2, 3, 16, 16), [5, 0.01], 6e-6, 2, rows
            )
        totals.append(count.total)
    assert totals[1] - totals[0] == operations + 17


@pytest.mark.parametrize("name", ["ncsn_28", "ncsnv2_32"])
@torch.no_grad()
def test_the_official_equivalent_gives_the_official_score(name):
    golden = load_golden(name)
    found = official.OfficialNetwork(golden.network())(golden.x, golden.labels)
    expected = torch.from_numpy(golden.values["score"])
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


@pytest.mark.parametrize("name", ["NCSN", "NCSNv2"])
@torch.no_grad()
def test_the_official_loop_and_the_sampler_make_the_same_images(name):
    net, _ = network(name)
    sampler = nf.Sampler(net, step_size=6e-6, steps_per_level=2, denoise=False, precision="fp32")
    x = torch.rand(3, 3, 16, 16)
    ids = torch.arange(3)

    def draw(row):
        return noise.normal(x.shape[1:], seed=5, stream=noise.SAMPLER, sample_ids=ids, step=row)

    found = official.chain(official.OfficialNetwork(net), x, net.sigmas.tolist(), 6e-6, 2, 20, draw)
    expected = sampler(3, seed=5, initial=x)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_the_official_loss_and_ours_are_the_same():
    net, _ = network("NCSNv2")
    x, z = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    labels = torch.tensor([0, 9])
    found = official.dsm_loss(official.OfficialNetwork(net), x, labels, net.sigmas, z)
    expected = nf.dsm_loss(net, x, net.sigmas, labels, noise=z)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_flops_are_those_of_the_published_network():
    assert networks.make(Subject("", "cifar10", ()), CPU).cost.flops == pytest.approx(
        19.79e9, rel=1e-3
    )


def test_a_checkout_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    for name in ("__init__", "layers", "ncsnv2"):
        (tmp_path / "models" / f"{name}.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ValueError, match="nothing_of_that_name"):
        peer.network(str(tmp_path), network("NCSNv2")[0])

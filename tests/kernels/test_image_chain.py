"""The operations on images after each other, as torch.compile takes them: in one graph."""

import pytest
import torch
from cases.common import draw, every_backend

from ncsn_fast import ops


def units(x, base, *three, backend):
    """All operations, one after the other."""
    total, active, _ = ops.residual_add(x, x * 2, activation="elu", backend=backend)
    active, pooled = ops.max_pool5(active + total, activation="relu", backend=backend)
    y = ops.instance_norm_plus(pooled, *three, activation="elu", backend=backend)
    y = ops.max_pool5(y, backend=backend)[1]
    return ops.resize_add(ops.activate(y + active, "elu", backend=backend), base, backend=backend)


def norm_of_a_sum(x, residual, *three, backend):
    """The norm with the statistics of the kernel that has made the sum."""
    total, _, statistics = ops.residual_add(x, residual, statistics=True, backend=backend)
    how = {"activation": "elu", "statistics": statistics, "backend": backend}
    return ops.instance_norm_plus(total, *three, **how)


@pytest.mark.alone
@every_backend
@pytest.mark.parametrize("chain", [units, norm_of_a_sum])
def test_torch_compile_takes_all_of_it_in_one_graph(way, chain):
    x = draw((1, 8, 4, 5), last=True).to(way.device)
    other = draw((1, 8, 6, 3) if chain is units else x.shape, last=True, seed=1).to(way.device)
    given = [x, other, *(draw((8,), seed=seed).to(way.device) for seed in (2, 3, 4))]

    def run(*tensors):
        return chain(*tensors, backend=way.backend)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found, expected = compiled(*given), run(*given)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    for tensor in given:
        tensor.requires_grad_()
    found, expected = compiled(*given), run(*given)
    assert torch.equal(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), given),
        torch.autograd.grad(expected.square().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(one, other)

"""Biases of convolutions, which the operations on images add on their way."""

import pytest
import torch
from cases.common import (
    DTYPES,
    Buffers,
    assert_close,
    check_operator,
    draw,
    every_backend,
    every_triton_way,
)
from cases.images import LAST, SHAPE, both_formats, leaves
from cases.norm import EPS, MANY_CHANNELS, SMALL, SPLIT

from ncsn_fast import ops, reference
from ncsn_fast.device import backends
from ncsn_fast.ops import common

NORMED = (SMALL[0], SPLIT[0], MANY_CHANNELS[1])
each_type = pytest.mark.parametrize("dtype", DTYPES, ids=str)
three_shapes = pytest.mark.parametrize("shape", NORMED, ids=["whole", "split", "many channels"])


@pytest.fixture
def no_pass(monkeypatch):
    """Nobody adds a bias but kernels."""
    none = lambda x, bias: x if bias is None else pytest.fail("a pass")  # noqa: E731
    monkeypatch.setattr(common, "biased", none)


def bias_of(shape, dtype, way):
    """As large as what differs between the channels."""
    return (2 * draw((shape[1],), seed=9)).to(dtype).to(way.device)


def parameters(channels, device):
    return [draw((channels,), seed=seed).to(device) for seed in (2, 3, 4)]


@each_type
@both_formats
@three_shapes
@every_triton_way
@pytest.mark.usefixtures("no_pass")
def test_the_norm_is_that_of_the_sum(way, shape, last, dtype):
    x = draw(shape, dtype, last).to(way.device)
    bias, three = bias_of(shape, dtype, way), parameters(shape[1], way.device)
    found = ops.instance_norm_plus(x, *three, activation="elu", bias=bias, backend="triton")
    exact, plain = (
        reference.instance_norm_plus(
            (x.to(kind) + bias.to(kind)[:, None, None]).cpu(),
            *(one.to(kind).cpu() for one in three),
            EPS,
            "elu",
        )
        for kind in (torch.float64, torch.float32)
    )
    assert_close(found, exact, way.stored(plain, dtype))


@each_type
@both_formats
@three_shapes
@every_triton_way
@pytest.mark.usefixtures("no_pass")
def test_a_residual_sum_has_it_and_so_have_its_statistics(way, shape, last, dtype):
    x, residual = (draw(shape, dtype, last, seed).to(way.device) for seed in (0, 1))
    bias = bias_of(shape, dtype, way)
    total, _, statistics = ops.residual_add(
        x, residual, bias=bias, statistics=True, backend="triton"
    )
    exact, plain = (
        (x.to(kind) + bias.to(kind)[:, None, None] + residual.to(kind)).cpu()
        for kind in (torch.float64, torch.float32)
    )
    assert_close(total, exact, way.stored(plain, dtype))
    # Statistics are those of the total as it is stored.
    three = parameters(shape[1], way.device)
    found, expected = (
        ops.instance_norm_plus(total, *three, statistics=given, backend="triton")
        for given in (statistics, None)
    )
    assert torch.equal(found, expected)


@each_type
@pytest.mark.parametrize("channels", [24, 6, 3])
@every_triton_way
@pytest.mark.usefixtures("no_pass")
def test_a_resized_sum_has_it(way, channels, dtype):
    x, base = (draw((2, channels, *size), dtype, True) for size in ((3, 4), (5, 7)))
    bias = bias_of(x.shape, dtype, way)
    buffers = Buffers(way.device)
    given = buffers.input(x, True), buffers.input(base, True)
    found = ops.resize_add(*given, bias=buffers.input(bias), backend="triton")
    buffers.check()
    exact, plain = (
        reference.resize_add(x.to(kind), base.to(kind) + bias.cpu().to(kind)[:, None, None])
        for kind in (torch.float64, torch.float32)
    )
    assert_close(found, exact, way.stored(plain, dtype))


def normed(x, other, **how):
    return ops.instance_norm_plus(x, *[torch.ones(SHAPE[1], device=x.device)] * 3, **how)


# Operations on images, of the first of which a bias is part.
OPERATIONS = {
    "norm": normed,
    "sum": lambda x, y, **how: ops.residual_add(x, y, **how).total,
    "measured sum": lambda x, y, **how: ops.residual_add(x, y, statistics=True, **how).total,
    "active sum": lambda x, y, **how: ops.residual_add(x, y, activation="elu", **how).active,
    "resized": lambda x, y, **how: ops.resize_add(y[..., :2], x, **how),
    "of one size": lambda x, y, **how: ops.resize_add(y, x, **how),
}


@both_formats
@pytest.mark.parametrize("name", OPERATIONS)
@every_backend
def test_it_and_its_gradient_are_those_of_a_sum(way, name, last):
    operation, backend = OPERATIONS[name], way.backend
    x, y = leaves(way, SHAPE, SHAPE, last=last)
    bias = bias_of(SHAPE, torch.float32, way).requires_grad_()

    def both():
        found = operation(x, y.detach(), bias=bias, backend=backend)
        return found, operation(x + bias[:, None, None], y.detach(), backend=backend)

    with torch.no_grad():
        torch.testing.assert_close(*both(), atol=1e-5, rtol=1e-5)
    answers = [torch.autograd.grad(one.square().sum(), (x, bias)) for one in both()]
    for found, expected in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@every_triton_way
def test_opcheck(way):
    x, residual = (draw((1, 2, 4, 5), last=True, seed=seed).to(way.device) for seed in (0, 1))
    bias, one = bias_of(x.shape, torch.float32, way), torch.ones(2, device=way.device)
    check_operator("instance_norm_plus", x, one, one, one, None, bias, EPS, "elu", "triton")
    check_operator("residual_add_statistics", x, residual, bias)
    check_operator("resize_add", x[..., :2].contiguous(memory_format=LAST), x, bias, "triton")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": torch.ones(3)}, r"bias is \(3,\) on cpu, x \(2, 8, 4, 5\) on cpu: needed is"),
        ({"bias": torch.ones(8, device="meta")}, r"bias is \(8,\) on meta"),
        ({"bias": torch.ones(8), "statistics": torch.ones(36)}, "residual_add has to be given"),
    ],
)
def test_what_is_no_bias_is_refused(changes, message):
    x, one = torch.ones(SHAPE), torch.ones(SHAPE[1])
    with pytest.raises(ValueError, match=message):
        ops.instance_norm_plus(x, one, one, one, **changes)
    del changes["bias"]
    if not changes:
        for operation in (ops.residual_add, ops.resize_add):
            with pytest.raises(ValueError, match="needed is a value per channel"):
                operation(x, x, bias=torch.ones(3))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_a_wider_bias_leaves_the_type_as_it_is(backend):
    if backends.missing(backend):
        pytest.skip(backends.missing(backend))
    x = torch.randn(2, 4, 6, 6).bfloat16()
    bias, rows = torch.randn(4), torch.ones(4)
    how = {"bias": bias, "backend": backend}
    found = [
        ops.instance_norm_plus(x, rows, rows, rows, **how),
        ops.residual_add(x, x, **how).total,
        ops.residual_add(x, x, activation="elu", **how).total,
        ops.resize_add(x[:, :, ::2, ::2].contiguous(), x, **how),
    ]
    assert {y.dtype for y in found} == {torch.bfloat16}

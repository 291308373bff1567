"""3×3 convolutions by Winograd's filtering against PyTorch's in float64."""

import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from cases.common import (
    NATIVE_WAYS,
    Buffers,
    check_operator,
    draw,
    every_native_way,
    on_every_way,
)

from ncsn_fast import reference
from ncsn_fast.device import native
from ncsn_fast.ops import conv3x3

# Of the norm of the result: twice what was found for 256 inputs, where direct sums have 3e-7.
ALLOWED = {2: 1e-6, 4: 5e-6}


@dataclass(frozen=True)
class Case:
    samples: int
    channels: tuple[int, int]
    sides: tuple[int, int]
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    tile: int = 4

    def __str__(self):
        numbers = (self.samples, *self.channels, *self.sides, *self.padding, *self.dilation)
        return "-".join(map(str, (*numbers, f"F{self.tile}")))

    @property
    def settings(self):
        return {"padding": self.padding, "dilation": self.dilation}

    def x(self):
        return draw((self.samples, self.channels[0], *self.sides), last=True)

    def weight(self, last=False):
        inputs, outputs = self.channels
        return draw((outputs, inputs, 3, 3), last=last, seed=1) / (3 * inputs**0.5)

    def exact(self, bias=None):
        bias = None if bias is None else bias.double()
        return F.conv2d(self.x().double(), self.weight().double(), bias, **self.settings)

    def run(self, x=None, weight=None, bias=None, residual=None, **wanted):
        x = self.x() if x is None else x
        weight = self.weight() if weight is None else weight
        ready = conv3x3.transformed(weight, self.tile)
        settings = {"outputs": len(weight), "tile": self.tile, **self.settings}
        return conv3x3.filtered(x, ready, bias, residual, **settings, **wanted)


GEOMETRIES = (
    Case(2, (16, 32), (8, 8)),
    Case(1, (33, 45), (7, 9)),
    Case(3, (128, 128), (16, 16), (2, 2), (2, 2)),
    Case(1, (20, 3), (11, 13), (4, 4), (4, 4)),  # fewer pixels in a sub-image than a tile has
    Case(2, (64, 64), (10, 6), (0, 0)),
    Case(1, (3, 7), (5, 1), (2, 1)),
    Case(1, (32, 31), (9, 8), (3, 1), (2, 1)),
    Case(2, (1, 1), (3, 3), (0, 0)),
    Case(1, (20, 33), (3, 5), (4000, 2), (4000, 2)),
    Case(40, (256, 5), (4, 4)),
)


def cases(way):
    for case, tile in itertools.product(GEOMETRIES, conv3x3.TILES):
        yield Case(*list(vars(case).values())[:-1], tile)


def off(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@on_every_way(cases, NATIVE_WAYS)
def test_it_is_the_convolution_plus_what_is_added(way, case):
    bias = draw(case.channels[1:], seed=2)
    exact = case.exact(bias)
    residual = draw(exact.shape, last=True, seed=3)
    buffers = Buffers("cpu")
    x, weight, bias, residual = (
        buffers.input(tensor, last)
        for tensor, last in (
            (case.x(), True),
            (case.weight(), False),
            (bias, False),
            (residual, True),
        )
    )
    for added, expected in ((None, exact), (residual, exact + residual)):
        total, active = case.run(x, weight, bias, added, activation="elu")
        assert off(total, expected) < ALLOWED[case.tile]
        assert total.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(active, reference.activated(total, "elu"), rtol=1e-6, atol=1e-7)
        (alone,) = case.run(x, weight, bias, added)
        assert torch.equal(alone, total)
        (alone,) = case.run(x, weight, bias, added, activation="elu", total=False)
        assert torch.equal(alone, active)
    buffers.check()


def without_dilation(way):
    return (case for case in cases(way) if case.dilation == (1, 1) and case.sides[1] > 1)


@on_every_way(without_dilation, NATIVE_WAYS)
def test_means_are_those_of_the_convolution(way, case):
    bias = draw(case.channels[1:], seed=2)
    exact = F.avg_pool2d(case.exact(bias), 2) if min(case.exact().shape[2:]) > 1 else None
    if exact is None:
        (found,) = case.run(bias=bias, pooled=True)
        assert found.numel() == 0
        return
    residual = draw(exact.shape, last=True, seed=3)
    total, active = case.run(bias=bias, residual=residual, pooled=True, activation="relu")
    assert off(total, exact + residual) < ALLOWED[case.tile]
    assert torch.equal(active, total.relu())


@on_every_way(cases, NATIVE_WAYS)
def test_flipped_weights_give_the_gradient_of_the_input(way, case):
    padding = tuple(2 * d - p for d, p in zip(case.dilation, case.padding, strict=True))
    if min(padding) < 0:
        pytest.skip("such a padding has no convolution for its gradient")
    x = case.x().double().requires_grad_()
    y = F.conv2d(x, case.weight().double(), **case.settings)
    upstream = draw(y.shape, last=True, seed=4)
    y.backward(upstream.double())
    for last in (False, True):
        ready = conv3x3.transformed(case.weight(last), case.tile, flipped=True)
        settings = {"outputs": case.channels[0], "tile": case.tile, "dilation": case.dilation}
        (found,) = conv3x3.filtered(upstream, ready, None, padding=padding, **settings)
        assert off(found, x.grad) < ALLOWED[case.tile]


@every_native_way
@pytest.mark.parametrize("tile", conv3x3.TILES)
def test_a_total_may_be_written_over_the_residual(way, tile):
    case = Case(3, (40, 24), (9, 6), tile=tile)
    residual = draw(case.exact().shape, last=True, seed=3)
    (expected,) = case.run(residual=residual)
    (found,) = case.run(residual=residual, overwrite=True)
    assert found.data_ptr() == residual.data_ptr()
    assert torch.equal(found, expected)
    assert torch.equal(residual, expected)


@every_native_way
@pytest.mark.parametrize("tile", conv3x3.TILES)
@pytest.mark.parametrize("dilation", [1, 2])
def test_an_image_depends_neither_on_those_beside_it_nor_on_threads(way, tile, dilation):
    case = Case(21, (48, 70), (13, 10), (dilation,) * 2, (dilation,) * 2, tile)
    x = case.x()
    (expected,) = case.run(x)
    for threads, samples in itertools.product((1, 2, 3, 9), (1, 2, 7, 21)):
        torch.set_num_threads(threads)
        try:
            (found,) = case.run(x[:samples])
        finally:
            torch.set_num_threads(1)
        assert torch.equal(found, expected[:samples])


@every_native_way
def test_images_in_any_layout_are_the_same(way):
    case = Case(2, (24, 32), (6, 8))
    (expected,) = case.run()
    wide = draw((2, 24, 6, 16))
    wide[..., ::2] = case.x()
    for x in (case.x().contiguous(), wide[..., ::2]):
        assert torch.equal(case.run(x)[0], expected)


@every_native_way
@pytest.mark.parametrize("channels", [(0, 3), (4, 0), (4, 4)])
def test_nothing_of_nothing(way, channels):
    case = Case(0 if channels == (4, 4) else 2, channels, (5, 6))
    (found,) = case.run(weight=torch.ones(channels[1], channels[0], 3, 3))
    assert torch.equal(found, torch.zeros(case.samples, channels[1], 5, 6))


@every_native_way
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_its_image_alone(way, value):
    case = Case(3, (8, 8), (9, 9))
    x = case.x()
    x[1, 3, 4, 5] = value
    (found,) = case.run(x)
    assert not found[1, :, 3:6, 4:7].isfinite().any()
    expected = case.run()[0]
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.native
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"side": 3}, "tiles have 2 or 4"),
        ({"outputs": 33}, "are not those of"),
        ({"padding": (-1, 1)}, "padding is at least 0"),
        ({"dilation": (1, 0)}, "dilation at least 1"),
        ({"dilation": (9, 1)}, "smaller than the kernel"),
        ({"x": torch.zeros(1, 17, 6, 6)}, "are not those of"),
        ({"x": torch.zeros(1, 4, 6, 6).double()}, "float32"),
        ({"x": torch.zeros(4, 6, 6)}, ""),
        ({"bias": torch.zeros(3)}, "one number for each output"),
        ({"residual": torch.zeros(1, 8, 6, 5)}, "the residual is to be"),
        ({"overwrite": True}, "no residual"),
        ({"activation": "gelu"}, "unknown"),
        ({"pool": True, "dilation": (2, 2)}, "without dilation"),
    ],
)
def test_what_a_kernel_would_misread_is_refused(changes, words):
    given = {
        "x": torch.zeros(1, 4, 6, 6),
        "weight": conv3x3.transformed(torch.zeros(8, 4, 3, 3), 4),
        "bias": None,
        "residual": None,
        "outputs": 8,
        "side": 4,
        "padding": (1, 1),
        "dilation": (1, 1),
        "pool": False,
        "activation": "",
        "total": True,
        "overwrite": False,
        **changes,
    }
    with pytest.raises((ValueError, RuntimeError), match=words):
        native.ops().conv3x3(*given.values())
    with pytest.raises(ValueError, match="float32 weights"):
        conv3x3.transformed(torch.zeros(8, 4, 3, 2), 4)


def gradients(y, upstream, *tensors, **how):
    return torch.autograd.grad(y, tensors, upstream, **how)


def convolved(case, x, weight, bias, tiles=None):
    tiles = conv3x3.Tiles(*(case.tile,) * 3) if tiles is None else tiles
    return conv3x3.convolution(x, weight, bias, **case.settings, tiles=tiles)


@on_every_way(cases, NATIVE_WAYS)
def test_the_gradient_of_the_weights_is_that_of_float64(way, case):
    weight = case.weight().double().requires_grad_()
    y = F.conv2d(case.x().double(), weight, **case.settings)
    buffers = Buffers("cpu")
    x = buffers.input(case.x(), True)
    upstream = buffers.input(draw(y.shape, last=True, seed=4), True)
    (exact,) = gradients(y, upstream.double(), weight)
    for last in (False, True):
        laid = case.weight(last)
        found = conv3x3.weight_gradient(x, upstream, laid, tile=case.tile, **case.settings)
        assert off(found, exact) < ALLOWED[case.tile]
        assert found.stride() == laid.stride()
    buffers.check()


@every_native_way
@pytest.mark.parametrize("tile", conv3x3.TILES)
def test_the_gradient_of_the_weights_is_the_same_for_any_number_of_threads(way, tile):
    case = Case(21, (48, 70), (13, 10), (2, 2), (2, 2), tile)
    upstream = draw((21, 70, 13, 10), last=True, seed=4)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            how = {"tile": tile, **case.settings}
            found.append(conv3x3.weight_gradient(case.x(), upstream, case.weight(), **how))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.native
@pytest.mark.parametrize("tile", conv3x3.TILES)
def test_sums_over_many_tiles_are_as_exact(tile):
    """More tiles than a group has, and than are summed at once."""
    case = Case(20, (200, 200), (24, 24), tile=tile)
    x, upstream = case.x(), draw((20, 200, 24, 24), last=True, seed=4)
    found = conv3x3.weight_gradient(x, upstream, case.weight(), tile=tile, **case.settings)
    some = slice(0, 8)
    weight = case.weight()[some].double().requires_grad_()
    y = F.conv2d(x.double(), weight, **case.settings)
    (exact,) = gradients(y, upstream[:, some].double(), weight)
    assert off(found[some], exact) < ALLOWED[tile]


@pytest.mark.native
@pytest.mark.parametrize("tiles", [(4, 4, 4), (2, 2, 2), (0, 4, 2), (4, 0, 0), (0, 0, 4)])
@pytest.mark.parametrize("biased", [True, False])
def test_autograd_has_its_gradients(tiles, biased):
    case = Case(3, (20, 24), (9, 10), (2, 1), (1, 1))
    tensors = [case.x(), case.weight(True)] + [draw((24,), seed=2)] * biased
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    y = F.conv2d(*exact, **case.settings)
    upstream = draw(y.shape, seed=4)  # contiguous
    given = [tensor.requires_grad_() for tensor in tensors]
    found = convolved(case, *given, *[None] * (not biased), conv3x3.Tiles(*tiles))
    assert off(found, y) < ALLOWED[4]
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = gradients(y, upstream.double(), *exact)
    for one, other in zip(gradients(found, upstream, *given), expected, strict=True):
        assert off(one, other) < ALLOWED[4]
        assert one.shape == other.shape


@pytest.mark.native
def test_a_gradient_that_nobody_wants_is_not_computed():
    case = Case(2, (8, 8), (8, 8))
    weight, bias = case.weight().requires_grad_(), draw((8,)).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        convolved(case, case.x(), weight, bias).sum().backward()
    calls = [event.key for event in profile.key_averages()]
    assert "ncsn_fast_cpp::conv3x3_weight_gradient" in calls
    (forward,) = [e for e in profile.key_averages() if e.key == "ncsn_fast_cpp::conv3x3"]
    assert forward.count == 1
    x = case.x().requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        convolved(case, x, weight.detach(), None).sum().backward()
    assert "ncsn_fast_cpp::conv3x3_weight_gradient" not in [e.key for e in profile.key_averages()]
    assert x.grad is not None


@pytest.mark.native
def test_second_derivatives_are_those_of_float64():
    case = Case(2, (6, 5), (6, 7), (2, 2), (2, 2))
    tensors = [case.x(), case.weight(), draw((5,), seed=2)]

    def second(convolve, dtype):
        x, weight, bias = (t.to(dtype).clone().requires_grad_() for t in tensors)
        y = convolve(x, weight, bias)
        slope = gradients((y**3).sum(), None, x, create_graph=True)[0]
        return gradients((slope**2).sum(), None, x, weight, bias)

    found = second(lambda *given: convolved(case, *given), torch.float32)
    exact = second(lambda *given: F.conv2d(*given, **case.settings), torch.float64)
    for one, other in zip(found, exact, strict=True):
        assert off(one, other) < 2e-5


@pytest.mark.native
def test_gradients_of_many_directions_at_once():
    case = Case(1, (4, 4), (5, 5))
    x = case.x().requires_grad_()
    y = convolved(case, x, case.weight(), None)
    directions = draw((3, *y.shape), seed=5)
    found = torch.vmap(lambda v: gradients(y, v, x, retain_graph=True)[0])(directions)
    for one, direction in zip(found, directions, strict=True):
        assert off(one, gradients(y, direction, x, retain_graph=True)[0].double()) < ALLOWED[4]


@pytest.mark.native
@pytest.mark.parametrize("biased", [True, False])
def test_opcheck(biased):
    case = Case(2, (5, 6), (7, 6))
    x, weight = case.x().requires_grad_(), case.weight().requires_grad_()
    bias = draw((6,)).requires_grad_() if biased else None
    # What traces it sees ATen's gradients, which round otherwise than the filtered ones.
    check_operator("conv3x3", x, weight, bias, [1, 1], [1, 1], [4, 0, 0])


@pytest.mark.native
@pytest.mark.parametrize(
    ("x", "upstream", "weight"),
    [
        ((1, 4, 6, 6), (1, 8, 6, 5), (8, 4, 3, 3)),
        ((1, 4, 6, 6), (1, 8, 6, 6), (8, 5, 3, 3)),
        ((1, 4, 6, 6), (2, 8, 6, 6), (8, 4, 3, 3)),
        ((1, 4, 6, 6), (1, 8, 6, 6), (8, 4, 1, 1)),
    ],
)
def test_gradients_of_other_sizes_are_refused(x, upstream, weight):
    given = (torch.zeros(shape) for shape in (x, upstream, weight))
    with pytest.raises(ValueError, match="do not fit together"):
        conv3x3.weight_gradient(*given, tile=4, padding=(1, 1), dilation=(1, 1))


@pytest.mark.native
@pytest.mark.parametrize(("samples", "channels"), [(0, (4, 4)), (2, (0, 3)), (2, (4, 0))])
def test_the_gradient_of_nothing_is_zero(samples, channels):
    case = Case(samples, channels, (5, 6))
    weight, upstream = (
        torch.ones(channels[1], channels[0], 3, 3),
        torch.ones(samples, channels[1], 5, 6),
    )
    found = conv3x3.weight_gradient(case.x(), upstream, weight, tile=4, **case.settings)
    assert torch.equal(found, torch.zeros_like(weight))

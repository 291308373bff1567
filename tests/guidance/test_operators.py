"""Linear operators: what they compute, their adjoints and norms, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from operator_cases import CASES, DIFFERING, SAMPLES, bits, cases, compound, matrix_of, real

import ncsn_fast as nf
from ncsn_fast.guidance.operators import (
    MIMO,
    MRI,
    Blur,
    Dense,
    Downsample,
    Fourier,
    Mask,
    Operator,
    Scale,
)


@pytest.mark.parametrize("name", CASES)
def test_forward_is_the_definition(name):
    operator, definition = CASES[name]
    x = real(3, *operator.shape)
    expected = torch.stack([definition(one) for one in x])
    assert expected.shape[1:] == operator.measured
    torch.testing.assert_close(operator.forward(x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_adjoint_moves_to_the_other_side_of_the_inner_product(name):
    operator, _ = CASES[name]
    for _ in range(20):
        x, y = real(2, *operator.shape), real(2, *operator.measured)
        left = (operator.forward(x) * y).flatten(1).sum(1)
        right = (x * operator.adjoint(y)).flatten(1).sum(1)
        torch.testing.assert_close(left, right, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_norm_is_the_largest_singular_value(name):
    operator, definition = CASES[name]
    expected = torch.linalg.matrix_norm(matrix_of(definition, operator.shape), 2)
    assert operator.norm() == pytest.approx(float(expected), rel=5e-3)
    assert operator.norm() <= float(expected) * (1 + 1e-9)


def test_the_norm_of_nothing_is_zero():
    assert Mask(torch.zeros(3)).norm() == 0


@pytest.mark.parametrize("name", CASES)
def test_operators_compute_in_the_precision_of_what_they_are_given(name):
    operator, _ = CASES[name]
    x = real(2, *operator.shape)
    y = operator.forward(x.float())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), operator.forward(x), atol=1e-4, rtol=1e-4)
    assert operator.adjoint(y).dtype == torch.float32


def test_constants_are_moved_once():
    operator, _ = CASES["dense"]
    like = torch.zeros(1)
    assert operator.constant("matrix", like) is operator.constant("matrix", like)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_operators_go_where_the_state_is(name):
    operator, _ = CASES[name]
    x = real(2, *operator.shape)
    y = operator.forward(x)
    for found, expected in (
        (operator.forward(x.cuda()), y),
        (operator.adjoint(y.cuda()), operator.adjoint(y)),
    ):
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected, atol=1e-10, rtol=1e-10)


def test_an_operator_of_ones_own_is_two_methods():
    class Differences(Operator):
        def __init__(self, size):
            super().__init__((size,), (size - 1,))

        def forward(self, x):
            return self.check("forward", x, self.shape).diff(dim=1)

        def adjoint(self, y):
            zero = torch.zeros_like(y[:, :1])
            return -torch.cat([zero, y, zero], 1).diff(dim=1)

    operator = Differences(8)
    x, y = real(1, 8), real(1, 7)
    assert float((operator.forward(x) * y).sum()) == pytest.approx(
        float((x * operator.adjoint(y)).sum())
    )
    assert operator.norm() == pytest.approx(2 * math.cos(math.pi / 16), rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_other_shapes_and_complex_input_are_refused(name):
    operator, _ = CASES[name]
    with pytest.raises(ValueError, match=r"forward was given shape .* needed is \(N, "):
        operator.forward(real(2, *operator.shape, 2))
    with pytest.raises(ValueError, match=r"adjoint was given shape .* needed is \(N, "):
        operator.adjoint(real(2, *operator.measured, 2))
    with pytest.raises(ValueError, match="give real floating-point numbers; complex ones are two"):
        operator.forward(compound(2, *operator.shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.full((3,), 0.5)), "other than 0 and 1"),
        (lambda: Mask(torch.ones(4), (3,)), "does not broadcast to"),
        (lambda: Blur(torch.ones(2, 3), (1, 4, 4)), "odd kH and kW"),
        (lambda: Blur(torch.ones(3, 3), (4, 4)), r"acts on images: .* \(C, H, W\)"),
        (lambda: Blur(torch.ones(2, 3, 3), (3, 4, 4)), "2 kernels for 3 channels"),
        (lambda: Blur(torch.full((3, 3), torch.nan), (1, 4, 4)), "not finite"),
        (lambda: Downsample(3, (1, 4, 6)), "3 does not divide 4 × 6: crop or pad"),
        (lambda: Downsample(0, (1, 4, 6)), "factor = 0: give a whole number"),
        (lambda: Dense(torch.ones(3)), r"give \(M, D\)"),
        (lambda: Dense(torch.ones(3, 4), (5,)), "4 columns, a sample of shape .* 5 values"),
        (lambda: Dense(compound(3, 4)), "give real numbers"),
        (lambda: Fourier(torch.ones(4)), r"mask of shape \(4,\): give \(H, W\)"),
        (lambda: MRI(torch.ones(2, 4, 4), torch.ones(4, 4)), "give complex maps"),
        (lambda: MRI(compound(2, 4, 4), torch.ones(4, 5)), "does not broadcast"),
        (lambda: MRI(compound(4, 4), torch.ones(4, 4)), r"give \(coils, H, W\)"),
        (lambda: MIMO(torch.ones(3, 4), 2), "give a complex matrix"),
        (lambda: MIMO(), "neither pilots nor a combiner"),
        (lambda: MIMO(compound(3, 4)), "receivers = None: give a whole number"),
        (lambda: MIMO(combiner=compound(3, 4)), "transmitters = None: give a whole number"),
        (lambda: MIMO(compound(3, 4), 2, combiner=compound(4, 5)), "receivers = 2, but .* for 5"),
        (lambda: MIMO(compound(3, 4), 2, transmitters=4), "transmitters = 4, but .* for 3"),
        (lambda: Scale(torch.ones(4), (3,)), "does not broadcast to"),
        (lambda: Scale(compound(3), (3,)), "give real numbers"),
        (lambda: Fourier(torch.ones(4, 4), centered="no"), "centered = 'no'"),
        (lambda: Mask(torch.ones(3)) @ Mask(torch.ones(4)), r"takes \(3,\), Mask measures \(4,\)"),
        (lambda: MRI(compound(5, 2, 4, 4), torch.ones(4, 4, 4)), "numbers of samples, .*5.*4"),
        (
            lambda: Mask(torch.ones(5, 4), (4,)) @ Mask(torch.ones(2, 4), (4,)),
            "different numbers of samples",
        ),
    ],
)
def test_operators_without_a_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# What each operator is made of, as tensors: (arguments, how it is made of them).
MADE = {
    "mask": ((bits(3, 4),), lambda mask: Mask(mask)),
    "blur": ((real(3, 5),), lambda kernel: Blur(kernel, (2, 4, 3))),
    "dense": ((real(5, 12),), lambda matrix: Dense(matrix)),
    "fourier": ((bits(3, 4),), lambda mask: Fourier(mask)),
    "mri": ((compound(3, 3, 4), bits(3, 4)), lambda coils, mask: MRI(coils, mask)),
    "mri lines": ((compound(3, 3, 4), bits(4)), lambda coils, mask: MRI(coils, mask)),
    "mimo": ((compound(3, 5),), lambda pilots: MIMO(pilots, 2)),
}
# NumPy's ways to hold the same numbers.
HELD = {
    "array": lambda array: array,
    "32 bits": lambda array: array.astype(np.complex64 if np.iscomplexobj(array) else np.float32),
    "reversed view": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "transposed": np.asfortranarray,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    "lists": lambda array: array.tolist(),
    "tuple of lists": lambda array: tuple(array.tolist()),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("name", MADE)
def test_operators_are_made_of_arrays_as_of_tensors(name, held):
    given, make = MADE[name]
    operator, expected = make(*(HELD[held](one.numpy()) for one in given)), make(*given)
    assert (operator.shape, operator.measured) == (expected.shape, expected.measured)
    x, y = real(2, *operator.shape), real(2, *operator.measured)
    tolerance = 1e-6 if held == "32 bits" else 0
    for found, wanted in (
        (operator.forward(x), expected.forward(x)),
        (operator.adjoint(y), expected.adjoint(y)),
        (operator.forward(x.numpy()), expected.forward(x)),
        (operator.adjoint(y.numpy()), expected.adjoint(y)),
    ):
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def test_masks_of_whole_numbers_and_truth_values_are_masks():
    for mask in (np.array([True, False]), np.array([1, 0], np.uint8), [1, 0], [True, False]):
        assert Mask(mask).forward(torch.ones(1, 2)).tolist() == [[1, 0]]


def test_an_operator_keeps_its_numbers_when_the_array_is_changed():
    mask = np.ones(3)
    operator = Mask(mask)
    mask[:] = 0
    assert operator.forward(torch.ones(1, 3)).tolist() == [[1, 1, 1]]


BAD = {
    "words": [["a", "b"], ["c", "d"]],
    "ragged": [[1.0], [1.0, 0.0]],
    "none": None,
    "objects": np.array([[object()]]),
    "a function": len,
    "a dict": {"mask": 1},
    "meta": torch.ones(3, 4, device="meta"),
    "sparse": torch.ones(3, 4).to_sparse(),
    "too many dimensions": np.ones((2, 2, 2, 2, 2)),
    "a number": 3.5,
    "empty": np.ones((0, 0)),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", MADE)
def test_what_no_operator_can_be_made_of_is_refused_by_name(name, bad):
    given, make = MADE[name]
    named = ("mask", "kernel", "matrix", "coils", "pilots", "shape")
    if (name, bad) == ("mask", "too many dimensions"):
        return  # a mask may have any
    for place in range(len(given)):
        arguments = list(given)
        arguments[place] = BAD[bad]
        with pytest.raises(ValueError, match="|".join(named)) as refused:
            make(*arguments)
        assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", CASES)
def test_what_no_operator_computes_with_is_refused_by_name(name):
    operator, _ = CASES[name]
    for bad in (None, "x", [["a"]], np.ones(3, complex), np.array(1.0), len):
        for method in ("forward", "adjoint"):
            with pytest.raises(ValueError, match=rf"{type(operator).__name__}\.{method} was given"):
                getattr(operator, method)(bad)


@pytest.mark.parametrize("name", ["blur", "dense"])
def test_operators_keep_their_precision_under_autocast(name):
    operator = {
        "blur": Blur(torch.rand(3, 3), (1, 8, 8)),
        "dense": Dense(torch.rand(9, 64), (1, 8, 8)),
    }[name]
    x = torch.rand(2, 1, 8, 8)
    y = operator.forward(x)
    back = operator.adjoint(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operator.forward(x), y)
        assert torch.equal(operator.adjoint(y), back)


@pytest.mark.parametrize("name", list(CASES))
def test_the_norm_is_of_values_whatever_the_default_device(name):
    operator = CASES[name][0]
    expected = operator.norm()
    with torch.device("meta"):
        assert operator.norm() == expected


@pytest.mark.parametrize("name", DIFFERING)
def test_what_differs_from_sample_to_sample_is_an_operator_each(name):
    given, make = DIFFERING[name]
    operator = make(*given)
    alone = [make(*(one[i : i + 1] for one in given)) for i in range(SAMPLES)]
    assert operator.samples == SAMPLES
    assert [one.samples for one in alone] == [1] * SAMPLES
    assert all(operator.shape == one.shape for one in alone)
    x, y = real(SAMPLES, *operator.shape), real(SAMPLES, *operator.measured)
    for method, value in (("forward", x), ("adjoint", y)):
        each = [getattr(one, method)(value[i : i + 1]) for i, one in enumerate(alone)]
        torch.testing.assert_close(getattr(operator, method)(value), torch.cat(each))
    assert operator.norm() == pytest.approx(max(one.norm() for one in alone), rel=1e-9)


@pytest.mark.parametrize("name", DIFFERING)
def test_some_of_the_samples_have_their_part_of_it(name):
    given, make = DIFFERING[name]
    operator, part = make(*given), slice(1, 4)
    some = operator.of({key: value[part] for key, value in operator.inputs.items()})
    assert (some.samples, operator.samples) == (3, SAMPLES)
    x, y = real(SAMPLES, *operator.shape), real(SAMPLES, *operator.measured)
    torch.testing.assert_close(some.forward(x[part]), operator.forward(x)[part])
    torch.testing.assert_close(some.adjoint(y[part]), operator.adjoint(y)[part])
    with pytest.raises(ValueError, match=rf"was given 5 samples; it has .* of {3}: give as many"):
        some.forward(x)


def test_a_norm_of_many_samples_is_found_a_few_at_a_time(monkeypatch):
    matrix = real(7, 3, 4)
    whole = Dense(matrix).norm()
    monkeypatch.setattr("ncsn_fast.guidance.operators.base._NORM_VALUES", 15)
    assert Dense(matrix).norm() == pytest.approx(whole, rel=1e-9)


def test_an_operator_of_ones_own_may_differ_from_sample_to_sample():
    class Gain(Operator):
        def __init__(self, gain):
            super().__init__((3,), (3,), per_sample=["gain"], gain=gain)

        def forward(self, x):
            return self.check("forward", x, self.shape) * self.constant("gain", x)[:, None]

        adjoint = forward

    operator = Gain([1.0, 2.0])
    assert operator.forward(torch.ones(2, 3)).tolist() == [[1, 1, 1], [2, 2, 2]]
    assert operator.norm() == pytest.approx(2)
    with pytest.raises(ValueError, match="was given 1 samples"):
        operator.forward(torch.ones(1, 3))


class Own(Operator):
    """Of four values, by two functions of itself and x or y."""

    def __init__(self, forward, adjoint=None, per_sample=(), **constants):
        super().__init__((4,), (4,), per_sample=per_sample, **constants)
        self.functions = forward, adjoint or forward

    def forward(self, x):
        return self.functions[0](self, x)

    def adjoint(self, y):
        return self.functions[1](self, y)


def gained(self, x):
    return x * self.constant("gain", x)[:, None]


@pytest.mark.parametrize("name", CASES)
def test_operators_have_what_makes_one(name):
    cases()[name][0].verify()  # one that was not asked before


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_operators_have_what_makes_one_on_a_gpu(name, tf32, monkeypatch):
    for library in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(library, "allow_tf32", tf32)
    cases()[name][0].verify("cuda")


def test_products_in_tf32_are_near_enough_for_an_operator_and_of_bfloat16_it_is_told(caplog):
    matrix = real(40, 90).float()

    def product(x, matrix, bits):
        """Of numbers rounded to some bits of their 23."""
        half, kept = 1 << (22 - bits), -(1 << (23 - bits))
        x, matrix = (
            ((one.view(torch.int32) + half) & kept).view(torch.float32)
            for one in (x, matrix.contiguous())
        )
        return x @ matrix

    class Rounded(Operator):
        def __init__(self, bits):
            super().__init__((90,), (40,))
            self.bits = bits

        def forward(self, x):
            return product(x, matrix.mT, self.bits)

        def adjoint(self, y):
            return product(y, matrix, self.bits)

    Rounded(10).verify()
    assert not caplog.messages
    Rounded(7).verify()
    assert "Rounded.forward is linear to 0.00" in caplog.text
    with pytest.raises(ValueError, match="not linear"):
        Rounded(2).verify()


def test_an_operator_that_computes_in_bfloat16_is_told(caplog):
    matrix = real(200, 100).bfloat16()

    class Half(Operator):
        def forward(self, x):
            return (x.bfloat16() @ matrix.mT).float()

        def adjoint(self, y):
            return (y.bfloat16() @ matrix).float()

    operator = Half((100,), (200,))
    for _ in range(2):
        operator.verify()
    (line,) = [one for one in caplog.messages if "Half.forward is linear to 0.00" in one]
    assert "as exact as that" in line


@pytest.mark.parametrize("name", DIFFERING)
def test_operators_of_each_sample_have_what_makes_one(name):
    given, make = DIFFERING[name]
    make(*given).verify()


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e20])
def test_neither_sizes_nor_units_make_an_operator_wrong(rows, factor):
    Dense(factor * real(rows, 10_000)).verify()
    Dense(factor * torch.eye(1, 10_000)).verify()
    Mask(torch.zeros(9)).verify()


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (1.0001, False), (1.03, True)])
def test_an_adjoint_that_is_only_near_is_told(factor, told, caplog):
    """As those of tomography, whose back projectors are not their projectors' transposes."""
    operator = Own(lambda _, x: 2 * x, lambda _, y: 2 * factor * y)
    for _ in range(2):
        operator.verify()
    lines = [one for one in caplog.messages if "is the adjoint of its forward to 0.0" in one]
    assert len(lines) == told


@pytest.mark.parametrize(
    ("forward", "adjoint", "message"),
    [
        (lambda _, x: 2 * x, lambda _, y: 3 * y, r"adjoint is not the adjoint of its forward"),
        (lambda _, x: 2 * x, lambda _, y: y / 2, r"adjoint is not the adjoint of its forward"),
        (lambda _, x: x.roll(1, 1), lambda _, y: y.roll(1, 1), "adjoint is not the adjoint"),
        (lambda _, x: x, lambda _, y: y * math.nan, "adjoint is not the adjoint"),
        (lambda _, x: 0 * x, lambda _, y: y, "adjoint is not the adjoint"),
        (lambda _, x: x**2, None, r"forward is not linear.*nf\.guidance\.Nonlinear"),
        (lambda _, x: x + 1, None, "forward is not linear"),
        (lambda _, x: x.clamp(-1, 1), None, "forward is not linear"),
        (lambda _, x: x * math.inf, None, "forward is not linear"),
        (lambda _, x: x - x.mean(0), None, "of a sample alone is not that of it beside another"),
        (lambda _, x: x[:, :3], None, r"forward returned \(2, 3\).* \(2, 4\)"),
        (lambda _, x: x.tolist(), None, "forward returned list; needed is a tensor"),
        (lambda _, x: x, lambda _, y: y.long(), "adjoint returned torch.int64"),
        (lambda _, x: x @ torch.ones(5, 5), None, "forward of 2 samples on cpu fails: mat1"),
    ],
)
def test_what_is_no_linear_operator_is_refused_by_name(forward, adjoint, message):
    operator, y = Own(forward, adjoint), torch.ones(4)
    with pytest.raises(ValueError, match=rf"Own\.(forward|adjoint).*{message}|Own\.{message}"):
        operator.verify()
    for make in (
        lambda: nf.posterior.score_scaled(operator, y),
        lambda: nf.guidance.dps(operator, y),
    ):
        with pytest.raises(ValueError, match=r"Own\."):
            make()


def test_a_wrong_factor_shows_in_any_number_of_dimensions():
    class One(Operator):
        def __init__(self):
            super().__init__((1_000_000,), (1,))

        def forward(self, x):
            return x[:, :1]

        def adjoint(self, y):
            return torch.nn.functional.pad(1.3 * y, (0, 999_999))

    with pytest.raises(ValueError, match="not the adjoint"):
        One().verify()


@pytest.mark.parametrize("n", [2, 3])
def test_a_constant_of_each_sample_that_is_not_named_as_one_is_refused(n):
    with pytest.raises(ValueError, match="for each sample is named in per_sample"):
        Own(gained, gain=torch.rand(n)).verify()
    Own(gained, gain=torch.rand(n), per_sample=["gain"]).verify()
    first = Own(lambda self, x: x * self.constant("gain", x)[0], gain=[1.0, 2], per_sample=["gain"])
    with pytest.raises(ValueError, match="of a sample alone is not that of it beside another"):
        first.verify()


def test_an_operator_is_asked_once_and_about_two_samples_at_most():
    asked = []

    def counted(self, x):
        asked.append(len(x))
        return gained(self, x)

    operator = Own(counted, gain=torch.rand(50), per_sample=["gain"])
    for _ in range(2):
        nf.posterior.score_scaled(operator, torch.ones(4))
    assert len(asked) == 6
    assert max(asked) == 2


@pytest.mark.parametrize(
    ("named", "gain", "message"),
    [
        (["gian"], torch.ones(3), r"per_sample = \['gian'\] of Own: .* out of \['gain'\]"),
        ("gain", torch.ones(3), "per_sample = 'gain' of Own: give a list of names"),
        ([["gain"]], torch.ones(3), r"give a list of names, out of \['gain'\]"),
        (["gain"], torch.tensor(2.0), r"gain of Own has shape \(\): give \(n, …\)"),
        (["gain"], torch.ones(0, 4), r"gain of Own has shape \(0, 4\): give \(n, …\)"),
    ],
)
def test_names_and_shapes_without_samples_are_refused(named, gain, message):
    with pytest.raises(ValueError, match=message):
        Own(gained, gain=gain, per_sample=named)


def test_a_constant_that_there_is_not_is_refused_by_name():
    operator = Own(gained, gain=torch.ones(3))
    with pytest.raises(ValueError, match=r"Own has no constant 'gian': it has \['gain'\]"):
        operator.constant("gian", torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("each", [False, True])
def test_an_operator_stays_what_it_was_made_of(dtype, each):
    gain = torch.ones(3, dtype=torch.float32)
    operator = Own(gained, gain=gain, per_sample=["gain"] if each else [])
    measured, x = nf.guidance.Nonlinear(lambda x, by: x * by, (1,), (1,), by=gain), torch.ones(3, 4)
    y = torch.ones(4)
    guidance = nf.posterior.score_scaled(Mask(torch.ones(4)), y)
    for made_of in (gain, y):
        made_of.mul_(2)
    assert torch.equal(operator.forward(x.to(dtype)), x.to(dtype))
    assert torch.equal(measured.forward(x[:, 0].to(dtype)), x[:, 0].to(dtype))
    assert torch.equal(guidance.y, torch.ones(1, 4))


def test_derivatives_go_through_operators_that_were_made_in_inference_mode():
    with torch.inference_mode():
        operators = (Mask(torch.ones(4)), Scale([1.0], (4,)), Dense(torch.ones(4, 4).double()))
        for operator in operators:
            operator.forward(torch.ones(1, 4))
    for operator in operators:
        x = torch.ones(1, 4, requires_grad=True)
        operator.forward(x).square().sum().backward()
        assert bool((x.grad > 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["fourier", "mri", "mimo"])
def test_complex_operators_refuse_16_bits(name, dtype):
    operator = CASES[name][0]
    for method, shape in (("forward", operator.shape), ("adjoint", operator.measured)):
        with pytest.raises(ValueError, match=rf"{dtype}: give float32 or float64"):
            getattr(operator, method)(torch.ones(2, *shape, dtype=dtype))

"""The Triton kernels against the specification, in Triton's interpreter on the CPU."""

import pytest
import torch
from cases.common import UNALIGNED
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed")

from cases.parts import OFFSETS, check_offsets, check_words, normals_error
from cases.training import (
    SPLIT,
    Training,
    brief,
    check_loss,
    check_perturb,
    check_split,
    loss_cases,
    training_cases,
)
from cases.update import (
    EVERYTHING,
    SEVERAL_PROGRAMS,
    WAYS,
    Update,
    check_begin_step,
    check_known_replaces_nan,
    check_update,
    check_update_in_place,
    check_update_of_views,
    update_cases,
)

from ncsn_fast.kernels.triton.common import launch, tiles

pytestmark = pytest.mark.skipif(
    not launch.INTERPRETED, reason="with a GPU kernels are compiled for it: see test_gpu_kernels.py"
)
HERE = {"device": "cpu", "fast_math": False}


def test_words_are_those_of_philox():
    check_words("cpu")


def test_normals_are_accurate():
    assert normals_error(**HERE) < 2e-6


@pytest.mark.parametrize("case", update_cases(), ids=str)
def test_sampler_update_is_its_specification(case):
    check_update(case, **HERE)


@pytest.mark.parametrize("layout", SEVERAL_PROGRAMS, ids=WAYS)
def test_sampler_update_takes_tensors_that_are_not_aligned(layout):
    shape, last = layout
    case = Update(shape, EVERYTHING, torch.float16, last)
    check_update(case, **HERE, guard=UNALIGNED)


@pytest.mark.parametrize("layout", SEVERAL_PROGRAMS, ids=WAYS)
def test_sampler_update_may_write_where_it_reads(layout):
    check_update_in_place(layout, **HERE)


def test_sampler_update_takes_any_view_of_the_output_of_a_network():
    check_update_of_views(**HERE)


def test_only_the_known_region_replaces_a_nan():
    check_known_replaces_nan(**HERE)


@pytest.mark.parametrize("case", training_cases(), ids=brief)
def test_perturb_is_its_specification(case):
    check_perturb(case, **HERE)


@pytest.mark.parametrize("case", loss_cases(), ids=str)
def test_dsm_loss_and_its_gradient_are_their_specification(case):
    check_loss(case, **HERE)


@pytest.mark.parametrize("layout", SEVERAL_PROGRAMS, ids=WAYS)
@pytest.mark.parametrize("check", [check_perturb, check_loss])
def test_training_kernels_take_tensors_that_are_not_aligned(check, layout):
    check(Training(*layout, torch.float16), **HERE, guard=UNALIGNED)


@pytest.mark.parametrize("layout", SPLIT, ids=WAYS)
def test_a_batch_may_take_several_launches(layout):
    check_split(layout, **HERE)


@pytest.mark.parametrize("samples", [1, 1500])
@pytest.mark.parametrize(
    "conditions", [torch.tensor([4, 5, 6]), torch.tensor([2.0, 0.5, 0.1]), None]
)
def test_steps_count_up_and_stay_at_the_last_row(conditions, samples):
    check_begin_step(conditions, samples, "cpu")


@pytest.mark.parametrize(("shape", "plan_last", "last"), OFFSETS)
def test_elements_beyond_32_bits_are_found(shape, plan_last, last):
    check_offsets(shape, plan_last, last, "cpu")


@pytest.mark.parametrize("samples", [70_000, 3_000_000])
def test_the_grid_has_one_dimension_however_many_samples(samples):
    """The other dimensions end at 65,535."""
    shape = torch.Size((samples, 1))
    flat = launch.over_all(shape, False)
    assert flat.grid == (-(-samples // flat.settings["BLOCK_SIZE"]),)
    assert launch.within_samples(shape, False).grid == (samples,)


@given(st.integers(1, (1 << 31) - 1), st.integers(0, (1 << 31) - 1), st.data())
def test_the_magic_number_divides(divisor, index, data):
    magic, shift = tiles.magic_number(divisor)
    multiple = divisor * data.draw(st.integers(1, ((1 << 31) - 1) // divisor))
    for i in (0, index, multiple - 1, multiple, (1 << 31) - 1):
        assert i * magic >> shift == i // divisor
    assert 1 << 31 <= magic < 1 << 32
    assert ((1 << 31) - 1) * magic < 1 << 64


@pytest.mark.parametrize(
    ("shape", "last"),
    [((1, 1 << 33), False), ((2, (1 << 33) + 1), False), ((1, 8, 1 << 15, 1 << 15), True)],
)
def test_a_sample_of_8_gibi_elements_is_refused(shape, last):
    with pytest.raises(ValueError, match="kernels take less than"):
        tiles.plan(torch.Size(shape), last)


def test_no_launch_counts_beyond_31_bits():
    for shape, last in (((1 << 22, 3, 64, 64), True), ((1 << 22, 3, 63, 65), False)):
        plan = tiles.plan(torch.Size(shape), last)
        assert 1 <= plan.samples < shape[0]
        assert plan.samples * plan.quads + 256 < 1 << 31

"""Fingerprints of memory: what differs differs there, and nothing else enters."""

import math

import pytest
import torch
from cases.common import Buffers, draw, every_native_way

from ncsn_fast.device import native

# Below a word, around what is read at once and what a thread takes, and of several pieces.
COUNTS = (1, 2, 3, 127, 128, 129, 4095, 4096, 4097, 10_000)


def prints(*tensors):
    return native.ops().fingerprints(list(tensors))


@every_native_way
@pytest.mark.parametrize("count", COUNTS)
def test_every_single_change_is_noticed(way, count):
    values, buffers = draw((count,)), Buffers("cpu")
    inside = buffers.input(values)  # what lies around it is NaN and does not enter
    (before,) = prints(values)
    assert prints(inside) == [before]
    for i in {*range(min(count, 130)), *range(0, count, 97), count - 1}:
        for new in (-values[i], torch.nextafter(values[i], values[i] + 1), math.nan):
            changed = values.clone()
            changed[i] = new
            assert prints(changed) != [before], (i, new)
    buffers.check()


@every_native_way
def test_changes_of_all_numbers_at_once_are_noticed(way):
    x = draw((3000,))
    changed = [x, -x, 2 * x, x.flip(0), x.roll(1), x.roll(128), x.roll(4096), x * 0, x * math.nan]
    changed += [x * sign for sign in torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 1500)]
    changed += [torch.cat([x[:256].neg(), x[256:]]), torch.cat([x[:128], -x[128:256], x[256:]])]
    assert len(set(prints(*changed))) == len(changed)


@every_native_way
def test_not_a_number_is_its_bits(way):
    bits = torch.tensor([0x7FC00000, 0x7FC00001, -0x400000], dtype=torch.int32)
    nans = list(bits.view(torch.float32).unbind())
    assert all(nan.isnan() for nan in nans)
    assert len(set(prints(*nans))) == 3
    assert prints(*nans) == prints(*[nan.clone() for nan in nans])
    zero = torch.zeros(1)
    assert len(set(prints(zero, -zero))) == 2


@every_native_way
def test_type_shape_and_strides_enter(way):
    x = draw((4, 6, 2, 2))
    same_memory = [
        *(x, x.view(6, 4, 2, 2), x.view(4, 6, 4), x.view(torch.int32), x.flatten()),
        *(torch.as_strided(x, x.shape, (1, 4, 24, 48)), x.view(torch.bfloat16)),
    ]
    assert len(set(prints(*same_memory))) == len(same_memory)
    assert len(set(prints(torch.zeros(0), torch.zeros(0, 1), torch.zeros(1)))) == 3
    last = x.contiguous(memory_format=torch.channels_last)
    assert prints(last) == prints(last.clone())


@every_native_way
def test_gaps_between_the_numbers_do_not_enter(way):
    wide = draw((10, 8))
    narrow, expanded = wide[:, ::2], wide[:, :1].expand(10, 8)
    before = prints(narrow, expanded, wide[2:5, 1])
    wide[:, 1::2] += 1
    after = prints(narrow, expanded, wide[2:5, 1])
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    wide[7, 0] += 1
    assert all(one != other for one, other in zip(prints(narrow, expanded), before, strict=False))


@every_native_way
def test_lazy_signs_are_seen(way):
    z = torch.view_as_complex(draw((5, 2)))
    negative = z.conj().imag
    assert negative.is_neg()
    assert prints(negative) != prints(z.imag)
    z.imag.neg_()
    assert prints(z.imag) != prints(negative)
    assert len({*prints(negative, z.imag)}) == 2


@every_native_way
def test_results_depend_on_neither_threads_nor_neighbours(way):
    tensors = [draw((count,), seed=count) for count in (*COUNTS, 300_000)]
    expected = [prints(tensor)[0] for tensor in tensors]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            assert prints(*tensors) == expected
        finally:
            torch.set_num_threads(1)
    assert prints() == []


@pytest.mark.native
def test_results_are_those_of_every_capability():
    tensors = [draw((count,)) for count in COUNTS]
    found = set()
    for capability in native.ops().capability("")[1:]:
        native.ops().capability(capability)
        try:
            found.add(tuple(prints(*tensors)))
        finally:
            native.ops().capability("")
    assert len(found) == 1

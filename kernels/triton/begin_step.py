"""The head of a captured step: the next row of the table, for everything that the step runs.

Specification: ``ncsn_fast.reference.begin_step``. It is a launch of its own, of one program: the
update must not advance a counter that its own programs still read.
"""

import triton
import triton.language as tl
from torch import Tensor

from ncsn_fast.kernels.triton.common import launch

_MOST_AT_ONCE = 1024


@triton.jit(do_not_specialize=["rows", "samples"], do_not_specialize_on_alignment=["step_ptr"])
def _begin_step_kernel(
    counter_ptr,
    table_ptr,
    conditions_ptr,
    row_ptr,
    step_ptr,
    condition_ptr,
    rows,
    samples,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    counted, step = tl.load(counter_ptr), tl.load(counter_ptr + 1)
    row = tl.maximum(tl.minimum(counted, rows - 1), 0)
    column = tl.arange(0, WIDTH)
    inside = column < COLUMNS
    tl.store(row_ptr + column, tl.load(table_ptr + row * COLUMNS + column, mask=inside), inside)
    tl.store(step_ptr, step)
    if condition_ptr is not None:
        condition = tl.load(conditions_ptr + row)
        first = 0
        while first < samples:
            sample = first + tl.arange(0, BLOCK_SIZE)
            tl.store(condition_ptr + sample, condition, mask=sample < samples)
            first += BLOCK_SIZE
    tl.debug_barrier()  # every thread has read the counter
    tl.store(counter_ptr, counted + 1)
    tl.store(counter_ptr + 1, step + 1)


def begin_step(
    counter: Tensor,
    table: Tensor,
    conditions: Tensor | None,
    row: Tensor,
    step: Tensor,
    condition: Tensor | None,
) -> None:
    """Launch the kernel. All tensors lie on the counter's device and are contiguous.

    Args:
        counter: (2,) int64, the row and the step of its noise; both grow by 1.
        table: (R, 9) float32.
        conditions: (R,) of any dtype, given with ``condition``.
        row: (9,) float32, written.
        step: () int64, written.
        condition: (B,) of the dtype of ``conditions``, written.
    """
    samples = 0 if condition is None else condition.shape[0]
    with launch.on_device_of(counter):
        _begin_step_kernel[(1,)](
            counter, table, conditions, row, step, condition, table.shape[0], samples,
            COLUMNS=table.shape[1],
            WIDTH=triton.next_power_of_2(table.shape[1]),
            BLOCK_SIZE=min(_MOST_AT_ONCE, triton.next_power_of_2(max(1, samples))),
            num_warps=1,
        )  # fmt: skip


__all__ = ["begin_step"]

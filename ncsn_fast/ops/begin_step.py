"""The head of a captured step: the next row, and what the network is told, from a device counter.

In a captured graph nothing comes from the host, so the row that a replay runs is found by a
counter in device memory. Formula and tensors: :func:`ncsn_fast.reference.begin_step`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncsn_fast import reference
from ncsn_fast.device import backends
from ncsn_fast.ops.library import declare, triton_kernel

_SCHEMA = (
    "begin_step(Tensor(a!) counter, Tensor table, Tensor? conditions, Tensor(b!) row, "
    "Tensor(c!) step, Tensor(d!)? condition) -> ()"
)


def _launch(*arguments: Any) -> None:
    triton_kernel("begin_step")(*arguments)


_pick = declare(_SCHEMA, _launch, lambda *_: None)


def begin_step(
    counter: Tensor,
    table: Tensor,
    conditions: Tensor | None,
    row: Tensor,
    step: Tensor,
    condition: Tensor | None = None,
    *,
    backend: str = "auto",
) -> None:
    """Write what this step runs with into the buffers it reads, and advance the counter.

    Args:
        counter: (2,) int64, the row and the step of its noise; both grow by 1.
        table: (R, 9) float32, the coefficients ``reference.ROW`` of all rows. Beyond its end the
            last row stays.
        conditions: (R,), what the network is told in each row; None for nothing.
        row: (9,) float32, written.
        step: () int64, written.
        condition: (B,) of the dtype of ``conditions``, written: one entry per sample.
        backend: see :func:`ncsn_fast.use_backend`.

    Raises:
        ValueError: for tensors of other shapes or types than these, not contiguous, or on several
            devices.
    """
    written = {"counter": counter, "row": row, "step": step}
    if condition is not None:
        written["condition"] = condition
    _check(table, conditions, **written)
    if backends.choose(backend, counter.device) != "triton":  # on a CPU nothing is to be gained
        values = reference.begin_step(counter, table, conditions)
        row.copy_(values[0])
        step.copy_(values[1])
        if condition is not None and values[2] is not None:
            condition.copy_(values[2].expand_as(condition))
        counter.copy_(values[3])
        return
    run = _pick(counter)
    run(counter, table, conditions, row, step, condition)
    if run is _launch:
        torch.autograd.graph.increment_version(list(written.values()))


def _check(
    table: Tensor,
    conditions: Tensor | None,
    counter: Tensor,
    row: Tensor,
    step: Tensor,
    condition: Tensor | None = None,
) -> None:
    given = {"table": table, "conditions": conditions, "counter": counter, "row": row}
    for name, tensor in {**given, "step": step, "condition": condition}.items():
        if tensor is None:
            continue
        if not tensor.is_contiguous() or tensor.device != counter.device:
            raise ValueError(
                f"{name} has strides {tensor.stride()} on {tensor.device}: it has to be contiguous "
                f"and beside the counter on {counter.device}"
            )
    rows, columns = table.shape
    if counter.shape != (2,) or row.shape != (columns,) or step.shape != () or rows == 0:
        raise ValueError(
            f"counter {tuple(counter.shape)}, table {tuple(table.shape)}, row {tuple(row.shape)}, "
            f"step {tuple(step.shape)}: needed are (2,), (R, {columns}), ({columns},) and ()"
        )
    for name, tensor in {"counter": counter, "step": step}.items():
        if tensor.dtype != torch.int64:
            raise ValueError(f"{name} is {tensor.dtype}: it has to be int64")
    if row.dtype != torch.float32 or table.dtype != torch.float32:
        raise ValueError(f"row and table are {row.dtype} and {table.dtype}: both are float32")
    _check_conditions(conditions, condition, rows)


def _check_conditions(conditions: Tensor | None, condition: Tensor | None, rows: int) -> None:
    if (conditions is None) != (condition is None):
        raise ValueError("conditions and condition belong together: give both or none")
    if conditions is None or condition is None:
        return
    if conditions.shape != (rows,) or condition.ndim != 1 or conditions.dtype != condition.dtype:
        raise ValueError(
            f"conditions {conditions.dtype} {tuple(conditions.shape)} and condition "
            f"{condition.dtype} {tuple(condition.shape)}: needed are ({rows},) and (B,) of one type"
        )


__all__ = ["begin_step"]

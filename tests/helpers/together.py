"""Several processes as torchrun starts them, and what becomes of each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

# A server that has imported all this and computed nothing forks a process in little time.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["ncsn_fast.cli", "safetensors.torch", "torch._dynamo", "pytest"])


@dataclass(frozen=True)
class Outcome:
    """What one process came to: a value, or the last line of what it raised; neither, where it was
    killed."""

    value: Any = None
    error: str | None = None
    exitcode: int | None = 0


def outcomes(size: int, work: Callable[..., Any], *arguments: Any) -> list[Outcome]:
    """Call a function of a module in so many processes; tensors come back as NumPy arrays would.

    They meet at a store of this process, as torchrun's meet at torchrun's.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes, ends = [], []
    for rank in range(size):
        mine, its = _SERVER.Pipe(duplex=False)
        ends.append(mine)
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "OMP_NUM_THREADS": 1,
            "NCSN_FAST_CACHE": os.environ["NCSN_FAST_CACHE"],
        }
        process = _SERVER.Process(
            target=_call, args=(environment, its, work, arguments), daemon=True
        )
        process.start()
        processes.append(process)
        its.close()
    found = []
    for process, end in zip(processes, ends, strict=True):
        try:
            assert end.poll(600), "no answer"
            value, error = end.recv()
        except EOFError:
            value = error = None
        process.join(600)
        found.append(Outcome(value, error, process.exitcode))
    return found


def together(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns in each of so many processes, none of which may fail."""
    found = outcomes(size, work, *arguments)
    assert [one.error for one in found] == [None] * size
    assert [one.exitcode for one in found] == [0] * size
    return [one.value for one in found]


def _call(
    environment: dict[str, Any],
    end: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        end.send((work(*arguments), None))
    except BaseException as error:
        traceback.print_exc()
        end.send((None, traceback.format_exception_only(error)[-1].strip()))
    end.close()

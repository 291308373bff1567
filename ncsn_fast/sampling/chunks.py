"""Many samples in chunks; what is done is kept."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ncsn_fast.device import capture, memory
from ncsn_fast.device.memory import chunk_size, in_chunks
from ncsn_fast.models.base import evaluating
from ncsn_fast.sampling import loop
from ncsn_fast.sampling.chain import Chain
from ncsn_fast.sampling.divergence import SamplingError
from ncsn_fast.sampling.graph_cache import Graphs
from ncsn_fast.support import checks
from ncsn_fast.support.progress import Progress, ProgressWish

ALL = "all"  # the batch size of samples that are never cut
# Values of the state in one chunk when the batch size is left to the engine: on a CPU more images
# at once only wear out the caches, on a GPU fewer leave it idle.
_AUTO_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 22}


class SamplingInterrupted(KeyboardInterrupt):
    """Ctrl-C while sampling; what was finished is kept.

    Attributes:
        samples: (finished, *shape) the samples that were done, in the order of sample_ids.
        sample_ids: ids of the samples that were done.
        seed: the seed; the missing ids with this seed complete the set exactly.
    """

    def __init__(self, samples: Tensor, sample_ids: list[int], seed: int) -> None:
        super().__init__(samples, sample_ids, seed)  # so that it survives pickling
        self.samples = samples
        self.sample_ids = sample_ids
        self.seed = seed

    def __str__(self) -> str:
        return f"interrupted after {len(self.sample_ids)} samples (seed {self.seed})"


def size_of_chunks(
    n: int, batch_size: int | str, shape: Sequence[int], device: torch.device
) -> int:
    """How many of n samples of a shape are computed at once, for a batch size, "auto" or "all".

    Left to the engine, chunks on a GPU are as even as they can be: all of them have that size.
    """
    if isinstance(batch_size, str):
        checks.choice(
            "batch_size", batch_size, ("auto", ALL), "give a number of at least 1, or a word"
        )
        if batch_size == ALL:
            return n
    budget = _AUTO_ELEMENTS["cpu" if device.type == "cpu" else "cuda"]
    size = min(n, chunk_size(batch_size, torch.Size(shape).numel(), budget))
    if batch_size == "auto" and capture.obstacle(device) is None:
        return math.ceil(n / math.ceil(n / size))
    return size


def check_memory(
    n: int, shape: Sequence[int], device: torch.device, steps: int, every: int | None
) -> None:
    """Refuse now what a call keeps beyond the free memory, where that is known.

    Args:
        n, shape: how many samples, and of one.
        device: where they are. Their trajectory is in the memory of the host.
        steps: rows that are run.
        every: which states are kept; None: none.

    Raises:
        ValueError: with what would fit.
    """
    one = 4 * math.prod(shape)
    fewer = "draw some sample_ids at a time"
    memory.check_host_memory(n * one, f"n = {n} samples", fewer, device)
    free = memory.free_host_bytes()
    if every is None or free is None:
        return
    beside = int(device.type == "cpu")  # the samples themselves
    kept = math.ceil(steps / every) + 1
    needed = (kept + beside) * n * one
    if needed <= free:
        return
    most_kept, most_n = free // (n * one) - beside, free // ((kept + beside) * one)
    advice = [f"every = {math.ceil(steps / (most_kept - 1))} or more"] if most_kept > 1 else []
    advice += [f"n = {most_n} or fewer of the sample_ids at a time"] if most_n else []
    raise ValueError(
        f"every = {every} keeps {kept} states of each of {n} samples, which takes "
        f"{memory.too_much(needed, free)}: give {', or '.join(advice) or 'the machine more'}"
    )


def run(
    chain: Chain,
    ids: Tensor,
    start: Callable[[slice, Tensor], Tensor],
    size: int,
    wish: ProgressWish,
    graphs: Graphs | None,
    fits: dict[bool, int],
) -> tuple[Tensor, Tensor | None]:
    """Run a chain on its samples, some at a time; a chunk that does not fit in memory is halved,
    unless they are to be computed as a whole, and later calls begin with what did fit.

    On a GPU libraries choose how to add by the shape of what they are given. There all chunks have
    the same, so that a sample does not depend on which of them it is in: the last one, if there are
    too few for it, takes the last ones of the chunk before once more. It also is a replay of the
    same graph.

    Args:
        ids: (n,) int64 on the CPU, the ids of all samples.
        start: makes the states (B, *shape) in which some begin, given which of the batch they are
            and their ids (B,) on the chain's device.
        size: B, how many at a time, at least 1.
        wish: whom to tell of the progress, in rows times samples.
        graphs: captured loops to use; None runs eagerly.
        fits: how many at a time did in the end, where a chunk had to be halved, by whether the
            chain differentiates the network.

    Returns:
        (n, *shape) float32 on the chain's device, and (K, n, *shape) float32 on the CPU, the states
        before the K rows of ``chain.kept_rows()``; None where there are no such rows.

    Raises:
        SamplingError, SamplingInterrupted: with the samples that are done.
    """
    out = torch.empty(len(ids), *chain.shape, dtype=torch.float32, device=chain.device)
    trajectory = _trajectory(chain, len(ids))
    done = shape = 0
    fixed = capture.obstacle(chain.device) is None
    with Progress(wish, total=len(ids) * chain.steps) as progress, evaluating(chain.score.module):

        def work(part: slice) -> None:
            nonlocal done, shape
            stop, shape = part.stop, shape or part.stop - part.start
            if fixed and stop - part.start < shape:
                part = slice(stop - shape, stop)
                progress.back_to(part.start * chain.steps)
            part_ids = ids[part].to(chain.device)
            out[part] = loop.run(
                chain,
                start(part, part_ids),
                part_ids,
                part,
                progress=progress,
                trajectory=None if trajectory is None else trajectory[:, part],
                graphs=graphs,
            )
            done = part.stop

        def again(done: int) -> None:
            nonlocal shape
            shape = 0
            if graphs is not None:
                with contextlib.suppress(RuntimeError):  # a chain around this one runs on them
                    graphs.release()
            progress.back_to(done * chain.steps)

        try:
            if not chain.whole:
                size = min(size, fits.get(chain.differentiates, size))
            found = in_chunks(len(ids), size, work, again, halves=not chain.whole)
            if found < size:
                fits[chain.differentiates] = found
        except KeyboardInterrupt:
            raise SamplingInterrupted(out[:done], ids[:done].tolist(), chain.seed) from None
        except SamplingError as error:
            error.samples, error.sample_ids = out[:done], ids[:done].tolist()
            raise
        finally:
            if graphs is not None:
                graphs.end_call()
    return out, trajectory


def _trajectory(chain: Chain, n: int) -> Tensor | None:
    """Room on the CPU for the states that are kept of n samples."""
    kept = len(chain.kept_rows())
    if not kept:
        return None
    locked = chain.device.type == "cuda"  # copies into it are not waited for
    shape = (kept, n, *chain.shape)
    return torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=locked)


__all__ = ["ALL", "SamplingInterrupted", "check_memory", "run", "size_of_chunks"]

"""Many samples in chunks: what does not fit is halved, what is done is kept."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ncsn_fast.models.base import evaluating
from ncsn_fast.sampling import loop
from ncsn_fast.sampling.chain import Chain, SamplingError
from ncsn_fast.sampling.graph_cache import Graphs
from ncsn_fast.support.progress import Progress, ProgressWish

_log = logging.getLogger("ncsn_fast")


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


def run_chunks(
    chain: Chain,
    ids: Tensor,
    start: Callable[[slice, Tensor], Tensor],
    chunk: int,
    wish: ProgressWish,
    graphs: Graphs | None = None,
) -> Any:
    """Run the chain on chunk after chunk; a chunk that does not fit in memory is halved."""
    out = torch.empty(len(ids), *chain.shape, dtype=torch.float32, device=chain.device)
    kept = chain.kept_rows()
    shape = (len(kept), len(ids), *chain.shape)
    trajectory = None
    if kept:
        locked = chain.device.type == "cuda"  # copies into it are not waited for
        trajectory = torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=locked)
    done, said = 0, False
    with Progress(wish, total=len(ids) * chain.steps) as progress, evaluating(chain.score.module):
        try:
            while done < len(ids):
                part = slice(done, min(done + chunk, len(ids)))
                part_ids = ids[part].to(chain.device)
                view = None if trajectory is None else trajectory[:, part]
                fits = True
                try:
                    out[part] = loop.run(
                        chain,
                        start(part, part_ids),
                        part_ids,
                        part,
                        progress=progress,
                        trajectory=view,
                        graphs=graphs,
                    )
                except RuntimeError as error:
                    fits = part.stop - part.start == 1 or not out_of_memory(error)
                    if fits:
                        raise
                # Out of the except block, where the error would hold on to the chunk's memory.
                if fits:
                    done = part.stop
                    continue
                chunk = (part.stop - part.start) // 2
                make_room(part.stop - part.start, chunk, said, graphs)
                said = True
                progress.back_to(done * chain.steps)
        except KeyboardInterrupt:
            raise SamplingInterrupted(out[:done], ids[:done].tolist(), chain.seed) from None
        except SamplingError as error:
            error.samples, error.sample_ids = out[:done], ids[:done].tolist()
            raise
        finally:
            if graphs is not None:
                graphs.end_call()
    return out if trajectory is None else (out, trajectory)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is how PyTorch says that memory was not enough."""
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def make_room(size: int, smaller: int, said: bool, graphs: Graphs | None) -> None:
    """Free what is cached, and say once that so many samples are too many at a time."""
    if graphs is not None:
        with contextlib.suppress(RuntimeError):  # a chain around this one runs on them
            graphs.release()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not said:
        _log.warning(
            "%d samples at once do not fit in memory: going on with %d, or fewer if need be "
            "(batch_size= avoids this)",
            size,
            smaller,
        )


__all__ = ["SamplingInterrupted", "make_room", "out_of_memory", "run_chunks"]

"""What more GPUs would do: python -m ncsn_fast.benchmarks.scaling.

Prints the tables of docs/scaling.md. The steps are modelled by ``benchmarks/static``, for which
kernels are compiled: some minutes of two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from ncsn_fast.benchmarks.scaling import steps, tables, training
from ncsn_fast.benchmarks.scaling.cluster import Cluster
from ncsn_fast.benchmarks.scaling.training import StepTime
from ncsn_fast.benchmarks.static import rows
from ncsn_fast.benchmarks.static.model import GPUS
from ncsn_fast.training.presets import PRESETS

SAMPLED = ("cifar10", "celeba", "bedroom", "ffhq")
TRAINED = "cifar10"
_TRAINING = f"{TRAINED}, training"
_SHARDS, _LARGE_SHARDS = (1000, 250, 50), (21, 84, 252, 1008)


def all_step_times(gpu: str) -> dict[str, StepTime]:
    """Of the rows of chains of ``SAMPLED``, and of a training step, by name."""
    found = {_TRAINING: steps.step_time(TRAINED, True, gpu)}
    return found | {name: steps.step_time(name, False, gpu) for name in SAMPLED}


def all_tables(found: Mapping[str, StepTime], cluster: Cluster) -> Iterator[tuple[str, str]]:
    """(title, table in Markdown), all that follows from the steps."""
    of_step, gradient = found[_TRAINING], steps.weights(TRAINED)
    batch = PRESETS[TRAINED].batch_size
    chains = {name: steps.chains(name, found[name]) for name in SAMPLED}
    small, large = chains["cifar10"], chains["ffhq"]
    half = training.most_gpus(of_step, gradient, batch, cluster, 0.5)
    yield "steps", rows.marked(tables.step_times(found))
    strong = tables.trained(of_step, gradient, batch, False, cluster)
    yield f"training, one batch; at least 50 % efficiency up to {half} GPUs", rows.marked(strong)
    weak = tables.trained(of_step, gradient, batch, True, cluster)
    yield "training, a batch for each GPU", rows.marked(weak)
    yield "sums of gradients", rows.marked(tables.summed(gradient, cluster))
    yield "shards", rows.marked(tables.shards(chains, cluster))
    yield "sampling, cifar10", rows.marked(tables.sampled(small, _SHARDS, cluster))
    yield "what is full first", rows.marked(tables.filled(small, _SHARDS[0], cluster))
    yield "workers that fail, ffhq", rows.marked(tables.failing(large, _LARGE_SHARDS, cluster))
    yield "workers that are slow, ffhq", rows.marked(tables.slow(large, _LARGE_SHARDS, cluster))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ncsn_fast.benchmarks.scaling",
        description="Print the tables of docs/scaling.md: models of sampling and training on more "
        "GPUs than one, and a simulation of workers that fail.",
    )
    parser.add_argument("--gpu", choices=GPUS, default="H100", help="default: H100")
    chosen = parser.parse_args()
    for title, table in all_tables(all_step_times(chosen.gpu), Cluster()):
        print(f"{title}\n\n{table}\n")


if __name__ == "__main__":
    main()

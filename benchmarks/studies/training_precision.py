"""Does training in 16 bits cost quality? python -m ncsn_fast.benchmarks.studies.training_precision

Trains a small network of the digits in each precision and from each of several seeds, and prints
the pixel Fréchet distance of its samples to the held-out images: the differences between seeds
are what a difference between precisions has to be compared with.
"""

from __future__ import annotations

import time

import torch

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies.common import parser
from ncsn_fast.data.digits import digits
from ncsn_fast.evaluation.pixel_distance import pixel_frechet_distance


def distance(precision: str, seed: int, steps: int, device: str) -> tuple[float, float, float]:
    """(Fréchet distance, last loss, steps per second) of a run."""
    train = digits("train").images
    schedule = nf.auto_schedule(train, steps_per_level=10)
    torch.manual_seed(seed)
    net = nf.NCSNv2(channels=1, image_size=8, ngf=8, sigmas=schedule.sigmas).to(device)
    net.sampling = schedule.sampling
    config = nf.TrainConfig(
        steps=steps,
        batch_size=64,
        learning_rate=2e-3,
        ema=0.99,
        ema_warmup=True,
        seed=seed,
        precision=precision,
        log_every=50,
    )
    trainer = nf.Trainer(net, train, config)
    started = time.perf_counter()
    average = trainer.fit()
    rate = steps / (time.perf_counter() - started)
    images = nf.sample(average, 400, seed=0).cpu()
    held_out = digits("test").images
    return pixel_frechet_distance(images, held_out), trainer.history[-1][1], rate


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--steps", type=int, default=400)
    command.add_argument("--seeds", type=int, default=2)
    command.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = command.parse_args()
    print("precision  seed  Fréchet    loss  steps/s")
    for precision in options.precision:
        for seed in range(options.seeds):
            found = distance(precision, seed, options.steps, options.device)
            print(f"{precision:9} {seed:5} {found[0]:8.3f} {found[1]:7.2f} {found[2]:8.1f}")


if __name__ == "__main__":
    main()

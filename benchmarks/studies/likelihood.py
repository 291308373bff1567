"""Bits per dimension: python -m ncsn_fast.benchmarks.studies.likelihood mnist --data IMAGES.

The likelihood of real images that the network has not been trained on, by the probability flow ODE
(``nf.log_likelihood``), in bits per pixel: of the 8-bit pixels (uniformly dequantised, a bound from
below on the likelihood) and with the number of steps doubled, which shows how much the
integration is off.
"""

from __future__ import annotations

import datetime
from typing import Any

import torch

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies.common import (
    add_model,
    add_number,
    add_output,
    deliver,
    held_out,
    markdown,
    parser,
)
from ncsn_fast.device.environment import environment


def measure(model: str, data: str | None, number: int, steps: list[int]) -> dict[str, Any]:
    """The mean over images, its standard error, for each number of steps."""
    net = nf.load_checkpoint(model).eval()
    images = held_out(model, data)[:number]
    levels = 17 if model == "digits" else 256
    spread = float((images - images.mean(0)).square().mean())
    prior = {
        "prior_mean": images.mean(0),
        "prior_std": (float(net.sigmas[0]) ** 2 + spread) ** 0.5,
    }
    rows = []
    for number_of_steps in steps:
        found = nf.log_likelihood(
            net, images, steps=number_of_steps, grey_levels=levels, seed=0, progress=True, **prior
        )
        bits = found.bits_per_dim
        rows.append(
            {
                "steps": number_of_steps,
                "evaluations": found.evaluations,
                "bits_per_dim": float(bits.mean()),
                "standard_error": float(bits.std() / len(bits) ** 0.5),
            }
        )
    return {
        "model": model,
        "date": datetime.date.today().isoformat(),
        "environment": environment(torch.device("cpu")),
        "images": len(images),
        "grey_levels": levels,
        "rows": rows,
    }


def as_markdown(report: dict[str, Any]) -> str:
    """One table."""
    facts = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    told = f"{report['images']} held-out images of {report['grey_levels']} grey levels"
    rows = [
        [
            str(row["steps"]),
            str(row["evaluations"]),
            f"{row['bits_per_dim']:.3f} ± {row['standard_error']:.3f}",
        ]
        for row in report["rows"]
    ]
    head = ["steps", "network evaluations", "bits per pixel"]
    return "\n".join([f"{report['model']}, {told}. {facts}.", "", *markdown(head, rows)])


def main() -> None:
    command = parser(__doc__)
    add_model(command)
    add_number(command, 200, 2, "images")
    command.add_argument("--steps", type=int, nargs="+", default=[25, 50])
    add_output(command, "likelihood.json and .md")
    options = command.parse_args()
    report = measure(options.model, options.data, options.number, options.steps)
    deliver(options, "likelihood", report, as_markdown(report))


if __name__ == "__main__":
    main()

"""How a run's networks improve: python -m ncsn_fast.benchmarks.studies.progress RUN --out DIR.

    ... runs/mnist --data t10k-images-idx3-ubyte.gz --classifier mnist --out progress

Of each network that a run has kept (``ncsn-fast train --keep-every``) and of its newest one, as
many images are drawn, of each class in turn where it knows classes, and compared with real images
that it has not been trained on. Networks that are in DIR already are not measured again, so that
the command may follow a run that goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ncsn_fast as nf
from ncsn_fast.benchmarks.studies.common import (
    DISTANCES,
    HEAD,
    Judge,
    Judged,
    add_number,
    add_output,
    deliver,
    markdown,
    parser,
    plain_ticks,
)
from ncsn_fast.data.load import load_images
from ncsn_fast.device.environment import environment
from ncsn_fast.evaluation.classifier import load_classifier
from ncsn_fast.evaluation.quality import Quality
from ncsn_fast.pictures.curves import new_figure, save_figure
from ncsn_fast.training.samples import in_turn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SAMPLING: dict[str, Any] = {"method": "ancestral", "steps": 40}


def networks(run: Path) -> dict[int, Path]:
    """The files of a run's networks by the steps they have been trained for."""
    newest = json.loads((run / "levels.json").read_text(encoding="utf-8"))["step"]
    found = {int(path.stem.split("_")[1]): path for path in run.glob("model_*.safetensors")}
    return dict(sorted({newest: run / "model.safetensors", **found}.items()))


def measure(path: Path, judge: Judge, number: int, sampling: dict[str, Any]) -> Judged:
    """Draw ``number`` images of a network and judge them."""
    net = nf.load_checkpoint(path)
    extra = in_turn(net, number)
    images = nf.sample(net, number, extra=extra, progress=True, **sampling)
    return judge(images, extra.get("classes"))


def as_markdown(report: dict[str, Any]) -> str:
    """One row a network."""
    told = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    facts = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    rows = [[step, *judged(found).shown()] for step, found in report["networks"].items()]
    rows.append(["real images", *judged(report["real"]).shown()])
    return "\n".join([f"{told}. {facts}.", "", *markdown(["step", *HEAD], rows)])


def judged(found: dict[str, Any]) -> Judged:
    """What a report says of a network, as it was."""
    return Judged(found["right"], Quality(**{**found["quality"], "proportions": None}))


def picture(report: dict[str, Any]) -> Figure:
    """The distance against the steps."""
    figure = new_figure(6.4, 3.6, dpi=120)
    axes = figure.add_subplot()
    steps = [int(step) for step in report["networks"]]
    distances = [found["quality"]["frechet"] for found in report["networks"].values()]
    axes.plot(steps, distances, "o-", label="samples")
    real = report["real"]["quality"]["frechet"]
    axes.axhline(real, color="grey", linewidth=1, linestyle=":", label="real images")
    axes.set(xlabel="step", ylabel="pixel Fréchet distance", yscale="log")
    plain_ticks(axes.yaxis, DISTANCES)
    axes.grid(True, alpha=0.3)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    command = parser(__doc__)
    command.add_argument("run", type=Path, help="the folder of a training run")
    command.add_argument("--data", required=True, help="images that it is not trained on")
    command.add_argument("--classifier", required=True, help="mnist, fashion or a file")
    add_number(command, 1000, 5, "images of each network")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--method", default=SAMPLING["method"])
    command.add_argument("--steps", type=int, default=SAMPLING["steps"])
    command.add_argument("--eta", type=float, help="the method's fresh noise")
    add_output(command, "progress.json, .md and .png")
    options = command.parse_args()
    sampling = {name: getattr(options, name) for name in ("method", "steps", "seed")}
    sampling |= {} if options.eta is None else {"eta": options.eta}
    settings = {"number": options.number, **sampling}
    known: dict[str, Any] = {}
    if options.out is not None and (options.out / "progress.json").exists():
        before = json.loads((options.out / "progress.json").read_text(encoding="utf-8"))
        if before["settings"] != settings:
            raise SystemExit(f"{options.out} was measured with {before['settings']}: another --out")
        known = before["networks"]
    judge = Judge(load_classifier(options.classifier), load_images(options.data), options.number)
    for step, path in networks(options.run).items():
        if str(step) not in known:
            known[str(step)] = asdict(measure(path, judge, options.number, sampling))
    report = {
        "settings": settings,
        "environment": environment(torch.device("cpu")),
        "networks": {step: known[step] for step in sorted(known, key=int)},
        "real": asdict(judge.of_real),
    }
    deliver(options, "progress", report, as_markdown(report))
    if options.out is not None:
        save_figure(options.out / "progress.png", picture(report))


if __name__ == "__main__":
    main()

"""A plan of benchmarks that takes no time: a tiny network, two images, two rows."""

from dataclasses import replace

import torch

from ncsn_fast.benchmarks.contest.plans import PLANS, Subject

CPU = torch.device("cpu")
TINY = Subject("tiny", "cifar10", (2,), ngf=4, image_size=8)
PLAN = replace(
    PLANS["cpu", "quick"],
    elements=(1 << 13,),
    sampled=(TINY,),
    passed=(TINY,),
    trained=(TINY,),
    seconds=0.001,
    rows=2,
)

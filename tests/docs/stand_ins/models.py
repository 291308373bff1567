"""A run of MNIST, whose network is the one that came of it."""

from pathlib import Path

import ncsn_fast as nf

Path("runs/mnist").mkdir(parents=True)
nf.save_checkpoint(nf.load_checkpoint("mnist"), "runs/mnist/model")

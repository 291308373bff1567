"""The operations of the engine, one module each: schema, public function, checks, dispatch."""

from ncsn_fast.ops.begin_step import begin_step
from ncsn_fast.ops.dsm_loss import dsm_loss, dsm_loss_and_gradient
from ncsn_fast.ops.instance_norm_plus import instance_norm_plus
from ncsn_fast.ops.perturb import perturb
from ncsn_fast.ops.sampler_update import sampler_update

__all__ = [
    "begin_step",
    "dsm_loss",
    "dsm_loss_and_gradient",
    "instance_norm_plus",
    "perturb",
    "sampler_update",
]

"""The operations of the engine, one module each: schema, public function, checks, dispatch."""

from ncsn_fast.ops.activate import activate
from ncsn_fast.ops.begin_step import begin_step
from ncsn_fast.ops.dsm_loss import dsm_loss, dsm_loss_and_gradient
from ncsn_fast.ops.instance_norm_plus import instance_norm_plus
from ncsn_fast.ops.max_pool5 import max_pool5
from ncsn_fast.ops.perturb import perturb
from ncsn_fast.ops.residual_add import residual_add
from ncsn_fast.ops.resize_add import resize_add
from ncsn_fast.ops.sampler_update import sampler_update

__all__ = [
    "activate",
    "begin_step",
    "dsm_loss",
    "dsm_loss_and_gradient",
    "instance_norm_plus",
    "max_pool5",
    "perturb",
    "residual_add",
    "resize_add",
    "sampler_update",
]

"""The operations of the engine, one module each: public function, checks, choice of backend."""

from ncsn_fast.ops.dsm_loss import dsm_loss
from ncsn_fast.ops.instance_norm_plus import instance_norm_plus
from ncsn_fast.ops.perturb import perturb
from ncsn_fast.ops.sampler_update import sampler_update

__all__ = ["dsm_loss", "instance_norm_plus", "perturb", "sampler_update"]

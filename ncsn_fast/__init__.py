"""ncsn_fast: a fast and trusted engine for Noise Conditional Score Networks."""

from ncsn_fast import noise
from ncsn_fast.checkpoints.load_save import load_checkpoint, save_checkpoint
from ncsn_fast.checkpoints.tensor_file import CheckpointError
from ncsn_fast.device.backends import use_backend
from ncsn_fast.evaluation.likelihood import Likelihood, log_likelihood
from ncsn_fast.guidance import operators, posterior
from ncsn_fast.guidance.base import Guidance
from ncsn_fast.guidance.classifier_free import guided
from ncsn_fast.inference.prepare import prepare_for_inference
from ncsn_fast.losses.denoising import dsm_loss
from ncsn_fast.losses.sliced import sliced_score_matching
from ncsn_fast.methods.levels import geometric_sigmas
from ncsn_fast.models.mlp import MLPScore
from ncsn_fast.models.ncsn import NCSN
from ncsn_fast.models.ncsnv2 import NCSNv2, NCSNv2Deeper, NCSNv2Deepest
from ncsn_fast.models.score import Score
from ncsn_fast.sampling.chunks import SamplingInterrupted
from ncsn_fast.sampling.divergence import SamplingError
from ncsn_fast.sampling.editing import edit, interpolate
from ncsn_fast.sampling.loop import langevin
from ncsn_fast.sampling.sampler import Sampler, sample
from ncsn_fast.table import Table
from ncsn_fast.training.config import TrainConfig
from ncsn_fast.training.schedule import Schedule, auto_schedule
from ncsn_fast.training.step import TrainingError
from ncsn_fast.training.trainer import Trainer, TrainingInterrupted

__version__ = "0.1.0"

__all__ = [
    "NCSN",
    "CheckpointError",
    "Guidance",
    "Likelihood",
    "MLPScore",
    "NCSNv2",
    "NCSNv2Deeper",
    "NCSNv2Deepest",
    "Sampler",
    "SamplingError",
    "SamplingInterrupted",
    "Schedule",
    "Score",
    "Table",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "TrainingInterrupted",
    "auto_schedule",
    "dsm_loss",
    "edit",
    "geometric_sigmas",
    "guided",
    "interpolate",
    "langevin",
    "load_checkpoint",
    "log_likelihood",
    "noise",
    "operators",
    "posterior",
    "prepare_for_inference",
    "sample",
    "save_checkpoint",
    "sliced_score_matching",
    "use_backend",
]

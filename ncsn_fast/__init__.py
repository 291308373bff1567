"""ncsn_fast: a fast and trusted engine for Noise Conditional Score Networks."""

from ncsn_fast import noise, operators, posterior
from ncsn_fast.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ncsn_fast.conditional import edit, interpolate
from ncsn_fast.engine import Sampler, SamplingError, SamplingInterrupted, langevin, sample
from ncsn_fast.guidance import Guidance
from ncsn_fast.guided import guided
from ncsn_fast.levels import Schedule, auto_schedule, geometric_sigmas
from ncsn_fast.likelihood import Likelihood, log_likelihood
from ncsn_fast.losses import dsm_loss
from ncsn_fast.models import NCSN, MLPScore, NCSNv2, NCSNv2Deeper, NCSNv2Deepest
from ncsn_fast.ops.backends import use_backend
from ncsn_fast.prepare import prepare_for_inference
from ncsn_fast.score import Score
from ncsn_fast.score_matching import sliced_score_matching
from ncsn_fast.table import Table
from ncsn_fast.training import TrainConfig, Trainer, TrainingError, TrainingInterrupted

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

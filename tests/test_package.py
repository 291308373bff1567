"""The package as a whole: what importing it costs and needs, and what installing it puts where."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import ncsn_fast as nf

ROOT = Path(__file__).parent.parent


def run(code, *flags):
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_importing_loads_no_plotting_no_triton_and_no_compiler():
    code = (
        "import sys, json, torch, numpy, safetensors.torch; before = set(sys.modules); "
        "import ncsn_fast, ncsn_fast.compat.ncsnv2, ncsn_fast.pictures.curves; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    brought = {name.split(".")[0] for name in json.loads(run(code))}
    optional = {"matplotlib", "PIL", "scipy", "tqdm", "click", "yaml", "triton", "diffusers"}
    assert not brought & optional


def test_a_network_is_loaded_and_run_without_the_compiler_and_its_algebra(tmp_path):
    """They take longer to import than torch itself, and some functions on "meta" do import them."""
    code = (
        "import sys, torch; before = set(sys.modules); import ncsn_fast as nf; "
        "net = nf.load_checkpoint('digits'); nf.sample(net, 1, method='ancestral', steps=2); "
        "from ncsn_fast.models.conv_forms import Geometry, example; "
        "example(Geometry((4, 4), (8, 8), (1, 1), (1, 1))); "
        "old = nf.NCSN(channels=1, image_size=8, ngf=4, sigmas=[1.0, 0.1]); "
        f"nf.load_checkpoint(nf.save_checkpoint(old, {str(tmp_path / 'net')!r})); "
        "print({'sympy', 'torch._dynamo', 'torch._inductor'} & (set(sys.modules) - before))"
    )
    assert "set()" in run(code)


def test_importing_works_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import ncsn_fast as nf, torch; "
        "x = nf.langevin(lambda x: -x, torch.zeros(2, 2), 0.1, 3, seed=0); print(x.shape)"
    )
    assert "torch.Size([2, 2])" in run(code)


def test_the_kernels_and_benchmarks_are_inside_the_package():
    code = (
        "import importlib.util, ncsn_fast.kernels, ncsn_fast.benchmarks; "
        "print(importlib.util.find_spec('kernels'))"
    )
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-E", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert done.stdout.strip() == "None"


# What users write today: a name that goes is a major version, and one that comes is listed here.
PUBLIC = """
NCSN CheckpointError Guidance Likelihood MLPScore NCSNv2 NCSNv2Deeper NCSNv2Deepest Sampler
SamplingError SamplingInterrupted Schedule Score Table TrainConfig Trainer TrainingError
TrainingInterrupted auto_schedule dsm_loss edit geometric_sigmas guided interpolate langevin
load_checkpoint log_likelihood noise operators posterior prepare_for_inference sample
save_checkpoint sliced_score_matching use_backend
"""
ROOMS = {
    "ncsn_fast.guidance": "Denoised Guidance NetworkGuidance Nonlinear NormAdaptive Through "
    "diffpir dps exact mmps pgdm tmpd",
    "ncsn_fast.data": "digits load_images load_pixels",
    "ncsn_fast.methods": "METHODS",
    "ncsn_fast.ops": "activate begin_step dsm_loss dsm_loss_and_gradient instance_norm_plus "
    "max_pool5 perturb residual_add resize_add sampler_update",
    "ncsn_fast.models": "NCSN MLPScore NCSNv2 NCSNv2Deeper NCSNv2Deepest ScoreNetwork",
    "ncsn_fast.compat.ncsnv2": "anneal_Langevin_dynamics anneal_Langevin_dynamics_inpainting "
    "anneal_Langevin_dynamics_interpolation",
    "ncsn_fast.compat.k_diffusion": "sample_annealed_langevin sample_dpmpp_2m sample_euler "
    "sample_heun",
    "ncsn_fast.compat.diffusers": "NCSNScheduler",
    "ncsn_fast.compat.adapters.azula": "score",
    "ncsn_fast.compat.adapters.deepinv": "Physics score",
    "ncsn_fast.compat.adapters.diffusers": "score",
    "ncsn_fast.compat.adapters.sbi": "register sample score",
    "ncsn_fast.compat.adapters.torchebm": "score",
}


def test_the_public_names_are_those_that_users_write():
    assert sorted(nf.__all__) == sorted(PUBLIC.split())
    for room, names in ROOMS.items():
        module = importlib.import_module(room)
        for name in names.split():
            assert callable(getattr(module, name)) or name == "METHODS", (room, name)


def test_every_public_name_is_there_and_documented():
    for name in nf.__all__:
        assert getattr(nf, name).__doc__, name


def test_the_versions_agree():
    stated = re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text())
    assert stated is not None
    assert nf.__version__ == stated.group(1)


def test_every_requirement_is_in_the_tested_set():
    setup = (ROOT / "setup.py").read_text().lower()
    tested = (ROOT / "constraints.txt").read_text().lower()
    names = set(re.findall(r'"([a-z][\w-]*)>=[\d.]+"', setup)) - {"setuptools"}
    assert {"torch", "pytest", "ruff"} <= names
    for name in names:
        assert re.search(rf"^{name}==", tested, re.MULTILINE), name


def test_every_environment_variable_is_documented():
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    read = r"environ(?:\.\w+)?[(\[]\s*(?:\"(\w+)\"|(\w+))"  # by its name, or a constant's
    found = set()
    for folder in ("ncsn_fast", "kernels", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            for name, constant in re.findall(read, source):
                stated = re.search(rf'^{constant} = "(\w+)"', source, re.MULTILINE)
                found.add(name or (stated and stated.group(1)))
    assert {"NCSN_FAST_BACKEND", "NCSN_FAST_CACHE", "CXX"} <= found
    assert [name for name in found if f"`{name}`" not in page] == []


def test_nothing_depends_on_files_outside_the_repository():
    of_links = (Path(__file__), ROOT / "tests" / "docs" / "test_site.py")
    for folder in ("ncsn_fast", "kernels", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if path not in of_links:
                assert not re.search(r"\.\./|shared/", path.read_text(encoding="utf-8")), path


def test_the_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "ncsn_fast", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: ncsn-fast ")

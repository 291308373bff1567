"""What all tests share: one thread, files spread over workers, gpu-marked tests on GPUs alone."""

import functools
import os
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["helpers.gpu_runs", "helpers.inception"]

# The networks here are tiny: threads would spend their time waiting for each other.
torch.set_num_threads(1)

# What takes long on a machine that is slow, or busy, is not wrong for that.
_SLOW = [HealthCheck.too_slow]
settings.register_profile("any machine", deadline=None, suppress_health_check=_SLOW)
settings.load_profile("any machine")

# A background job of a shell ignores Ctrl-C, one of nohup a lost terminal, and so would tests and
# the processes that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Without a GPU the Triton kernels run in Triton's interpreter. Triton chooses between compiler and
# interpreter where a kernel is defined, its own library included: so before anything imports it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def small_convolutions_count(monkeypatch):
    """The networks of others here are so small that they would all run as they are."""
    monkeypatch.setattr("ncsn_fast.inference.foreign._WORTH", 0)


def pytest_addoption(parser):
    parser.addoption(
        "--exhaustive", action="store_true", help="try all of what takes too long for every change"
    )


def pytest_sessionstart(session):
    """Build the kernels of the CPU where need be: a command under test would say that it does.

    They are the user's. What is measured here, on a machine that is busy with tests, is not. Where
    nothing but a GPU is tested its time is dear, and PyTorch does what the kernels would.
    """
    from helpers import gpu_runs

    from ncsn_fast.device import native

    if gpu_runs.only_on_gpus(session.config):
        native.missing = functools.cache(lambda: "tests of GPUs do without them")
        return
    from ncsn_fast.device.private import make_private_folder

    if not hasattr(session.config, "workerinput"):  # several workers share what the first one has
        cache = tempfile.TemporaryDirectory(prefix="ncsn_fast-tests-")
        session.config.add_cleanup(cache.cleanup)
        make_private_folder(native.cache_folder())
        Path(cache.name, "native").symlink_to(native.cache_folder().absolute())
        os.environ[native.CACHE] = cache.name
    native.missing()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """-n auto: a worker per core, but no more than share a GPU and a file cache well."""
    return min(os.cpu_count() or 1, 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each file to one worker, as its tests share what takes long to make.

    The first tests on a GPU go to whoever is free: a test is a kernel to compile.
    """
    from helpers import gpu_runs
    from xdist.scheduler import LoadScheduling, LoadScopeScheduling

    if gpu_runs.is_smoke(config):
        return LoadScheduling(config, log)

    config.option.loadscopereorder = False  # the order is that of below
    return LoadScopeScheduling(config, log)


def pytest_collection_modifyitems(config, items):
    if not config.option.exhaustive:
        left_out = [item for item in items if "exhaustive" in item.keywords]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "exhaustive" not in item.keywords]
    if hasattr(config, "workerinput"):  # several workers: what takes longest begins first
        slow = {item.path for item in items if "slow" in item.keywords}
        items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The file of a small network and of how it is sampled, for tests of commands."""
    from helpers.networks import network

    import ncsn_fast as nf

    net = network(channels=1, ngf=4, sigmas=nf.geometric_sigmas(5, 0.01, 6))
    net.sampling = {
        "method": "annealed_langevin",
        "step_size": 2e-5,
        "steps_per_level": 2,
        "denoise": True,
    }
    return nf.save_checkpoint(net, tmp_path_factory.mktemp("net") / "model.safetensors")

"""What does not fit in memory is halved, or refused."""

import concurrent.futures

import pytest
import torch

from ncsn_fast.device import memory
from ncsn_fast.device.memory import in_chunks


def test_a_chunk_that_does_not_fit_is_halved_and_the_rest_keep_its_size(caplog):
    tried, taken_back = [], []

    def work(part):
        tried.append((part.start, part.stop))
        if part.stop - part.start > 2 and part.start >= 5:
            raise torch.OutOfMemoryError("does not fit")

    assert in_chunks(11, 5, work, taken_back.append) == 2
    assert tried == [(0, 5), (5, 10), (5, 7), (7, 9), (9, 11)]
    assert taken_back == [5]
    assert caplog.messages == [
        "5 samples at once do not fit in memory: going on with 2, or fewer if need be "
        "(batch_size= avoids this)"
    ]


@pytest.mark.parametrize("said", ["can't allocate memory: 3 GB", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_memory_that_ends_elsewhere_is_known_by_its_words(said):
    done = []

    def work(part):
        if part.stop - part.start > 1:
            raise RuntimeError(said)
        done.append(part.start)

    in_chunks(2, 2, work, lambda done: None)
    assert done == [0, 1]


@pytest.mark.parametrize(
    ("error", "n"),
    [(torch.OutOfMemoryError("one does not fit"), 1), (RuntimeError("a bug"), 4)],
    ids=["one", "bug"],
)
def test_one_sample_that_does_not_fit_and_other_errors_pass_through(error, n):
    def work(part):
        raise error

    with pytest.raises(type(error), match=str(error)):
        in_chunks(n, n, work, lambda done: None)


def test_what_does_not_fit_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 3 << 29)
    memory.check_host_memory(3 << 29, "the data", "shrink them")
    with pytest.raises(ValueError, match=r"the data takes 2 GiB .* 1\.5 are free: shrink them"):
        memory.check_host_memory(1 << 31, "the data", "shrink them")
    monkeypatch.setattr(memory, "free_host_bytes", lambda: None)
    memory.check_host_memory(1 << 60, "the data", "shrink them")


def test_free_memory_is_known_or_said_to_be_unknown():
    free = memory.free_host_bytes()
    assert free is None or 1 << 20 < free < 1 << 50


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A job of a cluster: it may use 3 GiB, each of its tasks 2, of which this one has used 1.5, a
    half of that for files."""
    task = tmp_path / "groups" / "job_7" / "step_0" / "task_3"
    task.mkdir(parents=True)
    (tmp_path / "own").write_text("1:name=systemd:/else\n0::/job_7/step_0/task_3\n")
    (task / "memory.max").write_text(f"{2 << 30}\n")
    (task / "memory.current").write_text(f"{3 << 29}\n")
    (task / "memory.stat").write_text(f"anon 1\ninactive_file {3 << 28}\nactive_file 7\n")
    (task.parent / "memory.max").write_text("max\n")
    (task.parents[1] / "memory.max").write_text(f"{3 << 30}\n")
    (task.parents[1] / "memory.current").write_text(f"{1 << 30}\n")
    (task.parents[1] / "memory.stat").write_text("anon 1\n")
    monkeypatch.setattr(memory, "_GROUP", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    memory._limited.cache_clear()
    yield task
    memory._limited.cache_clear()


def test_what_a_container_may_use_is_all_there_is(groups):
    free = memory.free_host_bytes()
    if free is None:
        pytest.skip("this system does not say how much memory is free")
    assert free == min(free, (2 << 30) - (3 << 29) + (3 << 28))
    with pytest.raises(ValueError, match=r"takes 2 GiB of memory, of which (1\.25|0\.\d+|1\.\d+) "):
        memory.check_host_memory(2 << 30, "the data", "shrink them")
    (groups.parents[1] / "memory.current").write_text(f"{(3 << 30) - 100}\n")
    assert memory.free_host_bytes() == 100  # those of the job beside it have used the rest
    (groups.parents[1] / "memory.current").write_text(f"{4 << 30}\n")
    assert memory.free_host_bytes() == 0


def test_groups_that_say_nothing_limit_nothing(groups, monkeypatch):
    for path in groups.parents[2].rglob("memory.*"):
        path.write_text("max\n")
    unlimited = memory.free_host_bytes()
    monkeypatch.setattr(memory, "_GROUP", groups / "nothing")
    memory._limited.cache_clear()
    without = memory.free_host_bytes()
    assert (unlimited is None) == (without is None)
    assert unlimited is None or min(unlimited, without) > 1 << 20


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_is_made_later_of_what_was_there_by_then(device):
    x = torch.arange(1 << 20, dtype=torch.float32, device=device)
    if device == "cuda":
        torch.cuda._sleep(1 << 26)  # what computes it is still under way
    y = x * 2
    fetch = memory.copied_later(y)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        copied = pool.submit(fetch).result()
    assert copied.device.type == "cpu"
    assert torch.equal(copied, torch.arange(1 << 20, dtype=torch.float32) * 2)

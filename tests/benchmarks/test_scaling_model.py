"""benchmarks.scaling: sums over GPUs, training and sampling on more of them, and the page."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ncsn_fast.benchmarks.scaling import sampling, tables, training
from ncsn_fast.benchmarks.scaling.cluster import Cluster, ring, summing, tree, waiting
from ncsn_fast.benchmarks.scaling.sampling import Chains
from ncsn_fast.benchmarks.scaling.training import StepTime

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
ROUND = Cluster(nvlink=100e9, network=10e9, reached=1.0, call=0.0, nvlink_hop=0.0, network_hop=0.0)
FREE = Cluster(
    nvlink=math.inf, network=math.inf, call=0, nvlink_hop=0, network_hop=0, launch=0, jitter=0
)
STEP = StepTime(fixed=1e-3, image=1e-4, launches=500)


def test_a_ring_of_four_moves_three_quarters_twice_in_six_hops():
    assert ring(8e9, 4, 1e9, 0.5) == pytest.approx(2 * 0.75 * 8 + 6 * 0.5)
    assert ring(8e9, 1, 1e9, 0.5) == 0


def test_a_tree_moves_all_twice_in_twice_as_many_hops_as_it_is_high():
    assert tree(8e9, 8, 1e9, 0.5) == pytest.approx(16 + 2 * 3 * 0.5)
    assert tree(8e9, 5, 1e9, 0.5) == pytest.approx(16 + 2 * 3 * 0.5)
    assert tree(8e9, 1, 1e9, 0.5) == 0


def test_a_sum_within_a_node_and_over_two_by_hand():
    """Of 8 GB: 7/8 of them twice over NVLink, then half of an eighth twice over the network."""
    assert summing(8e9, 1, ROUND) == 0
    assert summing(8e9, 8, ROUND) == pytest.approx(2 * 7 / 8 * 8 / 100)
    assert summing(8e9, 16, ROUND) == pytest.approx(2 * 7 / 8 * 8 / 100 + 2 * 1 / 2 * 1 / 10)


def test_where_bytes_cost_nothing_hops_do_and_over_many_nodes_the_tree_has_fewer():
    latency = Cluster(nvlink=math.inf, network=math.inf, call=1e-5, nvlink_hop=1e-6)
    assert summing(1e9, 8, latency) == pytest.approx(1e-5 + 14e-6)
    two = summing(1e9, 16, latency) - summing(1e9, 8, latency)
    many = summing(1e9, 1024, latency) - summing(1e9, 8, latency)
    assert two == pytest.approx(2 * latency.network_hop)
    assert many == pytest.approx(2 * 7 * latency.network_hop)


def test_buckets_cost_a_call_and_its_hops_each_and_no_bytes():
    one, four = (summing(100e6, 16, Cluster(), bucket) for bucket in (math.inf, 25e6))
    bytes_alone = summing(100e6, 16, Cluster(call=0, nvlink_hop=0, network_hop=0))
    assert four - bytes_alone == pytest.approx(4 * (one - bytes_alone))


def test_the_slowest_of_two_is_late_by_what_is_known():
    """The larger of two normals has the mean 1/√π; of a thousand 3.241 (tables of order
    statistics), which Blom's approximation is near."""
    assert waiting(2.0, 1, 0.1) == 0
    assert waiting(2.0, 2, 0.1) == pytest.approx(0.2 / math.sqrt(math.pi), rel=0.05)
    assert waiting(2.0, 1000, 0.1) == pytest.approx(0.2 * 3.241, rel=0.01)


def test_a_step_is_the_line_through_two_of_them_and_its_launches():
    line = StepTime.through((32, 5.0), (128, 17.0), 10)
    assert line == StepTime(fixed=1.0, image=0.125, launches=10)
    assert line.seconds(8, 0.5) == pytest.approx(1 + 1 + 5)


def test_one_gpu_computes_its_step_and_nothing_else():
    alone = training.point(STEP, 1e8, 128, 1, Cluster())
    assert (alone.summing, alone.waiting) == (0, 0)
    assert alone.seconds == pytest.approx(1e-3 + 128e-4 + 500 * 2e-6)
    assert alone.rate == pytest.approx(128 / alone.seconds)


@pytest.mark.parametrize("gpus", [2, 8, 64, 1024])
def test_where_sums_and_waiting_cost_nothing_a_batch_for_each_gpu_scales_without_loss(gpus):
    one = training.point(STEP, 1e8, 128, 1, FREE)
    many = training.point(STEP, 1e8, 128 * gpus, gpus, FREE)
    assert many.seconds == pytest.approx(one.seconds)
    assert training.efficiency(one, many) == pytest.approx(1)


def test_one_batch_for_all_is_held_up_by_what_does_not_depend_on_the_images():
    """Amdahl: with free sums and a fixed part of 1 ms beside 12.8 ms."""
    one = training.point(STEP, 1e8, 128, 1, FREE)
    many = training.point(STEP, 1e8, 128, 64, FREE)
    assert one.seconds / many.seconds == pytest.approx(13.8 / 1.2)
    whole = STEP._replace(fixed=0.0)
    ends = [training.point(whole, 1e8, 128, gpus, FREE) for gpus in (1, 64)]
    assert training.efficiency(*ends) == pytest.approx(1)


def test_more_gpus_than_images_cannot_share_a_batch_and_odd_ones_wait_for_the_largest_part():
    assert training.point(STEP, 1e8, 128, 129, Cluster()) is None
    assert training.point(STEP, 1e8, 128, 3, Cluster()).images == 43


def test_the_most_gpus_are_those_before_the_efficiency_falls_below_what_is_asked():
    for least in (0.3, 0.5, 0.9):
        most = training.most_gpus(STEP, 1e8, 128, Cluster(), least)
        one, found, beyond = (
            training.point(STEP, 1e8, 128, gpus, Cluster()) for gpus in (1, most, 2 * most)
        )
        assert training.efficiency(one, found) >= least > training.efficiency(one, beyond)
    assert training.most_gpus(STEP, 1e8, 128, FREE, 0.0) == 128


CHAINS = Chains(StepTime(0.0, 1e-3, 0), rows=100, most=300, values=3072, weights=1e8)


def test_samples_are_computed_in_even_chunks():
    """1,000 at most 300 at a time: four of 250, 100 rows of a millisecond an image."""
    assert CHAINS.seconds(1000, 0.0) == pytest.approx(100.0)
    launching = CHAINS._replace(step=StepTime(0.0, 1e-3, 10))
    assert launching.seconds(1000, 1e-3) == pytest.approx(100 + 4 * 100 * 10 * 1e-3)
    uneven = CHAINS.seconds(1001, 0.0)
    assert uneven == pytest.approx(4 * 100 * 251 * 1e-3)


def test_a_plan_takes_its_start_and_the_rounds_of_the_busiest_gpu():
    cluster = Cluster(start=30.0)
    found = sampling.plan(CHAINS, 50_000, 1000, 8, cluster)
    assert (found.shards, found.rounds) == (50, 7)
    assert found.seconds == pytest.approx(30 + 7 * 100)
    assert found.efficiency == pytest.approx(5000 / (8 * 730))
    few = sampling.plan(CHAINS, 50_000, 1000, 1024, cluster)
    assert few.seconds == pytest.approx(30 + 100)
    ideal = sampling.plan(CHAINS, 48_000, 300, 8, Cluster(start=0.0))
    assert ideal.efficiency == pytest.approx(1)


def test_what_is_full_first_is_told_first_and_at_how_many_gpus():
    """Ten samples a second and GPU."""
    cluster = Cluster(storage=1e9, creates=500.0, libraries=2.3e9, start=30.0)
    found = {use.name: use for use in sampling.uses(CHAINS, 1000, cluster)}
    assert found["bytes written, float32"].each == pytest.approx(10 * 3072 * 4)
    assert found["files created, a PNG a sample"].full == 50
    assert found["files created, a shard and its checksum"].each == pytest.approx(0.02)
    assert found["bytes read, at the start"].each == pytest.approx(2.4e9 / 8 / 30)
    full = [use.full for use in found.values()]
    assert full == sorted(full)


def page_tables():
    """The tables of the page, by the words in their corner and first column's head."""
    text = PAGE.read_text(encoding="utf-8")
    return [
        [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in block.splitlines()]
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    ]


def test_the_tables_of_the_page_follow_from_the_steps_on_it():
    """All that is no compiled kernel, in a moment; the steps themselves are of the test below."""
    pytest.importorskip("triton")
    from ncsn_fast.benchmarks.scaling import __main__ as command

    (steps,) = [table for table in page_tables() if table[0][0] == "step"]
    times = tables.read_step_times([steps[0], *steps[2:]])
    text = PAGE.read_text(encoding="utf-8")
    made = list(command.all_tables(times, Cluster()))
    assert len(made) == 9
    for title, table in made:
        assert table in text, title


@pytest.mark.slow
def test_the_steps_of_the_page_are_those_of_the_model_of_kernels():
    """That of a row of CIFAR-10's chain; in a process that may compile."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = (
        "from ncsn_fast.benchmarks.scaling import steps\n"
        "if __name__ == '__main__':\n"
        "    print(*steps.step_time('cifar10', False, 'H100'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    (steps,) = [table for table in page_tables() if table[0][0] == "step"]
    published = tables.read_step_times([steps[0], *steps[2:]])["cifar10"]
    fixed, image, launches = done.stdout.split()
    assert int(launches) == published.launches
    assert float(image) == pytest.approx(published.image, rel=0.02)
    assert float(fixed) == pytest.approx(published.fixed, abs=1e-5)

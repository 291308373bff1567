"""benchmarks.scaling.failures: the simulation against what is known without one."""

import math
import statistics

import pytest

from ncsn_fast.benchmarks.scaling import failures
from ncsn_fast.benchmarks.scaling.failures import Job, simulate

WAYS = {
    "rank": {},
    "turns": {"dealt": "turns"},
    "rank together": {"together": True},
    "turns together": {"dealt": "turns", "together": True},
}
FAILING = Job(40, 100.0, (1.0,) * 8, mtbf=900.0, delay=20.0, cost=2.0)


@pytest.mark.parametrize("way", WAYS)
def test_where_nothing_fails_the_end_is_that_of_the_busiest_worker(way):
    found = simulate(Job(10, 100.0, (1.0,) * 4, cost=5.0, **WAYS[way]), seed=0)
    assert found.seconds == pytest.approx(3 * 105)  # ten shards, four workers
    assert found.worked == pytest.approx(10 * 105)
    assert found.idle == pytest.approx(2 * 105)
    assert (found.lost, found.down, found.failures) == (0, 0, 0)
    assert sorted(found.finished) == list(range(10))


@pytest.mark.parametrize("saves", [math.inf, 30.0])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(5))
def test_every_shard_is_finished_once_and_no_second_of_a_worker_goes_astray(way, saves, seed):
    found = simulate(FAILING._replace(**WAYS[way], saves=saves), seed)
    assert found.failures > 0
    assert sorted(found.finished) == list(range(40))
    spent = found.worked + found.lost + found.down + found.idle
    assert spent == pytest.approx(8 * found.seconds)
    assert found.worked == pytest.approx(40 * (100 + 2))
    assert found == simulate(FAILING._replace(**WAYS[way], saves=saves), seed)


def test_a_worker_alone_takes_as_long_as_renewal_theory_says():
    """Shards that begin anew after a failure, over 400 runs: within four standard errors."""
    job = Job(5, 100.0, (1.0,), mtbf=150.0, delay=20.0)
    runs = [simulate(job, seed) for seed in range(400)]
    times = [run.seconds for run in runs]
    error = statistics.stdev(times) / 20
    assert abs(statistics.fmean(times) - 5 * failures.shard_seconds(100, 150, 20)) < 4 * error
    lost = sum(run.lost for run in runs) / sum(run.failures for run in runs)
    assert lost == pytest.approx(failures.lost_seconds(100, 150), rel=0.05)
    share = sum(run.lost for run in runs) / sum(run.lost + run.worked for run in runs)
    assert share == pytest.approx(failures.lost_share(100, 150), rel=0.05)


def test_a_rare_failure_costs_half_a_shard():
    assert failures.lost_seconds(100, math.inf) == 50
    assert failures.lost_seconds(100, 1e5) == pytest.approx(50, rel=1e-3)
    assert failures.lost_seconds(100, 1e9) == pytest.approx(50, rel=1e-6)
    assert failures.lost_seconds(1e6, 100) == pytest.approx(100)  # it never comes to an end
    assert failures.lost_share(100, 1e4) == pytest.approx(50 / 1e4, rel=0.01)
    assert failures.lost_share(100, 1e12) == pytest.approx(50 / 1e12)
    assert failures.shard_seconds(100, math.inf, 20) == 100
    assert failures.shard_seconds(100, 1e7, 20) == pytest.approx(100, rel=1e-4)


def test_a_worker_that_fails_costs_one_shard_and_a_group_one_for_each_of_its_workers():
    """Per failure; half a shard on average, at most a whole one."""
    lost = {}
    for way, settings in WAYS.items():
        runs = [simulate(FAILING._replace(**settings, mtbf=9000.0), seed) for seed in range(60)]
        lost[way] = sum(run.lost for run in runs) / sum(run.failures for run in runs)
    for alone in ("rank", "turns"):
        assert 35 < lost[alone] < 70
        assert 4 * lost[alone] < lost[f"{alone} together"] < 8 * 102


@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_is_not_lost(way):
    """At most the time between two saves, and the cost of a shard, a worker that is stopped."""
    workers = 8 if "together" in way else 1
    for seed in range(20):
        found = simulate(FAILING._replace(**WAYS[way], saves=10.0), seed)
        assert found.lost <= found.failures * workers * (10 + 2)


def test_a_slow_worker_holds_up_its_own_shards_and_in_turns_takes_fewer():
    job = Job(40, 100.0, (0.5, 1.0, 1.0, 1.0))
    assert simulate(job, 0).seconds == pytest.approx(10 * 200)
    turns = simulate(job._replace(dealt="turns"), 0)
    # 40 shards at 3.5 a 100 seconds would take 1,143; the end is at most a slow shard later.
    assert 1143 < turns.seconds <= 1143 + 200
    assert turns.idle < simulate(job, 0).idle


def test_who_stays_away_leaves_its_shards_to_the_others():
    """Failures come fast: in the end one worker is left, which returns each time."""
    job = FAILING._replace(together=True, away=True, mtbf=300.0, saves=10.0)
    found = simulate(job, 3)
    assert found.failures >= 7
    assert sorted(found.finished) == list(range(40))
    assert found.seconds > simulate(job._replace(away=False), 3).seconds


def test_the_best_size_of_a_shard_is_where_its_three_costs_are_least():
    cost, mtbf, seconds = 2.0, 5e4, 1e4

    def share(shard):
        return cost / shard + shard / 2 / mtbf + shard / 2 / seconds

    best = failures.best_shard_seconds(cost, mtbf, seconds)
    assert share(best) < min(share(0.9 * best), share(1.1 * best))
    assert share(best) == pytest.approx(math.sqrt(2 * cost * (1 / mtbf + 1 / seconds)))
    assert failures.best_shard_seconds(2.0, math.inf, 1e4) == pytest.approx(200.0)


def test_the_best_size_is_near_the_best_of_the_simulation():
    """Of 16 workers for 4,000 seconds each, by their shares of time that is not idle, lost or a
    cost; the least is flat, so that half and twice the size are hardly worse, ten times are."""
    cost, mtbf, seconds, workers = 1.0, 8000.0, 4000.0, 16
    best = failures.best_shard_seconds(cost, mtbf, seconds)

    def spent(shard):
        job = Job(round(workers * seconds / shard), shard, (1.0,) * workers, mtbf, 0.0, cost)
        runs = [simulate(job._replace(dealt="turns"), seed) for seed in range(20)]
        return statistics.fmean(run.seconds for run in runs)

    assert spent(best) < min(spent(best / 10), spent(10 * best))
    assert spent(best) < 1.05 * min(spent(best / 2), spent(2 * best))
    assert spent(best) == pytest.approx(
        seconds * (1 + math.sqrt(2 * cost * (1 / mtbf + 1 / seconds))), rel=0.02
    )


def test_a_job_that_never_ends_is_given_up():
    found = simulate(Job(1, 1000.0, (1.0,), mtbf=10.0), 0, patience=1e4)
    assert found.seconds == math.inf
    assert found.finished == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dealt": "lot"}, "choose one of rank, turns"),
        ({"shards": 0}, "all other numbers more"),
        ({"rates": (1.0, 0.0)}, "all other numbers more"),
        ({"rates": ()}, "all other numbers more"),
        ({"delay": -1.0}, "at least 0"),
    ],
)
def test_bad_jobs_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        simulate(FAILING._replace(**change), 0)

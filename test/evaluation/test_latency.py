# SPDX-License-Identifier: Apache-2.0
from oc_perception.evaluation.latency import LatencyRun, summarize, table, usage

MS = 1_000_000


def test_every_frame_is_accounted_for_and_the_warm_up_left_out():
    published = [n * 33 * MS for n in range(100)]
    slow_start = [(stamp, stamp + 500 * MS) for stamp in published[:10]]
    steady = [(stamp, stamp + (n % 2 + 1) * MS) for n, stamp in enumerate(published[10:96])]
    coasting = [(published[3] + 1, published[3] + 2)]  # no image has this stamp
    report = summarize(LatencyRun(published, slow_start + steady + coasting, 2, 1), warm_up=10)
    assert report["latency_ms"] == {"p50": 1.5, "p90": 2.0, "p99": 2.0, "max": 2.0}
    assert report["frames_published"] == 100 and report["frames_answered"] == 96
    assert report["frames_dropped"] == 2 and report["frames_lost"] == 1
    assert report["frames_unexplained"] == 1


def test_a_run_without_answers_has_no_latency():
    report = summarize(LatencyRun([1, 2, 3], [], 0, 0))
    assert set(report["latency_ms"].values()) == {None}
    assert report["frames_unexplained"] == 3
    assert "-" in table({**report, "processes": {"node": {"cpu_percent": 7.0, "rss_mb": 9.0}}})


def test_usage_is_the_share_of_one_core():
    before, after = {"a": (1.0, 10.0), "gone": (0.0, 1.0)}, {"a": (2.5, 20.0)}
    assert usage(before, after, 3.0) == {"a": {"cpu_percent": 50.0, "rss_mb": 20.0}}

# SPDX-License-Identifier: Apache-2.0
"""The HTML report: whole, valid, self-contained, safe against what bags contain."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from html_outline import Outline
from replay_directories import (
    TIMING,
    blackouts,
    film_strip,
    metrics,
    summary,
    write_bag,
    write_replay,
)

from oc_perception.evaluation import report_charts, report_strips
from oc_perception.evaluation.forecast import Interval
from oc_perception.evaluation.report import write_report
from oc_perception.evaluation.report_data import ReportError, mean_tracking, read_run, self_test
from oc_perception.evaluation.report_figures import headline, key_figures
from oc_perception.evaluation.report_statistics import MEASURES, estimates, redraw
from oc_perception.evaluation.report_text import duration, schedule_name


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    return write_report(write_replay(directory, [metrics("TUD-Stadtmitte", 0)]))


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("many")
    bags = [metrics(f"bag_{i}", i, truth=i != 1) for i in range(4)]
    return write_report(write_replay(directory, bags, [{"bag": "bad", "error": "It is empty."}]))


@pytest.mark.parametrize("name", ["one", "many"])
def test_the_report_is_valid_and_accessible(name, request):
    page = Outline(request.getfixturevalue(name).read_text())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"] for a in page.of("a") if a["href"].startswith("#")]
    assert targets and {target[1:] for target in targets} <= set(ids)
    assert page.of("html") == [{"lang": "en"}]
    assert all(attributes["alt"] for attributes in page.of("img"))
    assert all(attributes["scope"] in ("col", "row", "colgroup") for attributes in page.of("th"))
    for attributes in page.of("svg"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    assert page.of("table") and page.of("img") and page.of("svg")
    assert len(page.of("h1")) == 1


@pytest.mark.parametrize("name", ["one", "many"])
def test_the_report_needs_nothing_from_outside(name, request):
    path = request.getfixturevalue(name)
    page = Outline(path.read_text())
    assert not page.of("script") and not page.of("iframe")
    for tag, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            target = attributes.get(key)
            if target is None or target.startswith(("data:", "#")):
                continue
            assert tag == "a" and (path.parent / target).exists(), target
    assert "url(" not in path.read_text() and "@import" not in path.read_text()
    policy = [a["content"] for a in page.of("meta") if "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_equal_directories_give_equal_bytes(tmp_path, one):
    again = write_report(write_replay(tmp_path, [metrics("TUD-Stadtmitte", 0)]))
    assert again.read_bytes() == one.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_what_a_reader_must_find_is_there(many):
    text = html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", many.read_text(), flags=re.S))
    for word in (
        "oc-perception replay bags/* --output out --model monet_demo",
        "0123abc",
        "2.6.0",
        "2 cores, test",
        "could not be replayed",
        "It is empty.",
        "3 messages of a <chunk> could not be read & were skipped",
        "/camera/image/compressed",
        "bytetrack",
        "Identity switches",
        "FG-ARI",
        "430 → 512 MB",
    ):
        assert word in text, word
    found = metrics("bag_0", 0)["self_test"]["20"]["filter"]
    assert f"{found['error_px']:.1f}" in text


def test_what_comes_from_a_bag_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    found = metrics("bag", 0)
    found["warnings"], found["first_error"], found["topic"] = [evil], evil, evil
    found["model"] = evil
    found["worst"][0]["caption"] = evil
    found["series"]["sensor_state"][3] = evil
    failed = [{"bag": evil, "error": evil}]
    path = write_report(write_replay(tmp_path, [found], failed))
    page = Outline(path.read_text())
    assert not page.of("script")
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert all(a["src"].startswith("data:image/jpeg;base64,") for a in page.of("img"))
    assert "".join(page.text).count(evil) >= 5


def test_the_best_is_underlined_and_the_own_tracker_comes_first(one):
    text = one.read_text()
    rows = re.findall(r'<tr( class="own")?><th scope="row">(\w+)</th>', text)
    assert rows[0] == (' class="own"', "filter")
    measured = metrics("TUD-Stadtmitte", 0)["self_test"]["20"]
    best = max(measured, key=lambda name: measured[name]["kept_share"])
    share = (
        f'<span class="best">{100 * measured[best]["kept_share"]:.1f}\N{NO-BREAK SPACE}%</span>'
    )
    assert share in text


def test_film_strips_stop_when_the_report_is_full(tmp_path, monkeypatch):
    size = len(film_strip(0))
    monkeypatch.setattr(report_strips, "STRIP_BYTES", int(2.6 * size))
    path = write_report(write_replay(tmp_path, [metrics(f"bag_{i}", i) for i in range(3)]))
    page = Outline(path.read_text())
    assert len(page.of("img")) == 2
    # the worst of each bag before the second of any
    assert [a["alt"].split(":")[0][-5:] for a in page.of("img")] == ["bag_0", "bag_1"]
    assert "more film strips are in the folder" in path.read_text()
    assert path.stat().st_size < 3 * size * 4 / 3 + 200_000


def test_a_report_of_a_hundred_bags_stays_small(tmp_path):
    found = metrics("bag", 0)
    found["blackouts"] = found["blackouts"][:50]
    path = write_report(write_replay(tmp_path, [{**found, "bag": f"b{i}"} for i in range(100)]))
    assert path.stat().st_size < 6_000_000


def test_lost_and_damaged_strips_are_named(tmp_path):
    write_replay(tmp_path, [metrics("bag", 0)])
    (tmp_path / "bag" / "strips" / "worst_0.jpg").unlink()
    (tmp_path / "bag" / "strips" / "worst_1.jpg").write_bytes(b"no picture")
    text = write_report(tmp_path).read_text()
    assert text.count("is missing or damaged") == 2


def test_bags_of_one_name_keep_apart(tmp_path):
    same = metrics("camera", 0)  # two copies of a recording: the same key
    write_replay(tmp_path, [same])
    write_bag(tmp_path / "camera-2", same)
    found = json.loads((tmp_path / "report.json").read_text())
    bags = [{"directory": name, **same} for name in ("camera", "camera-2")]
    (tmp_path / "report.json").write_text(json.dumps({**found, "bags": bags}))
    run = read_run(tmp_path)
    assert [bag.name for bag in run.bags] == ["camera", "camera-2"]
    Outline(write_report(tmp_path).read_text())


def test_bags_without_truth_self_test_or_timing_are_reported(tmp_path):
    bare = metrics("bare", 0, truth=False)
    for key in ("self_test", "blackouts", "worst", "series"):
        del bare[key]
    write_replay(tmp_path, [bare])
    (tmp_path / "bare" / "timing.json").unlink()
    Outline(write_report(tmp_path).read_text())
    blind = metrics("blind", 1, truth=False)
    blind |= {"tracks_confirmed": 0, "steps": 0, "sensor_states": {}, "blackouts": []}
    for schedule in blind["self_test"].values():
        for row in schedule.values():
            row |= {"kept_share": None, "error_px": None, "error_sizes": None}
            row |= {"coverage_90": None}
    text = write_report(write_replay(tmp_path / "blind_run", [blind])).read_text()
    assert "No object was tracked in any bag" in text
    Outline(text)


def test_a_run_in_which_every_bag_failed_is_reported(tmp_path):
    failed = [{"bag": "a.mcap", "error": "It holds no image."}]
    page = Outline(write_report(write_replay(tmp_path, [], failed)).read_text())
    assert "No bag could be replayed." in "".join(page.text)


def test_a_directory_without_a_replay_is_an_error_that_says_what_to_name(tmp_path):
    with pytest.raises(ReportError, match="--output directory"):
        write_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ReportError, match="damaged"):
        write_report(tmp_path)


def figures_of(tmp_path, change=lambda found: None, timing=TIMING):
    found = metrics("bag", 0)
    change(found)
    write_replay(tmp_path, [found])
    (tmp_path / "bag" / "timing.json").write_text(json.dumps(timing))
    run = read_run(tmp_path)
    test, tracking = self_test(run), mean_tracking(run)
    figures = key_figures(run, test, tracking)
    return {figure.title: figure for figure in figures}, headline(run, test, tracking, figures)


def test_verdicts_follow_the_stated_rules(tmp_path):
    figures, sentences = figures_of(tmp_path / "a")
    own = metrics("bag", 0)["self_test"]["10"]["filter"]
    assert figures["Identities kept"].value == f"{100 * own['kept_share']:.1f}\N{NO-BREAK SPACE}%"
    assert (
        f"{own['kept']} of {own['tracked']} in 12 blackouts" in figures["Identities kept"].detail
    )
    assert figures["Usable frames"].verdict == "poor", "90.5 % is below 95 %"
    assert figures["HOTA"].verdict == "good" and "57.0" in figures["HOTA"].detail
    assert figures["FG-ARI"].verdict == "good"
    time = figures["Time per frame"]
    assert (time.value, time.verdict) == ("4.7 ms", "good")
    assert "99 % within 9.3 ms, a frame comes every 40 ms" in time.detail
    assert "5.0 × real time" in time.detail
    assert "Poor, look there first: usable frames." in sentences

    def worse(found):
        found["sensor_states"] = {"OK": 1000}
        found["tracking"]["filter"]["hota"] = 0.56
        found["tracking"]["filter"]["mota"] = -0.3
        found["discovery"]["fg_ari"] = 0.3

    discovery = {"p50_ms": 30.0, "p99_ms": 45.0, "total_s": 40.0}
    slow = {**TIMING, "stages": {**TIMING["stages"], "discovery": discovery}}
    figures, sentences = figures_of(tmp_path / "b", worse, slow)
    assert figures["Usable frames"].verdict == "good"
    assert figures["HOTA"].verdict == "fair", "a point behind the best baseline"
    assert figures["FG-ARI"].verdict == "poor"
    assert figures["Time per frame"].verdict == "fair"
    assert any("HOTA 56.0" in s and "MOTA −30.0" in s for s in sentences)

    def wrong(found):
        for scores in found["tracking"].values():
            scores["hota"] = 0.2

    figures, _ = figures_of(tmp_path / "c", wrong)
    assert figures["HOTA"].verdict == "poor", "as good as the baselines, which are bad"


def test_the_headline_counts_points_against_the_best_baseline(tmp_path):
    _, sentences = figures_of(tmp_path)
    table = metrics("bag", 0)["self_test"]["10"]
    own = table["filter"]["kept_share"]
    best = max(row["kept_share"] for name, row in table.items() if name != "filter")
    assert f"{100 * (own - best):.1f} points more than the best baseline" in sentences[0]


def test_estimates_over_all_blackouts_equal_the_sums():
    rows = [blackouts(np.random.default_rng(seed)) for seed in range(3)]
    found = estimates(rows, ("filter", "kalman"), "10")
    expected = summary([row for bag in rows for row in bag])["10"]
    for name in ("filter", "kalman"):
        for measure in MEASURES:
            one = found[name][measure.key]
            assert one.value == pytest.approx(expected[name][measure.key])
            assert one.low < one.value < one.high


def test_intervals_cover_the_true_share_as_often_as_they_say():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(120):
        kept = generator.binomial(4, 0.8, 40)
        rows = [
            {"schedule": "1", "tracker": "a", "start_step": i, "tracked": 4, "kept": int(k),
             "error_px": 1.0, "error_sizes": 1.0, "inside_90": 1, "compared": 1}
            for i, k in enumerate(kept)
        ]  # fmt: skip
        one = estimates([rows], ("a",), "1")["a"]["kept_share"]
        inside += one.low <= 0.8 <= one.high
    assert 0.89 <= inside / 120 <= 0.99


def test_bags_are_redrawn_too():
    """Two bags that differ more than their blackouts do: the interval spans both."""
    bags = [np.full((50, 1, 1), value, float) for value in (0.0, 1.0)]
    drawn = redraw(bags)[:, 0, 0] / 100
    assert np.quantile(drawn, 0.1) == 0 and np.quantile(drawn, 0.9) == 1
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.05)


def test_nothing_is_said_of_few_blackouts():
    rows = [r for r in blackouts(np.random.default_rng(0)) if r["start_step"] < 200]
    one = estimates([rows], ("filter",), "10")["filter"]["kept_share"]
    assert np.isfinite(one.value) and np.isnan(one.low)


@pytest.mark.parametrize(
    ("highest", "ticks"),
    [(0.9, [0, 0.25, 0.5, 0.75, 1]), (4, [0, 1, 2, 3, 4]), (0, [0, 1]), (13, [0, 5, 10, 15])],
)
def test_ticks_are_round_and_reach_the_highest(highest, ticks):
    assert report_charts.nice_ticks(highest) == ticks


def test_chart_places_values_by_scale():
    line = [Interval(0.5, 0.25, 0.75), Interval(1.0, np.nan, np.nan), Interval(np.nan, 0, 0)]
    chart = report_charts.by_schedule("t", "", ("1", "5", "bernoulli_0.2"), {"a": line}, True)
    first, second = chart["lines"][0]["marks"]
    assert second["y"] == chart["top"] and second["whisker"] is None
    assert first["y"] == pytest.approx((chart["top"] + chart["floor"]) / 2, abs=0.1)
    low, high = first["whisker"]
    assert low - first["y"] == pytest.approx(first["y"] - high, abs=0.1)
    assert chart["lines"][0]["points"].count(",") == 2


def test_time_line_holds_counts_and_joins_equal_states():
    series = {
        "stamp_s": [10.0, 11.0, 12.0, 13.0, 14.0],
        "objects": [2, 2, 4, 4, 4],
        "tracks": [0, 2, 2, 2, 4],
        "sensor_state": ["OK", "OK", "BLACK", "OK", "OK"],
    }
    line = report_charts.time_line(series)
    assert [(p["state"], p["x"], p["width"]) for p in line["lane"]] == [
        ("OK", 0.0, 50.0),
        ("BLACK", 50.0, 25.0),
        ("OK", 75.0, 25.0),
    ]
    assert line["objects"] == "M0.0 50.0H25.0V50.0H50.0V0.0H75.0V0.0H100.0V0.0"
    assert line["labels_s"] == [0, 1, 2, 3, 4]
    assert report_charts.time_line({}) is None


def test_times_and_schedules_are_said_as_people_do():
    assert [duration(s) for s in (7.16, 90, 7200, None)] == ["7.2 s", "1.5 min", "2.0 h", "–"]
    assert schedule_name("1") == "1 frame hidden"
    assert schedule_name("bernoulli_0.2") == "20\N{NO-BREAK SPACE}% random"

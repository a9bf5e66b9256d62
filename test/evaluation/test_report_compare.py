# SPDX-License-Identifier: Apache-2.0
"""Two replays side by side: paired, with intervals that mean what they say."""

import json

import numpy as np
import pytest
from html_outline import Outline
from replay_directories import metrics, summary, write_replay

from oc_perception.cli import main
from oc_perception.evaluation.compare import compare
from oc_perception.evaluation.report_data import ReportError, read_run

BAGS = 6


def replay(directory, skill=1.0, bags=BAGS, change=lambda found: None, first=0):
    """A replay of the same bags, by a model of some skill."""
    found = [metrics(f"bag_{i}", i, skill=skill) for i in range(first, first + bags)]
    for one in found:
        change(one)
    return write_replay(directory, found)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return replay(folder / "a"), replay(folder / "b", 0.9)


def rows_of(found):
    return {(row["group"], row["name"]): row for row in found["rows"]}


def test_values_are_those_of_all_blackouts_and_differences_are_b_minus_a(pair):
    runs = [read_run(directory) for directory in pair]
    rows = rows_of(compare(*runs))
    for key, run in zip("ab", runs, strict=True):
        pooled = summary([row for bag in run.bags for row in bag.metrics["blackouts"]])
        own = pooled["10"]["filter"]
        row = rows["identities kept", "10 frames hidden"]
        assert row[key] == pytest.approx(own["kept_share"], abs=1e-6)
        assert rows["error (px)", "10 frames hidden"][key] == pytest.approx(own["error_px"])
    assert row["difference"] == pytest.approx(row["b"] - row["a"], abs=2e-6)
    assert row["low"] < row["difference"] < row["high"] < 0
    assert row["verdict"] == "worse"
    assert rows["error (px)", "10 frames hidden"]["verdict"] == "worse"
    hota = rows["against true boxes", "HOTA"]
    assert (hota["a"], hota["b"]) == pytest.approx((0.582, 0.5238))


def test_the_other_way_round_everything_turns_over(pair):
    a, b = (read_run(directory) for directory in pair)
    forth, back = rows_of(compare(a, b)), rows_of(compare(b, a))
    for key, row in forth.items():
        assert back[key]["difference"] == pytest.approx(-row["difference"])
        turned = {"better": "worse", "worse": "better", "": ""}[row["verdict"]]
        assert back[key]["verdict"] == turned


def test_a_run_does_not_differ_from_itself(pair):
    run = read_run(pair[0])
    found = compare(run, run)
    assert {row["difference"] for row in found["rows"]} == {0.0}
    assert {row["verdict"] for row in found["rows"]} == {""}


def test_coverage_is_better_where_it_is_nearer_to_what_was_said(tmp_path):
    def cover(share):
        def change(found):
            for row in found["blackouts"]:
                row["inside_90"] = round(share * row["compared"])

        return change

    a = read_run(replay(tmp_path / "a", change=cover(1.0)))
    b = read_run(replay(tmp_path / "b", change=cover(0.9)))
    row = rows_of(compare(a, b))["inside the 90 % region", "20 frames hidden"]
    assert row["difference"] < 0 and row["verdict"] == "better"


def test_pairs_cancel_what_is_hard_for_both(tmp_path):
    """A small gain on blackouts that differ widely is seen, because it is seen in each pair."""

    def spread(gain):
        def change(found):
            rng = np.random.default_rng(7)
            for row in found["blackouts"]:
                row["error_px"] = float(rng.uniform(1, 100)) - gain

        return change

    a = read_run(replay(tmp_path / "a", bags=1, change=spread(0.0)))
    b = read_run(replay(tmp_path / "b", bags=1, change=spread(0.5)))
    row = rows_of(compare(a, b))["error (px)", "5 frames hidden"]
    assert row["difference"] == pytest.approx(-0.5, abs=1e-6)
    assert row["high"] < 0 and row["verdict"] == "better"


def test_equal_trackers_are_seldom_told_apart(tmp_path):
    """Intervals of 95 % leave out zero in about one of twenty comparisons of equals."""
    marked = total = 0
    for trial in range(8):

        def redrawn(seed):
            def change(found):
                rng = np.random.default_rng(seed)
                for row in found["blackouts"]:
                    row["kept"] = int(rng.binomial(row["tracked"], 0.7))

            return change  # fmt: skip

        a = read_run(replay(tmp_path / f"a{trial}", bags=1, change=redrawn(2 * trial)))
        b = read_run(replay(tmp_path / f"b{trial}", bags=1, change=redrawn(2 * trial + 1)))
        rows = [r for r in compare(a, b)["rows"] if r["group"] == "identities kept"]
        marked += sum(bool(row["verdict"]) for row in rows)
        total += len(rows)
    assert total == 40 and marked <= 7


def test_recordings_of_one_name_and_length_are_told_apart(tmp_path):
    def recording(identity):
        return lambda found: found.update(recording=identity)

    a, b = (read_run(replay(tmp_path / n, bags=1, change=recording(n))) for n in "ab")
    with pytest.raises(ReportError, match="recording is a and b"):
        compare(a, b)


def test_intervals_from_few_recordings_are_called_rough(tmp_path):
    for bags, rough in ((1, False), (3, True), (5, False)):
        run = read_run(replay(tmp_path / f"{bags}", bags=bags))
        assert ("rough" in compare(run, run)["resampled"]) == rough


def test_scores_over_few_recordings_have_no_interval(tmp_path):
    a, b = (read_run(replay(tmp_path / n, s, bags=4)) for n, s in (("a", 1.0), ("b", 0.5)))
    row = rows_of(compare(a, b))["against true boxes", "HOTA"]
    assert row["difference"] < -0.2 and row["low"] is None and row["verdict"] == ""


def test_the_own_trackers_are_compared_whatever_they_are_called(tmp_path):
    def rename(found):
        found["tracker"] = "relational"
        for row in found["blackouts"]:
            row["tracker"] = row["tracker"].replace("filter", "relational")

    a, b = read_run(replay(tmp_path / "a")), read_run(replay(tmp_path / "b", change=rename))
    found = compare(a, b)
    assert (found["a"]["tracker"], found["b"]["tracker"]) == ("filter", "relational")
    assert rows_of(found)["identities kept", "5 frames hidden"]["difference"] == 0


def test_other_recordings_are_refused_with_the_reason(tmp_path, pair):
    other = read_run(replay(tmp_path / "other", first=50))
    with pytest.raises(ReportError, match=r"no recording in common.*replay the same bags"):
        compare(read_run(pair[0]), other)
    longer = replay(tmp_path / "longer", change=lambda found: found.update(frames=981))
    with pytest.raises(ReportError, match="frames is 980 and 981"):
        compare(read_run(pair[0]), read_run(longer))


def test_what_is_not_in_both_is_left_out_and_said(tmp_path, pair, capsys):
    replay(tmp_path / "fewer", bags=3)
    assert main(["compare", str(pair[0]), str(tmp_path / "fewer")]) == 0
    said = capsys.readouterr().out
    assert "3 recordings" in said and "left out, not in both: bag_3, bag_4, bag_5" in said


def test_the_command_prints_a_table_and_writes_json_and_html(tmp_path, pair, capsys):
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    command = ["compare", *map(str, pair), "--json", str(numbers), "--html", str(page)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "10 frames hidden" in said and "worse" in said and "redrawn 2000 times" in said
    found = json.loads(numbers.read_text())
    assert found["bags"] == [f"bag_{i}" for i in range(BAGS)]
    first = numbers.read_bytes(), page.read_bytes()
    assert main(command) == 0
    assert (numbers.read_bytes(), page.read_bytes()) == first, "seeded"
    outline = Outline(page.read_text())
    assert "B is worse" in "".join(outline.text) and outline.of("svg")
    assert not outline.of("script")


def test_runs_without_self_test_or_truth_can_be_compared(tmp_path):
    def strip(found):
        for key in ("self_test", "blackouts", "discovery", "tracking"):
            found.pop(key, None)

    a = replay(tmp_path / "a", change=strip)
    found = compare(read_run(a), read_run(a))
    assert found["rows"] == []
    assert main(["compare", str(a), str(a), "--html", str(tmp_path / "page.html")]) == 0


def test_a_missing_directory_is_one_clear_line(tmp_path, pair, capsys):
    assert main(["compare", str(pair[0]), str(tmp_path)]) == 2
    assert "holds no report.json" in capsys.readouterr().err

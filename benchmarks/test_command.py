"""The command, on a few rows in small sizes."""

import argparse
import json
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest

from cudakit.cli.command import UserError

from . import command, record
from .cases import OURS
from .comparison import compare
from .families import FAMILIES
from .measure import CPU, WHOLE, Checked, Sample, interleaved, ratio, summary
from .parts import Part, Share, measure_part, near, together


def parsed(*words: str) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_a_run_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endings = {"json": "json", "markdown": "md", "plot": "png"}
    files = {option: tmp_path / f"cpu.{ending}" for option, ending in endings.items()}
    words = [word for option, path in files.items() for word in (f"--{option}", str(path))]
    dtypes = ["--dtype", "float32", "float16"]
    rows = ["--rows", "gs_2x3x24_bilinear_fwd(_float16)?$", "--peers", "torch,openvino"]
    assert command.run(parsed("sampling", "--small", "--threads", "1", *dtypes, *rows, *words)) == 0
    (run,) = json.loads(files["json"].read_text(encoding="utf-8"))["families"]["sampling"]["runs"]
    assert [row["dtype"] for row in run["rows"]] == ["float32", "float16"]
    for row in run["rows"]:
        assert row["flop"] == 2 * 4 * 2 * 3 * 24 * 24
        share = max(row["gb_per_s"] / run["limits"]["copy_gb_per_s"], row["gflop_per_s"] / 1e6)
        assert row["roofline_share"] >= share * 0.999
        assert set(row["sides"]) <= {OURS, "torch", "openvino"}
    assert "openvino" not in run["rows"][1]["sides"]  # which takes NumPy's arrays
    text = files["markdown"].read_text(encoding="utf-8")
    assert "![cpu](cpu.png)" in text
    assert "### grid_sample, forward, float16: 1 thread" in text
    assert files["plot"].stat().st_size > 10_000
    assert "gs_2x3x24_bilinear_fwd_float16" in capsys.readouterr().out


def record_of(*ratios: float) -> dict[str, Any]:
    """Return a record of one row for each ratio."""
    rows = [
        {"row": str(number), "sides": {OURS: {"median_ms": 2.0}}, "ratios": {"torch": ratio}}
        for number, ratio in enumerate(ratios)
    ]
    runs = [{"label": "1 thread", "rows": rows}]
    return {"date": "today", "commit": "0", "families": {"sampling": {"runs": runs}}}


def test_two_records_are_compared() -> None:
    heading, _, rows = compare(record_of(2.0, 3.0, 1.0), record_of(2.0, 2.0, 2.0))
    assert "3 ratios changed by 50% (median)" in heading
    assert rows[:2] == [["1 thread", "2", "torch", "-50%"], ["1 thread", "1", "torch", "+50%"]]
    assert "nothing to compare" in compare(record_of(), record_of(1.0))[0]


def test_rows_are_compared_that_were_measured_with_cores_as_far_apart() -> None:
    now, before = record_of(2.0, 3.0, 1.0), record_of(2.0, 3.0, 2.0)
    for found, distances in ((now, (50, 50, 200)), (before, (60, 60, 60))):
        for row, distance in zip(found["families"]["sampling"]["runs"][0]["rows"], distances, strict=True):
            row["crossing_ns"] = distance
    heading, _, rows = compare(now, before)
    assert "2 ratios changed by 0%" in heading
    assert "left out: 1 of rows" in heading
    assert len(rows) == 2


def test_a_ratio_is_that_of_turns_in_the_same_round() -> None:
    def turn(*seconds: float, disturbed: bool = False) -> list[Sample]:
        return [Sample(value, disturbed) for value in seconds]

    ours = {0: turn(1, 1, 9), 1: turn(2), 2: turn(4), 3: turn(1), 4: turn(8), 5: turn(1), 6: turn(1)}
    theirs = {number: turn(3 * samples[0].seconds) for number, samples in ours.items()}
    assert ratio(theirs | {5: turn(90, disturbed=True), 6: turn(90, disturbed=True)}, ours) == 3
    assert ratio({1: turn(4), 2: turn(8, 8), 3: turn(9, disturbed=True)}, ours) == 2  # too few undisturbed ones


def test_undisturbed_turns_of_different_rounds_are_compared_where_no_others_are_left() -> None:
    ours = {number: [Sample(9 if number < 3 else 1, disturbed=number < 3)] for number in range(6)}
    theirs = {number: [Sample(2 if number < 3 else 9, disturbed=number >= 3)] for number in range(6)}
    assert ratio(theirs, ours) == 2


def test_disturbed_sides_have_more_rounds() -> None:
    calls = {OURS: lambda: None, "torch": lambda: None}

    def rounds(calm: int) -> set[int]:  # where so many of torch's turns, the first one among them, are undisturbed
        turns = iter([False] * calm + [True] * 100)
        device = CPU._replace(turn=lambda call, _: [Sample(1e-3, disturbed=call is calls["torch"] and next(turns))])
        return {len(found) for found in interleaved(calls, device).values()}

    assert rounds(calm=3) == {WHOLE.rounds + WHOLE.rounds // 2}
    assert rounds(calm=100) == {WHOLE.rounds}
    assert rounds(calm=0) == {WHOLE.rounds}  # nothing better is to be expected


def part(crossing_ns: float | None = None, **seconds: float) -> Part:
    """Return a part in which every side's five turns took so long."""
    turns = {side: {number: [Sample(value, disturbed=False)] for number in range(5)} for side, value in seconds.items()}
    return Part(Checked(8, {}, {}, {"torch": "by 2"} if crossing_ns == 200 else {}, {}), turns, crossing_ns)


def test_a_row_is_what_most_of_its_parts_found() -> None:
    row = FAMILIES["sampling"].rows(True)[0]
    parts = [part(**{OURS: seconds, "torch": 3e-3}) for seconds in (1e-3, 2e-3, 1e-3)]
    found = together(row, parts, None)
    assert (found["row"], found["bytes"], found["flop"]) == (row.name, 8, row.case.flop)
    assert found["sides"][OURS]["median_ms"] == pytest.approx(1)
    assert [found["sides"][side]["calls"] for side in (OURS, "torch")] == [15, 15]
    assert found["ratios"] == {"torch": pytest.approx(3)}
    assert found["crossing_ns"] is None


def test_parts_with_cores_far_apart_count_where_there_are_no_others() -> None:
    far, near_one = part(200, **{OURS: 2e-3}), part(45, **{OURS: 1e-3})
    assert near([far, near_one, far], 40) == [near_one]
    assert near([far, far], 40) == [far, far]
    assert near([part(**{OURS: 1e-3})], None)
    row = FAMILIES["sampling"].rows(True)[0]
    assert together(row, [near_one], 40)["sides"][OURS]["median_ms"] == pytest.approx(1)
    found = together(row, [far, near_one], 40)
    assert (found["crossing_ns"], found["disagreements"]) == (45, {"torch": "by 2"})
    found = together(row, [far, far], 40)
    assert found["crossing_ns"] == 200
    assert found["disagreements"] == {"torch": "by 2"}


def test_a_single_turn_is_its_own_median() -> None:
    assert summary({0: [Sample(2e-3, disturbed=False)]}) == {
        "median_ms": 2.0,
        "quartiles_ms": [2.0, 2.0],
        "calls": 1,
        "disturbed": False,
    }


def test_processes_share_the_rounds() -> None:
    calls = {OURS: lambda: None, "torch": lambda: None}
    taken: list[tuple[bool, float]] = []

    def turn(call: Callable[[], None], expected: float) -> list[Sample]:
        taken.append((call is calls[OURS], expected))
        return [Sample(1e-3 if call is calls[OURS] else 0.2, disturbed=False)]

    found = interleaved(calls, CPU._replace(turn=turn), parts=3)
    # One turn of what is slow is enough, and cudakit takes one right after it.
    assert {side: len(turns) for side, turns in found.items()} == {OURS: 1 + WHOLE.rounds // 3, "torch": 1}
    assert found["torch"].keys() < found[OURS].keys()
    at = taken.index((False, inf))
    assert taken[at + 1 :] == [(True, 1e-3)] * (1 + WHOLE.rounds // 3)


def test_calls_of_known_length_need_no_turn_to_find_out() -> None:
    calls = {OURS: lambda: None, "torch": lambda: None}
    taken: list[float] = []

    def turn(_: Callable[[], None], expected: float) -> list[Sample]:
        taken.append(expected)
        return [Sample(expected, disturbed=False)]

    known = {OURS: 1e-3, "torch": 0.2}
    found = interleaved(calls, CPU._replace(turn=turn), parts=3, known=known)
    assert {side: len(turns) for side, turns in found.items()} == {OURS: WHOLE.rounds // 3, "torch": 1}
    assert set(taken) == set(known.values())


def test_later_parts_leave_out_what_takes_long() -> None:
    row = FAMILIES["sampling"].rows(True)[0]
    known = {row.name: {OURS: 9.0, "torch": 9.0}}
    found = measure_part(FAMILIES["sampling"].only(["torch"]), row, 1, share=Share(1, 3, known))
    assert found.turns.keys() == {OURS}


@pytest.mark.parametrize("parts", [1, 3])
def test_slow_sides_have_turns_in_several_rounds_of_one_process(parts: int) -> None:
    calls = {OURS: lambda: None, "torch": lambda: None}
    device = CPU._replace(turn=lambda call, _: [Sample(1e-3 if call is calls[OURS] else 9.0, disturbed=False)])
    found = interleaved(calls, device, parts=parts)
    assert {side: len(turns) for side, turns in found.items()} == {OURS: 1 + WHOLE.rounds // parts, "torch": 3}
    assert found["torch"].keys() < found[OURS].keys()
    assert Part(Checked(8, {}, {}, {}, {}), found, None).seconds() == {OURS: 1e-3, "torch": 9.0}


def test_sides_of_one_part_count_where_its_cores_were_far_apart() -> None:
    row = FAMILIES["sampling"].rows(True)[0]
    first, second = part(200, **{OURS: 2e-3, "torch": 9.0}), part(45, **{OURS: 1e-3})
    found = together(row, [first, second], 40)
    assert found["sides"]["torch"]["median_ms"] == pytest.approx(9000)
    assert found["ratios"] == {"torch": pytest.approx(9000)}


def test_disturbed_sides_of_one_part_are_compared_with_others() -> None:
    ours = {number: [Sample(2, disturbed=False)] for number in range(5)}
    assert ratio({9: [Sample(8, disturbed=True)]}, ours) == 4


def test_a_side_that_disagrees_or_a_row_that_fails_is_an_error() -> None:
    row = {"row": "one", "disagreements": {"torch": "by 2"}}
    run = {"label": "1 thread", "failed": {"two": "ValueError: no"}, "rows": [row]}
    found = record.complaints({"families": {"sampling": {"runs": [run]}}})
    assert found == ["1 thread: two: ValueError: no", "1 thread: one: torch: by 2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["poetry"], "no family 'poetry'; there are sampling, deformable, growth"),
        (["--json", "no/such/folder/x.json"], "--json: there is no folder no/such/folder"),
        (["--against", "no.json"], "cannot read no.json: No such file"),
        (["sampling", "--rows", "dc_"], "no row of sampling has a name with 'dc_' in it; there are gs_8x3x512_b"),
        (["--json", "/proc/x.json"], "--json: cannot write /proc/x.json: No such file"),
        (["--plot", "x.txt"], "--plot must name a .png, .svg or .pdf file, got x.txt"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        command.run(parsed(*words))


@pytest.mark.parametrize(
    "words",
    [["--peers", "torch,numba"], ["--threads", "0"], ["--threads", "100000"], ["--rows", "("], ["--dtype", "int8"]],
)
def test_unknown_values_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert words[1].split(",")[-1] in capsys.readouterr().err

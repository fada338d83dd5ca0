"""Every benchmark runs, with outputs equal to its peer's, and the page is what its results say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import measure, report
from benchmarks.__main__ import main
from benchmarks.machine import commit
from benchmarks.result import Equality, Mark, NotEqual, Result, Spread, decoded
from benchmarks.workloads import names, workload

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def quick(name: str, folder: Path) -> Result:
    done = CliRunner().invoke(main, [name, "--quick", "--out", str(folder / "cpu")])
    assert done.exit_code == 0, done.output
    return decoded(folder / "cpu" / f"{name}.json")


@pytest.mark.xdist_group("benchmarks")
@pytest.mark.parametrize("name", names())
def test_a_benchmark_runs_and_its_outputs_are_equal(name: str, folder: Path) -> None:
    result = quick(name, folder)
    assert result.workload == name
    assert result.marks, "it says nothing of its mark"
    assert all(one.holds for one in result.equal)
    assert result.equal, "nothing was compared before it was timed"
    missed = [mark.text for mark in result.marks if mark.counted and not mark.reached]
    assert not missed


@pytest.mark.xdist_group("benchmarks")
def test_the_page_is_the_same_for_the_same_results(folder: Path, tmp_path: Path) -> None:
    if not (folder / "cpu" / "B5.json").exists():
        quick("B5", folder)
    pages = [tmp_path / "one" / "page.md", tmp_path / "two" / "page.md"]
    for page in pages:
        report.written(folder, page)
    one, two = ({f.name: f.read_bytes() for f in p.parent.rglob("*.*")} for p in pages)
    assert one == two
    assert "b5-cpu.svg" in one
    page = one["page.md"].decode()
    assert "| a quick run |" in page
    assert "its times and marks say nothing" in page


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"workload":"B15","ti', "truncated"),
        (b'{"workload":"B15"}', "missing required field `title`"),
        (b"[1]", "Expected `object`"),
        (
            (RESULTS / "cpu" / "B3.json").read_bytes(),
            "is a result of B3",
        ),
    ],
)
def test_a_file_that_holds_no_result_is_named(data: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "cpu" / "B15.json"
    file.parent.mkdir()
    file.write_bytes(data)
    page = str(tmp_path / "page.md")
    done = CliRunner().invoke(main, ["--report", page, "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert str(file) in done.output
    assert why in done.output


def test_a_note_of_machines_belongs_to_the_results_it_stands_beside(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "B15.json").write_bytes((RESULTS / "cpu" / "B15.json").read_bytes())
    note = (RESULTS / "machines.md").read_text().splitlines()[0]
    assert note in report.text(RESULTS)
    assert note not in report.text(tmp_path)
    (tmp_path / "machines.md").write_text("Of my machine.")
    assert "\nOf my machine.\n" in report.text(tmp_path)


@pytest.mark.xdist_group("benchmarks")
def test_json_is_one_result_a_line(folder: Path) -> None:
    done = CliRunner().invoke(main, ["B15", "b15", "--quick", "--json"])
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["workload"] for one in told] == ["B15", "B15"]


def test_the_page_is_made_of_the_results_that_are_here() -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text() == report.text(RESULTS)


def test_the_page_names_every_workload() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for name in names():
        assert f"\n## {name}\n" in page
        assert workload(name).WORKLOAD.mark in page


def test_outputs_that_differ_give_no_ratio(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def differs(setting: measure.Setting) -> Result:
        setting.compare("outputs", torch.ones(3), torch.tensor([1.0, 1.0, 1.1]))
        raise AssertionError("it went on")

    monkeypatch.setattr(workload("B15"), "run", differs)
    done = CliRunner().invoke(main, ["B15", "--quick"])
    assert done.exit_code == 1
    assert "NOT EQUAL: outputs" in done.output


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (["--device", "nowhere"], "there is no device `nowhere` here"),
        (["--device", "meta"], "there is no device `meta` here"),
        (["--dtype", "float3"], "'float3' is not one of"),
        (["--threads", "0"], "0 is not in the range"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_usage_error(option: list[str], why: str) -> None:
    done = CliRunner().invoke(main, ["B15", "--quick", *option])
    assert done.exit_code == 2
    assert why in done.output


def test_a_run_that_is_interrupted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(setting: measure.Setting) -> Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(workload("B15"), "run", waits)
    done = CliRunner().invoke(main, ["B15", "B16", "--quick"])
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == "  interrupted"


def test_a_peer_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = workload("B15")
    needs = type(module.WORKLOAD)("B15", "title", "peer", "mark", ("no_such_library",))
    monkeypatch.setattr(module, "WORKLOAD", needs)
    done = CliRunner().invoke(main, ["B15", "--quick"])
    assert done.exit_code == 3
    assert "pip install no_such_library" in done.output


def test_all_workloads_run_though_one_s_peer_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in names():
        module = workload(name)
        told = module.WORKLOAD
        needs = ("no_such_library",) if name == "B3" else ()
        monkeypatch.setattr(
            module, "WORKLOAD", type(told)(name, told.title, told.peer, told.mark, needs)
        )
        result = Result(name, "", "", "", "cpu", "float32", True)
        monkeypatch.setattr(module, "run", lambda setting, n=name, r=result: ran.append(n) or r)
    done = CliRunner().invoke(main, ["--all", "--json"])
    assert done.exit_code == 3
    assert ran == [name for name in names() if name != "B3"]
    assert [json.loads(line)["workload"] for line in done.stdout.splitlines()] == ran
    assert "pip install no_such_library" in done.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["B99"], "no workload `B99`; there are B1, B2"),
        ([], "name workloads, or say --all"),
        (["--report", "PLACE/page.md", "--results", "PLACE/none"], "has no results"),
        (["B15", "--quick", "--out", "PLACE/file/cpu"], "can't be written to"),
        (["B15", "--quick", "--report", "PLACE"], "is a folder"),
        (["B15", "--quick", "--report", "PLACE/file/page.md"], "can't be written to"),
    ],
)
def test_what_can_t_be_asked_for_is_refused_before_anything_runs(
    args: list[str], told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, [arg.replace("PLACE", str(tmp_path)) for arg in args])
    assert done.exit_code == 2
    assert told in done.output
    assert not (tmp_path / "page.md").exists()


def test_what_is_not_a_number_is_not_equal() -> None:
    setting = measure.Setting()
    with pytest.raises(NotEqual):
        setting.compare("outputs", torch.tensor([1.0, float("nan")]), torch.ones(2))
    assert not Equality("outputs", float("nan"), 1.0).holds


def test_what_a_run_writes_makes_no_other_commit_of_what_it_measures(tmp_path: Path) -> None:
    results, code = tmp_path / "benchmarks" / "results" / "B1.json", tmp_path / "code.py"
    results.parent.mkdir(parents=True)
    for file in (results, code):
        file.write_text("1")
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    name = commit(tmp_path)
    results.write_text("2")
    assert name
    assert commit(tmp_path) == name
    code.write_text("2")
    assert commit(tmp_path) == f"{name}-dirty"


def test_contenders_take_turns() -> None:
    turns: list[str] = []
    runs = {name: lambda name=name: turns.append(name) for name in "AB"}
    before = dict.fromkeys("AB", lambda: None)
    measure.interleaved(runs, measure.Setting(quick=True), before=before)
    assert "".join(turns) == "AB" + "ABAB"


def test_contenders_go_through_their_cycles_in_turns() -> None:
    turns: list[str] = []
    runs = {name: [lambda word=name + call: turns.append(word) for call in "12"] for name in "AB"}
    first, second = measure.in_cycles(runs, measure.Setting(quick=True))
    tried = ["A1", "A2"] * 2 + ["B1", "B2"] * 2
    assert turns == tried + ["A1", "A2", "B1", "B2"] * 2
    assert [len(first.times[name]) for name in "AB"] == [2, 2]
    assert second.times.keys() == {"A", "B"}


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    samples = measure.Samples({"a": [1.0, 2.0, 9.0], "b": [1.0, 1.0, 3.0]})
    found = samples.ratio("a", "b")
    assert (found.median, found.low, found.high) == (2.0, 1.5, 2.5)


def test_an_overhead_over_one_that_noise_made_less_than_nothing_is_no_gain() -> None:
    samples = measure.Samples({"a": [3.0] * 4, "b": [2.0] * 4, "c": [1.0] * 4})
    assert samples.overhead_ratio(("a", "c"), ("b", "c")).median == 2.0
    assert samples.overhead_ratio(("b", "c"), ("c", "a")).median > 1e6


@pytest.mark.parametrize(("rounds", "end"), [(30, "3)"), (7, "3; 7 rounds)")])
def test_a_spread_says_where_there_were_fewer_rounds(rounds: int, end: str) -> None:
    assert Spread(2.0, 1.0, 3.0, rounds).text() == f"2x (1 to {end}"


def test_a_fitted_exponent_is_the_power_of_the_points() -> None:
    line = measure.fitted("cubes", [1, 2, 5], [2 * x**3 for x in (1, 2, 5)])
    assert line.exponent == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("sense", "reached"), [("at most", False), ("at least", True), ("exactly", False)]
)
def test_a_mark_is_reached_on_its_own_side(sense: str, reached: bool) -> None:
    assert Mark("x", 2.0, 1.0, sense).reached is reached  # type: ignore[arg-type]

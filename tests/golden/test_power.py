"""The harness that shows how often `--golden-against` is wrong."""

import threading

import pytest

from streamcache.gate.verdicts import Status, Verdict
from tests.golden.cores import groups, parsed, spread
from tests.golden.power import UNCHANGED, Job, Run, acceptable, noise, remaining, shown, table

SLOWER = Verdict("f::t", "speed", Status.FAIL, loss=0.1, margin=0.02, tau=0.03, cause="slower")


def run(case: str, number: int = 0, verdict: Verdict | None = None, exit_status: int = 0) -> Run:
    job = Job(case, number)
    changes = {"f::t speed": [0.01, -0.01, 0.0]}
    return Run(*job, job.busy, exit_status, 100.0, 4, changes, [verdict] if verdict else [])


def caught(case: str, number: int = 0) -> Run:
    return run(case, number, SLOWER, exit_status=1)


def test_cores_are_read_as_the_kernel_writes_them() -> None:
    assert parsed("0-3,8,10-11\n") == [0, 1, 2, 3, 8, 10, 11]


def test_threads_of_one_core_are_in_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.golden.cores._first_sibling", lambda core: core % 4)
    assert groups(range(8), 2) == ["0,4", "1,5", "2,6", "3,7"]
    assert groups(range(7), 3) == ["0,4,1", "5,2,6"], "no smaller group than asked for"


def test_no_two_runs_share_cores() -> None:
    inside: set[str] = set()
    lock = threading.Lock()

    def one(job: int, cores: str) -> int:
        with lock:
            assert cores not in inside
            inside.add(cores)
        with lock:
            inside.remove(cores)
        return job

    assert sorted(spread(one, range(20), ["0,1", "2,3"])) == list(range(20))


def test_caught_is_by_speed_and_red() -> None:
    assert caught("slower by 5 %").caught
    assert not run("slower by 5 %", verdict=SLOWER).caught
    other = Verdict("f::t", "mean", Status.FAIL, loss=0.1, margin=0.02)
    assert not run("slower by 5 %", verdict=other, exit_status=1).caught


def test_one_red_run_of_an_unchanged_tree_is_too_many() -> None:
    green = [run(UNCHANGED, i) for i in range(20)]
    assert acceptable(green)
    assert not acceptable([*green, run(UNCHANGED, 20, exit_status=75)])


@pytest.mark.parametrize(
    ("case", "n_caught", "is_enough"),
    [
        ("slower by 10 %", 20, True),
        ("slower by 10 %", 19, False),
        ("slower by 5 %", 16, True),
        ("slower by 5 %", 15, False),
    ],
)
def test_so_many_must_be_caught(case: str, n_caught: int, is_enough: bool) -> None:
    runs = [caught(case, i) if i < n_caught else run(case, i) for i in range(20)]
    assert acceptable(runs) is is_enough


def test_what_was_interrupted_goes_on_with_all_cases_in_turns() -> None:
    left = remaining([run(UNCHANGED, 0)], [UNCHANGED, "slower by 5 %"], 2)
    assert left == [Job(UNCHANGED, 1), Job("slower by 5 %", 0), Job("slower by 5 %", 1)]
    assert [job.busy for job in left] == [True, False, False]


def test_what_is_shown() -> None:
    runs = [run(UNCHANGED), run(UNCHANGED, 1), caught("slower by 5 %")]
    assert "| unchanged, beside a busy process | 1 | 0 | 0 |" in table(runs)
    assert "| slower by 5 % | 1 | 1 | 1 |" in table(runs)
    assert "| t | speed | 6 | +0.00 | 1.00 | 1.00 |" in noise(runs)
    assert shown(runs[2]).splitlines()[-1].split() == ["FAIL", "t", "speed:", "slower"]

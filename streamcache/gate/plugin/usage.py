"""What options of the gate make no sense together, or here."""

import os

import pytest

from streamcache.gate.compare import MIN_ROUNDS
from streamcache.gate.plugin import outputs
from streamcache.gate.plugin.git import require_clean_worktree
from streamcache.gate.plugin.noise import known_noise
from streamcache.gate.plugin.options import Usage, golden_path, updates
from streamcache.gate.validation import MIN_PROCESSES


def check_usage(config: pytest.Config) -> None:
    """See to it before minutes of measuring, not after.

    Raises:
        pytest.UsageError: the message says what is wrong, and what to give.
    """
    name, samples = config.getoption("golden"), config.getoption("golden_samples")
    if name == "":
        raise Usage("--golden is empty: give --golden NAME")
    if config.getoption("golden_against"):
        _check_against(config)
        return
    judged = config.getoption("golden_judged")
    asks = config.getoption("golden_required") or judged or updates(config)
    if asks and not name:
        raise Usage("which goldens? give --golden NAME")
    if asks and samples:
        raise Usage("--golden-samples only measures: it requires nothing and records nothing")
    if config.getoption("golden_reset_anchors") and not updates(config):
        raise Usage("--golden-reset-anchors goes with --golden-update")
    if name or samples:
        _check_measures(config)
    if updates(config):
        _check_update(config)
    elif name or samples:
        outputs.check(config)


def _check_against(config: pytest.Config) -> None:
    if config.getoption("golden") or config.getoption("golden_samples") or updates(config):
        raise Usage("--golden-against compares with a commit, and with no golden")
    if config.getoption("golden_rounds") < MIN_ROUNDS:
        raise Usage(f"--golden-rounds must be at least {MIN_ROUNDS}")
    _check_measures(config)
    known_noise(config, {})  # read it before minutes of measuring
    outputs.check(config)


def _check_measures(config: pytest.Config) -> None:
    spread = config.getoption("numprocesses", None) or config.getoption("tx", None)
    if spread or config.getoption("dist", "no") != "no":
        raise Usage("--golden and -n do not go together: processes side by side disturb times")
    if config.getoption("benchmark_disable", False) or config.getoption("benchmark_skip", False):
        raise Usage("--golden with benchmarks disabled or skipped would measure nothing")


def _check_update(config: pytest.Config) -> None:
    if os.environ.get("CI"):
        raise Usage("goldens are not recorded under CI: run the update yourself and commit it")
    if not config.getoption("golden_reason"):
        raise Usage('goldens need a reason: give --golden-reason "..."')
    if found := config.getoption("golden_from"):
        here = config.invocation_params.dir
        outside = any(not path.resolve().is_relative_to(here) for path in found)
        if outside and config.inipath is None:  # pytest's root is what its arguments share
            raise Usage("files from elsewhere hide the project's settings: add -c INI-FILE")
    else:
        n = config.getoption("golden_processes")
        if n < MIN_PROCESSES:
            raise Usage(f"{n} processes are too few: at least {MIN_PROCESSES}")
    require_clean_worktree(config, golden_path(config).parent)

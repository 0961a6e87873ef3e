"""The files that a run leaves behind: tried before minutes of measuring, not after."""

import os
from pathlib import Path

import pytest

from streamcache.files import require_writable, write_bytes


def samples(config: pytest.Config) -> Path | None:
    return _asked(config, "golden_samples")


def results(config: pytest.Config) -> Path | None:
    return _asked(config, "golden_json")


def history(config: pytest.Config) -> Path | None:
    return _asked(config, "golden_history")


def markdown(config: pytest.Config) -> Path | None:
    return _asked(config, "golden_markdown")


def _asked(config: pytest.Config, option: str) -> Path | None:
    """The folder in which pytest was started, even if a test has changed it since."""
    path = config.getoption(option)
    return config.invocation_params.dir / path if path else None


def summary() -> Path | None:
    """What GitHub shows of a job."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(path) if path else None


def check(config: pytest.Config) -> None:
    """Try whether what was asked for can be written.

    Raises:
        pytest.UsageError: a file cannot be written.
    """
    files = samples(config), markdown(config), results(config), history(config), summary()
    for path in filter(None, files):
        try:
            require_writable(path)
        except OSError as error:
            raise pytest.UsageError(f"{path} cannot be written: {error.strerror}") from error


def write(path: Path | None, data: bytes) -> list[str]:
    """Write a file where one is asked for; lines that say what could not be."""
    if path is None:
        return []
    try:
        write_bytes(path, data)
    except OSError as error:
        return [f"NOT WRITTEN: {path}: {error.strerror}"]
    return []


def append(path: Path | None, data: bytes) -> list[str]:
    """Add to a file that others write to as well; lines that say what could not be."""
    if path is None:
        return []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        return [f"NOT WRITTEN: {path}: {error.strerror}"]
    return []

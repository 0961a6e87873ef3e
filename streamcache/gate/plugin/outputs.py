"""The files that a run leaves behind: seen to before minutes of measuring, not after."""

import os
from pathlib import Path

import pytest


def samples(config: pytest.Config) -> Path | None:
    return _asked(config, "golden_samples")


def markdown(config: pytest.Config) -> Path | None:
    return _asked(config, "golden_markdown")


def _asked(config: pytest.Config, option: str) -> Path | None:
    """Where pytest was called, wherever tests have gone since."""
    path = config.getoption(option)
    return config.invocation_params.dir / path if path else None


def summary() -> Path | None:
    """What GitHub shows of a job."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(path) if path else None


def check(config: pytest.Config) -> None:
    """Make the folders.

    Raises:
        pytest.UsageError: a file cannot be written.
    """
    for path in filter(None, (samples(config), markdown(config), summary())):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            raise pytest.UsageError(f"{path} cannot be written: {error.strerror}") from error


def leave(path: Path | None, data: bytes, mode: str = "wb") -> list[str]:
    """Write a file where one is asked for; lines that say what could not be."""
    if path is None:
        return []
    try:
        with path.open(mode) as file:
            file.write(data)
    except OSError as error:
        return [f"NOT WRITTEN: {path}: {error.strerror}"]
    return []

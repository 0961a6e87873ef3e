"""The pytest plugin: options, the fixture `golden`, verdicts as test failures, exit codes.

Exit status: 0 pass, 1 a failure or something missing, 4 usage, 5 nothing was measured, 75 the
environment is invalid. pytest loads this with every run, whether or not the gate's dependencies are
there: without them each option of the gate is a usage error that says what to install.
"""

import pytest

from streamcache.gate.plugin.options import given, pytest_addoption

__all__ = ["pytest_addoption"]

try:
    import msgspec
    import pytest_benchmark
except ImportError as error:
    _missing = error.name

    def pytest_configure(config: pytest.Config) -> None:
        if found := given(config):
            raise pytest.UsageError(
                f"{found} needs {_missing}, which is not installed: pip install 'streamcache[gate]'"
            )

    @pytest.fixture
    def golden() -> None:
        pytest.fail(f"needs {_missing}: pip install 'streamcache[gate]'", pytrace=False)
else:
    from streamcache.gate.plugin.hooks import *  # noqa: F403

    del msgspec, pytest_benchmark

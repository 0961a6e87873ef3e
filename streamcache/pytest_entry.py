"""What pytest loads where streamcache is installed: the plugin of the gate.

Without the packages of its extra every other test still runs; whoever asks for the gate is told
what to install.
"""

import pytest

from streamcache.extras import MissingExtra, require

_missing = ""
try:
    require("gate", "the golden gate")
except MissingExtra as error:
    _missing = str(error)

if not _missing:
    pytest_plugins = ["streamcache.gate.plugin"]
else:

    def pytest_addoption(parser: pytest.Parser) -> None:
        parser.addini("golden_dir", "folder of the golden files", default="tests/golden")

    def pytest_load_initial_conftests(args: list[str]) -> None:
        if any(argument.startswith("--golden") for argument in args):
            raise pytest.UsageError(_missing)

    @pytest.fixture
    def golden() -> None:
        pytest.fail(_missing, pytrace=False)

"""The command line as a shell sees it."""

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from streamcache import EvictionPolicy, cli
from streamcache.cli import common
from streamcache.inputs.models import LoadedModel, load_model
from streamcache.measure import speed, workload

SetAttribute = Callable[[Any, str, Any], None]


def measure_little(set_attribute: SetAttribute) -> None:
    """Make what commands measure short: the baseline's window and positions, and warm-up."""
    set_attribute(workload, "BASELINE", EvictionPolicy(4, 124))
    set_attribute(common, "_POSITIONS_ON_CPU", 6)
    set_attribute(speed, "_SETTLE", 1)


def load_two_layers(set_attribute: SetAttribute) -> None:
    """Have commands load two layers of a model, where its PPL need mean nothing; from the disk
    once."""

    def load(name: str, **how: Any) -> LoadedModel:
        loaded = _two_layers(name, *how.items())
        return replace(loaded, model=copy.deepcopy(loaded.model))

    set_attribute(common, "load_model", load)


@cache
def _two_layers(name: str, *how: tuple[str, Any]) -> LoadedModel:
    loaded = load_model(name, **dict(how))
    del loaded.model.get_decoder().layers[2:]
    loaded.model.config.num_hidden_layers = 2
    return loaded


class Ran:
    def __init__(self, status: int, out: str, err: str):
        self.status, self.out, self.err = status, out, err


class Run:
    """Calls the entry point as the shell would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Ran:
        self.monkeypatch.setattr(sys, "argv", ["streamcache", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = self.capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Ran(caught.value.code, captured.out, captured.err)

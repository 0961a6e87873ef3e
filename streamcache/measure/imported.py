"""A rule of eviction of one's own, by its import path."""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from streamcache.caches.scored import ScoredPolicy
from streamcache.measure.configurations import SCORED, Configuration
from streamcache.policy import Policy, PolicyError, require_policy


def imported_rule(path: str, n_sink: int, total: int) -> Policy:
    """The rule that `module:Class` or `file.py:Class` names, with S sinks and a total of entries.

    The class is called with `n_sink` and `total`, by name. Modules are looked for in the working
    folder as well.

    Raises:
        PolicyError: there is no such class, or it does not take these arguments.
    """
    place, _, name = path.rpartition(":")
    if not place or not name.isidentifier():
        raise PolicyError(f"a rule is given as module:Class or file.py:Class, not {path!r}")
    try:
        make = getattr(_module(place), name)
    except (ImportError, OSError, AttributeError, SyntaxError) as error:
        raise PolicyError(f"cannot import {path}: {error}") from error
    try:
        rule: Policy = make(n_sink=n_sink, total=total)
        require_policy(rule)
    except TypeError as error:
        raise PolicyError(f"{path}, called with n_sink and total: {error}") from error
    return rule


def imported_configuration(path: str, n_sink: int, total: int) -> Configuration:
    """The rule in the cache that it needs, labelled with its name.

    Raises:
        PolicyError: see `imported_rule`.
    """
    rule = imported_rule(path, n_sink, total)
    cache = SCORED if isinstance(rule, ScoredPolicy) else "streaming"
    return Configuration(rule, cache, label=path.rpartition(":")[2])


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")
        return import_module(place)
    name = f"streamcache_rule_{Path(place).stem}"
    spec = spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module

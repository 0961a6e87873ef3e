"""`--golden-noise-from FILE`: what a history says of the noise of benchmarks."""

import msgspec
import pytest

from streamcache.gate import history
from streamcache.gate.environment import Value
from streamcache.gate.goldens import Golden
from streamcache.gate.plugin.options import Usage
from streamcache.gate.validation import noise_errors


def known_noise(config: pytest.Config, machine: dict[str, Value]) -> dict[str, float]:
    """Deviations between runs on a machine, by benchmark; none where no history is given.

    Raises:
        pytest.UsageError: the history cannot be read.
    """
    path = config.getoption("golden_noise_from")
    if path is None:
        return {}
    try:
        return history.noise(history.read(config.invocation_params.dir / path), machine)
    except history.HistoryError as error:
        raise Usage(f"--golden-noise-from {error}") from error


def with_noise(golden: Golden, noise: dict[str, float]) -> Golden:
    """The golden, whose benchmarks scatter at least as much as is known.

    Raises:
        pytest.UsageError: so much that anything would pass.
    """
    entries = {
        name: msgspec.structs.replace(entry, noise=max(entry.noise, noise.get(name, 0.0)))
        for name, entry in golden.entries.items()
    }
    golden = msgspec.structs.replace(golden, entries=entries)
    if wrong := next(iter(noise_errors(golden).values()), ""):
        raise Usage(f"--golden-noise-from: {wrong}")
    return golden

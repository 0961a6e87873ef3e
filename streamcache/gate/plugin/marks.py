"""The marker `golden`: what a test says of its own limits."""

from typing import NamedTuple

import pytest

from streamcache.gate.validation import MAX_OWN_TAU

MARKER = "golden(tau, warn_only): the loss of speed that counts, as a fraction; only warn of losses"


class Limits(NamedTuple):
    """See the fields of `samples.Sample`."""

    tau: float = 0.0
    warn_only: bool = False


def limits_of(item: pytest.Item) -> Limits:
    """What the markers of a test say, the nearest first.

    Raises:
        pytest.UsageError: something that it does not know, or a tau that is none.
    """
    markers = list(item.iter_markers("golden"))
    given = {key: value for marker in reversed(markers) for key, value in marker.kwargs.items()}
    unknown = [repr(value) for marker in markers for value in marker.args]
    unknown += sorted(given.keys() - set(Limits._fields))
    if unknown:
        raise pytest.UsageError(f"{item.nodeid}: the marker golden takes no {', '.join(unknown)}")
    found = Limits(**given)
    if "tau" in given and not 0 < found.tau <= MAX_OWN_TAU:
        raise pytest.UsageError(
            f"{item.nodeid}: tau is {found.tau}: it must be above 0 and at most {MAX_OWN_TAU:g}"
        )
    return found

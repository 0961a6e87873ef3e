"""What `import streamcache` offers, and that it costs no import of torch."""

import subprocess
import sys

import pytest

import streamcache

NAMES = [
    *("BoundedCache", "CapturedDecoder", "EagerWarning", "EvictionPolicy", "OnePassUnsupported"),
    *("PolicyError", "PolicyWarning", "ReferenceCache", "RerotatingCache", "RingCache"),
    *("StreamingCache", "UnsupportedModelError", "recompute_nll", "streaming_nll"),
]


def test_published_names_are_still_there() -> None:
    assert set(NAMES) <= set(streamcache.__all__)


def test_every_public_name_is_shown_and_can_be_imported() -> None:
    assert {*streamcache.__all__, "__version__"} == set(dir(streamcache))
    for name in streamcache.__all__:
        assert getattr(streamcache, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'streamcache' has no attribute 'StreamCache'"):
        _ = streamcache.StreamCache  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "statement",
    ["import streamcache", "from streamcache import EvictionPolicy", "import streamcache.gate"],
)
def test_torch_is_not_imported_before_it_is_needed(statement: str) -> None:
    code = f"import sys; {statement}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy"} & set(ran.stdout.split())

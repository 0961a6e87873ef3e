"""A stream in a file: what a cache holds, for which policy and which model, bit for bit."""

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from streamcache.files import write_bytes
from streamcache.policy import Policy, fields_that_are_set

_VERSION = "1"
_SAMPLED = 64  # values of each weight that enter the digest as they are


class StreamFileError(ValueError):
    """A file holds no stream that the cache can go on with; the message says why."""


class Owner(NamedTuple):
    """Whose stream it is: only a cache that agrees in all of this can go on with it.

    Attributes:
        cache: its class.
        policy: its fields, as JSON.
        model: a digest of the model's weights.
    """

    cache: str
    policy: str
    model: str

    @staticmethod
    def of(cache: object, policy: Policy, model: nn.Module) -> "Owner":
        fields = json.dumps(fields_that_are_set(policy), sort_keys=True)
        return Owner(type(cache).__name__, fields, digest_of_weights(model))


def write_stream(
    path: Path, owner: Owner, numbers: dict[str, int], states: dict[str, Tensor]
) -> None:
    """Write what a cache holds.

    Raises:
        OSError: it cannot be written.
    """
    states = {name: held.detach().contiguous().cpu() for name, held in states.items()}
    described = {**owner._asdict(), "numbers": json.dumps(numbers, sort_keys=True)}
    described |= {"schema": f"streamcache-stream-{_VERSION}"}
    described["digest"] = _digest(described, states)
    write_bytes(path, save(states, described))


def read_stream(path: Path, owner: Owner) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The numbers and states that `write_stream` has written for the same owner.

    Raises:
        OSError: the file cannot be read.
        StreamFileError: it holds no such stream, or that of another owner, or was damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    try:
        with safe_open(path, framework="pt") as file:
            described = dict(file.metadata() or {})
            names = file.keys()
            states = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise StreamFileError(f"{path} is not a stream: {error}") from error
    if described.get("schema") != f"streamcache-stream-{_VERSION}":
        raise StreamFileError(f"{path} is not a stream of this release of streamcache")
    if described.pop("digest", None) != _digest(described, states):
        raise StreamFileError(f"{path} was damaged: its checksum is another")
    for name, mine in owner._asdict().items():
        if described[name] != mine:
            raise StreamFileError(
                f"{path} is the stream of another {name}: {described[name]}, and this one is {mine}"
            )
    return json.loads(described["numbers"]), states


def digest_of_weights(model: nn.Module) -> str:
    """Equal for equal weights, whatever the device.

    Of every weight: its name, dtype and shape, some of its values, and the sum of all its bytes.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        for part in _plain(weight):
            digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
            stored = part.detach().contiguous().flatten().view(torch.uint8)
            step = max(1, stored.numel() // (_SAMPLED * part.element_size()))
            digest.update(stored[::step].cpu().numpy().tobytes())
            digest.update(str(int(stored.sum(dtype=torch.int64))).encode())
    return digest.hexdigest()[:16]


def _plain(weight: Any) -> Iterator[Tensor]:
    """A weight, or the tensors that a quantised weight consists of."""
    if hasattr(weight, "__tensor_flatten__"):
        names, _ = weight.__tensor_flatten__()
        for name in names:
            yield from _plain(getattr(weight, name))
    elif isinstance(weight, Tensor):
        yield weight


def _digest(described: dict[str, str], states: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, held in sorted(states.items()):
        digest.update(f"{name} {held.dtype} {tuple(held.shape)}".encode())
        digest.update(held.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

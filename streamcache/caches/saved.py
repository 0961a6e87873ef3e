"""A stream in a file: what a cache holds, for which policy and which model, bit for bit."""

import errno
import hashlib
import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from streamcache.files import write_bytes
from streamcache.policy import Policy, fields_that_are_set
from streamcache.ranks import own_path

_VERSION = "1"
_SAMPLED = 64  # values of each weight that enter the digest as they are
_sums: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, int], _Sum]]" = (
    weakref.WeakKeyDictionary()
)

BATCH = -1  # in a shape: any number of streams, the same for all states
FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors names them


class StreamFileError(ValueError):
    """A file holds no stream that the cache can continue; the message says why."""


class Form(NamedTuple):
    """What a state must be."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS


Layout = dict[str, Form]


class Owner(NamedTuple):
    """Whose stream it is: only a cache that agrees in all of this can continue it.

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
    write_bytes(own_path(path), save(states, described), by_every_rank=True)


def read_stream(
    path: Path,
    owner: Owner,
    counts: Sequence[str],
    layout_of: Callable[[dict[str, int]], Layout],
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The numbers and states that `write_stream` has written for the same owner.

    Whoever made the file: nothing is loaded of which name, shape or dtype is not the expected one.

    Args:
        counts: the names of the numbers.
        layout_of: the states that go with such numbers.

    Raises:
        OSError: the file cannot be read.
        StreamFileError: it holds no such stream, or that of another owner, or was damaged.
    """
    path = own_path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    try:
        with safe_open(path, framework="pt") as file:
            described = dict(file.metadata() or {})
            if described.get("schema") != f"streamcache-stream-{_VERSION}":
                raise StreamFileError("is not a stream of this release of streamcache")
            for name, mine in owner._asdict().items():
                if described.get(name) != mine:
                    raise StreamFileError(
                        f"is the stream of another {name}: {described.get(name)!r:.200}, "
                        f"and this one is {mine!r}"
                    )
            numbers = _numbers(described, counts)
            layout = layout_of(numbers)
            _require_layout(file, layout)
            # Copies: the file is mapped into memory, and may be changed or cut off at any time.
            states = {name: file.get_tensor(name).clone() for name in layout}
        if described.pop("digest", None) != _digest(described, states):
            raise StreamFileError("was damaged: its checksum is another than that of the stream")
    except SafetensorError as error:
        raise StreamFileError(f"{path} is not a stream: {str(error)!r}") from error
    except StreamFileError as error:
        raise StreamFileError(f"{path} {error}") from error
    return numbers, states


def _numbers(described: dict[str, str], counts: Sequence[str]) -> dict[str, int]:
    try:
        numbers = json.loads(described.get("numbers", ""))
    except (ValueError, RecursionError):
        numbers = None
    if (
        not isinstance(numbers, dict)
        or set(numbers) != set(counts)
        or not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers.values())
    ):
        raise StreamFileError(f"is not a stream: it does not have the counts {', '.join(counts)}")
    return numbers


def _require_layout(file: Any, layout: Layout) -> None:
    if set(file.keys()) != set(layout):
        raise StreamFileError("is not a stream of so many tokens: it holds other states")
    batches = set()
    for name, expected in layout.items():
        part = file.get_slice(name)
        shape, dtype = part.get_shape(), part.get_dtype()
        is_like = len(shape) == len(expected.shape) and all(
            n == m or m == BATCH for n, m in zip(shape, expected.shape)
        )
        batches |= {n for n, m in zip(shape, expected.shape) if m == BATCH}
        if not is_like or dtype not in expected.dtypes or (BATCH in expected.shape and 0 in shape):
            raise StreamFileError(
                f"is not a stream of so many tokens: its {name!r} is {shape} of {dtype!r}"
            )
    if len(batches) > 1:
        raise StreamFileError("is not a stream: its states are of several batch sizes")


def digest_of_weights(model: nn.Module) -> str:
    """Equal for equal weights, on any device.

    Of every weight: its name, dtype and shape, some of its values, and the sum of all its bytes.
    The values are read each time. The sum is read again when PyTorch has counted a change of the
    weight, or it is another tensor; changes through `.data` are not counted, so a later one that
    leaves all the values read as they were is not seen.
    """
    digest = hashlib.sha256()
    sums = _sums.setdefault(model, {})
    for name, weight in model.state_dict(keep_vars=True).items():
        for i, part in enumerate(_plain(weight)):
            digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
            stored = part.detach().contiguous().flatten().view(torch.uint8)
            step = max(1, stored.numel() // (_SAMPLED * part.element_size()))
            digest.update(stored[::step].cpu().numpy().tobytes())
            known = sums.get((name, i))
            if known is None or not known.is_of(part):
                known = _Sum(weakref.ref(part), _state_of(part), _sum_of_bytes(stored))
                sums[name, i] = known
            digest.update(str(known.total).encode())
    return digest.hexdigest()[:16]


def _sum_of_bytes(stored: Tensor) -> int:
    return int(stored.sum(dtype=torch.int64))


class _Sum(NamedTuple):
    """The sum of a tensor's bytes, and the tensor as it was then."""

    tensor: "weakref.ref[Tensor]"
    state: tuple[int, int] | None
    total: int

    def is_of(self, tensor: Tensor) -> bool:
        state = _state_of(tensor)
        return self.tensor() is tensor and state is not None and state == self.state


def _state_of(tensor: Tensor) -> tuple[int, int] | None:
    """Where its data is, and how often it was changed; None: PyTorch does not count that."""
    return None if tensor.is_inference() else (tensor.data_ptr(), tensor._version)


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

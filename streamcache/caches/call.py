"""A call of a model with a bounded cache: what its hooks must know of both."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedModel

from streamcache.caches.one_pass import OnePass
from streamcache.caches.probe import ModelGeometry
from streamcache.caches.side_by_side import Part
from streamcache.policy import Policy


class HookedCache(Protocol):
    """What the hooks must know of a cache: `BoundedCache`."""

    policy: Policy
    geometry: ModelGeometry
    seen: int
    parts: list[Part]
    modules: tuple[nn.Module, ...]  # that have hooks for it: `attach` sets them
    call: "Call | None"  # the current one, or one that was interrupted

    @property
    def size(self) -> int: ...
    @property
    def next_position(self) -> int: ...
    @property
    def padding(self) -> list[int]: ...
    def begin_parts(self, padding: Sequence[int]) -> list[Part]: ...
    def require_intact(self) -> None: ...
    def require_same_model(self) -> None: ...
    def prepare(self, n_tokens: int, rebase: bool = True) -> None: ...
    def evicts_inside(self, n_tokens: int) -> bool: ...
    def pieces(self, n_tokens: int) -> list[int]: ...
    def begin_pass(self, copy: PreTrainedModel) -> OnePass | None: ...
    def get_seq_length(self, layer_idx: int = 0) -> int: ...
    def beyond_rollback(self, n_tokens: int) -> int: ...
    def take(self, one_pass: OnePass) -> None: ...
    def finish(self, more_to_come: bool = False) -> None: ...


class Call:
    """A call with a cache, from its beginning until its tokens are counted."""

    in_decoder = False
    of_model = False  # whether the tokens are counted when the whole model has ended
    as_tuple = False

    def __init__(
        self,
        module: nn.Module | None = None,
        has_images: bool = False,
        padding: Sequence[int] = (),
    ):
        self.module = module  # the model or the wrapper that was called last
        self.has_images = has_images
        self.padding = padding  # of each row
        self.pieces: list[Any] = []  # outputs of the decoder, of all pieces but the last

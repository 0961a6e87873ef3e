"""Decoding at the speed of the memory: a step of the model, captured in a CUDA graph once.

The step is the model's own transformers `forward` over one token. Its layers attend through a
registered attention function that reads a `RingCache` in place. All that differs from one step to
the next is four integers a stream, which the policy knows in advance: a plan of many steps lies on
the device and the graph takes one at every replay, so evictions, re-basing and new streams need
neither a capture nor a word from the host.
"""

import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from streamcache import ranks
from streamcache.caches.admission import pretrained, require_in_memory
from streamcache.caches.attention_override import (
    AttentionOverrideError,
    Scores,
    forward_unrotated,
    use_attention,
    with_override,
)
from streamcache.caches.ring import RingCache
from streamcache.caches.sharded import is_sharded
from streamcache.caches.shared_copy import shared_copy
from streamcache.decoding.kernels.attention import attend
from streamcache.decoding.kernels.fusion import fused
from streamcache.decoding.kernels.linear import KernelLinearMode
from streamcache.decoding.kernels.quantized import with_quantized_kernels
from streamcache.decoding.nll import require_causal_lm
from streamcache.decoding.parts import UnknownPartsError, with_plain_parts
from streamcache.decoding.plan import Plan
from streamcache.policy import Policy

_CHECKED = 4  # first steps that are compared with the model's own forward
_MAX_ERROR = 0.3  # of them; rounding to bfloat16 gives a few hundredths, unrelated logits 1.4


class EagerWarning(UserWarning):
    """A decoder cannot be captured here and is slower for it; the message says why."""


_building = RLock()  # what is compiled, and a capture, are of the whole process


@contextmanager
def _in_the_dtype_of_the_model(device: torch.device) -> Iterator[None]:
    """Without autocast around: a captured graph would not follow it."""
    with torch.autocast(device.type, enabled=False):
        yield


def _compiling_alone(model: PreTrainedModel) -> AbstractContextManager[None]:
    """In tensor parallel, without inductor's pool of processes: each of the processes that run the
    model would start one, and the fused graph leaves inductor a few kernels."""
    if not any(is_sharded(weight) for weight in model.parameters()):
        return nullcontext()
    from torch._inductor import config

    alone: AbstractContextManager[None] = config.patch(compile_threads=1)
    return alone


def _checked_batch(batch: int) -> int:
    if isinstance(batch, bool) or not hasattr(batch, "__index__") or operator.index(batch) < 1:
        raise ValueError(f"batch must be an integer >= 1, got {batch!r}")
    return operator.index(batch)


def _is_float(ids: Tensor) -> bool:
    return ids.is_floating_point() or ids.dtype == torch.bool


def _require_ids(ids: object, batch: int) -> None:
    """
    Raises:
        ValueError: these are no prompts for a batch.
    """
    if not isinstance(ids, Tensor) or ids.ndim != 2 or _is_float(ids):
        raise ValueError(f"a prompt must be token ids [B, T], got {_described(ids)}")
    if ids.shape[0] != batch:
        raise ValueError(f"this decoder has batch={batch} and was given {ids.shape[0]} prompts")


def _described(ids: object) -> str:
    if isinstance(ids, Tensor):
        return f"{str(ids.dtype).removeprefix('torch.')} {list(ids.shape)}"
    return type(ids).__name__


class CapturedDecoder:
    """A model that decodes streams under a policy, one token a call.

    Args:
        model: on the device to run on, or a wrapper around it (`torch.compile`, PEFT). It is not
            changed: a copy is run that shares its weights, is in evaluation mode, and reads int8
            and fp8 weights (`quantize`) by kernels.
        policy: what to evict and when.
        batch: streams decoded side by side.
        compile: fuse the operations of a step with torch.compile. 10 to 20 seconds, once per model,
            for half the time per token. Only on a GPU.

    Attributes:
        cache: what is held. Calling the model with it between steps, or resetting it, is fine.
        eager_because: why steps are not captured; None where they are.

    Raises:
        UnsupportedModelError: no bounded cache fits the model (see `caches.probe.probe_rope`).

    Warns:
        EagerWarning: on a GPU, if the model cannot be captured.
    """

    def __init__(self, model: nn.Module, policy: Policy, batch: int = 1, compile: bool = True):
        model, batch = pretrained(model), _checked_batch(batch)
        require_in_memory(model)
        require_causal_lm(model)
        self.model, self.batch = shared_copy(with_quantized_kernels(model)), batch
        device = model.device
        with _in_the_dtype_of_the_model(device):
            self._allocate(policy)
            # On one line: no exception can come between the block's end and the release.
            with _building: self._build(compile)  # fmt: skip  # noqa: E701
        if self._graph is not None:
            self._require_agreement()
        if device.type == "cuda" and self.eager_because:
            message = f"{model.config.model_type} decodes eagerly: {self.eager_because}"
            warnings.warn(message, EagerWarning, stacklevel=2)
        self.reset()

    def _allocate(self, policy: Policy) -> None:
        model, batch, device = self.model, self.batch, self.model.device
        self.cache = RingCache(self.model, policy)
        self.cache.allocate(batch, model.dtype)
        self._slots = self.cache.keys, self.cache.values, self.cache.rope_tables
        self._token = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self._plan = Plan(self.cache, batch, device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)
        self._copy: PreTrainedModel | None = None  # attends to the ring, if the model can
        self._forward: Callable[[Tensor], Tensor] = self._model
        self.eager_because: str | None = None

    def _build(self, compile: bool) -> None:
        device = self.model.device
        if len({layer.device for layer in self.cache.geometry.layers} | {device}) > 1:
            self.eager_because = (
                "its layers lie on several devices; over several cards steps are captured in "
                "tensor parallel (torchrun)"
            )
            return
        self._try_attention()
        if device.type != "cuda":
            self.eager_because = self.eager_because or f"CUDA graphs do not run on {device}"
        elif self._copy:
            self._try_capture(compile)

    def reset(self) -> None:
        """Forget the stream; what was captured stays."""
        self.cache.keys, self.cache.values, self.cache.rope_tables = self._slots
        self.cache.reset()

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor, **options: Any) -> Tensor:
        """Feed tokens [B, T] at once; logits [B, T, V], as `step` would give them one by one.

        Args:
            options: further arguments of the forward, such as `logits_to_keep`, or the
                `attention_mask` of prompts that are padded on the left.

        Raises:
            ValueError: a batch other than the decoder's.
            RuntimeError: the cache must be reset.
        """
        _require_ids(input_ids, self.batch)
        self._require_own_slots()
        return self._fed(input_ids, self.cache, options)

    @torch.inference_mode()
    def replace(self, row: int, input_ids: Tensor, **options: Any) -> Tensor:
        """End the stream of a row and begin another with a prompt [1, T]; its logits [1, T, V].

        The other rows stay where they are.

        Args:
            options: further arguments of the forward, such as `logits_to_keep`.

        Raises:
            IndexError: there is no such row.
            ValueError: another prompt.
            RuntimeError: the decoder must be reset.
        """
        _require_ids(input_ids, 1)
        row = range(self.batch)[row]
        self._require_own_slots()
        logits = self._fed(input_ids, self.cache.begin_row(row), options)
        self.cache.align_rows()
        return logits

    def _fed(self, input_ids: Tensor, cache: RingCache, options: dict[str, Any]) -> Tensor:
        with _in_the_dtype_of_the_model(input_ids.device):
            logits: Tensor = self.model(
                input_ids=input_ids, past_key_values=cache, **options
            ).logits
        return logits

    @torch.inference_mode()
    def step(self, token: Tensor) -> Tensor:
        """Decode a token [B] or [B, 1] per stream; the logits [B, V] after it.

        Where steps are captured, the next call overwrites the logits: copy what must stay. A step
        that raises has not been taken.

        Raises:
            ValueError: not one token id a stream.
            RuntimeError: the cache must be reset.
        """
        if not isinstance(token, Tensor) or token.numel() != self.batch or _is_float(token):
            raise ValueError(
                f"a step takes {self.batch} tokens, one per stream, got {_described(token)}"
            )
        self.cache.require_intact()
        self._require_own_slots()
        self._token.copy_(token.view(self.batch, 1))
        if self._copy is None:
            with _in_the_dtype_of_the_model(token.device):
                return self.model(input_ids=self._token, past_key_values=self.cache).logits[:, -1]
        with self._plan.advancing(), _in_the_dtype_of_the_model(token.device):
            if self._graph is None:
                self._logits = self._decode()
            else:
                self._graph.replay()
            return self._logits

    def _require_own_slots(self) -> None:
        """The graph reads and writes the slots that it was captured with."""
        cache, (keys, values, _) = self.cache, self._slots
        is_own = cache.keys is keys and cache.values is values
        if cache.parts and is_own:
            first = 0
            for part in cache.parts:
                is_own &= part.cache.keys[0].data_ptr() == keys[0][first:].data_ptr()
                first += part.n_rows
            is_own &= first == self.batch
        if not is_own:
            raise RuntimeError(
                "the cache of this decoder was given another batch, or rows of it were chosen: "
                "reset() the decoder"
            )

    def _decode(self) -> Tensor:
        self._plan.take()
        with use_attention(self._attend):
            return self._forward(self._token)

    def _model(self, token: Tensor) -> Tensor:
        """The model's forward with every token at position 0, where nothing is rotated."""
        assert self._copy is not None
        logits: Tensor = forward_unrotated(self._copy, token).logits
        return logits[:, -1]

    def _model_by_kernels(self, token: Tensor) -> Tensor:
        with KernelLinearMode():
            return self._model(token)

    def _attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Of one layer, over what the cache holds of it: see `kernels.attention.attend`."""
        cache = self.cache
        layer = cache.geometry.places[layer]
        held = cache.keys[layer], cache.values[layer]
        if key.shape[1] != held[0].shape[1]:
            raise AttentionOverrideError("a layer attends to other keys than it gives to a cache")
        turn, n_sink = cache.rope_tables[layer], cache.policy.n_sink
        return attend(query, key, value, *held, self._plan.step, turn, n_sink, scores)

    @torch.inference_mode()
    def _try_attention(self) -> None:
        """Have the layers attend to the ring; where they cannot, `eager_because` says why."""
        try:
            self._copy = with_plain_parts(with_override(self.model))
            self._plan.renew()
            self._decode()
        except Exception as error:
            self._copy = None
            is_known = isinstance(error, AttentionOverrideError | UnknownPartsError)
            reason = str(error) if is_known else f"a step failed ({type(error).__name__})"
            self.eager_because = f"its attention cannot be replaced: {reason}"

    @torch.inference_mode()
    def _try_capture(self, compile: bool) -> None:
        self._forward = self._model_by_kernels
        if compile:
            self._forward = torch.compile(self._model, backend=fused, fullgraph=True, dynamic=False)
        try:
            # All decoders of a process share what is compiled, by default up to eight shapes.
            with torch._dynamo.config.patch(recompile_limit=256), _compiling_alone(self.model):
                self._capture()
        except Exception as error:
            self._graph, self._forward = None, self._model
            self.eager_because = f"capturing failed: {error}"

    def _require_agreement(self) -> None:
        """Capture nothing where the kernels do not compute what the model does."""
        try:
            error = self._error_of_steps()
        except Exception as failure:
            self.eager_because = f"a captured step failed: {failure}"
        else:
            if error <= _MAX_ERROR:
                return
            self.eager_because = f"captured steps are off by {error:.2g} of the model's logits"
        self._graph = self._copy = None

    @torch.inference_mode()
    def _error_of_steps(self) -> float:
        """Some first steps against one forward of the model: the difference of the last logits,
        relative to their spread over the vocabulary; infinite where one is not a number."""
        vocabulary = int(self.model.config.get_text_config(decoder=True).vocab_size)
        n = min(_CHECKED, self.cache.policy.floor)  # before anything is evicted
        ids = torch.arange(self.batch * n, device=self.model.device) * 7919 % vocabulary
        ids = ids.view(self.batch, n)
        self.reset()
        with _in_the_dtype_of_the_model(ids.device):
            expected = self.model(input_ids=ids, use_cache=False).logits[:, -1].float()
        for token in ids.unbind(dim=1):
            logits = self.step(token).float()
        spread = (expected - expected.mean(dim=-1, keepdim=True)).norm(dim=-1)
        error = (logits - expected).norm(dim=-1) / spread
        return float(error.nan_to_num(nan=torch.inf).max())

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries allocate what they keep
                self._plan.renew()
                self._decode()
        torch.cuda.current_stream().wait_stream(stream)
        self._plan.renew()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._logits = self._decode()
        self._graph = graph
        ranks.release_at_end(self)

    def release(self) -> None:
        """Give back the CUDA graph; steps are eager from now on."""
        if self._graph is not None:
            self._graph.reset()
            self._graph = None
            self.eager_because = "its CUDA graph was released"

"""Decoding at the speed of the memory: a step of the model, captured in a CUDA graph once.

The step is the model's own transformers `forward` over one token. Its layers attend through a
registered attention function that reads a `RingCache` in place. All that differs from one step to
the next is four integers, which the policy knows in advance: a plan of many steps lies on the
device and the graph takes a row at every replay, so evictions, re-basing and new streams need
neither a capture nor a word from the host.
"""

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.attention_override import (
    Scores,
    forward_unrotated,
    use_attention,
    with_override,
)
from streamcache.caches.ring import RingCache, Step
from streamcache.caches.shared_copy import shared_copy
from streamcache.decoding.kernels.attention import attend
from streamcache.decoding.kernels.fusion import fused
from streamcache.decoding.kernels.int8 import with_int8_kernels
from streamcache.decoding.kernels.linear import KernelLinearMode
from streamcache.policy import Policy

_PLANNED = 1024  # steps on the device


class EagerWarning(UserWarning):
    """A decoder cannot be captured here and is slower for it; the message says why."""


class CapturedDecoder:
    """A model that decodes streams under a policy, one token a call.

    Args:
        model: where it shall run. What is decoded is a copy that shares its weights, is in
            evaluation mode and reads int8 weights (`quantize`) by kernels.
        policy: what to evict and when.
        batch: streams decoded side by side, all of the same length.
        compile: fuse the operations of a step with torch.compile. 10 to 20 seconds, once per model,
            for half the time per token. Only on a GPU.

    Attributes:
        cache: what is held.
        eager_because: why steps are not captured; None where they are.

    Raises:
        UnsupportedModelError: no bounded cache fits the model (see `caches.probe.probe_rope`).

    Warns:
        EagerWarning: on a GPU, if the model cannot be captured.
    """

    def __init__(
        self, model: PreTrainedModel, policy: Policy, batch: int = 1, compile: bool = True
    ):
        self.model, self.batch = shared_copy(with_int8_kernels(model)), batch
        device = model.device
        self.cache = RingCache(self.model, policy)
        self.cache.allocate(batch, model.dtype, device)
        self._token = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self._step = torch.zeros(len(Step._fields), dtype=torch.long, device=device)
        self._plan = torch.zeros(_PLANNED, len(Step._fields), dtype=torch.long, device=device)
        self._row = torch.zeros(1, dtype=torch.long, device=device)
        self._steps: Iterator[Step] = iter(())
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)
        self._copy: PreTrainedModel | None = None  # attends to the ring, if the model can
        self._forward: Callable[[Tensor], Tensor] = self._model
        self.eager_because: str | None = None
        self._try_attention()
        if device.type != "cuda":
            self.eager_because = self.eager_because or f"CUDA graphs do not run on {device}"
        elif self._copy:
            self._try_capture(compile)
        if device.type == "cuda" and self.eager_because:
            message = f"{model.config.model_type} decodes eagerly: {self.eager_because}"
            warnings.warn(message, EagerWarning, stacklevel=2)
        self.reset()

    def reset(self) -> None:
        """Forget the stream; what was captured stays."""
        self.cache.reset()
        self._steps = iter(())

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor) -> Tensor:
        """Feed tokens [B, T] through the model's ordinary forward; logits [B, T, V].

        Inputs longer than the window are fed in pieces, like with any bounded cache.

        Raises:
            ValueError: a batch other than the decoder's.
        """
        if input_ids.shape[0] != self.batch:
            raise ValueError(f"a decoder of batch {self.batch} is given {input_ids.shape[0]}")
        self._steps = iter(())
        return self.model(input_ids=input_ids, past_key_values=self.cache).logits

    @torch.inference_mode()
    def step(self, token: Tensor) -> Tensor:
        """Decode a token [B] or [B, 1] per stream; the logits [B, V] after it.

        Where steps are captured, the next call overwrites the logits: copy what must stay.

        Raises:
            ValueError: not one token a stream.
        """
        if token.numel() != self.batch:
            raise ValueError(f"a step takes {self.batch} tokens, one a stream, not {token.numel()}")
        self._token.copy_(token.view(self.batch, 1))
        if self._copy is None:
            return self.model(input_ids=self._token, past_key_values=self.cache).logits[:, -1]
        step = next(self._steps, None) or self._replan()
        if self._graph is None:
            self._logits = self._decode()
        else:
            self._graph.replay()
        self.cache.advance(step)
        return self._logits

    def _replan(self) -> Step:
        steps = self.cache.plan(_PLANNED)
        if not steps:
            self.cache.rebase()
            steps = self.cache.plan(_PLANNED)
        rows = torch.tensor(steps)
        if self._plan.is_cuda:
            rows = rows.pin_memory()
        self._plan[: len(steps)].copy_(rows, non_blocking=True)
        self._row.zero_()
        self._steps = iter(steps)
        return next(self._steps)

    def _decode(self) -> Tensor:
        torch.index_select(self._plan, 0, self._row, out=self._step[None])
        self._row.add_(1)
        with use_attention(self._attend):
            return self._forward(self._token)

    def _model(self, token: Tensor) -> Tensor:
        """The model's forward with every token at position 0, where nothing is turned."""
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
        held = cache.keys[layer], cache.values[layer]
        turn, n_sink = cache.rope_tables[layer], cache.policy.n_sink
        return attend(query, key, value, *held, self._step, turn, n_sink, scores)

    @torch.inference_mode()
    def _try_attention(self) -> None:
        """Have the layers attend to the ring; where they cannot, `eager_because` says why."""
        try:
            self._copy = with_override(self.model)
            self._replan()
            self._decode()
        except Exception as error:
            self._copy = None
            self.eager_because = f"its attention cannot be replaced: {error}"

    @torch.inference_mode()
    def _try_capture(self, compile: bool) -> None:
        self._forward = self._model_by_kernels
        if compile:
            self._forward = torch.compile(self._model, backend=fused, fullgraph=True, dynamic=False)
        try:
            # All decoders of a process share what is compiled, by default up to eight shapes.
            with torch._dynamo.config.patch(recompile_limit=256):
                self._capture()
        except Exception as error:
            self._graph, self._forward = None, self._model
            self.eager_because = f"capturing failed: {error}"

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries allocate what they keep
                self._replan()
                self._decode()
        torch.cuda.current_stream().wait_stream(stream)
        self._replan()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._decode()
        self._graph = graph

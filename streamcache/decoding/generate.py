"""transformers' `generate` at the speed of captured steps.

`generate` prepares inputs, logits processors and stopping criteria, and hands them to a loop of
ours (`custom_generate`). Sampling runs on the device behind the captured step. The next step is
launched before the host learns whether it is needed, so the device does not wait for the host.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GENERATION_MODES_MAPPING, GenerateDecoderOnlyOutput

from streamcache.caches.admission import pretrained
from streamcache.caches.signatures import CACHE_NAMES, cache_name
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.captured import CapturedDecoder, EagerWarning
from streamcache.policy import Policy

_MODES = {GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH}


class CapturedGeneration:
    """Greedy search and sampling for `generate`, by captured steps under a policy.

        captured = CapturedGeneration(model, EvictionPolicy(4, 2044))
        model.generate(**inputs, custom_generate=captured, do_sample=True, top_p=0.9)

    A call begins a new stream. To continue one, pass the `past_key_values` of the output before
    (`return_dict_in_generate`) and the whole text. That cache holds the last token as well if a
    criterion other than the length ended the generation.

    Args:
        model: the model whose `generate` is called, or a wrapper around it.
        policy: what to evict and when.
        compile: see `CapturedDecoder`, of which one is made for every size of batch.

    Attributes:
        eager_because: why the last call ran by transformers' own loop; None where it did not.

    Warns:
        EagerWarning: a call asks for what this loop does not do. It runs by transformers' loop,
            with a `StreamingCache` of the same policy if it is given no cache.
    """

    def __init__(self, model: nn.Module, policy: Policy, compile: bool = True):
        self.model, self.policy, self.compile = pretrained(model), policy, compile
        self.eager_because: str | None = None
        self._decoders: dict[int, CapturedDecoder] = {}

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        token_streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> GenerateDecoderOnlyOutput | Tensor:
        """The loop that `generate` calls.

        Args:
            input_ids: [B, T], the prompts; shorter ones are padded on the left.
            token_streamer: what `generate` calls `streamer`, and gives to no loop but its own.
            model_kwargs: further arguments that `generate` has prepared.

        Returns:
            The prompts and what follows, [B, n]; or transformers' output that holds them.
        """
        given: dict[str, Any] = {
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
        }
        self.eager_because = self._why_eager(model, input_ids, generation_config, model_kwargs)
        if self.eager_because:
            message = f"generate runs by transformers' own loop: {self.eager_because}"
            warnings.warn(message, EagerWarning, stacklevel=2)
            if not _is_given(_cache_in(model_kwargs)):
                names = [name for name in CACHE_NAMES if model_kwargs.pop(name, None) is not None]
                name = names[0] if names else cache_name(type(model).forward)
                model_kwargs[name] = StreamingCache(model, self.policy)
            mode = generation_config.get_generation_mode()
            loop = getattr(type(model), GENERATION_MODES_MAPPING[mode])
            given |= {"generation_config": generation_config, "streamer": token_streamer}
            output: GenerateDecoderOnlyOutput | Tensor = loop(
                model, input_ids, **given, **model_kwargs
            )
            return output

        decoder = self._decoder(input_ids.shape[0])
        new = input_ids
        if _cache_in(model_kwargs) is not decoder.cache:
            decoder.reset()
        elif _holds_the_whole_text(input_ids, generation_config, model_kwargs):
            new = input_ids[:, decoder.cache.get_seq_length() :]
        if token_streamer is not None:
            token_streamer.put(input_ids.cpu())
        options = {k: v for k, v in model_kwargs.items() if k == "logits_to_keep"}
        mask = model_kwargs.get("attention_mask")
        if mask is not None and not bool(mask.all()):
            options["attention_mask"] = mask
        logits = decoder.prefill(new, **options)[:, -1]
        return self._generate(
            decoder, input_ids, logits, **given, config=generation_config, streamer=token_streamer
        )

    def _generate(
        self,
        decoder: CapturedDecoder,
        ids: Tensor,
        logits: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        config: Any,
        streamer: BaseStreamer | None,
    ) -> GenerateDecoderOnlyOutput | Tensor:
        """As transformers' `_sample`, from the logits [B, V] after the prompts [B, T] on."""
        kept: dict[str, Any] = {}
        if config.return_dict_in_generate:
            kept = {name: () for name in ("scores", "logits") if getattr(config, f"output_{name}")}
        pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        mailbox = _Mailbox(len(ids), ids.device)
        while True:
            logits = logits.to(torch.float32, copy=True)
            scores = logits_processor(ids, logits)
            for name, values in (("scores", scores), ("logits", logits)):
                if name in kept:
                    kept[name] += (values,)
            if config.do_sample:
                token = scores.softmax(dim=-1).multinomial(1)[:, 0]
            else:
                token = scores.argmax(dim=-1)
            if pads:
                token = torch.where(unfinished, token, config._pad_token_tensor)
            ids = torch.cat([ids, token[:, None]], dim=1)
            unfinished = unfinished & ~stopping_criteria(ids, kept.get("scores"))
            mailbox.send(token, unfinished)
            at_end = ids.shape[1] >= (stopping_criteria.max_length or ids.shape[1] + 1)
            if not at_end:
                logits = decoder.step(token)
            token, goes_on = mailbox.receive()
            if streamer is not None:
                streamer.put(token)
            if at_end or not goes_on:
                break
        if streamer is not None:
            streamer.end()
        if not config.return_dict_in_generate:
            return ids
        output: Any = GenerateDecoderOnlyOutput
        fields = output.__dataclass_fields__
        kept |= {name: decoder.cache for name in CACHE_NAMES if name in fields}
        return output(sequences=ids, **kept)

    def _decoder(self, batch: int) -> CapturedDecoder:
        if batch not in self._decoders:
            self._decoders[batch] = CapturedDecoder(self.model, self.policy, batch, self.compile)
        return self._decoders[batch]

    def _why_eager(
        self, model: PreTrainedModel, input_ids: Tensor, config: Any, model_kwargs: dict[str, Any]
    ) -> str | None:
        mode = config.get_generation_mode()
        cache = _cache_in(model_kwargs)
        own = [decoder.cache for decoder in self._decoders.values()]
        reasons = {
            "it is the generation of another model": model is not self.model,
            f"its mode is {mode.value}": mode not in _MODES,
            "it is given embeddings": model_kwargs.get("inputs_embeds") is not None,
            "it is to use no cache": not config.use_cache,
            "captured steps give no attentions and no hidden states": config.return_dict_in_generate
            and (config.output_attentions or config.output_hidden_states),
            "it is given another cache": _is_given(cache)
            and not any(cache is c and c.batch_size == len(input_ids) for c in own),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)


def _cache_in(model_kwargs: dict[str, Any]) -> Any:
    given = (model_kwargs.get(name) for name in CACHE_NAMES)
    return next((cache for cache in given if cache is not None), None)


def _is_given(cache: Any) -> bool:
    """Whether a cache is the user's, and not an empty one that `generate` has made."""
    made = type(cache).__module__.startswith("transformers.") and cache.get_seq_length() == 0
    return cache is not None and (getattr(cache, "_is_user_defined", False) or not made)


def _holds_the_whole_text(ids: Tensor, config: Any, model_kwargs: dict[str, Any]) -> bool:
    """Whether the input includes the tokens that the cache has seen: the mask's length shows it."""
    mask = model_kwargs.get("attention_mask")
    length = getattr(config, "_mask_length", ids.shape[1]) if mask is None else mask.shape[1]
    return bool(length == ids.shape[1])


class _Mailbox:
    """What the host learns of a step while the device is at the next one."""

    def __init__(self, batch: int, device: torch.device):
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        pin = self._event is not None
        self._token = torch.zeros(batch, dtype=torch.long, pin_memory=pin)
        self._unfinished = torch.zeros(batch, dtype=torch.bool, pin_memory=pin)

    def send(self, token: Tensor, unfinished: Tensor) -> None:
        """Copy a token [B] and which rows continue [B], without waiting."""
        self._token.copy_(token, non_blocking=True)
        self._unfinished.copy_(unfinished, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def receive(self) -> tuple[Tensor, bool]:
        """The token and whether any row continues, as soon as they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._token.clone(), bool(self._unfinished.any())

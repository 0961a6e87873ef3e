"""What a model writes in a bounded cache when nobody stops it: how much it repeats, and its PPL.

Both fall apart in their own way: a text in a loop has a low PPL and few different words, and one of
random words a high PPL and many.
"""

import hashlib
import math
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import torch
from torch import Tensor

from streamcache.decoding.nll import Advance
from streamcache.decoding.text import Sampling, end_tokens
from streamcache.inputs.corpora import TokenizedText, digest_of
from streamcache.inputs.models import LoadedModel
from streamcache.measure.checked import SCHEMA_VERSION, RecordError, read_struct, write_struct
from streamcache.measure.configurations import Configuration, identity
from streamcache.measure.measurement import Fields, WorkloadRecord
from streamcache.measure.progress import Progress, no_progress
from streamcache.measure.run import What, run
from streamcache.measure.steps import cache_of, fed_model
from streamcache.measure.store import Store, file_stem
from streamcache.measure.workload import Workload

_BLOCK = 256  # tokens in which different n-grams are counted
_REPEATED = 16  # tokens: so many do not come again by chance
N_PARTS = 4  # of a text


class Written(msgspec.Struct, frozen=True, tag="streamcache-written", tag_field="schema"):
    """A text that a configuration wrote behind the beginning of another one.

    Attributes:
        prompt: what stood before it, and the model.
        tokens: of the prompt and of what was written.
    """

    prompt: WorkloadRecord
    configuration: Fields
    temperature: str
    seed: int
    tokens: list[int]
    version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Part:
    """A part of what one configuration wrote.

    Attributes:
        begin, end: its tokens, counted from the end of the prompt.
        ppl: with all of the text before it in sight, as far as the trained context reaches.
        distinct: different n-grams, n = 1, 2 and 4, over all of 256 tokens: a share.
        repeated: share of the tokens that end 16 which stood in the text before.
    """

    configuration: str
    begin: int
    end: int
    ppl: float
    distinct: tuple[float, float, float]
    repeated: float


def measure_fluency(
    loaded: LoadedModel,
    prompt: TokenizedText,
    configurations: list[Configuration],
    judge: Configuration,
    n_tokens: int,
    sampling: Sampling,
    store: Store,
    progress: Progress = no_progress,
) -> list[Part]:
    """Have every configuration write on from a prompt, and measure what it wrote, in four parts.

    Args:
        judge: whose PPL is taken of the texts: a cache as large as the trained context.
        sampling: how tokens are chosen; it has a seed.
    """
    found = []
    for configuration in configurations:
        tokens = _text_of(loaded, prompt, configuration, n_tokens, sampling, store, progress)
        ids = torch.tensor(tokens)
        text = TokenizedText(f"written by {configuration.name}", ids, digest_of(ids), "written")
        what = What(tpot_tokens=0)
        workload = Workload(loaded, text, window=None)
        nll = run(judge, workload, what, store, progress=progress).nll
        assert nll is not None
        first = len(prompt.input_ids)
        edges = [n_tokens * i // N_PARTS for i in range(N_PARTS + 1)]
        again = repeated(tokens)
        for begin, end in pairwise(edges):
            here = slice(first + begin, first + end)
            ppl = math.exp(nll[first + begin - 1 : first + end - 1].mean())
            shares = tuple(distinct(tokens[here], n) for n in (1, 2, 4))
            share = sum(again[here]) / (end - begin)
            found.append(Part(configuration.name, begin, end, ppl, shares, share))  # type: ignore[arg-type]
    return found


def _text_of(
    loaded: LoadedModel,
    prompt: TokenizedText,
    configuration: Configuration,
    n_tokens: int,
    sampling: Sampling,
    store: Store,
    progress: Progress,
) -> list[int]:
    """What was written before, or is written now: prompt and continuation."""
    asked = Written(
        Workload(loaded, prompt).record,
        identity(configuration),
        f"{sampling.temperature:g} top-p {sampling.top_p:g}",
        sampling.seed or 0,
        [],
    )
    path = store.folder / "fluency" / f"{file_stem(configuration.name)}-{_digest(asked)}.json"
    try:
        kept = read_struct(Written, path, "text")
    except RecordError:
        kept = None
    n_all = len(prompt.input_ids) + n_tokens
    if kept is not None and len(kept.tokens) >= n_all:
        return kept.tokens[:n_all]
    with progress(f"{configuration.name} writes", n_tokens) as advance:
        tokens = write_on(loaded, configuration, prompt.input_ids, n_tokens, sampling, advance)
    write_struct(path, msgspec.structs.replace(asked, tokens=tokens), store.folder)
    return tokens


@torch.inference_mode()
def write_on(
    loaded: LoadedModel,
    configuration: Configuration,
    prompt: Tensor,
    n_tokens: int,
    sampling: Sampling,
    advance: Advance | None = None,
) -> list[int]:
    """A prompt [P] and `n_tokens` that the model writes after it; it may not end the text."""
    cache = cache_of(configuration, loaded.model)
    model = fed_model(cache, loaded.model)
    ends = sorted(end_tokens(loaded.model, loaded.tokenizer))
    choose = sampling.chooser(loaded.model.device)
    token = prompt[None].to(loaded.model.device)
    written = []
    for _ in range(n_tokens):
        given = {"input_ids": token, "past_key_values": cache, "logits_to_keep": 1}
        logits = model(**given).logits[:, -1].clone()
        logits[:, ends] = -torch.inf
        token = choose(logits)
        written.append(token)
        if advance:
            advance(1)
    return [*prompt.tolist(), *torch.cat(written, dim=1)[0].tolist()]


def distinct(tokens: list[int], n: int) -> float:
    """Different n-grams over all, within blocks of 256 tokens: the mean over the blocks.

    As Li et al. 2016 (arXiv 1510.03055) count them; in blocks, as their share falls with length.
    """
    blocks = [tokens[i : i + _BLOCK] for i in range(0, len(tokens), _BLOCK)]
    grams = [[tuple(b[i : i + n]) for i in range(len(b) - n + 1)] for b in blocks if len(b) >= n]
    return sum(len(set(each)) / len(each) for each in grams) / len(grams) if grams else 1.0


def repeated(tokens: list[int]) -> list[bool]:
    """Of each token whether the 16 that it ends have stood in the text before."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for end in range(1, len(tokens) + 1):
        gram = tuple(tokens[max(0, end - _REPEATED) : end])
        found.append(gram in seen)
        seen.add(gram)
    return found


def _digest(asked: Written) -> str:
    source = msgspec.structs.replace(asked.prompt, text_source="")
    data = msgspec.json.encode(msgspec.structs.replace(asked, prompt=source), order="sorted")
    return hashlib.sha256(data).hexdigest()[:8]

"""Train the reference model: a small GPT-NeoX, shaped like Pythia, which shows attention sinks.

The input is one .xz file of UTF-8 text, documents separated by NUL. To reproduce (stage 1 needs
only a CPU and two minutes, stage 2 one GPU; it takes eight minutes on an H200):

    python train.py tokenizer books.txt.xz
    python train.py train books.txt.xz --max-seconds 450

Both write next to this file unless --out names a folder. How many steps fit into --max-seconds is
measured at the start and logged; --steps N fixes it (the limit holds still). Smoke test on a CPU:

    python train.py tokenizer books.txt.xz --max-mb 5 --out tiny
    python train.py train books.txt.xz --max-mb 5 --out tiny --device cpu --batch 2 --steps 4

Two choices make the model what it is:

  * Every training window is the marker <|endoftext|>, then text from an arbitrary offset. So the
    marker is the one token that every query always sees, and heads park unneeded attention there:
    an attention sink. Without it there is none, and evicting the first tokens costs nothing.
  * Most books of the corpus have one line per paragraph, while plain-text editions break lines near
    column 70. Such books are used twice: as they are, and folded to a width drawn per book.
"""

import argparse
import hashlib
import json
import lzma
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, GPTNeoXConfig, GPTNeoXForCausalLM

MARKER, MARKER_ID = "<|endoftext|>", 0
VOCAB, CONTEXT = 4096, 2048
PEAK_LR, BETAS, WEIGHT_DECAY, CLIP, WARMUP_STEPS = 3e-3, (0.9, 0.95), 0.1, 1.0, 300
LOG_EVERY = 50


def fold(text: str, width: int) -> str:
    """Break lines at spaces so that none is longer than width."""
    lines = []
    for line in text.split("\n"):
        line = line.rstrip()
        while len(line) > width and (cut := line.rfind(" ", 1, width + 1)) > 0:
            lines.append(line[:cut])
            line = line[cut + 1 :]
        lines.append(line)
    return "\n".join(lines)


def documents(args: argparse.Namespace) -> list[str]:
    """The corpus in a seeded order; documents with one line per paragraph also appear folded."""
    rng = random.Random(args.seed)
    with lzma.open(args.books) as file:
        text = file.read()[: int(args.max_mb * 1e6)].decode(errors="ignore")
    docs = []
    for doc in text.replace("\ufeff", "").split("\0"):
        docs.append(doc.strip())
        if sum(len(line) for line in doc.split("\n") if len(line) > 100) > len(doc) / 2:
            docs.append(fold(doc.strip(), rng.randint(66, 76)))
    rng.shuffle(docs)
    return docs


def train_tokenizer(args: argparse.Namespace) -> None:
    """Byte-level BPE: any UTF-8 text round-trips, nothing is added or normalised."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[MARKER],  # the first special token gets id 0
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(documents(args), trainer)
    assert tokenizer.get_vocab_size() == VOCAB and tokenizer.token_to_id(MARKER) == MARKER_ID
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": MARKER,
        "eos_token": MARKER,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (args.out / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )


def encode(tokenizer: Tokenizer, docs: list[str]) -> np.ndarray:
    """One stream of ids, the marker before every document. A batch is spread over all cores."""
    parts = []
    for i in range(0, len(docs), 64):  # bounded, because an Encoding is far larger than its ids
        for encoding in tokenizer.encode_batch_fast(docs[i : i + 64]):
            parts.append(np.array([MARKER_ID, *encoding.ids], np.int32))
    return np.concatenate(parts)


def batches(ids: torch.Tensor, size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Windows, cut at new offsets and in a new order every epoch. Inputs: the marker, then text."""
    generator = torch.Generator().manual_seed(seed)
    span = torch.arange(CONTEXT, device=ids.device)
    while True:
        shift = int(torch.randint(CONTEXT, (), generator=generator))
        order = torch.randperm((len(ids) - shift) // CONTEXT, generator=generator)
        for chosen in order.to(ids.device).split(size)[:-1]:
            targets = ids[(shift + chosen * CONTEXT)[:, None] + span].long()
            yield F.pad(targets[:, :-1], (1, 0), value=MARKER_ID), targets


def build_model() -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=1024,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        bos_token_id=MARKER_ID,
        eos_token_id=MARKER_ID,
    )  # attention: SDPA, which is the default
    return GPTNeoXForCausalLM(config)


def head_loss(head: torch.nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(hidden).float().flatten(0, 1), targets.flatten())


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 0."""
    progress = max(0, step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return PEAK_LR * min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * progress)) / 2


def train(args: argparse.Namespace) -> None:
    began = time.perf_counter()
    torch.manual_seed(args.seed)
    vocabulary = args.out / "tokenizer.json"
    ids = torch.from_numpy(encode(Tokenizer.from_file(str(vocabulary)), documents(args)))
    ids = ids.to(args.device)
    model = build_model().to(args.device).train()
    params = list(model.parameters())
    loss_fn = head_loss
    if args.compile:
        # Layer by layer: traced whole, transformers makes a mask, which rules out flash attention.
        for layer in model.gpt_neox.layers:
            layer.compile()
        loss_fn = torch.compile(head_loss)
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},  # biases and norms
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=BETAS, fused=True)

    log_file = (args.out / "train_log.jsonl").open("w", encoding="utf-8")

    def log(**entry: object) -> None:
        for file in (log_file, None):
            print(json.dumps(entry), file=file, flush=True)

    log(
        corpus_sha256=hashlib.sha256(args.books.read_bytes()).hexdigest(),
        tokenizer_sha256=hashlib.sha256(vocabulary.read_bytes()).hexdigest(),
        corpus_tokens=len(ids),
        parameters=sum(p.numel() for p in params),
        **{k: getattr(args, k) for k in ("seed", "batch", "steps", "max_seconds", "compile")},
        **dict(context=CONTEXT, peak_lr=PEAK_LR, betas=BETAS, weight_decay=WEIGHT_DECAY),
        **dict(clip=CLIP, warmup_steps=WARMUP_STEPS, precision="bf16 autocast"),
        gpu=torch.cuda.get_device_name() if args.device == "cuda" else None,
        torch=torch.__version__,
        transformers=transformers.__version__,
        encode_seconds=round(time.perf_counter() - began, 1),
    )
    steps = args.steps or 10**6  # until it is known how many fit; all of it warm-up
    loss_sum, since, last = torch.zeros((), device=args.device), time.perf_counter(), 0
    for step, (inputs, targets) in enumerate(batches(ids, args.batch, args.seed), 1):
        if step > steps or time.perf_counter() - began > args.max_seconds:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, steps)
        with torch.autocast(args.device, torch.bfloat16):
            hidden = model.gpt_neox(inputs, use_cache=False).last_hidden_state
            loss = loss_fn(model.lm_head, hidden, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        loss_sum += loss.detach()
        if step % LOG_EVERY and step != steps:
            continue
        mean_loss = loss_sum.item() / (step - last)  # waits for the device, so the clock is right
        now = time.perf_counter()
        log(
            step=step,
            tokens=step * args.batch * CONTEXT,
            loss=round(mean_loss, 4),
            lr=round(group["lr"], 7),
            tokens_per_s=round((step - last) * args.batch * CONTEXT / (now - since)),
        )
        if step == 3 * LOG_EVERY and not args.steps:  # compilation and clocks have settled by now
            left = args.max_seconds - (now - began)
            steps = step + int(0.98 * left * (step - last) / (now - since))
            log(steps=steps)
        loss_sum, since, last = torch.zeros_like(loss_sum), now, step

    model.generation_config = GenerationConfig(bos_token_id=MARKER_ID, eos_token_id=MARKER_ID)
    model.half().save_pretrained(args.out)
    print(f"saved after {time.perf_counter() - began:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reference model.")
    stages = parser.add_subparsers(required=True)
    for name, run in (("tokenizer", train_tokenizer), ("train", train)):
        stage = stages.add_parser(name)
        stage.set_defaults(run=run)
        stage.add_argument("books", type=Path, help="the corpus, .xz")
        stage.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
        stage.add_argument("--seed", type=int, default=1)
        stage.add_argument("--max-mb", type=float, default=1e6, help="read no more of the corpus")
    stage.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    stage.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    stage.add_argument("--batch", type=int, default=48, help="windows per step")
    stage.add_argument("--steps", type=int, default=0, help="0: as many as fit into --max-seconds")
    stage.add_argument("--max-seconds", type=float, default=450, help="limit for this stage")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

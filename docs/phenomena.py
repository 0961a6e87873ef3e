"""The README's picture: what sinks and eviction do to the PPL of the reference model on a book.

    python docs/phenomena.py ~/corpora docs/phenomena.svg

needs matplotlib and a folder with pg19/4047.txt; about a minute on a GPU, several on a CPU.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.progress import track

from streamcache import EvictionPolicy
from streamcache.decoding.onepass import streaming_nll
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import load_model

N_TOKENS = 8193
BIN = 256  # tokens a point: PPL over a bin, nothing else is smoothed
CURVES = {
    "no eviction (cache grows)": EvictionPolicy(4, N_TOKENS),
    "window only: S=0, W=2048": EvictionPolicy(0, 2048),
    "sinks and window: S=4, W=2044": EvictionPolicy(4, 2044),
    "sinks and a small window: S=4, W=252": EvictionPolicy(4, 252),
}


def main(data_dir: Path, target: Path) -> None:
    loaded = load_model("reference", device="cuda" if torch.cuda.is_available() else "cpu")
    text = load_tokens("pg19", tokenizer=loaded.tokenizer, max_tokens=N_TOKENS, data_dir=data_dir)
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for (label, policy), colour in zip(track(CURVES.items()), ("C3", "C1", "C0", "C2")):
        nll = streaming_nll(loaded.model, text.input_ids, policy).cpu()
        ppl = nll.view(-1, BIN).double().mean(dim=1).exp()
        middle = torch.arange(len(ppl)) * BIN + BIN / 2
        axes.plot(middle, ppl, label=label, color=colour)
    axes.axvline(2048, color="grey", linestyle=":", linewidth=1)
    axes.text(2090, axes.get_ylim()[1] / 2, "trained context", color="grey", fontsize=9)
    axes.set(
        yscale="log",
        xlim=(0, N_TOKENS),
        xlabel="position in the book (tokens)",
        ylabel=f"PPL per {BIN} tokens",
        title="Reference model reading PG19 book 4047 as one stream",
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

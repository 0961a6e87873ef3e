"""Sample the packaged stream: text by the reference model itself, for gates and first tries.

    python -m streamcache.reference_model.sample

writes stream.safetensors: 24,000 token ids (uint16), the document marker first, drawn once at
temperature 1 with a StreamingCache of S = 4, W = 2044. It is made input, not a result: real text is
for results.
"""

from pathlib import Path

import safetensors.torch
import torch
from rich.progress import track

from streamcache.caches.streaming import StreamingCache
from streamcache.inputs.models import load_model
from streamcache.measure.configurations import BASELINE

SEED = 20_000
N_TOKENS = 24_000


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)  # the sums, and so the sample, depend on the number of threads
    loaded = load_model("reference")
    cache = StreamingCache(loaded.model, BASELINE)
    generator = torch.Generator().manual_seed(SEED)
    ids = [loaded.model.config.bos_token_id]
    for _ in track(range(N_TOKENS - 1)):
        logits = loaded.model(input_ids=torch.tensor([[ids[-1]]]), past_key_values=cache).logits
        probabilities = logits[0, -1].double().softmax(-1)
        ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    stream = torch.tensor(ids, dtype=torch.uint16)
    about = {"seed": str(SEED), "sampled_from": loaded.revision, "torch": torch.__version__}
    path = Path(__file__).parent / "stream.safetensors"
    safetensors.torch.save_file({"input_ids": stream}, path, about)


if __name__ == "__main__":
    main()

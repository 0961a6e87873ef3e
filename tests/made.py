"""Records made up for tests of what reads them: no model is run."""

from pathlib import Path

import msgspec
import numpy as np
import torch

from streamcache import records
from streamcache.configurations import Configuration
from streamcache.evaluate import as_recorded
from streamcache.paper import configurations
from streamcache.records import Prunes, Quality, Record, Speed, Subject

SUBJECT = Subject("reference", "r", "float32", "pg19/4047", "folder", "d", 3000)


def record(
    configuration: Configuration,
    ppl: float = 20.0,
    increase: float | None = 0.01,
    tpot_ms: float = 5.0,
    subject: Subject = SUBJECT,
    timed: str = "reference",
    device: str | None = None,
) -> Record:
    environment = records.environment(torch.device("cpu"))
    if device:
        environment = msgspec.structs.replace(environment, device=device)
    quality = Quality("one-pass", ppl, ppl, subject.n_tokens - 1, 952, ppl, increase, 64)
    speed = Speed(timed, tpot_ms, tpot_ms, 2 * tpot_ms, None, 64, 100 / tpot_ms, 100.0)
    return Record(
        configuration=configuration.name,
        mode=configuration.mode or "recompute",
        policy=as_recorded(configuration.policy),
        subject=subject,
        environment=environment,
        quality=quality,
        speed=speed,
        prunes=Prunes(*configuration.policy.count(subject.n_tokens - 1)),
        peak_memory_bytes=1,
    )


def write(folder: Path, made: Record, nll: float | None = None) -> None:
    """The three files of a measurement, its NLLs around a mean, times with a slow one in 32."""
    stem, random = folder / made.configuration, np.random.default_rng(0)
    n = made.subject.n_tokens - 1
    if nll is not None:
        noise = random.normal(0, 0.1, n)
        records.write_array(stem.with_name(f"{stem.name}.nll.npy"), nll + noise - noise.mean())
    times = 5 + 0.01 * random.random(64)
    times[::32] = 9
    records.write_array(stem.with_name(f"{stem.name}.tpot.npy"), times)
    records.write(stem.with_name(f"{stem.name}.json"), made)


def paper(folder: Path) -> None:
    """A finished `streamcache paper` on two texts."""
    wikitext = msgspec.structs.replace(SUBJECT, text="wikitext/wikitext-103-v1")
    for subject, name in ((SUBJECT, "pg19"), (wikitext, "wikitext")):
        for configuration in configurations(2048, on_gpu=False):
            made = record(configuration, subject=subject)
            write(folder / "paper" / name, made, 3.0)

"""Records made up for tests of what reads them: no model is run."""

import json
from pathlib import Path

import msgspec
import numpy as np
import torch

from streamcache.files import write_bytes
from streamcache.measure import profiling, records
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.measure.diagnose import Diagnosis, Difference, spike
from streamcache.measure.evaluate import as_recorded
from streamcache.measure.paper import configurations
from streamcache.measure.profiling import Evicted, Kernel, Operator, Part, Profile
from streamcache.measure.records import Prunes, Quality, Record, Speed, Subject
from streamcache.policy import EvictionPolicy, count_evictions

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
        prunes=Prunes(*count_evictions(configuration.policy, subject.n_tokens - 1)),
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


def diagnosis(folder: Path) -> None:
    """What `streamcache diagnose` leaves of a policy that spikes after its prunes."""
    policy, other = EvictionPolicy(4, 125, compress_every=512), EvictionPolicy(4, 636)
    series = np.zeros(2000)
    boundaries = np.arange(200, 2000, 300)
    for boundary in boundaries:
        series[boundary : boundary + 10] = 0.5
    found = spike(series, boundaries, span=20, shuffles=99, seed=0)
    made = Diagnosis(
        configuration="S=4 W=125 R=512",
        policy=as_recorded(policy),
        against="S=4 W=636 R=1",
        against_policy=as_recorded(other),
        subject=SUBJECT,
        environment=records.environment(torch.device("cpu")),
        prunes=Prunes(*count_evictions(policy, 2999)),
        first_position=641,
        difference=Difference(0.0276, 0.0198, 0.0353, 2000),
        spike=found,
        control=found,
        raw=found,
    )
    records.write(folder / "diagnose" / "one.json", made)


def profile(folder: Path, on_gpu: bool) -> None:
    """What `streamcache profile` leaves."""
    kernels = (Kernel("attention_kernel<128>", 32.0, 0.5, 0.4), Kernel("gemv", 96.0, 0.75, 0.6))
    made = Profile(
        configuration="ours-standard",
        mode="ours",
        policy=as_recorded(EvictionPolicy(4, 2044)),
        subject=SUBJECT,
        environment=records.environment(torch.device("cpu")),
        measured=profiling.Measured(
            n_tokens=16,
            evicted=Evicted(16, 16),
            step_ms=6.25,
            profiled_ms=9.0,
            outside_ms=2.0,
            operators_per_token=900.0,
            launches_per_token=128.0 * on_gpu,
            kernels_per_token=128.0 * on_gpu,
            device_ms=1.25 * on_gpu,
            device_busy=0.2 * on_gpu,
            eviction=Part(1.8, 0.2, 0.25 * on_gpu, 0.2 * on_gpu),
            forward=Part(7.2, 0.8, 1.0 * on_gpu, 0.8 * on_gpu),
            operators=(Operator("aten::addmm", 24.0, 2.0, 0.222, 0.0),),
            kernels=kernels if on_gpu else (),
        ),
    )
    records.write(folder / "profile" / f"{'gpu' if on_gpu else 'cpu'}.json", made)


LADDER = {
    "copy, device to device": {"ms": 0.5, "tb_s": 4.2, "share": 1.0},
    "recompute baseline": {"ms": 25.0},
    "ours, eager, R=1": {"ms": 16.6},
    "captured, compiled": {"ms": 1.9, "over": 1.35, "roofline_ms": 1.406},
    "not compiled, batch 8": {"ms": 4.6, "over": 1.8, "roofline_ms": 2.5},
}


def paper(folder: Path, *texts: str) -> None:
    """A finished `streamcache paper`."""
    for i, text in enumerate(texts):
        subject = msgspec.structs.replace(SUBJECT, text=text)
        for configuration in configurations(2048, on_gpu=False):
            write(folder / "paper" / str(i), record(configuration, subject=subject), 3.0)


def methods(folder: Path) -> None:
    """The methods alone, on one text."""
    for name in ("baseline", "mit", "ours-standard", "best"):
        write(folder / "compare", record(NAMED[name]), 3.0)


def everything(folder: Path) -> None:
    """One of each kind of file that `streamcache summarize` reads, two texts."""
    paper(folder, "pg19/4047", "wikitext/wikitext-103-v1")
    diagnosis(folder)
    profile(folder, on_gpu=False)
    profile(folder, on_gpu=True)
    write_bytes(folder / "ladder.json", json.dumps(LADDER).encode())

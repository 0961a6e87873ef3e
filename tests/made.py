"""Measurements made up for tests of what reads them: no model is run."""

from pathlib import Path

import msgspec
import numpy as np
import torch

from streamcache.measure.checked import write_struct
from streamcache.measure.configurations import NAMED, Configuration, identity
from streamcache.measure.diagnose import Diagnosis, Difference, eviction_effect
from streamcache.measure.ladder import Ladder, Row
from streamcache.measure.measurement import (
    Measurement,
    Quality,
    Record,
    Sizes,
    Speed,
    WorkloadRecord,
    environment,
)
from streamcache.measure.measurement import write as write_measurement
from streamcache.measure.paper import configurations
from streamcache.measure.profile import (
    EvictedEntries,
    Kernel,
    Operator,
    Part,
    Profile,
    StepProfile,
)
from streamcache.policy import EvictionPolicy, count_evictions

WORKLOAD = WorkloadRecord(
    "reference", "r", "float32", "reference", "pg19/4047", "folder", "d", 3000
)


def record(
    configuration: Configuration,
    ppl: float = 20.0,
    increase: float | None = 0.01,
    tpot_ms: float = 5.0,
    workload: WorkloadRecord = WORKLOAD,
    timed: str = "reference",
    device: str | None = None,
    date: str = "2026-01-31T12:00:00+00:00",
    scatter: float = 0.0,
) -> Record:
    """A record whose baseline takes 100 ms; its pairs scatter by so much, relative."""
    where = environment(torch.device("cpu"))
    if device:
        where = msgspec.structs.replace(where, device=device)
    policy, n = configuration.policy, workload.n_tokens - 1
    quality = Quality("one-pass", ppl, ppl, n, 952, ppl, increase, 64, None, 64)
    speedup = 100 / tpot_ms
    speed = Speed(
        tpot_mean_ms=tpot_ms,
        tpot_p50_ms=tpot_ms,
        tpot_p99_ms=2 * tpot_ms,
        tpot_device_ms=None,
        n_tokens=64,
        baseline_ms=100.0,
        speedup=speedup,
        speedup_error=scatter * speedup,
        pairs=[(tpot_ms / 1e3, 0.1)] * 8,
    )
    return Record(
        label=configuration.name,
        configuration=identity(configuration),
        sizes=Sizes.of(policy, configuration.overlap, configuration.refresh),
        workload=msgspec.structs.replace(workload, timed=timed),
        environment=where,
        quality=quality,
        speed=speed,
        evictions=count_evictions(policy, n),
        peak_memory_bytes=1,
        date=date,
    )


def write(folder: Path, made: Record, nll: float | None = 3.0) -> Path:
    """The three files of a measurement, its NLLs around a mean, times with a slow one in 32."""
    random = np.random.default_rng(0)
    values = None
    if nll is not None and made.quality is not None:
        noise = random.normal(0, 0.1, made.workload.n_tokens - 1)
        values = nll + noise - noise.mean()
    times = 5 + 0.01 * random.random(64)
    times[::32] = 9
    path = folder / f"{made.label.replace(' ', '-')}.json"
    write_measurement(path, Measurement(made, values, times if made.speed else None))
    return path


def diagnosis(folder: Path) -> None:
    """What `streamcache diagnose` leaves of a policy with an effect after its evictions."""
    policy = EvictionPolicy(4, 125, compress_every=512)
    series = np.zeros(2000)
    boundaries = np.arange(200, 2000, 300)
    for boundary in boundaries:
        series[boundary : boundary + 10] = 0.5
    found = eviction_effect(series, boundaries, span=20, shuffles=99, seed=0)
    made = Diagnosis(
        configuration="S=4 W=125 R=512",
        against="S=4 W=636",
        workload=WORKLOAD,
        environment=environment(torch.device("cpu")),
        evictions=count_evictions(policy, 2999),
        first_position=641,
        difference=Difference(0.0276, 0.0198, 0.0353, 2000),
        effect=found,
        control=found,
        raw=found,
    )
    write_struct(folder / "diagnose" / "one.json", made)


def profile(folder: Path, on_gpu: bool) -> None:
    """What `streamcache profile` leaves."""
    kernels = (Kernel("attention_kernel<128>", 32.0, 0.5, 0.4), Kernel("gemv", 96.0, 0.75, 0.6))
    made = Profile(
        label="ours-standard",
        configuration=identity(NAMED["ours-standard"]),
        workload=WORKLOAD,
        environment=environment(torch.device("cpu")),
        step=StepProfile(
            n_tokens=16,
            evicted=EvictedEntries(16, 16),
            step_ms=6.25,
            profiled_ms=9.0,
            python_ms=2.0,
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
    write_struct(folder / "profile" / f"{'gpu' if on_gpu else 'cpu'}.json", made)


def ladder(folder: Path) -> None:
    """What `streamcache ladder` leaves."""
    rows = (
        Row("captured", 1.9, 1.406, seconds=14.0),
        Row("captured, batch 8", 4.6, 2.5, batch=8),
        Row("rerotating, eager", 16.6, 1.406),
        Row("recompute baseline", 25.0),
        Row("streaming NLL of 16384 tokens", 976.0, seconds=5.3),
    )
    made = Ladder("reference", "float16", environment(torch.device("cpu")), 4.2, rows)
    write_struct(folder / "ladder" / "one.json", made)


def paper(folder: Path, *texts: str) -> None:
    """A finished `streamcache paper`."""
    for i, text in enumerate(texts):
        workload = msgspec.structs.replace(WORKLOAD, text=text)
        for configuration in configurations(2048, on_gpu=False):
            write(folder / str(i), record(configuration, workload=workload))


def methods(folder: Path) -> None:
    """The methods alone, on one text."""
    for name in ("baseline", "mit", "ours-standard", "best"):
        write(folder, record(NAMED[name]))


def everything(folder: Path) -> None:
    """One of each kind of file that `streamcache summarize` reads, two texts."""
    paper(folder, "pg19/4047", "wikitext/wikitext-103-v1")
    diagnosis(folder)
    profile(folder, on_gpu=False)
    profile(folder, on_gpu=True)
    ladder(folder)

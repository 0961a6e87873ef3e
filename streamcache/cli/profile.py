"""`streamcache profile`: where the time of a decoding step goes."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from streamcache.caches.kinds import MODES
from streamcache.cli.common import bars, load
from streamcache.cli.console import err, out, show
from streamcache.decoding.loop import SteadyDecode
from streamcache.measure.checked import write_struct
from streamcache.measure.configurations import Configuration, identity, label_of
from streamcache.measure.measurement import environment
from streamcache.measure.profile import Profile, profile_steps
from streamcache.measure.steps import steady_step
from streamcache.measure.store import file_stem
from streamcache.policy import EvictionPolicy


def profile(
    policy: EvictionPolicy,
    overlap: int,  # it is in the policy's window already
    streaming_mode: str,
    tokens: int,
    rows: int,
    trace: Path | None,
    output_dir: Path,
    **where: Any,
) -> None:
    """Count and time a step's operators and kernels, in evictions and in the forward."""
    workload = load(**where)
    loaded, (cache, engine) = workload.loaded, MODES[streaming_mode]
    configuration = label_of(Configuration(policy, cache, engine, weights=loaded.quantization))
    stream = steady_step(configuration, loaded.model, workload.ids(loaded, policy.floor))
    assert isinstance(stream, SteadyDecode)
    with bars() as progress, progress("profile", 2 * tokens) as advance:
        step = profile_steps(stream, tokens, trace, advance)
    found = Profile(
        label=configuration.name,
        configuration=identity(configuration),
        workload=workload.record,
        environment=environment(loaded.model.device, loaded.n_devices),
        step=step,
    )
    name = f"{found.workload.model} {found.workload.dtype} {configuration.name}"
    path = output_dir / "profile" / f"{file_stem(name)}.json"
    write_struct(path, found, output_dir)
    err.print(f"record: {path}")
    if trace is not None:
        err.print(f"trace: {trace}")
    out.print(_summary(found), soft_wrap=True)
    for table in _tables(found, rows):
        show(table)


def _summary(found: Profile) -> str:
    taken = found.step
    lines = [
        f"{found.workload.model} {found.workload.dtype}, {found.environment.device}: "
        f"{found.label}, {taken.n_tokens} tokens with {taken.evicted.evictions} evictions of "
        f"{taken.evicted.entries} entries",
        f"{taken.step_ms:.3f} ms per token; {taken.profiled_ms:.3f} with the profiler, as are "
        f"all times below, {taken.python_ms:.3f} of it Python outside of operators",
        f"per token: {taken.operators_per_token:.0f} operators",
    ]
    if taken.kernels:
        lines[-1] += (
            f", {taken.launches_per_token:.0f} launches, {taken.kernels_per_token:.0f} kernels of "
            f"{taken.device_ms:.3f} ms, the device busy for {100 * taken.device_busy:.0f} %"
        )
    return "\n".join(lines)


def _tables(found: Profile, n_rows: int) -> list[Table]:
    taken = found.step
    device = ["device ms", "of kernels"] if taken.kernels else []
    parts = _table("part", "host ms", "of step", *device)
    for name, part in (("eviction", taken.eviction), ("forward", taken.forward)):
        cells = [_ms(part.host_ms), _share(part.host_share)]
        parts.add_row(
            name, *cells, *[_ms(part.device_ms), _share(part.device_share)][: len(device)]
        )
    operators = _table("operator", "calls", "host ms", "of step", *device[:1])
    for row in taken.operators[:n_rows]:
        cells = [f"{row.calls:.1f}", _ms(row.host_ms), _share(row.host_share)]
        operators.add_row(row.name, *cells, *[_ms(row.device_ms)][: len(device)])
    kernels = _table("kernel", "runs", "device ms", "of kernels")
    for kernel in taken.kernels[:n_rows]:
        share = _share(kernel.device_share)
        kernels.add_row(kernel.name, f"{kernel.runs:.1f}", _ms(kernel.device_ms), share)
    return [parts, operators, kernels] if taken.kernels else [parts, operators]


def _table(name: str, *headers: str) -> Table:
    view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    view.add_column(name, max_width=44, no_wrap=True)
    for header in headers:
        view.add_column(header, justify="right", no_wrap=True)
    return view


def _ms(value: float) -> str:
    return f"{value:.4f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"

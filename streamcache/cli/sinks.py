"""`streamcache sinks`: whether a model needs its first tokens, and how many."""

from pathlib import Path
from typing import Any

import click

from streamcache.cli.common import bars, load
from streamcache.cli.console import err, show
from streamcache.measure.checked import write_struct
from streamcache.measure.sinks import measure_sinks
from streamcache.measure.store import Store, folder_name
from streamcache.report import terminal
from streamcache.report.sinks import sinks_tables


def sinks(cap_total: int, output_dir: Path, **where: Any) -> None:
    """Measure the attention on the first tokens, and PPL by the number of sinks."""
    workload = load(**where)
    if reason := workload.ppl_unavailable_reason:
        raise click.UsageError(f"no sinks to find: {reason}")
    n_tokens = len(workload.text.input_ids)
    if n_tokens <= cap_total + 1:
        raise click.UsageError(
            f"{n_tokens} tokens do not fill {cap_total} entries: give a smaller --cap-total, or "
            "more --max-eval-tokens"
        )
    with bars() as progress:
        found = measure_sinks(workload, cap_total, Store(output_dir), progress)
    path = output_dir / "sinks" / f"{folder_name(workload.record)}-{cap_total}.json"
    write_struct(path, found, output_dir)
    err.print(f"record: {path}")
    if found.why_not:
        err.print(f"attention by layer is not shown: {found.why_not}")
    for table in sinks_tables(found):
        show(terminal.of_table(table))

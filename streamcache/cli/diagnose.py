"""`streamcache diagnose`: what the prunes of a policy do to the tokens right after them."""

import math
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich import box
from rich.table import Table

from streamcache.cli.common import load, no_quality, progress, subject_options
from streamcache.cli.console import err, show
from streamcache.cli.policies import file_name, policy_options
from streamcache.decoding.nll import require_finite
from streamcache.extras import require
from streamcache.files import write_bytes
from streamcache.inputs.corpora import TokenStream
from streamcache.inputs.models import LoadedModel
from streamcache.measure import evaluate, records
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.measure.diagnose import (
    Diagnosis,
    Floats,
    Held,
    Spike,
    difference,
    held,
    never_fuller,
    one_at_a_time,
    span_of,
    spike,
    tokens_csv,
)
from streamcache.policy import EvictionPolicy, count_evictions


@click.command()
@subject_options
@policy_options
@click.option("--against", help="a named configuration; default: the same room, one entry a token")
@click.option("--span", type=click.IntRange(1), help="tokens before and after; default: up to 64")
@click.option("--shuffles", type=click.IntRange(19), default=1999, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="of the shuffles")
@click.option("--plot/--no-plot", default=True, help="with matplotlib, an SVG beside the CSV")
def diagnose(
    policy: EvictionPolicy,
    against: str | None,
    span: int | None,
    shuffles: int,
    seed: int,
    plot: bool,
    output_dir: Path,
    **where: Any,
) -> None:
    """Compare the NLL after prunes with that before, and with shuffled boundaries."""
    if plot:
        require("plots", "the plot", "--no-plot")
    other, other_name = _other(policy, against)
    loaded, text = load(**where)
    if reason := no_quality(loaded, text):
        raise click.UsageError(f"nothing to diagnose: {reason}")
    name = policy.settings
    nll, nll_other, nll_control = (
        _nll(loaded, text, Configuration(title, each))
        for title, each in (
            (name, policy),
            (other_name, other),
            ("control", never_fuller(policy)),
        )
    )
    first = max(policy.capacity, other.capacity)
    states = list(held(policy, len(nll)))
    prunes = np.flatnonzero([state.evicted for state in states])
    prunes = prunes[prunes >= first] - first

    def around_prunes(series: Floats) -> Spike:
        return spike(series[first:], prunes, span or span_of(prunes), shuffles, seed)

    made = Diagnosis(
        configuration=name,
        policy=evaluate.as_recorded(policy),
        against=other_name,
        against_policy=evaluate.as_recorded(other),
        subject=evaluate.subject(loaded, text),
        environment=records.environment(loaded.model.device),
        prunes=records.Prunes(*count_evictions(policy, len(nll))),
        first_position=first + 1,
        difference=difference((nll - nll_other)[first:]),
        spike=around_prunes(nll - nll_other),
        control=around_prunes(nll_control - nll_other),
        raw=around_prunes(nll),
    )
    path = output_dir / "diagnose" / made.subject.file_name / file_name(f"{name} vs {other_name}")
    _write(path, made, text, loaded, states, nll, nll_other, plot)
    show(_table(made))


def _other(policy: EvictionPolicy, against: str | None) -> tuple[EvictionPolicy, str]:
    if against is None:
        other = one_at_a_time(policy)
        return other, other.settings
    if against not in NAMED:
        raise click.UsageError(f"no configuration {against!r}; there are {', '.join(NAMED)}")
    return NAMED[against].policy, against


def _nll(loaded: LoadedModel, text: TokenStream, configuration: Configuration) -> Floats:
    with progress(configuration.name, len(text.input_ids) - 1) as advance:
        nll = evaluate.stream_nll(loaded, text, configuration, "one-pass", advance)
    return require_finite(nll).double().numpy()


def _write(
    path: Path,
    made: Diagnosis,
    text: TokenStream,
    loaded: LoadedModel,
    states: list[Held],
    nll: Floats,
    nll_other: Floats,
    plot: bool,
) -> None:
    ids = text.input_ids.tolist()
    words = [""] * len(ids)
    if loaded.tokenizer is not None:
        words = [repr(word)[1:-1] for word in loaded.tokenizer.batch_decode([[i] for i in ids])]
    files = {".csv": tokens_csv(ids, words, states, nll, nll_other)}
    if plot:
        from streamcache.report.diagnose_plot import svg

        files[".svg"] = svg(made, states, nll, nll_other)
    for suffix, data in files.items():
        write_bytes(Path(f"{path}{suffix}"), data)
    records.write(Path(f"{path}.json"), made)
    err.print(f"{path}.json{', '.join(['', *files])}")


def _table(made: Diagnosis) -> Table:
    gap = made.difference
    view = Table(
        title=f"{made.subject.model}, {made.subject.text}: {made.configuration} against "
        f"{made.against}",
        caption=(
            f"{gap.mean:+.4f} nats per token in all ({gap.low:+.4f} … {gap.high:+.4f}, 95 %), "
            f"PPL {100 * math.expm1(gap.mean):+.2f} %, {gap.n_tokens} tokens from position "
            f"{made.first_position}\n"
            f"around {made.spike.n_boundaries} prunes, {made.spike.span} tokens on either side; "
            f"p: share of {made.spike.shuffles} shuffled boundaries that reach as much"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    view.add_column("nats per token", no_wrap=True)
    for header in ("excess", "p", "shuffled 95 %", "peak", "p", "area", "width"):
        view.add_column(header, justify="right", no_wrap=True)
    rows = {"after prunes": made.spike, "control": made.control, "NLL as it is": made.raw}
    for name, found in rows.items():
        low, high = found.shuffled_excess
        view.add_row(
            name,
            f"{found.excess:+.4f}",
            f"{found.excess_p:.4f}",
            f"{low:+.4f} … {high:+.4f}",
            f"{found.peak:+.4f}",
            f"{found.peak_p:.4f}",
            f"{found.area:+.3f}",
            f"{found.width:.1f}",
        )
    return view

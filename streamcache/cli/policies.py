"""The options that say what to evict and when: a command with them is given a policy."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from streamcache.measure.configurations import NAMED, Mode
from streamcache.policy import EvictionPolicy


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Calls the command with `policy` in place of the options; a refresh budget is set aside."""

    @wraps(command)
    def with_policy(
        n_sink: int,
        window_size: int | None,
        compress_every: int,
        cache_slack: int | None,
        max_drop: int,
        cap_total: int | None,
        overlap: int,
        **others: Any,
    ) -> Any:
        if window_size is not None and cap_total is not None:
            raise click.UsageError("give --window-size or --cap-total, not both")
        if overlap and cap_total is None:
            raise click.UsageError("--overlap is set aside of a budget; give --cap-total with it")
        refresh = others.get("refresh_budget", 0)
        if refresh and cap_total is None:
            raise click.UsageError(
                "--refresh-budget is set aside of a budget; give --cap-total with it"
            )
        rest = (cache_slack, max_drop or None, compress_every)
        if cap_total is not None:
            policy = EvictionPolicy.from_budget(cap_total, n_sink, *rest, overlap, refresh)
        else:
            policy = EvictionPolicy(n_sink, 2044 if window_size is None else window_size, *rest)
        return command(policy=policy, **others)

    options = [
        click.option("--n-sink", type=int, default=4, show_default=True),
        click.option("--window-size", type=int, help="default: 2044, or what --cap-total leaves"),
        click.option("--compress-every", type=int, default=1, show_default=True),
        click.option("--cache-slack", type=int, help="default: compress-every - 1"),
        click.option("--max-drop", type=click.IntRange(0), default=0, help="0: no limit"),
        click.option("--cap-total", type=int, help="total budget the window is derived from"),
        click.option(
            "--overlap", type=int, default=0, show_default=True, help="set aside of --cap-total"
        ),
    ]
    for option in reversed(options):
        with_policy = option(with_policy)
    return with_policy


def name_of(policy: EvictionPolicy, mode: Mode) -> str:
    """The name of a named configuration, or the settings."""
    for configuration in NAMED.values():
        if (configuration.policy, configuration.mode) == (policy, mode):
            return configuration.name
    return f"{mode} {policy.settings}"


def file_name(title: str) -> str:
    """Of a title that names a policy; without a suffix."""
    for sign, word in (("=", ""), ("σ", "slack"), ("δ", "drop")):
        title = title.replace(sign, word)
    return re.sub(r"[^\w.-]+", "-", title)

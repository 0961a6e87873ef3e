"""The options that say what to evict and when: a command with them is given a policy."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from click.core import ParameterSource

from streamcache.policy import EvictionPolicy

ENTRIES = click.IntRange(max=1 << 24)  # larger ones are typing errors; the least is the policy's


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Call the command with `policy` in place of the options; `overlap` stays with it.

    A refresh budget is taken off the window.
    """

    @wraps(command)
    def with_policy(
        n_sink: int,
        window_size: int | None,
        compress_every: int,
        cache_slack: int | None,
        max_drop: int,
        cap_total: int | None,
        overlap: int,
        rule: str | None,
        **others: Any,
    ) -> Any:
        if rule is not None:
            _refuse_settings_beside_a_rule()
            from streamcache.measure.imported import imported_rule  # not before: it imports torch

            own = imported_rule(rule, n_sink, 2048 if cap_total is None else cap_total)
            return command(policy=own, overlap=0, **others)
        if window_size is not None and cap_total is not None:
            raise click.UsageError("give --window-size or --cap-total, not both")
        if overlap and cap_total is None:
            raise click.UsageError("--overlap is a part of a budget; give --cap-total with it")
        refresh = others.get("refresh_budget", 0)
        if refresh and cap_total is None:
            raise click.UsageError(
                "--refresh-budget is a part of a budget; give --cap-total with it"
            )
        settings = (cache_slack, max_drop or None, compress_every)
        if cap_total is not None:
            policy = EvictionPolicy.from_budget(cap_total, n_sink, *settings, overlap, refresh)
        else:
            policy = EvictionPolicy(n_sink, 2044 if window_size is None else window_size, *settings)
        return command(policy=policy, overlap=overlap, **others)

    options = [
        click.option("--n-sink", type=ENTRIES, default=4, show_default=True),
        click.option(
            "--window-size", type=ENTRIES, help="default: 2044, or what --cap-total leaves"
        ),
        click.option("--compress-every", type=ENTRIES, default=1, show_default=True),
        click.option("--cache-slack", type=ENTRIES, help="default: compress-every - 1"),
        click.option("--max-drop", type=click.IntRange(0), default=0, help="0: no limit"),
        click.option("--cap-total", type=ENTRIES, help="total budget the window is derived from"),
        click.option(
            "--overlap",
            type=ENTRIES,
            default=0,
            show_default=True,
            help="entries of --cap-total left empty",
        ),
        click.option(
            *("--policy", "rule"),
            help="a rule of your own, module:Class or file.py:Class, made with n_sink and total",
        ),
    ]
    for option in reversed(options):
        with_policy = option(with_policy)
    return with_policy


def _refuse_settings_beside_a_rule() -> None:
    """
    Raises:
        click.UsageError: an option is given that the rule would not see.
    """
    context = click.get_current_context()
    for name in ("window_size", "compress_every", "cache_slack", "max_drop", "overlap"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = name.replace("_", "-")
            raise click.UsageError(f"--policy has its own settings: leave out --{option}")
    if context.params.get("refresh_budget"):
        raise click.UsageError("--policy has its own settings: leave out --refresh-budget")

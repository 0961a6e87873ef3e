"""What a reader needs beside the verdicts: what was not measured, what differs, what to type."""

import shlex
from collections.abc import Sequence

import pytest

from streamcache.gate.environment import differences
from streamcache.gate.goldens import Golden
from streamcache.gate.plugin.options import golden_path
from streamcache.gate.samples import Process
from streamcache.gate.verdicts import Verdict


def hints(
    config: pytest.Config, golden: Golden, process: Process, verdicts: Sequence[Verdict]
) -> list[str]:
    lines, measured = [], {sample.name for sample in process.samples}
    if left := golden.entries.keys() - measured:
        lines.append(f"NOT MEASURED: {len(left)} of {len(golden.entries)} goldens")
    if unlike := {v.name for v in verdicts if v.check == "host"}:
        lines.append(f"NOT JUDGED: times of {len(unlike)} benchmarks, of another host's golden")
    if process.samples:
        context = process.environment.context
        if differs := differences(context, golden.provenance.context):
            lines.append(f"differs from when the golden was recorded: {differs}")
    red = list(dict.fromkeys(v.name for v in verdicts if v.status.fails_build))
    option = shlex.quote(f"--golden={config.getoption('golden')}")
    if there := [shlex.quote(name) for name in red if name in measured]:
        lines.append(f"to reproduce: pytest {there[0]} {option}")
        lines.append(
            f"to accept, from a clean tree: pytest {' '.join(there)} {option} "
            '--golden-update --golden-reason "..."'
        )
    slower = [v.name for v in verdicts if v.status.fails_build and v.tau is not None]
    if slower and golden.provenance.commit:
        commit = golden.provenance.commit[:9]
        lines.append(f"to see why: pytest {shlex.quote(slower[0])} --golden-against {commit}")
    if any(v.check == "anchor" and v.status.fails_build for v in verdicts):
        lines.append("to accept a loss beyond the anchor's budget, add --golden-reset-anchors")
    if len(there) < len(red):
        lines.append(f"to retire a benchmark: delete its entry in {golden_path(config)}")
    return lines

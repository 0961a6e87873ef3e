"""Every command in the docs runs: `streamcache` ones here with small settings, the others by CI,
whose commands are those of tox.ini."""

import ast
import io
import os
import re
import runpy
import shlex
import sys
from configparser import ConfigParser
from functools import partial
from pathlib import Path

import pytest
import torch
from click import Context

import streamcache
from streamcache.cli import commands, paper
from streamcache.measure.configurations import NAMED
from streamcache.measure.measurement import Measurement
from streamcache.measure.paper import configurations
from streamcache.version import VERSION
from tests import made
from tests.cases import ADMITTED, REFUSED
from tests.shell import Run

pytestmark = pytest.mark.usefixtures("two_layers")

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = ["--max-eval-tokens", "260", "--runs", "1"]
GUIDE_FLAGS = (
    *("--n-sink", "--window-size", "--compress-every", "--cache-slack", "--max-drop"),
    *("--cap-total", "--overlap", "--streaming-mode mit", "--streaming-mode ours"),
    *("--mode baseline", "--mode streaming", "--ppl-method", "--quantization", "--runs"),
    *("--refresh-budget", "--refresh-policy tail", "--refresh-policy middle"),
    *("--baseline-file", "--output-file", "--trace", "diagnose", "profile"),
)


def blocks(language: str) -> list[str]:
    return [
        block
        for page in DOCS
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    ]


TABLED = [
    command
    for page in DOCS
    for line in page.read_text().splitlines()
    if line.startswith("|")
    for command in re.findall(r"`(streamcache [^`]+)`", line)
]
COMMANDS = [
    part.strip()
    for block in blocks("bash")
    for line in block.splitlines()
    for part in line.split("&&")
    if part.strip() and not part.strip().startswith("torchrun ")  # run by test_two_processes.py
]


@pytest.mark.parametrize(
    "command",
    dict.fromkeys([c for c in COMMANDS if re.search(r"(^|\s)streamcache ", c)] + TABLED),
)
def test_streamcache_commands(
    command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)
    while "=" in words[0]:
        words.pop(0)
    assert words[0] == "streamcache"
    for name in ("pg19/4047.txt", "wikitext-103/wiki.test.tokens"):
        text = tmp_path / "corpora" / name
        text.parent.mkdir(parents=True)
        text.write_text("A little text of our own, word by word. " * 90)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("STREAMCACHE_DATA", str(tmp_path / "corpora"))
    for page in DOCS:  # what a command may write into
        (tmp_path / page.parent.name).mkdir(exist_ok=True)
        (tmp_path / page.parent.name / page.name).write_text(page.read_text())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Good evening.\n")))
    monkeypatch.setattr(paper, "configurations", lambda *given: configurations(*given)[:2])
    ran = run(*words[1:], *small(words, tmp_path))
    assert ran.status == 0, ran.err
    printed = {
        "summarize": "index.html",
        "diagnose": "after evictions",
        "profile": "eviction",
        "ladder": "roofline",
        "copying": "PPL again",
        "sinks": "choose S",
        "generate": "It was a dark and stormy night; ",
        "chat": "\n",
        "stream": "PPL by book",
        "recall": "right answers",
        "leaderboard": "recall at",
        "fluency": "distinct-2",
    }
    assert printed.get(words[1], "to make" if "--dry-run" in words else "TPOT") in ran.out


def small(words: list[str], folder: Path) -> list[str]:
    """Settings that make a command quick: of an option given twice the last one counts."""
    if words[1] in ("generate", "chat"):
        return ["--max-new-tokens", "8", "--model-name", "reference"]
    if words[1] == "summarize":
        made.methods(folder / "runs")
        return []
    if words[1] == "diagnose":
        n = "2400" if "--against" in words else "900"  # those with names have 2,048 entries
        size = ["--window-size", "60"] if "--window-size" in words else ["--cap-total", "100"]
        return ["--dataset-name", "stream", "--max-eval-tokens", n, "--compress-every", "32", *size]
    if words[1] == "profile":
        size = ["--cap-total", "100"] if "--cap-total" in words else ["--window-size", "60"]
        return ["--max-eval-tokens", "260", "--tokens", "4", *size]
    if words[1] == "copying":
        return ["--cap-total", "48", "--distances", "32,64", "--passages", "2"]
    if words[1] == "recall":
        more = ["--configs", "fast"] if "--configs" in words else []
        more += ["--distances", "64,96", "--questions", "1"]
        return [*more, "--model-name", "reference", "--cap-total", "96"]
    if words[1] == "leaderboard":
        few = ["--max-eval-tokens", "200", "--cap-total", "64", "--questions", "1"]
        return ["--model-name", "reference", "--configs", "fast,gaps", *few]
    if words[1] == "fluency":
        return ["--model-name", "reference", "--cap-total", "64", "--tokens", "80"]
    if words[1] == "sinks":
        return ["--model-name", "reference", "--max-eval-tokens", "160", "--cap-total", "64"]
    if words[1] == "stream":
        return ["--model-name", "reference", "--max-eval-tokens", "160", "--cap-total", "64"]
    if words[1] == "ladder":
        return ["--model-name", "random:4x128", "--window-size", "60", "--tpot-tokens", "8"]
    more = [*SMALL] if words[1] == "baseline" else [*SMALL, "--tpot-tokens", "8"]
    sizes = {"--cap-total": "256", "--window-size": "120", "--overlap": "8"}
    for option, value in sizes.items():
        more += [option, value] if option in words else []
    if "--model-name" in words:  # the hub is out of reach
        more += ["--model-name", "reference"]
    if words[1] == "compare":
        if "--configs" in words:
            assert set(words[words.index("--configs") + 1].split(",")) <= NAMED.keys()
        more += ["--configs", "baseline,fast"]
    if words[1] == "paper":
        more += ["--cap-total", "256", "--positions", "2"]
    return more


def test_every_command_of_the_guide_has_its_counterpart() -> None:
    """Every command and every flag that the guide has is in the table."""
    table = " ".join(TABLED)
    assert {command.split()[1] for command in TABLED} == set(
        commands.list_commands(Context(commands))
    )
    assert all(flag in table for flag in GUIDE_FLAGS)


def test_commands_of_the_docs_are_those_of_tox() -> None:
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini")
    run_by_tox = " ".join(
        " ".join(tox[section].get("commands", "").replace("\\", "").split()) + ";"
        for section in tox.sections()
    ).replace("{envname}", "h100")
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "tox":
            for name in words[2].split(","):
                assert any(name in re.split(r"[:{},]", section) for section in tox.sections())
        elif words[0] in ("ruff", "mypy", "lint-imports", "pytest"):
            assert command.split(" --benchmark-json")[0] in run_by_tox
        else:
            assert words[0] in ("pip", "python") or "streamcache" in words[:2], command


def test_ci_runs_the_readmes_test_command_and_every_environment_of_tox() -> None:
    readme = (ROOT / "README.md").read_text()
    found = re.findall(r"^pip install.*pytest -n 2 tests/unit$", readme, re.M)
    assert len(found) == 1
    ci = (ROOT / ".ci" / "run").read_text()
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini")
    run = {
        name
        for names in re.findall(r"tox run -e (\S+?);?(?:\s|$)", ci)
        for name in names.split(",")
    }
    # unit is the README's command, and .ci/compare judges times on any CPU, as cpu does on its own
    assert run == set(tox["tox"]["env_list"].split(", ")) - {"unit", "cpu"}
    assert "--golden=cpu" in ci and "\n.ci/compare\n" in ci


def test_files_named_by_tox_exist() -> None:
    for path in re.findall(r"tests/\w+/\w+\.py", (ROOT / "tox.ini").read_text()):
        assert (ROOT / path).exists(), path


def test_workflows_run_ci_and_tox() -> None:
    workflows = ROOT / ".github" / "workflows"
    cpu, gpu = ((workflows / f"{name}.yml").read_text() for name in ("cpu", "gpu"))
    assert "run: .ci/run" in cpu and os.access(ROOT / ".ci" / "run", os.X_OK)
    (devices,) = re.findall(r"options: \[(.*)\]", gpu)
    (environments,) = re.findall(r"^\[testenv:\{(.*)\}\]$", (ROOT / "tox.ini").read_text(), re.M)
    assert set(devices.split(", ")) == set(environments.split(","))
    assert 'tox -e "$DEVICE"' in gpu


@pytest.mark.parametrize("path", [*(ROOT / ".github/workflows").iterdir()], ids=lambda p: p.stem)
def test_workflows_pin_their_actions_and_keep_no_credentials(path: Path) -> None:
    """And only the one that runs no code of a pull request may write."""
    text = path.read_text()
    actions = re.findall(r"uses: (\S+)", text)
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in actions)
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert "index-url" not in text
    if path.stem == "comment":
        assert not actions
    else:
        assert actions and "permissions:\n  contents: read\n" in text


def test_a_release_is_of_its_tag_and_shows_absolute_links(tmp_path: Path) -> None:
    release = runpy.run_path(str(ROOT / ".ci" / "prepare_release.py"))
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    with pytest.raises(SystemExit, match="the tag must be v"):
        release["main"]("https://forge.example/o/r", "v9", tmp_path)
    fragment = tmp_path / "changes" / "a-thing.added.md"
    fragment.parent.mkdir()
    fragment.write_text("A thing.\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n")
    with pytest.raises(SystemExit, match=r"a-thing.added.md is not in the changelog"):
        release["main"]("https://forge.example/o/r", f"v{VERSION}", tmp_path)
    fragment.unlink()
    with pytest.raises(SystemExit, match=f"has no section {VERSION}"):
        release["main"]("https://forge.example/o/r", f"v{VERSION}", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {VERSION} (2026-01-01)\n")
    release["main"]("https://forge.example/o/r", f"v{VERSION}", tmp_path)
    readme = (tmp_path / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert links and all(link.startswith(("https://", "#")) for link in links)
    assert f"(https://forge.example/o/r/blob/v{VERSION}/docs/glossary.md)" in readme
    assert f"(https://forge.example/o/r/raw/v{VERSION}/docs/phenomena.svg)" in readme
    project = (tmp_path / "pyproject.toml").read_text()
    assert '[project.urls]\nHomepage = "https://forge.example/o/r"\n' in project


def test_the_release_workflow_has_no_token_and_builds_what_tox_tests() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert "id-token: write" in text and "password" not in text and "secrets." not in text
    assert (
        "prepare_release.py" in text
        and "STREAMCACHE_DIST: dist" in text
        and "tox run -e package\n" in text
    )


def test_every_change_has_a_kind_that_the_changelog_knows() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11 and later
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    assert settings["start_string"] in (ROOT / "CHANGELOG.md").read_text()
    kinds = {kind["directory"] for kind in settings["type"]}
    fragments = [p for p in (ROOT / settings["directory"]).iterdir() if p.name != "README.md"]
    for path in fragments:
        name, kind, suffix = path.name.split(".")
        assert name and kind in kinds and suffix == "md" and path.read_text().strip(), path.name


def test_the_version_is_the_same_everywhere() -> None:
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


# The example of docs/gate.md is a file of tests: test_golden_plugin.py runs it.
OF_TESTS = ("def test_", "@pytest")


@pytest.mark.parametrize(
    "block", [b for b in blocks("python") if not any(word in b for word in OF_TESTS)]
)
def test_python_examples(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference = ROOT / "streamcache" / "reference_model"
    for auto in (AutoModelForCausalLM, AutoTokenizer):
        real = auto.from_pretrained
        packaged = partial(
            lambda real, name, **given: (
                real(name, **given)
                if isinstance(name, Path)
                else real(reference, dtype=torch.float32)
            ),
            real,
        )
        monkeypatch.setattr(auto, "from_pretrained", packaged)
    made.methods(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block, names)
    if "story = " in block:
        story = names["story"]
        assert isinstance(story, torch.Tensor) and story.shape[1] >= 64
    else:
        assert isinstance(names["measured"], Measurement)


def test_paths_and_links_exist() -> None:
    for page in DOCS:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_readme_lists_every_folder_of_the_package() -> None:
    listed = re.findall(
        r"^((?:streamcache|tests|examples|docs)/\S*)  ", (ROOT / "README.md").read_text(), re.M
    )
    for path in listed:
        assert (ROOT / path).exists(), path
    folders = {file.parent for file in (ROOT / "streamcache").rglob("*.py")}
    folders -= {ROOT / "streamcache"}
    assert {f"{folder.relative_to(ROOT).as_posix()}/" for folder in folders} <= set(listed)


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    due = [ROOT / "README.md"]
    while due:
        page = due.pop()
        for link in re.findall(r"\]\((?!https?:)([^)#]+\.md)", page.read_text()):
            target = (page.parent / link).resolve()
            if target not in reached:
                reached.add(target)
                due.append(target)
    assert set(DOCS) <= reached


def test_the_api_page_has_every_public_name_once() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^::: streamcache\.(\w+)$", page, re.M)) == streamcache.__all__
    for name in streamcache.__all__:
        assert getattr(streamcache, name).__doc__, name


def test_tox_builds_the_site_with_the_packages_of_the_extra() -> None:
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini")
    needed = tox["testenv:docs"]["deps"].split()
    (extra,) = re.findall(r"^docs = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert needed == re.findall(r'"([^"]+)"', extra)


def test_the_families_of_the_docs_are_those_of_the_tests() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    working, refused = page.split("These are refused")[0], page.split("These are refused")[1]
    table = "".join(re.findall(r"^\|.*\|.*`\w+`.*\|$", refused.split("## ")[0], re.M))
    (listed,) = re.findall(r"^(`\w+`,.*?)\.$", working, re.M | re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == sorted(ADMITTED)
    assert set(re.findall(r"`(\w+)`", table)) == set(REFUSED)


def test_the_messages_of_the_docs_are_those_of_the_code() -> None:
    """Quoted in bold in the page on troubleshooting; N, M, 1 and … stand for what varies."""
    said = " ".join(
        node.value
        for file in (ROOT / "streamcache").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    page = (ROOT / "docs" / "troubleshooting.md").read_text().replace("\\", "")
    quotes = [
        " ".join(quote.split()) for quote in re.findall(r'\*\*"(.*?)"\.?\*\*', page, re.DOTALL)
    ]
    assert len(quotes) > 15
    for quote in quotes:
        for part in re.split(r"…|\b[NM1]\b", quote):
            assert part.strip(" .:,") in said, quote


def test_percentages_beside_a_ppl_follow_from_the_ppls_of_their_row() -> None:
    """In the tables of refresh and overlap: relative to the first PPL, which has its own column."""
    n_checked = 0
    for line in (ROOT / "docs" / "findings.md").read_text().splitlines():
        _, total, first, *others = (cell.strip() for cell in f"{line}|||".split("|"))
        if total not in ("256", "2048"):
            continue
        for ppl, percent in re.findall(r"([\d.]+) \(\+([\d.]+) %\)", " ".join(others)):
            step, digits = 0.5 * 10 ** -len(ppl.partition(".")[2]), len(percent.partition(".")[2])
            low, high = (
                100 * ((float(ppl) + d) / (float(first) - d / abs(d) * 5e-4) - 1)
                for d in (-step, step)
            )
            assert round(low, digits) <= float(percent) <= round(high, digits), line
            n_checked += 1
    assert n_checked == 15
    page = (ROOT / "docs" / "smollm2.md").read_text()
    row = r"^\| [\d,]+ \| ([\d.]+) \| ([\d.]+) \| \+([\d.]+) % \|$"
    for four, none, more in re.findall(row, page, re.M):
        assert abs(100 * (float(none) / float(four) - 1) - float(more)) < 0.1
        n_checked += 1
    assert n_checked == 19


def test_figures_that_choose_repeats_are_those_of_the_page_it_links() -> None:
    pages = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("choose", "profiling")}
    shares = re.findall(r"^\| `(ours|fast)` .*\| (\d+) % \| (\d+) % \|$", pages["profiling"], re.M)
    for _, at_1, at_32 in shares:
        assert re.search(rf"{at_1} %.{{0,30}}\s{at_32} %", " ".join(pages["choose"].split()))
    bytes_of_an_entry = 2 * 32 * 32 * 80 * 2
    assert f"{bytes_of_an_entry:,}\nbytes" in pages["choose"] and len(shares) == 2
    assert f"{2048 * bytes_of_an_entry / 1e6:.0f} MB per stream" in pages["choose"]

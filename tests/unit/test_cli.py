"""The command line: a table, a record, and one line for everything a user can get wrong."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from streamcache import cli
from streamcache.caches.refresh import RefreshPolicy
from streamcache.cli import common, console, declarations, diagnose, measure, options, profile
from streamcache.decoding import text
from streamcache.decoding.onepass import streaming_nll
from streamcache.inputs.models import load_model
from streamcache.inputs.quantize import Quantization
from streamcache.measure import checked, measurement
from streamcache.measure import run as measuring
from streamcache.measure.configurations import NAMED
from streamcache.measure.pairs import speedup
from streamcache.measure.paper import PUBLISHED_TOTAL, TEXTS
from streamcache.measure.run import Method
from streamcache.policy import EvictionPolicy
from streamcache.report import terminal
from tests import made
from tests.shell import Run

pytestmark = pytest.mark.usefixtures("two_layers")

QUICK = ["--max-eval-tokens", "300", "--runs", "1"]


def test_eval_writes_a_record_and_prints_it(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    ran = run(
        *("eval", *QUICK, "--tpot-tokens", "16", "--output-file", str(output)),
        *("--window-size", "60", "--compress-every", "8", "--max-drop", "3"),
    )
    assert ran.status == 0, ran.err
    record = measurement.read(output).record
    assert record.policy == EvictionPolicy(4, 60, None, 3, 8) and record.sizes.capacity == 71
    assert record.cache == "streaming" and record.workload.model == "reference"
    assert record.quality is not None and record.quality.method == "one-pass"
    nll = np.load(tmp_path / "record.nll.npy")
    assert record.quality.ppl == pytest.approx(np.exp(nll.astype(np.float64).mean()))
    assert nll.shape == (299,) and record.quality.n_steady == 299 - 63
    assert record.quality.ppl_steady == pytest.approx(np.exp(nll[63:].astype(np.float64).mean()))
    assert record.speed is not None and record.speed.tpot_p50_ms > 0
    assert record.speed.speedup == pytest.approx(speedup(record.speed.pairs))
    assert record.speed.tpot_p99_ms >= record.speed.tpot_p50_ms
    assert record.evictions.scheduled > 0 and record.evictions.entries > 200
    assert (record.peak_memory_bytes or 0) > 1e8 and record.environment.threads >= 1
    assert "streaming S=4 W=60 δ=3 R=8" in ran.out and f"{record.quality.ppl:.2f}" in ran.out


@pytest.mark.parametrize("mode", ["mit", "ours", "fast", "captured"])
def test_the_methods_of_ppl_agree(run: Run, tmp_path: Path, mode: str) -> None:
    settings = ["--window-size", "40", "--n-sink", "2", "--tpot-tokens", "8", *QUICK]
    settings += ["--dtype", "float32"]  # whatever the device: half precision is off by more
    for method in ("one-pass", "sequential"):
        output = str(tmp_path / f"{method}.json")
        arguments = ["--streaming-mode", mode, "--ppl-method", method, "--output-file", output]
        assert run("eval", *settings, *arguments).status == 0
    first, second = (np.load(tmp_path / f"{m}.nll.npy") for m in ("one-pass", "sequential"))
    assert np.abs(first - second).max() < 5e-4


def test_the_baseline_is_made_once_and_found_again(run: Run, tmp_path: Path) -> None:
    assert run("baseline", *QUICK, "--window-size", "124").status == 0
    (stored,) = (tmp_path / "runs").rglob("baseline-*.json")
    nll = measurement.read(stored).nll
    assert nll is not None and len(nll) == 128 + 6
    before = stored.stat().st_mtime_ns
    assert run("eval", *QUICK, "--tpot-tokens", "8").status == 0
    assert stored.stat().st_mtime_ns == before
    assert len(list((tmp_path / "runs").rglob("baseline-*.json"))) == 1


def test_eval_of_the_baseline_itself(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "b.json"
    ran = run("eval", *QUICK, "--mode", "baseline", "--output-file", str(output))
    assert ran.status == 0, ran.err
    record = json.loads(output.read_text())
    assert record["configuration"]["cache"] == "recompute"
    assert 0.1 < record["speed"]["speedup"] < 10, "timed beside itself"


def test_a_budget_gives_the_window(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    ran = run(
        *("eval", *QUICK, "--cap-total", "128", "--n-sink", "8", "--cache-slack", "16"),
        *("--overlap", "4", "--tpot-tokens", "8", "--output-file", str(output)),
    )
    assert ran.status == 0, ran.err
    record = measurement.read(output).record
    assert record.configuration["window_size"] == 128 - 8 - 16 - 4
    assert record.configuration["overlap"] == 4 and record.sizes.total == 128


def test_compare_prints_a_row_for_each_configuration(run: Run, tmp_path: Path) -> None:
    names = "baseline,mit,best,fast"
    ran = run("compare", *QUICK, "--tpot-tokens", "8", "--configs", names)
    assert ran.status == 0, ran.err
    for name in names.split(","):
        assert name in ran.out
        (path,) = (tmp_path / "runs").glob(f"reference-float32-stream-300-*/{name}-????????.json")
        found = measurement.read(path)
        assert found.record.label == name and found.nll is not None and found.tpot_ms is not None
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    assert run("compare", *QUICK, "--tpot-tokens", "8", "--configs", names).status == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is repeated"
    forced = run("compare", *QUICK, "--tpot-tokens", "8", "--configs", "fast", "--force")
    assert forced.status == 0
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert [path.name[:5] for path in changed] == ["fast-"]


def test_an_interrupted_comparison_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def interrupted_at_best(*arguments: Any) -> Any:
        measured.append(arguments[2].n_sink)
        if measured == [4, 32]:
            raise KeyboardInterrupt
        return streaming_nll(*arguments)

    monkeypatch.setattr(measuring, "streaming_nll", interrupted_at_best)
    arguments = ["compare", *QUICK, "--tpot-tokens", "8", "--configs", "mit,best,fast"]
    ran = run(*arguments)
    assert ran.status == 130 and "the same command continues" in ran.err
    assert run(*arguments).status == 0
    assert measured == [4, 32, 32, 4], "what was finished is not repeated"


def test_random_weights_have_a_speed_and_no_ppl(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    ran = run(
        *("eval", *QUICK, "--model-name", "random:reference", "--tpot-tokens", "8"),
        *("--window-size", "32", "--output-file", str(output)),
    )
    assert ran.status == 0, ran.err
    assert measurement.read(output).record.quality is None and "random weights" in ran.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["eval", "--n-sink", "-1"], ["n_sink", ">= 0", "-1"]),
        (["eval", "--window-size", "0"], ["window_size", ">= 1"]),
        (["eval", "--compress-every", "0"], ["compress_every", ">= 1"]),
        (["eval", "--max-drop", "-2"], ["--max-drop", "x>=0"]),
        (["eval", "--cap-total", "20", "--n-sink", "32"], ["total=20", "at least 33"]),
        (["eval", "--cap-total", "64", "--window-size", "9"], ["--window-size or --cap-total"]),
        (["eval", "--overlap", "4"], ["--cap-total"]),
        (["eval", "--streaming-mode", "quick"], ["mit", "ours", "fast"]),
        (["eval", "--model-name", "no/such/thing"], ["no/such/thing"]),
        (["eval", "--model-name", "random:huge"], ["'huge'", "pythia-2.8b"]),
        (["eval", "--dataset-name", "nowhere.txt"], ["nowhere.txt"]),
        (["eval", "--dataset-name", "pg19", "--data-dir", "."], ["pg19"]),
        (["eval", "--dtype", "int3"], ["float16"]),
        (["eval", "--device", "tpu"], ["tpu", "cpu"]),
        (["eval", "--mode", "baseline", "--compress-every", "4"], ["--n-sink and --window-size"]),
        (["eval", "--mode", "baseline", "--streaming-mode", "captured"], ["leave out"]),
        (["eval", "--output-file", "/"], ["/", "directory"]),
        (["generate", "a", "--model-name", "random:4x128"], ["random:4x128 has no tokenizer"]),
        (["generate", "a", "--cap-total", "4"], ["total=4", "at least 5"]),
        (["generate", "a", "--temperature", "nan"], ["--temperature"]),
        (["compare", "--configs", "mit,fats"], ["'fats'", "baseline, mit"]),
        (["eval", "--max-eval-tokens", "30000"], ["24000", "30000"]),
        (["evaluate"], ["evaluate"]),
        (["stream", "--cap-total", "0"], ["total must be an integer >= 1"]),
    ],
)
def test_bad_input_gets_one_line_and_status_2(
    run: Run, arguments: list[str], words: list[str]
) -> None:
    ran = run(*arguments)
    assert ran.status == 2
    assert ran.err.count("\n") == 1 and "Traceback" not in ran.err, ran.err
    for word in words:
        assert word in ran.err


def test_a_baseline_of_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    stored = tmp_path / "b.json"
    assert run("baseline", *QUICK, "--baseline-file", str(stored)).status == 0
    ran = run(*("eval", "--max-eval-tokens", "280", "--runs", "1", "--baseline-file", str(stored)))
    assert ran.status == 2 and "text_digest" in ran.err and "streamcache baseline" in ran.err


def test_baseline_makes_a_new_one_where_the_file_is_of_something_else(
    run: Run, tmp_path: Path
) -> None:
    stored = str(tmp_path / "b.json")
    shorter = ["--max-eval-tokens", "280", "--runs", "1", "--window-size", "124"]
    for settings in ([*QUICK, "--window-size", "124"], shorter):
        assert run("baseline", *settings, "--baseline-file", stored).status == 0
    assert measurement.read(Path(stored)).record.workload.n_tokens == 280
    ran = run("eval", *shorter, "--tpot-tokens", "8", "--baseline-file", stored)
    assert ran.status == 0, ran.err


def test_without_a_command_there_is_help(run: Run) -> None:
    ran = run()
    assert ran.status == 2 and "compare" in ran.err and ran.err.count("\n") > 5


def test_a_folder_that_cannot_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    ran = run("baseline", *QUICK, "--window-size", "60", "--output-dir", str(tmp_path / "taken"))
    assert ran.status == 2 and "taken" in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize(
    "command, option, module",
    [
        ("eval", "--output-file", measure),
        ("eval", "--baseline-file", measure),
        ("baseline", "--baseline-file", measure),
        ("compare", "--output-dir", measure),
        ("profile", "--trace", profile),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, option: str, module: ModuleType
) -> None:
    monkeypatch.setattr(module, "load", lambda **where: pytest.fail("the model was loaded"))
    ran = run(command, option, "/proc/x.json")
    assert ran.status == 2 and ran.err.count("\n") == 1 and "write /proc/x.json" in ran.err


def test_a_stored_baseline_in_a_folder_that_cannot_be_written_is_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.json").write_text("{}")
    monkeypatch.setattr(options, "require_writable", lambda path: pytest.fail(f"tried {path}"))
    with pytest.raises(pytest.fail.Exception, match="tried runs"):
        run("eval", "--baseline-file", "b.json", "--max-eval-tokens", "100")


def test_numbers_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets the table as wide as it is; a narrow terminal a paragraph for each row."""
    name, cells = "a name of many words to fold", [f"{i}.12 ± 0.34 %" for i in range(12)]
    for is_terminal in (False, True):
        monkeypatch.setattr(console, "out", Console(force_terminal=is_terminal, width=60))
        table = Table("configuration", title="model, text", caption="a note")
        for i in range(12):
            table.add_column(f"PPL {i}", no_wrap=True)
        table.add_row(name, *cells)
        with console.out.capture() as shown:
            console.show(table)
        assert all(part in shown.get() for part in [name, *cells, "model, text", "a note"])
        longest = max(map(len, shown.get().splitlines()))
        assert longest <= 60 if is_terminal else longest > 150
        if is_terminal:
            assert all(f"PPL {i} {cell}" in shown.get() for i, cell in enumerate(cells))


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_table_of_measurements_is_readable_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(console, "out", console._Console(force_terminal=True, width=width))
    with console.out.capture() as shown:
        console.show(terminal.table([made.record(NAMED[name]) for name in ("mit", "best")]))
    lines = click.unstyle(shown.get()).splitlines()
    assert max(map(len, lines)) <= width
    assert any("PPL 20.00" in line for line in lines) == (width < 90), lines


def test_without_an_increase_a_note_says_why(run: Run) -> None:
    ran = run("eval", "--max-eval-tokens", "100", "--runs", "1", "--tpot-tokens", "8")
    assert ran.status == 0, ran.err
    assert "increase –: the text ends before" in ran.out


@pytest.mark.filterwarnings("default::streamcache.policy.PolicyWarning")
def test_a_warning_is_one_line_once(run: Run) -> None:
    sizes = ["--cap-total", "400", "--compress-every", "130"]
    ran = run("eval", *QUICK, *sizes, "--tpot-tokens", "8")
    assert ran.status == 0
    assert [line for line in ran.err.splitlines() if "warning" in line.lower()] == [
        "warning: compress_every=130: the paper reports broken PPL from 128 on"
    ]


def test_what_keeps_nothing_promises_nothing_when_interrupted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**where: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnose, "load", interrupted)
    ran = run("diagnose", "--no-plot")
    assert ran.status == 130 and ran.err.split() == ["interrupted"]


def test_a_link_to_itself_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    ran = run("generate", "a", "--model-name", "loop")
    assert ran.status == 2 and "loop" in ran.err and ran.err.count("\n") == 1


def test_bytes_that_are_no_text_are_read_as_question_marks(run: Run) -> None:
    """As the shell passes them to Python."""
    ran = run("generate", "It was \udcff", *SMALL_CACHE)
    assert ran.status == 0 and ran.out.startswith("It was \\udcff")
    assert ran.out[13:] == run("generate", "It was ?", *SMALL_CACHE).out[8:]


SMALL_CACHE = ["--cap-total", "24", "--max-new-tokens", "30"]


def test_generate_goes_on_past_the_cache_and_says_what_it_took(run: Run) -> None:
    ran = run("generate", "It was a dark night", *SMALL_CACHE)
    assert ran.status == 0 and ran.out.startswith("It was a dark night")
    n_tokens, n_evicted = re.search(
        r"\[30 tokens, [\d.]+ tokens/s; stream: (\d+) tokens, cache: 24 of 24 entries, "
        r"(\d+) evicted\]",
        ran.err,
    ).groups()  # type: ignore[union-attr]
    assert int(n_tokens) == 24 + int(n_evicted) and int(n_tokens) > 30
    assert run("generate", "It was a dark night", *SMALL_CACHE).out == ran.out
    sampled = run("generate", "It was a dark night", *SMALL_CACHE, "--temperature", "1")
    assert sampled.out != ran.out


def test_generate_reads_its_input_and_a_cache_that_is_large_enough_changes_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"It was \xff a night")))
    ran = run("generate", "--max-new-tokens", "20")
    loaded: Any = vars(common)["load_model"]("reference")
    ids = loaded.tokenizer("<|endoftext|>It was \ufffd a night", return_tensors="pt").input_ids
    expected = loaded.model.generate(ids, max_new_tokens=20, do_sample=False)[0]
    assert ran.out == loaded.tokenizer.decode(expected, skip_special_tokens=True) + "\n"
    assert "of 128 entries, 0 evicted" in ran.err


CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("template", [None, CHATML])
def test_chat_is_the_stream_of_the_whole_conversation(
    run: Run, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    """What is fed in turns is what the template makes of all messages."""
    fed: list[str] = []

    def with_template(name: str, **how: Any) -> Any:
        loaded: Any = load_model(name, **how)
        loaded.tokenizer.chat_template = template
        return loaded

    def read(stream: text.TextStream, given: str) -> int:
        fed.append(given)
        return feed(stream, given)

    feed = text.TextStream.read
    monkeypatch.setattr(common, "load_model", with_template)
    monkeypatch.setattr(text.TextStream, "read", read)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"One.\n \nTwo.\n")))
    ran = run("chat", *SMALL_CACHE, "--system", "Be brief.")
    assert ran.status == 0 and ran.err.count("tokens/s") == 2
    first, second = fed
    reply = "reply"
    messages = [("system", "Be brief."), ("user", "One."), ("assistant", reply), ("user", "Two.")]
    tokenizer = with_template("reference").tokenizer
    whole = text.opening(tokenizer, [{"role": r, "content": c} for r, c in messages])
    assert first + reply + second == whole


def test_a_template_that_changes_earlier_replies_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(name: str, **how: Any) -> Any:
        loaded: Any = load_model(name, **how)
        template = "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}"
        loaded.tokenizer.chat_template = template
        return loaded

    monkeypatch.setattr(common, "load_model", counting)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"One.\n")))
    ran = run("chat")
    assert ran.status == 2 and "changes earlier replies: use generate" in ran.err


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "streamcache", "-h"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1


def test_the_list_of_commands_has_the_first_line_of_each(run: Run) -> None:
    shown = " ".join(run("--help").out.split())
    assert list(cli.commands.commands) == sorted(cli.commands.commands)
    for name, command in cli.commands.commands.items():
        assert command.help and name in shown
        assert shown.count(command.help.partition("\n")[0]) == 1


def test_help_completion_and_typing_errors_import_no_torch() -> None:
    """It takes seconds."""
    code = (
        "import sys; from streamcache.cli import main, commands\n"
        "from click.shell_completion import ShellComplete\n"
        "for words in (['-h'], *([name, '-h'] for name in commands.commands), ['evil'],\n"
        "    ['eval', '--evil'], ['paper', '--runs', 'x'], ['eval', '--window-size', '0']):\n"
        "    sys.argv = ['streamcache', *words]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "shell = ShellComplete(commands, {}, 'streamcache', 'X')\n"
        "assert shell.get_completions(['eval'], '--n-s')[0].value == '--n-sink'\n"
        "assert 'torch' not in sys.modules, [n for n in sys.modules if 'streamcache' in n]\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("\n") == 4, ran.stderr


def test_the_choices_of_options_are_those_of_what_is_called() -> None:
    """They stand there a second time, for what is called imports torch."""
    expected = {
        "ppl_method": get_args(Method),
        "refresh_policy": get_args(RefreshPolicy),
        "quantization": get_args(Quantization),
    }
    for command in cli.commands.commands.values():
        for option in command.params:
            if option.name in expected:
                assert isinstance(option.type, click.Choice)
                assert set(option.type.choices) == set(expected[option.name])
    defaults = {each.name: each.default for each in cli.commands.commands["paper"].params}
    assert defaults["datasets"] == ",".join(TEXTS)
    assert defaults["cap_total"] == PUBLISHED_TOTAL
    assert set(declarations.DEFAULT_TABLE.split(",")) <= set(NAMED)


def test_the_named_configurations_are_those_of_the_specification() -> None:
    policy: dict[str, Any] = {name: each.policy for name, each in NAMED.items()}
    assert policy["best"].capacity == 2048 == policy["baseline"].floor
    assert policy["quality"].capacity == 2064
    assert policy["lazy-R64"].slack == 63 and policy["softlite-slack"].slack == 16
    assert policy["softlite-none"].slack == 31 and policy["softlite-maxdrop"].max_drop == 32
    assert {policy[f"sink-{s}"].floor for s in (4, 16, 32, 64)} == {2048}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_table_is_printed_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """A pipe on Windows has the code page's."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    console.print_in_any_encoding()
    console.show(terminal.table([made.record(NAMED["lazy-R32"])]))
    console.out.print("σ ≥ 1 – 2 漢")
    sys.stdout.flush()
    shown = written.getvalue().decode(encoding)
    assert "lazy-R32" in shown and "+1.00 %" in shown
    assert "slack >= 1" in shown and shown.endswith(" 2 ?\n")


@pytest.mark.parametrize("option", [["eval", "--output-file"], ["baseline", "--baseline-file"]])
def test_a_record_is_written_over_records_only(run: Run, tmp_path: Path, option: list[str]) -> None:
    for content in ("a text", '{"model_type": "llama"}'):
        (tmp_path / "mine").write_text(content)
        ran = run(*option, "mine", "--dataset-name", "mine")
        assert ran.status == 2 and "mine exists and is no record" in ran.err
        assert (tmp_path / "mine").read_text() == content


def test_the_record_is_not_written_over_the_baseline_that_was_read(
    run: Run, tmp_path: Path
) -> None:
    checked.write_struct(tmp_path / "b.json", made.record(NAMED["baseline"]))
    before = (tmp_path / "b.json").read_bytes()
    ran = run("eval", "--baseline-file", "b.json", "--output-file", str(tmp_path / "b.json"))
    assert ran.status == 2 and "would overwrite --baseline-file" in ran.err
    assert (tmp_path / "b.json").read_bytes() == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dataset-name", "pipe"], "cannot read pipe: not a regular file"),
        (["--dataset-name", "empty"], "empty is empty"),
        (["--dataset-name", ""], "--dataset-name is empty: give a value"),
        (["--output-file", ""], "--output-file is empty: give a value"),
        (["--output-dir="], "--output-dir is empty: give a value"),
        (["--device", ""], "--device is empty: give a value"),
        (["--tpot-tokens", str(10**12)], "is not in the range"),
        (["--window-size", str(10**18)], "is not in the range"),
        (["--compress-every", str(2**70)], "is not in the range"),
    ],
)
def test_what_would_hang_or_fail_late_is_one_line(
    run: Run, tmp_path: Path, arguments: list[str], words: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_text(" \n")
    ran = run("eval", *arguments)
    assert ran.status == 2 and words in ran.err and ran.err.count("\n") == 1


def test_no_log_line_of_pytorch_reaches_the_user(tmp_path: Path) -> None:
    """Some are written by its C++ code, at import or by its profiler: only a process shows them."""
    command = [sys.executable, "-m", "streamcache", "profile", "--model-name", "random:4x128"]
    sizes = ["--tokens", "2", "--window-size", "16", "--max-eval-tokens", "40"]
    ran = subprocess.run([*command, *sizes], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert [line.split(":")[0] for line in ran.stderr.splitlines()] == ["record"], ran.stderr


def test_out_of_memory_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(measure, "load", fail)
        ran = run("eval")
        assert ran.status == 2 and ran.err == (
            "streamcache: out of memory: give smaller sizes, or a smaller model\n"
        )


def test_help_is_asked_for_in_short_too(run: Run) -> None:
    assert run("-h").status == run("summarize", "-h").status == 0
    assert "Usage" in run("eval", "-h").out


def test_a_ctrl_c_while_modules_are_imported_ends_the_process() -> None:
    """Without a traceback, and without a package that swallows it."""
    swallow = (
        "import os, signal, streamcache.interrupt as i\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored\n"
        "i.stop_at_once(True)\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException: pass"
    )
    ran = subprocess.run([sys.executable, "-c", swallow], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (130, "interrupted\n")
    later = swallow.replace("try:", "i.stop_at_once(False)\ntry:").replace("pass", "print('later')")
    ran = subprocess.run([sys.executable, "-c", later], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "later\n")

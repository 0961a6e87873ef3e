"""Where measurements are kept: one folder a workload, three files a measurement, found again."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import msgspec

from streamcache.files import remove_leftovers
from streamcache.measure.checked import (
    SCHEMA_VERSION,
    RecordError,
    read_struct,
    write_struct,
)
from streamcache.measure.configurations import Configuration, identity
from streamcache.measure.measurement import (
    Environment,
    Measurement,
    WorkloadRecord,
    read,
    write,
)
from streamcache.ranks import is_first, of_first


class NotKeptError(OSError):
    """A measurement could not be written, and is in `measurement`: nothing of it is lost yet."""

    def __init__(self, error: OSError, measurement: Measurement):
        super().__init__(error.errno, error.strerror, error.filename)
        self.measurement = measurement


class Store:
    """The measurements below a folder. Every command keeps and finds them in the same way.

    A measurement is found by the fields of its configuration, by its workload and by where it was
    taken, never by its name, which is in the file name for people only.

    Args:
        is_locked: whether another process holds the lock for this one.
    """

    def __init__(self, folder: Path, is_locked: bool = False):
        self.folder, self._is_locked = folder, is_locked
        self._lock = filelock.FileLock(folder / ".lock")

    def path(
        self,
        configuration: Configuration,
        workload: WorkloadRecord,
        environment: Environment,
        positions: int = 0,
    ) -> Path:
        """Where the record of a measurement is, under the label by which it was kept first.

        Args:
            positions: of the recompute baseline with a full window; 0 for all others.
        """
        digest = measurement_digest(configuration, workload, environment, positions)
        folder = self.folder / folder_name(workload)
        new = folder / f"{file_stem(configuration.name)}-{digest}.json"
        return next(iter(sorted(folder.glob(f"*-{digest}.json"))), new)

    def find(self, path: Path) -> Measurement | None:
        """What is at a path; None where nothing that can be read is."""
        try:
            return read(path)
        except RecordError:
            return None

    def put(self, path: Path, measurement: Measurement) -> Measurement:
        """Keep a measurement; it with its path.

        Raises:
            NotKeptError: it could not be written. What was there before still is.
        """
        return of_first(lambda: self._put(path, measurement))

    def _put(self, path: Path, measurement: Measurement) -> Measurement:
        try:
            kept = write(path, measurement, self.within(path))
        except OSError as error:
            raise NotKeptError(error, measurement) from error
        for unfinished in (partial_path(path), state_path(path), state_path(path, True)):
            unfinished.unlink(missing_ok=True)
        return kept

    def within(self, path: Path) -> Path | None:
        """The folder that no link may lead out of, where the user has not named the file itself."""
        return self.folder if path.is_relative_to(self.folder) else None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Measure alone: another run in the same folder waits, and then finds what was measured."""
        if self._is_locked or not is_first():  # another of these processes has it
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            warnings.warn(
                f"another run measures in {self.folder}: waiting, so that nothing is measured "
                "twice and no two runs are timed at once",
                stacklevel=2,
            )
            self._lock.acquire()
        try:
            if self._lock.lock_counter == 1:
                for folder in self.folder.glob("*/"):
                    if not folder.is_symlink():
                        remove_leftovers(folder)
            yield
        finally:
            self._lock.release()


def measurement_digest(
    configuration: Configuration,
    workload: WorkloadRecord,
    environment: Environment,
    positions: int = 0,
) -> str:
    """What a measurement is found by, in 8 hex digits."""
    fields = {**identity(configuration), **({"positions": positions} if positions else {})}
    return _digest(fields, workload, environment)


def folder_name(workload: WorkloadRecord) -> str:
    """The folder of a workload: what distinguishes it for people, and a digest."""
    timed = "" if workload.timed == workload.model else f"-timed-{workload.timed}"
    name = f"{workload.model}-{workload.dtype}{timed}-{workload.text}-{workload.n_tokens}"
    return f"{file_stem(name)}-{_digest(workload)}"


class PartialBaseline(msgspec.Struct, frozen=True, tag="streamcache-partial", tag_field="schema"):
    """What an interrupted baseline has finished: NLLs of its first positions, nats.

    Attributes:
        made_from: `measurement_digest` the baseline, since its file may have any name.
    """

    made_from: str
    nll: list[float]
    version: int = SCHEMA_VERSION


def partial_path(path: Path) -> Path:
    """What an interrupted baseline has finished, next to its record."""
    return path.with_name(f"{path.stem}.partial.json")


def state_path(path: Path, ranks: bool = False) -> Path:
    """What an interrupted pass over a long text has finished, next to its record."""
    return path.with_name(f"{path.stem}{'.ranks' if ranks else ''}.state")


def read_partial(path: Path, made_from: str) -> list[float]:
    """The NLLs that an interrupted baseline had finished; none where there are none of this one."""
    try:
        found = read_struct(PartialBaseline, partial_path(path), "partial baseline")
    except RecordError:
        return []
    return found.nll if found.made_from == made_from else []


def write_partial(path: Path, made_from: str, nll: list[float], within: Path | None = None) -> None:
    """Keep what a baseline has finished so far, or warn: it can still be finished.

    Args:
        within: a folder that no link may lead out of; None: that of the file.
    """
    try:
        write_struct(partial_path(path), PartialBaseline(made_from, nll), within or path.parent)
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename}"
        warnings.warn(f"the unfinished baseline is not kept: {reason}", stacklevel=2)


def _digest(*parts: object) -> str:
    workload_without_source = [
        msgspec.structs.replace(p, text_source="") if isinstance(p, WorkloadRecord) else p
        for p in parts
    ]
    data = msgspec.json.encode(workload_without_source, order="sorted")
    return hashlib.sha256(data).hexdigest()[:8]


def file_stem(text: str) -> str:
    """As part of a file name on any system."""
    for sign, word in (("=", ""), ("σ", "slack"), ("δ", "drop")):
        text = text.replace(sign, word)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:100]

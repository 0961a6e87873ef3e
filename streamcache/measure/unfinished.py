"""What an interrupted comparison had finished, so that the next run goes on from there."""

import hashlib
from pathlib import Path

import msgspec

from streamcache.files import write_bytes
from streamcache.measure.baseline import Fingerprint
from streamcache.measure.configurations import Configuration
from streamcache.measure.records import Environment, Quality


class Unfinished:
    """Qualities by configuration, on disk until `finish`.

    Kept only while a run is unfinished: a later run measures anew, since the code may have changed.
    """

    def __init__(self, folder: Path, environment: Environment, baseline: Fingerprint, method: str):
        made_from = msgspec.json.encode((environment, baseline, method))
        key = hashlib.sha256(made_from).hexdigest()[:12]
        self.path = folder / f"unfinished-{key}.json"
        self._done: dict[str, Quality] = {}
        if self.path.exists():
            try:
                self._done = msgspec.json.decode(self.path.read_bytes(), type=dict[str, Quality])
            except msgspec.MsgspecError:  # of another release: nothing that could be used
                self.path.unlink()

    def get(self, configuration: Configuration) -> Quality | None:
        return self._done.get(str(configuration))

    def put(self, configuration: Configuration, quality: Quality) -> None:
        self._done[str(configuration)] = quality
        write_bytes(self.path, msgspec.json.encode(self._done))

    def finish(self) -> None:
        self.path.unlink(missing_ok=True)

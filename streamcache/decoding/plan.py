"""The next steps of a stream, on the device: what a captured step must know of each of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from streamcache.caches.ring import RingCache, Step

_MAX_STEPS = 1024  # on the device, times streams of unequal length


class Plan:
    """Many steps of a cache, planned at once; the device takes the next one by itself.

    Attributes:
        step: the integers of the step that was taken last, [B, 4].
    """

    def __init__(self, cache: RingCache, batch: int, device: torch.device):
        self._cache = cache
        numbers = batch, len(Step._fields)
        self.step = torch.zeros(numbers, dtype=torch.long, device=device)
        self._planned = torch.zeros(_MAX_STEPS, *numbers, dtype=torch.long, device=device)
        self._next = torch.zeros(1, dtype=torch.long, device=device)
        self._steps: Iterator[tuple[Step, ...]] = iter(())
        # Where the streams must be when the next step is taken.
        self._planned_for: list[tuple[int, ...]] = []

    def renew(self) -> tuple[Step, ...]:
        """Plan anew from where the streams are; the first step, by stream."""
        rings = self._cache.streams
        for ring in rings:
            if ring.n_steps_left < 1:
                ring.rebase()
        n = min(max(1, _MAX_STEPS // len(rings)), *(ring.n_steps_left for ring in rings))
        plans = [ring.plan(n) for ring in rings]
        rows = torch.tensor(plans).transpose(0, 1)  # [n, streams planned for, 4]
        if self._cache.parts:
            n_rows = torch.tensor([part.n_rows for part in self._cache.parts])
            rows = rows.repeat_interleave(n_rows, dim=1)
        if self._planned.is_cuda:
            rows = rows.contiguous().pin_memory()
        self._planned[:n].copy_(rows, non_blocking=True)
        self._next.zero_()
        self._steps = iter(zip(*plans))
        return next(self._steps)

    def take(self) -> None:
        """Make `step` the next one, without a word from the host: this is captured."""
        torch.index_select(self._planned, 0, self._next, out=self.step[None])
        self._next.add_(1)

    @contextmanager
    def advancing(self) -> Iterator[None]:
        """Have the next step ready to be taken, and count it; not if it fails."""
        steps = self._next_steps()
        with self._cache.advancing(*steps):
            yield
            self._planned_for = [
                (ring.seen + 1, ring.seen + 1 - step.size, ring.base)
                for ring, step in zip(self._cache.streams, steps)
            ]

    def _next_steps(self) -> tuple[Step, ...]:
        """As planned, if the streams are where the last planned step has left them."""
        place = [(ring.seen, ring.evicted, ring.base) for ring in self._cache.streams]
        is_planned = self._planned_for == place
        self._planned_for = []  # until this step has succeeded
        steps = next(self._steps, None) if is_planned else None
        return steps or self.renew()

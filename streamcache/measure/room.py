"""Whether a cache fits into the memory of the device it is for."""

import os

import torch
from transformers import PreTrainedModel

from streamcache.caches.probe import probe_rope
from streamcache.measure.configurations import Configuration
from streamcache.policy import PolicyError


def require_room(configuration: Configuration, model: PreTrainedModel) -> None:
    """Refuse a cache that the memory cannot hold, before anything is measured.

    Raises:
        PolicyError: its keys and values alone take more than the device has.
    """
    if configuration.recomputes:
        return
    total = _total_bytes(model.device)
    entries = configuration.policy.capacity + configuration.refresh
    needed = entries * configuration.batch * bytes_per_entry(model)
    if total is not None and needed > total:
        raise PolicyError(
            f"a cache of {entries} entries takes {needed / 1e9:.0f} GB and {model.device} has "
            f"{total / 1e9:.0f} GB: choose a smaller window_size or compress_every"
        )


def bytes_per_entry(model: PreTrainedModel) -> int:
    """What the keys and values of one token take in all layers."""
    layers = probe_rope(model).layers
    numbers = sum(layer.n_kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
    return numbers * model.dtype.itemsize


def _total_bytes(device: torch.device) -> int | None:
    """The memory of a device, None where the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None

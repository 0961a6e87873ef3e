"""A model whose layers lie on two devices gives what it gives on one."""

from typing import Any

import pytest
import torch

from streamcache import CapturedDecoder, recompute_nll, streaming_nll
from streamcache.caches.admission import UnsupportedModelError
from streamcache.caches.base import BoundedCache
from streamcache.caches.kinds import KINDS, cache_type
from streamcache.caches.refresh import RefreshCache
from streamcache.decoding.loop import captured_nll, sequential_nll
from streamcache.inputs.corpora import TokenizedText
from streamcache.inputs.models import LoadedModel, load_model
from streamcache.measure.configurations import Configuration
from streamcache.measure.run import What, run
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy
from tests.devices import FIRST, SECOND, held, laid_over_two, two_devices
from tests.tiny import copy_of, llama, neox, text, tiny

CACHES = {kind: cache_type(kind) for kind in KINDS}

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24
TIGHT = 1e-5

MAKERS: dict[str, Any] = {
    **CACHES,
    "refresh": lambda model, policy: RefreshCache(model, policy, 3, "middle"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_cache_streams_a_model_on_two_devices(name: str) -> None:
    ids, whole = text(36)[0], llama()
    expected = sequential_nll(whole, ids, MAKERS[name](whole, POLICY))
    with two_devices():
        model = laid_over_two(llama())
        cache: BoundedCache = MAKERS[name](model, POLICY)
        found = sequential_nll(model, ids.to(FIRST), cache)
        assert {layer.device for layer in cache.geometry.layers} == {FIRST, SECOND}
    assert found.device == FIRST
    assert torch.allclose(held(found), expected, atol=TIGHT)


@pytest.mark.parametrize("make", [neox, lambda: tiny("qwen3", num_key_value_heads=2)])
def test_one_pass_and_baseline_of_a_model_on_two_devices(make: Any) -> None:
    ids, whole = text(80)[0], make()
    with two_devices():
        model = laid_over_two(make())
        one_pass = streaming_nll(model, ids, POLICY)
        baseline = recompute_nll(model, ids, 4, 16, [3, 40, 70])
    assert torch.allclose(held(one_pass), streaming_nll(whole, ids, POLICY), atol=TIGHT)
    assert torch.allclose(held(baseline), recompute_nll(whole, ids, 4, 16, [3, 40, 70]), atol=TIGHT)


@pytest.mark.parametrize("name", CACHES)
@torch.no_grad()
def test_long_inputs_roll_back_files_and_rows_on_two_devices(name: str, tmp_path: Any) -> None:
    ids, whole = text(80, batch=2), llama()
    logits = []
    with two_devices():
        for model, device in ((whole, torch.device("cpu")), (laid_over_two(llama()), FIRST)):
            cache = CACHES[name](model, POLICY, max_rollback=4)
            model(input_ids=ids[:, :70].to(device), past_key_values=cache)
            cache.crop(-3)
            cache.save(tmp_path / "stream")
            cache = CACHES[name](model, POLICY)
            cache.load(tmp_path / "stream")
            cache.batch_select_indices(torch.tensor([1]))
            more = ids[1:, 67:].to(device)
            logits.append(model(input_ids=more, past_key_values=cache).logits)
    assert torch.allclose(held(logits[1]), logits[0], atol=1e-4)


def test_generate_on_two_devices() -> None:
    options: dict[str, Any] = {"max_new_tokens": 15, "do_sample": False}
    ids = text(30)
    whole: Any = llama()
    expected = whole.generate(ids, past_key_values=CACHES["streaming"](whole, POLICY), **options)
    with two_devices():
        model: Any = laid_over_two(llama())
        cache = CACHES["streaming"](model, POLICY)
        found = model.generate(ids.to(FIRST), past_key_values=cache, **options)
    assert found.tolist() == expected.tolist()


def test_a_measurement_of_a_model_on_two_devices() -> None:
    tokens = TokenizedText("text", text(80)[0], "none", "file")
    what = What(positions=4, tpot_tokens=4, pairs=1)
    measured = []
    with two_devices():
        for model in (llama(), laid_over_two(llama())):
            loaded = LoadedModel(model, None, "tiny", "none")
            workload = Workload(loaded, tokens, window=EvictionPolicy(4, 16))
            measured.append(run(Configuration(POLICY, "streaming"), workload, what))
    one, two = measured
    assert one.nll == pytest.approx(two.nll, abs=1e-5)
    assert one.record.environment.device.startswith("cpu ")
    assert two.record.environment.device == f"2 x {one.record.environment.device}"


def test_captured_steps_over_several_devices_need_tensor_parallel() -> None:
    ids, whole = text(40)[0], llama()
    with two_devices():
        decoder = CapturedDecoder(laid_over_two(llama()), POLICY)
        found = captured_nll(decoder, ids.to(FIRST))
    assert decoder.eager_because is not None
    assert "tensor parallel" in decoder.eager_because
    expected = sequential_nll(whole, ids, CACHES["ring"](whole, POLICY))
    assert torch.allclose(held(found), expected, atol=TIGHT)


def test_a_model_that_accelerate_keeps_on_the_disk_is_refused(tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    places = {"model": "cpu", "lm_head": "disk"}
    model = accelerate.dispatch_model(
        copy_of(llama(), torch.float32),
        places,
        main_device="cpu",
        offload_dir=str(tmp_path),
        force_hooks=True,
    )
    with pytest.raises(UnsupportedModelError, match="not in memory"):
        CACHES["streaming"](model, POLICY)


def test_auto_is_the_cpu_where_there_is_no_card() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert load_model("random:reference", device="auto").model.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two cards")
def test_two_cards_give_what_one_gives() -> None:
    one, two = (load_model("reference", dtype="float32", device=d) for d in ("cuda:0", "auto"))
    assert two.n_devices == 2
    ids, policy = text(400)[0], EvictionPolicy(4, 60, 5, 3, 7)
    for name, make in MAKERS.items():
        found = [
            sequential_nll(m, ids.to(m.device), make(m, policy)) for m in (one.model, two.model)
        ]
        assert torch.allclose(found[0], found[1], atol=1e-4), name
    one_pass = [streaming_nll(x.model, ids, policy) for x in (one, two)]
    assert torch.allclose(one_pass[0], one_pass[1], atol=1e-4)

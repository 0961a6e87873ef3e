"""The table of defects: what is broken in a copy of the tree, and the verdict that must name it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streamcache.gate.verdicts import Status

Edit = Callable[[Path], None]  # changes a copy of the tree, given its root


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong.

    Attributes:
        edits: none for the control, which must be green.
        status, check: of the verdict that must come; check "" for any.
        benchmarks: which must get it; also all that is run, unless `whole`.
        whole: run the whole gate, as CI does, with --golden-required.
        any_of: one of the benchmarks is enough.
        against: the status where the tree is compared with a commit, if it is another.
        where: on a GPU other things can be seen than on a CPU; what no benchmark shows, the unit
            tests named as `benchmarks` must.
    """

    name: str
    edits: tuple[Edit, ...]
    status: Status
    check: str
    benchmarks: tuple[str, ...]
    whole: bool = False
    any_of: bool = False
    against: Status | None = None
    where: Literal["cpu", "gpu", "unit"] = "cpu"


def patch(file: str, old: str, new: str) -> Edit:
    """Replace a text that occurs exactly once."""

    def edit(root: Path) -> None:
        text = (root / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} has this {text.count(old)} times, not once: {old}"
        (root / file).write_text(text.replace(old, new), encoding="utf-8")

    return edit


def other_weights(root: Path) -> None:
    """The last weight of the reference model is another number."""
    path = root / "streamcache/reference_model/model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)


def without_golden(name: str) -> Edit:
    def edit(root: Path) -> None:
        path = root / "tests/golden/cpu.json"
        golden = json.loads(path.read_bytes())
        del golden["entries"][f"tests/bench/test_cpu.py::{name}"], golden["checksum"]
        path.write_text(json.dumps(golden))

    return edit


def steady_decode(new: str) -> Edit:
    """Something else where the timed decode takes its next token."""
    old = "        return self._decode(self.input_ids[t : t + 1].expand(self.batch))\n"

    def edit(root: Path) -> None:
        patch(DECODE, old, new)(root)
        patch(DECODE, "import torch\n", "import time\n\nimport torch\n")(root)

    return edit


def slower(share: float) -> Edit:
    """The decode loop takes longer by a share of what each step takes."""
    return steady_decode(
        f"""        began = time.thread_time()
        logits = self._decode(self.input_ids[t : t + 1].expand(self.batch))
        ended = time.thread_time()
        while time.thread_time() < ended + {share} * (ended - began):
            pass
        return logits
""",
    )


def slower_on_device(share: float) -> Edit:
    """A captured step waits on the GPU: the host runs ahead, its waiting would not be seen.

    A kernel before the step costs something itself, so that the wait is what is left of the share.
    """
    return patch(
        "streamcache/decoding/loop.py",
        """        super().__init__(decoder.model, input_ids, decoder.cache, decoder.batch)

    def _decode(self, token: Tensor) -> Tensor:
        return self.decoder.step(token)
""",
        f"""        from streamcache.measure.timing import time_tokens

        prefill(decoder.model, input_ids, decoder.cache)
        device = input_ids.device

        def step_ms(*cycles: int) -> float:
            def step() -> None:
                for n in cycles:
                    torch.cuda._sleep(n)
                decoder.step(input_ids[:1])

            return sorted(time_tokens(step, 64, device).token_ms)[32]

        alone, least, more = step_ms(), step_ms(1), step_ms(10**5)
        left = {1 + share} * alone - least
        self.cycles = max(1, int(left / (more - least) * 10**5))
        decoder.reset()
        super().__init__(decoder.model, input_ids, decoder.cache, decoder.batch)

    def _decode(self, token: Tensor) -> Tensor:
        torch.cuda._sleep(self.cycles)
        return self.decoder.step(token)
""",
    )


ARENA, BOUNDED, CACHE = (
    f"streamcache/caches/{n}.py" for n in ("buffer", "bookkeeping", "streaming")
)
POLICY, RING, ONE_PASS, RETAINED, ONE_PASS_NLL = (
    f"streamcache/{n}.py"
    for n in (
        "policy",
        "caches/ring",
        "caches/one_pass",
        "caches/retained_attention",
        "decoding/onepass",
    )
)
DECODE, RECOMPUTE, MIT = (
    f"streamcache/{n}.py" for n in ("decoding/loop", "decoding/recompute", "caches/reference")
)
QUALITY, PRETRAINED, CORPORA = (
    f"streamcache/{n}.py" for n in ("measure/quality", "inputs/pretrained", "inputs/corpora")
)
CONFIGURATIONS, KERNEL = (
    "streamcache/measure/configurations.py",
    "streamcache/decoding/kernels/attention.py",
)
STEPS, SPEED = "streamcache/measure/steps.py", "streamcache/measure/speed.py"
CONFTEST, BENCHMARKS = "tests/bench/conftest.py", "tests/bench/test_cpu.py"

TURNED = ("test_decoding[fast]", "test_decoding[ours]")
DROPPING = ("test_decoding[mit]", *TURNED)
DECODED = (*DROPPING, "test_decoding[captured]")
CAPTURED = ("test_decoding[captured]",)
LLAMA = ("test_llama[ours]", "test_llama[fast]")
LLAMA_CAPTURED = ("test_llama[captured]",)
READ = ("test_quality[quality]",)
LAZY = ("test_quality[lazy-R32]",)
TIMED = tuple(f"test_speed[{name}]" for name in ("mit", "ours", "fast", "lazy"))

MODEL_LOADED = "    return model.eval().requires_grad_(False), tokenizer"
PHASE = "phase = self.rotation.phase(offset)"
PREPARE = "n_evicted = checked_drop(self.policy, self.seen, self._size_before) - self._ahead"
NOTHING_DUE = "if need <= 0 or not ("
DROPPED = "return need if self.max_drop is None else min(need, self.max_drop)"
SHIFTED_BY_ONE = patch(ARENA, PHASE, "phase = self.rotation.phase(offset + 1)")
SLOWER_BASELINE = (
    patch(
        RECOMPUTE,
        "        return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits\n\n"
        "    return step\n",
        """        began = time.thread_time()
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        ended = time.thread_time()
        while time.thread_time() < ended + 0.4 * (ended - began):
            pass
        return logits

    return step
""",
    ),
    patch(RECOMPUTE, "import torch\n", "import time\n\nimport torch\n"),
)


def fails(name: str, benchmarks: tuple[str, ...], check: str, *edits: Edit) -> Defect:
    return Defect(name, edits, Status.FAIL, check, benchmarks)


def fails_unit_test(name: str, test: str, *edits: Edit) -> Defect:
    return Defect(name, edits, Status.FAIL, "", (test,), where="unit")


DEFECTS = [
    Defect("unchanged", (), Status.PASS, "", (), whole=True),
    # where the sinks stand
    fails(
        "sinks not shifted",
        TURNED,
        "ppl",
        patch(ARENA, "if self.rotation is not None and offset:", "if False:"),
    ),
    fails("sinks shifted by one too many", TURNED, "apart from one pass", SHIFTED_BY_ONE),
    fails(
        "sinks shifted the wrong way",
        TURNED,
        "ppl",
        patch(ARENA, PHASE, "phase = self.rotation.phase(-offset)"),
    ),
    fails(
        "sinks rotated twice",
        TURNED,
        "ppl",
        patch(
            ARENA,
            "self._sink_numbers * phase",
            "self._sink_numbers * phase * phase",
        ),
    ),
    fails(
        "sinks not shifted in the one pass",
        READ,
        "ppl",
        patch(
            ONE_PASS,
            "angles(rotation, self.positions_for_sinks(tokens, evicted))",
            "angles(rotation, self.positions(tokens))",
        ),
    ),
    fails(
        "sinks not met by the captured query",
        CAPTURED,
        "ppl",
        patch(KERNEL, "turn(query, size - 1)", "turn(query, position)"),
    ),
    fails(
        "mit's positions off by one",
        ("test_decoding[mit]",),
        "ppl",
        patch(
            MIT,
            "return rotate(new, position, rotation)",
            "return rotate(new, position + 1, rotation)",
        ),
    ),
    fails(
        "the window rotated the wrong way when positions are re-based",
        TURNED,
        "ppl",
        patch(CACHE, "end, self.base - base)", "end, base - self.base)"),
    ),
    fails(
        "keys stored before they are turned",
        CAPTURED,
        "ppl",
        patch(KERNEL, "key = key if turn is None else turn(key, position)", "key = +key"),
    ),
    fails(
        "sinks beyond the eighth not shifted",
        LLAMA,
        "ppl",
        patch(
            ARENA,
            "self.rotation.pairs(keys).copy_(torch.view_as_real(self._sink_numbers * phase))",
            "first = self.rotation.pairs(keys[..., :8, :])\n"
            "            first.copy_(torch.view_as_real(self._sink_numbers[..., :8, :] * phase))",
        ),
    ),
    fails(
        "sinks beyond the eighth not met by the captured query",
        LLAMA_CAPTURED,
        "ppl",
        patch(
            KERNEL,
            "torch.where(is_sink, at_sinks",
            "torch.where(is_sink & (slots < 8), at_sinks",
        ),
    ),
    fails(
        "the ring rotated the wrong way when positions are re-based",
        LLAMA_CAPTURED,
        "ppl",
        patch(
            RING,
            "self._rotate_window(self.base - self.evicted)",
            "self._rotate_window(self.evicted - self.base)",
        ),
    ),
    fails(
        "queries of a group look at another group's keys",
        LLAMA_CAPTURED,
        "ppl",
        patch(
            KERNEL,
            "query.unflatten(1, (-1, groups)).squeeze(3)",
            "query.unflatten(1, (groups, -1)).squeeze(3).transpose(1, 2)",
        ),
    ),
    fails_unit_test(
        "a reset that empties nothing",
        "tests/unit/test_ring.py::test_nothing_of_an_earlier_stream_is_read",
        patch(RING, "            slots.zero_()", "            pass"),
    ),
    # memory
    fails(
        "a buffer of 8 times the memory",
        ("test_memory[ours]", "test_memory[fast]"),
        "tensor bytes",
        patch(CACHE, "return 2 * self.policy.capacity", "return 16 * self.policy.capacity"),
    ),
    fails(
        "1 MB kept of every token",
        ("test_memory[ours]", "test_memory[fast]", "test_memory[captured]"),
        "peak memory",
        steady_decode(
            "        self.__dict__.setdefault('kept', []).append(torch.ones(2**18))\n"
            "        return self._decode(self.input_ids[t : t + 1].expand(self.batch))\n",
        ),
    ),
    # what is held
    fails(
        "window off by one",
        LAZY,
        "retained",
        patch(
            POLICY,
            "return self.n_sink + self.window_size\n",
            "return self.n_sink + self.window_size - 1\n",
        ),
    ),
    fails(
        "the policy drops one too many", LAZY, "evicted", patch(POLICY, DROPPED, "return need + 1")
    ),
    fails(
        "the caches drop one too many",
        DROPPING,
        "ppl",
        patch(BOUNDED, PREPARE, f"{PREPARE}\n        n_evicted += n_evicted > 0"),
    ),
    fails("max_drop ignored", DECODED, "ppl", patch(POLICY, DROPPED, "return need")),
    fails(
        "mit drops a sink",
        ("test_decoding[mit]",),
        "ppl",
        patch(
            MIT,
            "kept[:, :, : self.policy.n_sink], kept[:, :, self.policy.n_sink :]",
            "kept[:, :, : self.policy.n_sink - 1], kept[:, :, self.policy.n_sink - 1 :]",
        ),
    ),
    fails(
        "a sink dropped",
        TURNED,
        "ppl",
        patch(ARENA, "self.n_sink = n_sink\n", "self.n_sink = n_sink - 1\n"),
    ),
    fails(
        "a sink dropped in the one pass",
        DECODED,
        "apart from one pass",
        patch(
            RETAINED,
            "self.n_sink, self.device = first, evicted, n_sink, device",
            "self.n_sink, self.device = first, evicted, n_sink - 1, device",
        ),
    ),
    fails(
        "the policy never evicts",
        LAZY,
        "evicted",
        patch(POLICY, NOTHING_DUE, f"if True or {NOTHING_DUE[3:]}"),
    ),
    fails(
        "the caches never evict",
        ("test_decoding[mit]",),
        "ppl",
        patch(BOUNDED, PREPARE, "n_evicted = 0"),
    ),
    fails(
        "the policy evicts at every step",
        LAZY,
        "scheduled",
        patch(POLICY, "return (seen + 1) % self.compress_every == 0", "return True"),
    ),
    fails(
        "the caches evict at every step",
        DROPPING,
        "ppl",
        patch(BOUNDED, PREPARE, "n_evicted = max(0, self.size + n_tokens - self.policy.floor)"),
    ),
    fails(
        "ring slot off by one",
        CAPTURED,
        "ppl",
        patch(RING, "sinks + (seen - sinks) % run", "sinks + (seen - sinks + 1) % run"),
    ),
    fails(
        "stale mask of the ring",
        CAPTURED,
        "ppl",
        patch(RING, "sinks + evicted % run, seen", "sinks + self.evicted % run, seen"),
    ),
    fails(
        "stale mask of the one pass",
        READ,
        "ppl",
        patch(
            ONE_PASS,
            "            counts.append(evicted)",
            "            counts.append(counts[0] if counts else evicted)",
        ),
    ),
    fails(
        "mask of the caches off by one",
        DROPPING,
        "ppl",
        patch(
            BOUNDED,
            "return kept + query_length, self.seen - kept\n",
            "return kept + query_length, self.seen - kept - 1\n",
        ),
    ),
    fails(
        "mask of the one pass off by one",
        READ,
        "ppl",
        patch(RETAINED, "key >= self.n_sink + evicted", "key > self.n_sink + evicted"),
    ),
    fails(
        "prunes miscounted",
        READ,
        "forced",
        patch(
            POLICY, "forced += evicted > 0 and not policy.scheduled(seen)", "forced += evicted > 0"
        ),
    ),
    # what is predicted, and compared
    fails(
        "the one pass in place of the decoding that it is compared with",
        DROPPING,
        "apart from one pass",
        patch(
            STEPS,
            "    return decode(fed_model(cache, model), input_ids, cache, advance, score)\n",
            "    from streamcache.decoding.onepass import streaming_nll\n\n"
            "    return streaming_nll(model, input_ids, configuration.policy)\n",
        ),
    ),
    fails(
        "NLL off by one position",
        DECODED,
        "ppl",
        patch(
            DECODE,
            "score(logits, input_ids[t + 1 : t + 2])",
            "score(logits, input_ids[t : t + 1])",
        ),
    ),
    fails(
        "NLL of the one pass off by one position",
        READ,
        "ppl",
        patch(ONE_PASS_NLL, "text[begin + 1 : end + 1]", "text[begin:end]"),
    ),
    fails(
        "steady state begins a position late",
        LAZY,
        "steady",
        patch(QUALITY, "steady = nll[floor - 1 :]", "steady = nll[floor:]"),
    ),
    fails(
        "baseline context off by one",
        ("test_recompute",),
        "ppl",
        patch(
            RECOMPUTE,
            "input_ids[t + 1 - window_size : t + 1]",
            "input_ids[t + 2 - window_size : t + 1]",
        ),
    ),
    fails(
        "baseline compared at other positions",
        READ,
        "ppl / baseline",
        patch(QUALITY, "own = nll[positions[both_full]]", "own = nll[positions[both_full] - 1]"),
    ),
    fails(
        "wrong text",
        LAZY,
        "text",
        patch(CORPORA, "numbers[:max_tokens]", "numbers[-max_tokens:]"),
    ),
    fails(
        "marker token dropped",
        LAZY,
        "text",
        patch(CORPORA, "numbers[:max_tokens]", "numbers[1 : max_tokens + 1]"),
    ),
    fails(
        "another text behind the same digest",
        LAZY,
        "ppl",
        patch(
            CORPORA, "return TokenizedText(name, ids, ", "return TokenizedText(name, ids.roll(1), "
        ),
    ),
    fails(
        "NaN logits",
        DECODED,
        "ppl",
        patch(
            PRETRAINED,
            MODEL_LOADED,
            f"    model.get_output_embeddings().weight.data[7] = torch.nan\n{MODEL_LOADED}",
        ),
    ),
    # what is not what the golden measured
    Defect(
        "another model",
        (
            patch(
                CONFTEST, 'load_model("reference", device="cpu")', 'load_model("random:reference")'
            ),
        ),
        Status.INVALID,
        "identity",
        ("test_recompute",),
    ),
    Defect("another revision of the model", (other_weights,), Status.INVALID, "identity", LAZY),
    fails(
        "weights changed after loading",
        LAZY,
        "ppl",
        patch(
            PRETRAINED,
            MODEL_LOADED,
            f"    model.get_output_embeddings().weight.data *= 1.01\n{MODEL_LOADED}",
        ),
    ),
    Defect(
        "another attention",
        (patch(PRETRAINED, "_attn_implementation = None", '_attn_implementation = "eager"'),),
        Status.INVALID,
        "identity",
        ("test_decoding[mit]",),
    ),
    Defect(
        "another configuration by the same name",
        (
            patch(
                CONFIGURATIONS,
                "EvictionPolicy(32, 2016, 16, 32, 32)",
                "EvictionPolicy(32, 2000, 16, 32, 32)",
            ),
        ),
        Status.INVALID,
        "identity",
        READ,
    ),
    # goldens and benchmarks that are gone, or lenient
    fails(
        "tolerance loosened in the test",
        TURNED,
        "ppl",
        SHIFTED_BY_ONE,
        patch(CONFTEST, "rel_tol=2e-5", "rel_tol=1.0"),
    ),
    Defect(
        "a golden deleted",
        (without_golden("test_quality[lazy-R32]"),),
        Status.MISSING,
        "golden",
        LAZY,
        whole=True,
    ),
    Defect(
        "a benchmark deleted",
        (patch(BENCHMARKS, '*("lazy-R32", "lazy-R128", ', '*("lazy-R128", '),),
        Status.MISSING,
        "benchmark",
        LAZY,
        whole=True,
    ),
    Defect(
        "a benchmark that skips itself",
        (
            patch(
                BENCHMARKS,
                "    record_baseline(cpu_bench, golden)\n",
                '    pytest.skip("later")\n    record_baseline(cpu_bench, golden)\n',
            ),
        ),
        Status.MISSING,
        "benchmark",
        ("test_recompute",),
        whole=True,
    ),
    # speed
    fails_unit_test(
        "p99 taken as the 90th percentile",
        "tests/unit/test_run.py::test_timed_tokens_have_their_share_of_the_evictions",
        patch(SPEED, "percentile(own_times.token_ms, 99)", "percentile(own_times.token_ms, 90)"),
    ),
    fails(
        "nothing decoded where it is timed",
        TIMED,
        "timed",
        steady_decode("        return self.input_ids\n"),
    ),
    Defect(
        "half a second at every 500th token",
        (
            steady_decode(
                "        time.sleep(0.5 * (t % 500 == 0))\n"
                "        return self._decode(self.input_ids[t : t + 1].expand(self.batch))\n",
            ),
        ),
        Status.FAIL,
        "mean",
        TIMED,
        any_of=True,
    ),
    Defect(
        "a mode of torch left on",
        (
            patch(
                CONFTEST,
                "    torch.set_num_threads(1)\n",
                "    torch.set_num_threads(1)\n"
                "    torch.overrides.BaseTorchFunctionMode().__enter__()\n",
            ),
        ),
        Status.INVALID,
        "speed",
        TIMED[2:3],
        against=Status.FAIL,  # as the base has none
    ),
    Defect(
        "a clock that runs at half its speed",
        (
            patch(
                CONFTEST,
                "    torch.set_num_threads(1)\n",
                "    torch.set_num_threads(1)\n"
                "    real = time.perf_counter\n"
                "    time.perf_counter = lambda: real() / 2\n",
            ),
            patch(CONFTEST, "import torch\n", "import time\n\nimport torch\n"),
        ),
        Status.INVALID,
        "speed",
        TIMED[2:3],
        against=Status.FAIL,
    ),
    Defect(
        "the garbage collector turned off",
        (
            patch(
                CONFTEST,
                "    torch.set_num_threads(1)\n",
                "    torch.set_num_threads(1)\n    __import__('gc').disable()\n",
            ),
        ),
        Status.INVALID,
        "identity",
        TIMED[2:3],
    ),
    fails(
        "a timed stream that skips tokens",
        TIMED[2:3],
        "timed",
        steady_decode(
            "        if time.perf_counter_ns() % 3 == 0:\n            return self.input_ids\n"
            "        return self._decode(self.input_ids[t : t + 1].expand(self.batch))\n",
        ),
    ),
    fails(
        "a timed stream that holds half",
        TIMED[2:3],
        "held",
        patch(
            STEPS,
            "return SteadyDecode(fed_model(cache, model), input_ids, cache, batch)",
            "cache = cache_type(configuration.cache)(model, type(policy)(4, 124))\n"
            "    return SteadyDecode(model, input_ids, cache, batch)",
        ),
    ),
    Defect("decoding slower by 20 %", (slower(0.20),), Status.FAIL, "speed", TIMED),
    Defect("decoding slower by 10 %", (slower(0.10),), Status.FAIL, "speed", TIMED, any_of=True),
    Defect(
        "baseline slower by 40 %, so that speedups look better",
        SLOWER_BASELINE,
        Status.FAIL,
        "baseline",
        TIMED,
        any_of=True,
    ),
    Defect(
        "both sides slower by 40 %, so that speedups look the same",
        (slower(0.4), *SLOWER_BASELINE),
        Status.FAIL,
        "baseline",
        TIMED,
        any_of=True,
    ),
    Defect(  # on a CPU 5 % is near what chance explains
        "decoding slower by 5 %",
        (slower(0.05), slower_on_device(0.05)),
        Status.FAIL,
        "speed",
        ("test_configuration[captured]", "test_configuration[best-captured]"),
        where="gpu",
    ),
    Defect(  # what a host does more is hidden in its noise, but not what it starts
        "an eager step starts 20 kernels more",
        (
            steady_decode(
                "        for _ in range(20):\n            self.input_ids + 0\n"
                "        return self._decode(self.input_ids[t : t + 1].expand(self.batch))\n",
            ),
        ),
        Status.FAIL,
        "kernels a token",
        ("test_configuration[fast]",),
        where="gpu",
    ),
]

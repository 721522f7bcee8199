"""Files that must be refused: each gets an error that names file, tensor or key, what was found and what is wanted."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_checkpoint as rc

import gemmantle
from gemmantle import _core

SHAPE = rc.Shape(
    is_full=(False, True, False, True),
    hidden=24,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp=20,
    vocab=120,
    window=5,
    global_head_dim=16,
    ple=4,
    kv_shared=2,
)
DOWN = "model.language_model.layers.1.mlp.down_proj.weight"
NORM = "model.language_model.layers.1.input_layernorm.weight"
PLE = "model.language_model.embed_tokens_per_layer.weight"

Header = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint of four layers in float32, to be damaged."""
    rc.write(tmp_path, SHAPE, rc.random_weights(SHAPE, np.random.default_rng(3)), layout="released", dtype="F32")
    return tmp_path


def read_header(path: Path) -> tuple[Header, bytes]:
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write_header(path: Path, header: Header, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change(folder: Path, edit: Callable[[Header], object]) -> None:
    path = folder / "model.safetensors"
    header, data = read_header(path)
    edit(header)
    write_header(path, header, data)


def change_values(folder: Path, tensor: str, edit: Callable[[np.ndarray], object]) -> None:
    """`edit` gets the float32 values of a tensor, in the tensor's shape, to be changed in place."""
    path = folder / "model.safetensors"
    header, data = read_header(path)
    begin, end = header[tensor]["data_offsets"]
    values = np.frombuffer(data[begin:end], "<f4").reshape(header[tensor]["shape"]).copy()
    edit(values)
    write_header(path, header, data[:begin] + values.tobytes() + data[end:])


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= fields
    path.write_text(json.dumps(config))


def remove_tensor(folder: Path, tensor: str) -> None:
    """Leaves no gap: the tensors behind it move forward."""
    path = folder / "model.safetensors"
    header, data = read_header(path)
    begin, end = header.pop(tensor)["data_offsets"]
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
    write_header(path, header, data[:begin] + data[end:])


def refusal(path: Path, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        gemmantle.load(path, device="reference").close()
    assert isinstance(caught.value, gemmantle.GemmantleError)
    return str(caught.value)


def test_the_undamaged_folder_loads(folder: Path) -> None:
    with gemmantle.load(folder, device="reference") as engine:
        assert engine.logits([2, 3]).shape == (2, 120)


def test_a_missing_tensor_is_named_with_its_shape(folder: Path) -> None:
    remove_tensor(folder, DOWN)
    message = refusal(folder, gemmantle.CorruptFile)
    assert f"tensor '{DOWN}' is missing" in message
    assert "[24, 20]" in message


def test_a_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    change(folder, lambda header: header[DOWN].update(shape=[20, 24]))
    message = refusal(folder, gemmantle.CorruptFile)
    assert f"tensor '{DOWN}' has shape [20, 24]" in message
    assert "[24, 20]" in message


def test_a_shape_that_its_bytes_do_not_fill_is_refused(folder: Path) -> None:
    change(folder, lambda header: header[DOWN].update(shape=[24, 21]))
    assert f"tensor '{DOWN}' has 1920 bytes; shape [24, 21] of F32" in refusal(folder, gemmantle.CorruptFile)


def test_a_wrong_dtype_is_named(folder: Path) -> None:
    change(folder, lambda header: header[DOWN].update(dtype="I32"))
    message = refusal(folder, gemmantle.UnsupportedModel)
    assert DOWN in message
    assert "its dtype is I32; F32, BF16 and F16 are read" in message


def test_a_dtype_of_another_width_contradicts_the_size(folder: Path) -> None:
    change(folder, lambda header: header[DOWN].update(dtype="F16"))
    assert f"tensor '{DOWN}' has 1920 bytes; shape [24, 20] of F16" in refusal(folder, gemmantle.CorruptFile)


def test_overlapping_tensors_are_named(folder: Path) -> None:
    def overlap(header: Header) -> None:
        begin, end = header[DOWN]["data_offsets"]
        header[DOWN]["data_offsets"] = [begin - 16, end - 16]

    change(folder, overlap)
    message = refusal(folder, gemmantle.CorruptFile)
    assert "overlap" in message
    assert DOWN in message


def test_every_truncation_is_refused_in_words(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    seed = 7
    cuts = [0, 1, 7, 8, 9, len(whole) - 1, *random.Random(seed).sample(range(len(whole)), 60)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(gemmantle.CorruptFile, match=r"model\.safetensors"):
            _core.Checkpoint(str(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_is_refused_when_it_is_placed(folder: Path, value: float) -> None:
    change_values(folder, NORM, lambda values: values.__setitem__(5, value))
    message = refusal(folder, gemmantle.CorruptFile)
    assert f"tensor '{NORM}' holds {value} at [5]" in message


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_a_matrix_that_is_not_finite_is_named_by_the_step_that_meets_it(folder: Path, device: str) -> None:
    change_values(folder, DOWN, lambda values: values.__setitem__((4, 6), np.inf))
    with gemmantle.load(folder, device=device) as engine:
        for _ in range(2):
            with pytest.raises(gemmantle.CorruptFile, match=f"{DOWN}' holds inf at row 4, column 6"):
                engine.logits([2, 3])


# One row of the per-layer table: only the token that reads it is hurt.
@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_a_weight_that_is_not_finite_ends_its_step_and_the_engine_lives_on(folder: Path, device: str) -> None:
    change_values(folder, PLE, lambda values: values.__setitem__((7, 3), np.nan))
    with gemmantle.load(folder, device=device) as engine:
        before = engine.logits([2, 3])
        with pytest.raises(gemmantle.CorruptFile, match=f"{PLE}.*row 7, column 3"):
            engine.logits([2, 7])
        np.testing.assert_array_equal(engine.logits([2, 3]), before)


def test_deep_json_is_refused_before_it_is_parsed(folder: Path) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    (folder / "config.json").write_bytes(deep)
    assert "config.json' is nested 100000 levels deep; at most 64" in refusal(folder, gemmantle.CorruptFile)
    (folder / "config.json").write_bytes(b'{"text_config":' + deep + b"}")
    assert "nested 100001 levels deep" in refusal(folder, gemmantle.CorruptFile)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"a":\x00}', b"[]", b"null", b'"text"'])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    assert "config.json" in refusal(folder, gemmantle.CorruptFile)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", "four"),
        ("hidden_size", 2**63),
        ("hidden_size", 1.5),
        ("num_attention_heads", 0),
        ("head_dim", [8]),
        ("rms_norm_eps", "small"),
        ("layer_types", ["sliding_attention"]),
        ("layer_types", ["other"] * 4),
    ],
)
def test_an_absurd_configuration_value_is_named(folder: Path, field: str, value: object) -> None:
    change_config(folder, **{field: value})
    assert field in refusal(folder, gemmantle.CorruptFile)


def test_an_unknown_architecture_is_named(folder: Path) -> None:
    change_config(folder, model_type="llama")
    message = refusal(folder, gemmantle.UnsupportedModel)
    assert "'llama'" in message
    assert "gemma4" in message


def test_another_variants_configuration_is_refused(folder: Path) -> None:
    change_config(folder, hidden_size=32)
    message = refusal(folder, gemmantle.CorruptFile)
    assert "embed_tokens.weight' has shape [120, 24]" in message
    assert "[120, 32]" in message


def test_an_index_cannot_leave_its_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../a.safetensors"}}))
    message = refusal(folder, gemmantle.CorruptFile)
    assert "'../../a.safetensors'; a plain name" in message


def test_missing_weights_and_missing_shards_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no .safetensors file" in refusal(folder, gemmantle.ModelNotFound)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(folder, gemmantle.ModelNotFound)
    assert "model-00001-of-00002.safetensors' is named by 'model.safetensors.index.json' and is not there" in message


def gguf_text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(tensors: int = 0, keys: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


HUGE = 2**62
GGUF_FILES: dict[str, tuple[bytes, type[Exception], str]] = {
    "empty": (b"", gemmantle.CorruptFile, "does not begin with 'GGUF'"),
    "other": (b"PK\x03\x04" * 8, gemmantle.CorruptFile, "does not begin with 'GGUF'"),
    "version": (gguf(version=9), gemmantle.UnsupportedModel, "is GGUF version 9; versions 2 and 3"),
    "big_endian": (gguf(version=3 << 24), gemmantle.UnsupportedModel, "big-endian"),
    "tensors": (gguf(tensors=HUGE), gemmantle.CorruptFile, f"claims {HUGE} tensors"),
    "keys": (gguf(keys=HUGE), gemmantle.CorruptFile, f"claims {HUGE} metadata keys"),
    "key_length": (
        gguf(keys=1, body=struct.pack("<Q", HUGE) + b"k" * 20),
        gemmantle.CorruptFile,
        f"a metadata key of {HUGE} bytes",
    ),
    "string_length": (
        gguf(keys=1, body=gguf_text("k") + struct.pack("<IQ", 8, HUGE)),
        gemmantle.CorruptFile,
        "ends inside a metadata string",
    ),
    "array_length": (
        gguf(keys=1, body=gguf_text("k") + struct.pack("<IIQ", 9, 8, HUGE)),
        gemmantle.CorruptFile,
        f"claims {HUGE} values in metadata array 'k'",
    ),
    "nested": (
        gguf(keys=1, body=gguf_text("k") + struct.pack("<IIQ", 9, 9, 1) * 3),
        gemmantle.UnsupportedModel,
        "array of arrays under metadata key 'k'",
    ),
    "shape": (
        gguf(tensors=1, body=gguf_text("t") + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0)),
        gemmantle.CorruptFile,
        "tensor 't' has shape",
    ),
    "bytes": (
        gguf(tensors=1, body=gguf_text("t") + struct.pack("<IQIQ", 1, 2**40, 0, 0)),
        gemmantle.CorruptFile,
        f"tensor 't' needs {2**42} bytes at data byte 0; the file holds 0 bytes",
    ),
    "architecture": (
        gguf(keys=1, body=gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text("llama")),
        gemmantle.UnsupportedModel,
        "'llama'",
    ),
    "no_architecture": (gguf(), gemmantle.UnsupportedModel, "general.architecture"),
}


@pytest.mark.parametrize("case", GGUF_FILES)
def test_hostile_gguf_files_are_refused(tmp_path: Path, case: str) -> None:
    content, error, part = GGUF_FILES[case]
    path = tmp_path / f"{case}.gguf"
    path.write_bytes(content)
    assert part in refusal(path, error)

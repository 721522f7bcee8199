"""Encoding and decoding with the published vocabulary and with small ones."""

from __future__ import annotations

import json
import random
import re

import pytest
from conftest import DATA

from gemmantle.chat.segments import SPECIAL_IDS
from gemmantle.chat.tokenizer import Tokenizer, from_gguf_metadata
from gemmantle.errors import CorruptFile, ModelNotFound, RequestError, UnsupportedModel

# Spec prompting 1.7.
VECTORS = [
    ("Hello, world!", [9259, 236764, 1902, 236888]),
    ("Hello world", [9259, 1902]),
    (" Hello world", [26352, 1902]),
    ("The capital of France is Paris.", [818, 5279, 529, 7001, 563, 9079, 236761]),
    ("    Hello\n    Hello", [140, 9259, 107, 140, 9259]),
    ("Äpfel", [239122, 22744, 535]),
    ("ied 4 ½ months", [1178, 236743, 236812, 47041, 3794]),
    ('func main() { fmt.Println("hello") }', [6823, 1689, 825, 642, 22766, 236761, 29006, 885, 23391, 1373, 682]),
    (
        "The answer is 42, not 43.5 or -1",
        [818, 3890, 563, 236743, 236812, 236778, 236764, 711, 236743, 236812, 236800, 236761, 236810, 653, 753, 236770],
    ),
    ("e\u0301", [236744, 238288]),
]
CONTROL_VECTORS = [
    (
        "<|turn>user\nWhat is 2+2?<turn|>\n<|turn>model\n",
        [105, 2364, 107, 3689, 563, 236743, 236778, 236862, 236778, 236881, 106, 107, 105, 4368, 107],
    ),
    (
        '<|tool_call>call:bash{command:<|"|>ls -la<|"|>}<tool_call|>',
        [48, 6639, 236787, 42422, 236782, 7674, 236787, 52, 5629, 753, 2149, 52, 236783, 49],
    ),
    (
        '<|tool>declaration:bash{description:<|"|>Run a command<|"|>}<tool|>',
        [46, 163688, 236787, 42422, 236782, 7777, 236787, 52, 7306, 496, 4991, 52, 236783, 47],
    ),
    (
        "<|channel>thought\nLet me think about this...<channel|>The answer is 42.",
        [100, 45518, 107, 6481, 786, 1751, 1003, 672, 1390, 101, 818, 3890, 563, 236743, 236812, 236778, 236761],
    ),
]
AGREED = [s for s in SPECIAL_IDS if s != "<|video|>"]  # the SentencePiece model does not know that one


@pytest.fixture(params=["tokenizers_library", "sentencepiece_library"])
def published(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("text", "ids"), VECTORS)
def test_published_vectors(published, text, ids):
    assert published.encode(text) == ids
    assert published.decode(ids) == text


@pytest.mark.parametrize(("text", "ids"), CONTROL_VECTORS)
def test_published_vectors_with_control_strings(published, text, ids):
    assert published.encode(text, control=True) == ids
    assert published.decode(ids) == text


def test_published_facts(published):
    assert published.size == 262_144
    assert published.bos_id == 2
    assert published.eos_ids == [1, 106, 50]
    assert {s: published.special[s] for s in AGREED} == {s: SPECIAL_IDS[s] for s in AGREED}
    assert published.control == sorted(published.special.values())
    assert set(published.suppress) == set(published.special.values()) - {1, 48, 49, 50, 52, 100, 101, 106}
    assert published.suppress_tokens == []
    pieces = published.pieces()
    assert len(pieces) == published.size
    assert [pieces[238 + byte] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert (pieces[107], pieces[138], pieces[236_743], pieces[48]) == (b"\n", b"  ", b" ", b"<|tool_call>")


@pytest.mark.parametrize("spelling", AGREED)
def test_text_never_becomes_a_control_token(published, spelling):
    for text in (spelling, f"a{spelling}b", f" {spelling}\n", spelling * 2):
        ids = published.encode(text)
        assert not set(ids) & set(published.control)
        assert published.decode(ids) == text
    assert published.encode(f"a{spelling}", control=True)[-1] == SPECIAL_IDS[spelling]


def test_control_strings_are_split_leftmost_and_longest(published):
    ids = published.encode("<|image|><|image><image|>", control=True)
    assert ids == [258_880, 255_999, 258_882]


def test_both_libraries_agree_on_prose_code_and_blanks(tokenizers_library, sentencepiece_library):
    seed = 20_260_709
    rng = random.Random(seed)
    texts = [(DATA / "english.txt").read_text(encoding="utf-8")]
    alphabet = [
        *"aeiou bcd\n\t  .,:{}[]\"'0123456789<>|/=",
        "▁",
        "é",
        "ß",
        "你",
        "好",
        "🙂",
        "\r",
        "\u00a0",
        "\u200b",
        "\x00",
    ]
    texts += [" " * n + "x" + "\n" * n + "\t" * n for n in range(1, 70)]
    texts += ["".join(rng.choices(alphabet, k=rng.randrange(1, 60))) for _ in range(600)]
    user_defined = re.compile(r"</?\w+>|\[multimodal\]")
    for text in texts:
        if user_defined.search(text):
            continue
        ids = tokenizers_library.encode(text)
        assert ids == sentencepiece_library.encode(text), f"seed {seed}: {text!r}"
        assert tokenizers_library.decode(ids) == text.replace("▁", " ")


def test_the_libraries_differ_on_user_defined_strings_only(tokenizers_library, sentencepiece_library):
    tag = re.compile(rb"</?[a-z][a-z0-9]*>\Z")
    pieces = sentencepiece_library.pieces()
    tags = [p for i, p in enumerate(pieces) if tag.match(p) and i not in sentencepiece_library.control]
    html = [p.decode() for p in tags if not p.startswith(b"<unused")]
    assert len(html) == 70
    for text in [*html, "[multimodal]", "<unused5>", "<unused2000>"]:
        assert len(sentencepiece_library.encode(text)) == 1, text
        assert len(tokenizers_library.encode(text)) > 1, text
    assert tokenizers_library.encode("<|video|>", control=True) == [258_884]
    assert "<|video|>" not in sentencepiece_library.special


def test_decoding_joins_bytes_and_replaces_what_is_no_utf8(published):
    assert published.decode([238 + b for b in "ß🙂".encode()]) == "ß🙂"
    assert published.decode([238 + 0xF0, 238 + 0x9F, 9259]) == "\ufffdHello"
    assert published.decode([2, 9259, 106], skip_control=True) == "Hello"
    assert published.encode("") == []
    assert published.encode("", control=True) == []
    with pytest.raises(RequestError, match="262144"):
        published.decode([262_144])


def test_half_a_surrogate_pair_is_refused_with_its_place(published):
    with pytest.raises(RequestError, match="character 3"):
        published.encode("abc\ud800")


# --- small vocabularies -----------------------------------------------------------------------------------------------

SMALL_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|tool_response>", "<|channel>"]
SMALL_WORDS = ["▁", "a", "b", "c", "ab", "abc", "▁ab", "<", "|", ">", "t", "u", "r", "n"]
SMALL_MERGES = [("a", "b"), ("ab", "c"), ("▁", "ab")]
SMALL_TOKENS = [*SMALL_SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *SMALL_WORDS]


def small_json(path, special=True):
    from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

    vocabulary = {piece: i for i, piece in enumerate(SMALL_TOKENS)}
    model = Tokenizer(models.BPE(vocabulary, SMALL_MERGES, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.normalizer = normalizers.Replace(" ", "▁")
    model.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    model.add_tokens([AddedToken(s, special=special, normalized=False) for s in SMALL_SPECIAL])
    model.save(str(path))
    return path


def small_metadata(**changes):
    types = [3, 3, 3, 2, *([4] * (len(SMALL_SPECIAL) - 4)), *([6] * 256), *([1] * len(SMALL_WORDS))]
    scores = [0.0] * (len(SMALL_TOKENS) - len(SMALL_WORDS)) + [float(-i) for i in range(len(SMALL_WORDS))]
    values = {
        "model": b"llama",
        "tokens": [t.encode() for t in SMALL_TOKENS],
        "scores": scores,
        "token_type": types,
        "bos_token_id": 2,
        "eos_token_id": 1,
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}


def small_gguf(**changes):
    return from_gguf_metadata(small_metadata(**changes).get, "small.gguf")


def gguf_merges():
    return [f"{left} {right}".encode() for left, right in SMALL_MERGES]


@pytest.fixture(params=["json", "json without special flags", "gguf scores", "gguf merges"])
def small(request, tmp_path):
    if request.param.startswith("json"):
        return Tokenizer.from_file(small_json(tmp_path / "tokenizer.json", special=request.param == "json"))
    if request.param == "gguf scores":
        return small_gguf()
    return small_gguf(model=b"gemma4", merges=gguf_merges())


def test_small_vocabularies_use_their_own_ids(small):
    ids = {piece: i for i, piece in enumerate(SMALL_TOKENS)}
    assert small.size == len(SMALL_TOKENS)
    assert small.special == {s: i for i, s in enumerate(SMALL_SPECIAL)}
    assert small.eos_ids == [1, 5, 6]
    assert small.bos_id == 2
    assert small.suppress == [0, 2, 3, 4]
    assert small.encode("abc ab") == [ids["abc"], ids["▁ab"]]
    assert small.encode("é") == [ids["<0xC3>"], ids["<0xA9>"]]
    assert small.encode("ab<turn|>c", control=True) == [ids["ab"], ids["<turn|>"], ids["c"]]
    assert not set(small.encode("ab<turn|><bos>")) & set(small.control)
    assert small.decode(small.encode("a<turn|>é c")) == "a<turn|>é c"


def test_scores_of_the_published_model_give_the_published_ids(sentencepiece_library):
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((DATA / "tokenizer_gemma4.model").read_bytes())
    metadata = {
        "tokenizer.ggml.model": b"llama",
        "tokenizer.ggml.tokens": [p.piece.encode() for p in model.pieces],
        "tokenizer.ggml.scores": [p.score for p in model.pieces],
        "tokenizer.ggml.token_type": [p.type for p in model.pieces],
        "tokenizer.ggml.eos_token_id": 106,
        "tokenizer.ggml.suppress_tokens": [258_883, 258_882],
    }
    tokenizer = from_gguf_metadata(metadata.get, "published.gguf")
    for text, ids in [*VECTORS, ((DATA / "english.txt").read_text(encoding="utf-8"), None)]:
        assert tokenizer.encode(text) == (ids or sentencepiece_library.encode(text))
    for text, ids in CONTROL_VECTORS:
        assert tokenizer.encode(text, control=True) == ids
    assert tokenizer.pieces() == sentencepiece_library.pieces()
    assert tokenizer.suppress_tokens == [258_882, 258_883]


def test_gguf_says_where_to_stop():
    assert small_gguf(eos_token_ids=[1, 5]).eos_ids == [1, 5]
    assert small_gguf(eos_token_id=7).eos_ids == [1, 5, 6, 7]
    assert small_gguf(suppress_tokens=[8, 9]).suppress == [0, 2, 3, 4, 8, 9]


def test_gemma3_control_strings_stay_out_of_text():
    tokens = list(SMALL_TOKENS)
    tokens[4:6] = ["<start_of_turn>", "<end_of_turn>"]
    types = small_metadata()["tokenizer.ggml.token_type"]
    types[4:6] = [3, 3]
    tokenizer = small_gguf(tokens=[t.encode() for t in tokens], token_type=types)
    assert tokenizer.eos_ids == [1, 6, 5]
    assert "<start_of_turn>" not in tokenizer.special
    assert {4, 5} <= set(tokenizer.control)
    assert 4 not in tokenizer.encode("<start_of_turn>")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"tokens": None}, ModelNotFound, "tokens"),
        ({"tokens": []}, UnsupportedModel, "0 tokens"),
        ({"model": b"gpt2"}, UnsupportedModel, "gpt2"),
        ({"scores": None}, CorruptFile, "scores"),
        ({"scores": [0.0]}, CorruptFile, "scores: 1"),
        ({"token_type": [1]}, CorruptFile, "1 token types"),
        ({"eos_token_id": "x"}, CorruptFile, "token ids"),
        ({"eos_token_ids": [True]}, CorruptFile, "token ids"),
        ({"merges": [b"a nowhere"]}, CorruptFile, "a nowhere"),
        ({"merges": [b"ab"]}, CorruptFile, "'ab'"),
        ({"merges": [b"b c"]}, CorruptFile, "bc"),
    ],
)
def test_bad_gguf_metadata_is_refused_with_words(changes, error, words):
    with pytest.raises(error, match=re.escape(words)):
        small_gguf(**changes)


# --- files and folders ------------------------------------------------------------------------------------------------


def test_a_folder_brings_its_stops_and_its_suppressed_ids(tmp_path):
    small_json(tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(tmp_path).eos_ids == [1, 5, 6]
    config = {"eos_token_id": [1, 6], "suppress_tokens": [9]}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = Tokenizer.from_file(path)
        assert tokenizer.eos_ids == [1, 6]
        assert tokenizer.suppress_tokens == [9]
        assert tokenizer.suppress == [0, 2, 3, 4, 9]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert Tokenizer.from_file(str(tmp_path)).eos_ids == [1]


def test_a_folder_with_a_sentencepiece_model(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((DATA / "tokenizer_gemma4.model").read_bytes())
    assert Tokenizer.from_file(tmp_path).encode("Hello world") == [9259, 1902]


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("nothing.json", None, ModelNotFound, "nothing.json"),
        ("tokenizer.json", b"{", CorruptFile, "tokenizer.json"),
        ("tokenizer.model", b"\xff\xff\xff", CorruptFile, "tokenizer.model"),
        ("tokenizer.model", b"", CorruptFile, "without pieces"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, content, error, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=re.escape(words)):
        Tokenizer.from_file(tmp_path / name)


def test_a_folder_without_a_tokenizer_names_the_missing_files(tmp_path):
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json and no tokenizer\.model"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [1.5]}', "[" * 100_000])
def test_a_bad_generation_config_is_refused_by_name(tmp_path, text):
    small_json(tmp_path / "tokenizer.json")
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CorruptFile, match="generation_config"):
        Tokenizer.from_file(tmp_path)


def test_special_ids_of_the_published_size_are_checked():
    pieces = [b""] * 262_144
    pieces[7] = b"<|channel>"
    with pytest.raises(CorruptFile, match=r"id 7.* 100 "):
        Tokenizer(lambda text: [], pieces, [7])

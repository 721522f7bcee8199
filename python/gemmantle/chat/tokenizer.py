"""Text to ids and back: one small interface over `sentencepiece` and `tokenizers`, from files, folders and GGUF.

Encoding is the library's work, with one rule on top: ordinary text never becomes a control token. `control=True` splits
the text at control strings first (prompting 1.2 step 1), so both libraries agree there too. Decoding is a table of
exact bytes, the same that the core uses. BOS is never added.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmantle.chat.segments import SPECIAL_IDS
from gemmantle.errors import CorruptFile, ModelNotFound, RequestError, UnsupportedModel

__all__ = ["Tokenizer"]

PUBLISHED_SIZE = 262_144

# Control strings that a chat model is never meant to write (prompting 2, "may be sampled: no").
_NEVER_SAMPLED = (
    "<pad>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<|tool>",
    "<tool|>",
    "<tool_response|>",
    "<|think|>",
    "<|turn>",
    "<|image>",
    "<|audio>",
    "<|image|>",
    "<|audio|>",
    "<image|>",
    "<audio|>",
    "<|video|>",
)
_STOPS = ("<eos>", "<turn|>", "<|tool_response>", "<end_of_turn>")  # the last one is Gemma 3's

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>\Z")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # the same numbers in SentencePiece and GGUF

_GGUF_KINDS = ("llama", "gemma4")

_Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the files around a tokenizer say about its use."""

    eos_ids: list[int] | None = None  # None: end of text, of a turn, and a tool's turn, where the vocabulary has them
    more_eos_ids: Sequence[int] = ()  # in addition to those
    suppress_tokens: Sequence[int] = ()

    @staticmethod
    def of_folder(folder: Path) -> Settings:
        """From generation_config.json. config.json lacks one of the stop ids (prompting 2.1), so it is not asked."""
        path = folder / "generation_config.json"
        if not path.is_file():
            return Settings()
        try:
            if path.stat().st_size > 1 << 20:
                raise ValueError("larger than 1 MiB")
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise ValueError("no JSON object")
            return Settings(_ids(data.get("eos_token_id")), suppress_tokens=_ids(data.get("suppress_tokens")) or ())
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{path}: {error}") from None


class Tokenizer:
    """A vocabulary and its encoder.

    special: spelling -> id of those of the 24 control strings that are there. control: ids that never become text, in
    ascending order. eos_ids: where generation stops. suppress: ids a chat must not sample; suppress_tokens: the list of
    the checkpoint itself, which also holds for raw prompts.
    """

    def __init__(
        self,
        encode: _Encode,
        pieces: Sequence[bytes],
        control: Iterable[int],
        *,
        settings: Settings | None = None,
        bos_id: int | None = None,
        source: str = "",
    ) -> None:
        settings = settings or Settings()
        self._encode = encode
        self._pieces = list(pieces)
        self.source = source
        self.control: list[int] = sorted(set(control))
        spelled = {self._pieces[i]: i for i in reversed(self.control)}
        self.special: dict[str, int] = {s: spelled[s.encode()] for s in SPECIAL_IDS if s.encode() in spelled}
        self._check_special()
        self._control_pattern = re.compile(
            "|".join(re.escape(s) for s in sorted(self.special, key=len, reverse=True)) or r"(?!)"
        )
        self.bos_id: int | None = self.special.get("<bos>") if bos_id is None else bos_id
        if settings.eos_ids is None:
            stops = [*(spelled[s.encode()] for s in _STOPS if s.encode() in spelled), *settings.more_eos_ids]
        else:
            stops = settings.eos_ids
        self.eos_ids: list[int] = list(dict.fromkeys(stops))
        self.suppress_tokens: list[int] = sorted(set(settings.suppress_tokens))
        never = {self.special[s] for s in _NEVER_SAMPLED if s in self.special}
        self.suppress: list[int] = sorted((never | set(self.suppress_tokens)) - set(self.eos_ids))

    @staticmethod
    def from_file(path: str | Path) -> Tokenizer:
        """From `tokenizer.json`, `tokenizer.model`, a GGUF file, or a checkpoint folder with one of the first two.

        Raises ModelNotFound naming the missing file, CorruptFile, UnsupportedModel.
        """
        path = Path(path)
        if path.is_dir():
            return _from_folder(path)
        if not path.is_file():
            raise ModelNotFound(
                f"no tokenizer at '{path}'; give tokenizer.json, tokenizer.model, a GGUF file or a folder"
            )
        with path.open("rb") as file:
            start = file.read(64)
        if start.startswith(b"GGUF"):
            return _from_gguf(path)
        settings = Settings.of_folder(path.parent)
        if path.suffix == ".json" or start.lstrip().startswith(b"{"):
            return _from_json(path, settings)
        return _from_model(path, settings)

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self._pieces)

    def pieces(self) -> list[bytes]:
        """The exact bytes of every id: byte entries decoded, U+2581 already a space. Ids without a piece are empty."""
        return self._pieces

    def encode(self, text: str, control: bool = False) -> list[int]:
        """Ids of `text`. control=False: control strings are ordinary characters; True: they become their ids."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text holds half of a surrogate pair at character {error.start}, which is no Unicode text; "
                "replace it, for example by U+FFFD"
            ) from None
        if not control:
            return self._encode(text) if text else []
        ids: list[int] = []
        at = 0
        for match in self._control_pattern.finditer(text):
            if match.start() > at:
                ids += self._encode(text[at : match.start()])
            ids.append(self.special[match.group()])
            at = match.end()
        return ids + (self._encode(text[at:]) if at < len(text) else [])

    def decode(self, ids: Iterable[int], *, skip_control: bool = False) -> str:
        """Text of `ids`. Control ids give their spelling, or nothing; bytes that are no UTF-8 give U+FFFD."""
        dropped = set(self.control) if skip_control else frozenset()
        parts: list[bytes] = []
        for token in ids:
            token = int(token)
            if not 0 <= token < self.size:
                raise RequestError(f"token id {token} is outside the vocabulary; use ids from 0 to {self.size - 1}")
            if token not in dropped:
                parts.append(self._pieces[token])
        return b"".join(parts).decode("utf-8", "replace")

    def _check_special(self) -> None:
        if self.size != PUBLISHED_SIZE:
            return
        for spelling, token in self.special.items():
            if token != SPECIAL_IDS[spelling]:
                raise CorruptFile(
                    f"{self.source}: {spelling!r} has id {token}; the published vocabulary of {PUBLISHED_SIZE} pieces "
                    f"has it at {SPECIAL_IDS[spelling]} (is this tokenizer from another model?)"
                )


def _ids(value: Any) -> list[int] | None:
    if value is None:
        return None
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
    if {type(v) for v in values} - {int} or min(values, default=0) < 0:
        raise ValueError(f"{value!r} is no list of token ids")
    return values


def _from_folder(folder: Path) -> Tokenizer:
    settings = Settings.of_folder(folder)
    if (folder / "tokenizer.json").is_file():
        return _from_json(folder / "tokenizer.json", settings)
    models = [folder / "tokenizer.model", *sorted(folder.glob("tokenizer*.model"))]
    for path in models:
        if path.is_file():
            return _from_model(path, settings)
    raise ModelNotFound(f"'{folder}' has no tokenizer.json and no tokenizer.model; put one there, or use token ids")


# --- tokenizers -------------------------------------------------------------------------------------------------------


def _from_json(path: Path, settings: Settings) -> Tokenizer:
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CorruptFile(f"{path}: {error}") from None
    return _of_library(library, settings, str(path))


def _of_library(
    library: Any,
    settings: Settings,
    source: str,
    bos_id: int | None = None,
    vocabulary: Mapping[str, int] | None = None,
) -> Tokenizer:
    """vocabulary: that of the library, with added tokens, where the caller has it."""
    import tokenizers

    added: Mapping[int, Any] = library.get_added_tokens_decoder()
    known = {token.content for token in added.values() if token.special}
    if vocabulary is None:
        vocabulary = library.get_vocab(with_added_tokens=True)
    # Files that call a control string an ordinary added token would let a caller's text turn into it.
    missing = [s for s in SPECIAL_IDS if s in vocabulary and s not in known]
    if missing:
        library.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in missing])
    library.no_padding()
    library.no_truncation()
    library.encode_special_tokens = True

    def encode(text: str) -> list[int]:
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for piece, token in vocabulary.items():
        pieces[token] = _piece_bytes(piece)
    control = {vocabulary[s] for s in known | set(missing)}
    return Tokenizer(
        encode,
        pieces,
        control,
        settings=settings,
        bos_id=bos_id,
        source=source,
    )


def _piece_bytes(piece: str) -> bytes:
    byte = _BYTE_PIECE.match(piece) if piece.startswith("<") else None
    return bytes([int(byte.group(1), 16)]) if byte else piece.replace("▁", " ").encode()


# --- sentencepiece ----------------------------------------------------------------------------------------------------


def _from_model(path: Path, settings: Settings) -> Tokenizer:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CorruptFile(f"{path}: no SentencePiece model: {error}") from None
    if not model.pieces:
        raise CorruptFile(f"{path}: a SentencePiece model without pieces")
    return _of_proto(model, settings, str(path))


def _sentencepiece_encode(model: bytes, source: str) -> _Encode:
    """model: a serialised ModelProto."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise CorruptFile(f"{source}: {error}") from None

    def encode(text: str) -> list[int]:
        ids: list[int] = processor.EncodeAsIds(text)
        return ids

    return encode


def _of_proto(model: Any, settings: Settings, source: str, bos_id: int | None = None) -> Tokenizer:
    for piece in model.pieces:
        if piece.piece in SPECIAL_IDS and piece.type != _UNKNOWN:
            piece.type = _CONTROL  # the library never finds control pieces in text
    encode = _sentencepiece_encode(model.SerializeToString(), source)
    pieces: list[bytes] = []
    control: list[int] = []
    for token, piece in enumerate(model.pieces):
        byte = piece.type == _BYTE
        pieces.append(_piece_bytes(piece.piece) if byte else piece.piece.replace("▁", " ").encode())
        if piece.type in (_CONTROL, _UNKNOWN):
            control.append(token)
    return Tokenizer(
        encode,
        pieces,
        control,
        settings=settings,
        bos_id=bos_id,
        source=source,
    )


# --- GGUF -------------------------------------------------------------------------------------------------------------


def _from_gguf(path: Path) -> Tokenizer:
    core: Any = importlib.import_module("gemmantle._core")
    checkpoint, source = core.Checkpoint(str(path)), str(path)
    with _uncollected():
        found = core.model_of_merges(checkpoint, set(SPECIAL_IDS))
        if found is None or _gguf_kind(checkpoint.get) not in _GGUF_KINDS:
            return from_gguf_metadata(checkpoint.get, source)
        settings, bos_id = _gguf_settings(checkpoint.get, source)
        model, pieces, control = found
        return Tokenizer(
            _sentencepiece_encode(model, source), pieces, control, settings=settings, bos_id=bos_id, source=source
        )


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """A vocabulary is a million small objects, none of them garbage; looking for cycles would take as long again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def from_gguf_metadata(get: Callable[[str], Any], source: str) -> Tokenizer:
    """A tokenizer from the metadata of a GGUF file; `get` gives a value by key or None.

    Files with merges go to `tokenizers` here: their scores say nothing (prompting 1.5). Others need kind `llama` and
    scores.
    """
    key = "tokenizer.ggml."
    kind = _gguf_kind(get)
    raw = get(key + "tokens")
    if raw is None:
        raise ModelNotFound(f"{source}: the file holds no tokenizer (no {key}tokens); use token ids")
    tokens = _texts(raw)
    if not tokens or kind not in _GGUF_KINDS:
        raise UnsupportedModel(
            f"{source}: tokenizer of kind {kind!r} with {len(tokens)} tokens; 'llama' and 'gemma4' are known"
        )
    settings, bos_id = _gguf_settings(get, source)
    try:
        types = _ids(get(key + "token_type"))
    except (TypeError, ValueError) as error:
        raise CorruptFile(f"{source}: {error}") from None
    if types is not None and len(types) != len(tokens):
        raise CorruptFile(f"{source}: {len(tokens)} tokens, but {len(types)} token types")
    if types is None:
        types = [_BYTE if _BYTE_PIECE.match(t) else _NORMAL for t in tokens]

    merges = get(key + "merges")
    if merges is not None and len(merges):
        vocabulary = {piece: token for token, piece in enumerate(tokens)}
        library = _library_of_merges(vocabulary, tokens, types, merges, source)
        return _of_library(library, settings, source, bos_id, vocabulary)
    scores = get(key + "scores")
    if scores is None or len(scores) != len(tokens):
        count = "none" if scores is None else len(scores)
        raise CorruptFile(f"{source}: {len(tokens)} tokens, but scores: {count}, and no merges")
    prefix = bool(get(key + "add_space_prefix") or False)
    return _of_proto(_proto_of_scores(tokens, scores, types, prefix), settings, source, bos_id)


def _gguf_kind(get: Callable[[str], Any]) -> str:
    return _text(get("tokenizer.ggml.model"))


def _gguf_settings(get: Callable[[str], Any], source: str) -> tuple[Settings, int | None]:
    """What the metadata says about the use of the tokenizer, and the id of BOS."""
    key = "tokenizer.ggml."
    try:
        settings = Settings(
            eos_ids=_ids(get(key + "eos_token_ids")),
            more_eos_ids=_ids(get(key + "eos_token_id")) or (),
            suppress_tokens=_ids(get(key + "suppress_tokens")) or (),
        )
        bos = _ids(get(key + "bos_token_id"))
    except (TypeError, ValueError) as error:
        raise CorruptFile(f"{source}: {error}") from None
    return settings, bos[0] if bos else None


def _proto_of_scores(tokens: Sequence[str], scores: Iterable[float], types: Sequence[int], prefix: bool) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    has_bytes = False
    unknown = None
    for token, (piece, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        model.pieces.add(piece=piece, score=float(score), type=kind if _NORMAL <= kind <= _BYTE else _NORMAL)
        has_bytes = has_bytes or kind == _BYTE
        unknown = token if kind == _UNKNOWN or (unknown is None and piece == "<unk>") else unknown
    if unknown is None:
        raise CorruptFile("the tokenizer of this file has no unknown token")
    model.pieces[unknown].type = _UNKNOWN
    model.trainer_spec.model_type = 2  # BPE
    model.trainer_spec.vocab_size = len(tokens)
    model.trainer_spec.byte_fallback = has_bytes
    model.trainer_spec.unk_id = unknown
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return model


def _library_of_merges(
    vocabulary: dict[str, int], tokens: Sequence[str], types: Sequence[int], merges: Sequence[Any], source: str
) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    pairs: list[Any] = [tuple(merge.split(" ", 1)) for merge in _texts(merges)]
    unknown = "<unk>" if "<unk>" in vocabulary else None
    try:
        library = Tokenizer(models.BPE(vocabulary, pairs, unk_token=unknown, byte_fallback=True, fuse_unk=True))
    except Exception as error:  # the library raises plain Exception
        wrong = [" ".join(pair) for pair in pairs if len(pair) != 2 or not vocabulary.keys() >= set(pair)]
        if wrong:
            raise CorruptFile(f"{source}: the merge {wrong[0]!r} is not two tokens with a space between them") from None
        raise CorruptFile(f"{source}: {error}") from None
    library.normalizer = normalizers.Replace(" ", "▁")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [t for t, kind in zip(tokens, types, strict=True) if t in SPECIAL_IDS or kind in (_CONTROL, _UNKNOWN)]
    library.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return library


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _texts(values: Iterable[Any]) -> list[str]:
    """_text() of hundreds of thousands: without a call for each."""
    return [v.decode("utf-8", "replace") if type(v) is bytes else _text(v) for v in values]

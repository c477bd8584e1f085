"""The tokenizer, from a folder, from the hub, or a tiny one built in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AddedToken,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
)

from .. import hub
from ..errors import ConfigError, SetupError, listing, suggest

PAD, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMG_START, IMG_END, IMG_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
SEG = "[SEG]"

# What the prompt template and the image placeholders cannot do without.
REQUIRED_TOKENS = (IM_START, IM_END, IMG_START, IMG_END, IMG_CONTEXT)

_TYPES = {"pretrained": {"type", "path"}, "byte_level": {"type", "words"}}
_OPTIONAL = {"words"}
_WORD = re.compile(r" ?[!-~]+")
# load_config fills in the path, so a wrong model.mllm.pretrained is first noticed here.
_KEY = "processor.tokenizer.path (by default that of model.mllm.pretrained)"
_EXPECTED = "tokenizer.json, or vocab.json and merges.txt"
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)

# One token each in the byte-level tokenizer, so that a demo's prompt is about 30 tokens long.
# Merge rank follows this order: words with a space before them come first because their merges
# start with the space and so cannot break up another word; those of bare lower-case words can.
_WORDS = (
    *(" segment", " the", " in", " this", " image", " is", " it", " and", " of", " all"),
    *(" blood", " vessel", " vessels", " artery", " arteries", " coronary", " vein", " catheter"),
    *("Please", "Sure", "It", "user", "assistant"),
)


def build_tokenizer(
    cfg: Mapping[str, object], added_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerBase:
    """Builds a tokenizer that knows InternVL's special tokens and ``added_tokens``.

    Args:
        cfg: ``dict(type='pretrained', path=<local folder or hub id>)``, or
            ``dict(type='byte_level')`` for one of bytes and the words of our prompts, for models
            that start from random weights; its ``words`` are further ones to be one token each
            (with the space before them, where they stand inside a text: ``" proximal"``).
        added_tokens: names that must be one special token each; one that the tokenizer already
            has keeps its id, the others get the next free ids, in this order.

    Raises:
        ConfigError: unknown type or key, words that cannot be, or a name in ``added_tokens`` that
            can't be one token.
        SetupError: the folder or hub id has no tokenizer, or one that is not InternVL's.
    """
    kind = cfg.get("type")
    if kind not in _TYPES:
        raise ConfigError(
            found=f"processor.tokenizer.type = {kind!r}{suggest(str(kind), _TYPES)}",
            expected=f"one of {sorted(_TYPES)}",
            fix="set processor.tokenizer=dict(type='pretrained', path=<folder or hub id>)",
        )
    needed = _TYPES[kind] - _OPTIONAL
    if not needed <= set(cfg) <= _TYPES[kind]:
        may = f" and, if you like, {sorted(_TYPES[kind] - needed)}" if _TYPES[kind] > needed else ""
        raise ConfigError(
            found=f"processor.tokenizer with the keys {sorted(cfg)}",
            expected=f"exactly the keys {sorted(needed)} for type='{kind}'{may}",
            fix="add the missing keys and remove the others in processor.tokenizer",
        )
    if kind == "byte_level":
        tokenizer = _byte_level(_checked(cfg.get("words", ())))
    else:
        tokenizer = _pretrained(cfg["path"])
    add_tokens(tokenizer, added_tokens)
    return tokenizer


def _checked(words: object) -> tuple[str, ...]:
    good = isinstance(words, (list, tuple)) and all(
        isinstance(word, str) and _WORD.fullmatch(word) for word in words
    )
    if not good or len(set(words)) < len(words):
        raise ConfigError(
            found=f"processor.tokenizer.words = {words!r}",
            expected="a list of different words of ASCII signs, each with at most the space before "
            "it",
            fix="set processor.tokenizer.words=[' proximal', ...], or take the key away",
        )
    return tuple(words)


def _byte_level(words: Sequence[str]) -> PreTrainedTokenizerBase:
    """A Qwen2 tokenizer of 256 bytes, the words of our prompts and more; the same at every call."""
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    # Those with a space first, as in _WORDS; the sort keeps their order otherwise.
    for word in sorted((*_WORDS, *words), key=lambda word: not word.startswith(" ")):
        whole = word.replace(" ", "Ġ")  # byte-level BPE writes the space byte as U+0120
        # BPE only joins neighbours: a word becomes one token through all of its beginnings.
        for end in range(1, len(whole)):
            if whole[: end + 1] not in vocab:
                vocab[whole[: end + 1]] = len(vocab)
                merges.append((whole[:end], whole[end]))
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=merges, unk_token=PAD, pad_token=PAD, eos_token=IM_END
    )
    # <|endoftext|> and <|im_end|> already came in by their roles.
    add_tokens(tokenizer, REQUIRED_TOKENS)
    split = [word for word in words if len(tokenizer.encode(word)) > 1]
    if split:
        raise ConfigError(
            found=f"processor.tokenizer.words with {listing(map(repr, split))}, which would not be "
            "one token",
            expected="words of letters, or of other characters, not of both; none that another "
            "word breaks up",
            fix="leave the word out of processor.tokenizer.words, or only its letters in",
        )
    return tokenizer


def _pretrained(path: object) -> PreTrainedTokenizerBase:
    if not isinstance(path, (str, Path)) or not str(path):
        raise ConfigError(
            found=f"processor.tokenizer.path = {path!r}",
            expected="a local folder or a hub id such as 'OpenGVLab/InternVL3-8B'",
            fix="set processor.tokenizer.path",
        )
    folder = hub.resolve(
        path, key=_KEY, allow_patterns=_FILES, is_complete=_is_complete, expected=_EXPECTED
    )
    if not _is_complete(folder):
        names = [file.name for file in folder.iterdir()]
        raise SetupError(
            found=f"no tokenizer in '{folder}' (it holds {listing(sorted(names)) or 'nothing'})",
            expected=_EXPECTED,
            fix=f"point {_KEY} to the folder of the base model's tokenizer",
        )
    try:
        # An empty config keeps transformers from reading the config.json that lies beside the
        # tokenizer in InternVL and Sa2VA folders: its auto_map names code that we never run, and
        # its model type is unknown to transformers. local_files_only keeps a relative path from
        # being asked for on the hub, which transformers does for large vocabularies.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=PreTrainedConfig(), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        # tokenizers raises bare Exception on a broken file; there is no narrower common type.
        raise SetupError(
            found=f"the tokenizer in '{folder}' can't be read: {type(error).__name__}: {error}",
            expected="the unchanged tokenizer files of an InternVL3 or Sa2VA model",
            fix="download the tokenizer files again, or correct processor.tokenizer.path",
        ) from error
    known = tokenizer.get_vocab()
    missing = [name for name in REQUIRED_TOKENS if name not in known]
    if missing or tokenizer.pad_token_id is None:
        what = listing(missing) if missing else "padding token"
        raise SetupError(
            found=f"the tokenizer in '{folder}' has no {what}",
            expected="the tokenizer of an InternVL3 or Sa2VA model (Qwen2 with InternVL's tokens)",
            fix="set processor.tokenizer.path to such a model, the same as model.mllm.pretrained",
        )
    return tokenizer


def _is_complete(folder: Path) -> bool:
    """Whether a cached snapshot holds a tokenizer: the cache may have the weights only."""
    names = {file.name for file in folder.iterdir()}
    return "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names


def add_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> None:
    """Makes each name one special token; see :func:`build_tokenizer`.

    Raises:
        ConfigError: a name that can't be one token.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    # Longest match wins: a name that holds another special token would hide it in a text.
    wrong = [
        name
        for name in names
        if not name.strip()
        or list(names).count(name) > 1
        or any(other != name and other in name for other in (*REQUIRED_TOKENS, *names))
    ]
    if not wrong:
        # One that is there as an ordinary token becomes special and keeps its id.
        new = [AddedToken(name, normalized=False) for name in names if name not in special]
        tokenizer.add_tokens(new, special_tokens=True)
        wrong = [name for name in names if not _is_one_token(tokenizer, name)]
    if wrong:
        raise ConfigError(
            found=f"processor.added_tokens = {list(names)}, where {listing(map(repr, wrong))} "
            "can't be kept as one token of its own",
            expected="different names, each of them one token wherever it stands in a text",
            fix="rename or remove it in processor.added_tokens",
        )


def _is_one_token(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    alone = tokenizer.encode(name, add_special_tokens=False)
    inside = tokenizer.encode(f"a{name}a", add_special_tokens=False)
    return len(alone) == 1 and inside.count(alone[0]) == 1

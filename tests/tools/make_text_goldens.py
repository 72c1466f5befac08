"""Writes tests/golden/text/tokenizer_*.json and engine/text/normalizer_tables.h.

    python3 make_text_goldens.py models
    python3 make_text_goldens.py variants families sentencepiece characters tables
    python3 make_text_goldens.py default_model --model FILE.gguf

Oracles: the packages tokenizers and sentencepiece; ctypes with libutf8proc for the tables; gguf
to read the model file. Everything is seeded: a second run with the same versions writes the same
files, but for the models: the trainer breaks ties as its hash table falls, so the committed models
are what the other parts start from.
"""

import argparse
import ctypes
import hashlib
import io
import json
import os
import random

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

import text_samples
import text_variants

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GOLDEN = os.path.join(ROOT, "tests", "golden", "text")
VERSIONS = {"tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__}


def write(name, head, rows_name, rows):
    """One row a line, so that a change shows as itself."""
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    text = json.dumps(head, ensure_ascii=False)[:-1] + ', "%s": [\n%s\n]}\n' % (
        rows_name,
        ",\n".join(lines),
    )
    path = os.path.join(GOLDEN, name)
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        out.write(text)
    print("%s: %d rows, %d bytes" % (name, len(rows), len(text.encode())))


def encode(tokenizer, text, special):
    """None where the library itself fails: it has no answer to compare with."""
    try:
        return tokenizer.encode(text, add_special_tokens=special).ids
    except BaseException as error:  # A Rust panic is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        return None


def cases_of(tokenizer, texts, special=True):
    pairs = [(text, encode(tokenizer, text, special)) for text in texts]
    return [[text, ids] for text, ids in pairs if ids is not None]


def decodes_of(tokenizer, seed, count, banned=()):
    """[ids, text with special tokens, text without]."""
    rng = random.Random(seed)
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    out = []
    for _ in range(count):
        ids = [
            i for i in (rng.randrange(size) for _ in range(rng.randrange(1, 10))) if i not in banned
        ]
        out.append(
            [
                ids,
                tokenizer.decode(ids, skip_special_tokens=False),
                tokenizer.decode(ids, skip_special_tokens=True),
            ]
        )
    return out


def renamed_specials(document, tokenizer):
    """Special tokens whose normalised text differs: the library forgets that they are special."""
    return {
        t["id"]
        for t in document["added_tokens"]
        if t["special"]
        and t["normalized"]
        and tokenizer.normalizer
        and tokenizer.normalizer.normalize_str(t["content"]) != t["content"]
    }


def make_models():
    write(
        "tokenizer_models.json",
        {"versions": VERSIONS},
        "models",
        [{"name": name, "model": m} for name, m in text_variants.base_models().items()],
    )


def base_models():
    with open(os.path.join(GOLDEN, "tokenizer_models.json"), encoding="utf-8") as file:
        return {row["name"]: row["model"] for row in json.load(file)["models"]}


def make_variants():
    bases = base_models()
    rows = []
    for number, (name, base, document, patch, as_text) in enumerate(text_variants.all_variants()):
        full = text_variants.complete(document, bases[base], patch, as_text)
        tokenizer = Tokenizer.from_str(json.dumps(full))
        contents = [t["content"] for t in full["added_tokens"]]
        extra = contents + ["ab", "abc", "Tok", "tok", " Tok "]
        texts = [""] + text_samples.random_strings(1000 + number, 22, extra)
        rng = random.Random(number)
        texts += [rng.choice(text_samples.PROSE + text_samples.CODE)[:60] for _ in range(2)]
        rows.append(
            {
                "name": name,
                "base": base,
                "patch": patch,
                "merges_as_text": as_text,
                "document": dict(full, model=None),
                "cases": cases_of(tokenizer, texts),
                "decodes": decodes_of(tokenizer, number, 6, renamed_specials(full, tokenizer)),
            }
        )
    write("tokenizer_variants.json", {"versions": VERSIONS}, "variants", rows)


def gguf_metadata(model, pre, controls, user_defined):
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda e: e[1])]
    types = [1] * len(tokens) + [3] * len(controls) + [4] * len(user_defined) + [5]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens + controls + user_defined + ["[PAD0]"],
        "token_type": types,
        "merges": [" ".join(m) for m in model["merges"]],
        "bos_token_id": len(tokens),
        "eos_token_id": len(tokens) + 1,
    }


# What each name of tokenizer.ggml.pre stands for: (normalizer, stages, ignore_merges, adds BOS).
FAMILIES = {
    "smollm": (
        None,
        [{"type": "Digits", "individual_digits": True}, text_variants.byte_level()],
        False,
        False,
    ),
    "gpt-2": (None, [text_variants.byte_level()], False, False),
    "qwen2": (
        {"type": "NFC"},
        [text_variants.split(text_variants.QWEN2_REGEX), text_variants.byte_level(regex=False)],
        False,
        False,
    ),
    "llama-bpe": (
        None,
        [text_variants.split(text_variants.LLAMA3_REGEX), text_variants.byte_level(regex=False)],
        True,
        True,
    ),
}


def make_families():
    base = base_models()["bytes"]
    controls, user_defined = ["<|begin|>", "<|end|>", "<|im_end|>"], ["<think>"]
    rows = []
    for number, (pre, (normalizer, stages, ignore_merges, add_bos)) in enumerate(FAMILIES.items()):
        tokens = [text_variants.added(t, special=True) for t in controls]
        tokens += [text_variants.added(t) for t in user_defined]
        first = len(base["vocab"])
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": tokens,
            "normalizer": normalizer,
            "decoder": text_variants.byte_level(),
            "pre_tokenizer": text_variants.sequence("pretokenizers", *stages),
            "post_processor": (
                text_variants.template([("<|begin|>", [first])], []) if add_bos else None
            ),
        }
        full = text_variants.complete(document, base, {"ignore_merges": ignore_merges}, False)
        tokenizer = Tokenizer.from_str(json.dumps(full))
        texts = (
            text_samples.PROSE
            + text_samples.CODE
            + text_samples.random_strings(number, 300, controls)
        )
        rows.append(
            {
                "metadata": gguf_metadata(base, pre, controls, user_defined),
                "cases": cases_of(tokenizer, texts),
                "decodes": decodes_of(tokenizer, number, 40),
            }
        )
    write("tokenizer_families.json", {"versions": VERSIONS}, "families", rows)


def make_sentencepiece():
    corpus = [t.replace("\n", " ") for t in text_variants.CORPUS] * 4
    rows = []
    for add_space, byte_fallback in ((True, True), (False, True), (True, False)):
        file = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=file,
            model_type="bpe",
            minloglevel=2,
            vocab_size=760 if byte_fallback else 500,
            character_coverage=0.98,
            byte_fallback=byte_fallback,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=add_space,
            split_digits=True,
            hard_vocab_limit=False,
            num_threads=1,
        )
        oracle = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
        size = oracle.get_piece_size()
        kind = lambda i: (
            6
            if oracle.is_byte(i)
            else 2 if oracle.is_unknown(i) else 3 if oracle.is_control(i) else 1
        )
        metadata = {
            "model": "llama",
            "tokens": [oracle.id_to_piece(i) for i in range(size)],
            "scores": [oracle.get_score(i) for i in range(size)],
            "token_type": [kind(i) for i in range(size)],
            "add_space_prefix": add_space,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "unknown_token_id": 0,
        }
        # Control tokens in text are this product's business, not that library's.
        texts = [
            t
            for t in text_samples.PROSE + text_samples.CODE + text_samples.random_strings(77, 500)
            if not any(c in t for c in ("<s>", "</s>", "<unk>"))
        ]
        rows.append({"metadata": metadata, "cases": [[t, oracle.encode(t)] for t in texts]})
    write("tokenizer_sentencepiece.json", {"versions": VERSIONS}, "models", rows)


def ranges_of(predicate):
    out = []
    for point in range(0x110000):
        if not (text_samples.assigned(point) and predicate(point)):
            continue
        if out and out[-1][1] == point - 1:
            out[-1][1] = point
        else:
            out.append([point, point])
    return out


def digest(texts):
    sha = hashlib.sha256()
    for text in texts:
        sha.update(text.encode() + b"\xff")
    return sha.hexdigest()


def make_characters():
    """Character classes and normal forms, over every code point."""
    words = Tokenizer(models.BPE())
    words.add_tokens([AddedToken("\x01x", single_word=True, normalized=False)])
    digits = pre_tokenizers.Digits(individual_digits=True)
    strip = normalizers.Strip()
    lower = normalizers.Lowercase()
    all_points = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
    rows = [
        {"class": "word", "ranges": ranges_of(lambda c: not words.encode("\x01x" + chr(c)).ids)},
        {
            "class": "numeric",
            "ranges": ranges_of(lambda c: len(digits.pre_tokenize_str("a%sb" % chr(c))) == 3),
        },
        {"class": "white_space", "ranges": ranges_of(lambda c: strip.normalize_str(chr(c)) == "")},
        {"class": "assigned", "ranges": ranges_of(lambda c: True)},
        {
            "digest": "lower",
            "sha256": digest(
                lower.normalize_str(chr(c)) for c in all_points if text_samples.assigned(c)
            ),
        },
    ]
    for name, form in (
        ("NFC", normalizers.NFC()),
        ("NFD", normalizers.NFD()),
        ("NFKC", normalizers.NFKC()),
        ("NFKD", normalizers.NFKD()),
    ):
        rows.append(
            {
                "digest": name,
                "sha256": digest(
                    form.normalize_str("a\u0300%s\u0316\u1100%s\u0301" % (chr(c), chr(c)))
                    for c in all_points
                ),
            }
        )
    write("tokenizer_characters.json", {"versions": VERSIONS}, "rows", rows)


def default_model_oracle(path):
    """The vocabulary of a GGUF file with pre = smollm, whose splitter is Digits, then ByteLevel."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    field = lambda key: fields["tokenizer.ggml." + key].contents()
    assert (field("model"), field("pre")) == ("gpt2", "smollm")
    tokens = field("tokens")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(tokens)},
            merges=[tuple(m.split(" ")) for m in field("merges")],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, kind in zip(tokens, field("token_type"))
            if kind == 3
        ]
    )
    return tokenizer


def make_default_model(path):
    tokenizer = default_model_oracle(path)
    with open(path, "rb") as file:
        checksum = hashlib.sha256(file.read()).hexdigest()
    texts = text_samples.fixed_strings() + text_samples.random_strings(3, 500)
    write(
        "tokenizer_default_model.json",
        {"versions": VERSIONS, "model_sha256": checksum, "decodes": decodes_of(tokenizer, 9, 300)},
        "cases",
        cases_of(tokenizer, texts),
    )


def utf8proc():
    library = ctypes.CDLL("libutf8proc.so.2")
    libc = ctypes.CDLL(None)
    library.utf8proc_map.restype = ctypes.c_ssize_t

    def decompose(text, compatible):
        data, mapped = text.encode(), ctypes.c_void_p()
        options = 2 | 16 | (4 if compatible else 0)  # STABLE, DECOMPOSE, COMPAT.
        size = library.utf8proc_map(
            data, ctypes.c_ssize_t(len(data)), ctypes.byref(mapped), options
        )
        assert size >= 0
        result = ctypes.string_at(mapped, size).decode()
        libc.free(mapped)
        return result

    return decompose


TABLES_HEADER = """\
// Code points whose normalisation the reference tokenizer library's older Unicode tables do not
// know while utf8proc's do. Derived by tests/tools/make_text_goldens.py (tables); sorted.
// Thread rule: constants.
#pragma once

#include <array>
#include <cstdint>

namespace morphserve {

// Combining marks that it takes for plain characters, and U+11930 and U+11938, which it does not
// compose.
inline constexpr std::array<uint32_t, %d> kUnknownToReference = {
%s};

// Characters whose compatibility decomposition it does not know.
inline constexpr std::array<uint32_t, %d> kUnknownCompatible = {
%s};

}  // namespace morphserve
"""


def make_tables():
    decompose = utf8proc()
    plain, compatible = normalizers.NFD(), normalizers.NFKD()
    points = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
    # A mark that is known moves past one of another class; a stranger stays.
    moves = lambda c: ("a\u0300%s" % chr(c), "a%s\u0316" % chr(c))
    marks = {
        c
        for c in points
        if any(
            len(decompose(t, False)) == len(t) and decompose(t, False) != plain.normalize_str(t)
            for t in moves(c)
        )
    }
    marks |= {0x11930, 0x11938}
    younger = [
        c
        for c in points
        if c not in marks and decompose(chr(c), True) != compatible.normalize_str(chr(c))
    ]
    assert all(compatible.normalize_str(chr(c)) == chr(c) for c in younger)

    def rows(values):
        lines = ["   "]
        for value in values:
            if len(lines[-1]) + len(" 0x%X," % value) > 98:
                lines.append("   ")
            lines[-1] += " 0x%X," % value
        return "\n".join(lines)

    path = os.path.join(ROOT, "engine", "text", "normalizer_tables.h")
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        out.write(TABLES_HEADER % (len(marks), rows(sorted(marks)), len(younger), rows(younger)))
    print("normalizer_tables.h: %d and %d" % (len(marks), len(younger)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {
        "models": make_models,
        "variants": make_variants,
        "families": make_families,
        "sentencepiece": make_sentencepiece,
        "characters": make_characters,
        "tables": make_tables,
    }
    parser.add_argument("part", nargs="+", choices=sorted(parts) + ["default_model"])
    parser.add_argument("--model", help="a GGUF file with tokenizer.ggml.pre = smollm")
    arguments = parser.parse_args()
    os.makedirs(GOLDEN, exist_ok=True)
    for part in arguments.part:
        if part == "default_model":
            make_default_model(arguments.model)
        else:
            parts[part]()


if __name__ == "__main__":
    main()

"""Small tokenizers that take every branch of the product's tokenizer.

A variant is a tokenizer.json whose model is named, so that many variants share one vocabulary.
"""

import text_samples
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

CORPUS = (
    text_samples.PROSE
    + text_samples.CODE
    + text_samples.EMOJI[:1]
    + [
        "the theme of the thing that they then thought",
        "hello hello help held hell",
        "123 456 12 34 1 2 3",
        "aaaa aaa aa a bbbb",
        "Newton's laws weren't what he'd said",
    ]
)

BYTE_LEVEL_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_REGEX = QWEN2_REGEX.replace(r"|\p{N}| ", r"|\p{N}{1,3}| ")


def model_json(tokenizer):
    import json

    return json.loads(tokenizer.to_str())["model"]


def byte_model(size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    return model_json(tokenizer)


def without(model, dropped):
    """The model less some tokens, and less the merges that name them; ids close up."""
    gone = set(dropped)
    kept = [t for t, _ in sorted(model["vocab"].items(), key=lambda e: e[1]) if not set(t) & gone]
    vocab = {t: i for i, t in enumerate(kept)}
    merges = [m for m in model["merges"] if all(p in vocab for p in (m[0], m[1], m[0] + m[1]))]
    return dict(model, vocab=vocab, merges=merges)


def metaspace_model(byte_fallback, alphabet_limit):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    specials = ["<unk>", "<s>", "</s>"] + (
        ["<0x%02X>" % b for b in range(256)] if byte_fallback else []
    )
    trainer = trainers.BpeTrainer(
        vocab_size=len(specials) + alphabet_limit + 160,
        min_frequency=2,
        show_progress=False,
        special_tokens=specials,
        limit_alphabet=alphabet_limit,
    )
    # Without a pre-tokenizer merges would span words; real models of this kind are trained on
    # words.
    words = [w for text in CORPUS for w in text.split(" ") if w]
    tokenizer.train_from_iterator(words * 2, trainer)
    return model_json(tokenizer)


def affix_model():
    tokenizer = Tokenizer(
        models.BPE(unk_token="<unk>", continuing_subword_prefix="##", end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        min_frequency=1,
        show_progress=False,
        special_tokens=["<unk>"],
        continuing_subword_prefix="##",
        end_of_word_suffix="</w>",
        limit_alphabet=60,
    )
    tokenizer.train_from_iterator(CORPUS[:3] * 3 + CORPUS[-5:] * 3, trainer)
    return model_json(tokenizer)


def base_models():
    byte = byte_model(620)
    fallback = metaspace_model(True, 110)
    return {
        "bytes": byte,
        "gaps": without(byte, "zqØģ\u0100\u0101"),
        "metaspace": fallback,
        "characters": metaspace_model(False, 70),
        "affixes": affix_model(),
        # Merges that build a control token out of text: only added-token rules keep it apart.
        "control": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(["<", "s", ">", "s>", "<s>", "a", "b", " "])},
            "merges": [["s", ">"], ["<", "s>"]],
        },
    }


def split(pattern, behavior="Isolated", invert=False, literal=False):
    return {
        "type": "Split",
        "pattern": {"String" if literal else "Regex": pattern},
        "behavior": behavior,
        "invert": invert,
    }


def byte_level(prefix=False, regex=True):
    return {
        "type": "ByteLevel",
        "add_prefix_space": prefix,
        "trim_offsets": True,
        "use_regex": regex,
    }


def sequence(kind, *stages):
    return {"type": "Sequence", kind: list(stages)}


def replace(pattern, content, regex=False):
    return {
        "type": "Replace",
        "pattern": {"Regex" if regex else "String": pattern},
        "content": content,
    }


def metaspace(scheme, split_words=True):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split_words}


def added(content, special=False, normalized=False, single_word=False, lstrip=False, rstrip=False):
    return {
        "content": content,
        "single_word": single_word,
        "lstrip": lstrip,
        "rstrip": rstrip,
        "normalized": normalized,
        "special": special,
    }


LLAMA_NORMALIZER = sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))
LLAMA_DECODER = sequence(
    "decoders",
    replace("▁", " "),
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
)
CONTROLS = [
    added("<|im_start|>", special=True),
    added("<|im_end|>", special=True),
    added("<think>"),
]


def template(before, after):
    """before and after: lists of (name, ids)."""
    special = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    single = (
        [special(n) for n, _ in before]
        + [{"Sequence": {"id": "A", "type_id": 0}}]
        + [special(n) for n, _ in after]
    )
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            n: {"id": n, "ids": ids, "tokens": [n] * len(ids)} for n, ids in before + after
        },
    }


def normalizer_variants():
    forms = [{"type": f} for f in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")]
    others = [
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Strip", "strip_left": True, "strip_right": False},
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Prepend", "prepend": "¶x"},
        replace("a", "bb"),
        replace(" ", ""),
        replace(r"\s+", " ", True),
        replace(r"(?i:l+)|\d", "<é>", True),
        replace("'s", "\u0301"),
        sequence("normalizers", {"type": "NFKC"}, {"type": "Lowercase"}, replace("  ", " ")),
        sequence(
            "normalizers",
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "NFC"},
        ),
        sequence("normalizers"),
    ]
    for i, normalizer in enumerate(forms + others):
        yield "normalizer %d %s" % (i, normalizer["type"]), {
            "normalizer": normalizer,
            "added_tokens": CONTROLS,
        }


def split_variants():
    patterns = [
        (r"\p{N}{1,3}", False),
        (r"\s+", False),
        (" ", True),
        ("'s", True),
        (r"x*", False),
        (r"(?<=[a-z])[A-Z]", False),
        (r"(?i:'s|'t)|\p{L}+", False),
        (".+*?()|[]{}^$#&-~\\"[3:5], True),
    ]
    for pattern, literal in patterns:
        for behavior in (
            "Isolated",
            "Removed",
            "MergedWithPrevious",
            "MergedWithNext",
            "Contiguous",
        ):
            for invert in (False, True):
                yield "split %r %s %s" % (pattern, behavior, invert), {
                    "pre_tokenizer": sequence(
                        "pretokenizers",
                        split(pattern, behavior, invert, literal),
                        byte_level(regex=False),
                    )
                }


def pre_tokenizer_variants():
    stages = {
        "qwen2": [split(QWEN2_REGEX), byte_level(regex=False)],
        "llama3": [split(LLAMA3_REGEX, "Isolated"), byte_level(regex=False)],
        "inverted removed": [split(LLAMA3_REGEX, "Removed", True), byte_level(regex=False)],
        "bytes": [byte_level()],
        "bytes with space": [byte_level(prefix=True)],
        "bytes whole with space": [byte_level(prefix=True, regex=False)],
        "digits one by one": [{"type": "Digits", "individual_digits": True}, byte_level()],
        "digits together": [{"type": "Digits", "individual_digits": False}, byte_level()],
        "digits then space": [
            {"type": "Digits", "individual_digits": True},
            byte_level(prefix=True),
        ],
        "three stages": [
            split(r"\p{N}{1,3}"),
            split(r"[\p{Han}\p{Hiragana}]+"),
            split(r"[^\s\p{L}]+|\s?\p{L}+"),
            byte_level(regex=False),
        ],
        "nested": [
            sequence("pretokenizers", {"type": "Digits", "individual_digits": True}),
            byte_level(),
        ],
        "dot and lines": [split(r"(?m:.)\n|^\w|$"), byte_level(regex=False)],
    }
    for name, parts in stages.items():
        yield "pre_tokenizer " + name, {"pre_tokenizer": sequence("pretokenizers", *parts)}
    yield "pre_tokenizer alone", {"pre_tokenizer": byte_level(prefix=True)}


def model_variants():
    byte = {"pre_tokenizer": byte_level()}
    yield "model ignore_merges", dict(byte, patch={"ignore_merges": True})
    yield "model gaps", dict(byte, base="gaps")
    yield "model gaps unknown", dict(byte, base="gaps", patch={"unk_token": "a"})
    yield "model gaps fused unknown", dict(
        byte, base="gaps", patch={"unk_token": "a", "fuse_unk": True}
    )
    yield "model merges as text", dict(byte, merges_as_text=True)
    yield "model suffix on bytes", dict(byte, patch={"end_of_word_suffix": "e"}, base="bytes")
    words = {
        "pre_tokenizer": split(" ", "Removed", literal=True),
        "base": "affixes",
        "decoder": sequence("decoders", replace("##", ""), replace("</w>", " "), {"type": "Fuse"}),
    }
    yield "model affixes", words
    yield "model affixes fused", dict(words, patch={"fuse_unk": True})
    whole = {
        "base": "metaspace",
        "normalizer": LLAMA_NORMALIZER,
        "pre_tokenizer": None,
        "decoder": LLAMA_DECODER,
    }
    yield "model byte fallback", whole
    yield "model byte fallback, no prefix", dict(
        whole,
        normalizer=replace(" ", "▁"),
        decoder=sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
    )
    yield "model without byte fallback", dict(whole, patch={"byte_fallback": False})
    yield "model characters", dict(whole, base="characters")
    yield "model characters unfused", dict(whole, base="characters", patch={"fuse_unk": False})
    yield "model characters dropped", dict(whole, base="characters", patch={"unk_token": None})
    controls = [
        added("<s>", special=True),
        added("</s>", special=True),
        added("<unk>", special=True),
    ]
    yield "model llama", dict(
        whole, added_tokens=controls, post_processor=template([("<s>", [1])], [])
    )
    yield "model llama whole words", dict(whole, patch={"ignore_merges": True})


def metaspace_variants():
    for scheme in ("always", "first", "never"):
        for split_words in (True, False):
            stage = metaspace(scheme, split_words)
            yield "metaspace %s %s" % (scheme, split_words), {
                "base": "metaspace",
                "pre_tokenizer": stage,
                "decoder": stage,
                "added_tokens": [
                    added("<s>", special=True),
                    added("<x>", normalized=True),
                    added("b", rstrip=True),
                ],
            }
    yield "metaspace old", {
        "base": "metaspace",
        "decoder": LLAMA_DECODER,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "_",
            "add_prefix_space": False,
            "prepend_scheme": "never",
        },
    }
    yield "metaspace after digits", {
        "base": "metaspace",
        "decoder": metaspace("never"),
        "pre_tokenizer": sequence(
            "pretokenizers", {"type": "Digits", "individual_digits": True}, metaspace("always")
        ),
    }


def added_token_variants():
    flags = ("special", "normalized", "single_word", "lstrip", "rstrip")
    for bits in range(32):
        chosen = {f: bool(bits >> i & 1) for i, f in enumerate(flags)}
        yield "added %d" % bits, {
            "normalizer": {"type": "Lowercase"},
            "added_tokens": [
                added("Tok", **chosen),
                added("<|im_end|>", **chosen),
                added("\n", lstrip=True),
            ],
        }
    overlapping = [
        added(t)
        for t in (
            "ab",
            "abc",
            "bcd",
            "abcde",
            "cde",
            "d",
            "e f",
            "aab",
            "bcda",
            "é",
            "<|",
            "|>",
            "<|im_end|>",
        )
    ]
    yield "added overlapping", {"added_tokens": overlapping}
    yield "added normalized overlapping", {
        "normalizer": {"type": "NFKD"},
        "added_tokens": [dict(t, normalized=True) for t in overlapping],
    }
    yield "added prefixed", {
        "normalizer": {"type": "Prepend", "prepend": "▁"},
        "base": "metaspace",
        "pre_tokenizer": None,
        "decoder": LLAMA_DECODER,
        "added_tokens": [added("ab", normalized=True), added("<s>", special=True, rstrip=True)],
    }
    yield "added white space", {
        "added_tokens": [added(" ", rstrip=True), added("\n", lstrip=True), added("\t\t")]
    }
    yield "added in vocabulary", {
        "added_tokens": [
            added("the"),
            added("Ġthe", special=True),
            added("Ċ"),
            added("<new>", special=True),
        ]
    }
    yield "added word", {
        "added_tokens": [added("ab", single_word=True), added("é", single_word=True, lstrip=True)]
    }


def post_processor_variants():
    ends = [added("<bos>", special=True), added("<eos>", special=True)]
    first = 620
    yield "post template", {
        "added_tokens": ends,
        "post_processor": template([("<bos>", [first])], [("<eos>", [first + 1])]),
    }
    yield "post sequence", {
        "added_tokens": ends,
        "post_processor": sequence(
            "processors", byte_level(), template([("<bos>", [first, 5, 6])], [])
        ),
    }
    yield "post bytes", {"post_processor": byte_level()}


def all_variants():
    """(name, base name, tokenizer.json without its model, patch of the model, merges as text)."""
    for make in (
        normalizer_variants,
        split_variants,
        pre_tokenizer_variants,
        model_variants,
        metaspace_variants,
        added_token_variants,
        post_processor_variants,
    ):
        for name, parts in make():
            parts = dict(parts)
            document = {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": byte_level(),
                "post_processor": None,
                "decoder": byte_level(),
            }
            base = parts.pop("base", "bytes")
            patch = parts.pop("patch", {})
            as_text = parts.pop("merges_as_text", False)
            document.update(parts)
            yield name, base, document, patch, as_text


def complete(document, model, patch, as_text):
    """The whole tokenizer.json: the model in place, added tokens with the ids the library gives."""
    model = dict(model, **patch)
    if as_text:
        model["merges"] = [" ".join(m) for m in model["merges"]]
    next_id = len(model["vocab"])
    tokens = []
    for token in document["added_tokens"]:
        number = model["vocab"].get(token["content"])
        if number is None:
            number, next_id = next_id, next_id + 1
        tokens.append(dict(token, id=number))
    return dict(document, model=model, added_tokens=tokens)

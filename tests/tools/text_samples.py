"""Texts that the tokenizer goldens are made from: prose in many scripts, code, and hostile strings.

Only code points that Unicode 14 assigns are used: the pattern engine of the product carries
Unicode 14 and the oracle newer tables, so younger characters are outside the comparison (see
engine/text/README.md).
"""

import random
import unicodedata

PROSE = [
    "The quick brown fox jumps over the lazy dog. It's 12:30, isn't it? "
    "I'LL say they've won; we'd know.",
    "Der Straßenbahnschaffner öffnete die Tür; „Grüß Gott“, sagte er.",
    "L’été dernier, j’ai vu où naît l’œuvre — à Orléans, ça alors!",
    "El niño comió piña; ¿qué más? ¡Olé!",
    "Москва — столица России. Ёлка, подъезд, объём.",
    "Η γρήγορη αλεπού πήδηξε πάνω από το σκυλί· ΰ ΐ Ά.",
    "שלום עולם, מה שלומך היום? וְאָהַבְתָּ",
    "مرحبا بالعالم، كيف حالك اليوم؟ السَّلامُ عليكم ١٢٣",
    "नमस्ते दुनिया, आप कैसे हैं? क़ि १२३",
    "বাংলা ভাষা সুন্দর। কেমন আছো?",
    "தமிழ் மொழி மிகவும் பழமையானது. கொ கோ கௌ",
    "ಕನ್ನಡ ನಾಡು. ತೆಲುగు భాష. മലയാളം",
    "สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง ๑๒๓",
    "你好，世界！今天天气怎么样？我们去公园吧。１２３",
    "こんにちは世界。ガギグゲゴ ｶﾞｷﾞｸﾞ か\u3099き\u3099",
    "안녕하세요 세계. 각 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "ქართული ენა. Հայերեն լեզու. አማርኛ ቋንቋ።",
    "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ ລາວ မြန်မာဘာသာ བོད་སྐད།",
    "Tiếng Việt: Việt Nam đẹp lắm, Nguye\u0302\u0303n",
    "Türkçe: İstanbul, ışık, DİYARBAKIR. Zażółć gęślą jaźń.",
]

CODE = [
    "int main(int argc, char** argv) {\n  for (int i=0;i<10;++i)\n"
    '\t\tprintf("%d\\n", i);\n  return 0;\n}\n',
    "def f(x):\r\n    return {'a': [1, 2.5e-3], \"b\": None}[x]  # comment\r\n\r\n",
    "SELECT * FROM t WHERE a<>'x''y' AND b IN (1,22,333,4444,55555,666666);",
    '<html><body class="a-b_c">&nbsp;&#39;</body></html><!-- <|x|> -->',
    '{"key": [true, false, null, -1.5E+10], "u": "\\u00e9\\ud83d\\ude00"}',
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\dir\\file.txt",
    "\\frac{a_1^2}{\\sqrt{b}} \\leq \\sum_{i=0}^{n} x_i $$ ∑ ∫ √ ≤ ≠ ∞",
]

EMOJI = [
    "😀😃😄 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 1️⃣ ❤️ 🫠 ☺︎",
    "a😀b 😀 c\u200dd \u200b\ufeff zero\u00adwidth",
]

ATOMS = (
    [
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\r\n",
        "\n\n",
        "\u00a0",
        "\u3000",
        "\u2003",
        "\u0085",
        "\u2028",
        "\u180e",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x0b",
        "\x1c",
        "\x7f",
    ]
    + [
        "'s",
        "'S",
        "'t",
        "'re",
        "'VE",
        "'ll",
        "'d",
        "'",
        "’s",
        "’",
        "'ſ",
        "'LL",
        "''",
        "s'",
        "ſ",
        "ß",
        "ẞ",
    ]
    + ["0", "1", "12", "123", "1234", "12345", "٣", "²", "½", "Ⅷ", "१", "𝟘", "〇", "一"]
    + [
        "a",
        "b",
        "A",
        "Z",
        "the",
        " the",
        "ing",
        "Hello",
        "wORLD",
        "é",
        "e\u0301",
        "e\u0301\u0323",
        "ǆ",
        "İ",
        "Å",
        "ﬁ",
        "µ",
        "Ω",
        "я",
        "Я",
        "א",
        "ا",
        "あ",
        "ア",
        "ｱ",
        "漢",
        "字",
        "한",
        "\u1100\u1161",
        "ก",
        "ि",
        "\u0300",
        "\u0345",
        "\u0338",
        "\u093c",
        "\u3099",
        "\ud7a3",
        "\u11a8",
    ]
    + [
        ".",
        ",",
        "!",
        "?",
        "-",
        "_",
        "__",
        "=>",
        "//",
        "/*",
        "#",
        "@",
        "$",
        "%",
        "^",
        "&",
        "*",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "<",
        ">",
        "|",
        "\\",
        "~",
        "`",
        '"',
        "…",
        "—",
        "„",
        "”",
        "¿",
        "§",
        "€",
        "™",
        "°",
        "▁",
        "Ġ",
        "Ċ",
        "ġ",
    ]
    + [
        "😀",
        "👍🏽",
        "👩‍👧",
        "🏳️‍🌈",
        "\u200d",
        "\ufe0f",
        "\U000e0001",
        "\U0001f1e9",
        "\ue000",
        "\U0010ffff",
        "\uffff",
        "\ufffd",
    ]
    + [
        "<0x41>",
        "<0xE2>",
        "<s>",
        "</s>",
        "<unk>",
        "[INST]",
        "<|",
        "|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<think>",
        "</think>",
        "<tool_call>",
        "<|im_",
        "end|>",
        "<|<|im_end|>|>",
    ]
)


def assigned(code_point):
    """True for what Unicode 14 assigns and UTF-8 can carry (Python 3.11 has those tables)."""
    assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
    if 0xD800 <= code_point < 0xE000:
        return False
    category = unicodedata.category(chr(code_point))
    return category != "Cn"


def random_strings(seed, count, extra=()):
    """Hostile strings: atoms, random characters of chosen ranges, runs, pieces of prose, mixed."""
    rng = random.Random(seed)
    atoms = list(ATOMS) + list(extra) * 4
    ranges = [
        (0x20, 0x7F),
        (0, 0x20),
        (0x80, 0x250),
        (0x300, 0x370),
        (0x370, 0x600),
        (0x600, 0x1000),
        (0x1000, 0x2000),
        (0x2000, 0x2C00),
        (0x3000, 0x3200),
        (0x4E00, 0x5000),
        (0xA000, 0xB000),
        (0xAC00, 0xD7A4),
        (0xF900, 0x10000),
        (0x10000, 0x12000),
        (0x1D000, 0x1F000),
        (0x1F300, 0x1FA00),
        (0x2F800, 0x2FA1E),
        (0, 0x110000),
    ]
    texts = PROSE + CODE + EMOJI
    out = []
    while len(out) < count:
        kind = rng.randrange(6)
        parts = []
        for _ in range(rng.randrange(1, 14)):
            pick = rng.randrange(10)
            if kind == 0 or pick < 5:
                parts.append(rng.choice(atoms))
            elif pick < 7:
                low, high = rng.choice(ranges)
                point = rng.randrange(low, high)
                if assigned(point):
                    parts.append(chr(point))
            elif pick == 7:
                parts.append(rng.choice(atoms) * rng.randrange(1, 9))
            elif pick == 8:
                text = rng.choice(texts)
                begin = rng.randrange(len(text))
                parts.append(text[begin : begin + rng.randrange(1, 25)])
            else:
                parts.append(" " * rng.randrange(1, 6))
        out.append("".join(parts))
    return out


def fixed_strings():
    """Every text by name: prose, code, emoji, single bytes and white-space runs."""
    out = [""] + PROSE + CODE + EMOJI
    out += [chr(c) for c in range(0x100)]
    out += [" " * n for n in range(1, 20)] + ["a" + " " * n + "b" for n in range(1, 12)]
    out += ["\n" * n + "x" for n in range(1, 6)] + [" \n" * n for n in range(1, 5)]
    out += ["1" * n for n in range(1, 12)] + ["a  1", "a  b", "a   1 2  3"]
    return out

"""Style as a test: what a reviewer would otherwise have to look for, over every file of the tree.

Each rule is a function from a file (or the tree) to findings; a finding names file, line, rule and
fix. Catches: an include against the dependency direction, a file or function that grew too long, a
banned call outside its one place, a dead link, a path of somebody's machine, a metric without
documentation. The last test feeds every rule a sample that breaks it, so no rule can go blind.
"""

import json
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE_SUFFIXES = {".cc", ".h", ".cu", ".cuh"}
FILE_LINES_MAX = 800
FUNCTION_LINES_MAX = 80  # The aim is 70; a little slack keeps the rule from being fought.
GENERATED = ("tests/golden/", "tests/fuzz/corpus/")

# What a folder may include of ours; the longest matching prefix decides.
MAY_INCLUDE = {
    "kernels/": ("kernels/",),
    "engine/": ("engine/", "kernels/"),
    "engine/base/": ("engine/base/",),
    "morph/": ("morph/", "engine/", "kernels/"),
    "server/": ("server/", "engine/", "morph/", "proto/", "morphserve/v1/"),
    "server/ctl/": ("server/ctl/", "engine/base/", "morphserve/v1/"),
    "tests/": ("tests/", "server/", "morph/", "engine/", "kernels/", "morphserve/v1/"),
    "tests/reference/": ("tests/reference/", "kernels/"),
}
OURS = ("kernels/", "engine/", "morph/", "server/", "proto/", "morphserve/", "tests/")
# The server speaks to the engine through engine.h; these parts are the engine's own.
SERVER_NEVER = ("engine/scheduler/", "engine/cache/", "engine/runner/", "engine/sampling/")
THIRD_PARTY_NEVER = {
    "kernels/": r"grpc|google/protobuf|prometheus|nlohmann|yaml-cpp|oniguruma"
                r"|absl/(?!status|strings|types)",
    "engine/": r"grpc|google/protobuf|prometheus|civetweb|Civet",
    "morph/": r"grpc|google/protobuf|prometheus|civetweb|Civet",
}

# pattern, what to do instead, and where it is allowed (path prefixes).
BANNED_CALLS = [
    (r"std::(jthread|thread)\b(?!::)|std::async\b|\bpthread_create\b",
     "threads are started in the few places that ARCHITECTURE.md names",
     ("engine/base/", "kernels/cpu/thread_pool", "engine/engine_impl.",
      "server/delivery.", "server/text_pool", "server/main.cc", "server/server.", "server/drain",
      "server/signals",
      "server/watchdog", "server/http_server", "server/ctl/", "morph/controller", "tests/")),
    (r"std::(cout|cerr|printf)\b|(?<![\w:.])(f?printf|puts)\s*\(",
     "libraries log through engine/base/log.h",
     ("engine/base/check.cc", "engine/base/log.cc", "server/main.cc", "server/probe",
      "server/ctl/", "tests/")),
    (r"\b(sleep_for|sleep_until|usleep|nanosleep|SleepFor)\s*\(",
     "wait on a condition or a Clock instead of sleeping",
     ("server/ctl/", "tests/bench/", "tests/kernels/thread_pool", "tests/server/")),
    (r"\bgetenv\s*\(", "only the settings read the environment",
     ("server/settings", "server/server_config", "server/main.cc", "server/ctl/", "tests/")),
    (r"\bcudaDeviceSynchronize\b", "synchronise a stream or an event", ("tests/",)),
    (r"\bstd::(normal_distribution|uniform_\w+_distribution)\b",
     "distributions differ between libraries: use the generator's bits", ()),
    (r"(?<![.>\w])(abort|exit|_exit|quick_exit)\s*\(",
     "return a status; MS_CHECK is for broken invariants",
     ("engine/base/check", "server/main.cc", "server/signals", "server/drain", "server/ctl/",
      "tests/")),
]

# Exceptions are caught where a throwing library is wrapped, and nowhere else.
TRY_ALLOWED = (
    "engine/text/", "engine/loader/", "engine/model/model_config", "server/settings",
    "server/server_config", "server/auth", "server/translate", "server/ctl/", "tests/",
    "morph/controller_carry",  # The worker's boundary: a fault ends one morph.
)

MACHINE_TRACES = re.compile(
    r"(?<![\w.$}*/-])/(?:" + "wo" + r"rk|" + "ro" + r"ot|home/\w+|" + "tmp/" + r"venv)\b"
    r"(?=/|\s|$|[\"'`),:;])|"
    r"deb\.deb" + r"ian\.org|py" + r"pi\.org|python" + r"hosted|proxy\.gol" + r"ang|"
    r"git" + r"hub\.com|hugging" + r"face\.co\b|docker\.io|ghcr\.io"
)


class File:
    """A tracked or new file of the tree, or a sample of text that pretends to be one."""

    def __init__(self, path, text):
        self.path, self.text = path, text
        self.lines = text.splitlines()
        self.suffix = pathlib.PurePath(path).suffix
        self._code = None

    @property
    def code(self):
        """The text with comments and literals blanked out; line numbers are kept."""
        if self._code is None:
            self._code = blank_comments_and_literals(self.text)
        return self._code

    def finding(self, offset_or_line, rule, fix, source=None):
        line = offset_or_line
        if source is not None:
            line = source.count("\n", 0, offset_or_line) + 1
        return f"{self.path}:{line}: {rule}: {fix}"


CPP_TOKEN = re.compile(
    r"//[^\n]*|/\*.*?\*/"
    r"|R\"(?P<mark>[^\s()\\]{0,16})\(.*?\)(?P=mark)\""
    r"|\"(?:\\.|[^\"\\\n])*\"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'",
    re.DOTALL,
)


def blank_comments_and_literals(text):
    def blank(match):
        found = match.group()
        if found.startswith('"') and text[: match.start()].endswith("#include "):
            return found
        return re.sub(r"[^\n]", " ", found)

    return CPP_TOKEN.sub(blank, text)


def all_paths():
    """What git would commit; in an unpacked archive or an image, what is no build output."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, check=False, text=True)
    if listing.returncode == 0:
        return sorted(set(filter(None, listing.stdout.split("\0"))))
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
    generated = {"build", ".cache", ".git", "__pycache__"}
    return sorted(str(p) for p in found if not generated.intersection(p.parts))


def all_files():
    for path in all_paths():
        full = ROOT / path
        if path.startswith(GENERATED) or not full.is_file() or full.is_symlink():
            continue
        try:
            yield File(path, full.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # Binary data.


FILES = list(all_files())
SOURCES = [f for f in FILES if f.suffix in SOURCE_SUFFIXES]


def allowed(path, prefixes):
    return path.startswith(tuple(prefixes)) if prefixes else False


def longest(table, path):
    keys = [key for key in table if path.startswith(key)]
    return table[max(keys, key=len)] if keys else None


def include_direction(file):
    may = longest(MAY_INCLUDE, file.path)
    never = longest(THIRD_PARTY_NEVER, file.path)
    for match in re.finditer(r'^\s*#\s*include\s+["<]([^">]+)[">]', file.text, re.MULTILINE):
        target = match.group(1)
        at = lambda fix: file.finding(match.start(1), "include direction", fix, file.text)
        ours = target.startswith(OURS)
        if ours and may is not None and not target.startswith(may):
            yield at(f"{target} may not be included here; allowed are {', '.join(may)}")
        elif ours and file.path.startswith("server/") and target.startswith(SERVER_NEVER):
            yield at(f"{target} is the engine's own; go through engine/engine.h")
        elif not ours and never and re.match(never, target):
            yield at(f"{target} is not for this folder")


def file_length(file):
    exempt = file.path.startswith("deploy/grafana/")  # Exported by a tool, not read by people.
    if len(file.lines) > FILE_LINES_MAX and not exempt:
        yield file.finding(len(file.lines), "file length",
                           f"{len(file.lines)} lines; split it below {FILE_LINES_MAX}")


# A body starts with a line that ends in `{` and is no namespace, type, initialiser or macro; it
# ends with the closing brace of the same indent. clang-format makes that reliable.
NO_FUNCTION = re.compile(
    r"^\s*(namespace|class|struct|enum|union|extern|template|#|\}|using|typedef|constexpr \w"
    r"|const \w)")


def function_length(file):
    lines = file.code.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        indent = len(line) - len(line.lstrip())
        signature = line
        if (line.strip() and indent <= 2 and not NO_FUNCTION.match(line) and "(" in line
                and not line.lstrip().startswith(("//", "if", "for", "while", "switch"))):
            last = number
            # A macro call has no body: its "signature" would run on over a blank line.
            while (last < min(number + 8, len(lines) - 1) and signature.strip()
                   and not re.search(r"[{;]\s*$", signature)):
                last += 1
                signature = lines[last]
            if signature.rstrip().endswith("{") and ("=" not in line.split("(")[0]):
                end = last + 1
                while end < len(lines) and not re.match(r" {%d}\}" % indent, lines[end]):
                    end += 1
                length = end - number + 1
                if length > FUNCTION_LINES_MAX and end < len(lines):
                    yield file.finding(number + 1, "function length",
                                       f"{length} lines; the limit is {FUNCTION_LINES_MAX}")
                number = end
        number += 1


def header_opening(file):
    if file.suffix not in (".h", ".cuh"):
        return
    # A Highway "-inl.h" may be included once a target and has its own guard.
    if "#pragma once" not in file.text and not file.path.endswith("-inl.h"):
        yield file.finding(1, "header", "lacks #pragma once")
    if not file.text.startswith("// "):
        yield file.finding(1, "header", "must open with a paragraph that says what it is for")


def source_opening(file):
    if file.suffix in (".py", ".sh") and len(file.lines) > 20:
        head = "\n".join(file.lines[:4])
        if '"""' not in head and not re.search(r"^# [A-Z]", head, re.MULTILINE):
            yield file.finding(1, "opening", "say in the first lines what this script is for")


def banned_calls(file):
    for pattern, fix, where in BANNED_CALLS:
        if allowed(file.path, where):
            continue
        for match in re.finditer(pattern, file.code):
            yield file.finding(match.start(), f"banned {match.group().strip()}", fix, file.code)


def exceptions(file):
    if allowed(file.path, TRY_ALLOWED):
        return
    for match in re.finditer(r"\btry\s*\{|\bthrow\b", file.code):
        yield file.finding(match.start(), "exception",
                           "only wrappers of throwing libraries have these", file.code)


def banned_includes(file):
    for match in re.finditer(r"#include <(format|ranges|iostream)>", file.text):
        programs = ("server/ctl/", "server/main.cc", "tests/")
        if match.group(1) == "iostream" and allowed(file.path, programs):
            continue
        yield file.finding(
            match.start(), "banned include",
            "<format> is not in g++ 12, <ranges> not in clang 14, <iostream> not for libraries",
            file.text)


OPEN_WORK = re.compile(r"\b(" + "TO" + "DO|FIX" + r"ME|XX" + r"X)\b(?!\(#\d+\))")


def open_work(file):
    for match in OPEN_WORK.finditer(file.text):
        yield file.finding(match.start(), "open work",
                           "finish it, or name its issue as in (#12)", file.text)


def machine_traces(file):
    if file.path in ("LICENSE",):
        return
    for match in MACHINE_TRACES.finditer(file.text):
        yield file.finding(match.start(), f"trace of a machine or a host ({match.group()})",
                           "use a relative path, a setting or a package name", file.text)


# Lines that cannot be broken, or are easier to read unbroken: raw strings, addresses, tables.
UNBROKEN = re.compile(r'R"|https?:|\| ')


def line_length(file):
    checked = file.suffix in SOURCE_SUFFIXES | {".py", ".sh", ".proto"}
    # Generators hold tables of test inputs, one a line.
    if not checked or file.path.startswith("tests/tools/"):
        return
    for number, line in enumerate(file.lines, 1):
        if len(line) > 100 and not UNBROKEN.search(line):
            yield file.finding(number, "line length", f"{len(line)} columns; the limit is 100")


def markdown_links(file):
    if file.suffix != ".md":
        return
    blank = lambda match: re.sub(r"[^\n]", " ", match.group())
    text = re.sub(r"```.*?```", blank, file.text, flags=re.DOTALL)
    for match in re.finditer(r"\]\(([^)\s]+)\)", text):
        target = match.group(1)
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        path = (ROOT / file.path).parent / target.split("#")[0]
        if not path.exists():
            yield file.finding(match.start(), "dead link", f"{target} does not exist", text)


SOURCE_RULES = [include_direction, function_length, header_opening, banned_calls, exceptions,
                banned_includes]
FILE_RULES = [file_length, source_opening, open_work, machine_traces, line_length, markdown_links]


@pytest.mark.parametrize("rule", SOURCE_RULES + FILE_RULES, ids=lambda rule: rule.__name__)
def test_tree_keeps(rule):
    files = SOURCES if rule in SOURCE_RULES else FILES
    findings = [finding for file in files for finding in rule(file)]
    assert not findings, "\n" + "\n".join(findings)


def test_every_source_is_built():
    database = ROOT / "build" / "release" / "compile_commands.json"
    if not database.exists():
        pytest.skip("no release build with compile commands")
    commands = json.loads(database.read_text())
    built = {pathlib.Path(entry["file"]).resolve() for entry in commands}
    if not any("/tests/" in str(path) for path in built):
        pytest.skip("the release build was configured without tests")
    cuda = any("/kernels/cuda/" in str(path) and path.suffix == ".cu" for path in built)
    orphans = [file.path for file in SOURCES if file.suffix == ".cc"
               and not file.path.startswith("tests/fuzz/")  # Built by the fuzz preset.
               # The CUDA backend, or what stands in for it.
               and file.path != ("kernels/cuda/absent.cc" if cuda else "")
               and (cuda or file.path.endswith("/absent.cc")
                    or not ("/cuda/" in file.path or "/gpu/" in file.path))
               and (ROOT / file.path) not in built]
    assert not orphans, f"no target builds {orphans}"


def test_every_folder_has_a_readme():
    folders = {pathlib.PurePath(f.path).parts[0] for f in FILES if "/" in f.path} - {".ci"}
    missing = [name for name in sorted(folders) if not (ROOT / name / "README.md").exists()]
    assert not missing, f"README.md is missing in {missing}"


SAMPLES = [
    (include_direction, "kernels/cpu/a.cc", '#include "engine/engine.h"\n'),
    (include_direction, "engine/a.cc", '#include "server/auth.h"\n'),
    (include_direction, "engine/a.cc", "#include <grpcpp/grpcpp.h>\n"),
    (include_direction, "server/a.cc", '#include "engine/scheduler/scheduler.h"\n'),
    (include_direction, "server/a.cc", '#include "kernels/gemm.h"\n'),
    (include_direction, "tests/reference/a.h", '#include "engine/engine.h"\n'),
    (file_length, "engine/a.cc", "\n" * (FILE_LINES_MAX + 1)),
    (function_length, "engine/a.cc", "void F(int a,\n       int b) {\n" + "  a;\n" * 90 + "}\n"),
    (function_length, "engine/a.h", "class A {\n  void F() {\n" + "    a;\n" * 90 + "  }\n};\n"),
    (header_opening, "engine/a.h", "// A paragraph.\nint F();\n"),
    (header_opening, "engine/a.h", "#pragma once\nint F();\n"),
    (source_opening, "tests/a.py", "import sys\n" * 30),
    (banned_calls, "engine/a.cc", "std::thread worker(f);\n"),
    (banned_calls, "engine/a.cc", "std::cout << 1;\n"),
    (banned_calls, "server/a.cc", "std::this_thread::sleep_for(t);\n"),
    (banned_calls, "engine/a.cc", 'const char* v = getenv("A");\n'),
    (banned_calls, "tests/a.cc", "std::normal_distribution<float> d;\n"),
    (exceptions, "engine/cache/a.cc", "try {\n  F();\n} catch (...) {\n}\n"),
    (banned_includes, "engine/a.cc", "#include <ranges>\n"),
    (open_work, "engine/a.cc", "// TO" + "DO: later\n"),
    (machine_traces, "deploy/a.sh", "cd /ro" + "ot/x\n"),
    (machine_traces, "deploy/a.sh", "curl https://py" + "pi.org/simple\n"),
    (line_length, "engine/a.cc", "x" * 101 + "\n"),
    (markdown_links, "README.md", "[there](no/such/file.md)\n"),
]
CLEAN = [
    (banned_calls, "engine/a.cc",
     "// std::thread is not used\nconst char* s = \"sleep_for(1)\";\n"),
    (banned_calls, "server/a.cc", "auto id = std::thread::id();\nsnprintf(b, n, f);\n"),
    (include_direction, "server/a.cc", '#include "engine/engine.h"\n#include <grpcpp/grpcpp.h>\n'),
    (machine_traces, "deploy/a.yaml", "path: /mnt/models\nimage: morphserve:0.1.0\n"),
    (function_length, "engine/a.cc", "namespace a {\n" + "int F();\n" * 90 + "}\n"),
    (function_length, "kernels/a.cc", 'BEGIN("avx2")\n\nnamespace a {\n' + "F();\n" * 90 + "}\n"),
    (banned_calls, "server/a.cc", "if (request.exit()) return;\n"),
]


@pytest.mark.parametrize("rule,path,text", SAMPLES, ids=lambda v: getattr(v, "__name__", None))
def test_rule_catches(rule, path, text):
    assert list(rule(File(path, text)))


@pytest.mark.parametrize("rule,path,text", CLEAN, ids=lambda v: getattr(v, "__name__", None))
def test_rule_lets_pass(rule, path, text):
    assert not list(rule(File(path, text)))

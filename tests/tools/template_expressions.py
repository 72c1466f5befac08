"""Small templates, each for one rule of the template language, and the variables they read."""

CONTEXT = {
    "s": "Hello, World", "e": "", "u": "naïve 你好 😀 ß", "ws": "\u3000 \t a b \n\u00a0",
    "n": 42, "neg": -7, "z": 0, "f": 1.5, "big": 9007199254740993, "t": True, "fa": False,
    "no": None, "l": [3, 1, 2], "le": [], "ls": ["b", "A", "c", "a"], "nested": [[1, 2], [3, [4]]],
    "d": {"a": 1, "b": [1, 2], "c": {"x": "y"}}, "de": {}, "unsafe": "<b>&\"'</b>",
    "people": [{"name": "Bob", "age": 30, "tags": ["x"]}, {"name": "alice", "age": 25},
               {"name": "Carl", "age": 30, "tags": []}],
    "schema": {"type": "object", "items": {"type": "string"}, "keys": 5, "get": 1},
    "tree": [{"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3, "kids": [{"v": 4, "kids": []}]}]}],
    "lines": "one\ntwo\r\nthree\n\nfive\x0bsix\u2028seven",
    "dup": ["a", "A", "b", "a", 1, 1.0, True],
}

EXPRESSIONS = []


def add(*templates):
    EXPRESSIONS.extend(templates)


def each(*expressions):
    """Expressions that are printed."""
    EXPRESSIONS.extend("{{ " + expression + " }}" for expression in expressions)


# Literals and printing.
each("1", "-1", "1_000", "0x1F", "0b101", "0o17", "00", "1.5", "1e3", "1E-2", "1_0.2_5", "1.0",
     "1e15", "1e16", "1e22", "0.0001", "0.00001", "1.5e-7", "123456789.125", "5e-324", "0.1 + 0.2",
     "1/3", "2/1", "100000000000000000000.0", "-0.0", "true", "True", "false", "False", "none",
     "None", "'a'", '"a"', "'it''s'", "'it\\'s'", "'a' 'b' \"c\"", "'\\n\\t\\\\\\x41\\u00e9\\U0001F600'",
     "'\\q\\z'", "'\\101\\0'", "'\\é'", "'a\\\nb'", "[1, 'a', 2.0, none, true]", "(1, 2)", "(1,)",
     "()", "1, 2", "{'k': 'v', 1: [2]}", "{}", "[]", "[[], {}, ()]", "['it\\'s', 'q\"', 'b\\'\"']",
     "['\\n\\t\\r\\\\\\x00\\x7f\\u200b\\u00a0é😀']", "[undefined_name]", "{'a': undefined_name}",
     "[1,]", "{'a': 1,}", "9223372036854775807", "{1: 'a', 1.0: 'b', true: 'c'}",
     "{[1]: 2}", "{(1, 2): 3}", "0123", "1__0", "1.", ".5", "1.e3", "'unclosed", "08", "0xg", "1e")
each("s", "u", "d", "l", "nested", "no", "t", "f", "big", "missing", "e", "people", "unsafe",
     "bos_token", "eos_token", "messages", "tools", "documents", "add_generation_prompt")

# Arithmetic.
each("1 + 2", "7 // 2", "-7 // 2", "7 // -2", "7 % 3", "-7 % 3", "7 % -3", "7.5 // 2", "-7.5 // 2",
     "7.5 % 2", "-7.5 % 2", "7.5 % -2", "6 / 3", "1 / 0", "1 // 0", "1 % 0", "1.0 / 0", "1.0 // 0",
     "1.0 % 0", "2 ** 10", "2 ** -1", "-2 ** 2", "2 ** 3 ** 2", "2.0 ** 0.5", "0 ** 0", "0 ** -1",
     "(-1) ** 3", "2 ** 62", "1 + 2 * 3", "(1 + 2) * 3",
     "2 + 3 ~ 4", "1 - 1 - 1", "8 / 2 / 2", "-n", "+n", "--n", "- -5", "-f", "-s", "+s", "-t", "+fa",
     "-missing", "t + t", "n * 1.5", "n - f", 
     "big + 0.0", "big", "'a' + 'b'", "'a' + 1", "1 + 'a'", "'a' * 3",
     "3 * 'ab'", "'a' * 0", "'a' * -1", "'a' * 1.5", "[1] + [2]", "[1] * 2", "2 * [1, 2]", "(1,) + (2,)",
     "[1] + (2,)", "{} + {}", "none + 1", "missing + 1", "1 + missing", "missing + 'a'", "'a' + missing",
     "'a' - 'b'", "[1] - [1]", "s ~ n ~ none ~ [1]", "missing ~ 'x'", "1 ~ 2", "true ~ 1.0",
     "'%s is %d' % ('a', 5)", "'%s' % 'x'", "'%s' % 5", "'%5d|%-5d|%05d' % (1, 2, 3)",
     "'%.2f' % 3.14159", "'%5.1f|' % 2.25", "'%x %X %o' % (255, 255, 8)", "'%r' % 'a'", "'%%' % ()",
     "'%s %s' % ('a',)", "'%s' % ('a', 'b')", "'%d' % 'a'", "'%d' % 1.9", "'%(a)s' % {'a': 1}",
     "'%s' % [1, 2]", "'abc' % []", "'%5s|%-5s|' % ('a', 'b')", "'%+d' % 5", "'%e' % 12345.678",
     "'%.3s|' % 'abcdef'", "'%q' % 1", "'%' % 1")

# Comparison, membership, logic.
each("1 == 1.0", "true == 1", "1 == '1'", "'a' == 'a'", "[1, 2] == [1, 2]", "[1] == (1,)",
     "{'a': 1} == {'a': 1.0}", "none == none", "missing == missing", "missing == none",
     "missing == other_missing", "1 != 2", "1 < 2", "2 <= 2", "'a' < 'b'", "'Z' < 'a'", "'é' > 'z'",
     "[1, 2] < [1, 3]", "[1] < [1, 0]", "(1, 2) >= (1, 2)", "1 < 'a'", "none < 1", "[1] < (1,)",
     "{} < {}", "missing < 1", "1 < missing", "true < 2", "1 < 1.5", "big < 9007199254740992.0",
     "big == 9007199254740992.0", "big > 9007199254740992.0", "1 < 2 < 3", "1 < 3 < 2", "3 > 2 > 1 == true",
     "1 == 1 in [true]", "2 in l", "9 in l", "9 not in l", "'ell' in s", "'' in s", "'x' not in s",
     "1 in 'a'", "missing in s", "missing in l", "'a' in d", "1 in d", "[1] in d", "'a' in missing",
     "1 in none", "1 in 5", "1.0 in l", "(1) in (1, 2)", "'a' in d.keys()", "1 in d.values()",
     "('a', 1) in d.items()", "3 in range(5)", "5 in range(5)", "2 in l|map('int')", "not 1", "not ''",
     "not not 'a'", "1 and 2", "0 and 2", "0 or 'x'", "'' or none", "1 or missing.x", "0 and missing.x",
     "not 1 == 2", "not missing", "1 if true else 2", "1 if false else 2", "1 if false", "(1 if false) is defined",
     "'a' if 0 else 'b' if 0 else 'c'", "1 if missing else 2", "1 or 2 and 0", "not 0 and 1",
     "1 == 1 and 2 == 2", "l and 'full'", "le or 'empty'", "f == 1.5", "nested == [[1, 2], [3, [4]]]")

# Attributes, items, slices.
each("d.a", "d['a']", "d.missing", "d['missing']", "d.missing.x", "d.missing['x']", "d.c.x", "d['c']['x']",
     "d.b[0]", "d.b.0", "d.b[-1]", "d.b[5]", "d.b['0']", "l[0]", "l[-3]", "l[-4]", "l[3]", "l[true]", "l[1.0]",
     "l['a']", "l.a", "l[none]", "l[missing]", "s[0]", "s[-1]", "s[99]", "s.x", "s['x']", "u[6]", "u[-1]", "u[9]",
     "n.x", "n['x']", "n[0]", "no.x", "no['x']", "no.x.y", "missing.x", "missing['x']", "missing[0]", "f.x",
     "schema.items", "schema['items']", "schema.items.type", "schema.keys is callable", "schema['keys']",
     "schema.get('type')", "schema['get']", "d[1]", "d[[1]]", "{1: 'one'}[1]", "{1: 'one'}[1.0]", "{1: 'one'}[true]",
     "{none: 'x'}[none]", "{'a': {'b': {'c': 1}}}.a.b.c", "l.append", "l.append(1)", "d.pop('a')", "d.update({})",
     "d.clear", "l.__class__", "''.__class__.__mro__", "s.__len__()", "d.__missing__", "d._x", "s._x", "missing.__x__",
     "missing.__x", "d.a.real is defined", "d.a.b", "(1, 2)[0]", "(1, 2).0", "'abc'[1]", "[1, 2, 3].1", "people[0].name",
     "people[0]['age']", "people[1].tags", "people[-1].name", "people.0.name", "d['a', 'b']", "people | length",
     "[{'a': 1}][0].a", "range(5)[2]", "range(5)[-1]", "range(5)[9]", "true.x", "dict.x", "range.x",
     "d.items()[0]", "d.keys()[0]", "l.index(1)", "l.count(3)", "l.index(9)", "l.copy()", "d.copy()", "(1,1).count(1)",
     "namespace.x", "raise_exception.x", "loop", "loop.index", "self_missing.a")
each("l[:2]", "l[1:]", "l[::-1]", "l[::2]", "l[-2:]", "l[:-1]", "l[5:]", "l[-9:2]", "l[2:0:-1]", "l[::-2]", "l[1:2]",
     "l[::0]", "l['a':]", "l[none:none]", "l[:none:2]", "l[true:]", "l[1.0:]", "l[missing:]", "s[:5]", "s[7:]", "s[::-1]",
     "s[::3]", "s[-5:-1]", "u[:7]", "u[6:8]", "u[::-1]", "u[1::2]", "u[-3:]", "e[:1]", "(1, 2, 3)[1:]", "(1, 2)[::-1]",
     "missing[1:]", "d[1:]", "n[1:]", "range(10)[2:5]", "range(10)[::3]", "range(10)[::-1]", "nested[0][:1]",
     "l[0:9223372036854775807]", "l[-9223372036854775807:]", "l[::9223372036854775807]", "l[::-9223372036854775807]",
     "s[2:][:3]", "people[1:] | map(attribute='name') | list", "(l | list)[0]", "(l | map('int'))[0]", "l[:]", "l[::]")

# Calls, functions.
each("range(3)", "range(3) | list", "range(1, 4) | list", "range(5, 0, -2) | list", "range(0) | list", "range(3, 1) | list",
     "range(100000) | length", "range(100001)", "range(1, 2, 0)", "range('a')", "range()", "range(1.5)", "range(true) | list",
     "range(-3, 3, 2) | list | length", "dict(a=1, b=2)", "dict({'x': 1}, y=2)", "dict([('a', 1), ('b', 2)])", "dict()",
     "dict(1)", "dict([1])", "namespace(a=1)", "namespace(a=1).a", "namespace(a=1).b", "namespace({'a': 1}).a",
     "namespace()", "namespace(1)", "namespace(a=1)['a']", "namespace(_a=1)", "namespace({'_a': 1})", "namespace(a=1) is mapping",
     "raise_exception('boom')", "raise_exception()", "raise_exception(1)", "strftime_now('%Y-%m-%d')", "strftime_now('%d %b %Y')",
     "strftime_now('%A, %B %d, %Y %H:%M:%S %j %p %I')", "strftime_now('%y|%m|%%|%f|%z|%Z|')", "strftime_now('')", "strftime_now(1)",
     "strftime_now()", "strftime_now('%e %-d %k')", "missing()", "none()", "s()", "l()", "d.a()", "missing.x()", 
     "s.nothing()", "s.nothing is defined", "1()", "range(3)(1)", "s.upper()()", "dict(a=1).a", "dict(a=1, a=2)", "range(stop=3)",
     "loop(1)", "caller()", "varargs", "kwargs")

# String methods.
each("s.upper()", "s.lower()", "s.title()", "s.capitalize()", "'ßﬁ ǆ'.upper()", "'ΑΣ ΑΣΑ Σ'.lower()", "'İI'.lower()", "'ǆ ßx'.title()",
     "'ǆabc'.capitalize()", "\"they're bill's\".title()", "u.upper()", "u.title()", "ws.strip()", "ws.lstrip()", "ws.rstrip()", "'xxaxx'.strip('x')",
     "'xyaxy'.strip('yx')", "'xxa'.lstrip('x')", "'axx'.rstrip('x')", "'a'.strip('')", "'a'.strip(none)", "'a'.strip(1)", "'éaé'.strip('é')",
     "'a'.strip(missing)", "s.strip(chars='H')", "'a,b,,c'.split(',')", "' a  b '.split()", "' a  b  c '.split(none, 1)", "'a b c'.split(' ', 1)",
     "'a,b,c'.split(',', maxsplit=1)", "'a,b'.split(sep=',')", "'abc'.split('')", "''.split()", "''.split(',')", "'a,b'.split(',')[0]", "'a--b--c'.split('--')",
     "'aXbXc'.rsplit('X', 1)", "' a b  c '.rsplit(none, 1)", "'a b'.rsplit()", "'aaa'.split('aa')", "'aaa'.rsplit('aa')", "'a\u3000b\u2003c'.split()",
     "'a b'.split(1)", "'a b'.split(missing)", "'a b'.split(' ', 'x')", "'a b c'.split(' ', -1)", "'a b c'.split(' ', 0)", "s.startswith('Hell')",
     "s.startswith('x')", "s.endswith('World')", "s.endswith(('x', 'ld'))", "s.startswith('')", "s.startswith(1)", "s.startswith(['H'])",
     "s.startswith(missing)", "s.startswith(())", "s.startswith()", "s.replace('l', 'L')", "s.replace('l', 'L', 1)", "s.replace('', '-')", "''.replace('', 'x')",
     "'ab'.replace('', '-', 2)", "s.replace('zz', 'y')", "'aaa'.replace('aa', 'b')", "s.replace('l', 1)", "s.replace('l')", "u.replace('你', 'x')",
     "u.replace('', '|')", "'{} {}'.format(1, 'a')", "'{0}{1}{0}'.format('a', 'b')", "'{x}-{y}'.format(x=1, y=2)", "'{:>5}|{:<5}|{:^5}|'.format('a', 'b', 'c')",
     "'{:05d} {:,} {:.2f}'.format(42, 1234567, 3.14159)", "'{!r}'.format('a')", "'{{}}'.format()", "'{}'.format()", "'{a}'.format()", "'{0}{}'.format(1, 2)", "'{'.format()",
     "'}'.format()", "'{:*^7}'.format('ab')", "'{:+d}'.format(5)", "'{:x}'.format(255)", "'{:s}'.format(5)", "'{:d}'.format('a')", "'{:5}|'.format(5)", "'{:5}|'.format('é')",
     "'{}'.format(none)", "'{}'.format([1, 'a'])", "'{}'.format(missing)", "'{!s:>3}'.format(1)", "', '.join(['a', 'b'])", "','.join([])", "','.join([1])", "''.join('abc')",
     "','.join(missing)", "'-'.join(d)", "'a\\nb\\r\\nc\\n'.splitlines()", "lines.splitlines()", "'a\\nb'.splitlines(true)", "'prefix-x'.removeprefix('prefix-')", "'a.txt'.removesuffix('.txt')",
     "'a'.removesuffix('')", "'abc'.find('c')", "'abc'.find('z')", "'é你b'.find('b')", "'banana'.count('an')", "'abc'.count('')", "' \\n'.isspace()", "''.isspace()", "'AB1'.isupper()", "'ab1'.islower()",
     "'1'.isupper()", "s.upper(1)", "s.strip", "s.upper is callable", "s['upper']()", "'a'.upper().lower().strip()", "('a' ~ 'b').upper()", "s.split(', ')[1][::-1].upper()")

# Dict and list methods, views.
each("d.items()", "d.keys()", "d.values()", "d.items() | list", "d.keys() | list", "d.values() | list", "d.get('a')", "d.get('zz')", "d.get('zz', 5)", "d.get('zz', none)", "d.get()",
     "d.get([1])", "d.get(key='a')", "d.items() | length", "d.keys() | first", "d.values() | last", "d.items() | list | first", "de.items()", "d.items() == d.items()", "d.items(1)",
     "d.keys() | join(',')", "d.items() is iterable", "d.items() is sequence", "d.items() is mapping", "dict(a=1).items()", "d.setdefault('q', 1)", "d.popitem()", "l.sort()", "l.reverse()", "l.extend([1])",
     "l.insert(0, 1)", "l.remove(1)", "l.pop()", "l.clear()", "d.pop is defined", "d.fromkeys is defined")

# Filters.
each("missing | default('x')", "'' | default('x')", "'' | default('x', true)", "none | default('x')", "none | default('x', true)", "0 | d(5, boolean=true)", "missing | default", "missing | default(default_value=3)",
     "missing.x | default('y')", "d.zz | default('y')", "s | upper", "s | lower", "s | title", "s | capitalize", "'foo-bar (baz) [q] <w> {e} d.f' | title", "none | upper", "5 | lower", "missing | upper", "ws | trim",
     "'xxaxx' | trim('x')", "missing | trim", "5 | trim", "none | trim", "' a ' | trim | upper", "5 | string", "none | string", "[1, 'a'] | string", "missing | string", "1.0 | string + 'x'", "s | replace('l', 'L')",
     "s | replace('l', 'L', 1)", "5 | replace('5', 6)", "s | replace('l', 'L', count=2)", "s | replace('', '.')", "missing | replace('a', 'b')", "s | replace('l')", "s | length", "u | length", "l | length", "d | length",
     "missing | length", "5 | length", "none | length", "l | count", "range(5) | length", "(l | map('int')) | length", "l | first", "l | last", "le | first", "le | last", "s | first", "u | last", "missing | first", "missing | last",
     "5 | first", "d | first", "d | last", "(l | map('int')) | first", "(l | map('int')) | last", "range(4) | last", "d.items() | last", "l | list", "s | list", "d | list", "missing | list", "5 | list", "none | list", "l | reverse | list",
     "s | reverse", "u | reverse", "d | reverse | list", "range(3) | reverse | list", "l | map('string') | reverse", "5 | reverse", "missing | reverse | list", "d.items() | reverse | list", "l | join", "l | join(', ')", "l | join(1)",
     "people | join(', ', attribute='name')", "people | join(attribute='age', d='-')", "missing | join(',')", "none | join", "5 | join", "s | join('.')", "[none, 1, 'a', 1.0] | join('|')", "d | join(',')", "[[1], {}] | join", "d | items | list",
     "missing | items | list", "l | items | list", "none | items | list", "none | items is defined", "d | dictsort", "{'b': 1, 'A': 2, 'a': 0} | dictsort", "{'b': 1, 'A': 2} | dictsort(true)", "{'b': 1, 'A': 2} | dictsort(by='value')",
     "{'b': 1, 'A': 2} | dictsort(reverse=true)", "{'b': 1, 'A': 2} | dictsort(false, 'value', true)", "{'b': 1} | dictsort(by='x')", "{'b': 1, 2: 3} | dictsort", "l | dictsort", "missing | dictsort", "l | sort", "ls | sort", "ls | sort(case_sensitive=true)",
     "l | sort(reverse=true)", "l | sort(true)", "people | sort(attribute='age') | map(attribute='name') | list", "people | sort(attribute='age', reverse=true) | map(attribute='name') | list", "people | sort(attribute='age,name') | map(attribute='name') | list",
     "people | sort(attribute='name') | map(attribute='name') | join(' ')", "[1, 'a'] | sort", "[[2, 1], [1, 2]] | sort", "[[2], [1]] | sort(attribute=0)", "[[2], [1]] | sort(attribute='0')", "missing | sort", "5 | sort", "d | sort", "[none, none] | sort",
     "[{}, {}] | sort", "[{'a': 1}, {}] | sort", "dup | unique | list", "ls | unique | list", "ls | unique(case_sensitive=true) | list", "people | unique(attribute='age') | map(attribute='name') | list", "[[1], [1]] | unique | list", "5 | unique | list", "l | min",
     "l | max", "le | min", "ls | min", "ls | max", "ls | max(case_sensitive=true)", "people | max(attribute='age')", "people | min(attribute='age')", "[1, 'a'] | max", "missing | min", "5 | min", "d | max", "[1.5, 1] | min", "l | sum", "le | sum",
     "people | sum(attribute='age')", "l | sum(start=10)", "ls | sum", "[1, 0.5] | sum", "[[1], [2]] | sum(start=[])", "-5 | abs", "(-5) | abs", "(-1.5) | abs", "'a' | abs", "1.5 | round", "2.5 | round", "3.14159 | round(2)", "2.675 | round(2)", "42 | round",
     "1.5 | round(method='floor')", "1.2 | round(0, 'ceil')", "1.25 | round(1, 'floor')", "-1.5 | round", "1 | round(method='x')")
each("'5' | int", "'5.9' | int", "' 42 ' | int", "'x' | int", "'x' | int(7)", "'0x1f' | int(base=16)", "'1f' | int(0, 16)", "'0b11' | int(base=2)", "'0x1f' | int(base=0)", "'1_000' | int", "'1__0' | int", "5.9 | int", "-5.9 | int", "true | int", "none | int", "l | int",
     "missing | int", "'-7' | int", "'1e3' | int", "'inf' | int", "'nan' | int(3)", "'' | int", "'abc' | int(default='d')", "'5' | float", "'5.5' | float", "'x' | float", "'x' | float(1)", "'1e5' | float", "5 | float", "none | float", "'inf' | float",
     "'-nan' | float", "' 1_0.5 ' | float", "true | float", "missing | float", "'0x10' | float", "'.5' | float", "'5.' | float", "'1e400' | float", "'1e-400' | float", "'+5' | float", "'--5' | float")
each("d | tojson", "l | tojson", "s | tojson", "u | tojson", "u | tojson(ensure_ascii=true)", "'\\x00\\x1f\\x7f\\u2028\"\\\\/' | tojson", "'\\x7f😀' | tojson(ensure_ascii=true)", "none | tojson", "true | tojson", "1.0 | tojson", "1e100 | tojson", "'inf' | float | tojson", "d | tojson(indent=2)",
     "d | tojson(indent=4)", "d | tojson(2)", "d | tojson(true, 2)", "d | tojson(indent='\\t')", "d | tojson(indent=0)", "d | tojson(indent=-1)", "d | tojson(indent=true)", "d | tojson(separators=(',', ':'))", "d | tojson(indent=1, separators=(',', ': '))", "{'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true)",
     "{'b': 1, 2: 3} | tojson(sort_keys=true)", "{1: 2, none: 3, true: 4, 1.5: 5} | tojson", "{(1, 2): 3} | tojson", "[(1, 2), ()] | tojson", "missing | tojson", "[missing] | tojson", "range(3) | tojson", "d.items() | tojson", "(l | map('int')) | tojson", "namespace(a=1) | tojson", "[] | tojson(indent=2)",
     "[{}, [], [{}]] | tojson(indent=2)", "people | tojson", "unsafe | tojson", "d | tojson(indent=1.5)", "d | tojson(bogus=1)", "d | tojson(separators=1)", "tree | tojson(indent=1)", "(unsafe | safe) | tojson", "{'é': 'ü'} | tojson(ensure_ascii=true)", "s.upper | tojson", "-0.0 | tojson", "big | tojson")
each("'a\\nb\\n\\nc' | indent", "'a\\nb' | indent(2)", "'a\\nb' | indent(2, true)", "'a\\n\\nb' | indent(2, blank=true)", "'a\\nb\\n' | indent(2)", "'a\\nb' | indent('> ')", "'a\\nb' | indent(width=1, first=true)", "'' | indent(2, true)", "lines | indent(1)", "5 | indent", "missing | indent", "'a\\nb' | indent(-1)",
     "d | tojson(indent=2) | indent(4)", "unsafe | safe", "unsafe | e", "unsafe | escape", "(unsafe | safe) ~ '<'", "(unsafe | safe) + '<'", "'<' + (unsafe | safe)", "(unsafe | safe) | upper", "(unsafe | safe).replace('b', '<')", "(unsafe | safe) | replace('b', '<')", "[unsafe | safe]", "(unsafe | safe)[1:3]", "('<' | safe) * 2",
     "5 | safe", "missing | safe", "(unsafe | safe) is escaped", "unsafe is escaped", "('a' | safe) == 'a'", "('<' | safe) + ('>' | safe)", "('<' | safe).join(['<', '>' | safe])", "('a<b' | safe).split('<')", "(unsafe | e) | e", "('a' | safe) ~ ('<' | safe) + '<'", "('a' | safe) is string", "('<' | safe) | string + '<'")
each("l | map('string') | list", "ls | map('upper') | list", "people | map(attribute='name') | list", "people | map(attribute='tags', default='none') | list", "people | map(attribute='tags.0') | list", "people | map(attribute='missing') | list", "nested | map(attribute=0) | list", "nested | map('first') | list", "ls | map('replace', 'a', 'z') | list",
     "l | map | list", "l | map('nofilter') | list", "le | map('nofilter') | list", "l | map(attribute='a', bogus=1) | list", "none | map('upper') | list", "5 | map('upper') | list", "missing | map('upper') | list", "l | map('int') is iterable", "l | map('int') is sequence", "(l | map('int')) and 'truthy'", "(le | map('int')) and 'truthy'",
     "l | map('default', 5) | list", "ls | map('tojson') | join(',')", "ls | map('length') | sum", "s | map('upper') | join", "l | select | list", "[0, 1, '', 'a', none] | select | list", "l | select('odd') | list", "l | select('gt', 1) | list", "l | select('divisibleby', 3) | list", "l | reject('odd') | list", "[0, 1] | reject | list",
     "l | select('notest') | list", "le | select('notest') | list", "people | selectattr('tags') | map(attribute='name') | list", "people | selectattr('age', 'equalto', 30) | map(attribute='name') | list", "people | selectattr('age', '==', 25) | list", "people | selectattr('tags', 'defined') | list | length", "people | rejectattr('tags') | map(attribute='name') | list",
     "people | rejectattr('age', 'gt', 26) | map(attribute='name') | list", "people | rejectattr('tags', 'undefined') | list | length", "people | selectattr('name', 'in', ['Bob', 'Carl']) | list | length", "people | selectattr | list", "none | selectattr('a') | list", "messages | selectattr('role', 'eq', 'system') | list", "people | selectattr('age', 'lt', 28) | first",
     "(people | selectattr('age', 'lt', 1)) and 'truthy'", "people | selectattr('age', 'lt', 1) | first", "people | selectattr('age', 'lt', 1) | list | length", "ls | select('in', 'abc') | list", "ls | select('lower') | list", "ls | select('string') | list | length", "[1, 'a'] | select('string') | list", "[[], [1]] | selectattr(0) | list", "d | map('upper') | join",
     "l | nofilter", "l | nofilter('x') if false else 1", "l is notest", "1 if true else (1 is notest)", "s | upper('x')", "s | lower(x=1)", "l | first(1)", "l | join(',', 'a', 'b')")
add("{% if false %}{{ 1 | nofilter }}{% endif %}ok", "{% if true %}{{ 1 | nofilter }}{% endif %}", "{% if 1 is notest %}{% endif %}", "{% if false %}{% if 1 is notest %}{% endif %}{% endif %}ok")

# Tests.
each("s is defined", "missing is defined", "d.zz is defined", "missing is undefined", "no is none", "missing is none", "s is string", "n is string", "n is number", "f is number", "t is number", "s is number", "n is integer", "t is integer", "f is integer", "f is float", "n is float", "t is boolean", "n is boolean", "1 is true", "t is true", "fa is false", "0 is false",
     "d is mapping", "l is mapping", "l is sequence", "s is sequence", "d is sequence", "n is sequence", "missing is sequence", "range(3) is sequence", "(1,) is sequence", "l is iterable", "s is iterable", "d is iterable", "n is iterable", "none is iterable", "missing is iterable", "d.items() is iterable", "namespace() is iterable", "3 is odd", "3 is even", "4 is even",
     "-3 is odd", "1.5 is odd", "'a' is odd", "none is even", "9 is divisibleby 3", "9 is divisibleby(2)", "9 is divisibleby(0)", "9 is divisibleby", "1 is eq 1", "1 is equalto(1.0)", "1 is ne 2", "1 is in [1, 2]", "1 is in(l)", "5 is not in l", "'a' is in 'abc'", "1 is lt 2", "2 is le 2", "3 is gt 2", "3 is ge 3", "3 is greaterthan 2", "3 is lessthan 2",
     "none is sameas none", "1 is sameas 1", "true is sameas true", "true is sameas 1", "'abc' is lower", "'Abc' is lower", "'ABC' is upper", "5 is upper", "'Straße1' is lower", "s is callable", "range is callable", "s.upper is callable", "missing is callable", "'upper' is filter", "'nofilter' is filter", "'odd' is test", "'notest' is test", "s is not string", "n is not none",
     "not n is none", "not (n is none)", "n is none or s is string", "n is defined and n > 1", "n is defined if t", "(n is defined) is true", "n is defined is true", "1 is string == false", "l is sequence and l is not string", "1 + 1 is odd", "(1 + 1) is even", "n is divisibleby n", "n is divisibleby d.a", "'x' is defined(1)", "1 is in missing", "1 is in none", "n is number ~ 'x'",
     "s is sameas s", "d.a is defined", "d['a'] is defined", "people[5] is defined", "people[5].name is defined", "no.x is defined", "s is 'x'", "s is", "namespace() is mapping", "undefined_a is defined and undefined_a.b")

# Statements, scopes, white space.
add("{% set x = 5 %}{{ x }}", "{% set x, y = 1, 2 %}{{ x }}{{ y }}", "{% set (x, y) = [1, 2] %}{{ x + y }}", "{% set x, (y, z) = 1, (2, 3) %}{{ x }}{{ y }}{{ z }}", "{% set x, y = 1 %}", "{% set x, y = [1] %}", "{% set x, y = [1, 2, 3] %}", "{% set x, y = 'ab' %}{{ y }}{{ x }}",
    "{% set x, y = 'abc' %}", "{% set x = 1, 2 %}{{ x }}", "{% set x = [] %}{% set x = x + [1] %}{{ x }}", "{% set true = 1 %}", "{% set x.y = 1 %}", "{% set s.y = 1 %}", "{% set d.y = 1 %}", "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{% set ns.b = 3 %}{{ ns.a }}{{ ns.b }}{{ ns }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set ns = namespace(a=1) %}{% set ns.a, q = 5, 6 %}{{ ns.a }}{{ q }}", "{% set _x = 1 %}{{ _x }}", "{% set x %}a{{ n }}b{% endset %}[{{ x }}]", "{% set x | upper %}abc{% endset %}{{ x }}", "{% set x | replace('a', 'b') | upper %}abc{% endset %}{{ x }}",
    "{% set x %}{% set y = 1 %}{% endset %}{{ y is defined }}", "{% set ns = namespace() %}{% set ns.t %}hi{% endset %}{{ ns.t }}", "{% set x = 1 %}{% for i in l %}{% set x = i %}{{ x }}{% endfor %}{{ x }}", "{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% if true %}{% set x = 1 %}{% endif %}{{ x }}", "{% if false %}{% set x = 1 %}{% endif %}{{ x }}|{{ x is defined }}", "{% if false %}{% set s = 1 %}{% endif %}{{ s }}", "{% for i in l %}{{ s }}{% set s = i %}{{ s }}{% endfor %}{{ s }}", "{% for i in [1] %}{{ s }}{% endfor %}{% set s = 5 %}{{ s }}",
    "{% macro m() %}{{ s }}{% endmacro %}{{ m() }}{% set s = 5 %}{{ m() }}", "{% macro m() %}{{ q }}{% endmacro %}{% set q = 5 %}{{ m() }}", "{% macro m() %}{% set s = 1 %}{{ s }}{% endmacro %}{{ m() }}{{ s }}", "{% for i in l %}{% if i == 1 %}{% set n = 'x' %}{% endif %}{{ n }}{% endfor %}{{ n }}",
    "{% set s = s ~ '!' %}{{ s }}", "{% for s in s %}{{ s }}{% endfor %}{{ s }}", "{% for i in l %}{% for j in [i, i] %}{% set k = i * j %}{{ k }} {% endfor %}{{ k }}|{% endfor %}", "{% for x in l %}{{ x }}{% else %}none{% endfor %}", "{% for x in le %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ x }}{% endfor %}", "{% for x in l if x > 5 %}{{ x }}{% else %}none{% endfor %}", "{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% endfor %}", "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}", "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}", "{% for x in l %}{{ loop.previtem.y }}{% endfor %}", "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in l %}{{ loop.cycle() }}{% endfor %}",
    "{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }}{% endfor %}", "{% for x in l %}{{ loop.bogus }}|{{ loop.bogus is defined }}{% endfor %}", "{% for x in l %}{{ loop['index'] }}{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in d | items %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}",
    "{% for a, b in nested %}{{ a }}{{ b }}{% endfor %}", "{% for a, b in l %}{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for x in none %}{% endfor %}", "{% for x in 5 %}{% endfor %}", "{% for x in missing %}a{% else %}b{% endfor %}", "{% for c in u %}[{{ c }}]{% endfor %}", "{% for x in range(3) %}{{ x }}{% endfor %}",
    "{% for x in (1, 2) %}{{ x }}{% endfor %}", "{% for x in 1, 2 %}{{ x }}{% endfor %}", "{% for x in l | sort %}{{ x }}{% endfor %}", "{% for x in l | map('string') %}{{ loop.length }}{{ x }}{{ loop.last }} {% endfor %}", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}!", "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}!",
    "{% for x in l %}{% break %}{% else %}E{% endfor %}", "{% for x in l %}{% continue %}{% else %}E{% endfor %}", "{% for x in l %}{% if loop.last %}{% break %}{% endif %}{% else %}E{% endfor %}", "{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}", "{% break %}", "{% continue %}",
    "{% for x in l %}{% set q %}a{% break %}{% endset %}{% endfor %}ok", "{% for x in l %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}", "{% for x in l %}{{ x }}{% endfor %}{{ x }}", "{% for x in l %}{% endfor %}{{ loop is defined }}", "{% for x in l %}{% for y in le %}{% else %}{{ loop.index }}{% endfor %}{% endfor %}", "{% for loop in l %}{% endfor %}", "{% for x in l %}{% set loop = 1 %}{% endfor %}",
    "{% for x in tree recursive %}({{ x.v }}{{ loop.depth }}{{ loop(x.kids) }}){% endfor %}", "{% for x in tree recursive %}{% if x.kids %}{{ loop(x.kids) }}{% else %}{{ x.v }}{% endif %}{% else %}none{% endfor %}", "{% for x in l %}{{ loop([1]) }}{% endfor %}", "{% for x in tree recursive %}{{ loop(missing) }}{% endfor %}", "{% for x in tree if x.v < 9 recursive %}{{ x.v }}{{ loop(x.kids) }}{% endfor %}",
    "{% set ns = namespace(k=0) %}{% for x in l if x > ns.k %}{% set ns.k = x %}{{ x }}{% endfor %}", "{% set ns = namespace(k=0) %}{% for x in l if x > ns.k %}{{ loop.last }}{% set ns.k = x %}{{ x }}{% endfor %}", "{% for x in l if loop is defined %}{{ x }}{% endfor %}", "{% for k, v in d.items() if k != 'b' %}{{ k }}{{ loop.index }}{% endfor %}", "{% for x in people | selectattr('age', 'gt', 26) %}{{ x.name }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for x in l %}{{ loop.index }}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}", "{% for x in l %}{% set outer = loop %}{% for y in l %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}", "{% set ns = namespace(l=none) %}{% for x in l %}{% set ns.l = loop %}{% endfor %}{{ ns.l.index }}")
add("{% if n %}a{% elif s %}b{% else %}c{% endif %}", "{% if z %}a{% elif e %}b{% else %}c{% endif %}", "{% if z %}a{% elif s %}b{% endif %}", "{% if z %}a{% endif %}", "{% if 1, 2 %}t{% endif %}", "{% if %}{% endif %}", "{% if n: %}colon{% endif %}", "{% if n %}", "{% endif %}", "{% if n %}{% endfor %}", "{% else %}", "{% for x in l %}", "{% for x l %}{% endfor %}",
    "{% for 1 in l %}{% endfor %}", "{% bogus %}", "{% %}", "{{ }}", "{{", "{%", "{#", "{{ 1", "{{ 1 %}", "{% if 1 }}", "}} %} #}", "{ { } }", "{{ 1 }} }}", "{{ (1 }}", "{{ 1) }}", "{{ [1) }}", "{{ a b }}", "{{ 1 + }}", "{{ * 1 }}", "{{ 1 ! 2 }}", "{{ a.  }}", "{{ a. b }}", "{{ a .b }}", "{{ d . a }}", "{{ d [ 'a' ] }}", "{{ s | }}", "{{ s | 5 }}", "{{ s is }}",
    "{{ f(a=1, 2) }}", "{{ f(,) }}", "{{ range(3,) | list }}", "{{ {'a' 1} }}", "{{ {'a': } }}", "{{ [1 2] }}", "{{ a ? b }}", "{{ $ }}", "{{ 'a' if }}", "{{ if }}", "{{ in }}", "{{ not }}", "{{ and }}", "{{ 1 and }}", "{{ a = 1 }}", "{% set %}", "{% set x %}", "{% set x = %}", "{% set 1 = 2 %}", "{% set x y = 2 %}", "{% endset %}", "{{ for }}", "{{ is }}", "{{ else }}")
add("{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=5, a=4) }}", "{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m() }}", "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}{{ m(none) }}{{ m(missing) }}", "{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}", "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(7) }}", "{% macro m(a=q) %}{{ a }}{% endmacro %}{% set q = 1 %}{{ m() }}{% set q = 2 %}{{ m() }}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m(a, a) %}{% endmacro %}", "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ m(1, 2, 3) }}{{ m(1) }}",
    "{% macro m() %}{{ kwargs.items() | list }}{% endmacro %}{{ m(x=1, y=2) }}", "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{% macro a(n) %}{% if n > 0 %}a{{ b(n - 1) }}{% endif %}{% endmacro %}{% macro b(n) %}{% if n > 0 %}b{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(4) }}",
    "{% macro m(x) %}<{{ x }}>{% endmacro %}{% set y = m('a') %}{{ y | upper }}{{ y ~ 1 }}", "{% macro m() %}  x  {% endmacro %}[{{ m() | trim }}]", "{% macro m() -%}  x  {%- endmacro %}[{{ m() }}]", "{{ m() }}{% macro m() %}x{% endmacro %}", "{% if true %}{% macro m() %}x{% endmacro %}{% endif %}{{ m() }}", "{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{% endfor %}{{ m is defined }}",
    "{% macro m() %}{{ loop.index }}{% endmacro %}{% for i in l %}{{ m() }}{% endfor %}", "{% for i in l %}{% macro m() %}{{ loop.index }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro outer() %}{% macro inner(x) %}{{ x }}{{ s }}{% endmacro %}{{ inner(1) }}{% endmacro %}{{ outer() }}", "{% macro m(s) %}{{ s }}{% set s = 2 %}{{ s }}{% endmacro %}{{ m(1) }}{{ s }}", "{% set x = 1 %}{% macro m() %}{{ x }}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}",
    "{% macro m() %}{% endmacro %}{{ m is callable }}{{ m is mapping }}{{ m is string }}", "{% macro m(items) %}{% for i in items %}{{ i }}{% if not loop.last %},{% endif %}{% endfor %}{% endmacro %}{{ m(l) }}", "{% macro 1() %}{% endmacro %}", "{% macro m %}{% endmacro %}", "{% macro m( %}{% endmacro %}", "{% macro m() %}", "{% filter upper %}a{{ n }}b{% endfilter %}", "{% filter replace('a', 'b') | upper %}abc{% endfilter %}", "{% filter trim %}  x {% endfilter %}|",
    "{% filter upper %}{% set q = 1 %}{% endfilter %}{{ q is defined }}", "{% filter nofilter %}{% endfilter %}", "{% filter tojson %}\"a\"{% endfilter %}", "{% generation %}abc{{ n }}{% endgeneration %}", "{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q is defined }}", "{% for i in l %}{% generation %}{{ i }}{{ loop.index }}{% endgeneration %}{% endfor %}", "{%- generation -%}  a  {%- endgeneration -%}  b", "{% generation %}", "{% endgeneration %}")
add("a\n", "a\n\n", "\na", "  {% if true %}\n  a\n  {% endif %}\nb", "  {%- if true %}\n  a\n  {%- endif %}\nb", "{% if true -%}\n  a\n{%- endif -%}\n  b", "{% if true +%}\n  a\n{%+ endif %}\nb", "  {%+ if true %}a{% endif %}", "x  {% if true %}a{% endif %}", "\n  {% set x = 1 %}\n  {{ x }}\n", "  {{ n }}\n  {{- n }}\n  {{ n -}}\n  x", "a {#- c -#} b", "a {# c #} b", "  {# c #}\nb", "a\n  {# c #}\n  b", "a {#+ c +#}\nb", "a{#-#}b", "a{#--#}  b", "a{# #\n# }} {% #}b", "{{+ n }}", "{{- 5 -}}", "a {{-5}} b",
    "{% raw %}{{ a }}{% if %}{# x #}{% endraw %}", "  {% raw %}\n a {% endraw %}\nb", "a {%- raw -%}  x  {%- endraw -%}  b", "{% raw -%}\n x \n{%- endraw %}\n y", "{% raw +%}x{% endraw %}", "{% raw %}x{%+ endraw +%}\ny", "{% raw %}", "{% raw %}{% endraw", "{% raw %}{% raw %}{% endraw %}", "  {% raw %}{% endraw %}x", "{%raw%}a{%endraw%}b", "{%if n%}a{%endif%}", "{{n}}{{s}}", "{{ '}}' }}", "{{ '{{' }}", "{{ {'a': {'b': 1}}['a'] }}", "{% set x = '%}' %}{{ x }}",
    "{{ '{#' }}", "a\r\nb\rc", "{{ 'a\r\nb' }}", "{% if true %}\r\na{% endif %}", "é{{ u }}é", "{{ 'é你😀' }}", "\t{% if true %}\t\na{% endif %}", "{% if true %} \na{% endif %}", "{% if true %}a{% endif %} \n  {% if true %}b{% endif %}\n", "{%- for i in l -%} {{ i }} {%- endfor -%}", "{% for i in l %}\n- {{ i }}\n{% endfor %}\ndone", "{%- for i in l %}\n- {{ i }}\n{%- endfor %}\ndone", "  {{ 'x' }}  {% if 1 %}  {% endif %}  \n", "\u3000{% if true %}a{% endif %}", "\u00a0{%- if true %}a{% endif %}",
    "{{ n\n}}", "{%\nif n\n%}a{%\nendif\n%}", "{{ 'a' }}\n{{ 'b' }}\n", "{# a #}{# b #}\n\n{# c #}\n", "{{ '\\n' }}x\n", "\n\n{%- set a = 1 -%}\n\n{{ a }}", "{{ \"a\" ~ 'b' }}{{- ' c' -}} d", "{ {{ n }} }", "{{{ 'a': 1 }}}", "{{ {'a': 1}.a }}", "{{ ({'a': {}}) }}", "{%- if n %}{{ n }}{%- else %}{%- endif %}\n", "{{ s }}{# trailing", "{% set α = 1 %}{{ α }}", "{{ 1 }}{{ '' }}{{ 2 }}", "{%- -%}", "{{ '\\u' }}", "{{ '\\x4' }}", "{{ '\\U00110000' }}", "{{ 'a\nb' }}", "{% set x = 1 -%}\n\n  {{- x -}}  \n!")
each("(1, 2) | length", "s | default('x') | upper | lower | replace('hello', 'bye') | trim | title", "(s ~ ' ' ~ n) | upper | length", "[s, n] | map('string') | map('upper') | join(' ') | lower", "{'a': [1, {'b': (2, none)}]} | string", "'a' if s is string and s | length > 3 else 'b'", "s.split(',') | map('trim') | list", "(d.b | first) + (d.b | last)",
     "people | map(attribute='age') | unique | sort | join('<')", "d.items() | map('first') | list", "d | dictsort | map('last') | list", "'%s' | replace('%s', 'x')", "['a', 'b'] | join(', ') ~ '.'", "s[:5] ~ s[5:]", "(n | string)[0]", "-(n)", "-n | abs", "- n | string", "n | string | length * 2", "2 * n | string", "not n | string", "l | length - 1", "l | length is odd", "l[l | length - 1]", "1 if l | length > 2 else 0",
     "[1, 2, 3] | sum / 2", "s | upper ~ s | lower", "('a', 'b') | join", "[] is defined", "d.a + d.b[1] * n - 1", "t and 1 or 2", "(missing or s) | length", "missing | default(s | upper)", "(d | tojson) is string", "(d | tojson | safe) ~ '<'", "'\\n'.join(['a', 'b'])", "ns_missing.a.b", "[d][0]['c'].x", "(none, true, 1.50)", "[1.0, 1e20, 1e-5, 123.456]", "'a' ~ 1.0 ~ true ~ none ~ [1, 'b'] ~ {'c': 2}")

# What the reference takes and we refuse on purpose: integers beyond 64 bits, complex numbers, the
# constructs outside the subset.
REFUSED = ["{{ " + expression + " }}" for expression in [
    "9223372036854775808", "2 ** 64", "10 ** 20", "9223372036854775807 + 1", "-9223372036854775807 - 2",
    "3037000500 * 3037000500", "'99999999999999999999' | int", "(-8) ** 0.5", "none[1:]",
    "range(*[1, 3]) | list", "dict(**{'a': 1})", "lipsum(1)", "'%c' % 65", "'{0.a}'.format(d)", "s.swapcase()",
    "l | batch(2) | list", "l | groupby(0)", "s | wordcount", "s | truncate(5)"]] + [
    "{% with x = 1 %}{{ x }}{% endwith %}", "{% call range(1) %}{% endcall %}", "{% block a %}x{% endblock %}",
    "{% print 1 %}", "{% autoescape false %}x{% endautoescape %}", "{% include 'x' ignore missing %}"]

"""Code that wants more than it may: what the sandbox and the checks must withstand."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CASES", "Hostile"]

MODULES = (
    "asyncio",
    "base64",
    "builtins",
    "collections",
    "contextlib",
    "csv",
    "ctypes",
    "dataclasses",
    "datetime",
    "decimal",
    "functools",
    "gc",
    "http",
    "importlib",
    "inspect",
    "io",
    "itertools",
    "json",
    "math",
    "mesh",
    "multiprocessing",
    "os",
    "pathlib",
    "pickle",
    "random",
    "re",
    "shutil",
    "signal",
    "socket",
    "string",
    "subprocess",
    "sys",
    "threading",
    "time",
    "types",
    "typing",
    "urllib",
    "weakref",
)
"""Whatever is asked for, an owner may allow it; it is the sandbox that does not have it."""


@dataclass(frozen=True)
class Hostile:
    """A function, and what is known of how it ends."""

    code: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the function."""
    reasons: frozenset[str] = frozenset()
    """Of these one, unless its time is over before; empty for any that is known."""


def _function(code: str) -> str:
    text = textwrap.dedent(code).strip("\n")
    if "def main" in text:
        return text + "\n"
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    body = [line for line in text.splitlines() if line not in imports]
    awaits = any("await " in line or "async " in line for line in body)
    return "\n".join(
        [
            *imports,
            f"{'async ' if awaits else ''}def main():",
            *(f"    {line}" for line in body),
            "",
        ]
    )


def _all(group: str, /, *reasons: str, **codes: str | Hostile) -> dict[str, Hostile]:
    return {
        f"{group}-{name}": code
        if isinstance(code, Hostile)
        else Hostile(_function(code), reasons=frozenset(reasons))
        for name, code in codes.items()
    }


def _hostile(code: str, /, *reasons: str, **fields: Any) -> Hostile:
    arguments = fields.pop("arguments", {})
    return Hostile(_function(code), arguments, fields, frozenset(reasons))


CASES: dict[str, Hostile] = {}

CASES |= _all(
    "attributes",
    classes="return str(().__class__.__base__.__subclasses__())",
    mro="return str([].__class__.__mro__)",
    type_mro="return str(type([]).mro())",
    globals="return str(main.__globals__)",
    builtins="return str(__builtins__)",
    code_object="return str(main.__code__.co_consts)",
    closure="""
        def inner():
            return main
        return str(inner.__closure__)
        """,
    frame="""
        try:
            1 / 0
        except ZeroDivisionError as error:
            return str(error.__traceback__.tb_frame.f_back.f_globals)
        """,
    generator_frame="""
        def steps():
            yield 1
        return str(steps().gi_frame.f_builtins)
        """,
    coroutine_frame="""
        async def main():
            return str(main().cr_frame.f_back)
        """,
    getattr="return str(getattr(getattr((), '__cl' + 'ass__'), '__ba' + 'se__'))",
    getattr_loop="""
        found = []
        for name in ('__class__', '__base__', '__subclasses__', '__globals__', '__init__',
                     '__reduce__', '__reduce_ex__', '__getattribute__', '__dict__', '__module__',
                     '__self__', '__wrapped__', '__func__', '__loader__', '__spec__'):
            for thing in (main, print, len, 'x', 1, [], {}, int, type, object(), Exception()):
                found.append(str(getattr(thing, name, '')))
        return found
        """,
    reduce="return str(object().__reduce_ex__(2))",
    object_reduce="return str(object.__reduce__(object()))",
    new_type="return str(type('X', (object,), {'__init__': lambda self: None})())",
    type_of_type="return str(type(type)('X', (), {}))",
    setattr_builtin="setattr(str, 'upper', lambda self: 'x')\nreturn 'a'.upper()",
    delattr_builtin="delattr(str, 'upper')\nreturn 'a'.upper()",
    class_assignment="""
        class A:
            pass
        a = A()
        a.__class__ = dict
        return str(a)
        """,
    metaclass="""
        class Meta(type):
            def __call__(cls, *args):
                return cls.__subclasses__()
        class A(metaclass=Meta):
            pass
        return str(A())
        """,
    getattribute="""
        class A:
            def __getattribute__(self, name):
                return getattr(self, name)
        return A().x
        """,
    descriptors="""
        class A:
            def __get__(self, a, b):
                return self.x
            def __getattr__(self, name):
                return self.y
        class B:
            a = A()
        return B().a
        """,
    module_walk="""
        import json
        return str(json.codecs.builtins.open('/etc/passwd').read())
        """,
    module_dict="""
        import math
        return str(math.__dict__) + str(math.__loader__) + str(vars(math))
        """,
    functools_walk="""
        import functools
        return str(functools.partial(print).__class__.__init__.__globals__)
        """,
    print_file="print('x', file=open('/tmp/bxmesh-hostile', 'w'))",
    dir_everything="return str([dir(thing) for thing in (main, print, object, type, 1)])",
    globals_function="return str(globals()) + str(locals()) + str(vars())",
)

CASES |= _all(
    "imports",
    "IMPORT_NOT_ALLOWED",
    plain=_hostile("import os\nreturn 1", "IMPORT_NOT_ALLOWED", allowed_imports=[]),
    from_os=_hostile("from os import environ\nreturn 1", "IMPORT_NOT_ALLOWED", allowed_imports=[]),
    nested=_hostile(
        "def main():\n    if True:\n        import socket\n    return 1\n",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=[],
    ),
    conditional=_hostile(
        "try:\n    import json\nexcept ImportError:\n    import subprocess\ndef main():\n    return 1\n",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=[],
    ),
    in_a_class=_hostile(
        "class A:\n    import sys\ndef main():\n    return 1\n",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=[],
    ),
    in_a_lambda_default=_hostile(
        "def main(x=[y for y in ()]):\n    import importlib as x\n    return 1\n",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=[],
    ),
    renamed=_hostile("import sys as json\nreturn 1", "IMPORT_NOT_ALLOWED", allowed_imports=[]),
    submodule=_hostile(
        "def main():\n    import os.path\n    return 1\n", "IMPORT_NOT_ALLOWED", allowed_imports=[]
    ),
    prefix=_hostile(
        "def main():\n    import jsonx\n    return 1\n", "IMPORT_NOT_ALLOWED", allowed_imports=[]
    ),
    mixed=_hostile("import json, os\nreturn 1", "IMPORT_NOT_ALLOWED", allowed_imports=[]),
    relative=_hostile(
        "def main():\n    from . import secrets\n    return 1\n",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=[],
    ),
    relative_parent=_hostile(
        "def main():\n    from ...server import app\n    return 1\n",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=["server", "app"],
    ),
    empty_name=_hostile(
        "def main():\n    from . import x\n    return 1\n",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=[".", " "],
    ),
    host_module_not_granted=_hostile(
        "import mesh\nasync def main():\n    return await mesh.request('a', 'b')\n",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=[],
    ),
    of_the_server=_hostile(
        "def main():\n    import bxmesh.server.settings\n    return 1\n",
        "CODE_INVALID",
        "TYPES_INVALID",
        "FUNCTION_FAILED",
        "TRIAL_FAILED",
        allowed_imports=["bxmesh"],
    ),
)
CASES |= _all(
    "import_tricks",
    dunder="return str(__import__('os').environ)",
    dunder_of_builtins="return str(__builtins__['__import__']('os').environ)",
    importlib="import importlib\nreturn str(importlib.import_module('os').environ)",
    sys_modules="import sys\nreturn str(sys.modules['os'].environ)",
    eval="return eval('__import__(\"os\").environ')",
    eval_import="return str(eval('os.environ', {'os': __import__('os')}))",
    exec="""
        found = {}
        exec('import os\\nfound = str(os.environ)', found)
        return str(found)
        """,
    exec_socket="exec('import socket\\nsocket.create_connection((\"127.0.0.1\", 22))')\nreturn 1",
    exec_ungranted="exec('import mesh')\nreturn str(mesh)",
    compile="return str(eval(compile('__import__(\"os\")', 'x', 'eval')))",
    star="from os import *\nreturn str(environ)",
    builtins_module="import builtins\nreturn str(builtins.open('/etc/passwd').read())",
    ctypes="import ctypes\nreturn str(ctypes.CDLL(None))",
    pickle="""
        import pickle
        return str(pickle.loads(b"cos\\nsystem\\n(S'id'\\ntR."))
        """,
    gc="import gc\nreturn str(gc.get_objects())",
    inspect="import inspect\nreturn str(inspect.stack()[0].frame.f_globals)",
    types="import types\nreturn str(types.CodeType(0, 0, 0, 0, 0, 0, b'', (), (), (), '', '', 0, b''))",
    import_many="exec('\\n'.join(f'import m{i}' for i in range(100000)))\nreturn 1",
)

CASES |= _all(
    "formats",
    attribute="return '{0.__class__.__init__.__globals__}'.format(main)",
    index="return '{0[__globals__]}'.format({'a': 1})",
    nested_attribute="return '{x.__class__.__base__.__subclasses__}'.format(x=())",
    f_string="return f'{main.__globals__!r:{100}}'",
    format_map="return '{a.__class__}'.format_map({'a': 1})",
    percent_width="return '%1000000000d' % 1",
    percent_star="return '%*d' % (1000000000, 1)",
    percent_precision="return '%.1000000000f' % 1.5",
    format_width="return '{:1000000000}'.format(1)",
    format_nested_width="return '{:{}}'.format('x', 10**9)",
    format_precision="return '{:.1000000000f}'.format(1.5)",
    f_width="n = 10**9\nreturn f'{1:{n}}'",
    format_builtin="return format(1, '>1000000000')",
    format_huge_width="return '{:99999999999999999999999999}'.format(1)",
    repeated="return ('{0}' * 1000000).format('x' * 1000000)",
    ljust="return 'x'.ljust(10**9)",
    zfill="return 'x'.zfill(10**10)",
    center="return 'x'.center(2**62)",
    expandtabs="return ('\\t' * 1000).expandtabs(10**7)",
    strftime="import datetime\nreturn datetime.datetime(2020, 1, 1).strftime('%Y' * 10000000)",
    deep_braces="return eval('f\"' + '{' * 5000 + '1' + '}' * 5000 + '\"')",
)

BOMB = ("MEMORY_LIMIT", "FUNCTION_FAILED", "OUTPUT_LIMIT")
CASES |= _all(
    "memory",
    *BOMB,
    list_growth="x = []\nwhile True:\n    x.append('x' * 1000)",
    list_multiply="return len([0] * 10**10)",
    list_double="x = [1]\nwhile True:\n    x = x + x",
    list_extend_self="x = [1]\nwhile True:\n    x.extend(x)",
    list_slice="x = [1] * 1000\nwhile True:\n    x[:] = x + x",
    string_double="x = 'x'\nwhile True:\n    x += x",
    string_multiply="return len('x' * 10**11)",
    string_negative_overflow="return len('x' * (2**63 - 1))",
    string_join="return len(','.join(['x' * 10**5] * 10**5))",
    string_replace="return len(('x' * 10**6).replace('x', 'y' * 10**6))",
    string_replace_empty="return len(('x' * 10**6).replace('', 'y' * 10**4))",
    string_translate="return len(('x' * 10**6).translate({120: 'y' * 10**6}))",
    string_split="return len(('x ' * 10**7).split())",
    string_encode="return len(('\\U0001f600' * 10**7).encode())",
    bytes_multiply="return len(b'x' * 10**11)",
    bytes_zero="return len(bytes(10**11))",
    bytearray="return len(bytearray(10**11))",
    bytes_join="return len(b','.join([b'x' * 10**6] * 10**4))",
    dict_growth="x = {}\nwhile True:\n    x[len(x)] = str(len(x))",
    dict_comprehension="return len({i: [i] for i in range(10**9)})",
    set_growth="x = set()\nwhile True:\n    x.add(len(x))",
    set_comprehension="return len({str(i) for i in range(10**9)})",
    tuple_double="x = (1,)\nwhile True:\n    x = x + x",
    tuple_of_range="return len(tuple(range(10**10)))",
    list_of_range="return len(list(range(10**10)))",
    comprehension="return len([[0] * 1000 for _ in range(10**9)])",
    nested_lists="x = []\nwhile True:\n    x = [x, x]",
    generator_kept="x = [(y for y in range(10)) for _ in range(10**9)]\nreturn len(x)",
    generator_to_list="return len(list('x' * 1000 for _ in iter(int, 1)))",
    closures="x = None\nwhile True:\n    x = (lambda y: lambda: y)([x, 'x' * 100])",
    cycles="""
        while True:
            a = ['x' * 1000]
            a.append(a)
        """,
    objects="""
        class A:
            def __init__(self, below):
                self.below = below
                self.more = 'x' * 100
        x = None
        while True:
            x = A(x)
        """,
    exceptions="""
        last = None
        while True:
            try:
                raise ValueError('x' * 1000) from last
            except ValueError as error:
                last = error
        """,
    json_dumps="import json\nx = 'x' * 10**5\nreturn len(json.dumps([x] * 10**5))",
    json_indent="import json\nreturn len(json.dumps([[[1]] * 1000] * 100, indent=10**6))",
    repr=_hostile("return len(repr(['x' * 10**5] * 10**5))"),
    deque="import collections\nx = collections.deque()\nwhile True:\n    x.append('x' * 1000)",
    counter="import collections\nreturn len(collections.Counter(range(10**9)))",
    star_arguments="return max(*range(10**9))",
    star_unpacking="return len([*range(10**9), *range(10**9)])",
    many_keywords="return len(dict(**{str(i): i for i in range(10**8)}))",
    random_bytes="import random\nreturn len(random.randbytes(10**11))",
    base64="import base64\nx = b'x' * 10**6\nwhile True:\n    x = base64.b64encode(x)",
    lru_cache="""
        import functools
        def main():
            @functools.lru_cache(maxsize=None)
            def f(n):
                return 'x' * 1000
            n = 0
            while True:
                f(n)
                n += 1
        """,
    walrus="return len([y := ['x' * 1000, y if i else 0] for i in range(10**9)])",
    top_level=_hostile(
        "X = 'x' * 10**11\ndef main():\n    return 1\n", "TRIAL_FAILED", "MEMORY_LIMIT"
    ),
    default_argument=_hostile(
        "def main(x='x' * 10**11):\n    return 1\n", "TRIAL_FAILED", "MEMORY_LIMIT"
    ),
)

CASES |= _all(
    "cpu",
    *BOMB,
    loop="while True:\n    pass",
    for_loop="for _ in iter(int, 1):\n    pass",
    sum_range="return sum(range(10**12))",
    any_range="return any(x < 0 for x in range(10**12))",
    min_range="return min(range(10**12))",
    in_range=_hostile("return 'x' in range(10**12)"),
    count_range="return range(10**12).count('x')",
    nested_comprehension="return sum(1 for a in range(10**4) for b in range(10**4) for c in range(10**4))",
    sorted_many="return sorted([str(i) for i in range(10**5)] * 3, key=lambda x: sorted(x * 100))[:1]",
    sorted_by_time="""
        class A:
            def __lt__(self, other):
                while True:
                    pass
        return sorted([A(), A()])
        """,
    product="import itertools\nreturn sum(1 for _ in itertools.product(range(100), repeat=10))",
    permutations="import itertools\nreturn sum(1 for _ in itertools.permutations(range(20)))",
    combinations="import itertools\nreturn sum(1 for _ in itertools.combinations(range(60), 30))",
    cycle="import itertools\nfor _ in itertools.cycle([1]):\n    pass",
    repeat="import itertools\nfor _ in itertools.repeat(1):\n    pass",
    count="import itertools\nreturn sum(itertools.count())",
    accumulate="import itertools\nreturn list(itertools.accumulate(itertools.count()))",
    deque_of_count="import collections, itertools\nreturn collections.deque(itertools.count(), 1)[0]",
    dropwhile="import itertools\nreturn next(itertools.dropwhile(lambda x: True, itertools.count()))",
    islice="import itertools\nreturn next(itertools.islice(itertools.count(), 10**15, None))",
    tee="import itertools\na, b = itertools.tee(itertools.count())\nreturn sum(a)",
    zip_longest="import itertools\nreturn len(list(itertools.zip_longest(itertools.count(), [])))",
    pow="return pow(3, 10**9)",
    pow_mod="return pow(3, 2**100000, 2**100000 - 1)",
    factorial="import math\nreturn math.factorial(10**7)",
    comb="import math\nreturn math.comb(10**7, 5 * 10**6)",
    perm="import math\nreturn math.perm(10**7)",
    gcd="import math\nreturn math.gcd(*[3**100000 + i for i in range(100)])",
    isqrt="import math\nreturn math.isqrt(10**1000000)",
    fsum="import math\nreturn math.fsum(range(10**12))",
    math_prod="import math\nreturn math.prod(range(1, 10**9))",
    reduce="import functools\nreturn functools.reduce(lambda a, b: a * b, range(1, 10**9))",
    map_filter="return len(list(filter(None, map(lambda x: 0, range(10**12)))))",
    string_search=_hostile("return ('a' * 10**6).count('a' * 5 * 10**5 + 'b' + 'a' * 10)"),
    string_find="return sum(('a' * 10**5 + 'b').find('a' * 5000 + 'c') for _ in range(10**6))",
    list_remove="x = list(range(10**5))\nwhile x:\n    x.insert(0, x.pop())",
    list_equality="a = [[1] * 1000] * 1000\nwhile a == list(a):\n    pass",
    hash_collisions="return len({2**61 * i: 0 for i in range(10**6)})",
    decimal="import decimal\nreturn str(decimal.Decimal(2) ** decimal.Decimal(10**9))",
    decimal_precision="""
        import decimal
        decimal.getcontext().prec = 10**9
        return len(str(decimal.Decimal(1) / decimal.Decimal(3)))
        """,
    datetime_loop="""
        import datetime
        day = datetime.date(1, 1, 1)
        while True:
            day = day + datetime.timedelta(days=1) if day.year < 9000 else datetime.date(1, 1, 1)
        """,
    while_else="while True:\n    try:\n        continue\n    finally:\n        pass",
    iterator="""
        class A:
            def __iter__(self):
                return self
            def __next__(self):
                return 1
        return sum(A())
        """,
    bool_loop=_hostile("""
        class A:
            def __bool__(self):
                while True:
                    pass
        return 1 if A() else 2
        """),
    hash_loop="""
        class A:
            def __hash__(self):
                while True:
                    pass
        return len({A(): 1})
        """,
    len_lies="""
        class A:
            def __len__(self):
                return 2**62
            def __getitem__(self, i):
                return 'x' * 1000
        return len(list(A()))
        """,
    top_level=_hostile(
        "while True:\n    pass\ndef main():\n    return 1\n", "TRIAL_FAILED", "TYPES_INVALID"
    ),
    decorator=_hostile(
        "def spin(f):\n    while True:\n        pass\n@spin\ndef main():\n    return 1\n",
        "TRIAL_FAILED",
        "TYPES_INVALID",
    ),
    default_argument=_hostile(
        "def main(x=sum(range(10**12))):\n    return 1\n", "TRIAL_FAILED", "TYPES_INVALID"
    ),
)

CASES |= _all(
    "regex",
    nested_quantifiers="import re\nreturn bool(re.match(r'(a+)+$', 'a' * 5000 + 'b'))",
    nested_stars="import re\nreturn bool(re.match(r'(a*)*(b*)*(c*)*$', 'a' * 5000 + 'd'))",
    alternation="import re\nreturn bool(re.match(r'(a|a|aa)+$', 'a' * 5000 + 'b'))",
    overlapping="import re\nreturn bool(re.match(r'(x+x+)+y', 'x' * 5000))",
    backreference="import re\nreturn bool(re.match(r'(a*)*\\1*b', 'a' * 5000))",
    backreferences="import re\nreturn bool(re.match(r'(.*)(.*)(.*)(.*)\\4\\3\\2\\1x', 'ab' * 2000))",
    backreference_nested="import re\nreturn bool(re.match(r'(?:(a+)\\1?)+$', 'a' * 100 + 'b'))",
    lookahead="import re\nreturn bool(re.match(r'(?=(a+)+$)a', 'a' * 5000 + 'b'))",
    lookaheads="import re\nreturn bool(re.match(r'(?=.*a)(?=.*b)(?=(.*)*c)x', 'ab' * 50000))",
    lookbehind="import re\nreturn bool(re.search(r'(?<=a+)+b', 'a' * 10000))",
    evil_email="""
        import re
        pattern = r'^([a-zA-Z0-9])(([\\-.]|[_]+)?([a-zA-Z0-9]+))*(@){1}[a-z0-9]+[.]{1}(([a-z]{2,3}))$'
        return bool(re.match(pattern, 'a' * 5000 + '!'))
        """,
    huge_alternation="""
        import re
        return bool(re.search('|'.join(f'a{i}' for i in range(100000)), 'b' * 1000))
        """,
    huge_repeat="import re\nreturn bool(re.match('(a{1000}){1000}', 'a' * 1000))",
    huge_repeat_nested="import re\nreturn bool(re.match('((((a{100}){100}){100}){100}){100}', 'a'))",
    huge_counts="import re\nreturn bool(re.match('a{1,4294967295}', 'a' * 1000))",
    deep_groups="import re\nreturn bool(re.match('(' * 50000 + 'a' + ')' * 50000, 'a'))",
    unicode_class="import re\nreturn bool(re.match(r'[\\w\\W]{1000}{1000}' * 100, 'a'))",
    sub_growth="import re\nreturn len(re.sub('', 'y' * 10**5, 'x' * 10**5))",
    sub_callback="import re\nreturn re.sub('a', lambda m: 'a' * 10**7, 'a' * 10**5)[:1]",
    findall="import re\nreturn len(re.findall('', 'x' * 10**8))",
    finditer="import re\nreturn sum(len(m.group()) for m in re.finditer('(?=(a+))', 'a' * 10**5))",
    split="import re\nreturn len(re.split('()', 'x' * 10**7))",
    compile_many="import re\nreturn [re.compile('a' * i) for i in range(10**6)][0].pattern",
    verbose="import re\nreturn bool(re.match('(?x)' + '( a # ' + chr(10) + ')*' * 10000, 'a'))",
)

CASES |= _all(
    "recursion",
    plain="return main()",
    mutual="""
        def a(n):
            return b(n)
        def b(n):
            return a(n)
        return a(1)
        """,
    lambdas="f = lambda g: g(g)\nreturn f(f)",
    caught="""
        def f():
            try:
                return f()
            except RecursionError:
                return f()
        return f()
        """,
    finally_recursion="""
        def f():
            try:
                f()
            finally:
                f()
        return f()
        """,
    coroutine="async def main():\n    return await main()\n",
    generator="""
        def f():
            yield from f()
        return list(f())
        """,
    nested_iterators="x = iter([1])\nfor _ in range(10**6):\n    x = iter(map(str, x))\nreturn list(x)",
    chained="""
        import itertools
        x = []
        for _ in range(10**6):
            x = itertools.chain(x, [1])
        return sum(x)
        """,
    partials="""
        import functools
        f = len
        for _ in range(10**6):
            f = functools.partial(f)
        return f('x')
        """,
    attribute="""
        class A:
            def __getattr__(self, name):
                return getattr(self, name + 'x')
        return A().a
        """,
    repr_of_itself="""
        class A:
            def __repr__(self):
                return repr(self)
        return str(A())
        """,
    equality="""
        class A:
            def __eq__(self, other):
                return other == self
        return A() == A()
        """,
    property="""
        class A:
            @property
            def a(self):
                return self.a
        return A().a
        """,
    call="""
        class A:
            def __call__(self):
                return self()
        return A()()
        """,
    init="""
        class A:
            def __init__(self):
                self.a = A()
        return str(A())
        """,
    literal=_hostile("def main():\n    return " + "[" * 50000 + "]" * 50000 + "\n"),
    literal_within="return eval('[' * 100000 + ']' * 100000)",
    expression_within="return eval('-' * 1000000 + '1')",
    binary_within="return eval('+'.join(['1'] * 1000000))",
    attributes_within="return eval('a' + '.b' * 1000000)",
    lambdas_within="return str(eval('lambda: ' * 100000 + '1'))",
    blocks_within="""
        lines = [' ' * i + 'if 1:' for i in range(1000)]
        exec(chr(10).join([*lines, ' ' * 1000 + 'pass']))
        return 1
        """,
    nested_eval="code = '1'\nfor _ in range(1000):\n    code = f'eval({code!r})'[:100000]\nreturn eval(code)",
    json_loads="import json\nreturn str(json.loads('[' * 10**6 + ']' * 10**6))[:1]",
    json_loads_objects="import json\nreturn str(json.loads('{\"a\":' * 10**6 + '1' + '}' * 10**6))[:1]",
    json_dumps="import json\nx = []\nfor _ in range(10**5):\n    x = [x]\nreturn len(json.dumps(x))",
    json_cycle="import json\nx = []\nx.append(x)\nreturn json.dumps(x)",
    repr_deep="x = []\nfor _ in range(10**5):\n    x = [x]\nreturn len(repr(x))",
    str_of_cycle="x = {}\nx['x'] = x\nreturn str(x)",
    compare_deep="""
        a, b = [], []
        for _ in range(10**5):
            a, b = [a], [b]
        return a == b
        """,
    compare_cycles="a = []\na.append(a)\nb = []\nb.append(b)\nreturn a == b",
    order_deep="a, b = (), ()\nfor _ in range(10**5):\n    a, b = (a,), (b,)\nreturn a < b",
    hash_deep="a = ()\nfor _ in range(10**5):\n    a = (a,)\nreturn hash(a)",
    copy_deep="import copy\na = []\nfor _ in range(10**5):\n    a = [a]\nreturn len(copy.deepcopy(a))",
    free_deep="a = []\nfor _ in range(10**5):\n    a = [a]\na = None\nreturn 1",
    isinstance_deep="x = int\nfor _ in range(10**5):\n    x = (x,)\nreturn isinstance('', x)",
    exception_chain="""
        error = None
        for _ in range(10**5):
            try:
                raise ValueError() from error
            except ValueError as caught:
                error = caught
        raise error
        """,
    sort_recursion="def f(x):\n    return sorted([2, 1], key=f)\ndef main():\n    return f(1)\n",
    map_recursion="def f(x):\n    return list(map(f, [x]))\ndef main():\n    return f(1)\n",
    decorators=_hostile(
        "def d(f):\n    return f\n" + "@d\n" * 5000 + "def main():\n    return 1\n",
        "COMPLETED",
        "TRIAL_FAILED",
        "CODE_INVALID",
        "TYPES_INVALID",
    ),
    deeper_than_ever=_hostile(
        "def main():\n    return main()\n",
        "RECURSION_LIMIT",
        "MEMORY_LIMIT",
        recursion=1000,
    ),
    deep_evaluation=_hostile(
        "def f(n):\n    return sorted([1], key=lambda x: f(n + 1))\ndef main():\n    return f(0)\n",
        recursion=1000,
    ),
    deep_class_calls=_hostile(
        """
        class A:
            def __init__(self, n):
                self.a = [A(n + 1) for _ in (1,)]
            def __repr__(self):
                return f'{self.a!r}'
        def main():
            return repr(A(0))
        """,
        recursion=1000,
    ),
)

CASES |= _all(
    "integers",
    tower="return 10**10**8",
    tower_of_towers="return 9**9**9**9",
    shift="return 1 << 10**10",
    shift_overflow="return 1 << 2**70",
    shift_negative="return 1 << -1",
    parse="return int('9' * 10**7)",
    parse_hex="return int('f' * 10**7, 16) % 7",
    to_text="return len(str(1 << 10**7))",
    to_repr="return len(repr(3**(10**6)))",
    to_format="return len(f'{1 << 10**7:d}')",
    multiply="x = 3\nwhile True:\n    x = x * x",
    add="x = 1\nwhile True:\n    x += x",
    square_long="x = 7**(10**5)\nreturn (x ** 1000) % 3",
    divide="return (10**10**6) // (3**(10**5))",
    modulo="x = 10**(10**6)\nfor i in range(10**6):\n    x % (3**1000 + i)",
    literal=_hostile("def main():\n    return " + "9" * 200_000 + "\n"),
    hex_literal=_hostile("def main():\n    return 0x" + "f" * 200_000 + "\n"),
    to_bytes="return len((1).to_bytes(10**11, 'big'))",
    round="return round(1, -10**18)",
    float_overflow="return float(10**400)",
    hash_huge="return hash(3**(10**7))",
    bits="return (1 << 10**8).bit_length()",
    returned="return 3**1000",
    range_huge="return list(range(10**30, 10**30 + 10**9))",
    slice_huge="return 'abc'[:: 10**30]",
    index_huge="return [1][2**80]",
)

CASES |= _all(
    "output",
    floods="while True:\n    print('x' * 1000)",
    many_small="while True:\n    print()",
    one_big="print('x' * 20_000_000)",
    no_end="while True:\n    print('x', end='')",
    separator="print(*range(10**5), sep='x' * 10**6)",
    end="print('x', end='y' * 20_000_000)",
    objects="""
        class A:
            def __str__(self):
                return 'x' * 10_000_000
        while True:
            print(A())
        """,
    nul="print('\\0' * 1000)\nreturn '\\0'",
    surrogates="print('\\ud800' * 1000)\nreturn '\\ud800'",
    escapes="print('\\x1b]0;title\\x07\\x1b[2J\\r\\n' * 10)\nreturn '\\x1b[2J'",
    returned="return 'x' * 20_000_000",
    returned_list="return list(range(10**6))",
    returned_keys="return {str(i) * 10: i for i in range(10**5)}",
    returned_shared="x = ['x' * 1000]\nfor _ in range(25):\n    x = [x, x]\nreturn x",
    returned_deep="x = 1\nfor _ in range(10**5):\n    x = [x]\nreturn x",
    returned_deep_dict="x = 1\nfor _ in range(10**5):\n    x = {'x': x}\nreturn x",
    returned_cycle="x = []\nx.append(x)\nreturn x",
    returned_dict_cycle="x = {}\nx['x'] = x\nreturn x",
    returned_function="return main",
    returned_class="class A:\n    pass\nreturn A",
    returned_instance="class A:\n    def __init__(self):\n        self.x = self\nreturn A()",
    returned_generator="return (x for x in range(10**12))",
    returned_range="return range(10**12)",
    returned_coroutine="async def main():\n    return main()\n",
    returned_exception="return ValueError('x' * 10**6)",
    returned_module="import math\nreturn math",
    returned_bytes="return b'x' * 10**6",
    returned_set="return set(range(1000))",
    returned_nan="return [float('nan'), float('inf')]",
    returned_keys_of_all_kinds="return {None: 1, (1, 2): 2, 1.5: 3}",
    returned_named_tuple="import collections\nreturn collections.namedtuple('A', 'a b')(1, 2)",
    returned_default_dict="import collections\nreturn collections.defaultdict(list, a=[1])",
    returned_datetime="import datetime\nreturn [datetime.datetime.now(), datetime.timedelta.max]",
    returned_pattern="import re\nreturn re.compile('a')",
    returned_dataclass="""
        import dataclasses
        @dataclasses.dataclass
        class A:
            __class__: str = 'dict'
            x: int = 1
        def main():
            return A()
        """,
    returned_subclass="""
        class S(str):
            def __str__(self):
                return 'x' * 10**9
        return S('a')
        """,
    returned_dict_subclass="""
        class D(dict):
            def items(self):
                while True:
                    yield 'x', 1
        return D(a=1)
        """,
)

CASES |= _all(
    "exceptions",
    str_loops="""
        class E(Exception):
            def __str__(self):
                while True:
                    pass
        raise E()
        """,
    str_floods="""
        class E(Exception):
            def __str__(self):
                return 'x' * 10**9
        raise E()
        """,
    str_raises="""
        class E(Exception):
            def __str__(self):
                raise E()
        raise E()
        """,
    repr_raises="""
        class E(Exception):
            def __repr__(self):
                raise E(self)
        raise E(E())
        """,
    str_is_no_text="""
        class E(Exception):
            def __str__(self):
                return 1
        raise E()
        """,
    huge_message="raise ValueError('x' * 10**7)",
    huge_name="raise type('E' * 10**6, (Exception,), {})()",
    message_of_surrogates="raise ValueError('\\ud800\\udc00\\x00\\x1b[2J')",
    other_arguments="raise ValueError({'a': [1]}, None, main, 2**100)",
    cyclic_arguments="x = []\nx.append(x)\nraise ValueError(x)",
    looks_like_a_limit="raise MemoryError('memory limit exceeded')",
    looks_like_time="raise TimeoutError('time limit exceeded')",
    looks_like_hosts="raise RuntimeError('max suspensions exceeded')",
    key_error="raise KeyError('x' * 10**6)",
    group="raise ExceptionGroup('many', [ValueError(str(i)) for i in range(10**4)])",
    group_deep="""
        error = ValueError('x')
        for _ in range(10**4):
            error = ExceptionGroup('deeper', [error])
        raise error
        """,
    cause_cycle="""
        a = ValueError('a')
        b = ValueError('b')
        a.__cause__ = b
        b.__cause__ = a
        raise a
        """,
    cause_itself="a = ValueError('a')\nraise a from a",
    in_finally="try:\n    1 / 0\nfinally:\n    raise ValueError('again')",
    base="raise BaseException('base')",
    system_exit="raise SystemExit(0)",
    exit="exit(1)",
    sys_exit="import sys\nsys.exit(3)",
    os_exit="import os\nos._exit(3)",
    os_abort="import os\nos.abort()",
    os_kill="import os\nos.kill(os.getppid(), 9)",
    keyboard="raise KeyboardInterrupt()",
    generator_exit="raise GeneratorExit()",
    stop_iteration="raise StopIteration(1)",
    stop_async="async def main():\n    raise StopAsyncIteration()\n",
    cancelled="import asyncio\nraise asyncio.CancelledError()",
    not_an_exception="raise 1",
    raise_class_with_arguments="""
        class E(Exception):
            def __init__(self, a):
                pass
        raise E
        """,
    assert_huge="assert 'x' * 10**6 == 'y' * 10**6",
    assert_hostile_repr="""
        class A:
            def __repr__(self):
                while True:
                    pass
        assert A() == 1
        """,
    syntax_within="exec('def')",
    deep_traceback="""
        def f(n):
            if n:
                f(n - 1)
            raise ValueError(n)
        f(150)
        """,
)

CAUGHT = ("MEMORY_LIMIT", "RECURSION_LIMIT", "FUNCTION_FAILED", "OUTPUT_LIMIT")
CASES |= _all(
    "caught",
    time="""
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
        """,
    bare="""
        while True:
            try:
                while True:
                    pass
            except:
                continue
        """,
    memory="""
        while True:
            try:
                x = 'x' * 10**10
            except BaseException:
                pass
        """,
    memory_grows="""
        kept = []
        while True:
            try:
                while True:
                    kept.append('x' * 10000)
            except MemoryError:
                pass
        """,
    time_in_finally="""
        try:
            while True:
                pass
        finally:
            while True:
                pass
        """,
    return_in_finally="""
        while True:
            try:
                while True:
                    pass
            finally:
                continue
        """,
    context="""
        class Swallow:
            def __enter__(self):
                return self
            def __exit__(self, *args):
                return True
        while True:
            with Swallow():
                while True:
                    pass
        """,
    context_lib="""
        import contextlib
        while True:
            with contextlib.suppress(BaseException):
                while True:
                    pass
        """,
    generator_close="""
        def f():
            while True:
                try:
                    yield 1
                except GeneratorExit:
                    pass
        for _ in f():
            break
        return 1
        """,
    output="""
        while True:
            try:
                print('x' * 10**6)
            except BaseException:
                pass
        """,
    recursion_then_more="""
        def f():
            try:
                f()
            except BaseException:
                pass
            return 1
        while True:
            f()
        """,
    recovered_completes=_hostile(
        """
        try:
            x = 'x' * 10**10
        except BaseException:
            return 'caught'
        """
    ),
    sleeping="""
        import time
        while True:
            try:
                time.sleep(1)
            except BaseException:
                pass
        """,
    in_del="""
        class A:
            def __del__(self):
                while True:
                    pass
        a = A()
        a = None
        return 1
        """,
)

CASES |= _all(
    "files",
    "FUNCTION_FAILED",
    "TYPES_INVALID",
    "CODE_INVALID",
    "TRIAL_FAILED",
    open="return open('@FILE@').read()",
    open_passwd="return open('/etc/passwd').read()",
    open_environment="return open('/proc/self/environ', 'rb').read().decode()",
    open_parent="return open('/proc/1/environ').read()",
    open_descriptor="return open(0).read()",
    open_write="open('@FILE@', 'w').write('overwritten')",
    open_traversal="return open('../../../../../../../..@FILE@').read()",
    io_open="import io\nreturn io.open('@FILE@').read()",
    os_open="import os\nreturn os.read(os.open('@FILE@', 0), 100).decode()",
    os_listdir="import os\nreturn os.listdir('/')",
    os_walk=_hostile("import os\nreturn [str(x) for x in os.walk('/etc')]"),
    os_remove="import os\nos.remove('@FILE@')",
    os_stat="import os\nreturn str(os.stat('@FILE@'))",
    os_readlink="import os\nreturn os.readlink('/proc/self/exe')",
    os_cwd="import os\nreturn os.listdir(os.getcwd())",
    path_read="from pathlib import Path\nreturn Path('@FILE@').read_text()",
    path_bytes="from pathlib import Path\nreturn str(Path('@FILE@').read_bytes())",
    path_glob=_hostile(
        "from pathlib import Path\nreturn [str(x) for x in Path('/etc').glob('**/*')]"
    ),
    path_iterdir="from pathlib import Path\nreturn [str(x) for x in Path('/etc').iterdir()]",
    path_write="from pathlib import Path\nPath('@FILE@').write_text('overwritten')",
    path_unlink="from pathlib import Path\nPath('@FILE@').unlink()",
    path_symlink="from pathlib import Path\nPath('/tmp/bxmesh-hostile').symlink_to('@FILE@')",
    path_stat="from pathlib import Path\nreturn Path('@FILE@').stat().st_size",
    path_own_code="return open(__file__).read()",
    shutil="import shutil\nshutil.rmtree('@FOLDER@')",
    breakpoint="breakpoint()\nraise ValueError()",
    input="return input('?')",
)
CASES |= _all(
    "files",
    path_exists="from pathlib import Path\nreturn Path('@FILE@').exists()",
    path_resolve="from pathlib import Path\nreturn str(Path('/proc/self/cwd').resolve())",
    path_home="from pathlib import Path\nreturn str(Path.home()) + str(Path.cwd())",
    path_expanduser="from pathlib import Path\nreturn str(Path('~root').expanduser())",
    own_name="return __file__ + __name__",
)

CASES |= _all(
    "network",
    socket="import socket\nsocket.create_connection(('127.0.0.1', 22))",
    socket_unix="import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/tmp/x')",
    dns="import socket\nreturn socket.getaddrinfo('localhost', 80)[0][0]",
    urllib="import urllib.request\nreturn urllib.request.urlopen('http://127.0.0.1').read()",
    urllib_file="import urllib.request\nreturn str(urllib.request.urlopen('file://@FILE@').read())",
    http="import http.client\nreturn http.client.HTTPConnection('127.0.0.1').request('GET', '/')",
    asyncio="import asyncio\nreturn await asyncio.open_connection('127.0.0.1', 22)",
    asyncio_server="import asyncio\nreturn await asyncio.start_server(print, '127.0.0.1', 0)",
)

CASES |= _all(
    "environment",
    environ="import os\nreturn str(dict(os.environ))",
    environ_item="import os\nreturn os.environ['BXMESH_TEST_CANARY']",
    environ_get="import os\nreturn os.environ.get('BXMESH_TEST_CANARY')",
    getenv="import os\nreturn os.getenv('BXMESH_TEST_CANARY')",
    getenv_default="import os\nreturn os.getenv('BXMESH_TEST_CANARY', 'none')",
    putenv="import os\nos.environ['PATH'] = '/'",
    expandvars="import os\nreturn os.path.expandvars('$BXMESH_TEST_CANARY')",
    arguments="import sys\nreturn str(sys.argv) + str(sys.executable)",
    path="import sys\nreturn str(sys.path)",
    flags="import sys\nreturn str(sys.flags) + str(sys.version) + str(sys.platform)",
    frames="import sys\nreturn str(sys._getframe(1).f_globals)",
    stdin="import sys\nreturn sys.stdin.read()",
    stdout="import sys\nsys.stdout = None\nprint('x')\nreturn 1",
    stderr="import sys\nwhile True:\n    print('x' * 1000, file=sys.stderr)",
    recursion_limit="import sys\nsys.setrecursionlimit(10**9)\nreturn main()",
    user="import os\nreturn str(os.getuid()) + str(os.uname()) + os.getlogin()",
    time_zone="import time\nreturn [time.tzname, time.time() < 1]",
    process_time="import time\nreturn time.process_time()",
)

CASES |= _all(
    "processes",
    fork="import os\nwhile True:\n    os.fork()",
    system="import os\nreturn os.system('cat @FILE@')",
    popen="import os\nreturn os.popen('cat @FILE@').read()",
    execv="import os\nos.execv('/bin/sh', ['sh'])",
    subprocess="import subprocess\nreturn subprocess.check_output(['cat', '@FILE@']).decode()",
    threads="import threading\nwhile True:\n    threading.Thread(target=main).start()",
    multiprocessing="import multiprocessing\nmultiprocessing.Process(target=main).start()",
    signals="import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.pause()",
    alarm="import signal\nsignal.alarm(1)",
    kill="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    shell="return asyncio.create_subprocess_shell('id')",
)

CASES |= _all(
    "waits",
    sleep="import time\ntime.sleep(1e9)",
    sleeps="import time\nwhile True:\n    time.sleep(0.01)",
    sleeps_of_nothing="import time\nwhile True:\n    time.sleep(0)",
    sleep_negative="import time\ntime.sleep(-1)",
    sleep_nan="import time\ntime.sleep(float('nan'))",
    sleep_infinite="import time\ntime.sleep(float('inf'))",
    sleep_huge="import time\ntime.sleep(10**400)",
    async_sleep="import asyncio\nawait asyncio.sleep(1e9)",
    async_sleeps="import asyncio\nwhile True:\n    await asyncio.sleep(0)",
    gather="import asyncio\nawait asyncio.gather(*(asyncio.sleep(0.4) for _ in range(10**5)))",
    gather_recursive="""
        import asyncio
        async def f():
            return await asyncio.gather(f(), f())
        async def main():
            return await f()
        """,
    gather_itself="""
        import asyncio
        async def main():
            tasks = []
            async def f():
                return await tasks[0]
            tasks.append(f())
            return await asyncio.gather(tasks[0], tasks[0])
        """,
    gather_spins="""
        import asyncio
        async def f():
            while True:
                pass
        async def main():
            return await asyncio.gather(f(), asyncio.sleep(1))
        """,
    tasks_outlive="""
        import asyncio
        async def f():
            while True:
                await asyncio.sleep(0.01)
        async def main():
            asyncio.create_task(f())
            return 1
        """,
    never_awaited="""
        async def f():
            return 1
        async def main():
            for _ in range(10**5):
                f()
            return 1
        """,
    never_ready="import asyncio\nawait asyncio.Future()",
    event="import asyncio\nawait asyncio.Event().wait()",
    await_nothing="""
        class A:
            def __await__(self):
                while True:
                    yield None
        async def main():
            return await A()
        """,
    async_generator="""
        async def f():
            while True:
                yield 1
        async def main():
            async for _ in f():
                pass
        """,
    awaits_twice="""
        async def f():
            return 1
        async def main():
            once = f()
            await once
            return await once
        """,
    run_within="import asyncio\nasync def main():\n    return asyncio.run(asyncio.sleep(1))\n",
)

GRANTED = {"host_functions": ["mesh.progress"]}
CASES |= _all(
    "hosts",
    other_of_the_module=_hostile(
        "import mesh\nreturn await mesh.request('a', 'b')",
        "TYPES_INVALID",
        "FUNCTION_FAILED",
        **GRANTED,
    ),
    other_by_name=_hostile(
        "from mesh import assign\nreturn await assign('a')",
        "TYPES_INVALID",
        "FUNCTION_FAILED",
        **GRANTED,
    ),
    other_by_getattr=_hostile(
        "import mesh\nreturn await getattr(mesh, 'request')('a', 'b')", "FUNCTION_FAILED", **GRANTED
    ),
    other_module=_hostile(
        "import geometry\nimport mesh\nreturn await geometry.gradients('m')",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=["mesh"],
        **GRANTED,
    ),
    not_granted=_hostile(
        "import mesh\nreturn await mesh.progress(1)", "TYPES_INVALID", "FUNCTION_FAILED"
    ),
    not_granted_at_run_time=_hostile(
        "exec('import mesh')\nreturn await mesh.progress(1)", "TYPES_INVALID", "FUNCTION_FAILED"
    ),
    walk=_hostile(
        "import mesh\nasync def main():\n    return str(mesh.progress.__globals__)\n",
        "FUNCTION_FAILED",
        "TYPES_INVALID",
        **GRANTED,
    ),
    walk_self=_hostile(
        "import mesh\nasync def main():\n    return str(mesh.progress.__self__._deputy)\n",
        "FUNCTION_FAILED",
        "TYPES_INVALID",
        **GRANTED,
    ),
    returned=_hostile("import mesh\nasync def main():\n    return mesh.progress\n", **GRANTED),
    replaced=_hostile(
        "import mesh\nasync def main():\n    mesh.progress = print\n    return await mesh.progress(1)\n",
        **GRANTED,
    ),
    hostile_arguments=_hostile(
        "import mesh\nasync def main():\n    x = []\n    x.append(x)\n    return await mesh.progress(x)\n",
        **GRANTED,
    ),
    wrong_arguments=_hostile(
        "import mesh\nreturn await mesh.progress(1, 2, self=3, __class__=4)",
        "FUNCTION_FAILED",
        **GRANTED,
    ),
    functions_as_arguments=_hostile(
        "import mesh\nasync def main():\n    return await mesh.progress(main)\n", **GRANTED
    ),
    floods=_hostile(
        "import mesh\nwhile True:\n    await mesh.progress('x' * 1000)",
        "HOST_CALL_LIMIT",
        **GRANTED,
    ),
    floods_caught=_hostile(
        """
        import mesh
        while True:
            try:
                await mesh.progress(1)
            except BaseException:
                pass
        """,
        "HOST_CALL_LIMIT",
        "TIME_LIMIT",
        **GRANTED,
    ),
    floods_at_once=_hostile(
        """
        import asyncio
        import mesh
        await asyncio.gather(*(mesh.progress(i) for i in range(10**5)))
        """,
        "HOST_CALL_LIMIT",
        "TIME_LIMIT",
        "MEMORY_LIMIT",
        **GRANTED,
    ),
    huge_argument=_hostile(
        "import mesh\nreturn await mesh.progress('x' * 10_000_000)", "FUNCTION_FAILED", **GRANTED
    ),
    never_awaited=_hostile(
        "import mesh\nasync def main():\n    mesh.progress(1)\n    return 1\n", **GRANTED
    ),
    at_the_top=_hostile(
        "import mesh\nawait mesh.progress(1)\nasync def main():\n    return 1\n", **GRANTED
    ),
)

CASES |= _all(
    "names",
    takes_the_input=_hostile("bxmesh_input = {}\ndef main():\n    return 1\n", "CODE_INVALID"),
    reads_the_input=_hostile("return str(bxmesh_input)", "CODE_INVALID"),
    input_within="exec('bxmesh_input = 1')\nreturn 1",
    input_by_eval="return str(eval('bxmesh_input'))",
    input_as_parameter=_hostile("def main(bxmesh_input=1):\n    return 1\n", "CODE_INVALID"),
    input_as_function=_hostile(
        "def bxmesh_input():\n    return 1\ndef main():\n    return 1\n",
        "CODE_INVALID",
        "COMPLETED",
    ),
    input_as_global=_hostile(
        "def main():\n    global bxmesh_input\n    bxmesh_input = {'x': 1}\n    return 1\n",
        "CODE_INVALID",
    ),
    input_imported=_hostile(
        "import json as bxmesh_input\ndef main():\n    return 1\n", "CODE_INVALID"
    ),
    main_again="""
        def main():
            global main
            main = 1
            return main
        """,
    main_replaced="""
        def main():
            return 1
        main = 5
        """,
    main_deleted="""
        def main():
            return 1
        del main
        """,
    main_is_a_class="""
        class main:
            pass
        def main():
            return 1
        main = type('X', (), {})
        """,
    shadows="""
        print = len = dict = str = None
        def main():
            return 1
        """,
    shadows_exceptions="""
        class BaseException:
            pass
        Exception = MemoryError = TimeoutError = int
        def main():
            while True:
                pass
        """,
    nothing_of_ours=_hostile(
        "def bxmesh_nothing():\n    while True:\n        pass\ndef main():\n    return 1\n"
    ),
    unicode_confusable="def mаin():\n    return 1\ndef main():\n    return mаin()\n",
    normalised=_hostile("ｂｘｍｅｓｈ_input = 1\ndef main():\n    return 1\n", "CODE_INVALID"),
    soft_keywords="match = case = type = _ = 1\ndef main():\n    return match + case\n",
)

CASES |= _all(
    "inputs",
    dunder_keys=_hostile(
        "def main(**fields):\n    return {k: str(v) for k, v in fields.items()}\n",
        arguments={"__class__": 1, "__globals__": 2, "__builtins__": {"x": 1}, "self": 3},
    ),
    shadowing_keys=_hostile(
        "def main(**fields):\n    return len(fields)\n",
        arguments={"main": 1, "print": 2, "bxmesh_input": 3, "import": 4, "": 5, "a b": 6},
    ),
    odd_keys=_hostile(
        "def main(**fields):\n    return list(fields)\n",
        arguments={"\0": 1, "\x1b[2J": 2, "é" * 1000: 3, "x=1, **evil": 4, "\n\rimport os": 5},
    ),
    unexpected_keys=_hostile("return 1", "FUNCTION_FAILED", arguments={"x": 1}),
    code_in_text=_hostile(
        "def main(x):\n    return x\n",
        arguments={"x": "{0.__class__}'); __import__('os').system('id') #"},
    ),
    evaluated=_hostile(
        "def main(x):\n    return str(eval(x))\n",
        arguments={"x": "__import__('os').environ"},
    ),
    deep=_hostile(
        "def main(x):\n    return str(x)\n",
        arguments={"x": [[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]},
    ),
    many=_hostile("def main(x):\n    return len(x)\n", arguments={"x": list(range(100_000))}),
    numbers=_hostile("def main(x):\n    return x\n", arguments={"x": [1e308, -1e-308, 2**53]}),
)

DEEP = 40_000
CASES |= _all(
    "text",
    nul=_hostile("def main():\n    return 1\n\0", "CODE_INVALID"),
    nul_in_text=_hostile("def main():\n    return '\0'\n", "CODE_INVALID"),
    bom=_hostile("\ufeffdef main():\n    return 1\n"),
    coding=_hostile("# -*- coding: utf-7 -*-\ndef main():\n    return 1\n"),
    coding_unknown=_hostile("# coding: no-such-thing\ndef main():\n    return 1\n"),
    form_feed=_hostile("\x0cdef main():\n\x0c    return 1\n"),
    carriage_returns=_hostile("def main():\r    return 1\r"),
    line_separators=_hostile("def main():\n    return '\u2028\u2029\x85'\n"),
    right_to_left=_hostile("def main():\n    x = 'a\u202e'\n    return x\n"),
    tabs=_hostile("def main():\n\tif 1:\n        return 1\n\treturn 2\n", "CODE_INVALID"),
    empty=_hostile("# def main(): nothing\n", "ENTRY_POINT_MISSING"),
    long_line=_hostile("def main():\n    return len('" + "x" * 260_000 + "')\n"),
    long_name=_hostile("def main():\n    " + "x" * 250_000 + " = 1\n    return 1\n"),
    many_lines=_hostile("def main():\n    return 1\n" + "\n" * 260_000),
    many_functions=_hostile(
        "".join(f"def f{i}(): pass\n" for i in range(10_000)) + "def main():\n    return 1\n"
    ),
    many_statements=_hostile("def main():\n" + "    x = 1\n" * 25_000 + "    return 1\n"),
    many_arguments=_hostile(
        "def main(" + ", ".join(f"a{i}=0" for i in range(20_000)) + "):\n    return 1\n"
    ),
    many_imports=_hostile("import json\n" * 20_000 + "def main():\n    return 1\n"),
    many_refused_imports=_hostile(
        "import os\n" * 20_000 + "def main():\n    return 1\n",
        "IMPORT_NOT_ALLOWED",
        allowed_imports=[],
    ),
    deep_parentheses=_hostile("def main():\n    return " + "(" * DEEP + "1" + ")" * DEEP + "\n"),
    deep_calls=_hostile("def main():\n    return " + "f(" * DEEP + "1" + ")" * DEEP + "\n"),
    deep_brackets=_hostile("def main():\n    return " + "{1: " * DEEP + "1" + "}" * DEEP + "\n"),
    deep_unary=_hostile("def main():\n    return " + "-" * 250_000 + "1\n"),
    deep_not=_hostile("def main():\n    return " + "not " * DEEP + "1\n"),
    deep_power=_hostile("def main():\n    return " + "1**" * DEEP + "1\n"),
    deep_binary=_hostile("def main():\n    return " + "1+" * 100_000 + "1\n"),
    deep_comparison=_hostile("def main():\n    return " + "1<" * 100_000 + "1\n"),
    deep_attributes=_hostile("def main():\n    return main" + ".x" * 100_000 + "\n"),
    deep_subscripts=_hostile("def main():\n    return main" + "[0]" * 80_000 + "\n"),
    deep_call_chain=_hostile("def main():\n    return main" + "()" * 100_000 + "\n"),
    deep_conditionals=_hostile("def main():\n    return " + "1 if 1 else " * 20_000 + "1\n"),
    deep_lambdas=_hostile("def main():\n    return " + "lambda:" * 30_000 + "1\n"),
    deep_elif=_hostile(
        "def main():\n    if 1: pass\n" + "    elif 1: pass\n" * 15_000 + "    return 1\n"
    ),
    deep_blocks=_hostile(
        "def main():\n"
        + "".join(" " * (i + 1) + "if 1:\n" for i in range(600))
        + " " * 601
        + "return 1\n"
    ),
    deep_functions=_hostile(
        "def main():\n"
        + "".join(" " * (i + 1) + f"def f{i}():\n" for i in range(90))
        + " " * 91
        + "return 1\n"
    ),
    deep_comprehensions=_hostile(
        "def main():\n    return " + "[" * 90 + "1" + " for x in [1, 2, 3]]" * 90 + "\n"
    ),
    deep_strings=_hostile("def main():\n    return " + "f'{" * 100 + "1" + "}'" * 100 + "\n"),
    deep_concatenation=_hostile("def main():\n    return " + "'a' " * 60_000 + "\n"),
    deep_walrus=_hostile("def main():\n    return " + "(x:=" * 90 + "1" + ")" * 90 + "\n"),
    deep_await=_hostile("async def main():\n    return " + "await " * 40_000 + "1\n"),
    deep_star=_hostile("def main():\n    return " + "[*" * 90 + "[]" + "]" * 90 + "\n"),
    deep_annotation=_hostile(
        "def main(x: " + "list[" * 5_000 + "int" + "]" * 5_000 + " = 1):\n    return 1\n"
    ),
    deep_patterns=_hostile(
        "def main():\n    match 1:\n        case "
        + "[" * 5_000
        + "x"
        + "]" * 5_000
        + ":\n            return 1\n"
    ),
)

CASES |= _all(
    "types",
    union_growth=_hostile(
        "def f(a: bool):\n"
        + "".join(
            f"    x{i} = (x{i - 1}, x{i - 1}) if a else [x{i - 1}]\n" if i else "    x0 = 1\n"
            for i in range(60)
        )
        + "    return x59\ndef main():\n    return 1\n"
    ),
    tuple_growth=_hostile(
        "x0 = (1,)\n"
        + "".join(f"x{i} = (x{i - 1}, x{i - 1})\n" for i in range(1, 30))
        + "def main():\n    return 1\n"
    ),
    recursive_alias=_hostile(
        "from typing import Union\nA = Union[int, list['A']]\ndef main(x: A = 1):\n    return 1\n"
    ),
    literal_products=_hostile(
        "def f(a: bool, b: bool):\n    x = 0\n"
        + "    x = x * 2 + (1 if a else 0)\n" * 200
        + "    return x\ndef main():\n    return 1\n"
    ),
    literal_strings=_hostile(
        "X = 'x' * 1000\n" + "X = X + X\n" * 12 + "def main():\n    return len(X)\n"
    ),
    overloads=_hostile(
        "from typing import Any, overload\n"
        + "".join(f"@overload\ndef f(x: int, y{i}: int) -> int: ...\n" for i in range(300))
        + "def f(*args: Any, **kwargs: Any) -> Any:\n    return 1\ndef main():\n    return f(1, y0=2)\n"
    ),
    class_chain=_hostile(
        "class C0: pass\n"
        + "".join(f"class C{i}(C{i - 1}): pass\n" for i in range(1, 2000))
        + "def main():\n    return 1\n"
    ),
    inheritance_cycle=_hostile("class A(B): pass\nclass B(A): pass\ndef main():\n    return 1\n"),
    own_generics=_hostile("class A[T: 'A[A[A[int]]]']: pass\ndef main():\n    return 1\n"),
    reveals=_hostile("def main():\n    reveal_type(main)\n    return 1\n"),
    loop_growth=_hostile("def main():\n    x = 1\n    while True:\n        x = (x, [x], {1: x})\n"),
)

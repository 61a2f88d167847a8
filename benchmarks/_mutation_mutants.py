"""Mutants of a module: one small change each, made in its text at the place of a syntax node."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

FACTOR = 1.1

# A product of floats does not know the others: they would fail at once, and prove nothing.
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip


class Change(NamedTuple):
    kind: str
    node: ast.stmt | ast.expr
    after: str


class Mutant(NamedTuple):
    """file: below src.  first_line: of its function or method, decorators included, 0 outside.
    start, end: bytes of the file that `after` replaces.  number: among equal ones of the function.
    """

    file: str
    line: int
    function: str
    first_line: int
    kind: str
    start: int
    end: int
    before: str
    after: str
    number: int

    @property
    def name(self) -> str:
        """The same as long as its function says the same, wherever it stands in the file."""
        said = (self.file, self.function, self.kind, self.before, self.after, str(self.number))
        return hashlib.sha256("\0".join(said).encode()).hexdigest()[:12]

    @property
    def package(self) -> str:
        return Path(self.file).parent.name

    def source(self, original: bytes) -> bytes:
        return original[: self.start] + self.after.encode() + original[self.end :]


def mutants(source: bytes, file: str) -> list[Mutant]:
    """All mutants of a module in the order of its text. Not changed: documentation, errors and
    other text in braces, annotations, decorators, imports, protocols and strings.
    """
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []
    seen: Counter[tuple[str, ...]] = Counter()
    for (function, first_line), change in _walked(ast.parse(source), ("", 0)):
        node = change.node
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        before = " ".join(source[start:end].decode().split())
        said = (function, change.kind, before, change.after)
        mutant = Mutant(
            file, node.lineno, function, first_line, change.kind, start, end, before, change.after,
            seen[said],
        )  # fmt: skip
        seen[said] += 1
        try:
            compile(mutant.source(source), file, "exec")
        except SyntaxError:
            continue
        found.append(mutant)
    return sorted(found, key=lambda mutant: (mutant.start, mutant.after))


def sample(everything: Iterable[Mutant], count: int, *, seed: int, least: int) -> list[Mutant]:
    """So many by a seeded order of their names, at least `least` of each package if it has them."""
    ranked = sorted(
        everything, key=lambda one: hashlib.sha256(f"{seed}/{one.name}".encode()).digest()
    )
    taken: Counter[str] = Counter()
    first: list[Mutant] = []
    rest: list[Mutant] = []
    for mutant in ranked:
        (first if taken[mutant.package] < least else rest).append(mutant)
        taken[mutant.package] += 1
    return (first + rest)[:count]


def _walked(node: ast.AST, owner: tuple[str, int]) -> Iterator[tuple[tuple[str, int], Change]]:
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(b) for b in node.bases):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if not owner[1] and isinstance(node, ast.FunctionDef):
        first_line = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        owner = (owner[0] + node.name, first_line)
    elif not owner[1] and isinstance(node, ast.ClassDef):
        owner = (node.name + ".", 0)
    yield from ((owner, change) for change in _changes(node))
    for name, value in ast.iter_fields(node):
        # Unions of types at the top of a module are annotations too.
        alias = name == "value" and isinstance(value, ast.BinOp) and not owner[0]
        if name in ("annotation", "returns", "decorator_list", "bases", "keywords") and not (
            name == "keywords" and isinstance(node, ast.Call)
        ):
            continue
        if alias and isinstance(value.op, ast.BitOr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walked(child, owner)


def _changes(node: ast.AST) -> Iterator[Change]:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            if not (_is_text(left) or _is_text(right)):
                yield _replaced("arithmetic", node, op=OPERATORS[type(op)]())
        case ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield _replaced("arithmetic", node, op=OPERATORS[type(op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Invert() | ast.Not(), operand=operand):
            yield Change("sign", node, f"({ast.unparse(operand)})")
        case ast.Compare(ops=ops):
            for place, compared in enumerate(ops):
                for other in COMPARISONS[type(compared)]:
                    changed = [*ops[:place], other(), *ops[place + 1 :]]
                    yield _replaced("comparison", node, ops=changed)
        case ast.BoolOp(op=joined):
            swapped = ast.Or() if isinstance(joined, ast.And) else ast.And()
            yield _replaced("boolean", node, op=swapped)
        case ast.Constant(value=value) if not isinstance(value, str | bytes):
            yield from _constants(node, value)
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield Change("return", node, "return None")
        case ast.Call(func=called, keywords=keywords) if not _is_class(called):
            for place, keyword in enumerate(keywords):
                if keyword.arg:
                    rest = keywords[:place] + keywords[place + 1 :]
                    yield _replaced("argument", node, keywords=rest)
        case ast.Slice(lower=lower, upper=upper):
            for bound in (lower, upper):
                if bound and not isinstance(bound, ast.Constant):
                    yield Change("slice", bound, f"({ast.unparse(bound)}) + 1")
        case ast.Expr(value=ast.Call()) | ast.Assign(targets=[ast.Subscript()]):
            yield Change("statement", node, "pass")
    match node:
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            # Others are changed where they stand.
            if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
                yield Change("boolean", test, f"(not ({ast.unparse(test)}))")


def _constants(node: ast.Constant, value: object) -> Iterator[Change]:
    match value:
        case bool():
            yield Change("constant", node, str(not value))
        case int():
            yield Change("constant", node, str(value + 1))
        case float() | complex():
            yield Change("constant", node, repr(value * FACTOR or 1.0))


def _replaced(kind: str, node: ast.stmt | ast.expr, **fields: object) -> Change:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    text = ast.unparse(changed)
    return Change(kind, node, text if isinstance(node, ast.stmt) else f"({text})")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_class(called: ast.expr) -> bool:
    """Made without one of its fields it would only fail at once."""
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return bool(name) and name.lstrip("_")[:1].isupper()

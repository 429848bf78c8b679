"""Reads Python source for the architecture tests: modules and what they import, without running."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file.

    Attributes:
        path: Relative to the repository, with forward slashes.
        text: What it says.
        tree: The same, parsed.
    """

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def of(cls, path: str, text: str) -> Self:
        """Parse a text as if it stood at a path."""
        return cls(path, text, ast.parse(text))

    @property
    def module(self) -> str:
        """Its dotted name."""
        parts = self.path.removesuffix(".py").split("/")
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def at(self, line: int, message: str) -> str:
        """Return a breach as a line that an editor can jump to."""
        return f"{self.path}:{line}: {message}"


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module.

    Attributes:
        target: Its dotted name; empty if it is computed and cannot be read from the source.
        line: Where.
        is_relative: Whether it is given by dots.
        is_nested: Whether it stands in a function and happens only when that is called.
    """

    target: str
    line: int
    is_relative: bool = False
    is_nested: bool = False


def sources(folder: str) -> list[Source]:
    """Return every Python file below a folder of the repository."""
    return [
        Source.of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def imports(source: Source) -> list[Import]:
    """Return every import of a file: at the top, in functions, and by name as a text."""
    return list(_imports(source.tree, is_nested=False))


def _imports(node: ast.AST, *, is_nested: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import(names=names):
                for name in names:
                    yield Import(name.name, child.lineno, is_nested=is_nested)
            case ast.ImportFrom(module=module, names=names, level=level):
                # `from raypeft import core` names a package as much as `import raypeft.core`.
                whole = [module or ""] if module != "raypeft" else []
                parts = [f"raypeft.{name.name}" for name in names] if module == "raypeft" else []
                for target in whole + parts:
                    yield Import(target, child.lineno, level > 0, is_nested)
            case ast.Call(func=func, args=args) if _name(func) in {"import_module", "__import__"}:
                literal = args[0].value if args and isinstance(args[0], ast.Constant) else ""
                yield Import(str(literal), child.lineno, str(literal).startswith("."), is_nested)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, is_nested=is_nested or is_function)


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""

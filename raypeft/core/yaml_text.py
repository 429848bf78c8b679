"""YAML text → plain values, stricter than YAML: one document, no key twice, nothing of itself.

Knows nothing of sweeps; what may stand where is `spec_models`' business.
"""

from typing import Any

import yaml

from raypeft.errors import Problem, SpecError

_UNUSUAL_BREAKS = frozenset("\x85\u2028\u2029")


def read_yaml(text: str, *, source: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        SpecError: With line and column: if it is no YAML, if a key stands twice in a mapping (all
            such keys at once), or if a value holds itself.
    """
    problems: list[Problem] = []
    try:
        value = _read(text, problems)
    except yaml.YAMLError as error:
        raise SpecError((*problems, _syntax_problem(error)), source) from error
    except RecursionError as error:
        raise SpecError((Problem("", "is nested too deeply"),), source) from error
    if problems:
        raise SpecError(tuple(problems), source)
    return value


def write_yaml(value: Any) -> str:
    """Return YAML text that `read_yaml` reads back to an equal value."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, indent=2
    )


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        """Write equal parts twice, since anchors are for people who write, not who read."""
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Put text with unusual line breaks in double quotes, where they are escaped.

        PyYAML writes them bare in other styles, and reads them back as spaces or line feeds.
        """
        style = '"' if _UNUSUAL_BREAKS.intersection(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


class _Loader(yaml.SafeLoader):
    """YAML's own loader, with a place for everything that its constructors stumble over."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value, or raise a `ConstructorError` that says where it stands."""
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Tags and dates are converted unchecked: `2024-13-45` is a ValueError, `!!bool x` a
            # KeyError, `!!timestamp x` an AttributeError.
            message = f"{str(node.value)[:40]!r} cannot be read as {node.tag}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from error


def _read(text: str, problems: list[Problem]) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _inspect(node, {}, problems)
        return None if problems else loader.construct_document(node)
    finally:
        loader.dispose()


def _inspect(node: yaml.Node, is_open: dict[int, bool], problems: list[Problem]) -> None:
    """Report keys that stand twice and anchors with their own alias inside, at any depth.

    Looks at what was written, before merging: a key may well override one that `<<` brings in,
    and the order in which the constructors merge is not that of the text.
    """
    if is_open.get(id(node)):
        problems.append(
            Problem(_mark(node.start_mark), "this value holds itself", "remove the alias in it")
        )
    if id(node) in is_open or not isinstance(node, yaml.CollectionNode):
        return
    is_open[id(node)] = True
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys([key for key, _ in node.value], problems)
    for item in node.value:
        for child in item if isinstance(item, tuple) else (item,):
            _inspect(child, is_open, problems)
    is_open[id(node)] = False


def _refuse_repeated_keys(keys: list[yaml.Node], problems: list[Problem]) -> None:
    first: dict[tuple[str, str], yaml.Node] = {}
    for key in keys:
        if not isinstance(key, yaml.ScalarNode):
            continue
        earlier = first.setdefault((key.tag, key.value), key)
        if earlier is not key:
            message = f"the key `{key.value}` stands here again, first at "
            problems.append(
                Problem(
                    _mark(key.start_mark),
                    message + _mark(earlier.start_mark),
                    "YAML would silently take the last one; keep one of them",
                )
            )


def _mark(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        message = " ".join(part for part in (error.context, error.problem) if part)
        remedy = "indent with spaces" if "'\\t'" in message else ""
        return Problem(_mark(mark) if mark else "", f"no valid YAML: {message}", remedy)
    if isinstance(error, yaml.reader.ReaderError):
        message = (
            f"character {error.position + 1} of the text is {error.character!r} (a code point)"
        )
        return Problem("", f"no valid YAML: {message}, {error.reason}")
    return Problem("", f"no valid YAML: {error}")

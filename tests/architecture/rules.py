"""The house rules as functions: a source file in, its breaches out, one line for each."""

import ast
from collections.abc import Iterator

from tests.architecture.source import Import, Source, imports

LAYERS = (
    ("errors",),
    ("core",),
    ("harness", "engines", "store", "train"),
    ("runtime",),
    ("report",),
    ("api",),
    ("cli",),
    ("__main__",),
)
"""Each may import what stands before it, and itself. Names on one line do not know each other."""

_LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

_NUMERIC_CORE = (
    *("core/aggregations", "core/gain_values", "core/gains", "core/group_gains"),
    *("core/resampling", "core/stats", "core/clusters", "core/equivalence", "core/families"),
    *("core/levels", "core/looks", "core/multiple", "core/noise", "core/ranking"),
)

HOMES = {
    "ray": ("runtime/pool", "runtime/submit"),
    "torch": ("engines/", "train/"),
    "transformers": ("engines/", "train/"),
    "peft": ("engines/", "train/"),
    "lm_eval": ("harness/", "engines/"),
    "vllm": ("engines/vllm",),
    "pyarrow": ("store/", "report/", "api"),
    "typer": ("cli",),
    "rich": ("cli", "report/"),
    "numpy": (*_NUMERIC_CORE, "engines/", "harness/", "store/", "train/"),
    "scipy": _NUMERIC_CORE,
    "datasets": ("harness/", "train/"),
    "jinja2": ("report/html",),
    "matplotlib": ("report/",),
    "wandb": ("api/trackers",),
    "mlflow": ("api/trackers",),
}
"""Where a heavy package may be imported: paths below `raypeft/` that begin so."""

FORBIDDEN_IN_CORE = frozenset(
    (
        *("asyncio", "glob", "io", "multiprocessing", "os", "pathlib", "secrets", "shutil"),
        *("socket", "subprocess", "tempfile", "threading", "time", "uuid"),
    )
)
"""Clock, disk, network, processes: what core is told as arguments, or leaves to others."""

MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 500


def layer_breaches(source: Source) -> Iterator[str]:
    """Imports that go against the direction of the layers."""
    own = _layer(source.module)
    for found in imports(source):
        if found.target.split(".")[0] != "raypeft":
            continue
        other = _layer(found.target)
        if not _may_import(own, other, found):
            yield source.at(found.line, f"{own or 'raypeft'} must not import {found.target}")


def _layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _may_import(own: str, other: str, found: Import) -> bool:
    if other in {"", "__version__"}:
        return True  # the package itself: its version
    if other not in _LEVEL:
        return False
    if own == "":
        # The package's own functions may reach for the api once they are called: importing
        # `raypeft.errors` runs this file first, so at the top it would import everything.
        return other == "api" and found.is_nested
    return own == other or _LEVEL[other] < _LEVEL[own]


def home_breaches(source: Source) -> Iterator[str]:
    """Heavy packages imported away from their home."""
    inside = source.path.removeprefix("raypeft/")
    for found in imports(source):
        package = found.target.split(".")[0]
        homes = HOMES.get(package)
        if homes is not None and not inside.startswith(homes):
            allowed = ", ".join(f"raypeft/{home}" for home in homes)
            yield source.at(found.line, f"{package} is imported; its home is {allowed}")


def form_breaches(source: Source) -> Iterator[str]:
    """Imports in a form that hides what depends on what."""
    for found in imports(source):
        if found.is_relative:
            yield source.at(found.line, "a relative import; write the whole name")
        elif not found.target:
            yield source.at(found.line, "an import of a computed name, which no test can read")
    for node in ast.walk(source.tree):
        match node:
            case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
                yield source.at(node.lineno, "TYPE_CHECKING hides a dependency; import it or not")


def core_breaches(source: Source) -> Iterator[str]:
    """Clock, disk and unseeded chance in core."""
    if not source.path.startswith("raypeft/core/"):
        return
    for found in imports(source):
        if found.target.split(".")[0] in FORBIDDEN_IN_CORE:
            yield source.at(found.line, f"core must not import {found.target}")
    for node in ast.walk(source.tree):
        match node:
            case ast.ImportFrom(module="random", names=names):
                if any(name.name != "Random" for name in names):
                    yield source.at(node.lineno, "core may use random.Random with a seed only")
            case ast.Attribute(value=ast.Name(id="random"), attr=attr) if attr != "Random":
                yield source.at(node.lineno, f"random.{attr} has no seed that was passed in")
            case ast.Call(func=func, args=args, keywords=keywords):
                message = _call_breach(func, has_arguments=bool(args or keywords))
                if message:
                    yield source.at(node.lineno, message)


def _call_breach(func: ast.expr, *, has_arguments: bool) -> str:
    match func:
        case ast.Name(id="open"):
            return "core must not open files"
        case ast.Attribute(attr="now" | "utcnow" | "today" as attr):
            return f"core must not read the clock: {attr}()"
        case ast.Name(id=name) | ast.Attribute(attr=name):
            if name in {"default_rng", "Random", "RandomState"} and not has_arguments:
                return f"{name}() without a seed"
    return ""


def size_breaches(source: Source) -> Iterator[str]:
    """Functions and modules that are too long to hold in mind."""
    lines = source.text.count("\n")
    if lines > MAX_MODULE_LINES:
        yield source.at(1, f"the module has {lines} lines, at most {MAX_MODULE_LINES}: split it")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield source.at(
                    node.lineno, f"{node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
                )


def docstring_breaches(source: Source) -> Iterator[str]:
    """Modules that do not say what they are for."""
    if not ast.get_docstring(source.tree):
        yield source.at(1, "the module has no docstring; say what it decides and what it leaves")

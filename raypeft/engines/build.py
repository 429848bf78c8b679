"""Builds the engine that a slot was asked for.

Decides: which class an engine kind stands for. Imports it only then, so that a slot with the
fake engine needs no torch.
"""

import importlib.util
from typing import cast

from raypeft.core.records import EngineSpec, FailureKind
from raypeft.engines.base import Engine
from raypeft.errors import CellError


def import_engine(kind: str) -> None:
    """Import what an engine of this kind needs, which takes seconds; unknown kinds need nothing."""
    if kind == "hf":
        import raypeft.engines.hf
    elif kind == "vllm":
        import raypeft.engines.vllm  # noqa: F401


def build_engine(spec: EngineSpec) -> Engine:
    """Load the base of a spec and return its engine.

    Raises:
        CellError: `unsupported` for an unknown kind; what the engine raises if it cannot load.
    """
    match spec.kind:
        case "fake":
            from raypeft.engines.fake import FakeEngine

            return FakeEngine(spec)
        case "hf":
            from raypeft.engines.hf import HFEngine

            return cast(Engine, HFEngine(spec))  # lm-eval, its base class, is untyped
        case "vllm":
            return _vllm_engine(spec)
        case _:
            raise CellError(
                FailureKind.UNSUPPORTED,
                f"base {spec.base!r}: there is no engine {spec.kind!r} in this version; "
                "choose hf, vllm or fake",
            )


def _vllm_engine(spec: EngineSpec) -> Engine:
    if importlib.util.find_spec("vllm") is None:
        raise CellError(
            FailureKind.UNSUPPORTED,
            f"base {spec.base!r}: the engine is vllm, which is not installed here; install "
            "raypeft[vllm], or choose hf",
        )
    from raypeft.engines.vllm import VLLMEngine

    return cast(Engine, VLLMEngine(spec))  # lm-eval, its base class, is untyped

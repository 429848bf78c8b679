"""What a sweep's work will cost: the cost model, told what this store has measured.

Decides which device a sweep is expected to run on and where measurements are kept (one memo of the
store for everything, the last few of each base and device). The model itself is
`raypeft.core.cost`'s, memory `raypeft.core.memory`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from raypeft.api.sweeps import Resolved
from raypeft.core.accelerators import REFERENCE, UNKNOWN_GPU, Machine, known_gpu, processor
from raypeft.core.cost import (
    UNMEASURED_FACTOR,
    BaseSize,
    Expectation,
    Measured,
    Work,
    expectation,
    expected_load_seconds,
    expected_seconds,
    measured_load,
)
from raypeft.core.engine_choice import HF_SUFFIX
from raypeft.core.memory import MemoryVerdict, check_memory, memory_need
from raypeft.core.plan import EngineCost
from raypeft.core.records import EngineKind, EngineSpec, Hardware, Json
from raypeft.engines.bases import BaseFacts
from raypeft.errors import Problem, SetupError, SpecError
from raypeft.store.store import Store

_KIND, _KEY = "costs", "all"

MAX_KEPT = 30
"""Measurements kept of one base on one device: the last ones, since software gets faster."""

_WEIGHT_BYTES = {"bnb-8bit": 1.06, "bnb-4bit": 0.56}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that answered before.

    Attributes:
        memory_gib: Its memory; 0 where it is not known.
        is_gpu: Whether it is one.
    """

    memory_gib: float
    is_gpu: bool


@dataclass(slots=True, kw_only=True)
class Measurements:
    """What was measured, oldest first.

    Attributes:
        units: Of units.
        loads: Of loading bases.
        devices: Every device by its name.
    """

    units: list[Measured] = field(default_factory=list)
    loads: list[Measured] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutlook:
    """What is expected of one engine.

    Attributes:
        expected: Its pace.
        load_seconds: To load its base.
        memory: Whether it fits.
    """

    expected: Expectation
    load_seconds: float
    memory: MemoryVerdict


class Costs:
    """The cost model of one sweep.

    Args:
        resolved: The sweep and what it names.
        measured: What was measured before.
        device: `cpu` or `cuda`, what slots have, where the sweep does not say it.
    """

    def __init__(
        self, resolved: Resolved, measured: Measurements | None = None, device: str = "cpu"
    ) -> None:
        self._resolved = resolved
        self._measured = measured or Measurements()
        gpus = resolved.sweep.hardware.gpus
        self._is_gpu = device == "cuda" if gpus is None else gpus > 0
        self._expected: dict[str, Expectation | None] = {}

    def seconds(self, engine: str, work: Work) -> float:
        """Return what one subject's answers are expected to take."""
        found = self._expectation(engine)
        if found is None:
            return self._model(engine, work, self._machine(self._spec(engine).kind))
        return found.factor * self.reference_seconds(engine, work)

    def reference_seconds(self, engine: str, work: Work) -> float:
        """Return what they would be expected to take on the reference device."""
        return self._model(engine, work, REFERENCE)

    def engine_cost(self, engine: str) -> EngineCost:
        """Return what the schedule is told of an engine."""
        outlook = self.outlook(engine)
        return EngineCost(load_seconds=outlook.load_seconds, upper=outlook.expected.high)

    def outlook(self, engine: str) -> EngineOutlook:
        """Return what is expected of an engine."""
        spec, facts = self._spec(engine), self._facts(engine)
        size = _size(spec, facts)
        load = measured_load(self._measured.loads, spec.base_digest, self._device(spec.kind))
        expected = self._expectation(engine) or Expectation(
            factor=1.0,
            low=1 / UNMEASURED_FACTOR,
            high=UNMEASURED_FACTOR,
            basis=f"nothing measured; assumed of {self._machine(spec.kind).name}",
        )
        return EngineOutlook(
            expected=expected,
            load_seconds=expected_load_seconds(size, spec.kind) if load is None else load,
            memory=self._memory(engine, spec, facts, size),
        )

    def _expectation(self, engine: str) -> Expectation | None:
        if engine not in self._expected:
            spec = self._spec(engine)
            self._expected[engine] = expectation(
                self._measured.units,
                kind=spec.kind,
                base_digest=spec.base_digest,
                device=self._device(spec.kind),
            )
        return self._expected[engine]

    def _model(self, engine: str, work: Work, machine: Machine) -> float:
        spec = self._spec(engine)
        size = _size(spec, self._facts(engine))
        seconds = expected_seconds(work, size, machine, spec.kind, sharing=spec.sharing)
        return seconds / spec.tensor_parallel

    def _memory(
        self, engine: str, spec: EngineSpec, facts: BaseFacts, size: BaseSize
    ) -> MemoryVerdict:
        hardware = self._resolved.sweep.hardware
        owner = self._owner(engine)
        need = memory_need(
            size,
            kind=spec.kind,
            max_length=facts.max_length,
            batch_tokens=spec.batch_tokens,
            lora=spec.lora,
            has_adapters=any(
                one.base == owner and one.adapter is not None
                for one in self._resolved.subjects.values()
            ),
        )
        memory, source = self._device_memory(spec.kind)
        gpus = float(hardware.gpus or 1)
        share = spec.options.get("gpu_memory_utilization")
        return check_memory(
            need,
            kind=spec.kind,
            device_bytes=memory,
            num_devices=spec.tensor_parallel if spec.kind == "vllm" else min(gpus, 1.0),
            vllm_share=share if isinstance(share, float) else None,
            source=source,
        )

    def _device_memory(self, kind: EngineKind) -> tuple[int | None, str]:
        hardware = self._resolved.sweep.hardware
        if hardware.device_memory_bytes is not None:
            return hardware.device_memory_bytes, "hardware.device_memory"
        device = self._device(kind)
        if device and self._measured.devices[device].memory_gib:
            return int(self._measured.devices[device].memory_gib * 2**30), f"measured on {device}"
        machine = known_gpu(hardware.accelerator or "") if self._is_gpu else None
        if machine is None or machine.memory_gib is None:
            return None, ""
        return int(machine.memory_gib * 2**30), f"the largest {machine.name}"

    def _device(self, kind: EngineKind) -> str:
        """Return the device that answered last of those the sweep asks for; empty if none did."""
        wanted = (self._resolved.sweep.hardware.accelerator or "").upper()
        for one in reversed(self._measured.units):
            device = self._measured.devices.get(one.device)
            fits = device is not None and device.is_gpu == self._is_gpu
            if fits and one.kind == kind and wanted in one.device.upper():
                return one.device
        return ""

    def _machine(self, kind: EngineKind) -> Machine:
        hardware = self._resolved.sweep.hardware
        if not self._is_gpu:
            return processor(hardware.cpus)
        return known_gpu(hardware.accelerator or self._device(kind)) or UNKNOWN_GPU

    def _owner(self, engine: str) -> str:
        return engine if engine in self._resolved.bases else engine.removesuffix(HF_SUFFIX)

    def _facts(self, engine: str) -> BaseFacts:
        return self._resolved.bases[self._owner(engine)]

    def _spec(self, engine: str) -> EngineSpec:
        return self._resolved.engine(engine, "cuda" if self._is_gpu else "cpu")


def refuse_what_cannot_fit(resolved: Resolved, outlooks: Mapping[str, EngineOutlook]) -> None:
    """Check that the weights of every base are not more than the devices of a slot hold.

    Args:
        resolved: The sweep and what it names.
        outlooks: By engine, those with something left to answer.

    Raises:
        SpecError: Naming every base whose are, with the numbers.
    """
    names = [base.name for base in resolved.sweep.bases]
    problems = [
        Problem(
            f"bases[{names.index(name.removesuffix(HF_SUFFIX) if name not in names else name)}]",
            f"{name} {outlook.memory.sentence()}",
            "quantise it, hold it on more devices (`hardware.tensor_parallel` with vllm), take "
            "another accelerator, or correct `hardware.device_memory`",
        )
        for name, outlook in outlooks.items()
        if outlook.memory.refused
    ]
    if problems:
        raise SpecError(tuple(problems))


def _size(spec: EngineSpec, facts: BaseFacts) -> BaseSize:
    in_dtype = facts.num_parameters * _DTYPE_BYTES.get(spec.dtype, 2)
    weights = min(facts.num_bytes, in_dtype)
    if spec.quantization is not None:
        weights = int(facts.num_parameters * _WEIGHT_BYTES[spec.quantization])
    return BaseSize(
        num_parameters=facts.num_parameters,
        weight_bytes=weights,
        is_float32=spec.dtype == "float32",
    )


# --- what was measured ------------------------------------------------------------------------


def remembered_costs(store: Store) -> Measurements:
    """Return what earlier runs have measured."""
    value = store.get_memo(_KIND, _KEY)
    if not isinstance(value, dict):
        return Measurements()
    return Measurements(
        units=[_measured(row) for row in value["units"]],
        loads=[_measured(row) for row in value["loads"]],
        devices={
            name: Device(memory_gib=memory, is_gpu=is_gpu)
            for name, memory, is_gpu in value["devices"]
        },
    )


def _measured(row: list[Json]) -> Measured:
    kind, base_digest, device, reference, seconds = row
    return Measured(
        kind=kind,
        base_digest=base_digest,
        device=device,
        reference_seconds=reference,
        seconds=seconds,
    )


class CostKeeper:
    """Keeps what a run measures; written now and then, since a run may end at any moment.

    Args:
        store: Where it is kept.
        engines: The plan's engines by name.
        references: What each cell would take on the reference device, all shards together.
    """

    def __init__(
        self,
        store: Store,
        engines: Mapping[str, EngineSpec],
        references: Mapping[str, float],
    ) -> None:
        self._store = store
        self._engines = engines
        self._references = references
        self._new = Measurements()
        self._next_write = 4
        self._loading: dict[str, tuple[str, float]] = {}

    def unit(
        self, engine: str, cells: tuple[str, ...], shards: int, hardware: Hardware, seconds: float
    ) -> None:
        """Take note of an answered unit."""
        expected = sum(self._references.get(cell, 0.0) for cell in cells) / shards
        self._new.units.append(self._of(engine, hardware.device, expected, seconds))
        self._new.devices[hardware.device] = Device(
            memory_gib=hardware.memory_gib, is_gpu=hardware.num_devices > 0
        )
        if len(self._new.units) >= self._next_write:
            self._next_write *= 2
            self.write()

    def journal_line(self, kind: str, line: Mapping[str, Json]) -> None:
        """Take note of how long slots load, from the journal's lines."""
        slot = str(line.get("slot", ""))
        if kind == "start_slot":
            self._loading[slot] = (str(line["base"]), 0.0)
        elif kind == "slot_placed" and slot in self._loading:
            self._loading[slot] = (self._loading[slot][0], float(line["at_seconds"]))
        elif kind == "slot_ready" and slot in self._loading:
            base, since = self._loading.pop(slot)
            if since:
                took = float(line["at_seconds"]) - since
                self._new.loads.append(self._of(base, str(line["device"]), 0.0, took))

    def write(self) -> None:
        """Write what is new beside what is known; a store that cannot be written loses it."""
        found = remembered_costs(self._store)
        units, loads = found.units + self._new.units, found.loads + self._new.loads
        devices = found.devices | self._new.devices
        value: Json = {
            "units": [_row(one) for one in _last(units)],
            "loads": [_row(one) for one in _last(loads)],
            "devices": [[name, one.memory_gib, one.is_gpu] for name, one in devices.items()],
        }
        try:
            self._store.put_memo(_KIND, _KEY, value)
        except SetupError:
            return  # it is measured again, and nothing depends on it
        self._new = Measurements()

    def _of(self, engine: str, device: str, expected: float, seconds: float) -> Measured:
        spec = self._engines[engine]
        return Measured(
            kind=spec.kind,
            base_digest=spec.base_digest,
            device=device,
            reference_seconds=expected,
            seconds=seconds,
        )


def _row(one: Measured) -> list[Json]:
    return [one.kind, one.base_digest, one.device, one.reference_seconds, one.seconds]


def _last(records: list[Measured]) -> list[Measured]:
    """Return the last few of each base and device, in their order."""
    counts: dict[tuple[EngineKind, str, str], int] = {}
    kept: list[Measured] = []
    for one in reversed(records):
        key = (one.kind, one.base_digest, one.device)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= MAX_KEPT:
            kept.append(one)
    return kept[::-1]

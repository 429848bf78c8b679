"""What is known of accelerators by their names: speed and memory, from their data sheets.

Decides what is assumed of a device before anything was measured on it. Estimates order and cut
work and say when a night will end; no score depends on them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One device, as far as the cost of work depends on it.

    Attributes:
        name: What it is.
        tflops: 10^12 operations a second in 16 bits, dense.
        tflops_float32: The same in 32 bits.
        gb_per_second: Bandwidth of its memory.
        memory_gib: Its memory in the largest variant of that name; None where it is not known.
        is_known: Whether this is about the very device, and not an assumption.
    """

    name: str
    tflops: float
    tflops_float32: float
    gb_per_second: float
    memory_gib: float | None = None
    is_known: bool = True


_GPUS = (
    # Longer names first: "L40S" holds "L4", and "GH200" holds "H200".
    Machine(name="GB200", tflops=2250, tflops_float32=80, gb_per_second=8000, memory_gib=192),
    Machine(name="GH200", tflops=990, tflops_float32=67, gb_per_second=4900, memory_gib=144),
    Machine(name="B200", tflops=2250, tflops_float32=80, gb_per_second=8000, memory_gib=192),
    Machine(name="H200", tflops=990, tflops_float32=67, gb_per_second=4800, memory_gib=141),
    Machine(name="H100", tflops=990, tflops_float32=67, gb_per_second=3350, memory_gib=94),
    Machine(name="A100", tflops=312, tflops_float32=19.5, gb_per_second=2039, memory_gib=80),
    Machine(name="MI300X", tflops=1307, tflops_float32=163, gb_per_second=5300, memory_gib=192),
    Machine(name="L40S", tflops=362, tflops_float32=91, gb_per_second=864, memory_gib=48),
    Machine(name="L40", tflops=181, tflops_float32=90, gb_per_second=864, memory_gib=48),
    Machine(name="A10G", tflops=70, tflops_float32=31, gb_per_second=600, memory_gib=24),
    Machine(name="A10", tflops=125, tflops_float32=31, gb_per_second=600, memory_gib=24),
    Machine(name="A40", tflops=150, tflops_float32=37, gb_per_second=696, memory_gib=48),
    Machine(name="A6000", tflops=155, tflops_float32=38, gb_per_second=768, memory_gib=48),
    Machine(name="4090", tflops=165, tflops_float32=82, gb_per_second=1008, memory_gib=24),
    Machine(name="3090", tflops=71, tflops_float32=35, gb_per_second=936, memory_gib=24),
    Machine(name="V100", tflops=112, tflops_float32=14, gb_per_second=900, memory_gib=32),
    Machine(name="L4", tflops=121, tflops_float32=30, gb_per_second=300, memory_gib=24),
    Machine(name="T4", tflops=65, tflops_float32=8, gb_per_second=300, memory_gib=16),
)

REFERENCE = Machine(name="A100", tflops=312, tflops_float32=19.5, gb_per_second=2039, memory_gib=80)
"""What measured times are compared with, so that they can be carried from one base to another."""

UNKNOWN_GPU = Machine(
    name="an unknown GPU", tflops=65, tflops_float32=8, gb_per_second=300, is_known=False
)
"""A slow one on purpose: a night that ends sooner than expected disappoints nobody."""

CORE_TFLOPS = 0.03
CORE_GB_PER_SECOND = 4.0


def known_gpu(name: str) -> Machine | None:
    """Return what is known of a GPU from its name, for instance `NVIDIA H100 80GB HBM3`."""
    upper = name.upper()
    return next((machine for machine in _GPUS if machine.name in upper), None)


def processor(cores: float) -> Machine:
    """Return what is assumed of so many cores of a CPU."""
    return Machine(
        name=f"{cores:g} CPU cores",
        tflops=CORE_TFLOPS * cores,
        tflops_float32=CORE_TFLOPS * cores,
        gb_per_second=CORE_GB_PER_SECOND * cores,
        is_known=False,
    )

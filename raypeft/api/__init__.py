"""The public functions: what the command line can do, Python can do.

    from raypeft import api

    sweep = api.load_sweep("sweep.yaml")
    report = api.run(sweep)
    table = api.open(sweep.output).gains

Importing this imports neither Ray, torch nor lm-eval: reading a report needs none of them, and
each is reached for where it is first needed.
"""

from raypeft.api.demo import DemoReport
from raypeft.api.demo import run_demo as demo
from raypeft.api.doctor import Check, CheckStatus, doctor
from raypeft.api.exporting import Export
from raypeft.api.exporting import export_output as export
from raypeft.api.freezing import FrozenSweep
from raypeft.api.lm_eval_command import lm_eval_command as lm_eval
from raypeft.api.planning import Planned
from raypeft.api.reading import compare_subjects as compare
from raypeft.api.reading import read_report as report
from raypeft.api.reading import read_status as status
from raypeft.api.running import (
    Listener,
    RunReport,
)
from raypeft.api.running import freeze_only as freeze
from raypeft.api.running import plan_only as plan
from raypeft.api.running import run_sweep as run
from raypeft.api.sweeps import load_sweep
from raypeft.core.spec import Sweep
from raypeft.core.spec import sweep_schema as schema
from raypeft.store.output import Results
from raypeft.store.output import open_output as open  # noqa: A004 - read as `raypeft.open`

__all__ = [
    "Check",
    "CheckStatus",
    "DemoReport",
    "Export",
    "FrozenSweep",
    "Listener",
    "Planned",
    "Results",
    "RunReport",
    "Sweep",
    "compare",
    "demo",
    "doctor",
    "export",
    "freeze",
    "lm_eval",
    "load_sweep",
    "open",
    "plan",
    "report",
    "run",
    "schema",
    "status",
]

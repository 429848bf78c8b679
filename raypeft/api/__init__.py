"""The public functions: what the command line can do, Python can do.

    from raypeft import api

    sweep = api.load_sweep("sweep.yaml")
    report = api.run(sweep)
    table = api.open(sweep.output).gains

Importing this imports neither Ray, torch nor lm-eval: reading a report needs none of them, and
each is reached for where it is first needed.
"""

from raypeft.api.comparing import compare_subjects as compare
from raypeft.api.comparing import compare_sweeps
from raypeft.api.demo import DemoReport
from raypeft.api.demo import run_demo as demo
from raypeft.api.doctor import Check, CheckStatus, doctor
from raypeft.api.exporting import Export
from raypeft.api.exporting import export_output as export
from raypeft.api.freezing import FrozenSweep
from raypeft.api.gating import GateReport
from raypeft.api.gating import gate_output as gate
from raypeft.api.html_report import html_report
from raypeft.api.lm_eval_command import lm_eval_command as lm_eval
from raypeft.api.notifying import run_and_tell as run
from raypeft.api.planning import Planned
from raypeft.api.reading import explain_status as why
from raypeft.api.reading import read_report as report
from raypeft.api.reading import read_status as status
from raypeft.api.running import (
    Listener,
    RunReport,
)
from raypeft.api.running import freeze_only as freeze
from raypeft.api.running import plan_only as plan
from raypeft.api.simulating import expect, parse_chances
from raypeft.api.simulating import simulate_sweep as simulate
from raypeft.api.submitting import Submitted
from raypeft.api.submitting import follow_job as follow
from raypeft.api.submitting import submit_sweep as submit
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
    "GateReport",
    "Listener",
    "Planned",
    "Results",
    "RunReport",
    "Submitted",
    "Sweep",
    "compare",
    "compare_sweeps",
    "demo",
    "doctor",
    "expect",
    "export",
    "follow",
    "freeze",
    "gate",
    "html_report",
    "lm_eval",
    "load_sweep",
    "open",
    "parse_chances",
    "plan",
    "report",
    "run",
    "schema",
    "simulate",
    "status",
    "submit",
    "why",
]

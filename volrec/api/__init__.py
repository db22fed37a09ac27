"""The public functions, each a few calls into the rooms: studies, runs, audits, training, weights, fusion, videos."""

from __future__ import annotations

from volrec.api.auditing import audit
from volrec.api.benchmarks import (
    Benchmark,
    benchmark,
    benchmark_results,
    extract_videos,
    list_protocols,
    load_protocol,
    make_motion,
    published_tables,
    resume_benchmark,
)
from volrec.api.comparing import compare, compare_runs
from volrec.api.evaluating import Evaluation, evaluate, evaluate_run
from volrec.api.explaining import explain_run, hit_rates
from volrec.api.fusion import FusedRun, fuse
from volrec.api.reporting import make_report
from volrec.api.settings import ConfigLike, recipe_folders
from volrec.api.studies import Run, index, load, make_phantoms, read_volume
from volrec.api.training import Plan, check_network, plan, resume, train
from volrec.api.volumes import trajectories_beside
from volrec.api.weights import (
    ImagePlan,
    WeightsRun,
    import_weights,
    plan_pretrain,
    plan_transfer,
    pretrain,
    teach,
)

__all__ = [
    "Benchmark",
    "ConfigLike",
    "Evaluation",
    "FusedRun",
    "ImagePlan",
    "Plan",
    "Run",
    "WeightsRun",
    "audit",
    "benchmark",
    "benchmark_results",
    "check_network",
    "compare",
    "compare_runs",
    "evaluate",
    "evaluate_run",
    "explain_run",
    "extract_videos",
    "fuse",
    "hit_rates",
    "import_weights",
    "index",
    "list_protocols",
    "load",
    "load_protocol",
    "make_motion",
    "make_phantoms",
    "make_report",
    "plan",
    "plan_pretrain",
    "plan_transfer",
    "pretrain",
    "published_tables",
    "read_volume",
    "recipe_folders",
    "resume",
    "resume_benchmark",
    "teach",
    "train",
    "trajectories_beside",
]

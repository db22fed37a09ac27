"""What each command does with the API and what it tells on the terminal; `cli` only parses arguments."""

from volrec.commands.auditing import audit
from volrec.commands.benchmarks import (
    benchmark,
    benchmark_protocols,
    benchmark_table,
    extract_videos,
    make_motion,
    resume_benchmark,
    show_benchmark,
)
from volrec.commands.evaluating import compare, evaluate
from volrec.commands.explaining import explain
from volrec.commands.predicting import predict
from volrec.commands.reporting import make_report
from volrec.commands.studies import (
    demo,
    fuse,
    import_weights,
    inspect,
    learn_weights,
    models,
    plan,
    schema,
    train,
)
from volrec.commands.volumes import trajectories_beside

__all__ = [
    "audit",
    "benchmark",
    "benchmark_protocols",
    "benchmark_table",
    "compare",
    "demo",
    "evaluate",
    "explain",
    "extract_videos",
    "fuse",
    "import_weights",
    "inspect",
    "learn_weights",
    "make_motion",
    "make_report",
    "models",
    "plan",
    "predict",
    "resume_benchmark",
    "schema",
    "show_benchmark",
    "train",
    "trajectories_beside",
]

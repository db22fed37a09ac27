"""Metrics with intervals: functions of scores and labels, nothing else.

`evaluate_scores` turns a score table into numbers with intervals over patients; `study_metric` is the one number that
training watches; `auc_interval` and `auc_difference` are DeLong's; the ``*_points`` functions feed the plots;
`fit_rule` makes a rule of fusion; `subgroup_table` looks at groups of studies, `compare_tables` at two runs on the same
ones.
"""

from __future__ import annotations

from volrec.evaluation.comparison import compare_tables
from volrec.evaluation.curves import calibration_points, confusion, operating_point, pr_points, roc_points
from volrec.evaluation.delong import auc_difference, auc_interval
from volrec.evaluation.fitting import fit_rule
from volrec.evaluation.metrics import default_metric, higher_is_better, metric_names, study_metric
from volrec.evaluation.subgroups import headline_metrics, subgroup_table
from volrec.evaluation.tables import evaluate_scores, read_columns, score_columns

__all__ = [
    "auc_difference",
    "auc_interval",
    "calibration_points",
    "compare_tables",
    "confusion",
    "default_metric",
    "evaluate_scores",
    "fit_rule",
    "headline_metrics",
    "higher_is_better",
    "metric_names",
    "operating_point",
    "pr_points",
    "read_columns",
    "roc_points",
    "score_columns",
    "study_metric",
    "subgroup_table",
]

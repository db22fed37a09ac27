"""The public functions, each a few calls into the rooms: studies and runs, training, weights, fusion."""

from __future__ import annotations

from volrec.api.fusion import FusedRun, fuse
from volrec.api.settings import ConfigLike, recipe_folders
from volrec.api.studies import Run, evaluate_run, index, load, make_phantoms, read_volume
from volrec.api.training import Plan, check_network, plan, resume, train
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
    "ConfigLike",
    "FusedRun",
    "ImagePlan",
    "Plan",
    "Run",
    "WeightsRun",
    "check_network",
    "evaluate_run",
    "fuse",
    "import_weights",
    "index",
    "load",
    "make_phantoms",
    "plan",
    "plan_pretrain",
    "plan_transfer",
    "pretrain",
    "read_volume",
    "recipe_folders",
    "resume",
    "teach",
    "train",
]

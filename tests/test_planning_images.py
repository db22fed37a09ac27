"""Plans of pretraining and transfer: what follows from the data, from the teacher and from the user."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from volrec.config import PretrainConfig, TransferConfig, parse_config
from volrec.config.transfer import MethodConfig
from volrec.data.images import ImageSet
from volrec.data.labels import Case, Cohort
from volrec.errors import ConfigError
from volrec.planning import Fingerprint, Spread
from volrec.planning import images as module
from volrec.planning.images import plan_pretrain, plan_transfer


def facts(**changes: Any) -> Fingerprint:
    def spread(value: float) -> Spread:
        return Spread.of((value,))

    size = changes.pop("size", (24, 64, 64))
    spacing = changes.pop("spacing", (5.0, 1.0, 1.0))
    values = {
        "studies": 120,
        "patients": 120,
        "task": "none",
        "smallest_share": None,
        "modality": "CT",
        "orientations": {"axial": 120},
        "size": tuple(spread(each) for each in size),
        "spacing": tuple(spread(each) for each in spacing),
        "extent": tuple(spread(a * b) for a, b in zip(size, spacing, strict=True)),
        "intensity": (0.0, 1.0, 2.0),
        "device": "cpu",
        "memory_gib": 24.0,
        "cpus": 2,
    }
    return Fingerprint(**{**values, **changes})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let the fingerprint be what a test says; the slice axis that was asked for is noted."""
    noted: dict[str, Any] = {"facts": facts()}

    def fingerprint(images: Any, **asked: Any) -> Fingerprint:
        noted.update(asked)
        return noted["facts"]

    monkeypatch.setattr(module, "fingerprint", fingerprint)
    return noted


def case(number: int) -> Case:
    series: Any = SimpleNamespace(orientation="axial", spacing=(5.0, 1.0, 1.0))
    return Case(f"s{number}", f"p{number}", series, np.empty(0, np.float32))


IMAGES = ImageSet(tuple(case(number) for number in range(12)))


def labelled() -> Cohort:
    return Cohort(
        cases=IMAGES.cases, task="binary", targets=("label",), classes=("0", "1"), notes=(), problems=()
    )  # fmt: skip


@pytest.mark.usefixtures("seen")
def test_a_pretraining_is_complete_and_every_choice_has_a_reason() -> None:
    plan = plan_pretrain(IMAGES, {})
    config = plan.config
    assert isinstance(config, PretrainConfig)
    assert config.method.name == MethodConfig().name
    assert config.preprocess.canvas is not None and None not in config.preprocess.canvas
    assert config.intensity.kind == "window"
    step = (config.preprocess.spacing or (None,))[0] or 5.0
    assert step <= config.views.neighbours < 1.01 * step  # one slice on either side, no rounding in the way
    assert config.backbone.stem_stride == 1  # slices of 64 pixels
    assert {"backbone.width", "method.name", "views.neighbours", "optim.batch_size", "trainer.epochs"} <= set(
        plan.reasons
    )
    assert all(plan.reasons.values())


@pytest.mark.usefixtures("seen")
def test_labels_make_it_supervised() -> None:
    plan = plan_pretrain(labelled(), {})
    assert plan.config.method.name == "supervised"
    assert plan.reasons["method.name"] == "there are labels"
    assert plan_pretrain(labelled(), {"method": {"name": "simclr"}}).config.method.name == "simclr"


def test_batches_hold_no_more_than_there_is_and_at_least_two(seen: dict[str, Any]) -> None:
    for studies, expected in ((7, 7), (1, 2)):
        seen["facts"] = facts(studies=studies)
        assert plan_pretrain(IMAGES, {}).config.optim.batch_size == expected
        assert plan_transfer(IMAGES, {}).config.optim.batch_size == expected


@pytest.mark.parametrize("studies", [12, 120, 5000])
def test_a_run_has_the_same_steps_however_many_studies_there_are(seen: dict[str, Any], studies: int) -> None:
    seen["facts"] = facts(studies=studies)
    for derive, steps in ((plan_pretrain, module.PRETRAIN_STEPS), (plan_transfer, module.TRANSFER_STEPS)):
        trainer = derive(IMAGES, {}).config.trainer
        assert trainer.epochs * trainer.batches_per_epoch == steps


@pytest.mark.usefixtures("seen")
def test_a_key_within_a_mapping_changes_one_entry_and_keeps_the_rest() -> None:
    planned = plan_transfer(IMAGES, {}).config
    fixed = {"matching.negatives.order": 0, "teacher.augment.rotate": 3.0}
    config = plan_transfer(IMAGES, {"matching": {"dropout": 0.1}}, overrides=fixed).config
    assert config.matching.negatives == {**planned.matching.negatives, "order": 0}
    assert config.teacher.augment == planned.teacher.augment.model_copy(update={"rotate": 3.0})
    whole = plan_transfer(IMAGES, {}, overrides={"matching.negatives": {"order": 1.0}}).config
    assert whole.matching.negatives == {"order": 1.0}


def test_large_slices_keep_the_papers_stem(seen: dict[str, Any]) -> None:
    seen["facts"] = facts(size=(30, 256, 256))
    plan = plan_pretrain(IMAGES, {"preprocess": {"canvas": [30, 256, 256]}})
    assert plan.config.backbone.stem_stride is None
    assert "backbone.stem_stride" not in plan.reasons


@pytest.mark.usefixtures("seen")
def test_a_transfer_leaves_room_for_an_elsewhere() -> None:
    plan = plan_transfer(IMAGES, {})
    config = plan.config
    assert isinstance(config, TransferConfig)
    assert config.preprocess.canvas is not None
    slices = config.preprocess.canvas[0]
    assert slices is not None and config.sampling.clip_length <= max(slices // 2, 4)
    assert config.sampling.train == "random"
    assert config.teacher.augment.to_dict() == config.augment.to_dict()
    assert config.trainer.epochs * config.trainer.batches_per_epoch >= 0.9 * module.TRANSFER_STEPS
    assert "teacher.augment" in plan.reasons


def test_studies_are_read_as_the_teacher_read_them(seen: dict[str, Any]) -> None:
    card = {
        "preprocess": parse_config({}).preprocess.to_dict()
        | {"slice_axis": "coronal", "spacing": [2.0, 2.0, 2.0], "canvas": [20, 40, 48]},
        "intensity": parse_config({"intensity": {"kind": "zscore"}}).intensity.to_dict(),
    }
    plan = plan_transfer(IMAGES, {}, teacher_card=card)
    assert plan.config.preprocess.to_dict() == card["preprocess"]
    assert plan.config.intensity.kind == "zscore"
    assert plan.config.sampling.clip_length == 10
    assert seen["slice_axis"] == "coronal"
    assert plan.reasons["preprocess.spacing"] == plan.reasons["intensity.kind"] == "as the teacher was trained"
    own = plan_transfer(IMAGES, {"intensity": {"kind": "percentile"}}, teacher_card=card)
    assert own.config.intensity.kind == "percentile"
    outside = plan_transfer(IMAGES, {}, teacher_card={"input": {}})
    assert outside.config.preprocess.slice_axis == "acquired"


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("derive", [plan_pretrain, plan_transfer])
def test_what_the_user_wrote_is_obeyed_and_what_is_set_comes_last(derive: Any) -> None:
    given = {"optim": {"lr": 0.5, "batch_size": 6}, "preprocess": {"canvas": [16, 32, 32]}}
    fixed = {"trainer.seed": 9, "optim.lr": 0.25, "holdout.share": 0.3, "name": "x", "data.studies": "list.txt"}
    plan = derive(IMAGES, given, overrides=fixed)
    config = plan.config
    assert (config.optim.lr, config.optim.batch_size, config.preprocess.canvas) == (0.25, 6, (16, 32, 32))
    assert (config.trainer.seed, config.holdout.share, config.name, config.data.studies) == (9, 0.3, "x", "list.txt")
    assert config.trainer.epochs >= 5
    assert all(plan.reasons[key] == "set by you" for key in fixed)
    assert given == {"optim": {"lr": 0.5, "batch_size": 6}, "preprocess": {"canvas": [16, 32, 32]}}
    with pytest.raises(ConfigError, match="did you mean 'share'"):
        derive(IMAGES, {}, overrides={"holdout.shar": 0.3})


@pytest.mark.usefixtures("seen")
def test_networks_that_need_long_clips_get_them() -> None:
    from volrec import networks

    for name in networks.list_networks():
        config = plan_transfer(IMAGES, {}, overrides={"network.name": name}).config
        assert config.network.name == name
        assert config.sampling.clip_length >= networks.spec(name).smallest[0]


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize(("derive", "schema"), [(plan_pretrain, PretrainConfig), (plan_transfer, TransferConfig)])
def test_a_plan_is_a_plan_when_it_is_read_again(derive: Any, schema: Any) -> None:
    import yaml

    from volrec.config import dump_yaml

    plan = derive(IMAGES, {}, overrides={"data.folder": "/data"})
    text = dump_yaml(plan.config, plan.reasons)
    again = parse_config(yaml.safe_load(text), schema=schema)
    assert again == plan.config
    assert text.count("  # ") >= len([key for key in plan.reasons if "." in key]) * 0.6
    assert derive(IMAGES, yaml.safe_load(text)).config == plan.config

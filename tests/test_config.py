"""The schema: typos are named with their nearest key, values are checked, YAML comes back as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from volrec.config import (
    PretrainConfig,
    Section,
    TrainConfig,
    TransferConfig,
    apply_overrides,
    dump_yaml,
    json_schema,
    kind_of,
    load_config,
    parse_config,
)
from volrec.errors import ConfigError
from volrec.report.terminal import schema_rows


def test_a_typo_names_the_nearest_key() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'optim\.weigth_decay' \(did you mean 'weight_decay'\?\)"):
        parse_config({"optim": {"weigth_decay": 0.1}})
    with pytest.raises(ConfigError, match=r"unknown key 'samplng' \(did you mean 'sampling'\?\)"):
        parse_config({"samplng": {}})


def test_every_fault_is_reported_at_once_with_the_value_seen() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"optim": {"lr": -1}, "trainer": {"epochs": 0}, "intensity": {"kind": "windw"}}, where="plan.yaml")
    message = str(caught.value)
    assert "plan.yaml" in message
    assert "'optim.lr'" in message and "-1" in message
    assert "'trainer.epochs'" in message
    assert "'window', 'percentile', 'zscore' or 'none'" in message


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"percentiles\[0\] \(99\.0\) must be below percentiles\[1\] \(1\.0\)"):
        parse_config({"intensity": {"percentiles": [99, 1]}})
    with pytest.raises(ConfigError, match=r"data\.slice_labels counts slices as acquired"):
        parse_config({"data": {"slice_labels": "s.csv"}, "preprocess": {"slice_axis": "coronal"}})
    with pytest.raises(ConfigError, match="needs at least one entry in windows"):
        parse_config({"intensity": {"kind": "window"}})
    with pytest.raises(ConfigError, match=r"protocol\.consensus 'sci' weighs probabilities, .* 'logits'"):
        parse_config({"protocol": {"consensus": "sci", "stage": "logits"}})


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 0), ("epochs", 2.5), ("epochs", "some"), ("epochs", "0%"), ("epochs", "-3%"), ("epochs", True)]
    + [("lr", 0), ("lr", "%"), ("lr", "10 percent"), ("lr", float("nan")), ("lr", [1])],
)
def test_stages_take_numbers_and_shares_and_nothing_else(key: str, value: object) -> None:
    share = {"epochs": "30% of trainer.epochs", "lr": "10% of optim.lr"}[key]
    with pytest.raises(ConfigError, match=rf"'stages\.0\.{key}': a .* above 0, or a share such as {share}") as caught:
        parse_config({"stages": [{"name": "a", key: value}]})
    assert repr(value) in str(caught.value)


def test_shares_of_a_stage_become_numbers() -> None:
    (stage,) = parse_config({"stages": [{"name": "a", "epochs": "12.5%", "lr": "150%"}]}).stages
    settled = stage.settled(lr=0.002, epochs=40)
    assert (settled.epochs, settled.lr) == (5, 0.003)
    assert stage.settled(lr=0.002, epochs=3).epochs == 1  # none is left out
    (whole,) = parse_config({"stages": [{"name": "a", "epochs": 7, "lr": "0.1"}]}).stages
    assert whole.settled(lr=0.002, epochs=40) == whole
    assert (whole.epochs, whole.lr) == (7, 0.1)
    (default,) = parse_config({"stages": [{"name": "a"}]}).stages
    assert default.settled(lr=0.002, epochs=40) == default


def test_yaml_comes_back_as_it_was_written_with_reasons_as_comments(tmp_path: Path) -> None:
    config = parse_config(
        {
            "data": {"folder": "a: b", "target": ["x", "y"], "series": {"path": "*/t2/*"}},
            "preprocess": {"spacing": [5, None, 0.5], "canvas": [32, 64, 64]},
            "intensity": {"kind": "window", "windows": ["brain", {"level": 40, "width": 80}]},
            "augment": {"flip": {"W": 0.5}},
            "network": {"name": "c3d", "options": {"dropout": 0.3, "norm": "batch"}},
        }
    )
    path = tmp_path / "plan.yaml"
    path.write_text(
        dump_yaml(config, {"preprocess.spacing": "median: of all", "network.name": "plain"}), encoding="utf-8"
    )
    assert load_config(path) == config
    assert "# median: of all" in path.read_text(encoding="utf-8")


@given(
    lr=st.floats(1e-6, 1.0),
    clip=st.integers(1, 500),
    target=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1), max_size=3),
)
def test_any_valid_config_survives_yaml(lr: float, clip: int, target: list[str]) -> None:
    config = parse_config({"optim": {"lr": lr}, "sampling": {"clip_length": clip}, "data": {"target": target}})
    assert parse_config(yaml.safe_load(dump_yaml(config))) == config


def test_overrides_replace_one_key_and_are_checked() -> None:
    config = apply_overrides(TrainConfig(), {"optim.lr": 0.5, "data.series.modality": "CT", "augment.flip": {"W": 0.5}})
    assert config.optim.lr == 0.5
    assert config.data.series.modality == "CT"
    assert config.augment.flip == {"W": 0.5}
    assert config.optim.batch_size == TrainConfig().optim.batch_size
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        apply_overrides(TrainConfig(), {"optim.lrr": 0.5})
    with pytest.raises(ConfigError, match="did you mean 'optim'"):
        apply_overrides(TrainConfig(), {"optm.lr": 0.5})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1, 2", "no valid YAML at line"),
        ("- a\n- b\n", "holds list"),
        ("optim: !!python/object/apply:os.system ['true']\n", "no valid YAML"),
        ("network: {name: c3d, options: {f: {_target_: os.system}}}\n", "network.options.f"),
    ],
)
def test_files_that_are_no_recipe_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_recipe_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")


def test_the_json_schema_and_the_table_of_keys_explain_every_key() -> None:
    json.dumps(json_schema())
    rows = schema_rows()
    assert len(rows) > 60
    assert [key for key, _, _, meaning in rows if not meaning] == []


def test_shipped_recipes_are_valid() -> None:
    recipes = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    assert recipes, "configs/ holds no recipe"
    for recipe in recipes:
        config = load_config(recipe)
        assert config.data.folder is None, f"{recipe.name} names a folder of one machine"


@pytest.mark.parametrize("schema", [PretrainConfig, TransferConfig])
def test_plans_of_weights_come_back_as_they_were_written(schema: type[Section], tmp_path: Path) -> None:
    values = {
        "data": {"folder": "/data", "studies": "list.txt"},
        "holdout": {"share": 0.25, "seed": 3},
        "optim": {"lr": 0.01},
        "augment": {"flip": {"W": 0.5}},
    }
    if schema is TransferConfig:
        values |= {
            "teacher": {"source": "runs/t", "intensity": {"kind": "window", "windows": ["brain"]}, "size": 64},
            "matching": {"negatives": {"order": 2, "patient": 1}, "projection": 0, "head": "concat"},
        }
    else:
        values |= {"method": {"name": "simclr", "projection": [64], "temperature": 0.1}, "backbone": {"width": 0.5}}
    config = parse_config(values, schema=schema)
    path = tmp_path / "plan.yaml"
    path.write_text(dump_yaml(config, {"holdout.share": "a quarter"}), encoding="utf-8")
    again = load_config(path, schema=schema)
    assert again == config
    assert "# a quarter" in path.read_text(encoding="utf-8")
    # Down to the order of what is added up, which shows in the last bit of a sum.
    assert json.dumps(again.to_dict()) == json.dumps(config.to_dict())


def test_the_kinds_of_negatives_have_one_order() -> None:
    config = parse_config(
        {"matching": {"negatives": {"order": 0.1, "place": 0.2, "patient": 0.3}}}, schema=TransferConfig
    )
    assert list(config.matching.negatives.items()) == [("patient", 0.3), ("place", 0.2), ("order", 0.1)]


@pytest.mark.parametrize(
    ("schema", "values", "message"),
    [
        (PretrainConfig, {"method": {"temprature": 0.1}}, "did you mean 'temperature'"),
        (PretrainConfig, {"backbne": {}}, "did you mean 'backbone'"),
        (PretrainConfig, {"teacher": {"source": "x"}}, "unknown key 'teacher'"),
        (TransferConfig, {"matching": {"negatves": {}}}, "did you mean 'negatives'"),
        (TransferConfig, {"matching": {"negatives": {"patients": 1}}}, "'patient'"),
        (TransferConfig, {"matching": {"negatives": {"patient": 0, "place": 0.0}}}, "at least one kind"),
        (TransferConfig, {"matching": {"negatives": {}}}, "at least one kind"),
        (TransferConfig, {"matching": {"negatives": {"patient": -1}}}, "matching.negatives"),
        (TransferConfig, {"sampling": {"train": "segments"}}, "random or center in a transfer, got 'segments'"),
        (TransferConfig, {"teacher": {"size": 8}}, "teacher.size"),
        (PretrainConfig, {"holdout": {"share": 1.0}}, "holdout.share"),
        (PretrainConfig, {"views": {"window_level": 1.0}}, "views.window_level"),
    ],
)
def test_faults_of_plans_of_weights_are_named(schema: type[Section], values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(values, schema=schema)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "kind", "command"),
    [
        (TrainConfig, "pretrain", "volrec pretrain"),
        (TrainConfig, "transfer", "volrec transfer"),
        (PretrainConfig, "transfer", "volrec transfer"),
        (TransferConfig, "pretrain", "volrec pretrain"),
    ],
)
def test_a_plan_of_another_command_says_which(schema: type[Section], kind: str, command: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(f"kind: {kind}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, schema=schema)
    assert command in str(caught.value)


@pytest.mark.parametrize("schema", [PretrainConfig, TransferConfig])
def test_every_key_of_plans_of_weights_is_explained(schema: type[Section]) -> None:
    json.dumps(json_schema(schema))
    rows = schema_rows(schema)
    assert [key for key, _, _, meaning in rows if not meaning] == []
    assert kind_of(schema) in {"pretrain", "transfer"} and kind_of(TrainConfig) == "train"
    assert any(key == "holdout.share" for key, *_ in rows)


def test_what_stands_in_a_list_is_changed_by_its_name() -> None:
    stages = [{"name": "motion", "objective": "motion"}, {"name": "all"}]
    config = apply_overrides(parse_config({"stages": stages}), {"stages.motion.epochs": 3})
    assert [stage.epochs for stage in config.stages] == [3, None]
    with pytest.raises(ConfigError, match=r"no 'moton' in stages \(did you mean 'motion'\?\)"):
        apply_overrides(config, {"stages.moton.epochs": 3})
    with pytest.raises(ConfigError, match=r"unknown key 'stages\.0\.epoch' \(did you mean 'epochs'\?\)"):
        apply_overrides(config, {"stages.motion.epoch": 3})
    with pytest.raises(ConfigError, match="names one of a list"):
        apply_overrides(config, {"stages.motion": 3})
    with pytest.raises(ConfigError, match="there is no 'motion' in stages"):
        apply_overrides(TrainConfig(), {"stages.motion.epochs": 3})


def test_options_of_a_network_within_need_not_be_there_to_be_set() -> None:
    key = "network.options.network_options.dropout"
    assert apply_overrides(TrainConfig(), {key: 0.1}).network.options == {"network_options": {"dropout": 0.1}}
    with pytest.raises(ConfigError, match=r"no section 'streams\.flw' \(did you mean 'flow'\?\)"):
        apply_overrides(TrainConfig(), {"streams.flw.stack": 2})


def test_a_word_that_is_no_choice_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"got \"flw\" \(did you mean 'flow'\?\)"):
        parse_config({"streams": {"inputs": ["intensity", "flw"]}})
    with pytest.raises(ConfigError, match=r"got \"zzzz\"\.$|got \"zzzz\"\. "):
        parse_config({"streams": {"inputs": ["zzzz"]}})

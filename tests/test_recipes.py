"""The shipped recipes: each is planned by its name, keeps what it says, and its network builds."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from studies import two_class_folder

import volrec
from volrec.cli import main
from volrec.cli.shell import pairs
from volrec.config import StreamsConfig, TrainConfig, load_config
from volrec.errors import ConfigError
from volrec.inference.inputs import check_streams, make_input
from volrec.networks import SequenceNetwork, create, spec

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
SYSTEMS = [name for name in RECIPES if not name.startswith("hippocampus")]
"""Recipes of a system for any data; the others are for one data set."""


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_class_folder(tmp_path_factory.mktemp("recipes") / "data", studies=10, slices=8)


def planned(labels: Path, name: str, **overrides: Any) -> TrainConfig:
    return volrec.plan(labels.parent, labels=labels, config=name, overrides=overrides).config


def build(config: TrainConfig) -> tuple[SequenceNetwork, int]:
    """Build the network of a plan without its memory; return the channels that it reads as well."""
    channels = make_input(config.intensity, config.streams).channels
    with torch.device("meta"):
        network = create(
            config.network.name,
            num_classes=1,
            in_channels=channels,
            width=config.network.width,
            **config.network.options,
        )
    return network, channels


def written(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def commands(name: str) -> list[list[str]]:
    """Return the `volrec train` commands of a recipe's comments, as words."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line.strip().startswith("volrec train ")]


def settings(words: list[str]) -> dict[str, Any]:
    return pairs([value for word, value in pairwise(words) if word == "--set"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_names_no_machine_and_says_how_it_is_run(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.data.folder is None and config.data.labels is None
    assert commands(name), "its comments hold no command"
    assert all(words[words.index("--config") + 1] == name for words in commands(name))
    assert f"`{name}`" in (CONFIGS / "README.md").read_text(encoding="utf-8")


def test_an_installation_brings_every_recipe() -> None:
    text = (CONFIGS.parent / "pyproject.toml").read_text(encoding="utf-8")
    (pattern,) = re.findall(r'"share/volrec/configs" = \["(.+)"\]', text)
    assert sorted(path.stem for path in CONFIGS.parent.glob(pattern)) == RECIPES


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_planned_by_its_name_and_keeps_what_its_recipe_says(labels: Path, name: str) -> None:
    recipe, config = load_config(CONFIGS / f"{name}.yaml"), planned(labels, name)
    said = written(name)
    assert (config.network.name, config.network.width) == (recipe.network.name, recipe.network.width)
    # Options that follow from the segments may come to those that are written.
    assert recipe.network.options.items() <= config.network.options.items()
    assert config.streams == recipe.streams
    others = [section for section in said if section not in ("stages", "network")]
    assert all(getattr(config, section) == getattr(recipe, section) for section in others)
    assert [stage.name for stage in config.stages] == [stage["name"] for stage in said.get("stages", [])]
    # What it leaves out is planned: this CT becomes windows on a canvas that the network reads.
    assert "intensity" not in said and len(config.intensity.windows) == 3
    assert config.data.target == ["label"] and config.preprocess.canvas is not None
    network, channels = build(config)
    clip = torch.empty(2, channels, config.sampling.clip_length, *config.preprocess.canvas[1:], device="meta")
    assert network(clip).shape == (2, 1)


@pytest.mark.parametrize("name", SYSTEMS)
def test_stages_are_those_of_the_paper_and_share_the_epochs_of_one_training(labels: Path, name: str) -> None:
    config, paper = planned(labels, name), spec(name).training
    assert config.network.name == name
    assert [(stage.name, stage.objective, tuple(stage.freeze)) for stage in config.stages] == [
        (stage.name, stage.objective, stage.freeze) for stage in paper
    ]
    for stage, facts in zip(config.stages, paper, strict=True):
        assert stage.epochs == round(config.trainer.epochs * facts.epochs)
        assert (stage.lr or config.optim.lr) == pytest.approx(config.optim.lr * facts.lr)
        if facts.objective == "joint":
            assert stage.motion_weight == facts.motion_weight
    if paper:
        assert sum(int(stage.epochs or 0) for stage in config.stages) == config.trainer.epochs


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_command_in_its_comments_works(labels: Path, name: str) -> None:
    for words in commands(name):
        config = planned(labels, name, **settings(words))
        network, channels = build(config)
        assert network.in_channels == channels
        if "--set" in words:
            assert config != planned(labels, name)


def test_a_longer_or_shorter_training_changes_its_stages_alike(labels: Path) -> None:
    config = planned(labels, "hidden-two-stream", **{"trainer.epochs": 20, "optim.lr": 0.004})
    assert [stage.epochs for stage in config.stages] == [6, 8, 6]
    assert [stage.lr for stage in config.stages] == [None, None, 0.0004]
    short = planned(labels, "hidden-two-stream", **{"trainer.epochs": 1})
    assert [stage.epochs for stage in short.stages] == [1, 1, 1]


def test_what_stages_share_is_told_in_the_plan(labels: Path) -> None:
    made = volrec.plan(labels.parent, labels=labels, config="two-stream-fusion", overrides={"trainer.epochs": 10})
    (line,) = (line for line in made.text().splitlines() if "name: fusion" in line)
    assert "epochs: 4" in line and line.endswith("# 40% of trainer.epochs, 10% of optim.lr")


def test_first_weights_that_exist_bring_the_papers_stages_of_actionvlad(labels: Path, tmp_path: Path) -> None:
    from volrec.weights import save_weights

    network = create("actionvlad", num_classes=1, in_channels=3, width=0.25)
    save_weights(tmp_path / "first.safetensors", network, {})
    config = planned(labels, "actionvlad", **{"init.source": str(tmp_path / "first.safetensors")})
    assert [stage.name for stage in config.stages] == ["classifier", "fine"]


def test_a_system_is_trained_in_turn_by_its_name(labels: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["network.width=0.03125", "trainer.workers=0", "trainer.accelerator=cpu", "network.options.levels=3"]
    options = [word for pair in small for word in ("--set", pair)]
    command = ["train", str(labels.parent), "--labels", str(labels), "--config", "hidden-two-stream", "--epochs", "3"]
    assert main([*command, "--out", str(run), *options]) == 0
    assert {path.parent.name for path in run.glob("*/stages/*/finished")} == {"motion", "temporal"}


@pytest.mark.parametrize(
    ("network", "streams", "options", "message"),
    [
        ("two-stream", ["flow"], {}, "two-stream has a tower for slices and one for motion; got flow"),
        ("tsn", ["warped"], {"network": "two-stream-fusion"}, "two-stream-fusion has a tower for slices"),
        ("hidden-two-stream", ["intensity", "flow"], {}, "hidden-two-stream finds the motion in the slices by itself"),
    ],
)
def test_streams_that_a_network_would_misread_are_refused_before_anything_is_scanned(
    network: str, streams: list[str], options: dict[str, str], message: str, tmp_path: Path
) -> None:
    config = {"network": {"name": network, "width": 1 / 16, "options": options}, "streams": {"inputs": streams}}
    with pytest.raises(ConfigError, match=message):
        volrec.plan(tmp_path / "nothing", labels="labels.csv", config=config)
    for inputs in (["intensity"], ["intensity", "flow"]):  # no motion at all is an experiment
        check_streams(StreamsConfig(inputs=inputs), "two-stream", {})
    check_streams(StreamsConfig(inputs=["flow"]), "tsn", {"network": "i3d"})


def test_an_opencv_without_its_contributed_modules_is_not_planned_on(
    labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(pytest.importorskip("cv2"), "optflow")
    made = volrec.plan(labels.parent, labels=labels, overrides={"network.name": "two-stream"})
    assert made.config.streams.flow.method == "demons"
    assert "contributed modules" in made.reasons["streams.flow.method"]


def test_a_stage_that_optim_freeze_leaves_nothing_to_learn_is_refused(labels: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is left to train"):
        planned(labels, "hidden-two-stream", **{"optim.freeze": ["motion.*"]})


def test_a_key_that_goes_with_planned_clips_may_be_set_alone(labels: Path) -> None:
    def plan(name: str) -> TrainConfig:
        keys = {"network.name": name, "protocol.snippets": 25}
        return volrec.plan(labels.parent, labels=labels, overrides=keys).config

    config = plan("tsn")
    assert (config.sampling.train, config.protocol.snippets) == ("segments", 25)
    with pytest.raises(ConfigError, match=r"^override: protocol\.snippets \(25\) are spread"):
        plan("c3d")

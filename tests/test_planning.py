"""The plan: what it derives from a fingerprint, what it leaves to the user, and that it says why."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.planning import Fingerprint, Spread, make_plan
from volrec.planning.grid import SAME_SPACING, VOXEL_BUDGET


def spread(*values: float) -> Spread:
    return Spread.of(values)


def facts(
    size: tuple[Spread, Spread, Spread],
    spacing: tuple[Spread, Spread, Spread],
    *,
    modality: str = "CT",
    device: str = "cpu",
    studies: int = 200,
    share: float = 0.5,
    task: str = "binary",
    memory: float = 24.0,
) -> Fingerprint:
    extent = tuple(
        spread(a.minimum * b.minimum, a.median * b.median, a.maximum * b.maximum)
        for a, b in zip(size, spacing, strict=True)
    )
    return Fingerprint(
        studies=studies,
        patients=studies,
        task=task,
        smallest_share=share,
        modality=modality,
        orientations={"axial": studies},
        size=size,
        spacing=spacing,
        extent=extent,  # type: ignore[arg-type]
        intensity=(0.0, 1.0, 2.0),
        device=device,
        memory_gib=memory,
        cpus=2,
    )


def cohort(task: str = "binary", orientations: tuple[str, ...] = ("axial",), thickness: float = 5.0) -> SimpleNamespace:
    cases = [
        SimpleNamespace(
            study=f"s{number}",
            patient=f"p{number}",
            target=np.array([number % 2], np.float32),
            series=SimpleNamespace(orientation=orientations[number % len(orientations)], spacing=(thickness, 1.0, 1.0)),
        )
        for number in range(20)
    ]
    return SimpleNamespace(
        cases=tuple(cases),
        task=task,
        targets=("label",),
        classes=("0", "1"),
        notes=("task: binary (0/1)",),
        problems=(),
    )


HEAD_CT = facts((spread(32, 36), spread(512), spread(512)), (spread(4.8, 5.0), spread(0.45), spread(0.45)))
CHEST_CT = facts((spread(300, 500), spread(512), spread(512)), (spread(0.7, 1.0), spread(0.6, 0.9), spread(0.6, 0.9)))
SMALL_MR = facts(
    (spread(40, 48), spread(50, 60), spread(40, 47)), (spread(1.0), spread(1.0), spread(1.0)), modality="MR"
)


@pytest.mark.parametrize("fingerprint", [HEAD_CT, CHEST_CT, SMALL_MR], ids=["head", "chest", "small"])
def test_a_whole_study_fits_the_budget_and_its_extent_is_kept(fingerprint: Fingerprint) -> None:
    config = make_plan(cohort(), {}, facts=fingerprint).config
    canvas = config.preprocess.canvas
    assert canvas is not None
    voxels = math.prod(size or 1 for size in canvas)
    assert voxels <= 1.35 * VOXEL_BUDGET["cpu"]  # rounding up to multiples of 4 and 8
    spacing = config.preprocess.spacing or [each.median for each in fingerprint.spacing]
    for size, step, extent in zip(canvas, spacing, fingerprint.extent, strict=True):
        assert size is not None and step is not None
        assert size * step >= 0.98 * (extent.maximum if extent.maximum <= 1.5 * extent.median else extent.high)


def test_thick_slices_are_not_resampled_away() -> None:
    config = make_plan(cohort(), {}, facts=HEAD_CT).config
    assert config.preprocess.spacing is not None
    assert config.preprocess.spacing[0] == pytest.approx(4.9)
    assert config.preprocess.canvas is not None and config.preprocess.canvas[0] == 40  # 36 slices of 5 mm
    assert config.intensity.windows == ["brain", "subdural", "bone"]


def test_small_volumes_of_one_spacing_stay_as_they_are() -> None:
    result = make_plan(cohort(), {}, facts=SMALL_MR)
    assert result.config.preprocess.spacing is None
    assert result.config.preprocess.canvas == (48, 64, 48)
    assert result.config.sampling.clip_length == 48
    assert result.config.intensity.kind in {"zscore", "percentile"}
    assert "MR" in result.reasons["intensity.kind"]


def test_what_the_user_wrote_is_obeyed_and_what_is_missing_is_planned() -> None:
    given_sections = {
        "preprocess": {"canvas": [16, 32, 32]},
        "network": {"name": "slice-mean"},
        "trainer": {"epochs": 3},
    }
    result = make_plan(cohort(), given_sections, facts=CHEST_CT)
    assert result.config.preprocess.canvas == (16, 32, 32)
    assert result.config.preprocess.spacing is None
    assert result.config.sampling.clip_length == 16
    assert result.config.network.name == "slice-mean"
    assert result.config.trainer.epochs == 3
    assert "preprocess.canvas" not in result.reasons


def test_keys_that_the_user_sets_steer_what_depends_on_them() -> None:
    fixed = {
        "preprocess.spacing": [2, 2, 2],
        "network.name": "slice-mean",
        "split.folds": 5,
        "optim.lr": 0.5,
        "name": "x",
    }
    result = make_plan(cohort(), {}, overrides=fixed, facts=HEAD_CT)
    assert result.config.preprocess.spacing == (2, 2, 2)
    assert result.config.preprocess.canvas == (92, 120, 120)
    assert result.config.sampling.clip_length == 92
    assert result.config.network.name == "slice-mean"
    assert result.config.network.options == {}
    assert (result.config.split.folds, result.config.optim.lr, result.config.name) == (5, 0.5, "x")
    assert result.reasons["preprocess.spacing"] == "set by you"


@pytest.mark.parametrize(
    ("slices", "between", "pixel", "expected"),
    [
        (128, 1.0, 1.0, None),  # isotropic: the paper's strides
        (24, 5.0, 0.5, [1, 1, 1, 2, 2]),  # 5 mm CT: merged once a pixel of the stage is as large
        (24, 5.0, 5.0, [1, 2, 2, 1, 1]),  # four slices stay
        (4, 5.0, 5.0, [1, 1, 1, 1, 1]),
    ],
)
def test_thick_and_short_stacks_keep_their_slices(slices, between, pixel, expected) -> None:
    found = facts((spread(slices), spread(384), spread(384)), (spread(between), spread(pixel), spread(pixel)))
    fixed = {"preprocess.canvas": [slices, 384, 384], "preprocess.spacing": [between, pixel, pixel]}
    result = make_plan(cohort(), {}, facts=found, overrides=fixed)
    assert result.config.network.options.get("temporal_strides") == expected
    assert ("network.options" in result.reasons) == (expected is not None)


def test_the_canvas_holds_what_the_network_can_read() -> None:
    found = facts((spread(24), spread(24), spread(24)), (spread(20.0), spread(20.0), spread(20.0)))
    for network, side in (("c3d", 24), ("i3d", 32)):
        result = make_plan(cohort(), {}, facts=found, overrides={"network.name": network})
        assert result.config.preprocess.canvas == (24, side, side)


def test_a_finer_stem_counts_as_finer_pixels() -> None:
    found = facts((spread(64), spread(64), spread(64)), (spread(4.0), spread(1.0), spread(1.0)))
    fixed = {
        "preprocess.canvas": [64, 64, 64],
        "preprocess.spacing": [4.0, 1.0, 1.0],
        "network.name": "i3d",
    }
    result = make_plan(cohort(), {}, facts=found, overrides=fixed)
    # Nothing merges pixels before the second pool: slices of 4 mm wait until pixels are 4 mm as well.
    assert result.config.network.options == {"stem_stride": 1, "temporal_strides": [1, 1, 1, 1, 2]}
    assert "detail" in result.reasons["network.options"]
    assert "merged" in result.reasons["network.options"]


def test_strides_leave_four_slices_of_a_clip() -> None:
    found = facts((spread(128), spread(128), spread(128)), (spread(1.0), spread(1.0), spread(1.0)))
    fixed = {"preprocess.canvas": [128, 128, 128], "preprocess.spacing": [1.0, 1.0, 1.0], "sampling.clip_length": 16}
    result = make_plan(cohort(), {}, facts=found, overrides=fixed)
    assert result.config.network.options["temporal_strides"] == [1, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("lrcn", {}, 1),
        ("lrcn", {"network.options.backbone": "alexnet"}, 1),
        ("lrcn", {"network.options.stem_stride": 2}, 2),
        ("stacked-lstm", {"network.options.backbone": "monai:resnet10"}, None),
        ("c3d", {}, None),
    ],
)
def test_small_slices_keep_their_detail_where_the_stem_can_be_set(name, given, expected) -> None:
    for side, stride in ((48, expected), (128, given.get("network.options.stem_stride"))):
        fixed = {"network.name": name, "preprocess.canvas": [16, side, side], **given}
        options = make_plan(cohort(), {}, facts=SMALL_MR, overrides=fixed).config.network.options
        assert options.get("stem_stride") == stride
        backbone = given.get("network.options.backbone")
        assert options.get("backbone") == backbone


def test_crops_around_one_organ_get_a_network_that_knows_places() -> None:
    result = make_plan(cohort(), {}, facts=SMALL_MR)
    assert result.config.network.options["stages"] == 1
    assert result.config.network.options["grid"] == [6, 8, 6]
    assert result.config.optim.optimizer == "sgd"
    body = make_plan(cohort(), {}, facts=CHEST_CT)
    assert "stages" not in body.config.network.options


def test_little_memory_makes_small_batches() -> None:
    small = facts(CHEST_CT.size, CHEST_CT.spacing, memory=0.5)
    assert make_plan(cohort(), {}, facts=small).config.optim.batch_size < 8
    assert make_plan(cohort(), {}, facts=CHEST_CT).config.optim.batch_size == 8


def test_mixed_modalities_are_not_windowed() -> None:
    mixed = facts(CHEST_CT.size, CHEST_CT.spacing, modality="mixed")
    assert make_plan(cohort(), {}, facts=mixed).config.intensity.kind == "zscore"


def test_rare_classes_weigh_more() -> None:
    rare = facts(SMALL_MR.size, SMALL_MR.spacing, share=0.1)
    assert make_plan(cohort(), {}, facts=rare).config.data.balance == "loss"
    assert make_plan(cohort(), {}, facts=SMALL_MR).config.data.balance == "none"


@pytest.mark.parametrize(("thickness", "axis"), [(5.0, "acquired"), (1.2, "axial")])
def test_mixed_orientations(thickness: float, axis: str) -> None:
    mixed = cohort(orientations=("axial", "axial", "coronal"), thickness=thickness)
    result = make_plan(mixed, {}, facts=SMALL_MR)
    assert result.config.preprocess.slice_axis == axis
    assert "axial 14, coronal 6" in result.reasons["preprocess.slice_axis"]


def test_every_section_has_a_reason() -> None:
    reasons = make_plan(cohort(), {}, facts=HEAD_CT).reasons
    sections = {key.split(".")[0] for key in reasons}
    assert sections >= {
        "data",
        "split",
        "preprocess",
        "intensity",
        "sampling",
        "augment",
        "network",
        "optim",
        "trainer",
    }
    assert all(reason and "\n" not in reason for reason in reasons.values())


sizes = st.tuples(*[st.integers(3, 700) for _ in range(3)])
spacings = st.tuples(*[st.floats(0.2, 10.0) for _ in range(3)])


@given(first=sizes, second=sizes, near=spacings, far=spacings, device=st.sampled_from(["cpu", "cuda"]))
@settings(max_examples=60, deadline=None)
def test_any_geometry_gives_a_plan_within_the_budget(
    first: tuple[int, ...], second: tuple[int, ...], near: tuple[float, ...], far: tuple[float, ...], device: str
) -> None:
    size = tuple(spread(a, b) for a, b in zip(first, second, strict=True))
    spacing = tuple(spread(a, b) for a, b in zip(near, far, strict=True))
    config = make_plan(cohort(), {}, facts=facts(size, spacing, device=device)).config  # type: ignore[arg-type]
    canvas = config.preprocess.canvas
    assert canvas is not None
    # Rounding up adds at most 3, 7 and 7 voxels to the three sides.
    exact = [max(1, (side or 1) - margin) for side, margin in zip(canvas, (7, 15, 15), strict=True)]
    assert math.prod(exact) <= VOXEL_BUDGET[device] * SAME_SPACING**3
    assert config.sampling.clip_length <= 128


def test_the_batch_is_what_the_networks_own_memory_allows() -> None:
    # 40 slices of 320 x 320 on a GPU of 24 GiB: eight clips of a narrow C3D fit well, eight of a wide one do not.
    head = facts(
        (spread(40), spread(320), spread(320)), (spread(5.0), spread(0.7), spread(0.7)), device="cuda", memory=24.0
    )
    fixed = {"preprocess.canvas": [40, 320, 320], "preprocess.spacing": [5.0, 0.7, 0.7]}
    assert make_plan(cohort(), {}, facts=head, overrides=fixed).config.optim.batch_size == 8
    wide = make_plan(cohort(), {}, facts=head, overrides={**fixed, "network.width": 1.0})
    assert wide.config.optim.batch_size == 2
    assert "fit into 24 GiB" in wide.reasons["optim.batch_size"]


def test_the_canvas_holds_what_the_network_reads_with_the_users_options() -> None:
    tiny = facts((spread(12), spread(20), spread(20)), (spread(5.0), spread(8.0), spread(8.0)))
    assert make_plan(cohort(), {}, facts=tiny).config.preprocess.canvas == (12, 24, 24)
    for section, fixed in (
        ({"network": {"name": "c3d", "options": {"norm": "instance"}}}, {}),
        ({}, {"network.options.norm": "instance"}),
    ):
        assert make_plan(cohort(), section, facts=tiny, overrides=fixed).config.preprocess.canvas == (12, 32, 32)

"""Hit rates: where the lesions of phantoms are, maps that are made to hit or miss, and intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volrec.data.phantoms import draw_phantoms
from volrec.errors import ConfigError, DataError
from volrec.explain import EvidenceMap, Explanation, Lesion, hit_rates, lesion_of
from volrec.explain.hits import strongest_voxel

SHAPE = (6, 10, 12)
SPACING = (5.0, 2.0, 2.0)


def lesion() -> Lesion:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[2:4, 3:5, 6:9] = True
    body = np.zeros(SHAPE, dtype=bool)
    body[:, 1:9, 1:11] = True
    return Lesion(mask, body, SPACING)


def explanation(study: str, array: np.ndarray, *, method: str = "gradcam", score: float = 0.9) -> Explanation:
    array = array.astype(np.float32)
    per_slice = array.max(axis=(1, 2))
    evidence = EvidenceMap(array, np.eye(4), per_slice, method, "1", False, scores={"1": score})
    return Explanation(study, evidence, array, np.eye(4), per_slice, np.arange(len(array)) * 5.0)


def peak(*place: int, height: float = 1.0) -> np.ndarray:
    array = np.random.default_rng(0).uniform(0, 0.5, SHAPE)
    array[place] = height
    return array


class TestLesionsOfPhantoms:
    @pytest.mark.parametrize(("task", "kind"), [("nodule", "sphere"), ("bleed", "blob")])
    def test_they_are_where_the_image_is_bright(self, task: str, kind: str) -> None:
        found = 0
        for phantom in draw_phantoms(task=task, studies=8, size=48, slices=24, tilt=20.0, vary_spacing=True):
            one = lesion_of(phantom)
            assert (one is not None) == bool(phantom.label)
            if one is None:
                continue
            found += 1
            image = phantom.image(noise=0.0)
            assert one.mask.shape == image.shape
            assert one.spacing == phantom.anatomy.spacing
            inner = one.mask & one.body
            assert np.median(image[inner]) > 200
            np.testing.assert_array_equal(one.mask.any(axis=(1, 2)), phantom.anatomy.slice_labels() == 1)
            # Without the vessels, all that is bright is the lesion, but for half a pixel at its edge.
            alone = replace(phantom.anatomy, stacks=tuple(s for s in phantom.anatomy.stacks if s.kind == kind))
            rest = replace(phantom.anatomy, stacks=())
            difference = replace(phantom, anatomy=alone).image(noise=0.0) - replace(phantom, anatomy=rest).image(
                noise=0.0
            )
            bright = difference > 0.5 * alone.stacks[0].contrast
            overlap = 2 * (bright & one.mask).sum() / (bright.sum() + one.mask.sum())
            assert overlap > 0.9
            assert (image[~one.body] < -300).mean() > 0.9
        assert found == 4

    def test_motion_has_none(self) -> None:
        with pytest.raises(ConfigError, match="no lesion"):
            lesion_of(next(iter(draw_phantoms(task="motion", studies=4))))


class TestHits:
    def test_a_map_hits_where_its_maximum_lies_on_the_lesion(self) -> None:
        maps = [
            explanation("a", peak(3, 4, 8)),  # on it
            explanation("b", peak(2, 3, 6)),  # on its edge
            explanation("c", peak(2, 5, 6)),  # beside it, in its slice
            explanation("d", peak(5, 4, 7)),  # in another slice
        ]
        (found,) = hit_rates(maps, dict.fromkeys("abcd", lesion()))
        assert (found.studies, found.missed) == (4, 0)
        assert (found.voxels["hits"], found.voxels["value"]) == (2, 0.5)
        assert (found.slices["hits"], found.slices["value"]) == (3, 0.75)
        assert found.voxels["chance"] == pytest.approx(12 / 480)
        assert found.slices["chance"] == pytest.approx(2 / 6)
        # Wilson (1927) by its formula.
        z, n, p = 1.959963984540054, 4, 0.5
        middle, half = (p + z * z / 2 / n), z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
        assert found.voxels["low"] == pytest.approx((middle - half) / (1 + z * z / n))
        assert found.voxels["high"] == pytest.approx((middle + half) / (1 + z * z / n))

    @pytest.mark.parametrize(("tolerance", "hits"), [(0.0, 0), (1.9, 0), (2.0, 1), (4.9, 1), (5.0, 2), (6.0, 2)])
    def test_a_tolerance_is_in_millimetres_along_each_axis(self, tolerance: float, hits: int) -> None:
        maps = [explanation("a", peak(2, 5, 6)), explanation("b", peak(4, 4, 7))]  # 2 mm below, 5 mm above
        (found,) = hit_rates(maps, dict.fromkeys("ab", lesion()), tolerance=tolerance)
        assert found.voxels["hits"] == hits

    def test_only_studies_with_a_lesion_that_are_called_positive_count(self) -> None:
        maps = [
            explanation("a", peak(3, 4, 8)),
            explanation("b", peak(3, 4, 8), score=0.4),
            explanation("healthy", peak(0, 0, 0)),
        ]
        (found,) = hit_rates(maps, dict.fromkeys("ab", lesion()))
        assert (found.studies, found.missed, found.voxels["value"]) == (1, 1, 1.0)
        (found,) = hit_rates(maps, dict.fromkeys("ab", lesion()), threshold=0.95)
        assert (found.studies, found.missed) == (0, 2)
        assert found.voxels["value"] is None

    def test_methods_have_a_row_each_and_those_of_slices_no_voxels(self) -> None:
        flat = np.zeros(SHAPE)
        flat[2] = 1.0
        maps = [explanation("a", peak(3, 4, 8)), explanation("a", flat, method="occlusion")]
        first, second = hit_rates(iter(maps), {"a": lesion()})
        assert (first.method, second.method) == ("gradcam", "occlusion")
        assert second.voxels["value"] is None
        assert second.slices["value"] == 1.0
        assert second.to_json()["method"] == "occlusion"

    def test_a_map_that_says_nothing_misses(self) -> None:
        (found,) = hit_rates([explanation("a", np.zeros(SHAPE))], {"a": lesion()})
        assert (found.voxels["value"], found.slices["value"]) == (0.0, 0.0)

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 10_000))
    def test_maps_of_chance_hit_as_often_as_chance(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        body = lesion().body
        maps = (explanation("a", rng.random(SHAPE) * body) for _ in range(200))
        (found,) = hit_rates(maps, {"a": lesion()})
        assert found.voxels["value"] == pytest.approx(found.voxels["chance"], abs=0.06)
        assert found.slices["value"] == pytest.approx(found.slices["chance"], abs=0.2)

    def test_faults_are_named(self) -> None:
        with pytest.raises(DataError, match="its lesion is on a grid"):
            hit_rates([explanation("a", np.ones((3, 4, 5)))], {"a": lesion()})
        with pytest.raises(ConfigError, match="0 mm or more"):
            hit_rates([], {}, tolerance=-1.0)


class TestTheStrongestVoxel:
    @settings(max_examples=50, deadline=None)
    @given(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 11)))
    def test_it_is_where_the_maximum_is(self, place: tuple[int, int, int]) -> None:
        assert strongest_voxel(peak(*place)) == place

    def test_of_a_block_it_is_the_middle_and_of_nothing_none(self) -> None:
        array = np.zeros(SHAPE)
        assert strongest_voxel(array) is None
        assert strongest_voxel(array - 1) is None
        array[1:4, 2:7, 4:9] = 0.3
        assert strongest_voxel(array) == (2, 4, 6)

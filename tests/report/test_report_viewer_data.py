"""What the slice viewer carries: voxels that come back as they were, a size that fits, text that stays text."""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from volrec.errors import ConfigError, DataError
from volrec.report.page import page
from volrec.report.viewer import VIEWER_SCRIPT, VIEWER_STYLE, ViewerStudy, viewer_html
from volrec.report.viewer_data import (
    blend,
    colour_map,
    grey_levels,
    pack_voxels,
    pack_weights,
    quantise,
    reduce_volume,
    viewer_windows,
    weight_levels,
)

HOSTILE = "</script><script>alert(1)</script> \"quoted\" 'n' & <b>Müller\u202e\x1b[31m 肝"


def study(shape: tuple[int, int, int] = (6, 8, 10), **changes: Any) -> ViewerStudy:
    rng = np.random.default_rng(1)
    image = rng.integers(-1000, 1000, shape).astype(np.int16)
    facts = [("truth", "bad"), ("score", "0.93")]
    return replace(ViewerStudy("study-1", facts, image, (5.0, 0.8, 0.7), (("liver", 30, 150),)), **changes)


def carried(html: str) -> tuple[dict[str, Any], dict[tuple[str, int], bytes]]:
    """What a page tells its script, and the inflated bytes by kind and number."""
    data = json.loads(re.search(r'class="vr-data">(.*?)</script>', html, re.S).group(1))
    found = re.findall(r'class="vr-(voxels|weights)" data-number="(\d+)">([A-Za-z0-9+/=]*)</script>', html)
    return data, {(kind, int(number)): zlib.decompress(base64.b64decode(text)) for kind, number, text in found}


def unpacked(packed: bytes) -> list[int]:
    """int16 values of packed bytes, one after the other: the plain reading of what `pack_voxels` says."""
    count = len(packed) // 2
    values, value = [], 0
    for low, high in zip(packed[:count], packed[count:], strict=True):
        folded = low + 256 * high
        value += -(folded + 1) // 2 if folded % 2 else folded // 2
        values.append((value + 32768) % 65536 - 32768)
    return values


@given(arrays.arrays(np.int16, arrays.array_shapes(min_dims=3, max_dims=3, max_side=6)))
@settings(max_examples=60, deadline=None)
def test_voxels_come_back_bit_for_bit(voxels: np.ndarray) -> None:
    packed = zlib.decompress(base64.b64decode(pack_voxels(voxels)))
    assert unpacked(packed) == voxels.ravel().tolist()


@given(arrays.arrays(np.uint8, (2, 3, 4)))
@settings(max_examples=30, deadline=None)
def test_weights_come_back_bit_for_bit(levels: np.ndarray) -> None:
    steps = np.frombuffer(zlib.decompress(base64.b64decode(pack_weights(levels))), np.uint8)
    assert np.array_equal(np.cumsum(steps.astype(int)) % 256, levels.ravel())


@given(
    arrays.arrays(
        np.float64,
        (3, 4, 5),
        elements=st.integers(-(10**9), 10**9).map(lambda value: value / 1000),
    )
)
@settings(max_examples=40, deadline=None)
def test_quantised_values_are_off_by_half_a_level_at_most(values: np.ndarray) -> None:
    levels, scale, offset = quantise(values)
    assert levels.dtype == np.int16
    assert scale <= max(np.ptp(values) / 4095 * 1.000001, 1.0)
    assert np.abs(levels * scale + offset - values).max() <= scale / 2 * (1 + 1e-6) + 1e-9 * np.abs(values).max()


def test_hounsfield_units_are_kept_and_an_outlier_does_not_coarsen_the_rest() -> None:
    units = np.array([[[-1024, 0, 3071]]], np.int16)
    assert quantise(units)[1:] == (1.0, 0.0) and np.array_equal(quantise(units)[0], units)
    values = np.append(np.random.default_rng(0).uniform(0, 1, 9999), 8.0).reshape(1, 100, 100)
    assert quantise(values)[1] < 1 / 4000


def test_reduction_is_the_mean_over_areas() -> None:
    volume = np.random.default_rng(2).normal(size=(5, 7, 9))
    new = reduce_volume(volume, (3, 4), 2)
    # Brute force: every voxel is cut into 3 x 4 equal pieces, of which every new one takes a whole number.
    fine = volume.repeat(3, 1).repeat(4, 2)
    pooled = fine.reshape(5, 3, 7, 4, 9).mean((2, 4))
    expected = [pooled[first : first + 2].mean(0) for first in (0, 2, 4)]
    np.testing.assert_allclose(new, expected, atol=1e-5)


def test_values_that_are_no_numbers_count_as_the_lowest() -> None:
    volume = np.array([[[np.nan, 3.0], [np.inf, 5.0]]], np.float32)
    np.testing.assert_allclose(reduce_volume(volume, (2, 2), 1), [[[3, 3], [3, 5]]])


@pytest.mark.parametrize("signed", [False, True])
def test_colours_are_clear_at_nothing_and_brighter_with_evidence(signed: bool) -> None:
    values = np.linspace(-1 if signed else 0, 1, 101)
    colours = colour_map(signed=signed)[weight_levels(values, signed=signed)].astype(float)
    zero = int(np.argmin(np.abs(values)))
    assert colours[zero, 3] == 0
    light = colours[:, :3] @ [0.2126, 0.7152, 0.0722] * colours[:, 3] / 255
    assert (np.diff(light[zero:]) >= -0.5).all() and light[-1] > 180
    if signed:
        assert (np.diff(light[: zero + 1]) <= 0.5).all()
        # Blue against orange: the axis that people with a red-green deficiency keep.
        assert colours[5, 2] > colours[5, 0] + 50 and colours[-5, 0] > colours[-5, 2] + 50


def test_windows_of_ct_are_presets_and_of_mr_the_values_of_tissue() -> None:
    names = [name for name, *_ in viewer_windows(np.zeros((2, 4, 4), np.int16), modality="CT")]
    assert {"soft tissue", "lung", "bone", "liver"} <= set(names)
    volume = np.zeros((8, 20, 20), np.float32)
    volume[:, 8:12, 8:12] = np.random.default_rng(0).uniform(200, 400, (8, 4, 4))
    name, level, width = viewer_windows(volume, modality="MR")[0]
    assert name == "standard" and 195 < level - width / 2 < 215 and 380 < level + width / 2 <= 400
    assert all(width > 0 for _, _, width in viewer_windows(np.full((2, 3, 3), 7.0)))


def test_the_page_carries_the_true_values_and_the_size_in_millimetres() -> None:
    one = study()
    data, packed = carried(viewer_html([one], identifier="v"))
    assert unpacked(packed["voxels", 0]) == one.image.ravel().tolist()
    own = data["studies"][0]
    assert (own["scale"], own["offset"], own["shape"]) == (1.0, 0.0, [6, 8, 10])
    assert own["mm"] == pytest.approx([10 * 0.7, 8 * 0.8])


def test_large_studies_are_reduced_and_the_page_says_so() -> None:
    image = np.random.default_rng(0).normal(size=(200, 300, 40)).astype(np.float32)
    scores = np.linspace(0, 1, 200)
    html = viewer_html([study(image=image, slice_scores=scores)], identifier="v", max_bytes=20_000_000)
    own = carried(html)[0]["studies"][0]
    assert own["shape"] == [67, 256, 40]
    assert own["mm"] == pytest.approx([40 * 0.7, 300 * 0.8])
    assert "40 × 256 of 40 × 300 pixels" in html and "67 pictures of 200 slices (means of 3)" in html
    assert own["slices"][0] == "slices 1–3 of 200" and own["slices"][-1] == "slices 199–200 of 200"
    assert own["scores"][0] == pytest.approx(scores[:3].mean())
    assert own["positions"][1] == "20.0 mm from slice 1"  # the middle of slices 4 to 6, 5 mm apart


def test_pictures_shrink_until_they_fit_and_a_budget_that_cannot_be_is_refused() -> None:
    studies = [study((40, 128, 128), title=f"s{number}") for number in range(2)]
    large = viewer_html(studies, identifier="v")
    small = viewer_html(studies, identifier="v", max_bytes=400_000)
    assert len(small) < 450_000 < len(large)
    assert carried(small)[0]["studies"][0]["shape"][1] < 128
    with pytest.raises(ConfigError, match=r"bytes in their smallest size, and 1,000 are allowed"):
        viewer_html(studies, identifier="v", max_bytes=1000)


def test_a_study_in_two_groups_is_carried_once() -> None:
    one = study(group="worst")
    other = study(title="other", group="worst")
    html = viewer_html([one, replace(one, group="most uncertain"), other], identifier="v")
    data, packed = carried(html)
    assert len(packed) == 2 and html.count("<figure>") == 2
    assert [own["title"] for own in data["studies"]] == ["study-1", "other", "study-1"]
    assert [own["carrier"] for own in data["studies"]] == [0, 1, 0]
    assert "worst, most uncertain" in html


def test_it_begins_where_the_evidence_is() -> None:
    overlay = np.zeros((6, 8, 10), np.float32)
    overlay[4, 2, 3] = -0.7
    overlay[1, :, :] = 0.5
    scores = np.array([0.1, np.nan, 0.9, 0.2, 0.1, 0.1])
    starts = [
        carried(viewer_html([study(**changes)], identifier="v"))[0]["studies"][0]["start"]
        for changes in (
            {"overlay": overlay, "signed": True, "slice_scores": scores},
            {"slice_scores": scores},
            {"slice_scores": np.full(6, np.nan)},
            {"overlay": np.zeros((6, 8, 10)), "slice_scores": scores},
        )
    ]
    assert starts == [4, 2, 3, 2]


def test_positions_are_the_patients_where_they_are_known() -> None:
    def positions(**changes: Any) -> list[str]:
        return carried(viewer_html([study(**changes)], identifier="v"))[0]["studies"][0]["positions"][:2]

    assert positions(origin=-2.5) == ["F 2.5 mm", "H 2.5 mm"]
    assert positions(origin=-2.5, plane="coronal") == ["A 2.5 mm", "P 2.5 mm"]
    assert positions(origin=-2.5, plane="sagittal") == ["R 2.5 mm", "L 2.5 mm"]
    assert positions() == ["0.0 mm from slice 1", "5.0 mm from slice 1"]


def test_the_static_picture_is_the_slice_through_its_window_with_the_overlay() -> None:
    overlay = np.random.default_rng(3).uniform(0, 1, (6, 8, 10)).astype(np.float32)
    overlay[2] *= 0.9
    overlay[2, 0, 0] = 1.0
    html = viewer_html([study(overlay=overlay)], identifier="v")
    plain, mixed = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        for text in re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    )
    values = study().image[carried(html)[0]["studies"][0]["start"]].astype(float)
    expected = np.clip((values - (30 - 75)) / 150, 0, 1) * 255
    assert np.abs(plain - expected).max() <= 0.5
    start = int(overlay.max((1, 2)).argmax())
    colours = colour_map(signed=False)[np.rint(overlay[start] * 255).astype(int)].astype(float)
    alpha = colours[..., 3:] / 255 * 0.6
    assert np.abs(mixed - (expected[..., None] * (1 - alpha) + colours[..., :3] * alpha)).max() <= 1.5
    assert np.array_equal(blend(grey_levels(values, 30, 150), np.zeros((8, 10, 4), np.uint8), 1.0)[..., 0], plain)


class Elements(HTMLParser):
    """Counts elements and collects texts and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "action"}]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_no_text_of_a_study_becomes_markup() -> None:
    hostile = study(
        title=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        windows=((HOSTILE, 30.0, 150.0),),
        slice_scores=np.linspace(0, 1, 6),
        slice_score_name=HOSTILE,
        group=HOSTILE,
        unit=HOSTILE,
        overlay=np.ones((6, 8, 10)),
        overlay_name=HOSTILE,
    )
    plain = study(slice_scores=np.linspace(0, 1, 6), group="worst", overlay=np.ones((6, 8, 10)), facts=[("a", "b")])
    found, expected = Elements(), Elements()
    found.feed(page("t", viewer_html([hostile], identifier="v"), style=VIEWER_STYLE, script=VIEWER_SCRIPT))
    expected.feed(page("t", viewer_html([plain], identifier="v"), style=VIEWER_STYLE, script=VIEWER_SCRIPT))
    assert found.tags == expected.tags
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert any("alert(1)" in text and "肝" in text for text in found.texts)
    assert "\x1b" not in "".join(found.texts)


def test_style_and_script_ask_for_nothing_and_run_no_text() -> None:
    assert not re.search(r"https?://(?!www\.w3\.org)|url\(|@import", VIEWER_STYLE + VIEWER_SCRIPT)
    assert not re.search(r"\beval\b|new Function|innerHTML|outerHTML|document\.write|\bfetch\b", VIEWER_SCRIPT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": np.zeros((4, 4))}, r"its image has the shape \(4, 4\)"),
        ({"overlay": np.zeros((5, 8, 10))}, r"its overlay has the shape \(5, 8, 10\)"),
        ({"slice_scores": np.zeros(4)}, "4 slice scores for 6 slices"),
        ({"plane": "oblique"}, "its plane is 'oblique'"),
        ({"spacing": (1.0, 0.0, 1.0)}, "its spacing is"),
        ({"windows": (("none", 0.0, 0.0),)}, "no width above 0"),
    ],
)
def test_a_study_that_does_not_fit_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        study(**changes)


def test_no_studies_give_nothing_and_identifiers_are_checked() -> None:
    assert viewer_html([], identifier="v") == ""
    with pytest.raises(ConfigError, match="cannot be the identifier"):
        viewer_html([study()], identifier='v"><b>')


def test_script_and_style_are_packaged() -> None:
    text = (VIEWER_STYLE, VIEWER_SCRIPT)
    assert ".vr-stage" in text[0] and "DecompressionStream" in text[1]

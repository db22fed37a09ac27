"""Curves along slices against what networks compute themselves, and as columns and pictures of an explanation."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from test_explain_study import PLAIN, member, study

from volrec.config import ProtocolConfig, SamplingConfig
from volrec.errors import ConfigError
from volrec.explain import curves_of, explain_study
from volrec.explain.curves import Curve, attention, slice_scores, vlad, vlad_contributions
from volrec.explain.passes import Opposite
from volrec.explain.plotting import draw_curves
from volrec.inference.consensus import link
from volrec.networks import create
from volrec.transforms.clips import protocol_clips

SIZE = (24, 28)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def built(name: str, **options: object) -> torch.nn.Module:
    network = create(name, num_classes=2, width=1 / 16, **options)
    torch.nn.init.normal_(network.classifier.weight)
    return network.eval()


def with_words(**options: object) -> torch.nn.Module:
    network = built("actionvlad", words=5, **options)
    torch.nn.init.normal_(network.classifier.bias)
    return network


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(2, 1, 6, *SIZE)


class TestSliceScores:
    @pytest.mark.parametrize("name", ["slice-mean", "tsn", "temporal-attention", "lrcn"])
    def test_each_slice_is_scored_as_a_clip_of_itself(self, name: str, clips: torch.Tensor) -> None:
        network = built(name) if name != "slice-mean" else create(name, num_classes=2, width=1 / 16).eval()
        found = slice_scores(network, clips, 1)
        with torch.no_grad():
            expected = torch.stack([network(clips[:, :, t : t + 1])[:, 1] for t in range(6)], dim=1)
        torch.testing.assert_close(found[:, :, 0, 0], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, found[:, :, :1, :1].expand(-1, -1, *SIZE))
        torch.testing.assert_close(slice_scores(Opposite(network), clips, 1), -found)

    def test_they_are_those_of_predict(self) -> None:
        network, volume = built("tsn"), study(9, SIZE)
        one = member(network, protocol=ProtocolConfig(overlap=0.5))
        (alone,) = curves_of([one], volume, output="b")
        expected = one.predictor.score(volume, per_slice=True).per_slice
        logits = np.stack([curves_of([one], volume, output=name)[0].values for name in ("a", "b")], axis=-1)
        assert alone.name == "alone"
        np.testing.assert_allclose(link(logits.astype(float), "multiclass"), expected, rtol=1e-4, atol=1e-5)

    def test_networks_that_read_clips_have_none(self, clips: torch.Tensor) -> None:
        network = create("c3d", num_classes=2, width=1 / 16)
        with pytest.raises(ConfigError, match="one by one") as raised:
            slice_scores(network, clips, 1)
        assert "occlusion" in str(raised.value)
        assert curves_of([member(network)], study(6, SIZE), output="b") == ()


class TestAttention:
    @pytest.mark.parametrize("encoder", ["none", "conv3d"])
    def test_it_is_the_mean_over_the_steps_of_the_networks_weights(self, encoder: str, clips: torch.Tensor) -> None:
        network = built("temporal-attention", steps=2, encoder3d=encoder)
        found = attention(network, clips, 1)
        with torch.no_grad():
            expected = network.attention(clips)
        torch.testing.assert_close(found[:, :, 3, 4], expected.mean(1))
        torch.testing.assert_close(found.mean((2, 3)).sum(1), torch.ones(2))
        torch.testing.assert_close(attention(Opposite(network), clips, 0), found)

    @pytest.mark.parametrize("options", [{}, {"network": "c3d", "snippet_length": 3}])
    def test_segments_that_are_weighed_by_their_features(self, options: dict, clips: torch.Tensor) -> None:
        network = built("tsn", consensus="attention", test_consensus="same", **options)
        torch.nn.init.normal_(network.consensus.direction)
        found = attention(network, clips, 0)[:, :, 0, 0]
        torch.testing.assert_close(found.sum(1), torch.ones(2))
        with torch.no_grad():
            features = network.forward_features(clips)
            weights = found.unflatten(1, (features.shape[1], -1)).sum(2)
            scores = network.classifier(features)
            torch.testing.assert_close((weights[:, None] @ scores)[:, 0], network(clips), rtol=1e-4, atol=1e-5)

    def test_networks_without_are_refused(self, clips: torch.Tensor) -> None:
        for network in (built("tsn"), built("tsn", consensus="attention"), create("c3d", num_classes=2, width=1 / 16)):
            with pytest.raises(ConfigError, match="no attention"):
                attention(network, clips, 0)

    def test_over_a_study_steps_have_columns(self) -> None:
        volume = study(9, SIZE)
        one = member(built("temporal-attention", steps=2), protocol=ProtocolConfig(overlap=0.5))
        found = {curve.name: curve for curve in curves_of([one], volume, output="b")}
        assert list(found) == ["alone", "attention", "attention_step_1", "attention_step_2"]
        steps = (found["attention_step_1"].values + found["attention_step_2"].values) / 2
        np.testing.assert_allclose(found["attention"].values, steps, rtol=1e-5)
        mapped = explain_study(one, volume, method="attention", output="b")
        np.testing.assert_allclose(mapped.per_slice, found["attention"].values, rtol=1e-5)


class TestVlad:
    @pytest.mark.parametrize("options", [{}, {"network": "c3d"}])
    def test_places_add_up_to_the_output_less_its_bias(self, options: dict, clips: torch.Tensor) -> None:
        network, x = with_words(**options).double(), clips.double()
        for output in (0, 1):
            found, _ = vlad_contributions(network, x, output)
            with torch.no_grad():
                expected = network(x)[:, output] - network.classifier.bias[output]
            torch.testing.assert_close(found.sum((1, 2, 3)).detach(), expected)

    def test_a_map_adds_up_too(self, clips: torch.Tensor) -> None:
        network = with_words()
        x = torch.randn(2, 1, 6, 32, 32)
        found = vlad(network, x, 1)
        with torch.no_grad():
            expected = network(x)[:, 1] - network.classifier.bias[1]
        assert found.shape == (2, 6, 32, 32)
        torch.testing.assert_close(found.sum((1, 2, 3)), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(vlad(Opposite(network), x, 1), -found)

    def test_a_place_is_worth_what_the_output_would_lose_at_fixed_lengths(self, clips: torch.Tensor) -> None:
        network, x = with_words().double(), clips[:1].double()
        found, shares = vlad_contributions(network, x, 1)
        with torch.no_grad():
            places, pooling = network.descriptors(x), network.vlad
            sums = pooling(places[None])[0]
            lengths = sums.norm(dim=1, keepdim=True)
            whole = (sums / lengths).norm()
            weight = network.classifier.weight[1].view_as(sums)
            for number in (0, 7, len(places) - 1):
                share = pooling.shares(places[None])[0, number]
                own = share[:, None] * (places[number] - pooling.centres)
                lost = (weight * own / lengths).sum() / whole
                torch.testing.assert_close(found.flatten()[number], lost)
        torch.testing.assert_close(shares, network.assignments(x))

    def test_a_word_can_be_mapped(self, clips: torch.Tensor) -> None:
        network = with_words()
        maps = [vlad(network, clips, 0, word=word) for word in range(5)]
        torch.testing.assert_close(sum(maps), torch.ones(2, 6, *SIZE))
        with torch.no_grad():
            small = network.assignments(clips)[:, :, 3]
        large = torch.nn.functional.interpolate(small[:, None], size=(6, *SIZE), mode="trilinear")[:, 0]
        torch.testing.assert_close(maps[3], large)

    @pytest.mark.parametrize(
        ("options", "word", "message"),
        [({}, 5, "from 0 to 4"), ({}, True, "no word"), ({"pooling": "average"}, None, "into words")],
    )
    def test_faults_are_named(self, options: dict, word: object, message: str, clips: torch.Tensor) -> None:
        with pytest.raises(ConfigError, match=message):
            vlad(with_words(**options), clips, 0, word=word)  # type: ignore[arg-type]

    def test_over_a_study_slices_have_contributions_and_words(self) -> None:
        volume = study(6, SIZE)
        network = with_words()
        whole = {"sampling": SamplingConfig(clip_length=6), "protocol": ProtocolConfig(stage="logits")}
        one = member(network, **whole)
        found = {curve.name: curve for curve in curves_of([one], volume, output="b")}
        score = one.predictor.score(volume)
        expected = float(score.logits[1]) - float(network.classifier.bias[1].detach())
        assert float(found["contribution"].values.sum()) == pytest.approx(expected, rel=1e-3, abs=1e-4)
        words = [curve for curve in found.values() if curve.group == "words"]
        assert [curve.name for curve in words] == [f"word_{number}" for number in range(5)]
        np.testing.assert_allclose(sum(curve.values for curve in words), 1, rtol=1e-5)
        # Words are a member's own and have no mean.
        both = curves_of([one, member(with_words(), name="fold-1", **whole)], volume, output="b")
        assert [curve.name for curve in both] == ["alone", "contribution"]


def test_where_clips_overlap_a_slice_has_the_mean_and_outside_there_is_none() -> None:
    network, volume = built("temporal-attention", steps=1), study(12, SIZE)
    protocol = ProtocolConfig(clips=2)
    one = member(network, protocol=protocol, intensity=PLAIN)
    found = {curve.name: curve.values for curve in curves_of([one], volume, output="b")}["attention"]
    clips = protocol_clips(12, clip_length=4, clips=2)
    expected = np.full(12, np.nan)
    for clip in clips:
        x = torch.from_numpy(volume.read().astype(np.float32))[clip][None, None]
        with torch.no_grad():
            expected[clip] = network.attention(x)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.isnan(found).any()


@pytest.mark.parametrize("output", ["no", "yes"])
def test_what_speaks_for_one_of_two_classes_speaks_against_the_other(output: str) -> None:
    network = create("slice-mean", num_classes=1, width=1 / 16)
    (alone,) = curves_of([member(network, task="binary")], study(6, SIZE), output=output)
    with torch.no_grad():
        one = torch.from_numpy(study(6, SIZE).read().astype(np.float32))[None, None]
        expected = network.eval()(one[:, :, 2:3])[0, 0] * (1 if output == "yes" else -1)
    assert alone.values[2] == pytest.approx(float(expected), rel=1e-3)


def test_curves_are_drawn_with_gaps_where_there_is_nothing() -> None:
    values = np.array([np.nan, 1.0, -2.0, 0.5], dtype=np.float32)
    curves = [
        Curve("evidence", "evidence", "", values),
        Curve("attention", "attention", "", np.abs(values)),
        Curve("attention_step_1", "attention", "", np.abs(values)),
    ]
    positions = np.array([10.0, 5.0, 0.0, -5.0])
    found = draw_curves(curves, positions, title="a $study$: evidence for <yes>")
    root = ElementTree.fromstring(str(found["svg"]))
    assert root.tag.endswith("svg")
    text = "".join(root.itertext())
    assert "a $study$: evidence for <yes>" in text
    assert "attention step 1" in text
    picture = found["png"]
    assert isinstance(picture, bytes)
    with Image.open(io.BytesIO(picture)) as image:
        assert image.width > 800
    assert draw_curves(curves, positions, title="same") == draw_curves(curves, positions, title="same")
    empty = [Curve("evidence", "evidence", "", np.full(1, np.nan, dtype=np.float32))]
    assert draw_curves(empty, np.zeros(1), title="one")["png"]

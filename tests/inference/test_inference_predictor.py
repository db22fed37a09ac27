"""Scores against the plainest loop that could give them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import nn

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig, StreamsConfig
from volrec.data import streams as streams_module
from volrec.data.entries import StoredVolume, study_quantiles
from volrec.errors import ConfigError, DataError
from volrec.inference import Ensemble, Predictor
from volrec.inference import predictor as module
from volrec.inference.consensus import inverse_link, link, pool
from volrec.inference.slicewise import TOGETHER
from volrec.networks import create, list_networks, spec
from volrec.transforms.clips import protocol_clips

PLAIN = IntensityConfig(kind="none")


def volume(slices: int = 21, size: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, (slices, size, size)).astype(np.int16)


def slice_network(outputs: int = 1, channels: int = 1) -> nn.Module:
    torch.manual_seed(3)
    network = create("slice-mean", num_classes=outputs, in_channels=channels, width=0.125)
    nn.init.normal_(network.classifier.weight)
    return network


class Recorder(nn.Module):
    """Gives the mean and the first corner of each clip, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.batches: list[torch.Tensor] = []
        self.modes: list[tuple[bool, bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(x.clone())
        self.modes.append((self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return torch.stack([x.mean((1, 2, 3, 4)), x[:, 0, 0, 0, 0]], dim=1) * self.weight


def predictor(network: nn.Module, task: str = "binary", **options: object) -> Predictor:
    given = {
        "intensity": PLAIN,
        "sampling": SamplingConfig(clip_length=8),
        "protocol": ProtocolConfig(),
    } | options
    return Predictor(network, task=task, **given)  # type: ignore[arg-type]


SLICEWISE = [name for name in list_networks() if spec(name).slicewise]


def filled(batch: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])])


def one_by_one(network: nn.Module, clip: torch.Tensor, size: int) -> torch.Tensor:
    """Return the logits (1, K) of a clip (1, C, T, H, W) that shares nothing with other clips.

    Batches of slices have the size that they have in the study, and of slice vectors that of `TOGETHER`.
    """
    slices = clip[0].transpose(0, 1)
    parts = [network.encode_slices(filled(part, size))[: len(part)] for part in slices.split(size)]
    features = torch.cat(parts)[None]
    return network.aggregate(filled(features, TOGETHER if features.ndim == 3 else 1))[:1]


@pytest.mark.parametrize("portion", [1, 5, 100])
@pytest.mark.parametrize(("stage", "consensus"), [("logits", "mean"), ("probabilities", "mean"), ("logits", "max")])
def test_slices_encoded_once_give_bit_equal_scores_to_clips_run_one_by_one(
    stage: str, consensus: str, portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = volume()
    monkeypatch.setattr(module, "BUDGET", portion * 2 * 24 * 24)
    intensity = IntensityConfig(kind="window", windows=["brain", "bone"])
    network = slice_network(channels=2)
    protocol = ProtocolConfig(stage=stage, consensus=consensus, overlap=0.75)
    scorer = predictor(network, intensity=intensity, protocol=protocol)
    found = scorer.score(voxels)

    clips = protocol_clips(len(voxels), clip_length=8, overlap=0.75)
    assert len(clips) > 4
    table = torch.from_numpy(study_quantiles(voxels))[None]
    network.eval()
    size = {1: 2, 5: 5, 100: 21}[portion]  # 21 slices: 11 batches of 2, 5 of 5, one of all
    with torch.inference_mode():
        shown = [scorer.input.intensity(torch.from_numpy(voxels[clip])[None, None], table) for clip in clips]
        logits = torch.cat([one_by_one(network, clip, size) for clip in shown])
        plain = torch.cat([network(clip) for clip in shown])
    scores, pooled = pool(logits.double().numpy()[:, None], task="binary", consensus=consensus, stage=stage)
    assert found.clips == len(clips)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.logits, pooled)
    scores, _ = pool(plain.double().numpy()[:, None], task="binary", consensus=consensus, stage=stage)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.5, 7 / 8])
@pytest.mark.parametrize("name", SLICEWISE)
def test_clips_of_every_slicewise_network_share_slices_without_a_changed_bit(name: str, overlap: float) -> None:
    torch.manual_seed(4)
    network = create(name, num_classes=3, width=1 / 16)
    side = max(24, network.smallest[1])
    voxels = np.random.default_rng(1).normal(size=(21, side, side)).astype(np.float32)
    protocol = ProtocolConfig(overlap=overlap, stage="logits")
    found = predictor(network, "multiclass", protocol=protocol).score(voxels)
    clips = [torch.from_numpy(voxels[clip])[None, None] for clip in protocol_clips(21, clip_length=8, overlap=overlap)]
    assert found.clips == len(clips) == {0.5: 5, 7 / 8: 14}[overlap]
    network.eval()
    with torch.inference_mode():
        each = torch.cat([one_by_one(network, clip, 21) for clip in clips]).double().numpy()
        plain = torch.cat([network(clip) for clip in clips]).double().numpy()
    np.testing.assert_array_equal(
        found.logits, pool(each[:, None], task="multiclass", consensus="mean", stage="logits")[1]
    )
    np.testing.assert_allclose(found.logits, plain.mean(axis=0), rtol=1e-5, atol=1e-5)


def test_a_slicewise_network_encodes_each_slice_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = slice_network()
    seen = []
    encode = network.encode_slices
    monkeypatch.setattr(network, "encode_slices", lambda x: seen.append(len(x)) or encode(x))
    predictor(network, protocol=ProtocolConfig(overlap=0.75)).score(volume(21))
    assert sum(seen) == 21


@pytest.mark.parametrize("flips", [["T"], ["W"], ["H", "W"], ["T", "H", "W"]])
def test_mirrored_views_of_slicewise_networks_equal_mirrored_clips(flips: list[str]) -> None:
    class Ordered(type(slice_network())):  # type: ignore[misc]
        """Weighs slices by their place, so that a mirror along T matters."""

        def aggregate(self, features: torch.Tensor, *, pre_logits: bool = False) -> torch.Tensor:
            place = torch.linspace(0, 1, features.shape[1])[None, :, None]
            return self.classifier((features * place).mean(1))

    network = slice_network()
    network.__class__ = Ordered
    voxels = volume(12)
    found = predictor(network, protocol=ProtocolConfig(flips=flips, stage="logits", clips=1)).score(voxels)
    clip = torch.from_numpy(voxels[protocol_clips(12, clip_length=8, clips=1)[0]])[None, None].float()
    axes = {"T": 2, "H": 3, "W": 4}
    network.eval()
    with torch.inference_mode():
        views = [clip]
        for axis in flips:
            views += [view.flip(axes[axis]) for view in views]
        expected = torch.cat([network(view) for view in views]).mean().item()
        unmirrored = network(clip).item()
    assert found.logits[0] == pytest.approx(expected, rel=1e-5)
    assert found.logits[0] != pytest.approx(unmirrored, rel=1e-3)


def test_clips_are_read_in_batches_of_bounded_size_and_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Recorder()
    voxels = volume(60)
    whole = predictor(network, task="multilabel").score(voxels)
    monkeypatch.setattr(module, "BUDGET", 3 * 8 * 24 * 24)
    network.batches.clear()
    parted = predictor(network, task="multilabel").score(voxels)
    assert [len(batch) for batch in network.batches] == [3, 3, 3, 3, 2]
    np.testing.assert_allclose(parted.scores, whole.scores, rtol=1e-12)
    clips = protocol_clips(60, clip_length=8, overlap=0.5)
    shown = torch.cat(network.batches)[:, 0].numpy()
    np.testing.assert_array_equal(shown, np.stack([voxels[clip] for clip in clips]))


def test_evenly_spaced_snippets_are_the_one_clip_of_a_study() -> None:
    network = Recorder()
    sampling = SamplingConfig(clip_length=6, snippet_length=2, train="segments")
    voxels = volume(60)
    scorer = predictor(network, task="multilabel", sampling=sampling, protocol=ProtocolConfig(snippets=5))
    assert scorer.score(voxels).clips == 1
    begins = [0, 14, 29, 43, 58]  # steps of (60 - 2) / 4, places rounded down
    expected = voxels[[begin + step for begin in begins for step in range(2)]]
    np.testing.assert_array_equal(network.batches[0][0, 0].numpy(), expected)
    spread = predictor(network, task="multilabel", sampling=sampling).score(voxels)
    assert spread.clips == 10  # 30 snippets show every slice


def test_the_network_is_scored_in_evaluation_mode_and_left_as_it_was() -> None:
    network = nn.Sequential(Recorder())
    frozen = nn.BatchNorm1d(2)
    network.append(frozen)
    network.train()
    frozen.eval()
    predictor(network, task="multilabel").score(volume())
    assert network[0].modes[0] == (False, False, True)
    assert network.training
    assert network[0].training
    assert not frozen.training
    assert int(frozen.num_batches_tracked) == 0


def test_a_short_study_is_padded_to_a_clip_and_scored_once() -> None:
    network = Recorder()
    found = predictor(network, task="multilabel").score(volume(3))
    assert found.clips == 1
    assert network.batches[0].shape == (1, 1, 8, 24, 24)


def test_only_the_slices_of_the_clips_at_hand_are_read() -> None:
    read = []

    class Counted(StoredVolume):
        def read(self, indices=None):  # type: ignore[no-untyped-def]
            read.append(len(indices))
            return super().read(indices)

    voxels = volume(100)
    stored = Counted(voxels, np.eye(4), study_quantiles(voxels))
    predictor(Recorder(), task="multilabel", protocol=ProtocolConfig(clips=1)).score(stored)
    assert read == [8]


def test_the_stored_quantiles_normalise_as_those_of_the_voxels_do() -> None:
    voxels = volume()
    scorer = predictor(Recorder(), task="regression", intensity=IntensityConfig(kind="zscore"))
    stored = StoredVolume(voxels, np.eye(4), study_quantiles(voxels))
    by_hand = scorer.score(voxels, study_quantiles(voxels)).scores
    np.testing.assert_array_equal(scorer.score(stored).scores, by_hand)
    np.testing.assert_array_equal(scorer.score(torch.from_numpy(voxels)[None]).scores, by_hand)
    assert not np.array_equal(scorer.score(voxels, study_quantiles(voxels * 2)).scores, by_hand)


def test_tasks_give_probabilities_or_values_in_the_targets_own_units() -> None:
    voxels = volume()
    network = Recorder()
    logits = predictor(network, task="regression", protocol=ProtocolConfig(clips=1)).score(voxels).logits
    one = ProtocolConfig(clips=1)
    np.testing.assert_allclose(predictor(network, "multilabel", protocol=one).score(voxels).scores, expit(logits))
    np.testing.assert_allclose(predictor(network, "multiclass", protocol=one).score(voxels).scores, softmax(logits))
    scaled = predictor(network, "regression", protocol=one, regression_scaling={"mean": [10, -5], "std": [2, 0.5]})
    np.testing.assert_allclose(scaled.score(voxels).scores, logits * [2, 0.5] + [10, -5])
    np.testing.assert_allclose(scaled.score(voxels).logits, logits)


def test_scores_of_single_slices_are_those_of_studies_of_one_slice() -> None:
    network = slice_network(outputs=3)
    voxels = volume(10)
    windowed = IntensityConfig(kind="window", windows=["bone"])
    found = predictor(network, "multiclass", intensity=windowed).score(voxels, per_slice=True).per_slice
    assert found is not None
    assert found.shape == (10, 3)
    alone = predictor(network, "multiclass", intensity=windowed, sampling=SamplingConfig(clip_length=1))
    np.testing.assert_allclose(found[4], alone.score(voxels[4:5]).scores, rtol=1e-5)
    strided = predictor(network, "multiclass", sampling=SamplingConfig(clip_length=2), protocol=ProtocolConfig(clips=1))
    few = strided.score(voxels, per_slice=True).per_slice
    assert few is not None
    assert np.isnan(few).all(axis=1).tolist() == [True] * 4 + [False] * 2 + [True] * 4


@pytest.mark.parametrize("stage", ["logits", "probabilities"])
def test_a_slice_has_the_mean_score_of_the_clips_that_hold_it(stage: str) -> None:
    torch.manual_seed(0)
    network = create("c3d", num_classes=2, width=1 / 16).eval()
    nn.init.normal_(network.get_classifier().weight)
    voxels = np.random.default_rng(0).normal(size=(21, 24, 24)).astype(np.float32)
    protocol = ProtocolConfig(stage=stage, consensus="max", clips=2, flips=["W"])
    scorer = predictor(network, "multiclass", protocol=protocol)
    found = scorer.score(voxels, per_slice=True).per_slice
    assert scorer.score(voxels).per_slice is None
    each = []
    for clip in ([*range(8)], [*range(13, 21)]):
        x = torch.from_numpy(voxels[clip])[None, None]
        with torch.no_grad():
            views = torch.cat([network(x), network(x.flip(-1))]).double().numpy()
        each.append(softmax(views, axis=1).mean(0) if stage == "probabilities" else softmax(views.mean(0)))
    expected = np.full((21, 2), np.nan)
    expected[:8], expected[13:] = each
    np.testing.assert_allclose(found, expected, atol=1e-6)
    whole = predictor(network, "multiclass", protocol=ProtocolConfig(overlap=0.5)).score(voxels, per_slice=True)
    assert np.isfinite(whole.per_slice).all()
    short = predictor(network, "multiclass").score(voxels[:3], per_slice=True)
    np.testing.assert_allclose(short.per_slice, np.broadcast_to(short.scores, (3, 2)))


def test_slices_between_two_clips_have_the_mean_of_both() -> None:
    network = Recorder()
    voxels = volume(12)
    found = predictor(network, "regression", protocol=ProtocolConfig(clips=2)).score(voxels, per_slice=True).per_slice
    first, last = (np.array([voxels[part].mean(), voxels[part][0, 0, 0]]) for part in (slice(0, 8), slice(4, 12)))
    expected = np.concatenate([[first] * 4, [(first + last) / 2] * 4, [last] * 4])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_single_slices_are_scored_as_many_at_a_time_as_a_clip_has(monkeypatch: pytest.MonkeyPatch) -> None:
    network = create("time-conv", num_classes=2, width=1 / 32, backbone="vgg-16")
    nn.init.normal_(network.classifier.weight)
    seen: list[int] = []
    whole = network.slice_logits
    monkeypatch.setattr(network, "slice_logits", lambda features: (seen.append(features.shape[1]), whole(features))[1])
    voxels = volume(11)
    short = predictor(network, "multiclass", sampling=SamplingConfig(clip_length=4)).score(voxels, per_slice=True)
    assert seen == [4, 4, 3]
    full = predictor(network, "multiclass", sampling=SamplingConfig(clip_length=11)).score(voxels, per_slice=True)
    np.testing.assert_allclose(short.per_slice, full.per_slice, rtol=1e-4)


def test_an_ensemble_is_the_mean_of_its_members_scores() -> None:
    voxels = volume()
    members = []
    for seed in range(3):
        network = slice_network(outputs=2)
        torch.manual_seed(seed)
        nn.init.normal_(network.classifier.weight)
        members.append(predictor(network, "multiclass"))
    scores = [member.score(voxels).scores for member in members]
    found = Ensemble(members).score(voxels)
    np.testing.assert_allclose(found.scores, np.mean(scores, axis=0))
    np.testing.assert_allclose(link(found.logits, "multiclass"), found.scores)
    with pytest.raises(ConfigError, match="at least one member"):
        Ensemble([])


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match=r"\(24, 24\)"):
        predictor(Recorder()).score(volume()[0])
    with pytest.raises(ConfigError, match="from T x H x W"):
        predictor(slice_network()).score(volume(size=4))

    class Broken(Recorder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * float("nan")

    with pytest.raises(DataError, match="no numbers"):
        predictor(Broken()).score(volume())


@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass", "regression"])
@pytest.mark.parametrize("stage", ["logits", "probabilities"])
@pytest.mark.parametrize("consensus", ["mean", "max"])
def test_consensus_is_views_averaged_then_clips_pooled_at_the_named_stage(
    task: str, stage: str, consensus: str
) -> None:
    outputs = np.random.default_rng(5).normal(size=(4, 2, 1 if task == "binary" else 3)) * 3
    scores, logits = pool(outputs, task=task, consensus=consensus, stage=stage)
    values = []
    for clip in outputs:
        views = [view if stage == "logits" or task == "regression" else link(view, task) for view in clip]
        values.append(sum(views) / 2)
    pooled = sum(values) / 4 if consensus == "mean" else np.maximum.reduce(values)
    if task == "regression":
        expected = pooled
    elif stage == "logits":
        expected = softmax(pooled) if task == "multiclass" else expit(pooled)
    else:
        expected = pooled / pooled.sum() if task == "multiclass" else pooled
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    np.testing.assert_allclose(link(logits, task), scores, rtol=1e-9)


@pytest.mark.parametrize(
    ("consensus", "stage"),
    [
        ("mean", "logits"),
        ("max", "logits"),
        ("mean", "probabilities"),
        ("max", "probabilities"),
        ("sci", "probabilities"),
    ],
)
def test_each_head_is_pooled_by_itself(consensus: str, stage: str) -> None:
    outputs = np.random.default_rng(5).normal(size=(4, 2, 5)) * 3
    rule = {"consensus": consensus, "stage": stage}
    scores, logits = pool(outputs, task="multihead", heads=(3, 2), **rule)
    first, second = (pool(part, task="multiclass", **rule)[0] for part in (outputs[..., :3], outputs[..., 3:]))
    np.testing.assert_array_equal(scores, np.concatenate([first, second]))
    np.testing.assert_allclose(link(logits, "multihead", heads=(3, 2)), scores, rtol=1e-9)
    np.testing.assert_allclose(link(inverse_link(scores, "multihead"), "multihead", heads=(3, 2)), scores, rtol=1e-9)


def test_certain_scores_keep_finite_logits() -> None:
    for task in ("binary", "multiclass"):
        logits = inverse_link(np.array([0.0, 1.0]), task)
        assert np.isfinite(logits).all()


def test_unknown_words_in_a_consensus_are_named() -> None:
    with pytest.raises(ConfigError, match=r"stage must be one of logits, probabilities, got 'scores'"):
        pool(np.zeros((1, 1, 1)), task="binary", consensus="mean", stage="scores")


@pytest.mark.parametrize("protocol", [{"clips": 0}, {"snippets": 25}, {"clips": 5}], ids=str)
def test_segments_that_overlap_cost_one_encoding_a_slice_and_fields_are_computed_once(protocol, monkeypatch):
    streams = StreamsConfig(inputs=["intensity", "flow"], flow={"method": "farneback", "stack": 2})
    network = create("tsn", num_classes=1, in_channels=5, width=1 / 16).eval()
    scorer = Predictor(
        network,
        intensity=IntensityConfig(kind="percentile"),
        sampling=SamplingConfig(clip_length=7, train="segments"),
        protocol=ProtocolConfig(**protocol),
        task="binary",
        streams=streams,
    )
    voxels = np.random.default_rng(0).normal(size=(40, 32, 32)).astype(np.float32)
    encoded, computed = [], []
    encode, compute = network.encode_slices, streams_module._compute
    monkeypatch.setattr(network, "encode_slices", lambda x: encoded.append(len(x)) or encode(x))
    monkeypatch.setattr(streams_module, "_compute", lambda *a, **k: computed.append(1) or compute(*a, **k))
    found = Ensemble([scorer, scorer]).score(voxels)
    clips = protocol_clips(40, clip_length=7, mode="segments", clips=protocol.get("clips", 0),
                           snippets=protocol.get("snippets", 0))  # fmt: skip
    assert sum(encoded) == 2 * len(np.unique(np.concatenate(clips)))
    assert len(computed) == 1
    # The same as reading each clip by itself.
    volume = scorer.complete(voxels)
    with torch.inference_mode():
        logits = [network(scorer._input(volume, [clip])) for clip in clips]
    expected = torch.cat(logits).sigmoid().double().mean()
    assert found.scores[0] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("name", ["slice-mean", "c3d", "tsn"])
@pytest.mark.parametrize("flips", [[], ["W", "T"]])
def test_features_are_what_enters_the_last_layer_over_clips_and_mirrors(name: str, flips: list[str]) -> None:
    torch.manual_seed(0)
    network = create(name, num_classes=2, width=0.0625)
    voxels = volume(21, 32)
    found = predictor(network, "multiclass", protocol=ProtocolConfig(flips=flips)).features(voxels)
    assert found.shape == (network.num_features,)
    assert network.training  # left as it was
    network.eval()
    each = []
    for clip in protocol_clips(21, clip_length=8, overlap=ProtocolConfig().overlap):
        x = torch.from_numpy(voxels[clip].astype(np.float32))[None, None]
        for axes in ([], [-1], [-3], [-3, -1]) if flips else ([],):
            with torch.no_grad():
                each.append(network.forward_head(network.forward_features(x.flip(axes)), pre_logits=True)[0].numpy())
    assert len(each) > 3
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4, atol=1e-4)


def test_features_of_a_module_that_does_not_know_its_last_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match="Recorder"):
        predictor(Recorder()).features(volume())

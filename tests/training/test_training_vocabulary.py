"""Words by k-means: planted ones are found, again and again, and nothing else of the network moves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from volrec import networks
from volrec.data.datasets import ClipDataset, StudySampler, clip_loader
from volrec.errors import ConfigError, DataError
from volrec.training.module import make_transform
from volrec.training.vocabulary import fit_words, has_words
from volrec.transforms.batch import BatchTransform
from volrec.transforms.intensity import BatchIntensity
from volrec.transforms.stream_input import StreamInput

PLAIN = BatchTransform(BatchIntensity("none"))
CENTRES = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0], [0.6, 0, -0.8]])


class Planted(nn.Module):
    """Each voxel is the number of a word, and its descriptor that word with a little noise."""

    def __init__(self, num_words: int = 4, noise: float = 0.02) -> None:
        super().__init__()
        self.num_words = num_words
        self.noise = noise
        self.words = nn.Parameter(torch.zeros(num_words, 3))
        self.seen: list[tuple[bool, Tensor]] = []

    def descriptors(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, x))
        which = x.flatten().long()
        turn = torch.arange(len(which), dtype=torch.float32)[:, None] * torch.tensor([1.0, 2.3, 3.7])
        return CENTRES[which] + self.noise * torch.sin(turn)

    def set_words(self, centres: Tensor) -> None:
        with torch.no_grad():
            self.words.copy_(centres)


def planted_batches(count: int = 3) -> list[dict[str, Tensor]]:
    rng = np.random.default_rng(0)
    return [
        {"image": torch.from_numpy(rng.integers(0, 4, (2, 1, 3, 6, 5)).astype(np.int16)), "valid": torch.ones(2) > 0}
        for _ in range(count)
    ]


def distances(words: Tensor) -> Tensor:
    """How far the nearest found word is from each planted one."""
    return torch.cdist(CENTRES, words.detach()).amin(1)


def test_planted_words_are_found():
    network = Planted()
    assert fit_words(network, planted_batches(), transform=PLAIN, seed=0) == 3 * 2 * 90
    assert (distances(network.words) < 0.01).all()


def test_same_seed_gives_the_same_words_and_another_seed_another_draw():
    found = []
    for seed in (0, 0, 1):
        network = Planted(noise=0.3)
        fit_words(network, planted_batches(), transform=PLAIN, seed=seed, per_clip=40)
        found.append(network.words.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_global_random_numbers_are_neither_used_nor_moved():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - scikit-learn falls back on this generator
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    fit_words(Planted(), planted_batches(), transform=PLAIN, seed=0)
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3) == expected[1]).all()  # noqa: NPY002


def test_every_clip_gives_as_many_until_there_are_enough():
    network = Planted()
    assert fit_words(network, planted_batches(), transform=PLAIN, seed=0, per_clip=7) == 3 * 2 * 7
    batches = iter(planted_batches())
    network = Planted()
    assert fit_words(network, batches, transform=PLAIN, seed=0, per_clip=20, limit=50) == 50
    assert len(network.seen) == 2
    assert len(list(batches)) == 1


def test_clips_that_could_not_be_read_are_left_out():
    batches = planted_batches()
    batches[1]["valid"] = torch.tensor([False, True])
    batches[2]["valid"] = torch.tensor([False, False])
    network = Planted()
    assert fit_words(network, batches, transform=PLAIN, seed=0) == 3 * 90
    assert torch.equal(network.seen[1][1], batches[1]["image"][1:].float())


def test_motion_is_among_what_words_are_found_in():
    transform = BatchTransform(StreamInput(BatchIntensity("none"), ("intensity", "flow"), bound=2.0, units="mm"))
    fields = torch.zeros(2, 2, 2, 32, 32, dtype=torch.int16)
    fields[:, 0] = 32767 // 128  # nearly a voxel along W
    batch = {"image": torch.randn(2, 1, 2, 32, 32), "fields": fields, "pixel": torch.full((2, 2), 0.5)}
    network = networks.create("actionvlad", num_classes=2, in_channels=3, width=1 / 16, words=4)
    read = []
    network.descriptors = lambda x, plain=network.descriptors: read.append(x) or plain(x)
    fit_words(network, [batch], transform=transform, seed=0)
    assert read[0].shape == (2, 3, 2, 32, 32)
    torch.testing.assert_close(read[0][:, 1], torch.full((2, 2, 32, 32), 0.25), atol=2e-3, rtol=0)
    assert not read[0][:, 2].any()


def test_network_runs_in_evaluation_mode_and_goes_on_as_it_was():
    network = networks.create("actionvlad", num_classes=2, width=1 / 16, words=4)
    network.dropout.eval()
    before = copy.deepcopy(network.state_dict())
    batches = [{"image": torch.randn(2, 1, 2, 32, 32)} for _ in range(3)]
    fit_words(network, batches, transform=PLAIN, seed=0)
    after = network.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "vlad.weight",
        "vlad.bias",
        "vlad.centres",
    }
    assert [name for name, module in network.named_modules() if not module.training] == ["dropout"]
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_words_are_centres_of_the_descriptors_nearest_to_them():
    network = networks.create("actionvlad", num_classes=2, width=1 / 16, words=5, network="slice-mean")
    batches = [{"image": torch.randn(2, 1, 3, 32, 32)} for _ in range(3)]
    assert fit_words(network, batches, transform=PLAIN, seed=3, per_clip=10_000) == 3 * 2 * 3 * 16
    found = torch.cat([network.eval().descriptors(batch["image"]) for batch in batches])
    nearest = torch.cdist(found, network.vlad.centres).argmin(1)
    means = torch.stack([found[nearest == word].mean(0) for word in range(5)])
    torch.testing.assert_close(network.vlad.centres, means, rtol=1e-3, atol=1e-4)


def test_batches_of_the_loader_are_normalised_but_not_augmented(tiny):
    transform = make_transform(
        {"kind": "percentile", "windows": [], "percentiles": (0.5, 99.5)},
        {"flip": {"T": 1.0, "H": 0.0, "W": 0.0}, "spatial_probability": 1.0, "noise": 0.5},
    )
    from volrec.config import SamplingConfig

    clips = ClipDataset(tiny.cases, tiny.entries, store=tiny.store, sampling=SamplingConfig(clip_length=6))
    loader = clip_loader(clips, StudySampler(len(clips)), batch_size=4)
    network = Planted()
    network.descriptors = lambda x: (network.seen.append((network.training, x)), x.reshape(-1, 3))[1]  # type: ignore[method-assign]
    fit_words(network, loader, transform=transform, seed=0)
    assert len(network.seen) == 3
    assert not any(training for training, _ in network.seen)
    for (_, images), batch in zip(network.seen, loader, strict=True):
        assert torch.equal(images, transform(batch, augment=False)["image"])
        assert 0 <= images.min() <= images.max() <= 1


def test_fewer_descriptors_than_words_are_refused():
    flat = [{"image": torch.ones(2, 1, 3, 6, 5)}]
    with pytest.raises(DataError, match="4 words need as many different descriptors, but 1 were found"):
        fit_words(Planted(noise=0.0), flat, transform=PLAIN, seed=0)
    with pytest.raises(DataError, match="but 0 were found"):
        fit_words(Planted(), [], transform=PLAIN, seed=0)
    with pytest.raises(DataError, match="400 words need as many different descriptors, but 180 were found"):
        fit_words(Planted(400), planted_batches(1), transform=PLAIN, seed=0)


def test_descriptors_that_are_no_numbers_are_refused():
    network = Planted(noise=float("nan"))
    with pytest.raises(DataError, match="not finite"):
        fit_words(network, planted_batches(), transform=PLAIN, seed=0)
    assert (network.words == 0).all()


@pytest.mark.parametrize("name", ["slice-mean", "actionvlad"])
def test_networks_without_words_are_refused(name):
    options = {"pooling": "average"} if name == "actionvlad" else {}
    network = networks.create(name, num_classes=2, width=1 / 16, **options)
    assert not has_words(network)
    with pytest.raises(ConfigError, match=f"{name} has no words to set"):
        fit_words(network, [], transform=PLAIN, seed=0)
    assert has_words(networks.create("actionvlad", num_classes=2, width=1 / 16))


def test_numbers_below_one_are_refused():
    with pytest.raises(ConfigError, match="at least 1, got 0 and 5"):
        fit_words(Planted(), planted_batches(), transform=PLAIN, seed=0, per_clip=0, limit=5)

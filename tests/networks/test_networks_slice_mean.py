from __future__ import annotations

import torch

from volrec.networks import create


def test_the_order_of_the_slices_does_not_matter():
    torch.manual_seed(0)
    network = create("slice-mean", num_classes=2, width=0.25).eval()
    x = torch.randn(2, 1, 6, 20, 22)
    torch.testing.assert_close(network(x.flip(2)), network(x), rtol=1e-5, atol=1e-6)


def test_a_stack_of_one_repeated_slice_is_scored_as_the_slice():
    torch.manual_seed(0)
    network = create("slice-mean", num_classes=2, width=0.25).eval()
    x = torch.randn(2, 1, 1, 20, 22)
    torch.testing.assert_close(network(x.expand(-1, -1, 9, -1, -1)), network(x), rtol=1e-5, atol=1e-6)


def test_slice_logits_average_to_the_logits():
    torch.manual_seed(0)
    network = create("slice-mean", num_classes=3, width=0.25).eval()
    features = network.forward_features(torch.randn(2, 1, 6, 20, 22))
    torch.testing.assert_close(
        network.slice_logits(features).mean(1), network.aggregate(features), rtol=1e-5, atol=1e-6
    )


def test_pooling_options_take_the_maximum():
    network = create("slice-mean", num_classes=2, width=0.25, slice_pooling="max", spatial_pooling="max").eval()
    maps = network.encoder(torch.randn(3, 1, 16, 16))
    x = torch.randn(3, 1, 16, 16)
    assert torch.equal(network.encode_slices(x), network.encoder(x).flatten(2).max(2).values)
    assert maps.shape[2:] == (2, 2)
    features = torch.randn(2, 5, network.num_features)
    assert torch.equal(network.aggregate(features, pre_logits=True), features.max(1).values)

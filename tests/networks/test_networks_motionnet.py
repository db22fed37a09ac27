from __future__ import annotations

import pytest
import torch
from moving import endpoint_errors, moving_blobs
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from volrec.errors import ConfigError
from volrec.networks.motion_losses import motion_loss
from volrec.networks.motionnet import MotionNet, TinyMotionNet


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def full_size(kind, in_channels: int, slices: int) -> tuple[int, float, dict[str, tuple[int, ...]]]:
    """Return parameters, multiply-adds in 10^9 and the output of each layer, at 224 x 224 and without allocation."""
    with torch.device("meta"):
        network, sizes = kind(in_channels, slices), {}
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.register_forward_hook(
                    lambda *call, name=name: sizes.update({name.rpartition(".")[2]: tuple(call[2].shape[1:3])})
                )
        counter = FlopCounterMode(display=False)
        with counter:
            network(torch.empty(1, slices, in_channels, 224, 224))
    return count(network), counter.get_total_flops() / 2e9, sizes


class TestPublishedSizes:
    def test_of_eleven_slices(self):
        parameters, gmacs, sizes = full_size(MotionNet, 3, 11)
        assert parameters == 42_319_860
        assert gmacs == pytest.approx(20.05, abs=0.005)
        table = {"conv1": (64, 224), "conv1_1": (64, 224), "conv2": (128, 112), "conv2_1": (128, 112)}
        table |= {"conv3": (256, 56), "conv3_1": (256, 56), "conv4": (512, 28), "conv4_1": (512, 28)}
        table |= {"conv5": (512, 14), "conv5_1": (512, 14), "conv6": (1024, 7), "conv6_1": (1024, 7)}
        for level, channels, side in ((5, 512, 14), (4, 256, 28), (3, 128, 56), (2, 64, 112)):
            table |= {f"deconv{level}": (channels, side), f"upsample_flow{level + 1}to{level}": (20, side)}
            table |= {f"smooth_conv{level}": (channels, side), f"predict_flow{level}": (20, side)}
        assert sizes == table | {"predict_flow6": (20, 7)}

    def test_of_two_slices(self):
        parameters, gmacs, _ = full_size(MotionNet, 3, 2)
        assert parameters / 1e6 == pytest.approx(41.80, abs=0.005)
        assert gmacs == pytest.approx(18.75, abs=0.005)

    def test_of_the_small_form(self):
        parameters, _, sizes = full_size(TinyMotionNet, 3, 11)
        assert parameters / 1e6 == pytest.approx(1.95, abs=0.005)
        table = {"conv1": (64, 224), "conv2": (128, 112), "conv3": (256, 56), "conv4": (128, 28)}
        table |= {"predict_flow4": (20, 28), "deconv3": (128, 56), "upsample_flow4to3": (20, 56)}
        table |= {"smooth_conv3": (128, 56), "predict_flow3": (20, 56), "deconv2": (64, 112)}
        assert sizes == table | {"upsample_flow3to2": (20, 112), "smooth_conv2": (64, 112), "predict_flow2": (20, 112)}


def doubling(size: int) -> torch.Tensor:
    """Bilinear interpolation by two: 3/4 of the nearest pixel and 1/4 of the next, which at the edge is itself."""
    matrix = torch.zeros(2 * size, size)
    for place in range(2 * size):
        near = place // 2
        matrix[place, near] += 0.75
        matrix[place, min(max(near + (1 if place % 2 else -1), 0), size - 1)] += 0.25
    return matrix


@pytest.mark.parametrize("kind", [MotionNet, TinyMotionNet])
class TestBoth:
    @pytest.mark.parametrize(
        ("slices", "size"), [(2, (48, 48)), (3, (224, 32)), (6, (33, 50)), (4, (7, 1)), (2, (1, 9))]
    )
    def test_read_any_size_and_number_of_slices(self, kind, slices, size):
        network = kind(2, slices, width=1 / 16)
        x = torch.randn(2, slices, 2, *size)
        flows = network(x)
        assert len(flows) == network.levels - 1
        for level, flow in enumerate(flows, 2):
            assert flow.shape == (2, slices - 1, 2, *(-(-side // 2 ** (level - 1)) for side in size))
        assert network.flow(x).shape == (2, slices - 1, 2, *size)
        assert motion_loss(x, flows).isfinite()

    def test_flow_is_the_finest_prediction_times_twenty_enlarged_twice(self, kind):
        network = kind(1, 3, width=1 / 16)
        x = 0.25 * torch.randn(1, 3, 1, 13, 20)
        found = []
        network.decoder["predict_flow2"].register_forward_hook(lambda *call: found.append(call[2]))
        flow = network.flow(x)
        large = 20 * found[0].unflatten(1, (2, 2))
        large = torch.einsum("ph,qw,nfchw->nfcpq", doubling(large.shape[-2]), doubling(large.shape[-1]), large)
        torch.testing.assert_close(flow, large[..., :13, :20])
        torch.testing.assert_close(network(x)[0], 10 * found[0].unflatten(1, (2, 2)))

    def test_computes_the_layers_of_the_table(self, kind):
        """Level by level in float64: what is activated, what is not, and what is put side by side in which order."""
        network = kind(2, 3, width=1 / 16).double()
        weights = {".".join(name.split(".")[-2:]): value for name, value in network.named_parameters()}
        x = torch.randn(1, 3, 2, 17, 32, dtype=torch.float64)

        def convolve(maps, name, stride=1):
            kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            return F.conv2d(maps, kernel, bias, stride, kernel.shape[-1] // 2)

        def enlarge(maps, name):
            return F.conv_transpose2d(maps, weights[f"{name}.weight"], weights[f"{name}.bias"], 2, 1)

        def leak(maps):
            return torch.where(maps > 0, maps, 0.1 * maps)

        maps, skips = torch.cat([x[:, 0], x[:, 1], x[:, 2]], 1), {}
        for level in range(1, network.levels + 1):
            maps = leak(convolve(maps, f"conv{level}", stride=1 if level == 1 else 2))
            maps = leak(convolve(maps, f"conv{level}_1")) if f"conv{level}_1.weight" in weights else maps
            skips[level] = maps
        field = convolve(maps, f"predict_flow{network.levels}")
        expected = {network.levels: field}
        for level in range(network.levels - 1, 1, -1):
            rows, columns = skips[level].shape[-2:]
            parts = (leak(enlarge(maps, f"deconv{level}")), enlarge(field, f"upsample_flow{level + 1}to{level}"))
            maps = torch.cat([skips[level], *(part[..., :rows, :columns] for part in parts)], 1)
            maps = convolve(maps, f"smooth_conv{level}")
            field = expected[level] = convolve(maps, f"predict_flow{level}")
        for level, flow in enumerate(network(x), 2):
            torch.testing.assert_close(flow.flatten(1, 2), 20 / 2 ** (level - 1) * expected[level])

    def test_flow_stays_within_twenty_pixels(self, kind):
        network = kind(1, 2, width=1 / 16)
        with torch.no_grad():
            network.decoder["predict_flow2"].bias.copy_(torch.tensor([7.0, -0.1]))
        flow = network.flow(torch.zeros(1, 2, 1, 16, 16))
        assert (flow[:, :, 0] == 20).all()
        torch.testing.assert_close(flow[:, :, 1], torch.full((1, 1, 16, 16), -2.0))

    def test_levels_are_in_pixels_of_their_own(self, kind):
        network = kind(1, 2, width=1 / 16)
        with torch.no_grad():
            for name, layer in network.decoder.items():
                if name.startswith("predict_flow"):
                    layer.weight.zero_()
                    layer.bias.fill_(1.0)
        scales = [flow[0, 0, 0, 0, 0].item() for flow in network(torch.zeros(1, 2, 1, 64, 64))]
        assert scales == [10, 5, 2.5, 1.25, 0.625][: len(scales)]

    def test_gradients_of_the_finest_field_reach_every_parameter(self, kind):
        network = kind(1, 3, width=1 / 16)
        network.flow(torch.randn(1, 3, 1, 40, 40)).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad.abs().sum() > 0, name

    def test_exports_and_computes_in_float64_and_under_autocast(self, kind):
        network = kind(1, 3, width=1 / 16).eval()
        x = 0.25 * torch.randn(2, 3, 1, 21, 30)
        exact = network.flow(x)
        exported = torch.export.export(network, (x,)).module()(x)
        torch.testing.assert_close(exported, network(x))
        with torch.autocast("cpu", torch.bfloat16):
            rough = network.flow(x)
        assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()
        torch.testing.assert_close(network.double().flow(x.double()).float(), exact, rtol=1e-3, atol=1e-5)

    def test_starts_near_no_motion_where_adapted(self, kind):
        x = moving_blobs(4, slices=3, side=48, seed=0)[0]
        assert 0 < kind(1, 3, width=1 / 4).flow(x).abs().mean() < 0.5
        assert kind(1, 3, width=1 / 4, faithful=True).flow(x).abs().mean() > 1

    def test_a_deepest_level_can_be_named(self, kind):
        network = kind(1, 2, width=1 / 16, levels=3)
        assert [flow.shape[-1] for flow in network(torch.zeros(1, 2, 1, 48, 48))] == [24, 12]
        assert "predict_flow3" in network.decoder
        assert "deconv3" not in network.decoder
        deepest = kind(1, 2, width=1 / 16).levels
        for levels in (2, deepest + 1):
            with pytest.raises(ConfigError, match=f"has levels 3 to {deepest}, got levels={levels}"):
                kind(1, 2, levels=levels)

    def test_one_slice_has_no_motion(self, kind):
        with pytest.raises(ConfigError, match=r"'slices' parameter of .*MotionNet must be an int in \[2, inf\)"):
            kind(1, 1)


def test_released_weights_start_as_in_caffe():
    network = MotionNet(3, 11, width=0.25, faithful=True)
    for layer, inputs in (("predict_flow2", 16 * 9), ("smooth_conv4", (128 + 64 + 20) * 9), ("deconv5", 128 * 16)):
        weight = network.decoder[layer].weight
        assert weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.05)
    assert all((layer.bias == 0).all() for layer in network.decoder.values())


def train(network: MotionNet, *, steps: int, rate: float) -> tuple[list[float], float, float]:
    """Return the loss on other stacks before and after, and the endpoint errors of the fields and of no motion."""
    unseen, step = moving_blobs(32, slices=3, side=32, seed=10_000)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    losses = []
    for index in range(steps + 1):
        if index in (0, steps):
            with torch.no_grad():
                losses.append(motion_loss(unseen, network(unseen)).item())
        stacks, _ = moving_blobs(8, slices=3, side=32, seed=index)
        optimizer.zero_grad()
        motion_loss(stacks, network(stacks)).backward()
        optimizer.step()
    with torch.no_grad():
        return losses, *endpoint_errors(network.flow(unseen), unseen, step)


def test_the_small_form_learns_motion_without_labels():
    losses, error, still = train(TinyMotionNet(1, 3, width=1 / 8), steps=200, rate=0.004)
    assert losses[1] < 0.85 * losses[0]
    assert error < 0.75 * still


@pytest.mark.slow
def test_the_large_form_learns_motion_without_labels():
    losses, error, still = train(MotionNet(1, 3, width=1 / 8), steps=300, rate=0.002)
    assert losses[1] < 0.85 * losses[0]
    assert error < 0.7 * still

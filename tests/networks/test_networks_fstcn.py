from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from volrec.errors import ConfigError
from volrec.networks import create, describe
from volrec.networks.fstcn import TemporalConvolution, TransformPermute

# The smallest faithful network whose layers all have more than one channel.
TINY = {"num_classes": 2, "faithful": True, "width": 0.02, "filters": 32}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shapes(**options) -> dict[str, list[int]]:
    return {layer["name"]: layer["output"] for layer in describe("fstcn", **options)["layers"]}


def parts(network: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}


def meta(**options) -> nn.Module:
    with torch.device("meta"):
        return create("fstcn", **{"num_classes": 101, "faithful": True, **options})


def space_and_time(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return network.forward_features(x).chunk(2, dim=1)


class TestThePapersNetwork:
    @pytest.mark.parametrize(("padding", "sides"), [("half", (51, 26, 13, 4)), ("none", (49, 23, 11, 3))])
    def test_has_the_layers_of_the_table(self, padding, sides):
        first, inner, last, grid = sides
        found = shapes(padding=padding)
        assert found["scl.scl1.pool"] == [96, first, first]
        assert found["scl.scl2.conv"] == [256, inner, inner]
        assert found["scl.scl2.pool"] == [256, last, last]
        assert found["scl.scl3.conv"] == found["scl.scl4.conv"] == [512, last, last]
        assert found["scl5s.conv"] == found["scl5t.conv"] == [128, last, last]
        assert found["path_maps"] == [256, 5, last, last]
        assert found["pool"] == [128, 1, grid, grid]
        assert found["time_pool"] == [128, 5, grid, grid]
        assert found["permute"] == [grid**2, 5, 128]
        assert found["tcl.convs.0"] == found["tcl.convs.1"] == [32, 5, 128]
        assert found["fc_space.fc1"] == found["fc_time.fc1"] == [4096]
        assert found["fc_space.fc2"] == found["fc_time.fc2"] == found["fusion.fc1"] == [2048]
        assert found["classifier"] == [101]

    @pytest.mark.parametrize(("padding", "grid", "total"), [("half", 4, 206_930_469), ("none", 3, 203_252_837)])
    def test_has_the_parameters_that_its_layers_add_up_to(self, padding, grid, total):
        pieces = {
            "scl": (3 * 49 + 1) * 96 + (96 * 25 + 1) * 256 + (256 * 9 + 1) * 512 + (512 * 9 + 1) * 512,
            "scl5s": (512 * 9 + 1) * 128,
            "scl5t": (512 * 9 + 1) * 128,
            "permute": 128 * 128,
            "tcl": (grid**2 * 9 + 1) * 32 + (grid**2 * 25 + 1) * 32,
            "fc_space": (grid**2 * 128 + 1) * 4096 + (4096 + 1) * 2048,
            "fc_time": (2 * 32 * 5 * 128 + 1) * 4096 + (4096 + 1) * 2048,
            "fusion": (2 * 2048 + 1) * 2048,
            "classifier": (2048 + 1) * 101,
        }
        found = parts(meta(padding=padding))
        assert {name: count for name, count in found.items() if count} == pieces
        assert describe("fstcn", padding=padding)["parameters"] == sum(pieces.values()) == total

    def test_without_the_fusion_layer_the_classifier_reads_both_paths(self):
        assert describe("fstcn", fusion_fc=False)["parameters"] == 206_930_469 - 4097 * 2048 + 2048 * 101 == 198_746_661
        assert meta(fusion_fc=False).classifier.in_features == 4096

    @pytest.mark.parametrize(
        ("padding", "frame", "clip", "sides"),
        [("half", 1.16, 7.77, (102, 26, 13)), ("none", 0.89, 5.98, (99, 23, 11))],
    )
    def test_costs_the_counted_multiply_adds(self, padding, frame, clip, sides):
        counter = FlopCounterMode(display=False)
        with counter, torch.device("meta"):
            meta(padding=padding).scl(torch.empty(1, 3, 204, 204))
        first, second, last = (side**2 for side in sides)
        count = first * 147 * 96 + second * 2400 * 256 + last * 2304 * 512 + last * 4608 * 512
        assert counter.get_total_flops() / 2 == count
        assert count / 1e9 == pytest.approx(frame, abs=0.005)
        assert describe("fstcn", padding=padding)["gmacs"] == pytest.approx(clip, abs=0.005)

    def test_samples_five_frames_and_their_differences_over_nine(self):
        x = torch.randn(2, 3, 30, 4, 4)
        frames, changes = create("fstcn", **TINY).sample(x)
        places = [0, 5, 10, 15, 20]
        assert torch.equal(frames, x[:, :, places])
        assert torch.equal(changes, torch.stack([(x[:, :, t] - x[:, :, t + 9]).abs() for t in places], 2))

    @pytest.mark.parametrize(("padding", "half"), [("half", True), ("none", False)])
    def test_computes_what_the_table_says(self, padding, half):
        network = create("fstcn", **TINY, padding=padding).eval().double()
        with torch.no_grad():
            network.permute.matrix.add_(torch.randn_like(network.permute.matrix))
        x = torch.rand(1, 3, 30, 204, 204, dtype=torch.float64) * 50

        def apply(layer, y):
            return F.conv2d(y, layer.weight, layer.bias, padding=1).relu()

        def shared(y):
            for block, kernel in ((network.scl.scl1, 7), (network.scl.scl2, 5)):
                y = F.conv2d(y, block.conv.weight, block.conv.bias, stride=2, padding=kernel // 2 * half).relu()
                padded = F.pad(y.square(), (0, 0, 0, 0, 2, 2))
                sums = sum(padded[:, shift : shift + y.shape[1]] for shift in range(5))
                y = y / (1 + 1e-4 / 5 * sums) ** 0.75
                y = F.max_pool2d(y, 3, 2, int(half))
            return apply(network.scl.scl4.conv, apply(network.scl.scl3.conv, y))

        space = F.max_pool2d(apply(network.scl5s.conv, shared(x[:, :, 10])), 3).flatten(1)
        times = [
            F.max_pool2d(apply(network.scl5t.conv, shared((x[:, :, t] - x[:, :, t + 9]).abs())), 3)
            for t in (0, 5, 10, 15, 20)
        ]
        plane = torch.einsum("tfyx,fg->yxtg", torch.cat(times), network.permute.matrix).flatten(0, 1)[None]
        small, large = network.tcl.convs
        maps = [F.conv2d(plane, c.weight, c.bias, padding=p) for c, p in ((small, 1), (large, 2))]
        time = torch.cat(maps, 1).relu().flatten(1)
        for fc in (network.fc_space.fc1, network.fc_space.fc2):
            space = fc(space).relu()
        for fc in (network.fc_time.fc1, network.fc_time.fc2):
            time = fc(time).relu()
        logits = network.classifier(network.fusion.fc1(torch.cat([space, time], 1)).relu())
        assert space.abs().max() > 0 and time.abs().max() > 0
        torch.testing.assert_close(network(x), logits, rtol=1e-9, atol=1e-12)

    def test_drops_half_after_every_hidden_layer_in_training_only(self):
        network = meta()
        drops = {name: layer.p for name, layer in network.named_modules() if isinstance(layer, nn.Dropout)}
        assert set(drops) == {"fc_space.drop1", "fc_space.drop2", "tcl.dropout", "fc_time.drop1", "fc_time.drop2"} | {
            "fusion.drop1"
        }
        assert set(drops.values()) == {0.5}

    def test_starts_from_he_weights_the_identity_and_a_small_last_layer(self):
        network = create("fstcn", num_classes=60, faithful=True, width=0.1)
        assert network.scl.scl3.conv.weight.std().item() == pytest.approx((2 / (51 * 9)) ** 0.5, rel=0.05)
        assert network.fc_time.fc1.weight.std().item() == pytest.approx((2 / (64 * 5 * 13)) ** 0.5, rel=0.02)
        assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert torch.equal(network.permute.matrix, torch.eye(13))
        assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))

    def test_the_paths_share_the_lower_layers(self):
        network = create("fstcn", **TINY).eval()
        x = torch.rand(1, 3, 30, 204, 204)
        before = space_and_time(network, x)
        with torch.no_grad():
            network.scl.scl1.conv.bias += 1
        after = space_and_time(network, x)
        assert not torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])

    @pytest.mark.parametrize(
        ("option", "value"), [("stride", 1), ("difference", 1), ("frames", 4), ("grid", 4), ("norm", "batch")]
    )
    def test_refuses_what_the_paper_has_not(self, option, value):
        with pytest.raises(ConfigError, match=f"'{option}' parameter of fstcn must be .* when faithful=True"):
            create("fstcn", **TINY, **{option: value})

    def test_reads_its_clip_only(self):
        with pytest.raises(ConfigError, match=r"exactly T x H x W = 30 x 204 x 204, got T x H x W = 30 x 224 x 224"):
            create("fstcn", **TINY)(torch.zeros(1, 3, 30, 224, 224))


class TestTransformPermute:
    def test_reorders_and_multiplies_as_loops_do(self):
        operator = TransformPermute(4)
        with torch.no_grad():
            operator.matrix.copy_(torch.randn(4, 4))
        operator = operator.double()
        maps = torch.randn(2, 4, 3, 2, 5, dtype=torch.float64)
        out = operator(maps)
        assert out.shape == (2, 10, 3, 4)
        for b, t, y, x, g in torch.cartesian_prod(*(torch.arange(n) for n in (2, 3, 2, 5, 4))).tolist():
            expected = sum(float(maps[b, f, t, y, x]) * operator.matrix[f, g].item() for f in range(4))
            assert out[b, y * 5 + x, t, g].item() == pytest.approx(expected, rel=1e-12)

    def test_with_the_identity_it_only_moves_values_and_can_be_undone(self):
        maps = torch.randn(2, 6, 3, 4, 5)
        out = TransformPermute(6)(maps)
        assert torch.equal(out.permute(0, 3, 2, 1).unflatten(3, (4, 5)), maps)

    def test_a_random_start_is_a_permutation_of_the_features(self):
        operator = TransformPermute(8, start="random")
        assert not torch.equal(operator.matrix, torch.eye(8))
        assert torch.equal(operator.matrix @ operator.matrix.T, torch.eye(8))
        maps = torch.randn(1, 8, 2, 3, 3)
        order = operator.matrix.argmax(0)
        torch.testing.assert_close(operator(maps), TransformPermute(8)(maps[:, order]))
        assert not torch.equal(
            create("fstcn", num_classes=2, width=0.1, permutation="random").permute.matrix, torch.eye(13)
        )

    def test_its_matrix_is_learned(self):
        network = create("fstcn", num_classes=2, width=0.1)
        network(torch.randn(2, 1, 4, 32, 32)).sum().backward()
        assert (network.permute.matrix.grad != 0).float().mean() > 0.9


class TestTemporalConvolution:
    def test_correlates_time_and_features_as_loops_do(self):
        layer = TemporalConvolution(3, 2, sizes=(3, 5), dropout=0.5).double().eval()
        x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
        out = layer(x)
        assert out.shape == (1, 4, 4, 6)
        for number, conv in enumerate(layer.convs):
            size = conv.kernel_size[0]
            for o, t, f in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(6)).tolist():
                total = conv.bias[o].item()
                for dt, df in torch.cartesian_prod(torch.arange(size), torch.arange(size)).tolist():
                    row, column = t + dt - size // 2, f + df - size // 2
                    if 0 <= row < 4 and 0 <= column < 6:
                        total += (x[0, :, row, column] @ conv.weight[o, :, dt, df]).item()
                assert out[0, number * 2 + o, t, f].item() == pytest.approx(max(total, 0), abs=1e-12)

    def test_drops_activations_in_training(self):
        layer = TemporalConvolution(3, 8, sizes=(3,), dropout=0.5)
        nn.init.ones_(layer.convs[0].bias)
        out = layer(torch.zeros(1, 3, 10, 100))
        assert (out == 0).float().mean() == pytest.approx(0.5, abs=0.05)
        assert (layer.eval()(torch.zeros(1, 3, 10, 100)) == 1).all()


class TestOptions:
    @pytest.mark.parametrize(("kernels", "sizes"), [("both", [3, 5]), ("3x3", [3]), ("5x5", [5])])
    def test_kernels_are_those_of_the_ablation(self, kernels, sizes):
        network = meta(kernels=kernels)
        assert [conv.kernel_size for conv in network.tcl.convs] == [(size, size) for size in sizes]
        assert network.fc_time.fc1.in_features == 32 * len(sizes) * 5 * 128

    def test_without_normalisation_no_response_is_normalised(self):
        a, b = (create("fstcn", **TINY, norm=norm).eval() for norm in ("lrn", "none"))
        b.load_state_dict(a.state_dict())
        x = torch.rand(1, 3, 30, 204, 204) * 50
        assert not torch.allclose(a.forward_features(x), b.forward_features(x))

    def test_space_sees_the_middle_frame_in_evaluation_and_any_in_training(self):
        network = create("fstcn", num_classes=2, width=0.1, spatial_frame="random", norm="none")
        x = torch.randn(40, 1, 5, 16, 16)
        everything = create("fstcn", num_classes=2, width=0.1, norm="none")
        everything.load_state_dict(network.state_dict())
        full, _ = space_and_time(everything, x)
        space, _ = space_and_time(network.eval(), x)
        torch.testing.assert_close(space[:, :, 2], full[:, :, 2])
        assert not space[:, :, [0, 1, 3, 4]].any()
        drawn, _ = space_and_time(network.train(), x)
        seen = drawn.flatten(3).amax((1, 3)) > 0
        assert (seen.sum(1) <= 1).all()
        assert seen.any(0).all()
        torch.testing.assert_close(drawn, torch.where(seen[:, None, :, None, None], full, 0.0))
        always, _ = space_and_time(create("fstcn", num_classes=2, width=0.1, spatial_frame="middle"), x)
        assert not always[:, :, [0, 1, 3, 4]].any() and always[:, :, 2].any()

    def test_stride_and_difference_choose_the_slices(self):
        x = torch.randn(1, 1, 8, 4, 4)
        frames, changes = create("fstcn", num_classes=2, width=0.05, stride=3, difference=4).sample(x)
        assert torch.equal(frames, x[:, :, [0, 3, 6]])
        assert torch.equal(changes, (x[:, :, [0, 3, 6]] - x[:, :, [4, 7, 7]]).abs())

    def test_sizes_follow_grid_frames_hidden_and_filters(self):
        network = create(
            "fstcn", num_classes=2, width=0.25, grid=2, frames=3, hidden=[40, 20], filters=6, fusion_fc=False
        )
        assert network.fc_space.fc1.in_features == 32 * 4
        assert network.tcl.convs[0].in_channels == 4
        assert network.fc_time.fc1.in_features == 2 * 6 * 3 * 32
        assert [network.fc_time.fc1.out_features, network.fc_time.fc2.out_features] == [10, 5]
        assert network.num_features == 10
        assert network(torch.randn(2, 1, 7, 16, 16)).shape == (2, 2)

    @pytest.mark.parametrize(
        ("options", "side"),
        [
            ({}, 16),
            ({"stem_stride": 1}, 8),
            ({"norm": "instance"}, 32),
            ({"norm": "instance", "stem_stride": 1}, 16),
            ({"padding": "none"}, 43),
            ({"padding": "none", "norm": "instance"}, 59),
            ({"padding": "none", "stem_stride": 1}, 25),
        ],
    )
    def test_smallest_slices_leave_what_the_norm_needs(self, options, side):
        network = create("fstcn", num_classes=2, width=0.05, **options)
        assert network.smallest == (1, side, side)
        positions = 2 if options.get("norm") == "instance" else 1
        assert network.forward_features(torch.randn(1, 1, 2, side, side)).shape[3:] == (positions, positions)


class TestAdapted:
    def test_every_slice_counts_however_many_there_are(self):
        network = create("fstcn", num_classes=2, width=0.25).eval()
        for slices in (1, 2, 3, 5, 6, 11):
            x = torch.randn(1, 1, slices, 24, 24)
            for index in range(slices):
                changed = x.clone()
                changed[:, :, index] += torch.randn(24, 24)
                assert not torch.equal(network(changed), network(x)), (slices, index)

    def test_the_path_over_time_reads_differences_to_the_next_slice(self):
        network = create("fstcn", num_classes=2, width=0.05)
        x = torch.randn(2, 1, 4, 8, 8)
        frames, changes = network.sample(x)
        assert torch.equal(frames, x)
        assert torch.equal(changes[:, :, :3], (x[:, :, :3] - x[:, :, 1:]).abs())
        assert not changes[:, :, 3].any()
        assert not network.sample(x[:, :, :1])[1].any()

    def test_the_order_of_slices_matters_to_time_and_not_to_space(self):
        network = create("fstcn", num_classes=2, width=0.25).eval()
        x = torch.randn(1, 1, 7, 32, 32)
        space, time = space_and_time(network, x)
        back_space, back_time = space_and_time(network, x.flip(2))
        torch.testing.assert_close(back_space.amax(2), space.amax(2))
        assert not torch.allclose(back_time, time, atol=1e-3)
        assert not torch.allclose(network(x.flip(2)), network(x), atol=1e-6)
        network.fusion.fc1.weight.data[:, network.fc_space.fc2.out_features :] = 0  # the classifier sees space only
        torch.testing.assert_close(network(x.flip(2)), network(x))

    def test_what_does_not_change_is_silent_in_the_path_over_time(self):
        network = create("fstcn", num_classes=2, width=0.1, norm="none").eval()
        _, still = space_and_time(network, torch.randn(1, 1, 1, 24, 24).expand(-1, -1, 6, -1, -1))
        _, moving = space_and_time(network, torch.randn(1, 1, 6, 24, 24))
        assert not still.any()
        assert moving.any()

    def test_pooling_before_the_rectifier_gives_the_same_maps(self):
        network = create("fstcn", num_classes=2, width=0.1).eval()
        y = x = torch.randn(3, 1, 37, 45)
        for block in (network.scl.scl1, network.scl.scl2):
            y = F.max_pool2d(block.norm(block.conv(y)).relu(), 3, 2, 1)
        torch.testing.assert_close(network.scl(x), network.scl.scl4(network.scl.scl3(y)))

    def test_a_single_slice_can_be_trained_on(self):
        network = create("fstcn", num_classes=2, width=0.1)
        network(torch.randn(1, 1, 1, 24, 24)).sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())

    def test_works_in_mixed_precision(self):
        network = create("fstcn", num_classes=2, width=0.1, spatial_frame="random").eval()
        x = torch.randn(2, 1, 6, 24, 24)
        exact = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(network(x).float(), exact, rtol=0.1, atol=0.01)
            network.train()(x).float().sum().backward()
        assert network.permute.matrix.grad.isfinite().all()

    @pytest.mark.parametrize("spatial_frame", ["max", "middle"])
    def test_gradcam_shows_where_evidence_lies_in_every_slice(self, spatial_frame):
        from monai.visualize import GradCAM

        network = create("fstcn", num_classes=2, width=0.1, spatial_frame=spatial_frame).eval()
        cam = GradCAM(network, target_layers=network.cam_layer)
        x = torch.randn(1, 1, 6, 32, 32)
        maps = [cam(x, class_idx=label) for label in (0, 1)]
        assert maps[0].shape == (1, 1, 6, 32, 32)
        # Evidence for neither class is evidence against it: at least one map has something to show.
        assert max(one.std() for one in maps) > 0

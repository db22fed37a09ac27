"""Every method on every network of the registry, and what each says of networks whose answer is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.visualize import GradCAM
from torch import nn

from volrec.cli.explaining import explain as command
from volrec.errors import ConfigError
from volrec.explain import METHODS, find_method
from volrec.explain import occlusion as occlusion_module
from volrec.explain.captum_methods import integrated
from volrec.explain.gradcam import gradcam, gradcam_slicewise
from volrec.explain.gradients import integrated_gradients
from volrec.explain.occlusion import occlude_blocks, occlude_slices
from volrec.explain.passes import Opposite, at_rest
from volrec.networks import SlicewiseNetwork, create, list_networks

NETWORKS = list_networks()
OWN = [name for name, method in METHODS.items() if not (method.package or method.only)]
# Methods for some kinds of networks have tests of their own.
GENERAL = [name for name, method in METHODS.items() if not method.only]
# DeepLIFT takes modules that are used once.
REFUSED = {("hidden-two-stream", "captum:deeplift"), ("inflated", "captum:deeplift")}
QUICK = {"steps": 2, "samples": 1, "block": None}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Cube(nn.Module):
    """Adds up what is bright in one cube of the clip, and takes a little off for what is bright elsewhere."""

    cam_layer = "maps"
    num_classes = 2
    where = (slice(2, 4), slice(4, 8), slice(12, 16))

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.AvgPool3d((1, 4, 4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = F.relu(self.maps(x))
        found = maps[:, 0, 2:4, 1, 3].sum(1)
        return torch.stack([3 * found - 0.01 * maps.sum((1, 2, 3, 4)), -found], dim=1) * self.scale


def bright_cube() -> torch.Tensor:
    x = 0.1 * torch.rand(1, 1, 6, 16, 20)
    x[(0, 0, *Cube.where)] += 2
    return x


def narrow(name: str, *, outputs: int = 2) -> tuple[nn.Module, torch.Tensor]:
    network = create(name, num_classes=outputs, width=1 / 16)
    slices, height, width = network.smallest
    return network, torch.randn(1, 1, slices + 3, height + 8, width + 8)


def options_of(method: str, x: torch.Tensor) -> dict[str, object]:
    own = {name: value for name, value in QUICK.items() if name in METHODS[method].options}
    if "block" in own:
        own["block"] = [-(-size // 2) for size in x.shape[2:]]
    return own


@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_maps_every_network(name: str) -> None:
    network, x = narrow(name)
    before = copy.deepcopy(network.state_dict())
    network.train()
    for method in GENERAL:
        chosen = METHODS[method]
        own = chosen.checked(options_of(method, x))
        if (name, method) in REFUSED:
            with pytest.raises(ConfigError, match="captum cannot apply"):
                chosen.function()(network, x, 1, **own)
        else:
            found = chosen.function()(network, x, 1, **own)
            assert found.shape == (1, *x.shape[2:]), method
            assert found.dtype == torch.float32
            assert found.isfinite().all(), method
            assert not found.requires_grad
            if not chosen.signed:
                assert found.min() >= 0, method
        # The network is left as it was, ready to be trained.
        assert network.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        for module in network.modules():
            hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            assert not any(hooks), (method, module)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradcam_is_monais_before_it_inverts_it(name: str) -> None:
    network, x = narrow(name)
    found = gradcam(network, x, 1)
    keep = GradCAM(nn_module=network.eval(), target_layers=network.cam_layer, postprocessing=lambda maps: maps)
    expected = torch.as_tensor(keep(x=x, class_idx=1))[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()) + 1e-12)


def test_gradcam_is_captums() -> None:
    from captum.attr import LayerGradCam

    network, x = narrow("c3d")
    network.eval()
    small = LayerGradCam(network, network.get_submodule(network.cam_layer)).attribute(
        x, target=0, relu_attributions=True
    )
    expected = F.interpolate(small, size=x.shape[2:], mode="trilinear", align_corners=False)[:, 0].detach()
    torch.testing.assert_close(gradcam(network, x, 0), expected)


def test_slicewise_gradcam_weighs_each_slice_by_its_own_gradient() -> None:
    class Last(nn.Module):
        """Reads the first map of all slices but the last, and the second of the last."""

        cam_layer = "maps"

        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = self.maps(x)
            return (maps[:, 0, :-1].sum((1, 2, 3)) + maps[:, 1, -1].sum((1, 2)))[:, None]

    x = torch.rand(2, 2, 4, 5, 5)
    found = gradcam_slicewise(Last(), x, 0)
    torch.testing.assert_close(found, torch.cat([x[:, 0, :-1], x[:, 1, -1:]], dim=1))
    assert not torch.allclose(found, gradcam(Last(), x, 0), rtol=0.05)


@pytest.mark.parametrize("method", GENERAL)
def test_the_maximum_falls_in_the_cube_that_decides(method: str) -> None:
    network, x = Cube(), bright_cube()
    chosen = find_method(method)
    own = {name: value for name, value in {"steps": 8, "block": [2, 4, 4]}.items() if name in chosen.options}
    found = chosen.function()(network, x, 0, **chosen.checked(own))[0]
    place = np.unravel_index(int(found.argmax()), found.shape)
    inside = [part.start <= at < part.stop for part, at in zip(Cube.where, place, strict=True)]
    assert inside[0]
    if method != "occlusion":  # says which slice, not where in it
        assert all(inside)
    against = chosen.function()(network, x, 1, **chosen.checked(own))[0]
    if method == "captum:gradient-shap" or not chosen.signed:
        return
    assert against[Cube.where].max() < 0, "what speaks against an output is below 0"


@pytest.mark.parametrize("method", ["gradcam", "gradcam-slicewise", "occlusion", "integrated-gradients"])
def test_the_other_class_of_one_output_is_what_speaks_against_it(method: str) -> None:
    network, x = Cube(), bright_cube()
    chosen = find_method(method)
    found = chosen.function()(Opposite(network), x, 1, **chosen.checked(None))[0]
    assert found[Cube.where].min() > 0


def test_a_batch_is_its_clips_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = narrow("slice-mean")
    x = torch.randn(3, 1, 5, *network.smallest[1:])
    for method in OWN:
        chosen = find_method(method)
        own = chosen.checked(options_of(method, x))
        together = chosen.function()(network, x, 0, **own)
        alone = torch.cat([chosen.function()(network, clip[None], 0, **own) for clip in x])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


class TestOcclusion:
    def test_blocks_are_captums(self) -> None:
        from captum.attr import Occlusion

        network, _ = narrow("c3d")
        x = torch.randn(1, 1, 5, 34, 38)
        block, stride = [2, 12, 10], [1, 9, 10]
        found = occlude_blocks(network, x, 1, block=block, stride=stride, fill="minimum")
        nothing = x.amin((2, 3, 4), keepdim=True).expand_as(x).contiguous()
        expected = Occlusion(network.eval()).attribute(
            x, sliding_window_shapes=(1, *block), strides=(1, *stride), baselines=nothing, target=1
        )
        torch.testing.assert_close(found, expected[:, 0].detach().float(), rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("fill", occlusion_module.FILLS)
    @pytest.mark.parametrize("slab", [1, 3])
    @pytest.mark.parametrize("name", ["c3d", "slice-mean", "lrcn"])
    def test_slices_are_the_plain_loop(self, name: str, slab: int, fill: str) -> None:
        network, _ = narrow(name)
        x = torch.randn(1, 1, 6, *(side + 4 for side in network.smallest[1:]))
        found = occlude_slices(network, x, 1, slab=slab, fill=fill)[0]
        with torch.no_grad():
            network.eval()
            for t in range(6):
                covered = list(range(max(0, t - slab // 2), min(6, t + slab // 2 + 1)))
                others = [place for place in range(6) if place not in covered]
                changed = x.clone()
                for place in covered:
                    below = max((other for other in others if other < place), default=None)
                    above = min((other for other in others if other > place), default=None)
                    if fill == "median":
                        changed[:, :, place] = x.median(2).values
                    elif fill == "mean":
                        changed[:, :, place] = x[:, :, others].mean(2)
                    elif fill == "minimum":
                        changed[:, :, place] = x.min()
                    elif below is None or above is None:
                        changed[:, :, place] = x[:, :, above if below is None else below]
                    else:
                        share = (place - below) / (above - below)
                        changed[:, :, place] = (1 - share) * x[:, :, below] + share * x[:, :, above]
                drop = float((network(x) - network(changed))[0, 1])
                torch.testing.assert_close(found[t], torch.full_like(found[t], drop), rtol=1e-3, atol=1e-6)

    def test_a_slice_that_stands_at_several_positions_is_covered_at_all_of_them(self) -> None:
        network = Cube()
        slices = torch.tensor([0, 1, 2, 2, 2, 2])
        x = bright_cube()[:, :, slices]
        apart = occlude_slices(network, x, 0, fill="neighbours")
        together = occlude_slices(network, x, 0, fill="neighbours", slices=[slices])
        # Alone, a repeated slice is replaced by its twin, and nothing would be lost.
        assert apart[0, 3:].abs().max() < 1e-5
        assert together[0, 2:].min() > 1
        assert together[0, 2:].unique().numel() == 1

    def test_the_median_leaves_nothing_of_a_finding_where_there_was_none(self) -> None:
        network, x = Cube(), bright_cube()
        median, mean = (occlude_blocks(network, x, 0, block=[1, 4, 4], fill=fill)[0] for fill in ("median", "mean"))
        where = Cube.where[1:]
        assert (median[2][where] > 3).all()
        x[0, 0, 3][where] = 0  # in one slice alone: a mean would put a third of it into the other
        median, mean = (occlude_blocks(network, x, 0, block=[1, 4, 4], fill=fill)[0] for fill in ("median", "mean"))
        assert (mean[3][where] < -0.5).all()
        assert (median[3][where] > -0.5).all()

    def test_a_clip_of_one_slice_is_covered_by_an_empty_canvas(self) -> None:
        x = torch.rand(1, 1, 1, 4, 4).expand(-1, -1, 5, -1, -1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(80, 1, bias=False))
        with torch.no_grad():
            network[1].weight.fill_(1.0)
        for fill in occlusion_module.FILLS:
            found = occlude_slices(network, x, 0, fill=fill, slices=[torch.zeros(5)], empty=torch.zeros(1))
            torch.testing.assert_close(found, torch.full_like(found, float(x.sum())), rtol=1e-4, atol=1e-4)

    def test_a_slicewise_network_encodes_only_what_changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network, _ = narrow("slice-mean")
        assert isinstance(network, SlicewiseNetwork)
        x = torch.randn(1, 1, 8, *network.smallest[1:])
        seen: list[int] = []
        encode = network.encode_slices
        monkeypatch.setattr(network, "encode_slices", lambda images: seen.append(len(images)) or encode(images))
        occlude_slices(network, x, 0)
        assert sum(seen) == 8 + 8  # each as it is, and what stands in its place
        seen.clear()
        occlude_blocks(network, x, 0, block=[2, *x.shape[3:]])
        assert sum(seen) == 8 + 8

    def test_passes_are_of_bounded_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network, x = Cube(), bright_cube()
        largest: list[int] = []
        network.register_forward_pre_hook(lambda module, given: largest.append(given[0].numel()))
        whole = occlude_blocks(network, x, 0, block=[1, 4, 4])
        largest.clear()
        monkeypatch.setattr("volrec.explain.passes.BUDGET", 3 * x.numel())
        torch.testing.assert_close(occlude_blocks(network, x, 0, block=[1, 4, 4]), whole)
        assert max(largest) == 3 * x.numel()


class TestIntegratedGradients:
    def test_it_is_captums(self) -> None:
        network, x = narrow("c3d")
        nothing = torch.tensor([-0.5])
        found = integrated_gradients(network, x, 1, steps=12, empty=nothing)
        torch.testing.assert_close(found, integrated(network, x, 1, steps=12, empty=nothing), rtol=1e-3, atol=1e-7)

    def test_voxels_add_up_to_the_change_of_the_output(self) -> None:
        network, x = narrow("slice-mean")
        network, x = network.double(), x.double()
        found = integrated_gradients(network, x, 1, steps=400)
        with at_rest(network), torch.no_grad():
            change = network(x)[0, 1] - network(torch.full_like(x, float(x.min())))[0, 1]
        assert float(found.double().sum()) == pytest.approx(float(change), rel=5e-3)

    def test_a_linear_network_needs_one_step(self) -> None:
        class Linear(nn.Module):
            weight = torch.randn(2, 4, 5, 6)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return (x * self.weight).sum((1, 2, 3, 4))[:, None]

        x, nothing = torch.randn(3, 2, 4, 5, 6), torch.tensor([0.5, -1.0])
        found = integrated_gradients(Linear(), x, 0, steps=1, empty=nothing)
        expected = (Linear.weight * (x - nothing[None, :, None, None, None])).sum(1)
        torch.testing.assert_close(found, expected)


class TestTheTable:
    def test_help_names_every_method_and_option(self) -> None:
        from volrec.cli import app

        shown = []
        for parameter in app["explain"].assemble_argument_collection():
            shown.append(parameter.parameter.help or "")
        text = " ".join(shown)
        assert all(name in text for name in METHODS)
        assert command.__doc__ is not None

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"step": 3}, "no option 'step'"), ({"steps": "many"}, "whole number"), ({"steps": 0}, "at least 1")],
    )
    def test_wrong_options_are_named(self, options: dict[str, object], message: str) -> None:
        method = find_method("integrated-gradients")
        with pytest.raises(ConfigError, match=message):
            method.function()(Cube(), bright_cube(), 0, **method.checked(options))

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: find_method("grad-cam"), "did you mean 'gradcam'"),
            (lambda: occlude_slices(Cube(), bright_cube(), 0, slab=2), "odd number"),
            (lambda: occlude_slices(Cube(), bright_cube(), 0, fill="grey"), "median, mean, neighbours, minimum"),
            (lambda: occlude_blocks(Cube(), bright_cube(), 0, block=[2, 2]), "three sizes"),
            (lambda: occlude_blocks(Cube(), bright_cube(), 0, block=4), "three sizes"),
            (lambda: gradcam(Cube(), bright_cube(), 2), "2 output"),
            (lambda: gradcam(nn.Flatten(), bright_cube(), 0), "names no layer"),
        ],
    )
    def test_other_faults_are_named(self, call, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            call()

    def test_a_missing_package_is_named_with_what_installs_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("volrec.explain.methods.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'volrec\[explain\]'"):
            find_method("captum:deeplift").function()
        assert find_method("gradcam").function() is gradcam

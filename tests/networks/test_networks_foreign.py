from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from torch import nn

from volrec.errors import ConfigError
from volrec.networks import create, spec
from volrec.networks.backbones import create_backbone


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class TestNetworksOfMonai:
    @pytest.mark.parametrize(
        ("name", "features", "side"),
        [("resnet10", 512, 16), ("SEResNet50", 2048, 16), ("efficientnet-b0", 1280, 32), ("DenseNet121", 1024, 32)],
    )
    def test_classifiers_give_the_maps_before_their_pool(self, name, features, side):
        with torch.device("meta"):
            network = create_backbone(f"monai:{name}", in_channels=2)
            maps = network.forward_maps(torch.empty(2, 2, 70, 90))
        assert network.num_maps == network.num_features == features
        assert network.smallest == (side, side)
        assert maps.shape[:2] == (2, features)
        assert min(maps.shape[2:]) > 1
        assert network.forward_tail(maps).shape == (2, features)

    def test_features_are_what_enters_the_classifier(self):
        from monai.networks.nets import resnet10

        theirs = resnet10(spatial_dims=2, n_input_channels=1, num_classes=4).eval()
        ours = create_backbone("monai:resnet10", in_channels=1).eval()
        weights = {f"network.{key}": value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
        ours.trunk.load_state_dict(weights)
        x = torch.randn(2, 1, 33, 41)
        torch.testing.assert_close(theirs.fc(ours(x)), theirs(x))
        maps = ours.forward_maps(x)
        torch.testing.assert_close(maps.mean((2, 3)), ours(x))
        assert torch.equal(copy.deepcopy(ours)(x), ours(x))
        exported = torch.export.export(ours, (x,)).module()
        torch.testing.assert_close(exported(x), ours(x))

    def test_networks_that_end_in_maps_give_their_mean(self):
        network = create_backbone("monai:HighResNet", in_channels=1).eval()
        x = torch.randn(2, 1, 18, 21)
        maps = network.forward_maps(x)
        assert maps.shape == (2, 64, 18, 21)
        torch.testing.assert_close(network(x), maps.mean((2, 3)))

    def test_lists_of_outputs_and_multiples_of_32_are_handled(self):
        with torch.device("meta"):
            listed = create_backbone("monai:BasicUNetPlusPlus", in_channels=1)
            padded = create_backbone("monai:SegResNet", in_channels=1)
            assert listed(torch.empty(2, 1, 40, 50)).shape == (2, 64)
            assert padded.forward_maps(torch.empty(2, 1, 33, 70)).shape == (2, 64, 64, 96)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("DenseNet112", "Did you mean 'DenseNet1"),
            ("Sequential", "MONAI has no network 'Sequential'"),
            ("densenet", "MONAI has no network 'densenet'"),  # a module
            ("__import__", "MONAI has no network"),
            ("drop_connect", "MONAI has no network"),
            ("get_pretrained_resnet_medicalnet", "MONAI has no network"),
            ("UNet", "monai:UNet needs further arguments that cannot be given here: channels, strides."),
            ("ViT", "monai:ViT needs further arguments that cannot be given here: img_size, patch_size."),
            ("HoVerNet", "Input size should be 256 x 256"),
            ("vista3d132", "MONAI has no network"),  # takes no number of axes
        ],
    )
    def test_refuses_what_cannot_encode_slices(self, name, message):
        with pytest.raises(ConfigError) as caught:
            create_backbone(f"monai:{name}", in_channels=1)
        assert message in str(caught.value)
        assert caught.value.remedy

    @pytest.mark.parametrize(
        ("given", "meant"),
        [("resnet18", "monai:resnet18"), ("RESNET18", "monai:resnet18"), ("DenseNet121", "monai:DenseNet121")],
    )
    def test_are_suggested_where_the_prefix_is_missing(self, given, meant):
        for build in (
            lambda: create_backbone(given, in_channels=1),
            lambda: create("lrcn", num_classes=2, backbone=given),
        ):
            with pytest.raises(ConfigError) as caught:
                build()
            assert caught.value.remedy.startswith(f"Did you mean '{meant}'?")

    def test_keep_their_own_normalisation(self):
        with pytest.raises(ConfigError, match="monai:resnet10 has normalisation of its own, got norm='group'"):
            create_backbone("monai:resnet10", in_channels=1, norm="group")
        for name in ("lrcn", "conv-pooling", "stacked-lstm", "temporal-attention"):
            with pytest.raises(ConfigError, match="normalisation of its own, got norm='instance'"):
                create(name, num_classes=2, backbone="monai:resnet10", norm="instance")
            assert "width and norm do not reach them" in spec(name).options["backbone"].meaning

    def test_leave_the_normalisation_to_the_3d_encoder(self):
        with torch.device("meta"):
            network = create(
                "temporal-attention", num_classes=2, backbone="monai:resnet10", encoder3d="conv3d", norm="group"
            )
        assert any(isinstance(layer, nn.GroupNorm) for layer in network.encoder3d.modules())

    def test_missing_torchvision_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision", None)
        with pytest.raises(ConfigError, match="torchvision"):
            create_backbone("monai:TorchVisionFCModel", in_channels=3)

    def test_has_no_fully_connected_tail(self):
        with pytest.raises(ConfigError, match="monai:resnet10 has no fc6"):
            create_backbone("monai:resnet10", in_channels=1, tail="fc6")


class _Fake(nn.Module):
    """What volrec asks of a network of timm; `kind` is the layout of its features."""

    def __init__(self, kind: str, in_chans: int) -> None:
        super().__init__()
        self.kind, self.num_features = kind, 6
        self.conv = nn.Conv2d(in_chans, 6, 3, 2, 1)
        self.head = nn.Linear(6, 10)

    def forward_features(self, x):
        x = self.conv(x)
        return {"maps": x, "last": x.permute(0, 2, 3, 1), "tokens": x.flatten(2).transpose(1, 2)}[self.kind]

    def forward_head(self, x, pre_logits=False):
        assert pre_logits
        axes = {"maps": (2, 3), "last": (1, 2), "tokens": (1,)}[self.kind]
        return self.head(x.mean(axes))


@pytest.fixture
def fake_timm(monkeypatch):
    module = types.ModuleType("timm")
    module.calls = []

    def create_model(name, *, pretrained, in_chans, num_classes):
        module.calls.append((name, pretrained, in_chans, num_classes))
        return _Fake(name.split(".")[0], in_chans)

    module.create_model = create_model
    module.list_models = lambda: ["maps", "last", "tokens"]
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


class TestNetworksOfTimm:
    @pytest.mark.parametrize("kind", ["maps", "last", "tokens"])
    def test_are_built_without_weights_and_split_at_their_head(self, fake_timm, kind):
        network = create_backbone(f"timm:{kind}", in_channels=2)
        assert fake_timm.calls == [(kind, False, 2, 0)]
        x = torch.randn(3, 2, 20, 24)
        maps = network.forward_maps(x)
        assert maps.shape == ((3, 10, 1, 1) if kind == "tokens" else (3, 6, 10, 12))
        assert (network.num_maps, network.num_features) == (maps.shape[1], 10)
        inner = network.trunk.network
        torch.testing.assert_close(network(x), inner.forward_head(inner.forward_features(x), pre_logits=True))
        network(x).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        assert len(network.state_dict()) == 4

    def test_names_with_a_tag_pass_and_others_do_not(self, fake_timm):
        create_backbone("timm:maps.a1_in1k", in_channels=1)
        with pytest.raises(ConfigError, match="Did you mean 'tokens'"):
            create_backbone("timm:tokns", in_channels=1)
        for name in ("hf-hub:maps", "maps.hf-hub:x", "maps.x/tokens"):
            with pytest.raises(ConfigError, match=f"timm has no network '{name}'"):
                create_backbone(f"timm:{name}", in_channels=1)
        assert len(fake_timm.calls) == 1

    def test_missing_timm_is_named_with_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ConfigError, match=r"volrec\[timm\].*replaces a CPU build of torch"):
            create_backbone("timm:resnet18", in_channels=1)

"""Every network works where MONAI's users have theirs: in its trainer, and under its Grad-CAM by layer name."""

from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.visualize import GradCAM
from torch import nn

from volrec.networks import create, list_networks

NAMES = list_networks()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network_and_size(name: str):
    network = create(name, num_classes=2, width=1 / 16)
    slices, height, width = network.smallest
    return network, (slices + 4, 2 * height, 2 * width)


@pytest.mark.parametrize("name", NAMES)
def test_trains_in_monais_trainer(name):
    network, size = network_and_size(name)
    before = {label: parameter.detach().clone() for label, parameter in network.named_parameters()}
    batches = [{"image": torch.randn(2, 1, *size), "label": torch.tensor([0, 1])} for _ in range(2)]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=0.01),
        loss_function=nn.CrossEntropyLoss(),
        inferer=SimpleInferer(),
    )
    trainer.run()
    assert trainer.state.iteration == 2
    assert all(not torch.equal(parameter, before[label]) for label, parameter in network.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_gradcam_finds_its_maps_by_layer_name(name):
    network, size = network_and_size(name)
    network.eval()
    x = torch.randn(1, 1, *size)
    # Without its default, which inverts the map (important = 0), and before the ReLU that may leave nothing.
    cam = GradCAM(nn_module=network, target_layers=network.cam_layer, postprocessing=lambda found: found)
    found = cam(x=x, class_idx=1)
    assert found.shape == (1, 1, *size)
    assert torch.as_tensor(found).isfinite().all()
    assert cam.feature_map_size((1, 1, *size), device="cpu")[0] == 1

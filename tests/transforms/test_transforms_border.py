"""Random borders: cut where drawn and nowhere else, all slices of a sequence alike, other parts' draws untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volrec.errors import ConfigError
from volrec.transforms.batch import BatchAugment
from volrec.transforms.border import RandomBorder


def test_what_is_cut_is_the_darkest_value_of_its_sequence_and_channel_and_the_rest_stays() -> None:
    images = torch.randn(3, 2, 4, 10, 12)
    border = RandomBorder(border=0.4)
    params = border.draw(3, (4, 10, 12), torch.Generator().manual_seed(1))
    cut = border.apply(images, params).numpy()
    for sequence, (top, bottom, left, right) in enumerate(params.tolist()):
        for channel in range(2):
            wanted = np.full((4, 10, 12), images[sequence, channel].min().item(), dtype=np.float32)
            inner = slice(top, 10 - bottom), slice(left, 12 - right)
            wanted[:, inner[0], inner[1]] = images[sequence, channel, :, inner[0], inner[1]].numpy()
            np.testing.assert_array_equal(cut[sequence, channel], wanted)
    assert params.max() > 0


def test_cuts_reach_the_share_asked_for_and_no_further() -> None:
    params = RandomBorder(border=0.25).draw(500, (3, 40, 80), torch.Generator().manual_seed(0))
    assert params[:, :2].max() == 10 and params[:, 2:].max() == 20
    assert params.min() == 0
    assert len({tuple(row) for row in params.tolist()}) > 400


def test_a_border_leaves_what_other_parts_draw_as_it_was() -> None:
    settings = {"flip": {"W": 0.5}, "rotate": 10.0, "noise": 0.1, "gamma": 0.2}
    plain, cut = BatchAugment(**settings), BatchAugment(**settings, border=0.1)
    draws = [each.draw(5, (4, 16, 16), torch.Generator().manual_seed(7)) for each in (plain, cut)]
    assert torch.equal(draws[0].spatial.matrix, draws[1].spatial.matrix)
    assert torch.equal(draws[0].flip, draws[1].flip)
    assert torch.equal(draws[0].tone.gamma, draws[1].tone.gamma)
    assert draws[0].border is None and draws[1].border is not None
    images = torch.rand(5, 1, 4, 16, 16)
    assert torch.equal(cut.apply(images, draws[1]), cut.apply(images, draws[1]))
    assert not torch.equal(cut.apply(images, draws[1]), plain.apply(images, draws[0]))


@pytest.mark.parametrize("border", [-0.1, 0.5, 2.0])
def test_a_border_that_would_leave_nothing_is_refused(border: float) -> None:
    with pytest.raises(ConfigError, match="border must be in"):
        RandomBorder(border=border)

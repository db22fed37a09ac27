"""VLAD pooling with soft assignment that is learned: what a set of descriptors is made of, in words of a vocabulary.

H. Jégou, M. Douze, C. Schmid, P. Pérez, "Aggregating local descriptors into a compact image representation", CVPR
2010; soft and trained as in R. Girdhar, D. Ramanan, A. Gupta, J. Sivic, B. Russell, "ActionVLAD: Learning
spatio-temporal aggregation for action classification", CVPR 2017.

A descriptor x has a share in every word k, ``softmax_k(-alpha |x - c_k|^2)``. The square of x is the same for all
words and falls out: what is left is linear in x, with weights ``2 alpha c_k`` and biases ``-alpha |c_k|^2``. These are
trained apart from the centres c_k that are taken from x in the sums ``V_k = sum of share_k(x) (x - c_k)``. At the end
every V_k is brought to length one, and then the whole.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError

__all__ = ["VladPooling", "normalise_words", "unit_length"]

_SHORTEST = 1e-6


class VladPooling(nn.Module):
    """Residual sums (N, K, D) of descriptors (N, P, D) about K words.

    The sums of two sets add up to those of both sets together; `normalise_words` makes a VLAD vector of them.

    Parameters
    ----------
    words, features : int
        K, and length D of a descriptor.
    alpha : float
        Sharpness of the shares when words are set. The shares are learned from there on.

    Attributes
    ----------
    weight, bias : nn.Parameter
        (K, D) and (K,): shares are their softmax.
    centres : nn.Parameter
        (K, D).
    """

    def __init__(self, words: int, features: int, *, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.weight = nn.Parameter(torch.empty(words, features))
        self.bias = nn.Parameter(torch.empty(words))
        self.centres = nn.Parameter(torch.empty(words, features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw words evenly from the sphere that descriptors lie on."""
        self.set_words(unit_length(torch.randn_like(self.centres), 1))

    @torch.no_grad()
    def set_words(self, centres: Tensor) -> None:
        """Take words (K, D), and the shares that follow from their distances.

        Raises
        ------
        ConfigError
            For another number or length of words, or values that are no numbers.
        """
        if centres.shape != self.centres.shape:
            raise ConfigError(
                f"the vocabulary has {_times(self.centres.shape)} values (words x features), "
                f"got words of shape {tuple(centres.shape)}.",
                remedy="Give one row a word, as long as a descriptor of this network.",
                code="words",
            )
        # On the meta device, where networks are counted, there are no values to look at.
        if not centres.is_meta and not centres.isfinite().all():
            raise ConfigError(
                "words must be finite, got values that are no numbers.",
                remedy="Look for descriptors that are not finite.",
                code="words",
            )
        self.centres.copy_(centres)
        self.weight.copy_(2 * self.alpha * centres)
        self.bias.copy_(-self.alpha * centres.square().sum(1))

    def shares(self, x: Tensor) -> Tensor:
        """Return the shares (N, P, K) of descriptors (N, P, D) in the words, in float32 at least; their sum is one."""
        # Half precision would move sharp shares from word to word: at alpha 1000 its digits are worth several units
        # of the exponent.
        with _exact(x.device.type):
            x = _wide(x)
            return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype)).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual sums (N, K, D) of descriptors (N, P, D), in float32 at least."""
        with _exact(x.device.type):
            x = _wide(x)
            shares = self.shares(x).transpose(1, 2)
            # The residuals themselves would be K times as large as the descriptors.
            return shares @ x - shares.sum(2, keepdim=True) * self.centres.to(x.dtype)

    def extra_repr(self) -> str:
        """Show sizes and sharpness when the module is printed."""
        words, features = self.centres.shape
        return f"{words}, {features}, alpha={self.alpha:g}"


def normalise_words(sums: Tensor) -> Tensor:
    """Return VLAD vectors (..., K * D) of length one of residual sums (..., K, D), every word brought to one first.

    Words without descriptors stay zero.
    """
    return unit_length(unit_length(sums, -1).flatten(-2), -1)


def unit_length(x: Tensor, axis: int) -> Tensor:
    """Return vectors along an axis brought to length one.

    Vectors shorter than 1e-6 have no direction that could be trusted: they become zero and pass no gradient.
    """
    length = torch.linalg.vector_norm(x, dim=axis, keepdim=True)
    return x / length.masked_fill(length < _SHORTEST, torch.inf)


def _exact(device: str) -> AbstractContextManager[object]:
    """Return what turns autocast off where it is on (there is none on the meta device)."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _times(shape: torch.Size) -> str:
    return " x ".join(str(size) for size in shape)

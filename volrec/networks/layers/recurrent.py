"""The LSTM as the papers have it: one bias a gate."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SingleBiasLSTM", "init_lstm"]


class SingleBiasLSTM(nn.LSTM):
    """An LSTM over (B, T, F) with one bias a gate, as published and in Caffe; `torch.nn.LSTM` has two that add up.

    The second one is kept as a buffer of zeros under its usual name, so that the states of `torch.nn.LSTM` fit. Gates
    lie in the order input, forget, cell, output.

    Parameters
    ----------
    input_size, hidden_size : int
        Features F, and cells of a layer.
    **rest
        ``num_layers``, ``dropout``, ``bidirectional`` of `torch.nn.LSTM`.
    """

    def __init__(self, input_size: int, hidden_size: int, **rest: Any) -> None:
        super().__init__(input_size, hidden_size, batch_first=True, **rest)
        for name in [name for name, _ in self.named_parameters() if name.startswith("bias_hh")]:
            zeros = torch.zeros_like(getattr(self, name), requires_grad=False)
            delattr(self, name)
            self.register_buffer(name, zeros)

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return states (B, T, hidden_size), twice as many where bidirectional, and the last state and cell."""
        # cuDNN refuses to differentiate a recurrent layer in eval mode, which Grad-CAM asks for.
        differentiates_in_eval = torch.is_grad_enabled() and not self.training
        with torch.backends.cudnn.flags(enabled=False) if differentiates_in_eval else nullcontext():
            return super().forward(input, hx)

    def last_step(self, states: Tensor) -> Tensor:
        """Return the state of each direction after it has read every step, (B, hidden_size) or twice as many."""
        if not self.bidirectional:
            return states[:, -1]
        return torch.cat([states[:, -1, : self.hidden_size], states[:, 0, self.hidden_size :]], dim=1)


def init_lstm(lstm: SingleBiasLSTM, *, bound: float | None = None, forget_bias: float = 1.0) -> None:
    """Draw the weights of every layer and direction, and set the biases.

    Parameters
    ----------
    lstm : SingleBiasLSTM
        Changed in place.
    bound : float, optional
        Weights are uniform between -bound and bound; None: 1 / sqrt(units), as torch has it.
    forget_bias : float
        Of the forget gates; all other biases are 0. With 1 the gates start open, so that a long stack is remembered
        from the first step of the training on.
    """
    units = lstm.hidden_size
    bound = 1 / math.sqrt(units) if bound is None else bound
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            if name.startswith("weight"):
                nn.init.uniform_(parameter, -bound, bound)
            else:
                parameter.zero_()
                parameter[units : 2 * units] = forget_bias

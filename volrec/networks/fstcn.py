"""FSTCN: 3D kernels factorised into 2D kernels over space, then kernels over time and permuted features.

L. Sun, K. Jia, D.-Y. Yeung, B. E. Shi, "Human Action Recognition using Factorized Spatio-Temporal Convolutional
Networks", ICCV 2015.

The network takes two short sequences from its clip V of raw frames: ``V_clip``, 5 frames at a stride of 5, and
``V_diff(t) = |V(t) - V(t + 9)|`` at the same 5 places; together they span 30 frames. The lower spatial layers (SCL) are
shared by both and by all frames. Then the path over space sees one frame of ``V_clip``, the path over time all of
``V_diff``.

===========  ===========================================  =======================  =====================
block        operation                                    half padding             no padding
===========  ===========================================  =======================  =====================
input        one frame or difference                      3 x 204 x 204            3 x 204 x 204
scl1         7x7 / 2, ReLU, LRN, max pool 3x3 / 2         96 x 51 x 51             96 x 49 x 49
scl2         5x5 / 2, ReLU, LRN, max pool 3x3 / 2         256 x 13 x 13            256 x 11 x 11
scl3, scl4   3x3, padding 1, ReLU                         512 x 13 x 13            512 x 11 x 11
*space*      one frame
scl5s        3x3, padding 1, ReLU, max pool 3x3 / 3       128 x 4 x 4              128 x 3 x 3
fc_space     FC, FC                                       4096, 2048               4096, 2048
*time*       5 differences
scl5t        3x3, padding 1, ReLU, max pool 3x3 / 3       128 x 5 x 4 x 4          128 x 5 x 3 x 3
permute      (f, t, y, x) to (xy, t, f), times P          16 x 5 x 128             9 x 5 x 128
tcl          3x3 and 5x5 over (t, f), 32 each, ReLU       64 x 5 x 128             64 x 5 x 128
fc_time      FC, FC                                       4096, 2048               4096, 2048
*both*
fusion       FC of both paths side by side                2048                     2048
classifier   FC                                           101                      101
===========  ===========================================  =======================  =====================

206,930,469 parameters with half padding and 101 classes, 168 M of them in the first layer of ``fc_time``; 203,252,837
without padding. Shared layers cost 1.16 GMAC a frame with half padding and 0.89 without; a clip, with its six frames
and differences, 7.77 and 5.98.

P, a square matrix over the 128 features, is learned: it makes neighbours of features that should meet in one kernel of
``tcl``. It starts as the identity, or as a random permutation (option `permutation`).

Scores of clips and crops are fused by the sparsity concentration index: ``protocol.consensus: sci``.

Ambiguities and the option that settles each
--------------------------------------------
padding : the grid is 4 x 4 (half: half of the kernel on every side, in the pools of scl1 and scl2 as well) or 3 x 3.
fusion_fc : a layer of 2048 after the two paths, or straight to the classifier.
spatial_frame : one random frame of ``V_clip`` in training and the middle one in evaluation, or always the middle one.
norm : the constants of LRN are not given; here AlexNet's in Caffe (5 channels, alpha 1e-4, beta 0.75, k 1). "none"
    leaves LRN out.
kernels : both, or one of ``tcl`` alone, as in the paper's ablation.
Not by an option : positions xy are channels of the kernels over (t, f). Were they further samples, the first layer of
    ``fc_time`` would have 2.7 G weights. Dropout of 0.5 follows ``tcl`` and every hidden layer. The rule of
    the initial weights is ours: He et al. (ICCV 2015), the last layer small. The paper first trains the shared layers
    alone, on frames, from ImageNet weights and below two FC layers that are then thrown away; that auxiliary classifier
    is not part of this network.

Adapted to volumes (``faithful=False``)
---------------------------------------
``V_clip`` is every slice and ``V_diff`` the difference to the next one; past the end the last slice stands in, so that
the difference of a single slice is zero. `difference` compares over a longer way, `stride` above 1 skips slices. The
path over space takes the maximum over slices. The maps of the path over time are averaged to `frames` places along T,
and those of both paths reduced by maximum to `grid` x `grid`: any T from 1 and any H, W from 16 up can be read. Batch
normalisation after the convolutions of scl1 to scl5 in place of LRN, FC layers of 512 and 256 (`hidden`), `stem_stride`
1 for small canvases. The filters of ``tcl`` are 32 a kernel at any width: `filters` sets them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.base import SequenceNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS, ConvUnit, CrossChannelNorm, init_kaiming, norm_layer, scale_channels
from volrec.networks.registry import register

__all__ = ["FSTCN", "TemporalConvolution", "TransformPermute"]

SPEC = NetworkSpec(
    name="fstcn",
    paper="Sun, Jia, Yeung, Shi",
    title="Human Action Recognition using Factorized Spatio-Temporal Convolutional Networks",
    year=2015,
    default_clip=(3, 30, 204, 204),
    smallest=(1, 16, 16),
    num_classes=101,
    summary="2D convolutions over slices, then 2D convolutions over time and permuted features of slice differences.",
    options={
        "frames": Option(
            int, 5, "frames of V_clip; adapted: places along T that the path over time keeps", low=1, high=64
        ),
        "stride": Option(
            int, 1, "slices from one place to the next; above 1 slices in between are not read", low=1, paper=5
        ),
        "difference": Option(int, 1, "slices from the first to the second of a difference", low=1, paper=9),
        "padding": Option(
            str,
            "half",
            "of scl1 and scl2: half of the kernel (grid 4 x 4), or none (grid 3 x 3, needs larger slices)",
            choices=("half", "none"),
            free=True,
        ),
        "grid": Option(
            int, None, "positions a side that both paths keep (None: 4, or 3 without padding)", low=1, high=16
        ),
        "spatial_frame": Option(
            str,
            "max",
            "slices that the path over space sees: maximum over all, the middle one, or a random one in training",
            choices=("max", "middle", "random"),
            paper="random",
            free=("random", "middle"),
        ),
        "permutation": Option(
            str,
            "identity",
            "what the learned matrix over features starts from",
            choices=("identity", "random"),
            free=True,
        ),
        "kernels": Option(
            str,
            "both",
            "kernels over time and features; one alone is the paper's ablation",
            choices=("both", "3x3", "5x5"),
            free=True,
        ),
        "filters": Option(int, 32, "filters of each kernel over time and features, whatever the width", low=1),
        "fusion_fc": Option(bool, True, "a hidden layer between the two paths and the classifier", free=True),
        "hidden": Option(
            tuple,
            (512, 256),
            "sizes of the two hidden layers of each path, times width; the second is also that of the fusion",
            low=1,
            length=2,
            paper=(4096, 2048),
        ),
        "stem_stride": Option(int, 2, "stride of scl1 in the plane; 1 for small canvases", low=1, high=2),
        "norm": Option(
            str,
            "batch",
            "after the convolutions of space; lrn follows scl1 and scl2 only",
            choices=("lrn", *NORMS),
            paper="lrn",
            free=("lrn", "none"),
        ),
        "dropout": Option(float, 0.2, "dropout after tcl and each hidden layer", low=0, high=0.95, paper=0.5),
    },
    ambiguities=(
        "xy in tcl: positions are channels of its kernels; as samples the next layer would have 2.7 G weights.",
        "padding: grid 4 x 4 with half padding, 3 x 3 without.",
        "fusion_fc: a hidden layer after the two paths, or none.",
        "spatial_frame: the paper's is random in training and the middle one in evaluation, or always the middle one.",
        "kernels: both, or one alone as in the paper's ablation.",
        "norm: the constants of LRN are not given, here AlexNet's in Caffe; 'none' leaves LRN out.",
    ),
)


class TransformPermute(nn.Module):
    """The T-P operator: maps (B, F, T, h, w) to images (B, h*w, T, F) over time and features, times a learned matrix.

    Position (y, x) becomes channel ``y * w + x``.

    Parameters
    ----------
    features : int
        F.
    start : {"identity", "random"}
        What the matrix starts from; ``random`` is a permutation.
    """

    def __init__(self, features: int, *, start: str = "identity") -> None:
        super().__init__()
        matrix = torch.eye(features)
        self.matrix = nn.Parameter(matrix[torch.randperm(features)] if start == "random" else matrix)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the images: ``out[b, xy, t, g] = sum over f of maps[b, f, t, y, x] * matrix[f, g]``."""
        return maps.flatten(3).permute(0, 3, 2, 1) @ self.matrix


class TemporalConvolution(nn.Module):
    """The TCL: parallel 2D convolutions over (time, features), ReLU, dropout; (B, xy, T, F) to (B, filters, T, F).

    Parameters
    ----------
    positions : int
        Input channels xy.
    filters : int
        Of each kernel; their maps lie side by side, in the order of `sizes`.
    sizes : tuple of int
        Side of each kernel, odd; the plane is padded to keep its size.
    dropout : float
        After the ReLU.
    """

    def __init__(self, positions: int, filters: int, *, sizes: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(positions, filters, size, padding=size // 2) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        return self.dropout(F.relu(torch.cat([conv(x) for conv in self.convs], dim=1)))


@register(SPEC)
class FSTCN(SequenceNetwork):
    """FSTCN; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: fixed clip size.
    width : float
        Scale of all channel counts but `filters`.
    frames, stride, difference, padding, grid, spatial_frame, permutation, kernels, filters, fusion_fc, hidden, \
stem_stride, norm, dropout
        The options of ``spec("fstcn")``.
    """

    cam_layer = "path_maps"
    stage_order = ("permute", "fc_space")

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        frames: int,
        stride: int,
        difference: int,
        padding: str,
        grid: int | None,
        spatial_frame: str,
        permutation: str,
        kernels: str,
        filters: int,
        fusion_fc: bool,
        hidden: tuple[int, ...],
        stem_stride: int,
        norm: str,
        dropout: float,
    ) -> None:
        half = padding == "half"
        # The last map must hold a whole position; instance statistics need more than one.
        side = _smallest_side(2 if norm == "instance" else 1, stem_stride, half=half)
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(1, side, side),
            exact=SPEC.default_clip[1:] if faithful else None,
        )
        self.stride, self.difference, self.spatial_frame = stride, difference, spatial_frame
        # The paper's places are those whose second frame lies in the clip.
        self.margin = difference if faithful else 0
        shared = [scale_channels(channels, width) for channels in (96, 256, 512)]
        features = scale_channels(128, width)
        sizes = [scale_channels(size, width) for size in hidden]
        units = "none" if norm == "lrn" else norm

        self.scl = nn.Sequential(
            OrderedDict(
                scl1=_pooled(in_channels, shared[0], 7, stem_stride, half=half, norm=norm),
                scl2=_pooled(shared[0], shared[1], 5, 2, half=half, norm=norm),
                scl3=ConvUnit(shared[1], shared[2], kernel_size=3, padding=1, dims=2, norm=units),
                scl4=ConvUnit(shared[2], shared[2], kernel_size=3, padding=1, dims=2, norm=units),
            )
        )
        self.scl5s = ConvUnit(shared[2], features, kernel_size=3, padding=1, dims=2, norm=units)
        self.scl5t = ConvUnit(shared[2], features, kernel_size=3, padding=1, dims=2, norm=units)
        # Does nothing: the maps of both paths pass through it as one block, where hooks (Grad-CAM) find them.
        self.path_maps = nn.Identity()

        grid = grid or (4 if half else 3)
        self.pool: nn.Module = nn.MaxPool3d((1, 3, 3)) if faithful else nn.AdaptiveMaxPool3d((None, grid, grid))
        # At the paper's clip size there are as many places already and this changes nothing.
        self.time_pool = nn.AdaptiveAvgPool3d((frames, None, None))
        self.fc_space = _hidden_layers(features * grid**2, sizes, dropout)
        self.permute = TransformPermute(features, start=permutation)
        sides = {"both": (3, 5), "3x3": (3,), "5x5": (5,)}[kernels]
        self.tcl = TemporalConvolution(grid**2, filters, sizes=sides, dropout=dropout)
        self.fc_time = _hidden_layers(filters * len(sides) * frames * features, sizes, dropout)
        self.fusion = _hidden_layers(2 * sizes[1], sizes[1:], dropout) if fusion_fc else nn.Identity()
        self.num_features = sizes[1] if fusion_fc else 2 * sizes[1]
        self.classifier = nn.Linear(self.num_features, num_classes)
        init_kaiming(self)
        self.init_classifier(self.classifier)

    def sample(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return V_clip and V_diff (B, C, P, H, W) of clips (B, C, T, H, W)."""
        slices = x.shape[2]
        places = torch.arange(0, slices - self.margin, self.stride, device=x.device)
        first = x if self.stride == 1 and not self.margin else x[:, :, places]
        return first, (first - x[:, :, (places + self.difference).clamp(max=slices - 1)]).abs()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the maps (B, 2F, P, h, w) of both paths before their pools: first those of space, then of time.

        Where the path over space sees one frame only, its maps are zero at the other places P: the maximum over places
        is then that frame's, since no activation is below zero.
        """
        frames, changes = self.sample(x)
        batch, places = changes.shape[0], changes.shape[2]
        chosen = None
        if self.spatial_frame != "max":
            chosen = self._chosen_places(batch, places, x.device)
            frames = frames[torch.arange(batch, device=x.device), :, chosen].unsqueeze(2)
        shared = self.scl(torch.cat([_by_slice(frames), _by_slice(changes)]))
        of_frames, of_changes = shared.split([shared.shape[0] - batch * places, batch * places])
        space = self.scl5s(of_frames).unflatten(0, (batch, -1)).transpose(1, 2)
        time = self.scl5t(of_changes).unflatten(0, (batch, places)).transpose(1, 2)
        if chosen is not None:
            space = space * F.one_hot(chosen, places).to(space.dtype)[:, None, :, None, None]
        return self.path_maps(torch.cat([space, time], dim=1))

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or with `pre_logits` the fused features of both paths."""
        space, time = features.chunk(2, dim=1)
        space = self.pool(space.amax(2, keepdim=True)).flatten(1)
        images = self.permute(self.time_pool(self.pool(time)))
        x = torch.cat([self.fc_space(space), self.fc_time(self.tcl(images).flatten(1))], dim=1)
        x = self.fusion(x)
        return x if pre_logits else self.classifier(x)

    def _chosen_places(self, batch: int, places: int, device: torch.device) -> Tensor:
        """Return the place (B,) of the frame that the path over space sees."""
        if self.training and self.spatial_frame == "random":
            return torch.randint(places, (batch,), device=device)
        return torch.full((batch,), places // 2, device=device)


def _by_slice(x: Tensor) -> Tensor:
    """Return slices (B*P, C, H, W) of clips (B, C, P, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _pooled(channels: int, out: int, kernel: int, stride: int, *, half: bool, norm: str) -> nn.Sequential:
    """Return a convolution with its normalisation, ReLU and pool."""
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2 if half else 0, bias=norm in {"lrn", "none"})
    pool = nn.MaxPool2d(3, 2, padding=1 if half else 0)
    if norm == "lrn":
        lrn = CrossChannelNorm(5, alpha=1e-4, beta=0.75, k=1.0, mean=True)
        return nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU(inplace=True), norm=lrn, pool=pool))
    # ReLU commutes with the maximum: pooling first leaves it a quarter of the positions.
    layer = norm_layer(norm, out, dims=2)
    return nn.Sequential(OrderedDict(conv=conv, norm=layer, pool=pool, relu=nn.ReLU(inplace=True)))


def _hidden_layers(features: int, sizes: list[int], dropout: float) -> nn.Sequential:
    """Return fully connected layers of these sizes, each with ReLU and dropout."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, size in enumerate(sizes, 1):
        layers[f"fc{number}"] = nn.Linear(features, size)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        layers[f"drop{number}"] = nn.Dropout(dropout)
        features = size
    return nn.Sequential(layers)


def _smallest_side(positions: int, stem_stride: int, *, half: bool) -> int:
    """Return the smallest side of a slice that leaves so many positions a side after scl2."""
    side = positions
    for kernel, stride in ((3, 2), (5, 2), (3, 2), (7, stem_stride)):
        # With half padding fewer voxels would do; they would see little but padding.
        side = side * stride if half else (side - 1) * stride + kernel
    return side

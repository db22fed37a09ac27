"""The protocol of a video benchmark: everything between a video file and the number in a paper, as data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from volrec.config.sections import Count, NetworkConfig, NonNegative, Positive, Probability, Section

__all__ = [
    "FeatureClassifier",
    "FrameInput",
    "FusionConfig",
    "MotionInput",
    "StreamProtocol",
    "StreamTraining",
    "TestViews",
    "TrainViews",
    "TrajectoryClassifier",
    "VideoNetwork",
    "VideoProtocol",
]

Size = Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Reading = Literal["rgb", "flow", "warped", "difference"]
Crops = Literal["center", "mirror", "three", "four", "five", "ten", "eighteen"]
Metric = Literal[
    "clip-top1", "video-top1", "video-top5", "mean-class-accuracy", "clip-hit1", "video-hit1", "video-hit5"
]
Descriptor = Literal["trajectory", "hog", "hof", "mbhx", "mbhy"]
_RGB: list[Reading] = ["rgb"]
_DESCRIPTORS: list[Descriptor] = ["trajectory", "hog", "hof", "mbhx", "mbhy"]


class FrameInput(Section):
    """How a decoded frame becomes what a network reads, in this order: resize, crop, channel order, mean, scale."""

    resize: Size | None = None
    """One number: the shorter side; two: height and width; null: as decoded."""
    interpolation: Literal["bilinear", "bicubic", "area"] = "bilinear"
    """Of the resize."""
    crop: Size | None = None
    """Side, or height and width, of what the network sees; null: the whole frame."""
    order: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels."""
    mean: list[float] = Field(default_factory=lambda: [0.0])
    """Subtracted from values in 0 to 255: one number, or one a channel in `order`."""
    scale: list[float] = Field(default_factory=lambda: [1.0])
    """Multiplied after that: one number, or one a channel."""
    frame_rate: Positive | None = None
    """Frames a second that are looked at; null: all of them."""


class MotionInput(Section):
    """How motion between frames becomes what a network reads."""

    estimator: Literal["tvl1", "brox", "farneback", "dis"] = "tvl1"
    """The paper's. Brox is in no library that installs with a package: TV-L1 stands in, and it is said."""
    bound: Positive = 20.0
    """Displacements are clipped to this many pixels."""
    eight_bit: bool = True
    """Displacements are kept as 256 levels, in JPEG pictures."""
    stack: Count = 10
    """Fields (L) or differences of a frame: x1, y1, x2, y2 .. are 2 L channels, differences 3 L."""
    order: Literal["forward", "centred", "bidirectional", "trajectory"] = "forward"
    """Which fields: the L from the frame on, those around it, half of them backwards, or along the paths."""
    subtract_mean: bool = False
    """Take the mean over the crop from each component of each field (motion of the camera)."""
    third: Literal["none", "zero", "magnitude"] = "none"
    """A third channel beside x and y of each field (LRCN: the magnitude)."""
    gain: Positive = 1.0
    """What the network reads for one pixel of displacement (or one grey value of a difference)."""


class TestViews(Section):
    """What of a video is looked at in the test, and how the scores of these views become one."""

    __test__ = False  # no test, whatever pytest thinks

    clips: Literal["even", "random", "windows", "whole"] = "even"
    """``even``: `count` at equal spacing; ``random``: `count` drawn; ``windows``: every `step` frames, to the end;
    ``whole``: the video as one clip."""
    count: Annotated[int, Field(ge=0)] = 0
    """Clips of ``even`` and ``random``."""
    rule: Literal["floor", "spread"] = "floor"
    """Places of ``even``: ``floor``: (frames - length) // (count - 1) apart from the first frame on, as TSN's code;
    ``spread``: from the first to the last possible place."""
    length: Count = 1
    """Frames of a clip (of ``whole``: at most so many)."""
    stride: Count = 1
    """Frames from one of a clip to the next."""
    step: Annotated[int, Field(ge=0)] = 0
    """Frames from one window to the next; 0: a window's length."""
    last: bool = False
    """``windows``: one more, of the last frames, where the others do not reach them."""
    short: Literal["first", "loop", "last", "none"] = "loop"
    """A video shorter than a clip: its first frame stands in for what is missing (TSN: the first index), it begins
    anew, its last frame stays, or it is read as it is."""
    joint: bool = False
    """All clips side by side are one input of the network (ActionVLAD)."""
    crops: Crops = "center"
    """``mirror``: centre and its mirror; ``three``: along the longer side; ``four``: two places, each with its mirror;
    ``five``: corners and centre; ``ten``: with mirrors; ``eighteen``: 3 x 3 places with mirrors."""
    stage: Literal["logits", "softmax"] = "softmax"
    """What is averaged over views."""
    crop_consensus: Literal["mean", "sci"] = "mean"
    """Over the crops of a clip."""
    clip_consensus: Literal["mean", "max"] = "mean"
    """Over the clips of a video."""

    @model_validator(mode="after")
    def _counted(self) -> TestViews:
        if (self.clips in ("even", "random")) != (self.count > 0):
            raise ValueError(f"test.count goes with clips 'even' or 'random', got '{self.clips}' with {self.count}")
        return self


class TrainViews(Section):
    """What of a video a training step looks at."""

    segments: Annotated[int, Field(ge=0)] = 0
    """0: one clip from a place drawn; K: one snippet from each of K equal parts, side by side in one input."""
    length: Count = 1
    """Frames of the clip or snippet."""
    stride: Count = 1
    """Frames from one to the next."""
    crop: Literal["random", "corners", "center"] = "random"
    """A place drawn; a corner or the centre at a size drawn from `scales`; the centre."""
    scales: list[Probability] = Field(default_factory=lambda: [1.0])
    """Sizes of ``corners``, in shorter sides of the frame."""
    mirror: bool = True
    """Every second view is mirrored, displacements with it."""


class StreamTraining(Section):
    """How the paper trains one network; a run here is as long as it is told to be, at the same course."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Optimiser."""
    lr: Positive = 1e-3
    """First learning rate."""
    momentum: Probability = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Of SGD."""
    weight_decay: NonNegative = 5e-4
    """Of kernels."""
    batch: Count = 128
    """Videos an update."""
    iterations: Count = 10000
    """Updates."""
    steps: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Updates after which the rate is multiplied by `gamma`."""
    gamma: Positive = 0.1
    """Factor of a step."""
    clip_norm: NonNegative = 0.0
    """Largest gradient norm; 0 does not clip."""
    epsilon: Positive = 1e-8
    """Of Adam."""
    partial_bn: Literal["none", "statistics", "all"] = "none"
    """As `optim.partial_bn`."""
    init: str = "scratch"
    """What the paper begins with: scratch, or the name of the weights."""
    freeze: list[str] = Field(default_factory=list)
    """Patterns of the names of parameters that keep these weights (``spatial.*``)."""


class VideoNetwork(NetworkConfig):
    """A network of the registry in the paper's form."""

    faithful: bool = True
    """The paper's to the last layer; a run at another width or scale takes the adapted form."""


class StreamProtocol(Section):
    """One network of a system: what it reads, how it is trained and tested."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    """Name of its folder and of its scores."""
    network: VideoNetwork
    reads: list[Reading] = Field(default_factory=_RGB.copy)
    """Channels, in this order."""
    frames: FrameInput = Field(default_factory=FrameInput)
    motion: MotionInput | None = None
    """Null where it reads no motion."""
    test: TestViews
    train: TrainViews = Field(default_factory=TrainViews)
    training: StreamTraining = Field(default_factory=StreamTraining)
    weight: NonNegative = 1.0
    """In the fusion of streams."""

    @model_validator(mode="after")
    def _motion_is_said(self) -> StreamProtocol:
        if not self.reads or len(set(self.reads)) != len(self.reads) or "rgb" in self.reads[1:]:
            raise ValueError(f"reads names each kind of channels once, rgb first; got {self.reads}")
        if any(kind != "rgb" for kind in self.reads) != (self.motion is not None):
            raise ValueError(f"motion goes with flow, warped or difference; stream '{self.name}' reads {self.reads}")
        return self


class FusionConfig(Section):
    """How the scores of streams become one."""

    stage: Literal["logits", "softmax", "relu-l1", "l2"] = "softmax"
    """What is weighted; ``l2``: scores of a video divided by their length."""
    method: Literal["weights", "svm"] = "weights"
    """Weighted sum, or a linear SVM on the stacked L2-normalised softmax scores of the training videos."""
    trajectories: Probability = 0.0
    """Share of the scores of improved dense trajectories: (1 - share) streams + share trajectories; 0 leaves them
    out."""
    trajectory_stage: Literal["scores", "l2"] = "l2"
    """What these two sums are of: the fused scores and those of trajectories as they are, or each divided by its
    length (ActionVLAD)."""


class FeatureClassifier(Section):
    """Features of a network, averaged over clips, and a linear SVM."""

    layer: str = "fc6"
    """Layer whose output (after its ReLU) is the feature."""
    normalize: Literal["l2", "none"] = "l2"
    """Of the averaged feature."""
    c: list[Positive] = Field(default_factory=lambda: [1.0])
    """C of the SVM; of several the best by cross-validation over the groups of the training videos."""
    nets: Count = 1
    """Networks with weights of their own."""
    combine: Literal["concatenate", "average"] = "concatenate"
    """Several networks: their normalised features side by side (paper), or their predictions averaged (author)."""
    trajectories: bool = False
    """Put the vector of improved dense trajectories beside the feature."""


class TrajectoryClassifier(Section):
    """Improved dense trajectories, encoded, and an SVM."""

    encoding: Literal["fisher", "bow"] = "fisher"
    """Fisher vectors of a mixture of Gaussians, or a bag of words by k-means."""
    words: Count = 256
    """Gaussians, or words, of each descriptor."""
    samples: Count = 256000
    """Descriptors that the vocabulary is learned from."""
    descriptors: list[Descriptor] = Field(default_factory=_DESCRIPTORS.copy)
    """Which are encoded."""
    kernel: Literal["linear", "chi2"] = "linear"
    """Of the SVM; chi2: exp of minus the chi-square distance over its mean, averaged over descriptors."""
    c: Positive = 100.0
    """C of the SVM."""

    @model_validator(mode="after")
    def _machine_fits(self) -> TrajectoryClassifier:
        if self.kernel == "chi2" and self.encoding != "bow":
            raise ValueError("kernel 'chi2' compares bags of words (encoding 'bow'), got encoding 'fisher'")
        return self


class VideoProtocol(Section):
    """A paper's protocol for a video benchmark."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """What `--protocol` is given."""
    system: str
    """The system, as the published tables call it."""
    paper: str
    """Authors, venue, year."""
    summary: str
    """One line."""
    datasets: list[Literal["ucf101", "hmdb51", "kinetics", "sports1m"]]
    """What the paper reports on."""
    streams: list[StreamProtocol] = Field(default_factory=list)
    """Networks; empty for trajectories alone."""
    fusion: FusionConfig = Field(default_factory=FusionConfig)
    features: FeatureClassifier | None = None
    """Scores come from an SVM on features of the (one) network."""
    trajectories: TrajectoryClassifier | None = None
    """Improved dense trajectories: alone, or beside the networks as `fusion` or `features` says."""
    metric: Metric = "video-top1"
    """The paper's headline."""
    splits: Literal["1", "1,2,3", "val", "test"] = "1,2,3"
    """What the headline is a mean over."""
    published: list[str] = Field(default_factory=list)
    """Keys of the published results that this protocol stands for."""
    open: list[str] = Field(default_factory=list)
    """What the paper leaves open, and what is taken here."""
    source: str = ""
    """Where the facts come from."""

    @model_validator(mode="after")
    def _whole(self) -> VideoProtocol:
        if not self.streams and self.trajectories is None:
            raise ValueError("a protocol has streams, or trajectories")
        if len({stream.name for stream in self.streams}) != len(self.streams):
            raise ValueError("streams have names of their own")
        if self.features is not None and len(self.streams) != 1:
            raise ValueError("features are those of one stream")
        wants = self.fusion.trajectories > 0 or (self.features is not None and self.features.trajectories)
        if wants and self.trajectories is None:
            raise ValueError("say how trajectories are encoded (trajectories:)")
        return self

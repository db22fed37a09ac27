"""Readers of video data sets in the layouts people have on disk."""

from volrec.benchmarks.sets.common import Split, Video, VideoSet, split_digest

__all__ = ["Split", "Video", "VideoSet", "split_digest"]

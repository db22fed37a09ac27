"""The video benchmarks that the networks come from: data sets, protocols, published numbers, hand-crafted features.

A video is a sequence like a volume; from there on the same networks read it.
"""

from volrec.benchmarks.scores import ScoreSet

__all__ = ["ScoreSet"]

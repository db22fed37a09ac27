"""The run folder: everything that one training leaves, written and read in this one place."""

from volrec.runs.folder import RunFolder
from volrec.runs.member import Member, member_card

__all__ = ["Member", "RunFolder", "member_card"]

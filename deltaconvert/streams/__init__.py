"""Many cameras on one network: a pool in which each has a place of a batch.

pool.py is what a user sees; batch.py, the network planned for so many places; arrivals.py, frames on their way to it.
"""

from deltaconvert.streams.pool import Result, StreamPool, StreamStats

__all__ = ["Result", "StreamPool", "StreamStats"]

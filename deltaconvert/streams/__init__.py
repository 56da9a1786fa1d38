"""Many cameras on one network: a pool in which each camera has a place in a batch.

pool.py is what a user calls; batch.py has the network planned for a number of places, arrivals.py the frames that wait.
"""

from deltaconvert.streams.pool import Result, StreamPool, StreamStats

__all__ = ["Result", "StreamPool", "StreamStats"]

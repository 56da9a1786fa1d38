"""A converted network at a video: where frames come from, what they cost beside the dense network, and what is shown.

inputs.py makes frames of whatever a user has, demo.py a clip for who has none; watch.py plays them through the network,
measure.py times it against the dense one, and speed.py foretells that in seconds.
"""

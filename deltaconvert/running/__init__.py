"""The last stage: a lowered network takes frame after frame, and keeps the state of their streams between them.

run.py       one frame, from flat inputs to flat outputs, and the state of its streams
intake.py    which frames a network takes
plans.py     one plan for each size of frame
turns.py     calls from several threads, one after the other
modes.py     a frame keeps its own types under torch.autocast
snapshot.py  the state of a stream as bytes
monitor.py   the error of a running network, measured on one tile (tile.py) now and then
compiled.py  a frame as one operator for torch.compile
frozen.py    what a converted network refuses: other weights, types, devices
memory.py    the error where the device's memory does not suffice
"""

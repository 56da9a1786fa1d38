"""The last stage: a lowered network takes frame after frame, and keeps the state of their streams between them.

run.py is a frame from its inputs to its outputs: intake.py checks them, plans.py has a plan for their size, turns.py
lets calls of several threads follow each other, in types of their own (modes.py). snapshot.py is a stream's state as
bytes, monitor.py the error of a running network, at a tile.py of it, and compiled.py a frame as an operator that
torch.compile takes. frozen.py and memory.py are its refusals.
"""

"""The parts of calibrate.py.

asked.py        checks what calibrate is asked for
sites.py        where a network may have thresholds
setting.py      one choice of thresholds, and the outcome of trying it
trials.py       tries settings on a clip; known.py keeps outcomes, work.py counts the work
crew.py, per_stream.py, replay.py   make trials faster: processes, streams of one batch, CUDA graphs
search.py       searches for the best setting; moves.py and sensitivity.py propose settings
held_out.py     lowers thresholds until they keep the budget on other frames
quickest.py     chooses by the clock
"""

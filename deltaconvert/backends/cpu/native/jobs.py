"""What compiled shares are told stands in arrays of integers, addresses among them: the places in those arrays."""

from __future__ import annotations

# The fields of a job. A window of one tap without stride and padding reads the pixel that it makes.
PIXELS, COUNT, STAGES, STAGE_TABLE, GROUP, SCRATCH, SCRATCH_BYTES, ROW_BYTES = range(8)
INPUT, BY_PLACE, OUT, LIMITS, MARKS, ZEROS = range(8, 14)
HEIGHT, BREADTH, OUT_HEIGHT, OUT_BREADTH, TAPS_Y, TAPS_X = range(14, 20)
STRIDE_Y, STRIDE_X, PADDING_Y, PADDING_X, DILATION_Y, DILATION_X, PAST_THE_CACHE = range(20, 27)
JOB = 27
# Those of a stage, and of a panel of its weights.
DEPTH, CHANNELS, PANELS, PANEL_TABLE, ADDS, ACTIVATION, BY_CHANNEL = range(7)
STAGE = 7
COLUMN, VECTORS, WEIGHTS, BIAS = range(4)
PANEL = 4

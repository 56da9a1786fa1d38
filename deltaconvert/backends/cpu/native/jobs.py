"""What compiled shares are told stands in arrays of int64, addresses among them: the places in those arrays.

A job (`Chain.run` of chains.py fills it in):
    PIXELS, COUNT     the list of pixels, 0 for all of them, and how many are made
    STAGES            how many, and STAGE_TABLE, their rows, as below
    GROUP             blocks of pixels that a thread takes at a time
    SCRATCH           memory of all threads; SCRATCH_BYTES, what each of them has, ROW_BYTES, a row between two stages
    INPUT, OUT        rows that the first stage reads and the last one writes, one a pixel
    BY_PLACE          those of OUT, and what is added, are one for each pixel of the list
    LIMITS            by how much a channel must have moved for its row to be stored; 0 where all rows are
    MARKS             a byte a pixel, set where a row is stored by LIMITS
    ZEROS             a row of zeros, read outside of the map
    HEIGHT and more   the map and the first stage's window; one tap without stride and padding reads the pixel it makes
    PAST_THE_CACHE    results go to memory at once
A stage:
    DEPTH, CHANNELS   floats of a pixel that it reads, pairs of bfloat16 among them, and channels that it makes
    BY_LINES          it reads an odd number of bfloat16 of a pixel: pairs reach from tap to tap, and DEPTH is that of
                      a line of taps, which lies in one piece or is copied to one
    ODD               1 where a bfloat16 is left over behind the pairs, else 0
    READ_BYTES, BYTES of a pixel that it reads, and of a channel
    BY_CHANNEL        it is a depthwise convolution
    ALONG             its channels are few: the sum of each is made along what is read (along.py)
    WIDENED           1 where rows of bfloat16 are made floats before they are multiplied: DEPTH is in those
    PANELS            how many panels of channels its weights are in, and PANEL_TABLE, these, as below
    ADDS              rows that are added to its sums; 0 for none
    ACTIVATION        three floats: the bounds, and what values below 0 are multiplied by
A panel: its first channel, how many vectors of channels it has, its weights and its biases.
"""

from __future__ import annotations

PIXELS, COUNT, STAGES, STAGE_TABLE, GROUP, SCRATCH, SCRATCH_BYTES, ROW_BYTES = range(8)
INPUT, BY_PLACE, OUT, LIMITS, MARKS, ZEROS = range(8, 14)
HEIGHT, BREADTH, OUT_HEIGHT, OUT_BREADTH, TAPS_Y, TAPS_X = range(14, 20)
STRIDE_Y, STRIDE_X, PADDING_Y, PADDING_X, DILATION_Y, DILATION_X, PAST_THE_CACHE = range(20, 27)
JOB = 27
DEPTH, CHANNELS, PANELS, PANEL_TABLE, ADDS, ACTIVATION, BY_CHANNEL, BYTES = range(8)
BY_LINES, ODD, READ_BYTES, ALONG, WIDENED = range(8, 13)
STAGE = 13
COLUMN, VECTORS, WEIGHTS, BIAS = range(4)
PANEL = 4

"""What numba compiles, for the processor at hand, where it is installed (the extra "cpu").

machine_code.py compiles a function, and shares one out to torch's threads (threads.py, regions.py). loops.py, masks.py,
differences.py and gate_tiles.py are loops over pixels. The others are convolutions: kernels.py, along.py, stencils.py
and transforms.py, in LLVM's words (vectors.py), are the sums; shares.py, squares.py and strips.py take a few pixels
through a whole chain of them, by a job (jobs.py) that lists what to read (reads.py) and lies in plain memory
(memory.py).

No other folder has compiled functions: what is kept on disk is known by the sources here.
"""

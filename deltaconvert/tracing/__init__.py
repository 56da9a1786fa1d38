"""The first stage: a network -> a torch.fx graph over flat tensors that equals it on the example.

capture.py tries the ways in turn: trace.py symbolically (tracer.py on ranks.py; writes.py tells who sees what is
written in place), exported.py by torch.export. Where none sees the network as a whole, parts.py takes its largest
modules. twin.py copies a network, so that nothing of this leaves a trace in it; remembers.py tells which cannot be a
graph.
"""

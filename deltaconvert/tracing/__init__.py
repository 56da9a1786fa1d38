"""The first stage: a network -> a torch.fx graph over flat tensors that equals it on the example.

capture.py   tries the ways below in turn
trace.py     symbolically, with torch.fx. Its tracer.py asks ranks.py for sizes; stand_in.py and asking.py handle what
             torch.fx does not see; writes.py finds who sees what is written in place
exported.py  by torch.export
parts.py     neither sees the whole network: its largest modules that convert
twin.py      copies of a network, so that nothing of this changes it
remembers.py networks that read what an earlier call wrote, which no graph can; keeps.py lists what they may write to,
             stale.py has stand-ins for it. What the first call alone writes may be read, if steps.py finds that
             later ones do the same with a frame; unseen.py reads off code what the example does not show
"""

"""Runs a converted network on a video, times it against the dense network, and shows what changed.

inputs.py   frames from files, folders, cameras or tensors
watch.py    plays frames through the network, beside the dense one
measure.py  times both; speed.py predicts the speed from a measurement of seconds
demo.py     what `deltaconvert demo` does, on the clip that scene.py renders
"""

"""Small networks and videos in double precision, for tests of the public functions."""

import torch
from oracle import Call, scripted_video
from torch import nn

SHAPE = (2, 3, 8, 7)


def conv(inner=3, outer=4, **options):
    return nn.Conv2d(inner, outer, 3, padding=1, **options)


def small():
    return nn.Sequential(conv(), nn.ReLU(), conv(4, 2)).eval().double()


def call(function, **parts):
    return Call(function, **parts).eval().double()


def video(shape=SHAPE, seed=0):
    return scripted_video(shape, torch.float64, seed)

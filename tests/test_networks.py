"""Random small networks and random changes: what holds for one operator holds for their compositions."""

from __future__ import annotations

import copy

import torch
from difference_form import DifferenceForm
from drawn import JOINED, KINDS, MODULES, RECIPE, Drawn, video_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import (
    anatomy,
    assert_close,
    assert_same_bits,
    assert_states_apart,
    assert_still,
    assert_untouched,
    dense,
    examples,
    leaves,
    nodes_in_both,
)
from torch import Tensor, nn

import deltaconvert


@settings(max_examples=examples(25))
@given(recipe=RECIPE, dtype=st.sampled_from([torch.float64, torch.float64, torch.float32]))
@example(recipe=JOINED, dtype=torch.float64)
def test_exact_at_threshold_zero(backend, recipe, dtype):
    network = Drawn(recipe).to(dtype)
    before = anatomy(network)
    video = video_of(network, recipe["seed"], dtype)
    model = deltaconvert.convert(network, video[0], backend=backend)
    fresh = copy.deepcopy(model)
    assert all(row.kind != "dense" for row in model.explain().rows), model.explain()
    for t, frame in enumerate(video):
        mine = frame.clone()
        outputs = model(mine)
        assert_close(outputs, dense(network, [frame]), f"frame {t}")
        fresh.reset()
        assert_same_bits(outputs, fresh(frame.clone()), f"frame {t} against a reset model")
        if t in (1, len(video) - 1):
            assert_still(model, f"frame {t}")
        assert_states_apart(model, [x for x in leaves(outputs) if x is not mine])
        for tensor in (*leaves(outputs), mine):
            tensor.fill_(float("nan"))
    assert_untouched(network, before)


@settings(max_examples=examples(25))
@given(recipe=RECIPE, threshold=st.sampled_from([0.05, 0.2, 0.6]))
def test_difference_form_at_thresholds(backend, recipe, threshold):
    network = Drawn(recipe).double()
    video = video_of(network, recipe["seed"], noise=threshold / 2)
    model = deltaconvert.convert(network, video[0], threshold=threshold, backend=backend)
    oracle = DifferenceForm(model)
    for t, frame in enumerate(video):
        got, expected = leaves(model(frame.clone())), oracle(frame)
        for node, mask in oracle.masks.items():
            assert torch.equal(model._program.edges[node].mask, mask), f"frame {t}: masks of {node} differ"
        for a, b in zip(got, expected, strict=True):
            assert_close(a, b, f"frame {t}")
    assert oracle.margin() > 1e-9, "a comparison was a matter of rounding"


@settings(max_examples=examples(25))
@given(recipe=RECIPE, threshold=st.sampled_from([0.0, 0.1, 0.5]), stream=st.integers(0, 2))
def test_cpu_equals_reference(recipe, threshold, stream):
    """Equal values up to rounding and equal masks, also after one stream is reset on the way."""
    network = Drawn(recipe).double()
    video = video_of(network, recipe["seed"], noise=threshold / 2)
    models = [
        deltaconvert.convert(network, video[0], threshold=threshold, backend=b) for b in ("reference", "cpu")
    ]
    nodes = nodes_in_both(*models)
    for t, frame in enumerate(video):
        if t == 7:
            for model in models:
                model.reset(stream % recipe["batch"])
        ours, theirs = (model(frame.clone()) for model in models)
        assert_close(theirs, ours, f"frame {t}")
        masks = [model.masks() for model in models]
        for path in nodes:
            assert torch.equal(masks[0][path], masks[1][path]), f"frame {t}: masks of {path} differ"


def test_recipes_reach_every_kind_of_step():
    """The generator draws what matters: no step is always illegal, and networks branch."""
    reached = set()
    for number, kind in enumerate(dict.fromkeys(KINDS)):
        steps = [("conv", 0, 0, 5), (kind, 1, 0, number), (kind, 0, 1, number + 3)]
        network = Drawn({"steps": steps, "size": (9, 8), "batch": 1, "outputs": 1, "seed": number})
        reached |= {entry[0] for entry in network.program}
        modules = [network.parts[place] for kind, _, place, _ in network.program if kind in MODULES]
        assert modules and not any(isinstance(module, nn.Identity) for module in modules)
        assert all(isinstance(t, Tensor) for t in network(torch.zeros(network.shape)).values())
    assert reached == set(KINDS)

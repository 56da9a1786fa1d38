"""The delta operators as operators of torch: torch.ops.deltaconvert.*, registered when this package is imported.

    forget(stored!, everything_changed)                                    what these streams have seen
    sparsify(frame, stored!, threshold, shares) -> mask                    a dense value comes in
    Conv2d(maps, masks, stored!, weights, operator, path, threshold, shares) -> mask
    ...                                                                    one for each class of deltaconvert.ops

stored: a map N H W C that is brought up to date in place; mask: bool (N, 1, H, W), its pixels that changed. operator:
JSON with the operator and the pointwise ones fused behind it, whose tensors are `weights`; path: of its node, for
people. threshold: the largest change that is dropped, None where nothing is compared; shares (C): of each channel.
"""

from deltaconvert.library.operators import register

register()

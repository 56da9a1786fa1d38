"""The public networks that benchmarks/coverage.py converts, with random weights: no download.

Each name is `package.network`. Of every timm family there are a small and a large variant. If torchvision's binary
operators do not fit the installed torch, `torchvision()` replaces them.
"""

from __future__ import annotations

import fnmatch
import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_libraries: list[Any] = []  # keeps libraries alive: torch drops the operators of one that is collected


def torchvision() -> Any:
    """The module. If its binary operators do not load, those that detectors need are defined in plain torch."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import sys

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", _nms, "CPU")
        library.define(
            "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
            "int sampling_ratio, bool aligned) -> Tensor"
        )
        library.impl("roi_align", _roi_align, "CPU")
        _libraries.append(library)
        import torchvision

        torchvision.extension._assert_has_ops = lambda: None
        for module in ("boxes", "roi_align"):
            getattr(torchvision.ops, module)._assert_has_ops = lambda: None
    return torchvision


def _nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes (N, 4) to keep, the best first: each removes those that overlap it by more than the threshold."""
    area = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    left = scores.argsort(descending=True, stable=True)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        corner, other = dets[left, :2].maximum(dets[best, :2]), dets[left, 2:].minimum(dets[best, 2:])
        common = (other - corner).clamp(min=0).prod(1)
        left = left[common / (area[left] + area[best] - common) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64)


def _roi_align(
    x: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool
) -> Tensor:
    """Means of ratio x ratio bilinear samples a cell, two where it is not set; (K, C, height, width)."""
    ratio, shift = max(ratio, 0) or 2, 0.5 if aligned else 0.0
    boxes = rois[:, 1:] * scale - shift
    sides = boxes[:, 2:] - boxes[:, :2]
    sides = sides if aligned else sides.clamp(min=1)

    def places(start: Tensor, side: Tensor, cells: int, size: int) -> Tensor:
        steps = (torch.arange(cells * ratio) + 0.5) / (cells * ratio)
        return (start[:, None] + side[:, None] * steps).clamp(0, size - 1) / max(size - 1, 1) * 2 - 1

    rows = places(boxes[:, 1], sides[:, 1], height, x.shape[2])
    cols = places(boxes[:, 0], sides[:, 0], width, x.shape[3])
    # (K, height * ratio, width * ratio, 2)
    grid = torch.stack(torch.broadcast_tensors(cols[:, None, :], rows[:, :, None]), -1)
    found = [
        nn.functional.grid_sample(x[int(i) : int(i) + 1], g[None], align_corners=True)
        for i, g in zip(rois[:, 0], grid, strict=True)
    ]
    samples = torch.cat(found) if found else x.new_empty(0, x.shape[1], height * ratio, width * ratio)
    return nn.functional.avg_pool2d(samples, ratio) if len(samples) else samples[..., :height, :width]


Build = Callable[[], nn.Module]


def networks(patterns: Sequence[str]) -> Iterator[tuple[str, Build]]:
    """The networks whose names match one of `patterns`, such as timm.resnet*."""
    named = [p[5:] for p in patterns if p.startswith("timm.") and not set(p) & set("*?[")]
    zoos: dict[str, Callable[[], Iterator[tuple[str, Build]]]] = {
        "torchvision": torchvision_networks,
        "timm": lambda: timm_networks(named),
        "smp": smp_networks,
        "ultralytics": yolo_networks,
    }
    for package, zoo in zoos.items():
        if not any(fnmatch.fnmatch(package, pattern.partition(".")[0]) for pattern in patterns):
            continue
        try:
            for name, build in zoo():
                if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                    yield name, build
        except ImportError as error:
            print(f"{package}: {error}")


def torchvision_networks() -> Iterator[tuple[str, Build]]:
    models = torchvision().models
    homes = {"detection": models.detection, "quantization": models.quantization, "video": models.video}
    skipped = {*models.list_models(homes["quantization"]), *models.list_models(homes["video"])}
    for name in models.list_models():
        if name in skipped:  # networks that are not float, or do not take images
            continue
        options: dict[str, Any] = {"weights": None}
        if name in models.list_models(models.detection):
            options |= {"weights_backbone": None, **_boxes(name)}
        if name in models.list_models(models.segmentation):
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False
        yield f"torchvision.{name}", lambda name=name, options=options: models.get_model(name, **options)


def _boxes(name: str) -> dict[str, Any]:
    """Settings of a detector: no threshold on scores, since weights are random; few boxes where each costs."""
    if name.startswith("ssd"):
        return {"score_thresh": 0.0, "topk_candidates": 20}
    small = {"min_size": 97, "max_size": 129}
    if "rcnn" in name:
        return {**small, "box_score_thresh": 0.0, "box_detections_per_img": 10}
    return {**small, "score_thresh": 0.0}


def timm_networks(named: Sequence[str] = ()) -> Iterator[tuple[str, Build]]:
    """The networks that are `named`, or the sweep's own choice."""
    torchvision()
    import timm

    known = set(timm.list_models())
    for name in named or small_and_large():
        if name not in known:
            print(f"timm {timm.__version__} has no {name}")
            continue
        yield f"timm.{name}", lambda name=name: timm.create_model(name, pretrained=False)


VARIANTS = Path(__file__).parent / "results" / "timm_variants.json"
LARGEST = 45e6  # parameters: what a core converts and runs in a minute


def parameters(name: str) -> int:
    """A network's number of parameters if it is known without making the network; else a typical number."""
    if name.startswith("torchvision."):
        return int(torchvision().models.get_model_weights(name[12:]).DEFAULT.meta["num_params"])
    sizes = json.loads(VARIANTS.read_text()) if VARIANTS.exists() else {}
    return next((family[name[5:]] for family in sizes.values() if name[5:] in family), 30_000_000)


def small_and_large() -> list[str]:
    """The variants of each family with the fewest and with the most parameters, among those that have a convolution and
    take frames of up to 256x256. Making all 1371 takes minutes, so the sizes are kept in a file."""
    if not VARIANTS.exists():
        VARIANTS.write_text(json.dumps(_variants(), indent=1) + "\n")
    chosen = []
    for sizes in json.loads(VARIANTS.read_text()).values():
        fitting = {name: size for name, size in sizes.items() if size <= LARGEST}
        ordered = sorted(fitting or sizes, key=lambda name: (sizes[name], name))
        chosen += dict.fromkeys((ordered[0], ordered[-1]) if fitting else ordered[:1])
    return chosen


def _variants() -> dict[str, dict[str, int]]:
    """family -> name -> parameters."""
    import timm
    from timm.models import _registry

    names = timm.list_models()
    with multiprocessing.get_context("fork").Pool() as pool:
        sizes = dict(zip(names, pool.map(_parameters, names, chunksize=4), strict=True))
    families: dict[str, dict[str, int]] = defaultdict(dict)
    for name, size in sizes.items():
        if size:
            families[_registry._model_entrypoints[name].__module__.split(".")[-1]][name] = size
    return families


def _parameters(name: str) -> int:
    """The number of parameters; 0 for networks that are left out: without a convolution, or for larger frames."""
    import timm

    torch.set_num_threads(1)
    config = timm.get_pretrained_cfg(name)
    if config is not None and max(config.input_size) > 256:
        return 0
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except Exception:  # some compute with their weights while they are made
        model = timm.create_model(name, pretrained=False)
    convolves = any(isinstance(m, nn.Conv2d) for m in model.modules())
    return sum(p.numel() for p in model.parameters()) if convolves else 0


def smp_networks() -> Iterator[tuple[str, Build]]:
    torchvision()
    import segmentation_models_pytorch as smp

    for name in (
        "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer DPT".split()
    ):
        encoders = ["tu-vit_tiny_patch16_224"] if name == "DPT" else ["resnet18", "timm-efficientnet-b0"]
        for encoder in encoders:
            yield (
                f"smp.{name}-{encoder}",
                lambda name=name, encoder=encoder: getattr(smp, name)(encoder, encoder_weights=None),
            )


def yolo_networks() -> Iterator[tuple[str, Build]]:
    torchvision()
    os.environ["YOLO_OFFLINE"] = "1"
    os.environ.setdefault("YOLO_CONFIG_DIR", "/tmp/yolo")
    from ultralytics.nn.tasks import (
        ClassificationModel,
        DetectionModel,
        OBBModel,
        PoseModel,
        RTDETRDetectionModel,
        SegmentationModel,
    )

    kinds = {"-seg": SegmentationModel, "-pose": PoseModel, "-cls": ClassificationModel, "-obb": OBBModel}
    names = (
        "yolov3-tiny yolov5n yolov6n yolov8n yolov8m yolov9t yolov9c yolov10n yolo11n yolo11m yolo12n "
        "yolov8n-seg yolov8n-pose yolov8n-cls yolov8n-obb yolo11n-seg yolo11n-pose rtdetr-resnet50"
    )
    for name in names.split():
        cls = next((cls for end, cls in kinds.items() if name.endswith(end)), DetectionModel)
        cls = RTDETRDetectionModel if name.startswith("rtdetr") else cls
        yield f"ultralytics.{name}", lambda name=name, cls=cls: cls(f"{name}.yaml", verbose=False)

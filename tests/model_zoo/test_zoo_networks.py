"""Every network of the zoo: public key names, any size, traceable, alive on random weights, converted."""

import hashlib
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from oracle import check_exact, leaves, scripted_video
from torch import Tensor, nn

import deltaconvert
import model_zoo
from model_zoo.unet import Up

# Parameters, state dict entries, and `signature` of the state dict. Those of THEIRS and deeplabv3_resnet50 were taken
# from torchvision 0.28, yolox_s's from pixeltable-yolox 0.4.3, EfficientDet's from effdet 0.4.1, fastestdet's from its
# checkpoint. The others were taken from this code, to guard against change: dncnn's after its checkpoint, which has no
# num_batches_tracked, had been loaded; retinanet_resnet50_fpn's after torchvision 0.28 had loaded its state dict,
# renaming it as it does the public file; hrnet_w32's after all but final_layer had been found in timm 1.0.31's
# hrnet_w32; those of the U-Nets, pose_resnet50 and msrresnet_x4 after their names were checked against
# milesial/Pytorch-UNet's, and what we know of those in microsoft/human-pose-estimation.pytorch and XPixelGroup/BasicSR.
PUBLIC = {
    "resnet18": (11_689_512, 122, "f0e35161599236f3"),
    "resnet50": (25_557_032, 320, "fe1d335c3c7786ff"),
    "mobilenetv2": (3_504_872, 314, "2a196dc04125b8ce"),
    "fastestdet": (244_490, 420, "7bd0ec49aa8dcb3d"),
    "unet": (31_037_698, 118, "e46f288e28ddb56c"),
    "unet_bilinear": (17_263_042, 110, "c5db7719c29bc20e"),
    "mobilenetv3_large": (5_483_032, 312, "00e3a56a0bdeba96"),
    "mobilenetv3_small": (2_542_856, 244, "6353e9f51ee2108d"),
    "efficientnet_b0": (5_288_548, 360, "20940b31d23df4a1"),
    "convnext_tiny": (28_589_128, 182, "39d0e94f41cc6e25"),
    "yolox_s": (8_968_255, 462, "abcb71c53478b14d"),
    "hrnet_w32": (28_536_113, 1754, "b6122c04620e13a6"),
    "pose_resnet50": (33_999_697, 338, "e50450a842367551"),
    "dncnn": (556_032, 92, "6cf0ad6a5aebe0bc"),
    "msrresnet_x4": (1_517_571, 74, "94f3a07a096959d7"),
    "deeplabv3_resnet50": (42_004_074, 370, "0784418d14d70969"),
    "retinanet_resnet50_fpn": (34_068_119, 354, "4d48e376bb229268"),
    "efficientdet_d0": (3_880_067, 784, "fe63276bff1ebeab"),
    "efficientdet_d1": (6_625_898, 1004, "4780d2d0d3eb6a79"),
}

# torchvision's names of the classifiers that it has.
THEIRS = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3_large": "mobilenet_v3_large",
    "mobilenetv3_small": "mobilenet_v3_small",
    "efficientnet_b0": "efficientnet_b0",
    "convnext_tiny": "convnext_tiny",
}

# A few of the same entries to read, so that a wrong name shows as a name.
SOME_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.bn2.running_var": (64,),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
        "fc.weight": (1000, 512),
    },
    "resnet50": {
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.bias": (256,),
        "layer3.5.conv3.weight": (1024, 256, 1, 1),
        "layer4.2.conv2.weight": (512, 512, 3, 3),
        "fc.bias": (1000,),
    },
    "mobilenetv2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.18.1.running_mean": (1280,),
        "classifier.1.weight": (1000, 1280),
    },
    "fastestdet": {
        "backbone.first_conv.0.weight": (24, 3, 3, 3),
        "backbone.stage3.0.branch_proj.2.weight": (48, 48, 1, 1),
        "SPP.Conv1x1.conv1x1.0.weight": (96, 336, 1, 1),
        "SPP.S3.6.weight": (96, 1, 5, 5),
        "detect_head.cls_layers.conv5x5.3.weight": (80, 96, 1, 1),
    },
    "unet": {
        "inc.double_conv.0.weight": (64, 3, 3, 3),
        "inc.double_conv.4.running_mean": (64,),
        "down4.maxpool_conv.1.double_conv.3.weight": (1024, 1024, 3, 3),
        "up1.up.weight": (1024, 512, 2, 2),
        "up1.up.bias": (512,),
        "up1.conv.double_conv.0.weight": (512, 1024, 3, 3),
        "outc.conv.weight": (2, 64, 1, 1),
        "outc.conv.bias": (2,),
    },
    "unet_bilinear": {
        "down4.maxpool_conv.1.double_conv.0.weight": (512, 512, 3, 3),
        "up1.conv.double_conv.0.weight": (512, 1024, 3, 3),
        "up1.conv.double_conv.3.weight": (256, 512, 3, 3),
        "up4.conv.double_conv.0.weight": (64, 128, 3, 3),
        "up4.conv.double_conv.3.weight": (64, 64, 3, 3),
    },
    "mobilenetv3_large": {
        "features.1.block.0.0.weight": (16, 1, 3, 3),
        "features.4.block.2.fc1.weight": (24, 72, 1, 1),
        "features.15.block.3.1.running_var": (160,),
        "features.16.0.weight": (960, 160, 1, 1),
        "classifier.0.weight": (1280, 960),
        "classifier.3.bias": (1000,),
    },
    "mobilenetv3_small": {
        "features.1.block.1.fc2.bias": (16,),
        "features.9.block.1.0.weight": (288, 1, 5, 5),
        "features.12.1.weight": (576,),
        "classifier.3.weight": (1000, 1024),
    },
    "efficientnet_b0": {
        "features.1.0.block.1.fc1.weight": (8, 32, 1, 1),
        "features.5.2.block.1.0.weight": (672, 1, 5, 5),
        "features.7.0.block.3.1.bias": (320,),
        "features.8.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    },
    "convnext_tiny": {
        "features.0.0.weight": (96, 3, 4, 4),
        "features.0.1.bias": (96,),
        "features.1.2.layer_scale": (96, 1, 1),
        "features.5.8.block.3.weight": (1536, 384),
        "features.6.0.weight": (384,),
        "features.6.1.weight": (768, 384, 2, 2),
        "features.7.0.block.0.weight": (768, 1, 7, 7),
        "classifier.0.weight": (768,),
        "classifier.2.bias": (1000,),
    },
    "yolox_s": {
        "backbone.backbone.stem.conv.conv.weight": (32, 12, 3, 3),
        "backbone.backbone.dark3.1.m.2.conv2.bn.running_mean": (64,),
        "backbone.backbone.dark5.1.conv2.conv.weight": (512, 1024, 1, 1),
        "backbone.C3_p4.conv3.conv.weight": (256, 256, 1, 1),
        "backbone.bu_conv1.conv.weight": (256, 256, 3, 3),
        "head.stems.2.conv.weight": (128, 512, 1, 1),
        "head.reg_convs.1.0.bn.weight": (128,),
        "head.cls_preds.0.weight": (80, 128, 1, 1),
        "head.obj_preds.2.bias": (1,),
    },
    "hrnet_w32": {
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "transition1.0.0.weight": (32, 256, 3, 3),
        "transition1.1.0.0.weight": (64, 256, 3, 3),
        "stage2.0.branches.1.3.conv2.weight": (64, 64, 3, 3),
        "stage2.0.fuse_layers.0.1.0.weight": (32, 64, 1, 1),
        "stage3.3.fuse_layers.2.0.0.1.running_mean": (32,),
        "stage3.3.fuse_layers.2.0.1.0.weight": (128, 32, 3, 3),
        "transition3.3.0.1.weight": (256,),
        "stage4.2.fuse_layers.0.3.1.bias": (32,),
        "final_layer.weight": (17, 32, 1, 1),
    },
    "pose_resnet50": {
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "deconv_layers.0.weight": (2048, 256, 4, 4),
        "deconv_layers.1.running_var": (256,),
        "deconv_layers.6.weight": (256, 256, 4, 4),
        "final_layer.weight": (17, 256, 1, 1),
        "final_layer.bias": (17,),
    },
    "dncnn": {
        "dncnn.0.weight": (64, 1, 3, 3),
        "dncnn.2.weight": (64, 64, 3, 3),
        "dncnn.45.running_mean": (64,),
        "dncnn.47.weight": (1, 64, 3, 3),
    },
    "msrresnet_x4": {
        "conv_first.weight": (64, 3, 3, 3),
        "body.15.conv2.bias": (64,),
        "upconv2.weight": (256, 64, 3, 3),
        "conv_hr.weight": (64, 64, 3, 3),
        "conv_last.weight": (3, 64, 3, 3),
    },
    "deeplabv3_resnet50": {
        "backbone.layer3.0.downsample.0.weight": (1024, 512, 1, 1),
        "classifier.0.convs.0.0.weight": (256, 2048, 1, 1),
        "classifier.0.convs.3.0.weight": (256, 2048, 3, 3),
        "classifier.0.convs.4.1.weight": (256, 2048, 1, 1),
        "classifier.0.project.0.weight": (256, 1280, 1, 1),
        "classifier.4.weight": (21, 256, 1, 1),
        "aux_classifier.4.bias": (21,),
    },
    "retinanet_resnet50_fpn": {
        "backbone.body.layer4.0.conv2.weight": (512, 512, 3, 3),
        "backbone.fpn.inner_blocks.0.weight": (256, 512, 1, 1),
        "backbone.fpn.layer_blocks.2.bias": (256,),
        "backbone.fpn.extra_blocks.p7.weight": (256, 256, 3, 3),
        "head.classification_head.conv.6.weight": (256, 256, 3, 3),
        "head.classification_head.cls_logits.weight": (819, 256, 3, 3),
        "head.regression_head.bbox_reg.bias": (36,),
    },
    "efficientdet_d0": {
        "backbone.conv_stem.weight": (32, 3, 3, 3),
        "backbone.blocks.0.0.se.conv_reduce.weight": (8, 32, 1, 1),
        "backbone.blocks.6.0.conv_pwl.weight": (320, 1152, 1, 1),
        "fpn.resample.3.conv.bn.running_var": (64,),
        "fpn.cell.0.fnode.5.combine.resample.2.conv.conv.weight": (64, 320, 1, 1),
        "fpn.cell.2.fnode.6.combine.edge_weights": (3,),
        "fpn.cell.1.fnode.0.after_combine.conv.conv_dw.weight": (64, 1, 3, 3),
        "class_net.bn_rep.2.4.bn.bias": (64,),
        "class_net.predict.conv_pw.weight": (810, 64, 1, 1),
        "box_net.predict.conv_pw.bias": (36,),
    },
    "efficientdet_d1": {
        "backbone.blocks.0.1.conv_pw.weight": (16, 16, 1, 1),
        "backbone.blocks.5.4.bn3.weight": (192,),
        "fpn.cell.3.fnode.7.after_combine.conv.conv_pw.weight": (88, 88, 1, 1),
        "box_net.conv_rep.2.conv_pw.bias": (88,),
    },
}

# Small enough to convert and play a video to in every run.
CONVERTED = [
    "mobilenetv3_large",
    "mobilenetv3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "yolox_s",
    "efficientdet_d0",
    "hrnet_w32",
    "pose_resnet50",
    "dncnn",
    "msrresnet_x4",
    "deeplabv3_resnet50",
    "retinanet_resnet50_fpn",
]

every_network = pytest.mark.parametrize("name", model_zoo.names())


@lru_cache(maxsize=1)  # conftest.py puts the tests of a network together
def built(name: str) -> nn.Module:
    return model_zoo.create(name, seed=0)


def noise(height: int, width: int, batch: int = 1, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def channels(name: str) -> int:
    return model_zoo.recipe(name).input_size[0]


def signature(state: dict[str, Tensor]) -> str:
    lines = [f"{key} {'x'.join(map(str, value.shape))}" for key, value in sorted(state.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def sizes(name: str) -> list[tuple[int, int]]:
    return [(32, 64), (96, 32)] if model_zoo.recipe(name).multiple == 32 else [(48, 32), (37, 51)]


def output_shapes(name: str, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
    match model_zoo.recipe(name).task:
        case "classify":
            return [(batch, 1000)]
        case "segment":
            return [(batch, 21 if name == "deeplabv3_resnet50" else 2, height, width)]
        case "pose":
            return [(batch, 17, height // 4, width // 4)]
        case "denoise":
            return [(batch, channels(name), height, width)]
        case "superres":
            return [(batch, 3, 4 * height, 4 * width)]
        case "detect" if name.startswith(("retinanet", "efficientdet")):
            classes = 91 if name.startswith("retinanet") else 90
            levels = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]
            return [(batch, maps, *level) for level in levels for maps in (9 * classes, 9 * 4)]
        case "detect" if name == "yolox_s":
            return [(batch, 85, height // stride, width // stride) for stride in (8, 16, 32)]
        case "detect":
            return [(batch, 85, height // 16, width // 16)]


def test_every_network_is_described_here() -> None:
    assert model_zoo.names() == sorted(PUBLIC) == sorted(SOME_SHAPES)


@every_network
def test_public_names_and_shapes(name: str) -> None:
    model = built(name)
    state = model.state_dict()
    for key, shape in SOME_SHAPES[name].items():
        assert key in state
        assert tuple(state[key].shape) == shape
    parameters = sum(p.numel() for p in model.parameters())
    assert (parameters, len(state), signature(state)) == PUBLIC[name]


def test_the_unet_count_is_its_arithmetic() -> None:
    def double(inputs: int, outputs: int, middle: int) -> int:
        return 9 * inputs * middle + 2 * middle + 9 * middle * outputs + 2 * outputs

    widths = [64, 128, 256, 512, 1024]
    levels = list(pairwise(widths))
    ends = double(3, 64, 64) + 64 * 2 + 2
    down = sum(double(narrow, wide, wide) for narrow, wide in levels)
    up = sum(4 * wide * narrow + narrow + double(wide, narrow, narrow) for narrow, wide in levels)
    assert PUBLIC["unet"][0] == ends + down + up == 31_037_698


@every_network
def test_forward_of_any_size(name: str) -> None:
    model = built(name)
    assert not model.training
    for batch, (height, width) in enumerate(sizes(name), start=1):
        with torch.inference_mode():
            y = model(noise(height, width, batch, channels=channels(name)))
        assert all(leaf.dtype == torch.float32 for leaf in leaves(y))
        assert [tuple(leaf.shape) for leaf in leaves(y)] == output_shapes(name, batch, height, width)


def torchvision(name: str, **options: object) -> nn.Module:
    """torchvision's network with our weights."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    theirs = models.get_model(THEIRS.get(name, name), weights=None, **options).eval()
    theirs.load_state_dict(built(name).state_dict(), strict=True)
    return theirs


@pytest.mark.parametrize("name", THEIRS)
def test_equals_torchvision(name: str) -> None:
    theirs = torchvision(name)
    x = noise(75, 98)
    with torch.inference_mode():
        torch.testing.assert_close(built(name)(x), theirs(x))


def test_deeplabv3_equals_torchvision() -> None:
    theirs = torchvision("deeplabv3_resnet50", weights_backbone=None, aux_loss=True)
    x = noise(75, 98)
    with torch.inference_mode():
        torch.testing.assert_close(built("deeplabv3_resnet50")(x), theirs(x)["out"])


def test_retinanet_equals_torchvision() -> None:
    theirs = torchvision("retinanet_resnet50_fpn", weights_backbone=None)
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.0  # as torchvision sets it for the public weights
    x = noise(64, 96)
    with torch.inference_mode():
        found = theirs.head(list(theirs.backbone(x).values()))
        ours = zip(*built("retinanet_resnet50_fpn")(x), strict=True)
    for maps, name in zip(ours, ("cls_logits", "bbox_regression"), strict=True):
        rows = [m.unflatten(1, (9, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3) for m in maps]
        torch.testing.assert_close(torch.cat(rows, 1), found[name])


def test_bottlenecks_stride_on_the_3x3() -> None:
    """The same checkpoint loads either way, so only this tells v1.5 from v1 where torchvision is absent."""
    resnet = built("resnet50")
    for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("bilinear", [False, True])
def test_unet_pads_the_missing_row_and_column_at_the_end(bilinear: bool) -> None:
    up = Up(8, 4, bilinear)
    up.conv = nn.Identity()
    deep, skip = torch.ones(1, 8, 3, 4), torch.ones(1, 4, 7, 9)
    with torch.inference_mode():
        joined, doubled = up(deep, skip), up.up(deep)
    assert torch.equal(joined[:, :4], skip)
    assert torch.equal(joined[:, 4:, :6, :8], doubled)
    assert not joined[:, 4:, 6:].any()
    assert not joined[:, 4:, :, 8:].any()


@every_network
def test_one_trace_serves_all_sizes(name: str) -> None:
    model = built(name)
    traced = torch.fx.symbolic_trace(model)
    for height, width in sizes(name):
        x = noise(height, width, channels=channels(name))
        with torch.inference_mode():
            torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


@every_network
def test_random_weights_keep_activations_alive(name: str) -> None:
    """A signal that vanished, exploded or ignored the input would make any comparison of outputs pass."""
    model = built(name)
    deviations: list[float] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, y: deviations.append(y.std().item()))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    with torch.inference_mode():
        first, second = (leaves(model(noise(64, 64, seed=seed, channels=channels(name)))) for seed in (1, 2))
    for hook in hooks:
        hook.remove()
    # 64 pixels end as one in RetinaNet's last level, where a 3x3 convolution loses 8 of 9 taps to the padding.
    assert min(deviations) > 0.001
    assert max(deviations) < 200
    assert all((a - b).abs().max() > 0.001 for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_it_equals_dense(name: str, backend: str) -> None:
    size = (64, 32) if model_zoo.recipe(name).multiple == 32 else (33, 21)
    if name == "convnext_tiny":
        size = (33, 39)  # its convolutions shrink the map 32 times without padding
    video = scripted_video((1, channels(name), *size), torch.float32)
    calls = [(video[t],) for t in (0, 1, 3, 9)]  # the first frame, a still one, a patch moves, in a corner
    model = deltaconvert.convert(built(name), *calls[0], backend=backend)
    if model_zoo.recipe(name).task != "classify":
        assert model.explain().delta_share > 0.95, model.explain()
    check_exact(built(name), model, None, calls, known_still=[1])


@pytest.mark.parametrize("name", [n for n in CONVERTED if model_zoo.recipe(n).task == "classify"])
def test_nearly_all_work_is_done_by_delta_nodes(name: str) -> None:
    """A classifier's last layers weigh little at the size that it was made for."""
    recipe = model_zoo.recipe(name)
    found = deltaconvert.convert(built(name), noise(*recipe.input_size[1:]), backend="reference").explain()
    assert found.delta_share > 0.95, found

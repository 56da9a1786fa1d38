"""What the families share: one spelling of convolution, norm and activation, and the initial weights."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]

# Of the convolution behind squeeze-excitation. Untrained gates are one half where maps are small, one where they are
# large: EfficientNet-B0 would fade to a deviation of 3e-4 with a gain of 1, and grow to one of 392 with 2.
EXCITED_GAIN = 1.5


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: Activation | None = nn.ReLU,
    gain: float = 1.0,
    eps: float = 1e-5,
    dilation: int = 1,
) -> list[nn.Module]:
    """A convolution without bias that keeps H and W at stride 1, its batch norm, and the activation if any.

    Weights are Kaiming's over fan_in, times what the activation takes away and `gain`. torchvision's fan_out
    does not serve a network that runs untrained in eval mode, where a fresh batch norm rescales nothing:
    torch counts a depthwise convolution's fan_out as if it were dense, so its output vanishes. A gain after
    ResNet-50's residual branches would let activations grow to a deviation of 1268; without it, 49.
    """
    padding = kernel // 2 * dilation
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    kaiming(convolution, gain * (activation_gain(act) if act else 1.0))
    return [convolution, nn.BatchNorm2d(outputs, eps), *([act()] if act else [])]


def conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, gain: float = 1.0, bias: bool = True
) -> nn.Conv2d:
    """A convolution alone that keeps H and W at stride 1; its bias starts at zero."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    kaiming(convolution, gain)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def conv_act(
    inputs: int, outputs: int, kernel: int, act: Activation = nn.ReLU, bias: bool = True
) -> list[nn.Module]:
    """A convolution that keeps H and W, and the activation, without a norm."""
    return [conv(inputs, outputs, kernel, gain=activation_gain(act), bias=bias), act()]


def kaiming(convolution: nn.Conv2d, gain: float = 1.0) -> None:
    """Normal weights that keep the second moment of a map, times `gain` squared."""
    nn.init.normal_(convolution.weight, std=gain * convolution.weight[0].numel() ** -0.5)


def activation_gain(act: Activation) -> float:
    """The root mean square of a standard normal value over that of act(value): the square root of 2 for ReLU."""
    x = torch.special.ndtri(torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1])
    return (x.square().sum() / act()(x).square().sum()).sqrt().item()


class SqueezeExcitation(nn.Sequential):
    """Scales each channel by a gate that it computes from the mean of all: (N, C, H, W) -> (N, C, H, W).

    names: of its two 1x1 convolutions.
    """

    def __init__(
        self,
        width: int,
        squeezed: int,
        act: Activation,
        gate: Activation,
        names: tuple[str, str] = ("fc1", "fc2"),
    ) -> None:
        reduce, expand = names
        layers = {
            "avgpool": nn.AdaptiveAvgPool2d(1),
            reduce: nn.Conv2d(width, squeezed, 1),
            "activation": act(),
            expand: nn.Conv2d(squeezed, width, 1),
            "scale_activation": gate(),
        }
        super().__init__(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


def named(name: str, layers: list[nn.Module]) -> nn.Sequential:
    """The layers in order, one level below `name`, as in checkpoints that wrap them in their own module."""
    return nn.Sequential(OrderedDict({name: nn.Sequential(*layers)}))


class MBConv(nn.Module):
    """Widen 1x1, depthwise, excite, narrow 1x1 (linear): (N, C, H, W) -> (N, outputs, H/stride, W/stride).

    The names are torchvision's. Nothing is widened where `hidden` is `inputs`.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        kernel: int,
        stride: int,
        act: Activation,
        excitation: SqueezeExcitation | None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(nn.Sequential(*conv_norm(inputs, hidden, act=act, eps=eps)))
        layers.append(nn.Sequential(*conv_norm(hidden, hidden, kernel, stride, hidden, act, eps=eps)))
        if excitation is not None:
            layers.append(excitation)
        gain = 1.0 if excitation is None else EXCITED_GAIN
        layers.append(nn.Sequential(*conv_norm(hidden, outputs, act=None, gain=gain, eps=eps)))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)

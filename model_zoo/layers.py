"""What the families share: one spelling of convolution, norm and activation, and the initial weights."""

from collections import OrderedDict

from torch import nn


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> list[nn.Module]:
    """A convolution without bias that keeps H and W at stride 1, its batch norm, and the activation if any.

    Weights are Kaiming's over fan_in, with a gain only where an activation follows. torchvision's fan_out
    does not serve a network that runs untrained in eval mode, where a fresh batch norm rescales nothing:
    torch counts a depthwise convolution's fan_out as if it were dense, so its output vanishes. A gain after
    ResNet-50's residual branches would let activations grow to a deviation of 1268; without it, 49.
    """
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu" if act else "linear")
    return [convolution, nn.BatchNorm2d(outputs), *([act()] if act else [])]


def named(name: str, layers: list[nn.Module]) -> nn.Sequential:
    """The layers in order, one level below `name`, as in checkpoints that wrap them in their own module."""
    return nn.Sequential(OrderedDict({name: nn.Sequential(*layers)}))

"""The backbone and feature pyramid of a detector in PyTorch."""

import timm
import torch
from torch import nn
from torch.nn.functional import interpolate

from experiments.benchmark.pytorch import NAMES
from experiments.benchmark.torch_boxes import Tensors


class Conv(nn.Conv2d):
    """A convolution of the size of its input, and a batch norm."""

    def __init__(self, channels: int, features: int, kernel_size: int):
        super().__init__(channels, features, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


class Backbone(nn.Module):
    """timm's network, whose stem and first stage are frozen, and a feature pyramid on it."""

    def __init__(self, name: str, features: int):
        super().__init__()
        self.bottom_up = timm.create_model(NAMES[name], num_classes=0)
        for level, info in zip(range(2, 6), self.bottom_up.feature_info[1:], strict=True):
            self.add_module(f"fpn_lateral{level}", Conv(info["num_chs"], features, 1))
            self.add_module(f"fpn_output{level}", Conv(features, features, 3))
        for part in self._frozen():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [self.bottom_up.conv1, self.bottom_up.bn1, self.bottom_up.layer1]

    def endpoints(self, x: torch.Tensor) -> Tensors:
        net = self.bottom_up
        found = [net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(x)))))]
        for layer in (net.layer2, net.layer3, net.layer4):
            found.append(layer(found[-1]))
        return found

    def pyramid(self, endpoints: Tensors) -> Tensors:
        found, above = [], None
        for level in range(5, 1, -1):
            x = self.get_submodule(f"fpn_lateral{level}")(endpoints[level - 2])
            above = x if above is None else x + interpolate(above, scale_factor=2)
            found.insert(0, self.get_submodule(f"fpn_output{level}")(above))
        return [*found, found[-1][:, :, ::2, ::2]]

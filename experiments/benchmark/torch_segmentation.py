"""DeepLabV3 in PyTorch, with the authors' names, on timm's ResNeSt."""

import math
from collections.abc import Callable

import numpy as np
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from experiments.benchmark import agreement
from experiments.benchmark.ours import Program
from experiments.benchmark.pytorch import FORMATS, NAMES, load, program
from experiments.benchmark.report import EAGER
from resnest_jax.errors import InputError

AGREEING = 0.999  # share of the pixels with the same best class


class DeepLab(nn.Module):
    """DeepLabV3 at output stride 8 with an auxiliary head: (B, 3, H, W) to logits."""

    def __init__(self, name: str, num_classes: int):
        super().__init__()
        net = timm.create_model(NAMES[name], output_stride=8, num_classes=0)
        for stage in (net.layer3, net.layer4):  # where the authors' network differs from timm's
            stage[0].avd_last = nn.AvgPool2d(3, 1, padding=1)
            stage[0].downsample[0] = nn.Identity()
        self.pretrained = net
        channels = net.num_features
        self.head = nn.ModuleDict(
            {"aspp": ASPP(channels), "block": nn.Sequential(*_classifier(256, 256, num_classes))}
        )
        layers = _classifier(channels // 2, channels // 8, num_classes)
        self.auxlayer = nn.ModuleDict({"conv5": nn.Sequential(*layers)})

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits at the size of the images; in training those of both heads."""
        net, size = self.pretrained, x.shape[2:]
        x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        c4 = net.layer3(net.layer2(net.layer1(x)))
        logits = [self.head["block"](self.head["aspp"](net.layer4(c4)))]
        if self.training:
            logits.append(self.auxlayer["conv5"](c4))
        return [_resize(x, size) for x in logits]


class ASPP(nn.Module):
    """The authors' pyramid of dilated convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.b0 = nn.Sequential(*_layer(channels, 1))
        self.b1, self.b2, self.b3 = (
            nn.Sequential(*_layer(channels, 3, dilation)) for dilation in (12, 24, 36)
        )
        self.b4 = nn.ModuleDict(
            {"gap": nn.Sequential(nn.AdaptiveAvgPool2d(1), *_layer(channels, 1))}
        )
        self.project = nn.Sequential(*_layer(5 * 256, 1), nn.Dropout2d(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [branch(x) for branch in (self.b0, self.b1, self.b2, self.b3)]
        branches.append(_resize(self.b4["gap"](x), x.shape[2:]))
        return self.project(torch.cat(branches, 1))


def programs(
    name: str,
    kind: str,
    state: dict[str, np.ndarray],
    images: np.ndarray,
    expected: np.ndarray,
    labels: np.ndarray | None,
    device: str,
    **settings,
) -> dict[str, Program]:
    """Return name -> program: eager, in both layouts; none if timm lacks the architecture.

    Args:
      kind: ``inference``, ``training`` or ``multi_scale``.
      state: weights, by the authors' names.
      images: (B, H, W, 3) normalised; of ``multi_scale`` one image (1, h, w, 3).
      expected: our logits of the images, or of ``multi_scale`` our classes (h, w).
      labels: of ``training``, uint8 (B, H, W).
      settings: of ``multi_scale``: ``base_size``, ``crop_size``, ``scales``, ``batch_size``.

    Raises:
      InputError: if the results differ from the expected ones.
    """
    if name not in NAMES:
        return {}
    made = {}
    num_classes = len(state["head.block.4.weight"])
    for layout, memory_format in FORMATS.items():
        model = DeepLab(name, num_classes)
        load(model, state)
        model = model.to(device, memory_format=memory_format)
        x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=memory_format)
        functions = _functions(model.eval(), x, labels, settings)
        _check(functions["multi_scale" if kind == "multi_scale" else "inference"](), expected)
        function = functions[kind]
        made[f"PyTorch {EAGER}, {layout}"] = program(function, EAGER)
    return made


def _functions(
    model: DeepLab, x: torch.Tensor, labels: np.ndarray | None, settings: dict
) -> dict[str, Callable]:
    """Return the function of each kind."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)
    targets = None if labels is None else torch.from_numpy(labels).to(x.device, torch.int64)

    def inference() -> torch.Tensor:
        with torch.no_grad():
            return model(x)[0].permute(0, 2, 3, 1)

    def training() -> None:
        main, auxiliary = (cross_entropy(y, targets, ignore_index=255) for y in model.train()(x))
        (main + 0.2 * auxiliary).backward()
        optimizer.step()
        optimizer.zero_grad()  # at the end: gradients are temporary

    def multi_scale() -> torch.Tensor:
        with torch.no_grad():
            return _multi_scale(model, x, **settings)

    return {"inference": inference, "training": training, "multi_scale": multi_scale}


def _multi_scale(
    model: DeepLab,
    image: torch.Tensor,
    base_size: int,
    crop_size: int,
    scales: tuple[float, ...],
    batch_size: int,
) -> torch.Tensor:
    """Return the classes (h, w) of an image (1, 3, h, w): the authors' evaluator, in batches."""
    height, width = image.shape[2:]
    total = 0
    for scale in scales:
        longer = math.ceil(base_size * scale)
        sides = [int(side * longer / max(height, width) + 0.5) for side in (height, width)]
        resized = _resize(image, sides)
        stride = int(crop_size * 2 / 3)
        corners = [
            (top, left)
            for top in _starts(sides[0], crop_size, stride)
            for left in _starts(sides[1], crop_size, stride)
        ]
        black = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], device=image.device)
        shape = (1, 3, *(max(a) + crop_size for a in zip(*corners, strict=True)))
        padded = black[None, :, None, None].expand(shape).clone()
        padded[..., : sides[0], : sides[1]] = resized
        windows = [padded[..., i : i + crop_size, j : j + crop_size] for i, j in corners]
        scores = []
        for part in torch.cat(windows).split(batch_size):
            mirrored = model(part.flip(3))[0].flip(3)
            scores += (model(part)[0] + mirrored).exp()
        sums = torch.zeros(1, scores[0].shape[0], *shape[2:], device=image.device)
        counts = torch.zeros(shape[2:], device=image.device)
        for (i, j), score in zip(corners, scores, strict=True):
            sums[0, :, i : i + crop_size, j : j + crop_size] += score
            counts[i : i + crop_size, j : j + crop_size] += 1
        mean = (sums / counts)[..., : sides[0], : sides[1]]
        total = total + _resize(mean, (height, width))
    return total[0].argmax(0)


def _starts(length: int, crop_size: int, stride: int) -> list[int]:
    return [i * stride for i in range(max(math.ceil((length - crop_size) / stride), 0) + 1)]


def _check(result: torch.Tensor, expected: np.ndarray) -> None:
    """Raise InputError if PyTorch's network is not ours."""
    found = result.cpu().numpy()
    if expected.ndim > 2:
        agreement.check("PyTorch's logits", found, expected)
    elif (agreeing := np.mean(found == expected)) < AGREEING:
        raise InputError(f"PyTorch's classes agree in {agreeing:.2%} of the pixels alone")


def _layer(channels: int, kernel_size: int, dilation: int = 1, features: int = 256) -> list:
    """Return a convolution of the size of its input, a norm and ReLU."""
    pad = dilation * (kernel_size // 2)
    conv = nn.Conv2d(channels, features, kernel_size, 1, pad, dilation, bias=False)
    return [conv, nn.BatchNorm2d(features), nn.ReLU()]


def _classifier(channels: int, features: int, num_classes: int) -> list:
    last = nn.Conv2d(features, num_classes, 1)
    return [*_layer(channels, 3, features=features), nn.Dropout(0.1), last]


def _resize(x: torch.Tensor, size) -> torch.Tensor:
    return interpolate(x, tuple(size), mode="bilinear", align_corners=True)

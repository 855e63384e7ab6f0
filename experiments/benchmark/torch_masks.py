"""Masks in PyTorch: head, targets, loss and pasting, as in detectron2 and torchvision."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align

from experiments.benchmark.torch_boxes import Regions, Tensors
from experiments.benchmark.torch_pyramid import Conv

POOLED = 14  # cells on each side of a region; a mask has twice as many


class MaskHead(nn.Module):
    """From pooled regions (R, C, 14, 14) and their classes (R,) to logits (R, 28, 28).

    As in detectron2 and torchvision, the masks of all classes are computed.
    """

    def __init__(self, features: int, convolutions: int, num_classes: int):
        super().__init__()
        for i in range(1, convolutions + 1):
            self.add_module(f"mask_fcn{i}", Conv(features, features, 3))
        self.deconv = nn.ConvTranspose2d(features, features, 2, 2)
        self.predictor = nn.Conv2d(features, num_classes, 1)
        self.convolutions = convolutions

    def forward(self, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        for i in range(1, self.convolutions + 1):
            x = self.get_submodule(f"mask_fcn{i}")(x).relu()
        of_all = self.predictor(self.deconv(x).relu())
        return of_all[torch.arange(len(x), device=x.device), classes]


def foreground(regions: list[Regions], num_classes: int) -> list[Regions]:
    """Return the regions of each image that have an object."""
    found = []
    for part in regions:
        chosen = part.classes < num_classes
        found.append(Regions(*(tensor[chosen] for tensor in part)))
    return found


@torch.no_grad()
def mask_targets(masks: Tensors, regions: list[Regions]) -> torch.Tensor:
    """Return the objects' masks in the cells of regions, (R, 28, 28): RoIAlign of their bitmaps.

    Args:
      masks: of the objects of each image, bool (G, H, W).
      regions: of each image, all with an object.
    """
    cells = 2 * POOLED
    found = []
    for of_image, part in zip(masks, regions, strict=True):
        boxes = torch.cat((part.objects[:, None].to(part.boxes.dtype), part.boxes), 1)
        pixels = of_image[:, None].to(boxes.dtype)
        found.append(roi_align(pixels, boxes, cells, sampling_ratio=-1, aligned=True)[:, 0] >= 0.5)
    return torch.cat(found)


def mask_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over all pixels."""
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def paste(
    boxes: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor],
    sizes: list[tuple[int, int]],
    photo: tuple[int, int],
) -> Tensors:
    """Return the masks of the detections of each image in its photo, bool (D, H, W).

    Args:
      boxes: (D, 4) of each image.
      masks: (D, 28, 28), probabilities.
      sizes: of the images.
      photo: size of the photos, which the images are resized from.
    """
    pasted = []
    for of_image, mask, (height, width) in zip(boxes, masks, sizes, strict=True):
        y, x = photo[0] / height, photo[1] / width
        moved = of_image * of_image.new_tensor((x, y, x, y))
        pasted.append(paste_masks_in_image(mask[:, None], moved, photo)[:, 0] >= 0.5)
    return pasted

"""The built-in scenes as files: images and label maps in the layout of ADE20K."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from resnest_jax.data.builtin import scenes
from resnest_jax.data.label_tables import published_table
from resnest_jax.data.sources import mask_classes
from resnest_jax.files import local_path, writing
from resnest_jax.lock import write_once

NAME = "scenes"


def folder() -> Path:
    """Return the folder of the scenes, in the directory of TFDS; write it the first time.

    It has ``{images,annotations}/{training,validation}`` and ``classes.txt``: an example of a
    user's own data set too.

    Raises:
      InputError: if it cannot be written.
    """
    # Importing TFDS to ask it would take seconds.
    directory = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    root = local_path("TFDS_DATA_DIR", directory) / NAME / scenes.VERSION
    with writing(f"dataset {NAME}", root):
        write_once(root, _write)
    return root


def _write(root: Path) -> None:
    table = published_table(NAME)
    palette = np.array(table.palette, np.uint8).tobytes()
    lines = [f"{value} {name}\n" for value, name in zip(table.values, table.names, strict=True)]
    (root / mask_classes.FILE).write_text("".join(lines))
    for split in scenes.SCENES:
        images, label_maps = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        label_maps.mkdir(parents=True)
        for index, scene in enumerate(scenes.scenes(split)):
            Image.fromarray(scene.image).save(images / f"{index:04}.jpg", quality=95)
            label_map = Image.fromarray(_label_map(scene, table.names.index("ground")))
            label_map.putpalette(palette)  # the values stay
            label_map.save(label_maps / f"{index:04}.png")


def _label_map(scene: scenes.Scene, ground: int) -> np.ndarray:
    """Return the digit that each pixel shows, or the value of the ground."""
    label_map = np.full(scene.image.shape[:2], ground, np.uint8)
    for digit in scene.digits:
        label_map[digit.mask] = digit.value
    return label_map

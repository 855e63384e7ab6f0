"""Write a small folder of real photographs, for trials without ImageNet."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

# Photographs in the package of scikit-image, which is optional.
SKIMAGE_FILES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "ihc.png")


def load_photos() -> dict[str, np.ndarray]:
    """Return name -> uint8 (H, W, 3): photos of scikit-learn and, if installed, scikit-image."""
    bundled = load_sample_images()
    photos = {
        Path(name).stem: image
        for name, image in zip(bundled.filenames, bundled.images, strict=True)
    }
    package = importlib.util.find_spec("skimage")
    folder = Path(package.origin).parent / "data" if package else None
    for name in SKIMAGE_FILES:
        if folder and (folder / name).is_file():
            photos[Path(name).stem] = np.asarray(Image.open(folder / name).convert("RGB"))
    return photos


def write_photos(folder: Path, train: int, held_out: int, side: int = 500, seed: int = 0) -> None:
    """Write folder/{train,val}/NAME/N.jpg: one class per photograph, with random crops of it.

    Crops keep half to all of each side and are resized to about ``side``, quality 90.
    """
    rng = np.random.default_rng(seed)
    photos = load_photos()
    for split, count in (("train", train), ("val", held_out)):
        for name in photos:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            name = list(photos)[index % len(photos)]
            image = Image.fromarray(_random_crop(photos[name], rng))
            width = round(side * rng.uniform(0.85, 1.15))
            height = round(side * rng.uniform(0.7, 1.0))
            path = folder / split / name / f"{index:05d}.jpg"
            image.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def _random_crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = (int(length * rng.uniform(0.5, 1.0)) for length in image.shape[:2])
    top = int(rng.integers(image.shape[0] - height, endpoint=True))
    left = int(rng.integers(image.shape[1] - width, endpoint=True))
    return image[top : top + height, left : left + width]

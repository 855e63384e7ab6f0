"""Measured speed and published accuracy of the zoo's models and timm's EfficientNets."""

import jax

from experiments.benchmark import ours, report, torch_process
from experiments.timing import random_variables, time_calls
from resnest_jax.models.zoo import MODELS, create_model

# Name in timm -> test size in pixels, top-1 accuracy at it (timm's results-imagenet.csv).
EFFICIENTNETS = {
    "efficientnet_b0": (224, 77.694),
    "efficientnet_b2": (288, 80.610),
    "efficientnet_b3": (320, 82.242),
    "tf_efficientnet_b4": (380, 83.018),
}


def rows(batch_size: int, dtype: str, repeats: int, torch: bool, compiled: bool) -> list[dict]:
    """Time inference with folded norms at the size of the accuracy; return a row per model."""
    calls, about = {}, {}
    for name, model in MODELS.items():
        if model.top1 is not None:
            print(f"compiling {name} at {model.test_crop} pixels", flush=True)
            shape = (batch_size, model.test_crop, model.test_crop, 3)
            images = jax.random.normal(jax.random.key(1), shape)
            network = create_model(name, dtype=dtype)
            calls[name] = ours.folded(network, random_variables(network, images), images).call
            family = "ResNeSt, fast" if "_fast_" in name else "ResNeSt"
            about[name] = family, model.test_crop, model.top1
    if torch:
        shapes = {name: (batch_size, crop, crop, 3) for name, (crop, _) in EFFICIENTNETS.items()}
        print("compiling timm's EfficientNets", flush=True)
        settings = {"shapes": shapes, "dtype": dtype, "compiled": compiled}
        rivals = torch_process.programs("channels_last", **settings)
        for (name, way), program in rivals.items():
            calls[f"timm {name}, {way}"] = program.call
            about[f"timm {name}, {way}"] = f"timm EfficientNet, {way}", *EFFICIENTNETS[name]
    table = []
    for name, times in time_calls(calls, repeats).items():
        family, crop, top1 = about[name]
        speed = report.speed(times, batch_size)
        table.append({"": name, "family": family, "size": crop, **speed, "top-1": top1})
    return table

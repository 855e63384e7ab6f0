"""Measured speed and published accuracy of the models of the zoo, and timm's EfficientNets."""

import statistics

import jax

from experiments.benchmark import beside, ours
from experiments.timing import time_calls
from resnest_jax.models.zoo import MODELS, create_model

# Name in timm -> test size in pixels and the top-1 accuracy there, results-imagenet.csv of timm.
EFFICIENTNETS = {
    "efficientnet_b0": (224, 77.694),
    "efficientnet_b2": (288, 80.610),
    "efficientnet_b3": (320, 82.242),
    "tf_efficientnet_b4": (380, 83.018),
}


def rows(batch_size: int, dtype: str, repeats: int, torch: bool, compiled: bool) -> list[dict]:
    """A row a model, all taking turns: inference with folded norms at the size of its accuracy."""
    calls, about = {}, {}
    for name, model in MODELS.items():
        if model.top1 is not None:
            print(f"compiling {name} at {model.test_crop} pixels", flush=True)
            shape = (batch_size, model.test_crop, model.test_crop, 3)
            images = jax.random.normal(jax.random.key(1), shape)
            calls[name] = ours.folded(create_model(name, dtype=dtype), images).call
            family = "ResNeSt, fast" if "_fast_" in name else "ResNeSt"
            about[name] = family, model.test_crop, model.top1
    for name, (crop, top1) in EFFICIENTNETS.items() if torch else ():
        shape = (batch_size, crop, crop, 3)
        print(f"timm's {name} at {crop} pixels", flush=True)
        rivals = beside.programs("channels_last", name, shape, dtype, beside.device(), compiled)
        for way, program in rivals.items():
            calls[f"timm {name}, {way}"] = program.call
            about[f"timm {name}, {way}"] = f"timm EfficientNet, {way}", crop, top1
    table = []
    for name, times in time_calls(calls, repeats).items():
        rates = statistics.quantiles([batch_size / t for t in times], n=4, method="inclusive")
        family, crop, top1 = about[name]
        row = {"": name, "family": family, "size": crop, "images/s": round(rates[1], 2)}
        table.append(row | {"quartiles": f"{rates[0]:.2f} - {rates[2]:.2f}", "top-1": top1})
    return table

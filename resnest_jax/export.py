"""Export a model with its weights to one file that runs without this package.

    python -m resnest_jax.export --model=resnest50 --weights=FILE --output=resnest50.onnx
    python -m resnest_jax.export --model=resnest50 --weights=FILE --output=resnest50.stablehlo
    python -m resnest_jax.export --weights=runs/digits --output=digits.stablehlo
    python -m resnest_jax.export --weights=runs/ade20k --image_size=512,683 --output=ade20k.onnx
    python -m resnest_jax.export --weights=runs/coco --output=coco.stablehlo

FILE is a source for ``resnest_jax.load_pretrained``: a file, or the directory of a run, which names
its model; or a file of a model of segmentation or detection. Both formats have the weights inside
and the batch norms folded, and take any batch size B; the images have the height H and width W of
the model's published test, of the run (of segmentation its crop_size), or of --image_size.

ONNX, opset 18 (needs the extra ``onnx``): ``images``, float32 RGB (B, 3, H, W), normalized by the
mean and the std in the metadata, to ``logits``, float32 (B, num_classes), of segmentation
(B, num_classes, H, W). With onnxruntime:

    session = onnxruntime.InferenceSession("resnest50.onnx")
    metadata = session.get_modelmeta().custom_metadata_map  # image_size, mean, std, class_names
    (logits,) = session.run(None, {"images": images})

StableHLO, as ``jax.export`` serialises it: RGB images, uint8 (B, H, W, 3) in 0..255, to the same
logits, of segmentation (B, H, W, num_classes); ImageNet's normalization is part of it. If the
names of the classes are known, a .json file beside it holds them. With only jax and flatbuffers
installed:

    import jax
    from jax import export

    artefact = export.deserialize(bytearray(open("resnest50.stablehlo", "rb").read()))
    logits = jax.jit(artefact.call)(images)

A detector, StableHLO only, also takes the sizes of the images, int32 (B, 2): height and width of
what is at the left top of each; the rest is padding, of any colour. It returns boxes (B, D, 4),
scores, classes and valid (B, D), and with a mask head masks (B, D, 28, 28), as ``RCNN.detect``
does, in pixels of these images. By default H and W are the short and the long side of the run's
test images, as those of a wide photo; for high ones give them the other way round, or one side for
both.

    boxes, scores, classes, valid = jax.jit(artefact.call)(images, sizes)

jax promises that releases of the next six months read it. On CPU an artefact exported with
--platforms=cpu is faster: its pools and grouped convolutions suit the CPU.
"""

from absl import flags

from resnest_jax import arguments, cli
from resnest_jax.weights import exports

FLAGS = flags.FlagValues()
MODEL = arguments.define_model(FLAGS)
BACKBONE = arguments.define_backbone(FLAGS)
WEIGHTS = arguments.define_weights(FLAGS)
CHECKPOINT = arguments.define_checkpoint(FLAGS)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    f"File to write, ending in {exports.ONNX} or {exports.STABLEHLO}.",
    required=True,
    flag_values=FLAGS,
)
IMAGE_SIZE = flags.DEFINE_list(
    "image_size",
    None,
    "Side of the images, or height,width; default: that of the published test, or of the run.",
    flag_values=FLAGS,
)
PLATFORMS = flags.DEFINE_list(
    "platforms",
    None,
    f"Platforms that a {exports.STABLEHLO} file runs on; the default is cpu,cuda,tpu.",
    flag_values=FLAGS,
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    f"Dtype of activations in a {exports.STABLEHLO} file; the default is float32.",
    flag_values=FLAGS,
)


def main(_: list[str]) -> None:
    """Export the model."""
    line = exports.export_file(
        MODEL.value,
        WEIGHTS.value,
        arguments.local_path(OUTPUT),
        backbone=BACKBONE.value,
        checkpoint=CHECKPOINT.value,
        image_size=arguments.height_and_width(IMAGE_SIZE),
        platforms=PLATFORMS.value,
        dtype=DTYPE.value,
    )
    print(line)


if __name__ == "__main__":
    cli.run(main, FLAGS)

"""Evaluation of any weights: figures, predictions, classes and views against NumPy."""

import csv
import json
from pathlib import Path

import commands
import cv2
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_net import SmallNet

import resnest_jax
from resnest_jax.data.crops import test_crop as crop_center
from resnest_jax.data.imagenet import synsets
from resnest_jax.data.sources import open_dataset, open_split
from resnest_jax.errors import InputError
from resnest_jax.models.inputs import MEAN, STD
from resnest_jax.tasks.classification import evaluate, predict
from resnest_jax.tasks.classification.evaluate import Options
from resnest_jax.tasks.classification.views import Views, view_logits, view_transform
from resnest_jax.weights import classifier

RUN = golden.FOLDER / "run_v0"


def softmax(logits):
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def digits():
    """Return the evaluation images of the golden run, their labels and its probabilities."""
    records = open_dataset("sklearn_digits").eval
    decoded = [cv2.imdecode(np.frombuffer(records[i]["image"], np.uint8), 1) for i in range(360)]
    images = np.stack([crop_center(image, 32, "whole") for image in decoded])
    labels = np.array([records[i]["label"] for i in range(360)])
    model, variables = resnest_jax.load_pretrained(None, RUN)
    logits = jax.jit(model.apply)(variables, (images - MEAN) / STD)
    return images, labels, softmax(np.asarray(logits, np.float64))


def read_csv(path, reader=csv.DictReader):
    return list(reader(path.read_text().splitlines()))


def write_digits(folder, digits, classes, names=None):
    """Write the images of some classes as a folder."""
    images, labels, _ = digits
    for label in classes:
        name = (names or {}).get(label, str(label))
        (folder / name).mkdir(parents=True)
        for index in np.flatnonzero(labels == label):
            cv2.imwrite(str(folder / name / f"{index:03d}.png"), images[index])


def test_tables_of_a_run(digits, tmp_path, capsys):
    """Also in batches of another size, which the devices do not divide."""
    _, labels, probabilities = digits
    options = Options(batch_size=50, output=tmp_path, predictions=tmp_path / "all.csv")
    figures = evaluate.run(None, str(RUN), "last", options)
    predicted = probabilities.argmax(-1)
    assert figures["eval_top1"] == np.mean(predicted == labels)
    losses = -np.log(probabilities[np.arange(360), labels])
    assert figures["eval_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    rows = read_csv(tmp_path / "all.csv")
    assert [row["file"] for row in rows] == [f"sklearn_digits/test#{i}" for i in range(360)]
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert [int(row["prediction"]) for row in rows] == predicted.tolist()
    fifth = np.sort(probabilities, -1)[:, -5]
    found = [float(row["probability_5"]) for row in rows]
    np.testing.assert_allclose(found, fifth, atol=1e-5)

    confusion = np.zeros((10, 10), int)
    for true, guess in zip(labels, predicted, strict=True):
        confusion[true, guess] += 1
    matrix = read_csv(tmp_path / "confusion.csv", csv.reader)
    assert matrix[0] == ["true", *"0123456789"]
    np.testing.assert_array_equal([list(map(int, row[1:])) for row in matrix[1:]], confusion)
    for row in read_csv(tmp_path / "per_class.csv"):
        label = int(row["class"])
        assert int(row["images"]) == (labels == label).sum()
        accuracy = confusion[label, label] / confusion[label].sum()
        assert float(row["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 300
    assert "360 images of sklearn_digits" in capsys.readouterr().err


def test_classes_are_matched_by_name(digits, tmp_path, capsys):
    """Label 0 of this folder is the class 3, label 1 the class 7."""
    labels = digits[1]
    write_digits(tmp_path / "data", digits, (3, 7))
    options = Options(f"folder:{tmp_path}/data", split=".", predictions=tmp_path / "some.json")
    with pytest.raises(InputError, match="2 classes, the weights have 10 and do not know"):
        evaluate.run(None, str(RUN), "last", options)  # which stored no names
    weights = tmp_path / "named.safetensors"
    model, variables = resnest_jax.load_pretrained(None, RUN)
    resnest_jax.save_weights(variables, model, weights, class_names=tuple("0123456789"))
    source = classifier.Source("any", weights, classifier.read_card(weights))
    split = open_split(f"folder:{tmp_path}/data")
    assert evaluate._match(source, split, 10) == [3, 7]
    assert "2 of the 10 classes" in capsys.readouterr().err
    chosen = np.isin(labels, (3, 7))
    assert len(split.records) == chosen.sum()
    with pytest.raises(InputError, match=r"1 of its 2 classes are not classes of .*: x; .* 0, 1"):
        evaluate._match(source, split._replace(class_names=("x", "7")), 10)


def test_a_run_on_another_folder(digits, tmp_path):
    """All ten classes; a fifth of each is held out, or all images with split '.'."""
    _, labels, probabilities = digits
    write_digits(tmp_path / "data", digits, range(10))
    options = Options(f"folder:{tmp_path}/data", predictions=tmp_path / "some.json")
    evaluate.run(None, str(RUN), "last", options)
    assert len(json.loads(options.predictions.read_text())) == sum(
        (labels == label).sum() // 5 for label in range(10)
    )
    figures = evaluate.run(None, str(RUN), "last", options._replace(split="."))
    rows = json.loads(options.predictions.read_text())
    assert figures["eval_top1"] == np.mean(probabilities.argmax(-1) == labels)
    for row in rows:
        index = int(row["file"][-7:-4])
        assert row["label"] == str(labels[index])
        assert row["prediction"] == row["top"][0]["class"] == str(probabilities[index].argmax())


def test_where_it_looked_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"no such folder: {tmp_path}/not/here; expected PATH"):
        evaluate.run(None, str(RUN), "last", Options("folder:not/here"))
    monkeypatch.setattr(classifier, "fetch", lambda name: tmp_path / "x")
    with pytest.raises(InputError, match="dataset is missing"):
        evaluate.run("resnest50", "published")
    with pytest.raises(InputError, match=r"predictions must end in one of .*; got a\.txt"):
        evaluate.run("resnest50", None, "last", Options(predictions=Path("a.txt")))


def test_published_weights_on_synsets(digits, tmp_path, monkeypatch):
    """Without training images; labels are the positions among the 1,000 synsets."""
    write_digits(tmp_path, digits, (3, 7), {3: "n02099601", 7: "n01440764"})
    model = SmallNet(num_classes=1000)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    monkeypatch.setattr(classifier, "fetch", lambda name: tmp_path / "x")
    monkeypatch.setattr(classifier, "load_pretrained", lambda *_, **__: (model, variables))
    monkeypatch.setattr(evaluate, "input_channels", lambda _: 3)  # which knows ResNeSts only
    options = Options(f"folder:{tmp_path}", sizes=(32,), output=tmp_path / "out")
    figures = evaluate.run("resnest50", "published", "last", options)
    assert "published_top1" not in figures  # which is of all classes
    assert evaluate._published("resnest50", evaluate.Split([], synsets())) == {
        "published_top1": 0.8103
    }
    rows = read_csv(tmp_path / "out" / "per_class.csv")
    assert [row["class"] for row in rows] == ["tench", "golden retriever"]
    header = (tmp_path / "out" / "confusion.csv").read_text().splitlines()[0]
    assert header == "true,tench,golden retriever,other classes"


def test_views_are_averaged():
    """Against crops and means by hand."""
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    views = view_transform((32, 40), "0.5", ("flip", "five_crop"))
    element = views.map({"image": image, "label": 2})
    assert element["label"] == 2
    model = SmallNet()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    expected = []
    for size in (32, 40):
        centre = (30, 20, 70, 60)  # a side of 40: half of the short side
        corners = [(0, 0, 40, 40), (60, 0, 100, 40), (0, 40, 40, 80), (60, 40, 100, 80)]
        for box in (centre, *corners):
            crop = Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BICUBIC)
            for pixels in (np.asarray(crop), np.asarray(crop)[:, ::-1]):
                logits = model.apply(variables, ((pixels - MEAN) / STD)[None])
                expected.append(softmax(np.asarray(logits, np.float64))[0])
    batch = {name: np.stack([value] * 8) for name, value in element.items()}
    found = jax.nn.softmax(view_logits(model, variables, batch))
    assert len(expected) == 20
    np.testing.assert_allclose(found[3], np.mean(expected, 0), rtol=1e-4)
    for arguments, words in (
        (((16,), "0.5"), "tta_sizes must be different sides of at least 32 pixels"),
        (((32, 32), "0.5"), "tta_sizes must be different"),
        (((32,), "0.5", ("rotate",)), "tta must be some of flip, five_crop; got rotate"),
        (((32,), "half"), "eval_crop must be"),
    ):
        with pytest.raises(InputError, match=words):
            view_transform(*arguments)


def test_evaluation_of_views(digits, tmp_path):
    """The mirrored images of the golden run, through the loader and the devices."""
    images, labels, probabilities = digits
    model, variables = resnest_jax.load_pretrained(None, RUN)
    mirrored = jax.jit(model.apply)(variables, (images[:, :, ::-1] - MEAN) / STD)
    mean = (probabilities + softmax(np.asarray(mirrored, np.float64))) / 2
    figures = evaluate.run(None, str(RUN), "last", Options(tta=("flip",)))
    assert figures["eval_top1"] == np.mean(mean.argmax(-1) == labels)
    losses = -np.log(mean[np.arange(360), labels])
    assert figures["eval_loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_predict_writes_what_evaluate_says(digits, tmp_path, capsys):
    images, _, probabilities = digits
    for index in range(9):  # more than one batch
        cv2.imwrite(str(tmp_path / f"{index}.png"), images[index])
    (tmp_path / "text.txt").write_text("no image")
    outputs = predict.Outputs(None, tmp_path / "out" / "a.csv", tmp_path / "out" / "a.npz")
    (tmp_path / "out").mkdir()
    assert predict.run([str(tmp_path)], weights=str(RUN), outputs=outputs) == 1
    capsys.readouterr()
    rows = read_csv(outputs.predictions)
    assert [row["file"] for row in rows] == [f"{tmp_path}/{i}.png" for i in range(9)]
    assert "label" not in rows[0]
    assert [int(row["prediction"]) for row in rows] == probabilities[:9].argmax(-1).tolist()
    found = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(found, probabilities[:9].max(-1), atol=1e-5)

    with np.load(outputs.embeddings) as stored:
        assert stored["files"].tolist() == [row["file"] for row in rows]
        head = resnest_jax.load_pretrained(None, RUN)[1]["params"]["head"]
        logits = stored["embeddings"] @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(softmax(logits), probabilities[:9], rtol=1e-4)
    with pytest.raises(InputError, match="explain and embeddings are of one view"):
        predict.run([str(tmp_path)], weights=str(RUN), tta=("flip",), outputs=outputs)
    with pytest.raises(InputError, match=r"embeddings must end in \.npz"):
        predict.run(["a.png"], outputs=predict.Outputs(embeddings=tmp_path / "a.npy"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["give --workdir=RUN", "--model=NAME"]),
        (["--workdir=a", "--weights=b"], ["--workdir and --weights are both given"]),
        (["--workdir=absent"], ["absent: no such file or directory"]),
        ([f"--workdir={RUN}", "--checkpoint=7"], ["no checkpoint '7'", "steps [6, 12]"]),
        ([f"--workdir={RUN}", "--tta=turn"], ["tta must be some of flip, five_crop; got turn"]),
        ([f"--workdir={RUN}", "--tta_sizes=big"], ["--tta_sizes must be sides such as", "big"]),
        ([f"--workdir={RUN}", "--tta_sizes=32", "--image_size=32"], ["both given; leave one out"]),
        ([f"--workdir={RUN}", "--predictions=no/a.csv"], ["--predictions", "no directory"]),
        ([f"--workdir={RUN}", "--output=/dev/null/a"], ["output /dev/null/a cannot be written"]),
    ],
)
def test_bad_flags_are_one_line(arguments, words):
    commands.assert_one_line(commands.run("resnest_jax.evaluate", *arguments), *words)


def test_views_without_augmentation_are_the_test_crop():
    assert not isinstance(view_transform((32,), "authors"), Views)

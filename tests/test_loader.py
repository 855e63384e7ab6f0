"""Order and batches: by counting, and against an uninterrupted single host."""

import itertools
import multiprocessing
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import grain
import numpy as np
import pytest
from records import Numbered, assert_same_batches, labels_of, take, train, write_images

from resnest_jax.data.batches import Batches, LoaderOptions
from resnest_jax.data.images import Images
from resnest_jax.data.loader import HostShard, eval_batches
from resnest_jax.data.order import shuffled
from resnest_jax.data.sources import Dataset
from resnest_jax.errors import InputError
from resnest_jax.tasks.classification.transforms import EvalTransform, TrainTransform
from resnest_jax.tasks.loading import read_batch

_AUGMENT = TrainTransform(8, shift=0.25, flip=True)


def make_batches(records, transforms, **options):
    """Make batches of four."""
    dataset = Dataset(records, Numbered(4), tuple(map(str, range(20))))
    options = LoaderOptions(**{"batch_size": 4, "eval_batch_size": 4, "seed": 1} | options)
    return Batches(dataset, transforms, EvalTransform(8), options)


def test_each_epoch_is_another_permutation():
    batches = take(train(Images(Numbered(21)), _AUGMENT, HostShard(6), seed=0), 7)
    labels = labels_of(batches)
    first, second = labels[:21], labels[21:42]
    assert sorted(first) == sorted(second) == list(range(21))
    assert first != second
    assert first != sorted(first)
    assert batches[0]["image"].shape == (6, 8, 8, 3)
    assert batches[0]["image"].dtype == np.uint8
    assert batches[0]["label"].dtype == np.int32


def test_the_seed_sets_the_order_and_the_augmentation():
    def run(seed):
        return take(train(Images(Numbered(20)), _AUGMENT, HostShard(10), seed=seed), 4)

    assert_same_batches(run(1), run(1))
    assert labels_of(run(1)) != labels_of(run(2))

    def images_of_record_0(seed):
        batches = run(seed)
        images = np.concatenate([batch["image"] for batch in batches])
        return images[np.array(labels_of(batches)) == 0]

    # Two epochs, two draws of the augmentation.
    first, second = images_of_record_0(1)
    assert np.any(first != second)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("repeats", [1, 3])
def test_resume_equals_the_uninterrupted_run(workers, repeats):
    arguments = (Images(Numbered(20)), _AUGMENT, HostShard(8))
    uninterrupted = take(train(*arguments, seed=3, repeats=repeats), 9)
    resumed = train(*arguments, seed=3, start_step=4, repeats=repeats, workers=workers)
    assert_same_batches(take(resumed, 5), uninterrupted[4:])
    assert not multiprocessing.active_children()


def test_shares_of_two_hosts_in_order_are_the_batch_of_one():
    images = Images(Numbered(20))
    whole = take(train(images, _AUGMENT, HostShard(8), seed=3), 6)
    hosts = [take(train(images, _AUGMENT, HostShard(8, i, 2), seed=3), 6) for i in range(2)]
    for batch, first, second in zip(whole, *hosts, strict=True):
        joined = {name: np.concatenate([first[name], second[name]]) for name in batch}
        assert_same_batches([joined], [batch])


@pytest.mark.parametrize(
    ("batch_size", "count", "chunk"), [(300, 1, 100), (300, 2, 75), (127, 1, 127)]
)
def test_batches_made_in_chunks_are_in_order(batch_size, count, chunk):
    """Element n is element n of the endless order, for any size of chunks."""
    images = Images(Numbered(40))
    elements = labels_of(take(train(images, _AUGMENT, HostShard(20), seed=3), 60))
    for index in range(count):
        shard = HostShard(batch_size, index, count)
        assert shard.chunk == chunk
        for step, batch in enumerate(take(train(images, _AUGMENT, shard, seed=3), 3)):
            start = step * batch_size + index * shard.size
            assert batch["label"].tolist() == elements[start : start + shard.size]


@pytest.mark.parametrize("count", [1, 2])
def test_step_elements_are_those_of_the_batch(count):
    for index in range(count):
        shard = HostShard(8, index, count)
        batches = take(train(Images(Numbered(20)), _AUGMENT, shard, seed=3, repeats=2), 4)
        indices = shuffled(grain.MapDataset.range(20), 3, 2)
        assert [indices[i] for i in shard.step_elements(3)] == batches[3]["label"].tolist()


def test_keys_are_those_of_the_batch():
    batches = make_batches(Numbered(20), ((0, TrainTransform(8)),))
    labels = take(batches.train(0), 4)[3]["label"]
    assert batches.train_keys(3) == [f"numbered#{label}" for label in labels]


def test_repeated_images_are_augmented_in_other_ways():
    batches = take(train(Images(Numbered(8)), _AUGMENT, HostShard(24), seed=0, repeats=3), 1)
    labels, images = batches[0]["label"].reshape(8, 3), batches[0]["image"].reshape(8, 3, -1)
    assert (labels == labels[:, :1]).all()
    assert sorted(labels[:, 0]) == list(range(8))
    assert (images != images[:, :1]).any(-1)[:, 1:].any(-1).sum() >= 7


@pytest.mark.parametrize(("size", "repeats", "devices"), [(24, 3, 4), (16, 3, 4), (8, 2, 2)])
def test_spread_copies_are_on_different_devices(size, repeats, devices):
    """Each batch has the same images as without it, in another order; keys follow."""

    def labels(spread):
        options = {"repeats": repeats, "batch_size": size, "spread_repeats": spread}
        batches = make_batches(Numbered(30), ((0, TrainTransform(8)),), **options)
        assert batches.train_keys(2) == [
            f"numbered#{label}" for label in take(batches.train(2), 1)[0]["label"]
        ]
        return [batch["label"] for batch in take(batches.train(0), 3)]

    for together, apart in zip(labels(False), labels(True), strict=True):
        assert sorted(apart) == sorted(together)
        parts = apart.reshape(devices, -1)
        assert all(len(set(part.tolist())) == len(part) for part in parts)
        assert len(set(together.reshape(devices, -1)[0].tolist())) < len(parts[0])


def test_specs_are_the_shapes_of_the_batches():
    batches = make_batches(Numbered(20), ((0, TrainTransform(6)), (2, TrainTransform(8))))
    for spec, batch in zip(batches.train_specs(), take(batches.train(1), 2), strict=True):
        assert spec.keys() == batch.keys()
        for name, leaf in spec.items():
            assert (leaf.shape, leaf.dtype) == (batch[name].shape, batch[name].dtype)


def test_image_sizes_change_at_their_steps():
    """Only the sizes change: from any step on, the order is that of a run with one size."""

    def batches(image_sizes, start, count):
        transforms = [(step, TrainTransform(size, flip=True)) for step, size in image_sizes]
        return take(make_batches(Numbered(20), transforms).train(start), count)

    growing, fixed = batches(((0, 6), (2, 8), (5, 12)), 0, 7), batches(((0, 8),), 0, 7)
    assert [b["image"].shape[1] for b in growing] == [6, 6, 8, 8, 8, 12, 12]
    assert labels_of(growing) == labels_of(fixed)
    assert_same_batches(growing[2:5], fixed[2:5])
    for start in (1, 2, 4, 6):
        again = batches(((0, 6), (2, 8), (5, 12)), start, 7 - start)
        assert_same_batches(again, growing[start:])


@pytest.mark.parametrize("batch_size", [2, 4, 10, 16, 260])
@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_sees_every_record_once(batch_size, process_count):
    hosts = [
        list(
            eval_batches(
                Images(Numbered(10)), EvalTransform(8), HostShard(batch_size, index, process_count)
            )
        )
        for index in range(process_count)
    ]
    assert {len(batches) for batches in hosts} == {-(-10 // batch_size)}
    labels = []
    for batch in itertools.chain(*hosts):
        assert batch["image"].shape == (batch_size // process_count, 8, 8, 3)
        assert batch["valid"].dtype == bool
        assert not batch["image"][~batch["valid"]].any()
        assert not batch["label"][~batch["valid"]].any()
        for image, label in zip(
            batch["image"][batch["valid"]], batch["label"][batch["valid"]], strict=True
        ):
            assert image[0, 0, 0] == label  # The image of its own record.
        labels += batch["label"][batch["valid"]].tolist()
    assert sorted(labels) == list(range(10))
    if process_count == 1:
        assert labels == list(range(10))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_raises_here_as_one_line(workers):
    images = Images(Numbered(10, broken=[7]))
    batches = eval_batches(images, EvalTransform(8), HostShard(2), workers=workers)
    with pytest.raises(InputError, match="numbered#7") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed.*got -1"),
        ({"seed": 2**32}, "seed"),
        ({"workers": -1}, "loader.workers"),
        ({"repeats": 0}, "augment.repeats must be at least 1; got 0"),
    ],
)
def test_loader_checks_its_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        train(Images(Numbered(4)), _AUGMENT, HostShard(2), **{"seed": 0, **arguments})
    with pytest.raises(InputError, match=r"loader\.max_unreadable must not be negative"):
        Images(Numbered(4), max_unreadable=-1)
    with pytest.raises(InputError, match="repeats"):
        make_batches(Numbered(4), ((0, _AUGMENT),), repeats=0)
    with pytest.raises(InputError, match="batch_size 3 must be a multiple of the 2 processes"):
        HostShard(3, 0, 2)


_LOADING_SCRIPT = """
import time
import sys

sys.path.insert(0, "TESTS")
from records import train
from resnest_jax.data.images import Images
from resnest_jax.data.loader import HostShard
from resnest_jax.data.sources import open_dataset
from resnest_jax.tasks.classification.transforms import TrainTransform

if __name__ == "__main__":
    images = Images(open_dataset("folder:FOLDER").train)
    batches = train(images, TrainTransform(8), HostShard(2), seed=0, workers=1)
    next(batches)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    write_images(tmp_path / "images" / "cat", 5)
    script = tmp_path / "script.py"
    text = _LOADING_SCRIPT.replace("FOLDER", str(tmp_path / "images"))
    script.write_text(text.replace("TESTS", str(Path(__file__).parent)))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout.readline() == "ready\n"
        children = _children(parent.pid)
        assert children
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(_is_running(child) for child in children):
        assert time.monotonic() < deadline, f"still running: {children}"
        time.sleep(0.1)


def _children(pid):
    """Return the child processes of any thread of ``pid``."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += (thread / "children").read_text().split()
    return found


def _is_running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"  # Ended, not yet collected.
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_batch_to_look_at_outlives_its_stream_and_starts_no_workers(split):
    """The stream's memory is reused; batches of evaluation lose their padding."""
    memory = {"image": np.arange(3), "valid": np.array([True, True, False])}

    def read(*_, workers):
        assert workers == 0
        try:
            yield memory
        finally:
            memory["image"][:] = -1

    batches = types.SimpleNamespace(train=read, eval=read)
    found = read_batch(batches, split, 0)["image"]
    assert memory["image"].tolist() == [-1, -1, -1]
    assert found.tolist() == ([0, 1, 2] if split == "train" else [0, 1])

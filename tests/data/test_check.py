"""check.py: planted leaks, unreadable images and classes out of place are found and named."""

import shutil

import pytest
from PIL import Image

from hifuse_fast.data.check import Reading, check_examples, digest_examples, hash_examples
from hifuse_fast.data.examples import read_examples
from tests.support.examples import save_class, save_splits


@pytest.fixture
def data(tmp_path):
    return save_splits(tmp_path / "data", train=3, val=2, test=2)


def checked(data, group_by="", **options):
    return check_examples(digest_examples(read_examples(data, group_by), Reading()), **options)


def test_nothing_to_say(data):
    assert checked(data) == []


def test_the_same_pixels_on_both_sides_whatever_the_file(data):
    with Image.open(data / "train" / "dark" / "001.png") as image:
        image.save(data / "val" / "dark" / "copy.bmp")
    pair = f"{data}/train/dark/001.png and {data}/val/dark/copy.bmp"
    with pytest.raises(ValueError, match=f"1 images of val have the same pixels as images of train: {pair}"):
        checked(data)
    (note,) = checked(data, allow_duplicates=True)
    assert pair in note


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("val", "test")])
def test_the_test_set_is_compared_too(data, one, other):
    shutil.copy(data / one / "light" / "000.png", data / other / "light" / "x.png")
    with pytest.raises(ValueError, match=f"1 images of {other} have the same pixels as images of {one}"):
        checked(data)


def test_a_group_on_both_sides_is_named(data):
    with pytest.raises(
        ValueError, match=r"group '000' is in train and in val: .*, and 1 groups more; a group, such as a patient"
    ):
        checked(data, r"\d+(?=\.png)")
    save_class(data / "test" / "dark" / "p9", 1, 5)
    save_class(data / "val" / "dark" / "p9", 1, 6)
    with pytest.raises(ValueError, match="group 'p9' is in val and in test"):
        checked(data, r"p9|[a-z]+/[a-z]+/\d+")


def test_unreadable_images_are_named_with_their_reasons(data):
    for i in range(6):
        (data / "train" / "dark" / f"z{i}.png").write_text("no image")
    with pytest.raises(ValueError, match=r"6 of 20 images cannot be read: .*z0.png: not an image.*; and 2 more$"):
        checked(data)


def test_classes_out_of_place(data, tmp_path):
    save_class(data / "val" / "unsure", 1, 120)
    with pytest.raises(ValueError, match=r"val has images of class 'unsure', which train lacks, such as .*unsure/000.png"):
        checked(data)
    save_class(data / "train" / "unsure", 1, 121)
    assert checked(data) == ["test has no images of class unsure."]
    save_class(tmp_path / "one" / "train" / "a", 1, 0)
    with pytest.raises(ValueError, match="the data have no images for val"):
        checked(tmp_path / "one")
    save_class(tmp_path / "one" / "val" / "a", 1, 1)
    with pytest.raises(ValueError, match="the data must have two classes at least, got a"):
        checked(tmp_path / "one")


def test_repeated_images_within_a_split_are_said(data):
    shutil.copy(data / "train" / "light" / "000.png", data / "train" / "dark" / "x.png")
    notes = checked(data)
    assert "1 images of train repeat the pixels of others there" in notes[0]
    assert "different classes, such as" in notes[1]
    shutil.copy(data / "train" / "dark" / "x.png", data / "train" / "dark" / "y.png")
    pair = f"{data / 'train' / 'dark' / 'x.png'} (dark) and {data / 'train' / 'light' / '000.png'} (light)."
    assert checked(data)[1].endswith(pair)


def test_the_hash_is_of_contents_and_not_of_places(data, tmp_path):
    def hashed(folder):
        return hash_examples(digest_examples(read_examples(folder), Reading()))

    before = hashed(data)
    assert hashed(shutil.copytree(data, tmp_path / "elsewhere")) == before
    shutil.copy(data / "val" / "dark" / "000.png", data / "val" / "dark" / "001.png")
    assert hashed(data) != before

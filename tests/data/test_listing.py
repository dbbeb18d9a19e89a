"""listing.py: which files are found, and what is said of the others."""

import os

import pytest

from hifuse_fast.data.listing import find_images, list_images


def test_list_is_recursive_sorted_by_suffix_and_without_duplicates(tmp_path, monkeypatch):
    for name in ("b.PNG", "a b.jpeg", "ü.tif", "sub/c.webp", "notes.txt", ".hidden.png", "d.png.bak", "sub/._c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path])]
    assert names == ["a b.jpeg", "b.PNG", "sub/c.webp", "ü.tif"]
    monkeypatch.chdir(tmp_path)
    listed = list_images(["notes.txt", tmp_path / "b.PNG", ".", "sub/../notes.txt"])
    assert [path.name for path in listed] == ["notes.txt", "b.PNG", "a b.jpeg", "c.webp", "ü.tif"]


def test_list_names_what_is_missing(tmp_path):
    assert list_images([tmp_path]) == []
    with pytest.raises(FileNotFoundError, match=r"absent\.png: no such file or folder"):
        list_images([tmp_path / "absent.png"])
    with pytest.raises(TypeError, match="sequence of files"):
        list_images("a.png")


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_in(found, folder):
    return [path.relative_to(folder).as_posix() for path in found.images]


def test_folders_with_a_dot_are_left_out_below_an_argument_and_not_as_one(tmp_path):
    make(tmp_path, "a.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/.Trash-1000/files/b.png", "sub/b.png", "..c/c.gif")
    found = find_images([tmp_path])
    assert names_in(found, tmp_path) == ["a.png", "sub/b.png"]
    assert not found.others
    hidden = tmp_path / ".ipynb_checkpoints"
    assert names_in(find_images([hidden]), hidden) == ["a-checkpoint.png"]
    assert names_in(find_images([hidden / "a-checkpoint.png"]), hidden) == ["a-checkpoint.png"]


def test_what_is_not_read_is_counted_by_suffix(tmp_path):
    make(tmp_path, "1.nii", "2.NII", "sub/3.nii", "4.gif", "IM0001", "5.png", ".DS_Store")
    found = find_images([tmp_path, tmp_path / "sub", tmp_path / "4.gif"])
    assert names_in(found, tmp_path) == ["5.png", "4.gif"]  # a file that is named is read, whatever its suffix
    assert found.summary_of_others() == "5 files were not read: 3 .nii, 1 without a suffix, 1 .gif"
    assert find_images([tmp_path / "5.png"]).summary_of_others() is None


def test_the_summary_of_many_suffixes_is_short(tmp_path):
    make(tmp_path, *(f"1.2.840.{number}" for number in range(100, 120)), "a.txt", "b.txt")
    assert find_images([tmp_path]).summary_of_others() == (
        "22 files were not read: 2 .txt, 1 .100, 1 .101, 1 .102, 1 .103, 1 .104, 1 .105, 1 .106, 13 with other suffixes"
    )
    make(tmp_path / "one", "x.gif")
    assert find_images([tmp_path / "one"]).summary_of_others() == "1 file was not read: 1 .gif"


def test_links_to_folders_are_followed_once_and_without_end(tmp_path):
    data, outside = tmp_path / "data", tmp_path / "outside"
    make(data, "a.png", "real/b.png")
    make(outside, "c.png", "deep/d.png", ".hidden/e.png")
    os.symlink(outside, data / "0-link")
    os.symlink(data / "real", data / "0-again")  # is listed by its own path
    os.symlink(data, data / "real" / "up")
    os.symlink(data, outside / "deep" / "back")
    os.symlink(outside, data / ".dotted")
    os.symlink("nowhere", data / "broken")
    found = find_images([data])
    assert sorted(names_in(found, data)) == ["0-link/c.png", "0-link/deep/d.png", "a.png", "real/b.png"]
    assert found.others == {"": 1}  # the broken link
    os.symlink(data, tmp_path / "linked")
    assert len(find_images([tmp_path / "linked"]).images) == 4  # an argument may be a link


def test_a_named_file_that_cannot_be_read_is_listed(tmp_path):
    os.symlink("nowhere.png", tmp_path / "broken.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    named = [tmp_path / "broken.png", tmp_path / "loop.png"]
    assert list_images(named) == named == list_images([tmp_path])
    beyond = tmp_path / f"{'x' * 300}.png"  # the system refuses to look
    assert list_images([beyond]) == [beyond]
    (tmp_path / "file").touch()
    for missing in (tmp_path / "absent.png", tmp_path / "file" / "x.png"):
        with pytest.raises(FileNotFoundError, match=f"{missing.name}: no such file or folder"):
            list_images([missing])


def test_many_paths_are_kept_as_texts(tmp_path):
    make(tmp_path, "a/1.png", "a b/2.png", "a.png", "a/0.png", "a-/3.png")
    found = find_images([tmp_path])
    paths = list(tmp_path.rglob("*.png"))
    assert list(found.images) == sorted(paths)  # as Path sorts, folder by folder
    assert found.images[1] == sorted(paths)[1]
    assert list(found.images[1:4:2]) == sorted(paths)[1:4:2]
    assert list(found.images.take([2, 0])) == [sorted(paths)[2], sorted(paths)[0]]


def test_the_digest_of_paths_tells_names_sizes_times_and_order(tmp_path):
    make(tmp_path, "a.png", os.fsdecode(b"\xff.png"))
    images = find_images([tmp_path]).images
    whole = images.digest()
    assert whole == find_images([tmp_path]).images.digest()
    assert whole.startswith("2 files, SHA-256 of names, sizes and times ")
    found = {whole, images.take([1, 0]).digest(), images[:1].digest()}
    os.utime(tmp_path / "a.png", ns=(0, 5))
    found.add(images.digest())
    (tmp_path / "a.png").write_bytes(b"x")
    os.utime(tmp_path / "a.png", ns=(0, 5))
    found.add(images.digest())
    (tmp_path / "a.png").unlink()
    found.add(images.digest())
    assert len(found) == 6

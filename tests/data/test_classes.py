"""Names of classes: files of every form in use, each taken as it is meant or refused."""

import pytest

from hifuse_fast.data.classes import load_classes


def test_classes_without_a_file_are_the_indices():
    assert load_classes(None, 3) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_indices.json", '{"1": "naïve, b", "0": "a", "2": "c"}'),
        ("names.txt", "a\nnaïve, b\r\n c \n\n"),
        ("names.txt", "\ufeffa\nnaïve, b\nc"),
    ],
)
def test_classes_from_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert load_classes(tmp_path / name, 3) == ["a", "naïve, b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", b"a\nb", "2 names, but the checkpoint has 3 classes"),
        ("c.txt", b"", "1 names, but|0 names, but"),
        ("c.txt", b"a\n\nc", "every name must be there, and once"),
        ("c.txt", b"a\nb\na", "every name must be there, and once"),
        ("c.txt", b"a\n\xff\nb", "utf-8"),
        ("c.json", b'["a", "b", "c"]', "must map every index to a name"),
        ("c.json", b'{"1": "a", "2": "b", "3": "c"}', "must map every index to a name"),
        ("c.json", b'{"a": 0, "b": 1, "c": 2}', "must map every index to a name"),
        ("c.json", b'{"0": 1, "1": 2, "2": 3}', "every name must be a string"),
        ("c.json", b'{"0": ', "Expecting value"),
    ],
)
def test_bad_classes_name_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"classes file .*{name}: .*({message})"):
        load_classes(tmp_path / name, 3)


@pytest.mark.parametrize(
    "text",
    [
        "2 bird\n0 cat\n1 small  dog\n",
        "2\tbird\r\n0\tcat\r\n1\tsmall  dog",
        " 0: cat\n 1: small  dog\n 2: bird",
        "02,bird\n00,cat\n01, small  dog",
    ],
)
def test_lines_that_all_begin_with_an_index_are_taken_by_it(tmp_path, text):
    (tmp_path / "names.txt").write_text(text, newline="")
    assert load_classes(tmp_path / "names.txt", 3) == ["cat", "small  dog", "bird"]


@pytest.mark.parametrize("names", [["0", "2", "1"], ["1p19q", "3D", "-1 x"], ["grade 0", "grade 2", "grade 1"]])
def test_a_number_that_is_the_name_or_in_it_is_no_index(tmp_path, names):
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert load_classes(tmp_path / "names.txt", 3) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 cat\ndog\n2 bird", "either every line or none must begin with an index, but one is '0 cat' and one 'dog'"),
        ("healthy\n1 vessel\n2 vessels", "one is '1 vessel' and one 'healthy'; .* can be given as JSON"),
        ("1 cat\n2 dog\n3 bird", "must be 0 to 2, each once; got 1, 2, 3"),
        ("0 cat\n1 dog\n1 bird", "must be 0 to 2, each once; got 0, 1, 1"),
    ],
)
def test_lines_whose_indices_are_in_doubt_are_refused(tmp_path, text, message):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"classes file .*names\.txt: .*{message}"):
        load_classes(tmp_path / "names.txt", 3)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"0": "cat", "1": "dog", "1": "bird"}')
    with pytest.raises(ValueError, match=r"classes file .*c\.json: key '1' is there twice"):
        load_classes(tmp_path / "c.json", 2)


def test_json_that_is_nested_deeply_is_refused(tmp_path):
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"classes file .*c\.json: "):
        load_classes(tmp_path / "c.json", 2)

"""Data, a run that nothing disturbed, and the command in this process."""

import time

import pytest
from click.testing import CliRunner
from PIL import Image

from hifuse_fast.cli import main
from tests.support.training import EXACT, contents, finish, flags, make_data, start


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory, data):
    """What a run of `EXACT` comes to that nothing disturbed, and how long it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(["train", "--help"], folder / "help"))  # the server has started
    begun = time.monotonic()
    process = start(["train", data, "-o", folder / "run", *flags(**EXACT)], folder / "errors")
    assert finish(process) == 0, (folder / "errors").read_text()
    return contents(folder / "run"), time.monotonic() - begun


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back what the command sets
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])

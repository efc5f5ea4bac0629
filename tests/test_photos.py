"""Cut-outs of photographs as an endless training set, rehearsed on drawn stand-ins for the photographs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hawk.errors import HawkError
from hawk.training.photos import sources
from hawk.training.photos.data import HELD_OUT, PhotoPictures
from hawk.training.photos.sources import SUBJECTS, find_photos, photos_in


def write_photos(folder: Path) -> None:
    """Write stand-ins whose left part is red and whose right part, which is held out, is blue."""
    for name in SUBJECTS:
        rgb = np.zeros((200, 800, 3), np.uint8)
        rgb[:, :640, 0], rgb[:, 640:, 2] = 200, 200
        path = folder / "usr/share" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(path, quality=95, subsampling=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the stand-ins."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(folder: Path) -> PhotoPictures:
    return PhotoPictures.load(find_photos(folder))


def test_a_picture_follows_from_split_place_and_seed(pictures):
    first, again = (pictures.batch("train", range(4), seed=1) for _ in range(2))
    assert np.array_equal(first.rgb, again.rgb)
    assert first.captions == again.captions
    assert first.rgb.shape == (4, 128, 128, 3)
    assert not np.array_equal(first.rgb, pictures.batch("train", range(4), seed=2).rgb)
    assert pictures.crops(range(3)).shape == (3, 64, 64, 3)


def test_training_never_sees_the_held_out_part(pictures):
    assert HELD_OUT == 0.2
    for split in ("train", "taught places"):
        means = pictures.batch(split, range(40)).rgb.mean((0, 1, 2))
        assert means[0] > 100 > 10 > means[2]
    means = pictures.batch("held-out", range(40)).rgb.mean((0, 1, 2))
    assert means[2] > 100 > 10 > means[0]


def test_captions_use_known_words_only(pictures):
    words = {word for caption in pictures.batch("train", range(200)).captions for word in caption.split()}
    assert words <= pictures.vocabulary.keys()
    assert {"close", "view"} <= words


def test_a_missing_photograph_is_named(tmp_path: Path):
    with pytest.raises(HawkError, match=r"no Bridge_by.*name a new folder, into which they are fetched"):
        find_photos(tmp_path)


def test_photographs_are_fetched_into_a_new_folder_only(folder: Path, tmp_path: Path, monkeypatch):
    fetched = []

    def fetch(into: Path) -> None:
        fetched.append(into)
        shutil.copytree(folder, into, dirs_exist_ok=True)

    monkeypatch.setattr(sources, "fetch_photos", fetch)
    assert len(photos_in(tmp_path / "new")) == len(photos_in(tmp_path / "new")) == len(SUBJECTS)
    assert fetched == [tmp_path / "new"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(HawkError, match="no Bridge_by"):
        photos_in(tmp_path / "mine")
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(HawkError, match="apt-get and dpkg-deb are needed to fetch mate-backgrounds"):
        photos_in(tmp_path / "other")

"""Image files are read only below the root, under any legal name, up to a maximum size."""

from pathlib import Path
from urllib.parse import quote

import pytest

from udfs.vectors.image_files import ImageRefusedError, ImageRoot

ODD_NAMES = [
    "plain.png",
    "ä ö.png",
    "50%.png",
    "a%20b.png",
    "#1.png",
    "what?.png",
    "a=b&c.png",
    "it's [1].png",
]


def refuse(root: ImageRoot, uri: str) -> ImageRefusedError:
    with pytest.raises(ImageRefusedError) as caught:
        root.read(uri)
    return caught.value


@pytest.fixture(params=["pictures", "pic tures #1", "50% off?"])
def folder(request, tmp_path) -> Path:
    (tmp_path / request.param / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    return tmp_path / request.param


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_is_found_by_relative_path_absolute_path_and_uri(folder, name):
    (folder / "sub" / name).write_bytes(name.encode())
    root = ImageRoot(str(folder), 100)

    for uri in (f"sub/{name}", f"{folder}/sub/{name}", f"file://{quote(str(folder / 'sub' / name))}"):
        assert root.read(uri) == name.encode()


@pytest.mark.parametrize(
    "uri", ["../secret.png", "sub/../../secret.png", "/etc/hostname", "file:///etc/hostname"]
)
def test_a_file_outside_is_refused(folder, uri):
    assert refuse(ImageRoot(str(folder), 100), uri).reason == "image_not_found"


def test_a_link_that_leads_outside_and_a_neighbour_of_similar_name_are_refused(folder):
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    neighbour = folder.with_name(folder.name + "-old")
    neighbour.mkdir()
    (neighbour / "a.png").write_bytes(b"a")
    root = ImageRoot(str(folder), 100)

    for uri in ("link.png", f"{neighbour}/a.png", f"../{neighbour.name}/a.png"):
        assert "not below" in str(refuse(root, uri))


@pytest.mark.parametrize(
    "uri", ["http://example.com/a.png", "s3://bucket/a.png", "missing.png", "sub", "a\0b.png"]
)
def test_other_schemes_missing_files_and_folders_are_refused(folder, uri):
    assert refuse(ImageRoot(str(folder), 100), uri).reason == "image_not_found"


def test_without_a_root_no_file_is_opened(folder):
    (folder / "a.png").write_bytes(b"a")

    assert "features.image_root" in str(refuse(ImageRoot("", 100), str(folder / "a.png")))


def test_a_large_file_is_not_read(folder):
    (folder / "a.png").write_bytes(b"x" * 101)

    assert refuse(ImageRoot(str(folder), 100), "a.png").reason == "image_too_large"
    assert len(ImageRoot(str(folder), 101).read("a.png")) == 101

"""What is said of images, and of what is made of them, against images whose sizes and channels are known."""

from pathlib import Path

import pytest
from PIL import Image

from efficient_mae.data import Reading, describe_images, open_source

SMALL, PHOTO = (28, 28), (500, 375)


def folder_of(path: Path, *images: tuple[str, tuple[int, int]], ending: str = "png") -> Path:
    for number, (mode, size) in enumerate(images):
        Image.new(mode, size).save(path / f"{number:03}.{ending}")
    return path


@pytest.mark.parametrize(
    ("images", "shape", "said", "enlarged", "made_up"),
    [
        ([("L", SMALL)], (3, 224, 224), "28 x 28, grey, are enlarged 8.0 times to 224 x 224 and made RGB", 1, True),
        ([("L", SMALL)], (1, 28, 28), "28 x 28, grey, are left in their size", 0, False),
        ([("L", SMALL)], (3, 28, 28), "28 x 28, grey, are left in their size and made RGB", 0, True),
        ([("RGB", PHOTO)], (3, 224, 224), "500 x 375, RGB, are reduced to 224 x 224", 0, False),
        # The side that fits tighter counts.
        ([("RGB", (500, 112))], (3, 224, 160), "500 x 112, RGB, are enlarged 2.0 times to 160 x 224", 1, False),
        ([("RGB", PHOTO)], (1, 96, 96), "500 x 375, RGB, are reduced to 96 x 96 and made grey", 0, False),
        ([("RGB", PHOTO)], (4, 96, 96), "500 x 375, RGB, are reduced to 96 x 96 and made RGBA", 0, True),
        ([("RGBA", PHOTO)], (3, 96, 96), "500 x 375, RGBA, are reduced to 96 x 96 and made RGB", 0, False),
        (
            [("RGB", PHOTO)] * 2 + [("L", (56, 112)), ("RGB", (112, 100))],
            (3, 224, 224),
            "56 x 112 to 500 x 375 (median 306 x 243), RGB and grey, are brought to 224 x 224 "
            "(2 of 4 looked at enlarged 2.2 to 4.0 times) and made RGB where they are grey",
            0.5,
            True,
        ),
    ],
)
def test_sizes_and_channels(images, shape, said: str, enlarged: float, made_up: bool, tmp_path: Path):
    summary = describe_images(open_source(str(folder_of(tmp_path, *images))), Reading(shape[0]), shape[1:])
    assert summary.text == f"images of {said}"
    assert (summary.enlarged, summary.made_up) == (enlarged, made_up)


@pytest.mark.parametrize(("mode", "kind"), [("L", "grey"), ("RGB", "RGB"), ("CMYK", "CMYK")])
def test_jpegs_are_not_decoded(mode: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_source(str(folder_of(tmp_path, (mode, PHOTO), ending="jpg")))

    def decoded(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", decoded)
    assert describe_images(source, Reading(3), (500, 500)).text.startswith(
        f"images of 500 x 375, {kind}, are enlarged 1.3"
    )


def test_a_few_of_many_and_always_the_same(tmp_path: Path):
    source = open_source(str(folder_of(tmp_path, *[("L", (20 + number, 20)) for number in range(100)])))
    opened: list[int] = []

    class Watched:
        name, classes, why_unlabelled = "x", None, "none of them is one"
        label, sample_name, image = source.label, source.sample_name, source.image
        __len__ = staticmethod(source.__len__)

        def open(self, index: int):
            opened.append(index)
            return source.open(index)

    first, second = (describe_images(Watched(), Reading(1), (16, 16)) for _ in range(2))
    assert first == second and len(opened) < 100 and {0, 99} <= set(opened)
    assert first.text.startswith("images of 20 x 20 to 119 x 20 (median ")


def test_damaged_images_say_nothing(tmp_path: Path):
    (folder_of(tmp_path, ("L", SMALL)) / "damaged.png").write_bytes(b"")
    source = open_source(str(tmp_path))
    assert describe_images(source, Reading(1), (28, 28)).text == "images of 28 x 28, grey, are left in their size"
    (tmp_path / "000.png").write_bytes(b"")
    assert describe_images(source, Reading(1), (28, 28)).text == "none of 2 images that were looked at can be read"

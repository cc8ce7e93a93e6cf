"""The report: whole in itself, complete, and written also where something is missing."""

import base64
import html
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import efficient_mae as emae
from efficient_mae.data import default_mean_std
from efficient_mae.engine.optim import build_adamw
from efficient_mae.engine.storage.checkpoint import save_checkpoint
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, file_metadata, save_encoder
from efficient_mae.report.report import write_report

MODEL = dict(img_size=16, in_chans=1, depth=1, decoder_depth=1, decoder_embed_dim=32, mask_ratio=0.8)
ACCURACY = dict(raw_pixels=0.7, untrained=0.5, trained=0.61)
KNN = dict(k=20, pool="avg", train_images=100, test_images=50, accuracy=ACCURACY)
NO_END_TAG = {"meta", "link", "img", "br", "hr", "input"}


def make_run(folder: Path, data: Path, **settings) -> Path:
    """A finished run as `emae pretrain` leaves it, of a model that never learned anything."""
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch4", **MODEL | settings)
    statistics = ImageStatistics(*default_mean_std(model.config.in_chans))
    folder.mkdir(parents=True)
    config = dict(data=str(data), out=str(folder), model="mae_vit_tiny_patch4", epochs=3, clip_grad=None, seed=0)
    (folder / "config.yaml").write_text(yaml.safe_dump(config | MODEL | settings | dict(device="cpu")))
    row = dict(grad_norm=1.0, images_per_second=250.0, data_wait=0.25)
    rows = [dict(step=n, epoch=n / 10, loss=2 / n, lr=1e-3, **row) for n in range(1, 31)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "machine.json").write_text(json.dumps(dict(processor="Abacus 9000", cores=2, python="3.11.2")))
    metadata = file_metadata(model.config, statistics)
    save_checkpoint(folder / "checkpoints", 30, model, build_adamw(model, 0.05), {}, metadata, keep=1)
    save_encoder(folder / "encoder.safetensors", model, statistics)
    return folder


def write_images(folder: Path, number: int = 9) -> Path:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (number, 18, 20), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


class Page(HTMLParser):
    """A parsed page: its text, the sections it has, what it would load, and whether every tag is closed."""

    def __init__(self, file: Path):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.source = file.read_text()
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in NO_END_TAG:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def sections(self) -> list[str]:
        return [value for tag, name, value in self.attributes if (tag, name) == ("section", "id")]

    def pictures(self) -> list[bytes]:
        """The images in the page, decoded; each is opened to see that it is one."""
        contents = []
        for value in (value for tag, name, value in self.attributes if (tag, name) == ("img", "src")):
            head, content = value.split(",", 1)
            contents.append(base64.b64decode(content, validate=True))
            if head == "data:image/svg+xml;base64":
                assert ET.fromstring(contents[-1]).tag.endswith("svg")
            else:
                assert head == "data:image/png;base64"
                Image.open(BytesIO(contents[-1])).load()
        return contents


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder with a held-out part, with everything that a report can show."""
    root = tmp_path_factory.mktemp("report")
    write_images(root / "data" / "train")
    write_images(root / "data" / "test", 5)
    run = make_run(root / "run", root / "data")
    (run / "figures").mkdir()
    for epoch in range(1, 6):
        Image.new("RGB", (30 + epoch, 20)).save(run / "figures" / f"panel-epoch-{epoch:04d}.png")
    (run / "knn.json").write_text(json.dumps(KNN))
    (run / "skipped.jsonl").write_text(
        "".join(json.dumps(dict(step=step, samples=[])) + "\n" for step in (1007, 1009))
    )
    (run / "damaged.json").write_text(json.dumps([["cats/<b>.jpg", "truncated"]]))
    return run


def test_a_page_whole_in_itself(run: Path):
    assert write_report(run) == run / "report.html"
    page = Page(run / "report.html")
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data", "poster")]
    assert loaded and all(value.startswith(("data:", "#")) for value in loaded)
    assert not any(word in page.source for word in ("<script", "@import", "url(", "http:", "https:"))
    anchors = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for value in loaded if value.startswith("#")} <= anchors
    # Loss, the last panel and two earlier ones, Fig. 2, cost.
    pictures = page.pictures()
    assert len(pictures) == 6
    assert [Image.open(BytesIO(content)).width for content in pictures[1:4]] == [35, 34, 31]
    assert not list(run.glob(".partial*"))


def test_it_tells_all_there_is(run: Path):
    page = Page(write_report(run))
    for key, value in yaml.safe_load((run / "config.yaml").read_text()).items():
        assert key in page.text
        assert (value if isinstance(value, str) else json.dumps(value)) in page.text
    for words in (
        "Held-out images: the model never saw them",
        "Abacus 9000",
        "3.11.2",
        "61.0 %",
        "50.0 %",
        "70.0 %",
    ):
        assert words in page.text
    assert "Steps skipped 2 loss or gradient not finite, first at step 1,007" in page.text
    assert "cats/<b>.jpg" in page.text and "1 image could not be read" in page.text
    assert "3 epochs" in page.text and "30 steps, finished" in page.text and "25% of the time" in page.text
    assert "never learned to predict those beyond beta (6.5 px)" in page.text
    assert "130 masked patches: 5 held-out images, 2 random masks each" in page.text  # 13 of 16 hidden
    assert "missing" not in page.text


def test_the_snippet_loads_the_encoder(run: Path):
    page = Page(write_report(run))
    start = page.source.index("<pre><code>") + len("<pre><code>")
    snippet = page.source[start : page.source.index("</code></pre>")]
    scope: dict = {}
    exec(html.unescape(snippet), scope)
    image = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        expected = emae.load(run).backbone.forward_features(image)
        torch.testing.assert_close(scope["vit"].eval().forward_features(image), expected)


def test_without_a_held_out_part_the_training_images_are_named_as_such(tmp_path: Path):
    run = make_run(tmp_path / "run", write_images(tmp_path / "data"), beta=None, gamma=0.0)
    page = Page(write_report(run))
    assert "Images of the training set: this data has no held-out part" in page.text
    assert "9 training images" in page.text and "With gamma 0 the factor is 1" in page.text
    assert "beyond beta" not in page.text
    assert len(page.pictures()) == 4  # the panel is drawn now
    assert not {"knn", "damaged"} & set(page.sections)


def test_where_data_and_records_are_gone_the_page_says_so(tmp_path: Path):
    run = make_run(tmp_path / "run", tmp_path / "gone")
    (run / "metrics.jsonl").unlink()
    (run / "machine.json").unlink()
    (run / "encoder.safetensors").unlink()
    page = Page(write_report(run))
    assert "no such folder" in page.text and "Not everything could be looked at" in page.text
    assert "metrics.jsonl is missing or empty" in page.text
    assert "machine.json is missing" in page.text
    assert "The run is not finished" in page.text
    assert "none can be drawn now" in page.text
    assert "mean loss against P²Dist, needs the decoder and images" in page.text
    assert len(page.pictures()) == 2  # how many patches are how hard, and the cost, need neither


def test_with_the_encoder_alone(tmp_path: Path):
    run = make_run(tmp_path / "run", write_images(tmp_path / "data"))
    for file in sorted((run / "checkpoints").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    page = Page(write_report(run))
    assert "holds an encoder alone" in page.text
    assert {"loss", "cost", "load"} <= set(page.sections)


def test_a_grid_too_small_for_mae(tmp_path: Path):
    run = make_run(tmp_path / "run", write_images(tmp_path / "data"), img_size=(4, 12), mask_ratio=0.6)
    page = Page(write_report(run))
    assert "there is no MAE to compare with" in page.text


def test_directories_that_hold_no_run(tmp_path: Path):
    with pytest.raises(InputError, match="not a run directory"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("model: mae_vit_tiny_patch4\n")
    with pytest.raises(InputError, match="holds no checkpoint"):
        write_report(tmp_path)
    (tmp_path / "machine.json").write_text("{")
    with pytest.raises(InputError, match=r"machine\.json: not readable as JSON"):
        write_report(tmp_path)

"""A dry run on COCO's layout, with images of its size and its 80 categories, through the command line alone."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors import safe_open
from safetensors.torch import save_file

from efficient_mae.cli import main

from ..conftest import flags
from .conftest import write_json

# COCO's numbers run from 1 to 90; these stand for nothing.
IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
CATEGORIES = [{"supercategory": "thing", "id": number, "name": f"thing {number}"} for number in IDS]
SIZES = {"train2017": [(640, 480), (480, 640), (640, 427), (500, 375)], "val2017": [(640, 480), (427, 640)]}
SMALL = {
    "from_scratch": "true", "model": "mae_vit_tiny_patch16", "depth": 1, "img_size": 512, "width": 16,
    "proposals": 16, "window_size": 14, "global_blocks": 0, "epochs": 1, "batch_size": 2, "jitter": "[0.5,1.0]",
    "precision": "fp32", "num_workers": 0, "device": "cpu",
}  # fmt: skip


def write_published(root: Path) -> Path:
    """COCO's folders, JPEG images, and every field of its instances files: polygons, and a crowd as its own RLE."""
    rng = np.random.default_rng(0)
    first = 391895  # as large as its numbers are
    for part, sizes in SIZES.items():
        (root / part).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (width, height) in enumerate(sizes):
            image, pixels = first + 7 * number, rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            for place, category in enumerate(np.roll(IDS, 20 * number)[:20].tolist()):
                left, top, wide, high = 20 + 18 * place, 30 + 9 * place, 30.5, 40.25
                corners = [left, top, left + wide, top, left + wide, top + high, left, top + high]
                pixels[top : top + 40, left : left + 30] = category
                one = {"id": 900_000_000 + 100 * number + place, "image_id": image, "category_id": category}
                one |= {"bbox": [left, top, wide, high], "area": wide * high, "iscrowd": 0}
                annotations.append({**one, "segmentation": [corners]})
            crowd = {"size": [height, width], "counts": [0, 50 * height, (width - 50) * height]}
            one = {"id": 10 + number, "image_id": image, "category_id": 1, "bbox": [0, 0, 50, height]}
            annotations.append({**one, "area": 50 * height, "iscrowd": 1, "segmentation": crowd})
            name = f"{image:012d}.jpg"
            Image.fromarray(pixels).save(root / part / name)
            known = {"license": 4, "coco_url": f"http://images.cocodataset.org/{part}/{name}", "file_name": name}
            known |= {"height": height, "width": width, "date_captured": "2013-11-14 16:28:13", "id": image}
            images.append(known)
        content = {"info": {"year": 2017}, "licenses": [{"id": 4, "name": "any"}]}
        write_json(root, part, content | {"images": images, "annotations": annotations, "categories": CATEGORIES})
        (root / "annotations" / f"captions_{part}.json").write_text("{}")
    return root


def sure_of(run: Path, out: Path, *ids: int) -> Path:
    """The run's detector, which takes everything for one of these categories: from scratch it is sure of nothing."""
    with safe_open(run / "trained.safetensors", "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for number in ids:
        tensors["roi_heads.box_predictor.cls_score.bias"][1 + IDS.index(number)] += 20
    save_file(tensors, out, metadata)
    return out


def test_from_detect_to_predict_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, run, out = write_published(tmp_path / "coco"), tmp_path / "run", tmp_path / "found.json"
    assert main(["detect", *flags(data=data, out=run, **SMALL)]) == 0
    result = json.loads((run / "results.json").read_text())
    assert result["classes"] == [one["name"] for one in CATEGORIES] and not result["left_out"]
    assert (result["train_images"], result["test_images"], result["damaged"]) == (4, 2, {})
    weights = sure_of(run, tmp_path / "sure.safetensors", 13, 90)
    capsys.readouterr()
    how = flags(device="cpu", precision="fp32", num_workers=0)
    assert main(["predict", *flags(weights=weights, data=data, part="test", out=out), *how, "--json"]) == 0
    said, found = json.loads(capsys.readouterr().out), json.loads(out.read_text())
    assert said["images"] == 2 and said["objects"] == len(found) and len(said["classes"]) == 80
    assert {one["category_id"] for one in found} == {13, 90}
    truth_file = data / "annotations" / "instances_val2017.json"
    images = {one["id"]: one for one in json.loads(truth_file.read_text())["images"]}
    assert {one["image_id"] for one in found} == {*images}
    for one in found:
        (left, top, wide, high), image = one["bbox"], images[one["image_id"]]
        assert min(left, top) >= 0 and min(wide, high) > 0 and 0 < one["score"] <= 1
        assert left + wide <= image["width"] + 0.01 and top + high <= image["height"] + 0.01
        assert one["segmentation"]["size"] == [image["height"], image["width"]]
        assert Path(one["file_name"]).name == image["file_name"]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools takes it as COCO's server does
        truth = COCO(str(truth_file))
        judge = COCOeval(truth, truth.loadRes(found), "segm")
        judge.evaluate()
        judge.accumulate()
    assert judge.eval["precision"].shape[2] == 80
    assert main(["report", "--run", str(run)]) == 0
    (classes,) = re.findall(r'<section id="classes">(.*?)</section>', (run / "report.html").read_text(), re.S)
    assert len(re.findall("<tr><td>", classes)) == 80 and all(one["name"] in classes for one in CATEGORIES)

"""Mask R-CNN against torchvision's own, and what can be built."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from efficient_mae.backbones import Backbone, Beit, Swin, VisionTransformer
from efficient_mae.engine.loop import step_generators
from efficient_mae.engine.machine.step_memory import count_passes
from efficient_mae.errors import InputError
from efficient_mae.interop import ImageStatistics, load
from efficient_mae.interop.loading import describe_weights
from efficient_mae.tasks.detect import model as model_module
from efficient_mae.tasks.detect.model import Detector, DetectorConfig, describe, load_detector, save_detector

SIDE = 64
SMALL = DetectorConfig((SIDE, SIDE), window_size=5, global_blocks=1, width=16, proposals=16, category_ids=(3, 7))
CPU = torch.device("cpu")


def vit(**changed: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return VisionTransformer(**sizes | changed)


def batch(images: int = 2) -> tuple[Tensor, list[tuple[int, int]], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    masks[0, 4:30, 6:40] = 1
    masks[1, 30:60, 20:50] = 1
    boxes = torch.tensor([[6.0, 4, 40, 30], [20, 30, 50, 60]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks}
    pixels = torch.randn(images, 3, SIDE, SIDE, generator=generator)
    return pixels, [(SIDE, SIDE)] * images, [target] * images


class _Features(nn.Module):
    """What torchvision calls a backbone."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.out_channels, self._features = 16, [detector.features]

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        return self._features[0](images)


def theirs(detector: Detector) -> MaskRCNN:
    """torchvision's model of the same parts, whose images are as they should be: it draws no size for them."""
    heads = detector.roi_heads
    model = MaskRCNN(
        _Features(detector), min_size=SIDE, max_size=SIDE, image_mean=[0, 0, 0], image_std=[1, 1, 1],
        rpn_anchor_generator=detector.rpn.anchor_generator, rpn_head=detector.rpn.head,
        rpn_pre_nms_top_n_train=2000, rpn_pre_nms_top_n_test=1000, rpn_post_nms_top_n_train=1000,
        rpn_post_nms_top_n_test=1000, box_head=heads.box_head, box_predictor=heads.box_predictor,
        box_batch_size_per_image=16, mask_head=heads.mask_head, mask_predictor=heads.mask_predictor,
        _skip_resize=True,
    )  # fmt: skip
    # It takes none but its own pooling when it is made.
    model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool = heads.box_roi_pool, heads.mask_roi_pool
    return model.train(detector.training)


def test_it_is_torchvisions():
    detector, (pixels, sizes, targets) = Detector(vit(), 2, SMALL), batch()
    with step_generators(0, 0, 0):
        ours = detector(pixels, sizes, targets)
    with step_generators(0, 0, 0):
        expected = theirs(detector)(list(pixels), [dict(target) for target in targets])
    assert ours.keys() == expected.keys() and len(ours) == 5
    for name, loss in ours.items():
        torch.testing.assert_close(loss, expected[name])
    detector.eval()
    with torch.no_grad():
        found, wanted = detector.detect(pixels, sizes), theirs(detector)(list(pixels))
    for one, other in zip(found, wanted, strict=True):
        for name in ("boxes", "labels", "scores"):
            torch.testing.assert_close(one[name], other[name])


def test_what_is_found_ends_with_the_image():
    """However little of the whole it fills."""
    detector = Detector(vit(), 2, SMALL).eval()
    pixels, *_ = batch(1)
    with torch.no_grad():
        for head in (detector.roi_heads.box_predictor.bbox_pred, detector.roi_heads.box_predictor.cls_score):
            head.weight.zero_(), head.bias.zero_()
        detector.roi_heads.box_predictor.bbox_pred.bias.view(-1, 4)[:, 2:] = 50.0  # all are larger than the image
        (found,) = detector.detect(pixels, [(24, 20)])
    assert len(found["boxes"]) and (found["boxes"] == torch.tensor([0.0, 0, 20, 24])).all(dim=1).any()
    assert (found["boxes"] >= 0).all() and (found["boxes"] <= torch.tensor([20.0, 24, 20, 24])).all()
    strides = [2, 4, 8, 16, 32]
    sides = [side for (side,) in detector.rpn.anchor_generator.sizes]
    assert sides == [8 * stride for stride in strides]
    assert detector.roi_heads.box_roi_pool.strides == tuple(strides[:-1])


def test_images_without_objects_and_numbers_that_are_none():
    detector, (pixels, sizes, targets) = Detector(vit(), 2, SMALL), batch()
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    empty = {**none, "masks": torch.zeros(0, SIDE, SIDE, dtype=torch.uint8)}
    losses = detector(pixels, sizes, [empty, empty])
    assert losses["loss_mask"] == 0 and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trained = [name for name, one in detector.named_parameters() if one.requires_grad]
    assert all(one.grad is not None for one in detector.parameters() if one.requires_grad) and len(trained) > 60
    pixels[0] = torch.nan
    assert not sum(detector(pixels, sizes, targets).values()).isfinite()


def test_on_a_cpu_what_follows_the_pyramid_is_float32():
    detector, (pixels, sizes, targets) = Detector(vit(), 2, SMALL), batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(pixels, sizes, targets)
        assert detector.features(pixels)["0"].dtype == torch.float32
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    with step_generators(0, 0, 0), torch.autocast("cpu", torch.bfloat16):
        halves = detector(pixels, sizes, targets)
    with step_generators(0, 0, 0):
        whole = detector(pixels, sizes, targets)
    torch.testing.assert_close(halves["loss_objectness"], whole["loss_objectness"], atol=0.02, rtol=0.02)


def test_boxes_are_float32_where_heads_are_not(monkeypatch: pytest.MonkeyPatch):
    """As on a GPU, where they compute in bfloat16: there is no pixel 515 in that, nor an object 257."""
    monkeypatch.setattr(model_module, "_whole_numbers", lambda device: torch.autocast("cpu", torch.bfloat16))
    detector, (pixels, sizes, targets) = Detector(vit(), 2, SMALL), batch()
    seen: dict[str, set[torch.dtype]] = {"heads": set(), "boxes": set()}

    heads = detector.roi_heads
    heads.box_head.register_forward_hook(lambda _, __, output: seen["heads"].add(output.dtype))
    heads.box_roi_pool.register_forward_pre_hook(lambda _, given: seen["boxes"].update(one.dtype for one in given[1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(pixels, sizes, targets)
        found = detector.eval().detect(pixels, sizes)
    assert seen == {"heads": {torch.bfloat16}, "boxes": {torch.float32}}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert {one[name].dtype for one in found for name in ("boxes", "scores", "masks")} == {torch.float32}


def test_memory_is_counted_without_numbers():
    detector = Detector(vit(), 2, SMALL)

    def loss(model: nn.Module, images: Tensor) -> Tensor:
        return sum(model(images, [], []).values())  # pyright: ignore[reportReturnType]

    few, many = (count_passes(loss, detector, torch.zeros(count, 3, SIDE, SIDE), CPU) for count in (2, 4))
    assert all(1.8 < more / less < 2.2 for less, more in zip(few, many, strict=True))
    # The finest level alone, and what its convolutions make of it, is kept.
    assert min(few) > 2 * 16 * 32 * 32 * 4 * 4


def swin() -> Swin:
    torch.manual_seed(0)
    return Swin(img_size=64, patch_size=4, embed_dim=12, depth=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=2)


def test_a_swins_own_stages():
    detector, (pixels, sizes, targets) = Detector(swin(), 2, SMALL), batch()
    losses = detector(pixels, sizes, targets)
    assert [one.shape[-1] for one in detector.features(pixels).values()] == [16, 8, 4, 2, 1]
    sum(losses.values()).backward()
    assert all(one.grad is not None for one in detector.parameters() if one.requires_grad)
    with step_generators(0, 0, 0):
        ours = detector(pixels, sizes, targets)
    with step_generators(0, 0, 0):
        expected = theirs(detector)(list(pixels), [dict(target) for target in targets])
    for name, loss in ours.items():
        torch.testing.assert_close(loss, expected[name])


@pytest.mark.parametrize("encoder", [vit, swin])
def test_a_file_holds_it_whole(encoder: Any, tmp_path: Path):
    given: Backbone = encoder()
    detector, file = Detector(given, 2, SMALL).eval(), tmp_path / "trained.safetensors"
    statistics = ImageStatistics((0.5,) * 3, (0.2,) * 3)
    save_detector(file, detector, given, statistics, describe(SMALL, ("square", "disc")))
    read = load_detector(tmp_path)
    assert read.config == SMALL and read.heads.classes == ("square", "disc") and read.statistics == statistics
    pixels, sizes, _ = batch()
    with torch.no_grad():
        for one, other in zip(detector.detect(pixels, sizes), read.model.detect(pixels, sizes), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    alone = load(file)
    assert isinstance(alone, type(given))
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in alone.state_dict().items())
    told = describe_weights(file)
    assert told.kind == "what emae detect trained, of 2 classes"
    assert told.taken == sum(value.numel() for value in alone.state_dict().values())
    assert told.taken + sum(told.left_out.values()) == sum(value.numel() for value in detector.state_dict().values())
    assert {name.partition(".")[0] for name in told.left_out} - {"windows"} == {"neck", "rpn", "roi_heads"}


@pytest.mark.parametrize(
    ("encoder", "size", "what"),
    [
        (lambda: vit(img_size=28, patch_size=14), 56, "patches of 14 pixels: .* emae export --patch_size 16"),
        (lambda: vit(img_size=8, patch_size=2), 64, "patches of 2 pixels"),
        (vit, 80, r"img_size=\[80, 80\]: must be multiples of 32, four patches: \[64, 64\] would fit"),
        (swin, 128, "this swin takes"),
        (lambda: Beit(img_size=32, embed_dim=24, depth=1, num_heads=2), 64, "a beit encoder: detect takes a plain"),
    ],
)
def test_what_cannot_be_is_one_line(encoder: Any, size: int, what: str):
    with pytest.raises(InputError, match=what):
        Detector(encoder(), 2, DetectorConfig((size, size), width=16))

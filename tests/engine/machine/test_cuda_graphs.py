"""The encoder's blocks as a CUDA graph: the same numbers."""

import copy

import pytest
import torch

import efficient_mae as emae
from efficient_mae.engine.machine.cuda_graphs import graph_blocks
from efficient_mae.methods.mae import MaskedAutoencoder
from tests.processes import spawn

IMAGES = torch.linspace(-1, 1, 4 * 24 * 24).view(4, 1, 24, 24)


def small_model() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return emae.create_model(
        "mae_vit_tiny_patch4", img_size=24, in_chans=1, depth=2, decoder_depth=2, decoder_embed_dim=32, beta=20.0
    )


def test_what_is_not_trained_runs_as_it_is_and_a_copy_is_plain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: pytest.fail("captured"))
    model = small_model()
    expected = model.backbone(IMAGES)
    graph_blocks(model.backbone, accumulates=False)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(IMAGES), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.eval().backbone(IMAGES), expected, rtol=0, atol=0)
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        other.backbone.blocks[0].mlp.fc2.bias += 1
    changed = other.backbone(IMAGES)  # with a gradient, by its own blocks
    assert not torch.allclose(changed, expected)
    torch.testing.assert_close(copy.deepcopy(model.backbone)(IMAGES), expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_is_the_same_to_the_bit(compiled: bool):
    spawn(1, _compare, compiled)


def _compare(_: int, compiled: bool) -> None:
    """Three steps of two micro-batches each, of different numbers of images, and with a look at the features."""
    from efficient_mae.engine.machine.parallel import compile_blocks

    found = []
    for graphed in (False, True):
        torch._dynamo.reset()
        model = small_model().cuda()
        if compiled:
            compile_blocks(model)
        if graphed:
            graph_blocks(model.backbone, accumulates=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        generator, seen = torch.Generator().manual_seed(0), []
        for _ in range(3):
            for images in (IMAGES, IMAGES[1:], IMAGES):
                layout = model.plan(len(images), generator=generator)
                with torch.autocast("cuda", torch.bfloat16):
                    loss = model(images.cuda(), layout).loss
                loss.backward()
                seen.append(loss.detach())
            seen += [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                seen.append(model.backbone(IMAGES.cuda()))
        found.append(seen)
    for plain, graphed in zip(*found, strict=True):
        torch.testing.assert_close(graphed, plain, rtol=0, atol=0)

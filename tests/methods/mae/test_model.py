"""Parity with transformers' ViTMAE, and of packed with one-at-a-time decoding."""

import weakref
from dataclasses import replace

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import efficient_mae as emae
from efficient_mae.masking import METRICS
from efficient_mae.methods.mae import MaskedAutoencoder, build_layout

SMALL = dict(img_size=64, decoder_embed_dim=64, decoder_depth=2, depth=2)


def theirs_and_ours(norm_pix_loss: bool, dtype: torch.dtype) -> tuple[ViTMAEForPreTraining, MaskedAutoencoder]:
    """transformers' ViTMAE and our model without the paper's additions, with the same random weights."""
    torch.manual_seed(0)
    ours = emae.create_model(
        "mae_vit_tiny_patch8", mask_ratio=0.75, gamma=0, beta=None, norm_pix_loss=norm_pix_loss, **SMALL
    ).to(dtype)
    config = ViTMAEConfig(
        image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=768, decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=256, mask_ratio=0.75, norm_pix_loss=norm_pix_loss, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = ViTMAEForPreTraining(config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():  # biases and norms too, so that a wrong one shows
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.05)
        for ours_, theirs_ in parameter_pairs(ours, theirs):
            theirs_.copy_(ours_.view_as(theirs_))
        # A model made from a config has all-zero positions in transformers 5.
        theirs.vit.embeddings.position_embeddings.copy_(ours.backbone.pos_embed)
        theirs.decoder.decoder_pos_embed.copy_(ours.decoder_pos_embed)
    return theirs, ours


def parameter_pairs(ours, theirs, gradient: bool = False):
    """(ours, theirs) for every learned tensor, the fused qkv cut into three."""
    get = (lambda p: p.grad) if gradient else (lambda p: p)
    yield get(ours.backbone.cls_token), get(theirs.vit.embeddings.cls_token)
    yield get(ours.mask_token), get(theirs.decoder.mask_token)
    modules = [
        (ours.backbone.patch_embed.proj, theirs.vit.embeddings.patch_embeddings.projection),
        (ours.backbone.norm, theirs.vit.layernorm),
        (ours.decoder_embed, theirs.decoder.decoder_embed),
        (ours.decoder_norm, theirs.decoder.decoder_norm),
        (ours.decoder_pred, theirs.decoder.decoder_pred),
    ]
    blocks = [*zip(ours.backbone.blocks, theirs.vit.layers), *zip(ours.decoder_blocks, theirs.decoder.decoder_layers)]
    for block, layer in blocks:
        modules += [
            (block.norm1, layer.layernorm_before),
            (block.norm2, layer.layernorm_after),
            (block.attn.proj, layer.attention.o_proj),
            (block.mlp.fc1, layer.mlp.fc1),
            (block.mlp.fc2, layer.mlp.fc2),
        ]
        for what in ("weight", "bias"):
            q, k, v = get(getattr(block.attn.qkv, what)).chunk(3)
            yield q, get(getattr(layer.attention.q_proj, what))
            yield k, get(getattr(layer.attention.k_proj, what))
            yield v, get(getattr(layer.attention.v_proj, what))
    for mine, his in modules:
        yield get(mine.weight), get(his.weight)
        yield get(mine.bias), get(his.bias)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((a - b.view_as(a)).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_is_mae_without_the_papers_additions(dtype: torch.dtype, tolerance: float, norm_pix_loss: bool):
    theirs, ours = theirs_and_ours(norm_pix_loss, dtype)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 3, 64, 64, generator=generator, dtype=dtype)
    mask = emae.random_masking(6, (8, 8), 0.75, generator)
    out = ours(images, mask)
    # The noise that makes transformers hide the same patches.
    expected = theirs(images, noise=mask.flatten(1).float() + torch.arange(64) * 1e-4)
    assert torch.equal(expected.mask.bool().view_as(mask), mask)

    assert relative(out.loss, expected.loss) < tolerance
    assert relative(out.prediction, expected.logits[expected.mask.bool()]) < tolerance
    out.loss.backward()
    expected.loss.backward()
    pairs = list(parameter_pairs(ours, theirs, gradient=True))
    assert len(pairs) == sum(1 for _ in ours.parameters()) + 2 * 2 * 4  # four blocks' qkv in three
    # A key's bias shifts all scores alike, so its gradient is rounding noise around zero on both sides.
    largest = max(theirs_.abs().max() for _, theirs_ in pairs)
    for ours_, theirs_ in pairs:
        assert (ours_ - theirs_.view_as(ours_)).abs().max() < tolerance * max(theirs_.abs().max(), 1e-3 * largest)


def test_positions_are_those_of_transformers():
    theirs, ours = theirs_and_ours(True, torch.float32)
    theirs.vit.embeddings.initialize_weights()
    torch.testing.assert_close(ours.backbone.pos_embed, theirs.vit.embeddings.position_embeddings.data)


@pytest.mark.parametrize("img_size", [64, (48, 80)])
def test_packed_decoding_is_decoding_one_image_at_a_time(img_size):
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", **{**SMALL, "img_size": img_size, "beta": 16.0}).double()
    images = torch.randn(5, 3, *model.config.img_size, dtype=torch.float64)
    out = model(images, generator=torch.Generator().manual_seed(2))
    assert len(out.plan.parts[0].tokens.lengths.unique()) > 1
    together = torch.autograd.grad(out.loss, list(model.parameters()))

    alone = [model(image[None], mask[None]) for image, mask in zip(images, out.mask)]
    predictions, errors = [one.prediction for one in alone], [one.errors for one in alone]
    weights = out.weights.double()
    numerator = (weights * torch.cat(errors)).sum()
    torch.testing.assert_close(out.prediction, torch.cat(predictions), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.errors, torch.cat(errors), rtol=1e-10, atol=1e-12)
    apart = torch.autograd.grad(numerator / weights.sum(), list(model.parameters()))
    for a, b in zip(together, apart):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("part_size", [1, 2, 3])
def test_decoding_in_parts_is_decoding_at_once(part_size):
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", **SMALL).double()
    images = torch.randn(7, 3, *model.config.img_size, dtype=torch.float64)
    # One image without a target between others, which makes a part of its own or none.
    mask = emae.random_masking(7, model.config.grid_size, 0.85, torch.Generator().manual_seed(0))
    difficulty = emae.p2dist(mask, 8)
    predicted = mask.clone()
    predicted[2] = False
    weights = emae.flatten_weights(difficulty, 0.6)
    whole, parts = (build_layout(mask, difficulty, predicted, weights, size) for size in (None, part_size))
    assert (len(whole.parts), len(parts.parts)) == (1, 7 // part_size)
    expected, found = model(images, whole), model(images, parts)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.prediction, expected.prediction, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.errors, expected.errors, rtol=1e-10, atol=1e-12)
    # Scaled, as by the global batch's weight.
    gradients = [torch.autograd.grad(3.0 * out.loss, list(model.parameters())) for out in (expected, found)]
    for a, b in zip(*gradients):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(model(images, parts).prediction, expected.prediction, rtol=1e-10, atol=1e-12)


def test_parts_are_no_smaller_than_a_device_likes():
    large = emae.create_model("mae_vit_large_patch16", depth=1).config
    assert [large.unit(torch.device(name)) for name in ("cpu", "cuda")] == [16, 256]
    # A quarter of the patches and of the width: as many numbers are sixteen times the images.
    small = replace(large, img_size=(112, 112), decoder_embed_dim=128)
    assert small.unit(torch.device("cpu")) == 16 * 16


@pytest.mark.parametrize("img_size", [32, 80])  # short sequences are multiplied in float32, long ones in bfloat16
def test_parts_under_autocast_are_the_whole_under_autocast(img_size):
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", **{**SMALL, "img_size": img_size, "beta": None})
    images = torch.randn(8, 3, *model.config.img_size)
    noise = torch.rand(8, (img_size // 8) ** 2, generator=torch.Generator().manual_seed(0))
    gradients = []
    for size in (None, 3):
        layout = model.config.planner(size)(noise)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(images, layout).loss
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for whole, parts in zip(*gradients):
        assert parts.dtype == torch.float32
        assert (parts - whole).norm() < 2e-2 * whole.norm()  # bfloat16 has eight bits


def test_parts_keep_the_activations_of_one_part():
    model = emae.create_model("mae_vit_tiny_patch8", **SMALL)
    images = torch.randn(16, 3, *model.config.img_size)
    noise = torch.rand(16, 64, generator=torch.Generator().manual_seed(0))

    def kept(part_size):
        """Numbers that the graph still refers to after the forward pass."""
        saved = weakref.WeakValueDictionary()

        def keep(tensor):
            held = tensor.detach().clone()
            saved[id(held)] = held
            return held

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
            out = model(images, model.config.planner(part_size)(noise))
        return sum(held.numel() for held in saved.values()), out

    whole, parts = kept(None)[0], kept(4)[0]
    assert parts < 0.6 * whole


def test_the_last_block_at_the_targets_is_the_whole_block():
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", **SMALL).double()
    layout = model.plan(4, generator=torch.Generator().manual_seed(0)).parts[0]
    x = torch.randn(int(layout.tokens.lengths.sum()), 64, dtype=torch.float64)
    block = model.decoder_blocks[-1]
    whole = block(x, layout.tokens)[layout.rows_predict]
    part = block.forward_queries(x, layout.rows_predict, layout.targets, layout.tokens)
    torch.testing.assert_close(part, whole, rtol=1e-10, atol=1e-12)


def test_the_first_block_with_shared_hidden_patches_is_the_whole_block():
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", **SMALL).double()
    masks = model.plan(4, generator=torch.Generator().manual_seed(0))
    layout = masks.parts[0]
    encoded = torch.randn(len(layout.rows_encoded), 64, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(64, 64, dtype=torch.float64, requires_grad=True)
    # The packed sequences, put together image by image from the masks alone.
    per_image = encoded.view(4, -1, 64)
    sequences = [
        torch.cat([tokens, hidden[predicted.flatten()]]) for tokens, predicted in zip(per_image, masks.predicted)
    ]
    order = sorted(range(4), key=lambda image: len(sequences[image]))
    block = model.decoder_blocks[0]
    whole = block(torch.cat([sequences[image] for image in order]), layout.tokens)
    shared = block.forward_shared(encoded, hidden, layout)
    torch.testing.assert_close(shared, whole, rtol=1e-10, atol=1e-12)
    inputs = [encoded, hidden, *block.parameters()]
    seed = torch.randn_like(whole)
    for ours, theirs in zip(torch.autograd.grad(shared, inputs, seed), torch.autograd.grad(whole, inputs, seed)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_loss_is_equation_2_over_the_predicted_patches():
    model = emae.create_model("mae_vit_tiny_patch8", **SMALL)
    out = model(torch.randn(4, 3, 64, 64))
    distance = out.difficulty[out.predicted]
    expected = emae.difficulty_flatten_loss(out.prediction, out.target, distance, gamma=0.6)
    torch.testing.assert_close(out.loss, expected)
    assert (distance <= 26.0 * 8 / 16).all()
    assert torch.equal(out.predicted, emae.select_targets(out.difficulty, patch_size=8, beta=26.0))


def test_checkpointed_activations_change_nothing():
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", **SMALL)
    images, mask = torch.randn(4, 3, 64, 64), model.plan(4).mask
    plain = torch.autograd.grad(model(images, mask).loss, list(model.parameters()))
    model.set_grad_checkpointing()
    for a, b in zip(plain, torch.autograd.grad(model(images, mask).loss, list(model.parameters()))):
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_reconstruct_keeps_visible_pixels_and_fills_predicted_patches(norm_pix_loss: bool):
    model = emae.create_model("mae_vit_tiny_patch8", **SMALL, in_chans=2, norm_pix_loss=norm_pix_loss)
    images = torch.randn(3, 2, 64, 64)
    with torch.no_grad():
        out = model(images)
    picture = model.reconstruct(images, out.mask)

    def blow_up(patches: torch.Tensor) -> torch.Tensor:
        return patches.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)

    hidden, predicted = blow_up(out.mask), blow_up(out.predicted)
    assert torch.equal(picture[~hidden], images[~hidden])
    assert (picture[hidden & ~predicted] == 0).all()
    image, row, column = out.predicted.nonzero()[-1].tolist()
    patch = picture[image, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
    truth = images[image, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
    expected = out.prediction[-1].view(8, 8, 2).permute(2, 0, 1)
    if norm_pix_loss:
        expected = expected * (truth.var() + 1e-6).sqrt() + truth.mean()
    torch.testing.assert_close(patch, expected)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (dict(name="mae_vit_bas_patch16"), "did you mean mae_vit_base_patch16"),
        (dict(name="resnet50"), "unknown model 'resnet50'"),
        (
            dict(name="mae_vit_base_patch15"),
            "patch_size=15 does not divide img_size=224x224: 210x210 would fit",
        ),
        (dict(img_size=(224, 230)), "224x230: 224x224 would fit"),
        (dict(img_size=8), "does not divide img_size=8x8"),
        (dict(mask_ratio=0.999), "leaves none of 196 patches visible"),
        (dict(mask_ratio=0.0), "mask_ratio=0.0"),
        (dict(mask_ratio=float("nan")), "mask_ratio=nan"),
        (dict(gamma=-1.0), "gamma=-1.0"),
        (dict(gamma=float("inf")), "gamma=inf: must be finite"),
        (dict(beta=-1.0), "beta=-1.0: must be greater than 0, or null"),
        (dict(beta=float("nan")), "beta=nan"),
        (dict(k=0), "k=0: must be at least 1"),
        (dict(img_size=0), "img_size=0: must be at least 1"),
        (dict(img_size=(224, -16)), r"img_size\[1\]=-16: must be at least 1"),
        (dict(decoder_embed_dim=-32), "decoder_embed_dim=-32"),
        (dict(decoder_num_heads=0), "decoder_num_heads=0"),
        (dict(beta=2.0), "beta=2.0: no patch is that easy"),
        (dict(in_chans=0), "in_chans=0"),
        (dict(decoder_depth=0), "decoder_depth=0"),
        (
            dict(decoder_embed_dim=100, decoder_num_heads=3),
            "decoder_num_heads=3: does not divide decoder_embed_dim=100; take one of 1, 2, 4, 5, 10",
        ),
        (dict(gamma=200.0, beta=None), "gamma=200: d .* leaves nothing"),
        (dict(decoder_embed_dim=30, decoder_num_heads=1), "embed_dim=30"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments: dict, what: str):
    with torch.device("meta"), pytest.raises(ValueError, match=what):
        emae.create_model(**{"name": "mae_vit_base_patch16", **arguments})


@pytest.mark.parametrize(
    "settings",
    [
        *({"difficulty": metric, "beta": None} for metric in METRICS),
        *({"schedule": schedule, "beta": None} for schedule in ("threshold", "curriculum", "normalise")),
        {"shuffle": "targets"},
        {"targets": "farthest", "prediction_ratio": 0.5, "beta": None},
    ],
)
def test_the_plain_model_of_any_predicts_every_hidden_patch_alike(settings: dict):
    with torch.device("meta"):
        config = emae.create_model("mae_vit_tiny_patch8", **SMALL | {"gamma": 0.0} | settings).config
    layout = config.baseline().planner()(torch.rand(8, 64, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(layout.predicted, layout.mask) and (layout.weights == 1).all()


@pytest.mark.parametrize(("width", "heads"), [(512, 16), (100, 2), (96, 3), (28, 1), (132, 4)])
def test_a_decoder_of_any_width_has_heads_that_divide_it(width: int, heads: int):
    with torch.device("meta"):
        settings = SMALL | {"decoder_embed_dim": width}
        model = emae.create_model("mae_vit_tiny_patch8", **settings)
    assert model.config.decoder_num_heads == heads


def test_inputs_of_another_shape():
    model = emae.create_model("mae_vit_tiny_patch8", **SMALL)
    with pytest.raises(ValueError, match="3 x 64 x 64"):
        model(torch.randn(2, 1, 64, 64))
    with pytest.raises(ValueError, match=r"\(2, 8, 8\)"):
        model(torch.randn(2, 3, 64, 64), torch.ones(2, 4, 4, dtype=torch.bool))
    uneven = emae.random_masking(2, (8, 8), 0.75)
    uneven[0].logical_not_()
    with pytest.raises(ValueError, match="same number"):
        model(torch.randn(2, 3, 64, 64), uneven)


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_is_near_float32_on_the_cpu():
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", **SMALL)
    images, mask = torch.randn(8, 3, 64, 64), emae.random_masking(8, (8, 8), 0.85)
    expected = model(images, mask)
    with torch.autocast("cuda", torch.bfloat16):
        out = model.cuda()(images.cuda(), mask)
    torch.testing.assert_close(out.loss.cpu(), expected.loss, rtol=0.01, atol=0)
    torch.testing.assert_close(out.prediction.float().cpu(), expected.prediction, rtol=0.05, atol=0.05)

"""Cross-attention decoding, beside timm's encoder and torch's attention image by image, and as training runs it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import efficient_mae as emae
from efficient_mae.data import TrainBatch
from efficient_mae.engine.loop import Step
from efficient_mae.engine.machine.distributed import ALONE
from efficient_mae.engine.machine.parallel import compile_blocks
from efficient_mae.engine.optim import build_adamw
from efficient_mae.flat import Flat
from efficient_mae.interop import ImageStatistics
from efficient_mae.methods.mae import CrossLayout, MAEConfig, MaskedAutoencoder
from efficient_mae.tasks.pretrain import MethodObjective

SMALL = dict(img_size=64, depth=3, decoder_depth=2, decoder_embed_dim=64, decoder="cross", beta=16.0)


def model_of(**settings) -> MaskedAutoencoder:
    torch.manual_seed(0)
    model = emae.create_model("mae_vit_tiny_patch8", **{**SMALL, **settings}).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # biases, norms and sums too, so that a wrong one shows
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.05)
    return model


def images_of(model: MaskedAutoencoder, number: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, 3, *model.config.img_size, generator=generator, dtype=torch.float64)


class Reference(nn.Module):
    """One image after another, by timm's blocks and torch's attention; parameters of the model's own names."""

    def __init__(self, model: MaskedAutoencoder):
        super().__init__()
        config = model.config
        self.vit = emae.to_timm(model).double()
        weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        self.sums = nn.Parameter(weights["decoder_features.weight"])
        self.mask_token = nn.Parameter(weights["mask_token"])
        self.positions = model.decoder_pos_embed
        self.blocks, width = nn.ModuleList(), config.decoder_embed_dim
        for number in range(config.decoder_depth):
            of = {name.removeprefix(f"decoder_blocks.{number}."): tensor for name, tensor in weights.items()}
            block = nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, eps=1e-6),
                    "attn": nn.MultiheadAttention(
                        width, config.decoder_num_heads, kdim=config.embed_dim, vdim=config.embed_dim
                    ),
                    "norm2": nn.LayerNorm(width, eps=1e-6),
                    "fc1": nn.Linear(width, 4 * width),
                    "fc2": nn.Linear(4 * width, width),
                }
            ).double()
            k, v = of["attn.kv.weight"].chunk(2)
            theirs = {
                "attn.q_proj_weight": of["attn.q.weight"],
                "attn.k_proj_weight": k,
                "attn.v_proj_weight": v,
                "attn.in_proj_bias": torch.cat([of["attn.q.bias"], of["attn.kv.bias"]]),
                "attn.out_proj.weight": of["attn.proj.weight"],
                "attn.out_proj.bias": of["attn.proj.bias"],
            }
            for name in ("norm1", "norm2"):
                theirs |= {f"{name}.{what}": of[f"{name}.{what}"] for what in ("weight", "bias")}
            for name in ("fc1", "fc2"):
                theirs |= {f"{name}.{what}": of[f"mlp.{name}.{what}"] for what in ("weight", "bias")}
            block.load_state_dict(theirs)
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width, eps=1e-6).double()
        self.pred = nn.Linear(width, 3 * config.patch_size**2).double()
        for module, name in ((self.norm, "decoder_norm"), (self.pred, "decoder_pred")):
            module.load_state_dict({what: weights[f"{name}.{what}"] for what in ("weight", "bias")})

    def forward(self, image: Tensor, mask: Tensor, predicted: Tensor) -> Tensor:
        """(T, 3 * P * P) of one image."""
        vit = self.vit
        tokens = vit.patch_embed(image[None])[0] + vit.pos_embed[0, 1:]
        first = vit.cls_token[0] + vit.pos_embed[0, :1]
        x = torch.cat([first, tokens[~mask.flatten()]])[None]
        outputs = []
        for block in vit.blocks:
            x = block(x)
            outputs.append(vit.norm(x)[0])
        y = (self.mask_token[0] + self.positions[0, 1:])[predicted.flatten()]
        for number, block in enumerate(self.blocks):
            features = sum(self.sums[number, k] * output for k, output in enumerate(outputs))
            y = y + block["attn"](block["norm1"](y), features, features, need_weights=False)[0]
            y = y + block["fc2"](nn.functional.gelu(block["fc1"](block["norm2"](y))))
        return self.pred(self.norm(y))

    def gradients(self) -> dict[str, Tensor]:
        """Under the model's names."""
        found = {name: parameter.grad for name, parameter in self.vit.named_parameters()}
        found |= {"mask_token": self.mask_token.grad, "decoder_features.weight": self.sums.grad}
        for number, block in enumerate(self.blocks):
            at, attn = f"decoder_blocks.{number}", block["attn"]
            q, k, v = attn.in_proj_bias.grad.chunk(3)
            found |= {f"{at}.attn.q.weight": attn.q_proj_weight.grad, f"{at}.attn.q.bias": q}
            found[f"{at}.attn.kv.weight"] = torch.cat([attn.k_proj_weight.grad, attn.v_proj_weight.grad])
            found[f"{at}.attn.kv.bias"] = torch.cat([k, v])
            modules = {"attn.proj": attn.out_proj, "norm1": block["norm1"], "norm2": block["norm2"]}
            modules |= {"mlp.fc1": block["fc1"], "mlp.fc2": block["fc2"]}
            for name, module in modules.items():
                found |= {f"{at}.{name}.{what}": getattr(module, what).grad for what in ("weight", "bias")}
        for name, module in (("decoder_norm", self.norm), ("decoder_pred", self.pred)):
            found |= {f"{name}.{what}": getattr(module, what).grad for what in ("weight", "bias")}
        return found


@pytest.mark.parametrize("part_size", [None, 1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"img_size": (48, 80), "decoder_depth": 1},
        {"beta": None, "targets": "farthest", "prediction_ratio": 0.4},
        {"schedule": "normalise"},
    ],
)
def test_values_and_gradients_are_those_of_one_image_at_a_time(settings: dict, part_size: int | None):
    model = model_of(**settings)
    images, patches = images_of(model), model.config.grid_size[0] * model.config.grid_size[1]
    layout = model.config.planner(part_size)(torch.rand(5, patches, generator=torch.Generator().manual_seed(2)))
    assert len(layout.parts) == (1 if part_size is None else 5 // part_size)
    assert all(isinstance(part, CrossLayout) for part in layout.parts)
    out = model(images, layout)
    out.loss.backward()

    reference = Reference(model)
    every = zip(images, out.mask, out.predicted)
    prediction = torch.cat([reference(*one) for one in every])
    torch.testing.assert_close(out.prediction, prediction, rtol=1e-10, atol=1e-12)
    weights = out.weights.double()
    errors = (prediction - out.target).square().mean(dim=1)
    loss = (weights * errors).sum() / weights.sum()
    torch.testing.assert_close(out.loss, loss, rtol=1e-12, atol=0)
    loss.backward()
    theirs = reference.gradients()
    ours = {name.removeprefix("backbone."): parameter.grad for name, parameter in model.named_parameters()}
    theirs = {name: gradient for name, gradient in theirs.items() if name in ours or gradient is not None}
    assert ours.keys() == theirs.keys() - {"pos_embed"}
    largest = max(gradient.abs().max() for gradient in ours.values())
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).abs().max() < 1e-10 * largest, name


def test_the_features_are_timms_intermediate_layers():
    model = model_of()
    images = images_of(model)
    theirs = (
        emae.to_timm(model)
        .double()
        .forward_intermediates(
            images, indices=3, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
    )
    ours = model.backbone.forward_every(images)
    assert torch.equal(ours[-1], model.backbone.forward_features(images))
    for output, (patches, prefix) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(output, torch.cat([prefix, patches], dim=1), rtol=1e-10, atol=1e-12)


def test_a_prediction_does_not_depend_on_which_others_are_made():
    """As it does where predicted patches attend to each other."""
    changed = {}
    for decoder in ("cross", "self"):
        model = model_of(decoder=decoder, beta=None)
        images = images_of(model)
        every = model(images, generator=torch.Generator().manual_seed(2))
        few = MaskedAutoencoder(replace(model.config, beta=9.0)).double()
        few.load_state_dict(model.state_dict())
        out = few(images, every.mask)
        assert 0 < len(out.prediction) < len(every.prediction)
        same = every.prediction[out.predicted[every.mask]]
        changed[decoder] = (out.prediction - same).abs().max().item()
    assert changed["cross"] < 1e-12 < 1e-4 < changed["self"]


@pytest.mark.parametrize("part_size", [None, 2])
def test_checkpointed_activations_change_nothing(part_size: int | None):
    model = model_of()
    images, layout = images_of(model), model.config.planner(part_size)(torch.rand(5, 64))
    plain = torch.autograd.grad(model(images, layout).loss, list(model.parameters()))
    model.set_grad_checkpointing()
    for a, b in zip(plain, torch.autograd.grad(model(images, layout).loss, list(model.parameters()))):
        assert torch.equal(a, b)


@pytest.mark.parametrize("part_size", [None, 2])
def test_accumulated_it_is_the_gradient_of_the_global_batch(part_size: int | None):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=generator)
    noise = torch.rand(6, 64, generator=generator)
    found = []
    for cuts in ((6,), (2, 3, 1)):
        model = model_of().float()
        step = Step(
            model, build_adamw(model, 0.05), MethodObjective(ImageStatistics((0.5,) * 3, (0.5,) * 3)), ALONE,
            lambda _: 1e-3,
        )  # fmt: skip
        planner, batches = model.config.planner(part_size), []
        for images, numbers in zip(pixels.split(cuts), noise.split(cuts)):
            batches.append(TrainBatch(images, torch.arange(len(images)), None, [], Flat.of(planner(numbers))))
        step.backward(0, batches)
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for together, apart in zip(*found):
        assert (apart - together).norm() < 1e-5 * together.norm() + 1e-7


@pytest.mark.parametrize("img_size", [32, 80])
def test_under_autocast_parts_are_the_whole_and_near_float32(img_size: int):
    model = model_of(img_size=img_size, beta=None).float()
    images = torch.randn(8, 3, img_size, img_size, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(8, (img_size // 8) ** 2, generator=torch.Generator().manual_seed(0))
    gradients = []
    for size, half in ((None, False), (None, True), (3, True)):
        layout = model.config.planner(size)(noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(images, layout).loss
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for name, exact, whole, parts in zip(dict(model.named_parameters()), *gradients):
        if not name.endswith("kv.bias"):  # a key's bias shifts all scores alike: its gradient is rounding noise
            assert parts.dtype == torch.float32
            assert (parts - whole).norm() < 3e-2 * whole.norm(), name
            assert (whole - exact).norm() < 1e-1 * exact.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("part_size", [None, 2])
def test_compiled_blocks_are_the_same(part_size: int | None):
    model, compiled = model_of(), model_of()
    compile_blocks(compiled)
    for number in (5, 4):
        images = images_of(model, number)
        layout = model.config.planner(part_size)(torch.rand(number, 64))
        losses = [one(images, layout).loss for one in (model, compiled)]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
        pairs = zip(losses, (model, compiled))
        for ours, theirs in zip(*(torch.autograd.grad(loss, list(one.parameters())) for loss, one in pairs)):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_a_picture_keeps_what_is_visible_and_fills_what_is_predicted():
    model = model_of(norm_pix_loss=False).float()
    images = torch.randn(3, 3, 64, 64)
    out = model(images)
    picture = model.reconstruct(images, out.mask)
    hidden, predicted = (
        each.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)
        for each in (out.mask, out.predicted)
    )
    assert torch.equal(picture[~hidden], images[~hidden]) and not picture[hidden & ~predicted].any()
    image, row, column = out.predicted.nonzero()[-1].tolist()
    patch = picture[image, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
    torch.testing.assert_close(patch, out.prediction[-1].view(8, 8, 3).permute(2, 0, 1))


def test_a_file_of_before_has_the_papers_decoder():
    config = model_of().config
    values = config.to_dict()
    assert MAEConfig.from_dict(values) == config
    for name in ("decoder", "targets", "prediction_ratio", "shuffle"):
        del values[name]
    earlier = MAEConfig.from_dict(values)
    assert (earlier.decoder, earlier.targets, earlier.prediction_ratio) == ("self", "p2dist", None)
    assert earlier.shuffle is None

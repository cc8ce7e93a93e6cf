"""Images as grids of patches. B images, C channels, H x W patches of P x P pixels, T chosen patches."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from efficient_mae.backbones.kernels.linear import linear
from efficient_mae.errors import InputError
from efficient_mae.ranges import Pixels, PositiveInt, check_range


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image's size given as one number or two.

    Raises:
        InputError: it is neither, or a number is below 1.
    """
    check_range("img_size", size, Pixels)
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)


def grid_size(img_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(H, W) in patches of an image of (height, width) pixels.

    Raises:
        InputError: the patch size does not divide the image.
    """
    check_range("patch_size", patch_size, PositiveInt)
    height, width = img_size
    if height % patch_size or width % patch_size:
        fit = [f"{max(1, side // patch_size) * patch_size}" for side in img_size]
        raise InputError(
            f"patch_size={patch_size} does not divide img_size={height}x{width}: "
            f"{fit[0]}x{fit[1]} would fit, or another patch size"
        )
    return height // patch_size, width // patch_size


def patch_view(images: Float[Tensor, "B C h w"], patch_size: int) -> Float[Tensor, "B H W C P P"]:
    """The same pixels seen patch by patch; a view, nothing is copied."""
    images_, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    split = images.view(images_, channels, rows, patch_size, columns, patch_size)
    return split.permute(0, 2, 4, 1, 3, 5)


def pixel_mask(mask: Bool[Tensor, "B H W"], patch_size: int) -> Bool[Tensor, "B 1 h w"]:
    """A mask of patches as one of pixels, of all channels."""
    return mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]


def gather_patches(
    images: Float[Tensor, "B C h w"], ids: Int64[Tensor, " T"], patch_size: int
) -> Float[Tensor, "T C P P"]:
    """The chosen patches, by index into the B * N patches in row-major order."""
    patches = patch_view(images, patch_size)
    rows, columns = patches.shape[1:3]
    image, patch = ids // (rows * columns), ids % (rows * columns)
    return patches[image, patch // columns, patch % columns]


def pixel_targets(
    images: Float[Tensor, "B C h w"], ids: Int64[Tensor, " T"], patch_size: int
) -> Float[Tensor, "T X"]:
    """The chosen patches' pixels in the order that MAE's pixel head predicts: row, column, channel."""
    return gather_patches(images, ids, patch_size).permute(0, 2, 3, 1).flatten(1)


def patch_statistics(target: Float[Tensor, "T X"]) -> tuple[Float[Tensor, "T 1"], Float[Tensor, "T 1"]]:
    """Mean and standard deviation of each patch, by which norm_pix_loss normalises (variance unbiased, + 1e-6)."""
    if not len(target):
        return target[:, :1], target[:, :1]  # PyTorch warns of the variance of nothing
    # Unbiased variance and 1e-6 as in MAE, for parity with its weights' predictions.
    return target.mean(dim=1, keepdim=True), (target.var(dim=1, keepdim=True) + 1e-6).sqrt()


class PatchEmbed(nn.Module):
    """Linear projection of patches, with timm's parameter names (`proj.weight` is a convolution's).

    Args:
        patch_size: P, in pixels.
        in_chans: C.
        embed_dim: D.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(
        self, images: Float[Tensor, "B C h w"], ids: Int64[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B tokens D"]:
        """Embed the patches `ids` of each image (None: all of them); the others are never touched."""
        batch = len(images)
        if ids is None:
            patches = patch_view(images, self.patch_size).flatten(1, 2)
        else:
            per_image = (images.shape[2] // self.patch_size) * (images.shape[3] // self.patch_size)
            first = torch.arange(batch, device=ids.device)[:, None] * per_image
            patches = gather_patches(images, (first + ids).flatten(), self.patch_size)
        weight = self.proj.weight.flatten(1)
        return linear(patches.reshape(batch, -1, weight.shape[1]), weight, self.proj.bias)

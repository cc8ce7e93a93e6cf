"""What is usual of images by the number of their channels."""

# timm.data.constants, IMAGENET_DEFAULT_MEAN and IMAGENET_DEFAULT_STD.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def default_mean_std(in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, for pixels from 0 to 1: ImageNet's for RGB, 0.5 and 0.5 otherwise."""
    if in_chans == 3:
        return _IMAGENET_MEAN, _IMAGENET_STD
    return (0.5,) * in_chans, (0.5,) * in_chans

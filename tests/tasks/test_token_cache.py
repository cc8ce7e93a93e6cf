"""Tokens that are computed once: none is taken for another image's, and a cache of something else is refused."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from efficient_mae.data import PretrainTransform, Reading, Source, TrainDataset, open_source
from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer import DiscreteVAE, DiscreteVAEConfig
from efficient_mae.tasks.token_cache import TokenCache, token_facts

from .conftest import write_images

CONFIG = DiscreteVAEConfig(in_chans=1, vocab_size=50, stride=4, width=8, num_blocks=0)
PAIRS = [(0, 3), (0, 11), (2, 5), (3, 3)]


@pytest.fixture(scope="module")
def source(images: Path) -> Source:
    return open_source(str(images))


@pytest.fixture(scope="module")
def tokenizer() -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(CONFIG)


def transform(scale: tuple[float, float] = (0.2, 1.0), hflip: bool = True, size: int = 16) -> PretrainTransform:
    return PretrainTransform((size, size), Reading(1), scale=scale, hflip=hflip)


def batch(source: Source, how: PretrainTransform, pairs: list[tuple[int, int]], seed: int = 0) -> torch.Tensor:
    return TrainDataset(source, how, seed).__getitems__(pairs).images


def make(folder: Path, source: Source, tokenizer: DiscreteVAE, how: PretrainTransform, seed: int = 0) -> TokenCache:
    return TokenCache(folder, token_facts(tokenizer, source, how, seed), (4, 4))


def test_what_is_written_is_read(source: Source, tokenizer: DiscreteVAE, tmp_path: Path):
    images, how = batch(source, transform(), PAIRS), transform()
    ids = tokenizer.encode(images.float() / 255)
    cache = make(tmp_path / "cache", source, tokenizer, how)
    assert bool((cache.read(PAIRS, images) == -1).all())
    cache.write(PAIRS[:3], images[:3], ids[:3])
    for other in (cache, pickle.loads(pickle.dumps(cache)), make(tmp_path / "cache", source, tokenizer, how)):
        found = other.read(PAIRS, images)
        assert torch.equal(found[:3], ids[:3]) and bool((found[3] == -1).all())


def test_fixed_crops_are_written_once(source: Source, tokenizer: DiscreteVAE, tmp_path: Path):
    how = transform((1.0, 1.0), hflip=False)
    cache = make(tmp_path, source, tokenizer, how)
    first = batch(source, how, [(0, 3), (0, 4)])
    cache.write([(0, 3), (0, 4)], first, ids := tokenizer.encode(first.float() / 255))
    later = batch(source, how, [(7, 3), (9, 4)], seed=1)
    assert torch.equal(make(tmp_path, source, tokenizer, how, seed=1).read([(7, 3), (9, 4)], later), ids)
    assert len(list(tmp_path.glob("*.tokens"))) == 1


def test_a_crop_that_differs_is_not_there(source: Source, tokenizer: DiscreteVAE, tmp_path: Path):
    how, images = transform(), batch(source, transform(), PAIRS)
    cache = make(tmp_path, source, tokenizer, how)
    cache.write(PAIRS, images, ids := tokenizer.encode(images.float() / 255))
    images[1, 0, 0, 0] += 1
    found = cache.read(PAIRS, images)
    assert bool((found[1] == -1).all()) and torch.equal(found[[0, 2, 3]], ids[[0, 2, 3]])


def test_images_that_were_changed_under_their_names(source: Source, tokenizer: DiscreteVAE, tmp_path: Path):
    how, images = transform(), batch(source, transform(), PAIRS)
    make(tmp_path, source, tokenizer, how).write(PAIRS, images, tokenizer.encode(images.float() / 255))
    with pytest.raises(InputError, match=r"holds tokens of other pixels than the data's \(4 of 4 images looked at\)"):
        make(tmp_path, source, tokenizer, how).read(PAIRS, 255 - images)


@pytest.mark.parametrize(
    ("what", "said"),
    [("tokenizer", "another tokenizer .tokenizer "), ("data", "other data .names "), ("fewer", "other data .images "),
     ("seed", "other crops .seed 0 there, 1 here"), ("crops", "other crops .crop_scale "),
     ("flip", "other crops .hflip "), ("size", "other crops .img_size "), ("reading", "images that are read other"),
     ("grid", "another grid")],
)  # fmt: skip
def test_a_cache_of_something_else_is_refused(
    what: str, said: str, source: Source, tokenizer: DiscreteVAE, tmp_path: Path
):
    make(tmp_path / "cache", source, tokenizer, transform())
    seed, how, grid = 0, transform(), (4, 4)
    if what == "tokenizer":
        tokenizer = DiscreteVAE(CONFIG)
    elif what in ("data", "fewer"):
        folder = write_images(tmp_path / "others", 43 if what == "data" else 40)
        if what == "data":
            (folder / "000.png").rename(folder / "another.png")
        source = open_source(str(folder))
    elif what == "seed":
        seed = 1
    elif what == "reading":
        how.reading = replace(how.reading, bands=(1,))
    elif what == "grid":
        grid = (2, 8)
    else:
        how = {"crops": transform((0.3, 1.0)), "flip": transform(hflip=False), "size": transform(size=32)}[what]
    with pytest.raises(InputError, match=said) as error:
        TokenCache(tmp_path / "cache", token_facts(tokenizer, source, how, seed), grid)
    assert "\n" not in str(error.value) and "name another folder" in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{", "{}"])
def test_a_record_that_is_none(content: Any, source: Source, tokenizer: DiscreteVAE, tmp_path: Path):
    (tmp_path / "cache.json").write_text(content)
    with pytest.raises(InputError, match="cache.json|another tokenizer"):
        make(tmp_path, source, tokenizer, transform())


def test_a_folder_of_something_else(source: Source, tokenizer: DiscreteVAE, tmp_path: Path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(InputError, match="holds something else"):
        make(tmp_path, source, tokenizer, transform())
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


def test_a_file_that_is_cut_short(source: Source, tokenizer: DiscreteVAE, tmp_path: Path):
    images = batch(source, transform(), PAIRS)
    make(tmp_path, source, tokenizer, transform()).write(PAIRS, images, tokenizer.encode(images.float() / 255))
    file = tmp_path / "crops-0000.tokens"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"crops-0000.tokens: isn't of 1,548 bytes"):
        make(tmp_path, source, tokenizer, transform()).read(PAIRS, images)


def test_too_many_words(source: Source, tokenizer: DiscreteVAE):
    tokenizer = DiscreteVAE(CONFIG)
    tokenizer.vocab_size = 2**16 + 1
    with pytest.raises(InputError, match="65,536 words"):
        token_facts(tokenizer, source, transform(), 0)

"""Tokens that are computed once: of a crop of an image, by the number of each; see docs/readings.md.

B images, C channels, h x w pixels, H x W tokens of an image.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from efficient_mae.data import PretrainTransform, Source
from efficient_mae.engine.storage.data_record import DataRecord
from efficient_mae.engine.storage.durable import replace_file
from efficient_mae.engine.storage.plain_files import parse_json
from efficient_mae.errors import InputError
from efficient_mae.methods.tokenizer import Tokenizer

# In a cache's folder: what its tokens follow from.
FACTS = "cache.json"

# A token is kept in two bytes.
_MOST_WORDS = 2**16


def token_facts(tokenizer: Tokenizer, source: Source, transform: PretrainTransform, seed: int) -> dict[str, Any]:
    """What the tokens of a run's crops follow from, as JSON has it.

    Args:
        seed: of the run, and so of its crops.

    Raises:
        InputError: a vocabulary of more than 65,536 words.
    """
    if tokenizer.vocab_size > _MOST_WORDS:
        raise InputError(
            f"cache_tokens: is for up to {_MOST_WORDS:,} words, and the tokenizer has {tokenizer.vocab_size:,}"
        )
    data = DataRecord.of(source)
    fixed = tuple(transform.scale) == (1, 1) and not transform.hflip
    facts = {
        "tokenizer": tokenizer.digest,
        "images": data.images,
        "names": data.names,
        "reading": asdict(transform.reading),
        "img_size": transform.img_size,
        "crop_scale": transform.scale,
        "crop_ratio": transform.ratio,
        "hflip": transform.hflip,
        "seed": None if fixed else seed,  # fixed crops are the same for every seed, and in every epoch
    }
    return json.loads(json.dumps(facts))


class TokenCache:
    """A folder of tokens, that several processes and runs may share.

    Each record has a checksum of the pixels and the tokens, so that none is taken for another image's.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any], grid_size: tuple[int, int]):
        """
        Args:
            folder: is made where there is none.
            facts: see :func:`token_facts`.
            grid_size: (H, W).

        Raises:
            InputError: the folder holds something else, or tokens of other data, other crops or another tokenizer.
            OSError: it can't be written.
        """
        self.folder, self.grid_size = Path(folder).expanduser(), grid_size
        self._fixed, self._images = facts["seed"] is None, int(facts["images"])
        self._record = np.dtype([("check", "<u4"), ("tokens", "<u2", grid_size)])
        self._maps: dict[int, np.memmap] = {}
        self._claim({**facts, "grid_size": list(grid_size)})

    def read(self, pairs: Sequence[tuple[int, int]], images: Shaped[Tensor, "B C h w"]) -> Int64[Tensor, "B H W"]:
        """Tokens of crops, -1 for those of a crop that aren't there.

        Args:
            pairs: (epoch, index) of each, as the sampler gives them.
            images: the crops, on the host, as they were when their tokens were written.

        Raises:
            InputError: all that is there for these crops is of other pixels.
        """
        found, there = torch.full((len(pairs), *self.grid_size), -1, dtype=torch.int64), 0
        for row, (epoch, index) in enumerate(pairs):
            record = self._map(epoch)[index]
            if record["check"] == 0:
                continue
            there += 1
            if record["check"] == _check(images[row], record["tokens"]):
                found[row] = torch.from_numpy(record["tokens"].astype(np.int64))
        if there and bool((found < 0).all()):
            raise InputError(
                f"cache_tokens={self.folder}: holds tokens of other pixels than the data's ({there} of {len(pairs)} "
                "images looked at); the images were changed, or are decoded by other versions: name another folder"
            )
        return found

    def write(
        self, pairs: Sequence[tuple[int, int]], images: Shaped[Tensor, "B C h w"], ids: Int64[Tensor, "B H W"]
    ) -> None:
        """Keep the tokens of crops; arguments as of :meth:`read`.

        Raises:
            OSError: the disk is full.
        """
        for (epoch, index), image, tokens in zip(pairs, images, ids.numpy().astype("<u2"), strict=True):
            self._map(epoch)[index] = (_check(image, tokens), tokens)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}  # each process opens its own

    def _claim(self, facts: dict[str, Any]) -> None:
        file = self.folder / FACTS
        if not file.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise InputError(
                    f"cache_tokens={self.folder}: holds something else; name a folder that is new or empty"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps(facts, indent=1).encode())
            return
        there = parse_json(file.read_bytes(), str(file))
        if not isinstance(there, dict):
            raise InputError(f"{file}: doesn't say what tokens the folder holds; name another")
        for name, kind in _KINDS.items():
            if there.get(name) != facts[name]:
                raise InputError(
                    f"cache_tokens={self.folder}: holds the tokens of {kind} ({name} {there.get(name)!r} there, "
                    f"{facts[name]!r} here); name another folder"
                )

    def _map(self, epoch: int) -> np.memmap:
        """The records of an epoch's crops, one an image; what was never written is zeros, and takes no room."""
        number = 0 if self._fixed else epoch
        if number not in self._maps:
            file, size = self.folder / f"crops-{number:04d}.tokens", self._images * self._record.itemsize
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if os.fstat(descriptor).st_size not in (0, size):
                    raise InputError(f"{file}: isn't of {size:,} bytes, as {self._images:,} images have; remove it")
                os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
            self._maps[number] = np.memmap(file, self._record, "r+", shape=(self._images,))
        return self._maps[number]


# What differs where a fact does.
_KINDS = {
    "tokenizer": "another tokenizer",
    "images": "other data",
    "names": "other data",
    "reading": "images that are read otherwise",
    "img_size": "other crops",
    "crop_scale": "other crops",
    "crop_ratio": "other crops",
    "hflip": "other crops",
    "seed": "other crops",
    "grid_size": "another grid",
}


def _check(image: Tensor, tokens: np.ndarray) -> int:
    """Of pixels and their tokens; never 0, which stands for no record."""
    pixels = zlib.crc32(image.numpy().tobytes())
    return zlib.crc32(np.ascontiguousarray(tokens).tobytes(), pixels) or 1

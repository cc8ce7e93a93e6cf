"""Which held-out images were classified rightly, kept so that encoders judged apart can be compared answer by answer.

Letters: S seeds, L label subsets, N held-out images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open

from efficient_mae.data import LabelledData
from efficient_mae.engine.storage.data_record import DataRecord
from efficient_mae.engine.storage.durable import replace_tensors
from efficient_mae.errors import InputError

_RIGHT = "efficient_mae_probe"


@dataclass(frozen=True)
class Record:
    """Answers of judges.

    Attributes:
        images: a digest of the label subsets and the held-out images.
        right: by row and judge, whether each answer was right.
    """

    images: str
    right: Mapping[str, Mapping[str, Bool[np.ndarray, "S L N"]]]

    @classmethod
    def of(
        cls,
        data: LabelledData,
        subsets: Sequence[np.ndarray],
        test_images: np.ndarray,
        right: Mapping[str, Mapping[str, np.ndarray]],
    ) -> "Record":
        """Of these answers on these images."""
        digest = blake2b(digest_size=16)
        for source in (data.train, data.test):
            record = DataRecord.of(source)
            digest.update(f"{record.images} {record.names} ".encode())
        for numbers in (*subsets, test_images):
            digest.update(np.asarray(numbers, dtype=np.int64).tobytes() + b" ")
        return cls(digest.hexdigest(), right)

    def write(self, file: str) -> None:
        """Into a safetensors file, whole or not at all."""
        names = list(self.right)
        tensors = {
            f"{number}/{judge}": torch.from_numpy(np.packbits(right, axis=-1))
            for number, name in enumerate(names)
            for judge, right in self.right[name].items()
        }
        held_out = next(iter(self.right[names[0]].values())).shape[-1]
        head = {"images": self.images, "rows": names, "held_out": held_out}
        replace_tensors(Path(file), tensors, {_RIGHT: json.dumps(head)})


def check_file(file: str) -> None:
    """Raise InputError where no answers could be written, before they are worked out."""
    path = Path(file)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise InputError(f"out={file}: must end in .safetensors and lie in a folder that is there")


def read_record(file: Path) -> Record:
    """What :meth:`Record.write` wrote; until 2026-11-27 it wrote an answer a byte, now a bit.

    Raises:
        InputError: it is no such file.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            head = json.loads((stored.metadata() or {})[_RIGHT])
            right: dict[str, dict[str, np.ndarray]] = {name: {} for name in head["rows"]}
            for key in stored.keys():  # noqa: SIM118 - it is no dictionary
                number, _, judge = key.partition("/")
                answers = stored.get_tensor(key).numpy()
                if answers.dtype != np.bool_:
                    answers = np.unpackbits(answers, axis=-1, count=head["held_out"]).astype(np.bool_)
                right[head["rows"][int(number)]][judge] = answers
            return Record(head["images"], right)
    except (OSError, SafetensorError, KeyError, ValueError, IndexError, TypeError):
        raise InputError(f"{file}: isn't what emae probe --out writes") from None


def check_same_images(records: Mapping[str, Record]) -> None:
    """Raise InputError unless all of these, by name, are of the same label subsets and held-out images."""
    (first, one), *others = records.items()
    for name, other in others:
        if one.images != other.images:
            raise InputError(f"{first} and {name} were judged on different images or label subsets; probe both alike")

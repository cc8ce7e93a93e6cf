"""Tables as files: .csv and .parquet, written a part at a time."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficient_mae.errors import InputError

# A column's type, or, of arrays of float32, their shape.
Kind = type | tuple[int, ...]


def require_parquet(out: Path, others: str) -> None:
    """Raise InputError if a file is to be .parquet and pyarrow isn't installed.

    Args:
        others: what could be written without.
    """
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise InputError(
                f"out={out}: pyarrow isn't installed; pip install 'efficient-mae[parquet]', or write {others}"
            ) from None


def write_table(file: Path, columns: Mapping[str, Kind], parts: Iterable[Mapping[str, Sequence[Any]]]) -> None:
    """Write a table, as its ending says.

    Args:
        columns: their types, in order; arrays for .parquet alone.
        parts: some rows each, by column; None stands for what isn't known.

    Raises:
        OSError: the disk is full or not writable.
    """
    (_write_parquet if file.suffix == ".parquet" else _write_csv)(file, columns, parts)


def _write_csv(file: Path, columns: Mapping[str, Kind], parts: Iterable[Mapping[str, Sequence[Any]]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for part in parts:
            writer.writerows(zip(*(_texts(part[name]) for name in columns), strict=True))


def _texts(values: Sequence[Any]) -> Iterable[Any]:
    return (f"{value:.6g}" if isinstance(value, float | np.floating) else value for value in values)


def _write_parquet(file: Path, columns: Mapping[str, Kind], parts: Iterable[Mapping[str, Sequence[Any]]]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    plain = {str: arrow.string(), int: arrow.int64(), float: arrow.float32()}

    def kind_of(kind: Kind) -> Any:
        if isinstance(kind, type):
            return plain[kind]
        nested = arrow.float32()
        for size in reversed(kind):
            nested = arrow.list_(nested, size)
        return nested

    def column(values: Any, kind: Kind) -> Any:
        if isinstance(kind, type):
            return arrow.array(values, kind_of(kind))
        nested = arrow.array(np.asarray(values).reshape(-1))
        for size in reversed(kind):
            nested = arrow.FixedSizeListArray.from_arrays(nested, size)
        return nested

    schema = arrow.schema([(name, kind_of(kind)) for name, kind in columns.items()])
    with parquet.ParquetWriter(file, schema) as writer:
        for part in parts:
            writer.write_table(
                arrow.table([column(part[name], kind) for name, kind in columns.items()], schema=schema)
            )

"""Read tables and JSON from other programs after checking that they fit into memory."""

from __future__ import annotations

import codecs
import csv
import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from pfedst.errors import DataError, listed
from pfedst.names import plain_names

MOST_BYTES = 1 << 30
"""Maximum size of a table: enough for millions of rows."""
MOST_CELLS = 100_000_000
MOST_IN_A_CELL = 100_000
MOST_IN_A_HEADER = 1 << 16
STEP = 1 << 20


def read_table(file: Path) -> pd.DataFrame:
    """Read a CSV table with all values as text, or a parquet table without nested columns.

    A CSV table is separated by commas, semicolons or tabs, in UTF-8, UTF-16 or Windows-1252. Headings are read in their
    one spelling (`plain_name`).

    Raises:
        DataError: If the table cannot be read, or is far larger than a table of images.
    """
    try:
        check_size(file)
        table = _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)
        _check_lengths(file, table)  # within the try: a cell that is not text raises an error when it is read
        return _with_plain_headings(file, table)
    except ImportError as error:
        raise DataError(f"{file}: reading parquet needs pip install 'pfedst[parquet]', or give a .csv") from error
    except (ValueError, OSError, pd.errors.ParserError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{file}: not a readable table ({error})") from error


def _with_plain_headings(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    headings = plain_names(table.columns)
    if twice := sorted({heading for heading in headings if headings.count(heading) > 1}):
        raise DataError(f'{file}: two columns are called "{twice[0]}"; rename one')
    renamed: pd.DataFrame = table.set_axis(headings, axis=1)
    return renamed


def _check_lengths(file: Path, table: pd.DataFrame) -> None:
    for column, cells in table.items():
        for line, cell in enumerate(cells, start=2):
            if isinstance(cell, str) and len(cell) > MOST_IN_A_CELL:
                raise DataError(
                    f'{file}, line {line}: the column "{column}" holds {len(cell):,} characters; at most '
                    f"{MOST_IN_A_CELL:,} are read: shorten it"
                )


def check_size(file: Path, most: int = MOST_BYTES) -> None:
    """Check that a file is small enough to be read as a whole.

    Raises:
        DataError: If the file is larger than `most` bytes.
        OSError: If the file does not exist.
    """
    if (size := file.stat().st_size) > most:
        raise DataError(f"{file}: {size:,} bytes; at most {most:,} are read: give only the rows that are needed")


def check_parquet(file: Path) -> None:
    """Check with its metadata that a parquet file fits into memory: a few kilobytes may hold terabytes.

    Raises:
        DataError: If the file is too large.
        ImportError: If pyarrow is not installed.
        ValueError, OSError: If the file is not a parquet file.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as opened:
        about = opened.metadata
        groups = [about.row_group(index) for index in range(about.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        cells = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    if size > MOST_BYTES:
        raise DataError(
            f"{file}: {size:,} bytes once it is unpacked; at most {MOST_BYTES:,} are read: give only the rows that are "
            f"needed"
        )
    _check_cells(file, cells)


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not JSON, larger than a table may be, or nested too deeply.
    """
    try:
        check_size(file)
        return json.loads(file.read_text())
    except (RecursionError, DataError) as error:
        raise ValueError(str(error)) from error


def _check_cells(file: Path, cells: int) -> None:
    if cells > MOST_CELLS:
        raise DataError(
            f"{file}: about {cells:,} cells; at most {MOST_CELLS:,} are read: give only the rows and columns that are "
            f"needed"
        )


def _read_parquet(file: Path) -> pd.DataFrame:
    check_parquet(file)
    import pyarrow.parquet

    fields = list(pyarrow.parquet.read_schema(file))
    flat = [field for field in fields if not pyarrow.types.is_nested(field.type)]
    if nested := [field.name for field in fields if field not in flat]:
        logging.getLogger("pfedst").warning("%s: columns of lists are not read: %s", file, listed(nested))
    texts = [field.name for field in flat if _is_text(field.type)]
    # a repeated text is stored once; as a dictionary it is also read once, and can be counted
    table = pyarrow.parquet.read_table(file, columns=[field.name for field in flat], read_dictionary=texts)
    size = 0
    for name in texts:
        for chunk in table[name].chunks:
            size += _text_bytes(file, name, chunk)
        if size > MOST_BYTES:
            raise DataError(f"{file}: {size:,} bytes of text; at most {MOST_BYTES:,} are read: give fewer rows")
        whole = pyarrow.chunked_array(
            [chunk.dictionary_decode() for chunk in table[name].chunks], table[name].type.value_type
        )
        table = table.set_column(table.column_names.index(name), name, whole)
    # the pandas metadata in the file is not needed, and may hold anything
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    return frame


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return types.is_dictionary(kind) or any(test(kind) for test in tests)


def _text_bytes(file: Path, name: str, chunk: Any) -> int:
    """Return the number of bytes of all rows of a dictionary-encoded text column."""
    import pyarrow.compute

    if not _is_text(chunk.type.value_type):
        return 0
    lengths = pyarrow.compute.binary_length(chunk.dictionary)
    if (longest := pyarrow.compute.max(lengths).as_py() or 0) > MOST_IN_A_CELL:
        raise DataError(
            f'{file}: the column "{name}" holds {longest:,} characters in one row; at most '
            f"{MOST_IN_A_CELL:,} are read: shorten it"
        )
    return pyarrow.compute.sum(lengths.take(chunk.indices)).as_py() or 0


def _read_csv(file: Path) -> pd.DataFrame:
    encoding = _encoding(file)
    with file.open(encoding=encoding, newline="") as opened:
        header = opened.readline(MOST_IN_A_HEADER)
        lines = 1
        while step := opened.read(STEP):
            if "\0" in step:  # pandas would cut the cell there
                raise DataError(f"{file}: holds zero bytes; save it as CSV in UTF-8")
            lines += step.count("\n")
    if len(header) == MOST_IN_A_HEADER:
        raise DataError(f"{file}: its first line is longer than {MOST_IN_A_HEADER:,} characters; give a .csv table")
    separator = max(",;\t", key=header.count)
    # short rows are filled up to the header's length
    _check_cells(file, lines * (header.count(separator) + 1))
    return pd.read_csv(
        file,
        sep=separator,
        dtype=str,
        keep_default_na=False,
        encoding=encoding,
        quoting=csv.QUOTE_MINIMAL,
    )


def _encoding(file: Path) -> str:
    """Return the encoding of a text table: UTF-8, UTF-16 with its mark, or else Windows-1252, as Excel saves CSV."""
    with file.open("rb") as content:
        if content.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    try:
        with file.open(encoding="utf-8") as content:
            while content.read(STEP):
                pass
        return "utf-8-sig"
    except UnicodeDecodeError:
        pass
    logging.getLogger("pfedst").warning(
        "%s is not in UTF-8 and is read as Windows-1252; check its accented letters", file
    )
    return "cp1252"


def column_names(table: pd.DataFrame) -> str:
    """Return the names of the columns, for an error."""
    return listed([str(column)[:100] for column in table.columns], most=20)

"""Tables as rows: JSON lines, JSON, CSV and TSV. A damaged table is a UserError with its line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from flax_wavlm.data.corpora.folders import read_utf8
from flax_wavlm.errors import UserError, some
from flax_wavlm.files import parse_json
from flax_wavlm.progress import tracked

TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_DELIMITERS = ",;\t|"
_HEADER_SHOWN = 300  # characters
_HEADER_SNIFFED = 2000  # characters: the sniffer's patterns take long for long lines

Row = tuple[str, dict[str, Any]]  # "file:line", and the line's fields
Needed = Sequence[Sequence[str]]  # fields that a table must have, each with its other names


def table_rows(file: Path, needed: Needed, texts: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a file of one of TABLE_SUFFIXES, UTF-8. Of CSV, empty fields but `texts` are left out."""
    text = read_utf8(file)
    return tracked(_parsed(file, text, needed, texts), f"reading {file.name}", text.count("\n"))


def _parsed(file: Path, text: str, needed: Needed, texts: Collection[str]) -> Iterator[Row]:
    if file.suffix == ".jsonl":
        return json_lines(file, text)
    if file.suffix == ".json":
        return _json_rows(file, text)
    if file.suffix == ".tsv":
        return _rows(file, text, "\t", _is_quoted(text), needed, texts)
    return _rows(file, text, _delimiter(text, needed), True, needed, texts)


def json_lines(file: Path, text: str) -> Iterator[Row]:
    """Each line that is not blank, an object."""
    # Not splitlines: U+2028 and its kind may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise UserError(f"not JSON ({error})", where=where, expected="one JSON object a line") from error
        yield where, _object(where, row)


def _json_rows(file: Path, text: str) -> Iterator[Row]:
    """JSON lines (NeMo), an array of objects, or {"data": [...]}."""
    first = _first_line(text)
    if isinstance(first, dict) and not isinstance(first.get("data"), list):
        yield from json_lines(file, text)
        return
    try:
        value = parse_json(text)
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"not JSON ({error})",
            where=f"{file}{line}",
            expected="one JSON object a line, or an array of them",
        ) from error
    rows = value["data"] if isinstance(value, dict) and isinstance(value.get("data"), list) else value
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        where = f"{file}, object {number}"
        yield where, _object(where, row)


def _first_line(text: str) -> Any:
    """The value of the first line that is not blank; None where it is not JSON by itself."""
    try:
        return parse_json(text.lstrip().partition("\n")[0])
    except ValueError:
        return None


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            "not an object",
            where=where,
            found=json.dumps(row, ensure_ascii=False)[:60],
            expected="a JSON object with audio_filepath and text",
        )
    return row


# --- Delimited text -----------------------------------------------------------------------------------------


def tsv_rows(file: Path, text: str, *, quoted: bool, needed: Needed = ()) -> Iterator[Row]:
    """Rows of fields with tabs between them; where they are not `quoted`, a quotation mark is a letter."""
    return _rows(file, text, "\t", quoted, needed)


def _rows(
    file: Path, text: str, delimiter: str, quoted: bool, needed: Needed, texts: Collection[str] = ()
) -> Iterator[Row]:
    """Each row that is not empty. Fields that are empty are left out, but for those of texts."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=delimiter != "\t",  # `a.wav, "one, two"`
    )
    line = 1  # where the row begins
    try:
        header = next(reader, [])
        _check_header(header, f"{file}:1", needed)
        line = reader.line_num + 1
        for row in reader:
            where = f"{file}:{line}"
            if any(row):  # spreadsheets leave rows of empty fields
                _check_row(where, row, header, delimiter)
                fields = zip(header, row, strict=True)
                yield where, {name: value for name, value in fields if value or name in texts}
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"not CSV ({error})",
            where=f"{file}:{line}",
            expected=f'fields with {_spelt(delimiter)} between them, quoted with double quotes ("...")',
        ) from error


def _check_row(where: str, row: list[str], header: list[str], delimiter: str) -> None:
    """UserError where a row has more or fewer fields than the header, or a quotation mark swallowed lines."""
    for value in row:
        if "\n" in value and delimiter in value:
            raise UserError(
                f"a quoted field that begins here ends {value.count(chr(10))} lines later, and holds "
                "what looks like rows",
                where=where,
                found=value[:60],
                expected="a closing quotation mark on the same line",
                do='correct the quotation marks (inside a text, each is ""), or write the text on one line',
            )
    if len(row) != len(header):
        raise UserError(
            "the row has not the header's number of fields",
            where=where,
            found=len(row),
            expected=f"{len(header)} fields",
            do="write texts without tabs"
            if delimiter == "\t"
            else f'put a text that holds {_spelt(delimiter)} in double quotes ("...")',
        )


def _check_header(header: Sequence[str], where: str, needed: Needed) -> None:
    for names in needed:
        if not set(names) & set(header):
            columns = " ".join(some(header).split())[:_HEADER_SHOWN]  # a quoted name may hold line ends
            raise UserError(
                f"no column {names[0]!r}; the header is {columns or 'empty'}",
                where=where,
                field=names[0],
                expected=f"a header line with {' and '.join(other[0] for other in needed)}",
            )
    if repeated := sorted({field for field in header if field and header.count(field) > 1}):
        raise UserError(
            f"the column {repeated[0]!r} is there twice",
            where=where,
            field=repeated[0],
            expected="each once",
            do="remove one",
        )


def _delimiter(text: str, needed: Needed) -> str:
    """A comma where that gives the needed columns; else what csv.Sniffer finds, or another that does.

    A comma where none does.
    """
    header = next(iter(text[:_HEADER_SNIFFED].splitlines()), "")
    if _gives(header, ",", needed):
        return ","
    try:
        sniffed = csv.Sniffer().sniff(header, _DELIMITERS).delimiter
    except csv.Error:
        sniffed = ","
    return next((found for found in (sniffed, *_DELIMITERS) if _gives(header, found, needed)), ",")


def _gives(header: str, delimiter: str, needed: Needed) -> bool:
    columns = {name.strip(' "') for name in header.split(delimiter)}
    return all(columns & set(names) for names in needed)


def _is_quoted(text: str) -> bool:
    """Whether a TSV's fields are quoted as CSV's are, which pandas does, and Common Voice does not.

    So it is where the header is quoted, or where some field has a doubled quotation mark in quotation marks;
    unless a field that begins with a quotation mark could not be a quoted one.
    """
    header, _, rest = text.partition("\n")
    quoted = header.startswith('"')
    for field in re.findall(r'(?:^|[\t\r])("[^\t\r\n]*)', rest, re.MULTILINE):
        inside = field[1:-1]
        if len(field) < 2 or not field.endswith('"') or '"' in inside.replace('""', ""):
            return False
        quoted = quoted or '""' in inside
    return quoted


def _spelt(delimiter: str) -> str:
    return {",": "commas", "\t": "tabs"}.get(delimiter, repr(delimiter))

"""Mozilla Common Voice: a table a split, and the folder `clips`."""

from __future__ import annotations

from pathlib import Path

from flax_wavlm.data.corpora.audio_files import AudioFiles
from flax_wavlm.data.corpora.folders import folders, read_utf8
from flax_wavlm.data.corpora.tables import tsv_rows
from flax_wavlm.data.corpora.utterance import (
    Skipped,
    Utterance,
    by_id,
    empty_split,
    in_usual_order,
    no_split,
)
from flax_wavlm.errors import UserError, cannot_read, some
from flax_wavlm.files import folder_entries, is_folder

_EXPECTED = "Common Voice's folder of a language, with train.tsv, dev.tsv, test.tsv and clips/"
_NEEDED = ("path", "sentence")  # columns of a split's table; the archive has other tables too


def read_common_voice(path: str | Path, split: str) -> tuple[list[Utterance], list[Skipped]]:
    """`<split>.tsv` and `clips/` of one language, as Common Voice ships them.

    Fields are separated by tabs and never quoted. `path` names a file in `clips` (early releases leave the
    suffix .mp3 out), `sentence` is the text, and `client_id` the speaker. An id is the file's name. The
    corpus may also lie in the only folder of `path`. A clip without a sentence is skipped.

    Raises NoSplit, and UserError with the line of a row that is not whole, a name that leads out of `clips`,
    or a clip that is there twice, and with the missing clips.
    """
    root = _root(Path(path))
    tables = _tables(root)
    if split not in tables:
        raise no_split(root, split, in_usual_order(tables), _EXPECTED)
    files = AudioFiles("path", "the name of a file in clips")
    utterances, skipped, lines = [], [], dict[str, str]()
    for where, row in tsv_rows(tables[split], read_utf8(tables[split]), quoted=False):
        name = _clip_name(where, row.get("path", ""))
        if name in lines:
            raise UserError(f"{name!r} is also at {lines[name]}", where=where, field="path", do="remove one")
        lines[name] = where
        sentence = row.get("sentence", "")
        if sentence.strip():
            audio = files.find(where, name, root / "clips" / name)
            utterances.append(Utterance(name, audio, sentence, row.get("client_id", "")))
        else:
            skipped.append(Skipped(name, f"no text ({where})"))
    files.check()
    if not utterances:
        raise empty_split(str(tables[split]), "one clip a line with path and sentence", skipped)
    return sorted(utterances, key=by_id), sorted(skipped, key=by_id)


def splits_of_common_voice(path: str | Path) -> list[str]:
    """The splits that are there: train, dev, test, validated, other, ..."""
    return in_usual_order(_tables(_root(Path(path))))


def _root(path: Path) -> Path:
    """The folder of one language: `path`, or the only one that is in it or in a release's folder in it."""
    level = [path]
    for _ in range(3):
        if found := [folder for folder in level if is_folder(folder / "clips")]:
            if len(found) > 1:
                names = [folder.name for folder in found]
                raise UserError(
                    f"it holds several languages, {some(names)}", where=path, expected="one", do="choose one"
                )
            return found[0]
        level = [below for folder in level for below in folders(folder)]
    raise UserError("there is no folder clips", where=path, expected=_EXPECTED, do="check data.path")


def _tables(root: Path) -> dict[str, Path]:
    """The tables of splits by their names; others, such as reported.tsv, lack the columns."""
    return {
        file.stem: file
        for file in folder_entries(root)
        if file.suffix == ".tsv" and not file.name.startswith(".") and set(_NEEDED) <= set(_header(file))
    }


def _header(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            line = opened.readline(10_000)
    except OSError as error:
        raise cannot_read(file, error, expected="a table") from error
    return line.decode("utf-8-sig", errors="replace").strip("\r\n").split("\t")


def _clip_name(where: str, name: str) -> str:
    if not name or "/" in name or "\\" in name or name in (".", ".."):
        raise UserError(
            where=where,
            field="path",
            found=name,
            expected="the name of a file in clips",
            do="correct the line",
        )
    return name if "." in name else f"{name}.mp3"

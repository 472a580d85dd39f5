"""TIMIT as the LDC ships it and as it is commonly copied, and NLTK's free sample of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from flax_wavlm.data.corpora.folders import folders, listing, read_utf8
from flax_wavlm.data.corpora.utterance import NoSplit, Skipped, Utterance, empty_split
from flax_wavlm.errors import UserError, some
from flax_wavlm.files import folder_entries
from flax_wavlm.progress import tracked

TRAIN, DEV, TEST, CORE_TEST = "train", "dev", "test", "test-core"

# The 24 speakers of the core test set, two men and a woman of each dialect region: TIMIT's own testset.doc.
_CORE_TEST = """
    mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0
    mbpm0 mklt0 fnlp0 mcmj0 mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0
"""
# The 50 speakers of the test set with whom the field tunes its models, as in Kaldi's recipe: Halberstadt,
# "Heterogeneous Acoustic Measurements and Multiple Classifiers for Speech Recognition", thesis, MIT, 1998.
_DEV = """
    faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0
    fadg0 fdms0 fedw0 mgjf0 mglb0 mrtk0 mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0
    mbns0 mmjr0 mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4 fcal1 mmwh0 fjsj0
    majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1
"""
CORE_TEST_SPEAKERS, DEV_SPEAKERS = frozenset(_CORE_TEST.split()), frozenset(_DEV.split())
# Where a clip has two copies, the LDC's own SPHERE file is read, and not the RIFF copy made from it.
_AUDIO_SUFFIXES = ("wav", "wav.wav")
_SAMPLE_SPEAKER = re.compile(r"(dr[1-8])-([fm][a-z]{3}\d)", re.IGNORECASE)


def splits_of_timit(root: str | Path) -> list[str]:
    """The splits that `read_timit` finds.

    Beside the folders TRAIN and TEST (and DEV, where a corpus in TIMIT's layout has one), these are "dev" and
    "test-core": clips of TEST by the field's 50 and 24 speakers. They are there where TEST has speakers of
    both lists.
    """
    root = Path(root)
    there = [split for split in (TRAIN, DEV, TEST) if _find_split(root, split)]
    if DEV not in there and all(
        _speakers_of_test(root, listed) for listed in (DEV_SPEAKERS, CORE_TEST_SPEAKERS)
    ):
        there += [DEV, CORE_TEST]
    return there


def _speakers_of_test(root: Path, listed: Collection[str]) -> set[str]:
    """The listed speakers that TEST has."""
    tests = _find_split(root, TEST)
    return {
        name
        for test in tests
        for region in folders(test)
        for f in folders(region)
        if (name := f.name.lower()) in listed
    }


def read_timit(root: str | Path, split: str) -> tuple[list[Utterance], list[Skipped]]:
    """TIMIT (LDC93S1) as the LDC ships it and as it is commonly copied.

    `split` is one of `splits_of_timit`; "test" is the whole folder TEST.

    Names may be in upper or lower case. Clips may be NIST SPHERE (.WAV), RIFF copies (.WAV.wav) or both; then
    the SPHERE file is read. `root` holds TRAIN and TEST, or lies up to three folders above them, which are
    named after TIMIT, LDC93S1 or `data`. An id is the clip's path in lower case from the split on,
    "train/dr1/fcjf0/sa1", whatever the layout. The text is the .TXT line without its begin and end samples.
    SA1 and SA2 are kept.

    Raises UserError where the split is missing or empty, or where two copies of one file differ only in case.
    """
    root = Path(root)
    _check_split(split, (TRAIN, DEV, TEST, CORE_TEST))
    split_folders, listed = _find_split(root, split), None
    if not split_folders and split in (DEV, CORE_TEST):
        listed = DEV_SPEAKERS if split == DEV else CORE_TEST_SPEAKERS
        split_folders = _find_split(root, TEST) if _speakers_of_test(root, listed) else []
    if not split_folders:
        raise _no_split(root, split)
    files = (
        (f"{folder.name}/{region.name}/{speaker.name}".lower(), speaker.name.lower(), file)
        for folder in split_folders
        for region in folders(folder)
        for speaker in folders(region)
        if listed is None or speaker.name.lower() in listed
        for file in folder_entries(speaker)
    )
    utterances, skipped = _pair_timit_files(files)
    if not utterances:
        raise empty_split(", ".join(map(str, split_folders)), f"{split.upper()}/DR1/FCJF0/SA1.WAV", skipped)
    return utterances, skipped


def read_timit_sample(
    root: str | Path, split: str, held_out_speakers: Sequence[str]
) -> tuple[list[Utterance], list[Skipped]]:
    """NLTK's sample of TIMIT: `drN-<speaker>/<sentence>.{wav,txt}`, 16 speakers with 10 clips each.

    The sample has no split: "test" is every clip of the held-out speakers ("dr1-mcpm0" or "mcpm0"), "train"
    every other clip. An id is "dr1-mcpm0/sa1". Raises UserError for an unknown speaker or an empty split.
    """
    root = Path(root)
    _check_split(split, (TRAIN, TEST))
    speakers = [folder for folder in folders(root) if _SAMPLE_SPEAKER.fullmatch(folder.name)]
    if not speakers:
        raise _no_sample(root, split)
    wanted = _wanted_speakers([folder.name for folder in speakers], split, held_out_speakers, root)
    files = (
        (folder.name.lower(), _sample_speaker(folder.name), file)
        for folder in speakers
        if _sample_speaker(folder.name) in wanted
        for file in folder_entries(folder)
    )
    utterances, skipped = _pair_timit_files(files)
    if not utterances:
        raise empty_split(str(root), "dr1-mcpm0/sa1.wav", skipped)
    return utterances, skipped


def _no_split(root: Path, split: str) -> UserError:
    if split in (DEV, CORE_TEST):
        return NoSplit(
            f"no speaker of {split!r} in it, nor a folder {split.upper()}; it holds {listing(root)}",
            where=root,
            field="split",
            found=split,
            expected=f"one of {some(splits_of_timit(root))}",
        )
    if any(_SAMPLE_SPEAKER.fullmatch(entry.name) for entry in folder_entries(root)):
        return UserError(
            "holds speakers named drN-<speaker>, so it looks like NLTK's TIMIT sample",
            where=root,
            expected="the whole corpus",
            do="set data.corpus to timit_sample (configs/timit_sample.py), or data.path to TIMIT",
        )
    return UserError(
        f"no {split.upper()} folder in it, nor under a TIMIT or data folder in it; it holds {listing(root)}",
        where=root,
        expected=f"TIMIT's layout, {split.upper()}/DR1/FCJF0/SA1.WAV",
        do="set data.path to the folder that holds TRAIN and TEST",
    )


def _no_sample(root: Path, split: str) -> UserError:
    whole = _find_split(root, split)
    return UserError(
        f"no speaker folder such as dr1-mcpm0; it holds {listing(root)}",
        where=root,
        expected="NLTK's TIMIT sample",
        do="it looks like the whole TIMIT: set data.corpus to timit (configs/timit.py)"
        if whole
        else "set data.path to the sample's own folder, nltk_data/corpora/timit",
    )


def _wanted_speakers(
    folder_names: Sequence[str], split: str, held_out_speakers: Sequence[str], root: Path
) -> set[str]:
    """The sample's speakers that belong to the split; UserError where held-out ones are unknown, or all."""
    names = {_sample_speaker(name): name.lower() for name in folder_names}
    held_out = {_sample_speaker(name) for name in held_out_speakers}
    if unknown := sorted(held_out - names.keys()):
        raise UserError(
            f"data.held_out_speakers names {some(unknown)}, which is not there",
            where=root,
            field="data.held_out_speakers",
            expected=f"speakers among {some(sorted(names.values()))}",
        )
    wanted = held_out if split == "test" else names.keys() - held_out
    if not wanted:
        raise UserError(
            f"data.held_out_speakers names {len(held_out)} of {len(names)} speakers, which leaves none for "
            f"{split!r}",
            where=root,
            field="data.held_out_speakers",
            expected=f"some but not all of {some(sorted(names.values()))}",
        )
    return set(wanted)


def _check_split(split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise NoSplit(field="split", found=split, expected=f"one of {some(known)}, as TIMIT has no other")


def _find_split(root: Path, split: str) -> list[Path]:
    """The folders named `split` nearest to the root; more than one where upper and lower case coexist."""
    level = [root]
    for _ in range(4):
        below = [folder for parent in level for folder in folders(parent)]
        if found := [folder for folder in below if folder.name.lower() == split]:
            return found
        level = [folder for folder in below if re.search(r"timit|ldc93s1|^data$", folder.name.lower())]
    return []


def _sample_speaker(name: str) -> str:
    """ "dr1-mcpm0" and "MCPM0" to "mcpm0"."""
    return name.lower().rpartition("-")[2]


def _pair_timit_files(files: Iterable[tuple[str, str, Path]]) -> tuple[list[Utterance], list[Skipped]]:
    """Pairs audio with its .TXT file, from (id of the folder, speaker, file); other files are passed over."""
    clips: dict[tuple[str, str], dict[str, Path]] = {}  # (id, speaker) -> suffix -> file
    for folder_id, speaker, file in files:
        stem, _, suffix = file.name.lower().partition(".")
        if suffix not in (*_AUDIO_SUFFIXES, "txt"):  # also macOS's ._SA1.WAV, whose suffix is _sa1.wav
            continue
        copies = clips.setdefault((f"{folder_id}/{stem}", speaker), {})
        if suffix in copies:
            raise UserError(
                f"a second copy of one TIMIT file, {copies[suffix]}",
                where=file,
                expected="one",
                do="remove either the upper-case or the lower-case copy",
            )
        copies[suffix] = file

    utterances, skipped = [], []
    for (id, speaker), copies in tracked(sorted(clips.items()), "reading texts", len(clips)):
        audio = next((copies[suffix] for suffix in _AUDIO_SUFFIXES if suffix in copies), None)
        if audio is None:
            skipped.append(Skipped(id, f"no audio file beside {copies['txt']}"))
        elif "txt" not in copies:
            skipped.append(Skipped(id, f"no .TXT file beside {audio}"))
        else:
            try:
                utterances.append(Utterance(id, audio, _timit_sentence(copies["txt"]), speaker))
            except UserError as error:
                skipped.append(Skipped(id, str(error)))
    return utterances, skipped


def _timit_sentence(file: Path) -> str:
    """The sentence of "0 46797 She had your dark suit.", begin and end in samples."""
    text = read_utf8(file)
    fields = text.split(maxsplit=2)
    if len(fields) < 3 or not (fields[0].isdigit() and fields[1].isdigit()):
        raise UserError(
            "not TIMIT's",
            where=file,
            found=text[:60],
            expected="a line 'begin end sentence'",
            do="restore the file",
        )
    return fields[2].strip()

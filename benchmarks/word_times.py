"""When each word was said: our aligner and transformers' pipeline, on speech whose word times are known.

    python benchmarks/word_times.py                             # trains the demo's model first
    python benchmarks/word_times.py --model M --speech CORPUS   # a fine-tuned model, and the corpus it learnt

Three sets of clips: the demo's test sentences; sentences of the same words in any order, 3 to 9 of them, by
the test's voices; and NLTK's sample of TIMIT, where TIMIT_SAMPLE_DIR says where it is. The word times of the
synthetic sets are espeak-ng's, those of the sample's words and phones were made by hand. Errors are absolute
differences, begins and ends together. "Recognised" counts the words of a hypothesis that match the reference.
Where the text is known, the reference itself is aligned. The sample has letters that the demo's model lacks.
So for it a new aligner is fitted to that model's feature encoder, on the sample's other speakers, and the
text is known. A further one is fitted for phones.

The two offsets of the aligner (`flax_wavlm/recognition/aligner.py`) come from none of these clips. They are
measured on German sentences, with an aligner that is fitted to others of them; the table has how far the
constants are from what was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jiwer
import numpy as np
import pairs

from flax_wavlm.data.clips import Clip, usable_clips
from flax_wavlm.data.corpora.espeak import open_espeak
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.sentences import ENGLISH
from flax_wavlm.data.corpora.synthetic import VOICES, Speaker, make_corpus, write_recording
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.text import TextRule
from flax_wavlm.data.tokenizer import CTCTokenizer

if TYPE_CHECKING:
    from flax_wavlm.recognition.recogniser import Recogniser
    from flax_wavlm.recognition.transcript import Transcript

ROOT = Path(__file__).parents[1]
RECOGNISED = {"median": 25.0, "90th percentile": 120.0}  # ms, at most
TEXT_KNOWN = {"median": 20.0, "90th percentile": 100.0}
SAMPLE_HELD_OUT = ("dr1-mcpm0", "dr4-falr0", "dr5-ftlg0", "dr7-madd0")  # as configs/timit_sample.py
SILENCES = ("h#", "pau", "epi")  # in TIMIT's phone files
PER_SPEAKER = 10
WORDS = (3, 9)  # of a sentence in any order


class Spoken(NamedTuple):
    """A word and when it was said, in seconds."""

    word: str
    start: float
    end: float


class Said(NamedTuple):
    """A clip, and what was said in it when."""

    clip: Clip
    words: list[Spoken]


# --- Speech -------------------------------------------------------------------------------------------------


def speak_in_any_order(folder: Path, clips: int, *, seed: int = 0) -> list[Utterance]:
    """Sentences of the demo's words in any order, by the voices of its test."""
    words = sorted({word for slot in ENGLISH.templates[0] for word in slot})
    voices = [(sex, variant) for sex, variants in VOICES["TEST"].items() for variant in variants]
    rng = np.random.default_rng([seed, 1])
    found = []
    with open_espeak() as espeak:
        for number in range(clips):
            if number % PER_SPEAKER == 0:
                who = number // PER_SPEAKER
                sex, variant = voices[who % len(voices)]
                voice, rate, pitch = (
                    f"en-us+{variant}",
                    int(rng.integers(170, 231)),
                    int(rng.integers(35, 66)),
                )
                speaker = Speaker(f"{sex}{who:03d}", voice, rate, pitch)
            said = rng.choice(words, rng.integers(WORDS[0], WORDS[1] + 1))
            sentence = " ".join(said).capitalize() + "."
            path = folder / speaker.name / f"{number}"
            one = np.random.default_rng([seed, number])
            write_recording(path, sentence, speaker, ENGLISH, one, espeak)
            found.append(Utterance(str(number), path.with_suffix(".WAV"), sentence))
    return found


def word_times(audio: Path) -> list[Spoken]:
    """The words of a clip, from the file of them beside it."""
    return _times(audio, ".wrd")


def phone_times(audio: Path) -> list[Spoken]:
    """The phones of a clip of TIMIT, without silences."""
    return [phone for phone in _times(audio, ".phn") if phone.word not in SILENCES]


def _times(audio: Path, suffix: str) -> list[Spoken]:
    times = next(path for name in (suffix.upper(), suffix) if (path := audio.with_suffix(name)).exists())
    lines = (line.split() for line in times.read_text(encoding="utf-8").splitlines())
    return [
        Spoken(word.lower(), int(begin) / SAMPLE_RATE, int(end) / SAMPLE_RATE) for begin, end, word in lines
    ]


def with_times(
    utterances: Sequence[Utterance],
    tokenizer: CTCTokenizer,
    frame_count: Callable,
    read: Callable[[Path], list[Spoken]] = word_times,
) -> list[Said]:
    """The clips that can be used, with the times that `read` finds beside their audio."""
    by_id = {utterance.id: utterance for utterance in utterances}
    clips, _ = usable_clips(utterances, tokenizer, frame_count=frame_count, drop_infeasible=False)
    found = []
    for clip in clips:
        audio = by_id[clip.id].audio
        assert isinstance(audio, Path)
        found.append(Said(clip, read(audio)))
    return found


# --- Theirs -------------------------------------------------------------------------------------------------


def transformers_words(folder: Path, clips: Sequence[Clip]) -> list[list[Spoken]]:
    """What transformers' pipeline says of each clip."""
    import transformers

    from flax_wavlm.data.preprocessor import full_scale

    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    found = []
    for clip in clips:
        chunks = pipeline(full_scale(clip.samples), return_timestamps="word").get("chunks", [])
        found.append([Spoken(chunk["text"], *chunk["timestamp"]) for chunk in chunks])
    return found


# --- Errors -------------------------------------------------------------------------------------------------


def differences(said: Sequence[Said], found: Sequence[Sequence[Spoken]]) -> np.ndarray:
    """Seconds [W, 2] by which begins and ends of the matching words are too late."""
    rows = []
    for (_, words), heard in zip(said, found, strict=True):
        if not heard:
            continue
        aligned = jiwer.process_words(
            " ".join(word.word for word in words), " ".join(word.word for word in heard)
        )
        for chunk in aligned.alignments[0]:
            if chunk.type == "equal":
                count = chunk.ref_end_idx - chunk.ref_start_idx
                for step in range(count):
                    true, ours = words[chunk.ref_start_idx + step], heard[chunk.hyp_start_idx + step]
                    rows.append((ours.start - true.start, ours.end - true.end))
    return np.array(rows).reshape(-1, 2)


def figures(late: np.ndarray) -> dict[str, float]:
    """Median and 90th percentile of the absolute errors of begins and ends together, in ms."""
    errors = np.abs(late).ravel() * 1000
    return {"median": float(np.median(errors)), "90th percentile": float(np.percentile(errors, 90))}


def rows_of(
    name: str,
    ours: np.ndarray,
    theirs: np.ndarray | None,
    limits: dict[str, float] | None,
    total: int,
) -> list[dict]:
    """The table's lines for one set of clips and one way to come by the text; none where no word matches."""
    if not len(ours):
        return []
    other = figures(theirs) if theirs is not None and len(theirs) else {}
    begins, ends = figures(ours[:, 0]), figures(ours[:, 1])
    return [
        pairs.row(
            f"{name}: {which}",
            "ms",
            value,
            theirs=other.get(which),
            at_most=limits[which] if limits else None,
            begins=begins[which],
            ends=ends[which],
            words=len(ours),
            words_theirs=None if theirs is None else len(theirs),
            words_said=total,
        )
        for which, value in figures(ours).items()
    ]


def measure(name: str, said: Sequence[Said], folder: Path, *, targets: bool) -> list[dict]:
    """One synthetic set, recognised and with the text known, both sides in one call."""
    from flax_wavlm.data.corpora.utterance import Samples
    from flax_wavlm.recognition.align import align_utterances
    from flax_wavlm.recognition.recogniser import Recogniser

    recogniser, clips = Recogniser.from_pretrained(folder), [one.clip for one in said]
    utterances = [
        Utterance(clip.id, functools.partial(Samples, clip.samples, SAMPLE_RATE), clip.text) for clip in clips
    ]

    def aligned(model: Recogniser) -> list[list[Spoken]]:
        return [spoken(found) for found in align_utterances(model, utterances, name=name)]

    recognised = [spoken(found) for found in recogniser.transcribe([clip.samples for clip in clips])]
    known, peaks = aligned(recogniser), aligned(dataclasses.replace(recogniser, aligner=None))
    theirs = differences(said, transformers_words(folder, clips))
    total = sum(len(words) for _, words in said)
    limits = (RECOGNISED, TEXT_KNOWN) if targets else (None, None)
    return [
        *rows_of(f"{name}, recognised", differences(said, recognised), theirs, limits[0], total),
        *rows_of(f"{name}, text known", differences(said, known), None, limits[1], total),
        *rows_of(f"{name}, text known, without the aligner", differences(said, peaks), None, None, total),
    ]


def spoken(transcript: Transcript) -> list[Spoken]:
    """The words of a transcript; none where it has an error."""
    return [Spoken(word.word, word.start, word.end) for word in transcript.words]


# --- Other letters, so another aligner: the sample of TIMIT, and the offsets --------------------------------


class OtherLetters:
    """An aligner for letters that the model does not have, on the model's feature encoder."""

    def __init__(self, model: Recogniser, tokenizer: CTCTokenizer, aligner: dict):
        self.model, self.tokenizer, self.aligner = model, tokenizer, aligner
        self.config, self.params = model.config, model.params
        self.frame_seconds = math.prod(self.config.conv_stride) / SAMPLE_RATE

    def hear(self, clips: Sequence[Clip]) -> Iterator[np.ndarray]:
        """The aligner's log-probabilities [T, V] of each clip, in order."""
        import jax

        from flax_wavlm.data.preprocessor import input_values
        from flax_wavlm.models.heads import structure
        from flax_wavlm.models.parameters import merge
        from flax_wavlm.recognition.aligner import aligner_log_probs
        from flax_wavlm.recognition.forward import ClipBatches

        graphdef, _ = structure(dataclasses.replace(self.config, masked_group_norm=True))

        @jax.jit
        def forward(params, aligner, batch):
            model, lengths = merge(graphdef, params), batch["lengths"]
            features = model.features(input_values(batch), lengths)
            return aligner_log_probs(aligner, features, self.config.frame_count(lengths))

        batches = ClipBatches(clips, 8, 3, do_normalize=self.model.preprocessor.do_normalize)
        found: dict[int, np.ndarray] = {}
        for batch in batches:
            inputs = {name: batch[name] for name in ("samples", "mean", "scale", "lengths")}
            log_probs = np.asarray(forward(self.params, self.aligner, inputs))
            for row in np.flatnonzero(batch["valid"]):
                frames = self.config.frame_count(int(batch["lengths"][row]))
                found[int(batch["clip"][row])] = log_probs[row, :frames]
        yield from (found[i] for i in range(len(clips)))

    def frames(self, log_probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The text with blanks around it, and the frames [L, 2] of its labels by the best path."""
        from flax_wavlm.recognition.aligner import text_to_align
        from flax_wavlm.recognition.alignment import align_labels

        text = text_to_align(labels, self.tokenizer.delimiter_id)
        return text, align_labels(log_probs, text, self.tokenizer.blank_id).frames

    def words(self, log_probs: np.ndarray, labels: np.ndarray) -> list[Spoken]:
        """When the words of a text were said."""
        from flax_wavlm.recognition.aligner import label_times
        from flax_wavlm.recognition.transcript import TimedLabels, spell

        if not len(labels):
            return []
        text, frames = self.frames(log_probs, labels)
        times = label_times(frames, text, self.tokenizer.delimiter_id, self.frame_seconds)
        some = np.ones(len(text))
        spelled = spell(self.tokenizer, TimedLabels(text, times, some, some.astype(int)))
        return [Spoken(word, start, end) for word, start, end, _ in spelled.words]


def fitted(
    folder: Path, utterances: Sequence[Utterance], *, steps: int, unit: str = "character"
) -> OtherLetters:
    """The model of a folder with an aligner for the letters of these clips, which it is fitted on.

    `unit`: "token" where a text is symbols with blanks between them.
    """
    from flax_wavlm.recognition.recogniser import Recogniser
    from flax_wavlm.training.aligner import Listener, fit_aligner

    rule = TextRule(unit=unit)
    tokenizer = CTCTokenizer.from_texts([rule(utterance.text) for utterance in utterances], rule)
    model = Recogniser.from_pretrained(folder)
    config = model.config.replace(vocab_size=tokenizer.size)
    clips, _ = usable_clips(utterances, tokenizer, frame_count=config.frame_count)
    listener = Listener(
        config,
        model.params,
        tokenizer.blank_id,
        tokenizer.delimiter_id,
        model.preprocessor.do_normalize,
    )
    aligner, _ = fit_aligner(listener, clips, steps=steps)
    return OtherLetters(model, tokenizer, aligner)


def measure_sample(sample: Path, folder: Path, *, steps: int) -> list[dict]:
    """The sample of TIMIT, with the words known, and with the phones known."""
    train, test = (
        load_corpus("timit_sample", sample, split, held_out_speakers=SAMPLE_HELD_OUT)[0]
        for split in ("train", "test")
    )
    rows = _measure_sample(train, test, folder, "text", word_times, steps=steps, unit="character")
    train, test = ([in_phones(utterance) for utterance in part] for part in (train, test))
    return rows + _measure_sample(train, test, folder, "phones", phone_times, steps=steps, unit="token")


def in_phones(utterance: Utterance) -> Utterance:
    """The utterance, with its phones as its text."""
    assert isinstance(utterance.audio, Path)
    text = " ".join(phone.word for phone in phone_times(utterance.audio))
    return dataclasses.replace(utterance, text=text)


def _measure_sample(
    train: Sequence[Utterance],
    test: Sequence[Utterance],
    folder: Path,
    what: str,
    read: Callable[[Path], list[Spoken]],
    *,
    steps: int,
    unit: str,
) -> list[dict]:
    ours = fitted(folder, train, steps=steps, unit=unit)
    said = with_times(test, ours.tokenizer, ours.config.frame_count, read)
    clips = [one.clip for one in said]
    known = [ours.words(heard, clip.labels) for heard, clip in zip(ours.hear(clips), clips, strict=True)]
    total = sum(len(words) for _, words in said)
    name = f"TIMIT's sample, {len(clips)} clips, {what} known"
    return rows_of(name, differences(said, known), None, None, total)


def measure_offsets(folder: Path, scratch: Path, *, clips: int, steps: int) -> list[dict]:
    """What makes up for the median lateness of the aligner's frames, on German sentences."""
    from flax_wavlm.recognition.aligner import END_OFFSET, START_OFFSET

    corpus = make_corpus(scratch, language="de", seed=5, train_clips=clips, test_clips=1)
    utterances, _ = load_corpus("synthetic", corpus, "train")
    held_out = utterances[:: max(len(utterances) // 200, 2)]
    ids = {utterance.id for utterance in held_out}
    ours = fitted(folder, [one for one in utterances if one.id not in ids], steps=steps)
    said = with_times(held_out, ours.tokenizer, ours.config.frame_count)
    heard = ours.hear([one.clip for one in said])
    late = []
    for (clip, words), one in zip(said, heard, strict=True):
        text, frames = ours.frames(one, clip.labels)
        blanks = np.flatnonzero(text == ours.tokenizer.delimiter_id)
        times = np.stack([frames[blanks[:-1] + 1, 0], frames[blanks[1:] - 1, 1]], axis=1) * ours.frame_seconds
        late.append(times - [[word.start, word.end] for word in words])
    offsets = -np.median(np.concatenate(late), axis=0) * 1000
    return [
        pairs.row(
            f"offset of {name}, from the one measured on German",
            "ms",
            abs(1000 * constant - float(offset)),
            measured=float(offset),
            constant=1000 * constant,
            clips=len(said),
        )
        for name, constant, offset in zip(
            ("begins", "ends"), (START_OFFSET, END_OFFSET), offsets, strict=True
        )
    ]


# --- The command --------------------------------------------------------------------------------------------


def train_demo(folder: Path, *, rehearse: bool) -> tuple[Path, Path]:
    """Runs the demo; its exported model and its speech."""
    tiny = {
        "train.steps": 2,
        "train.aligner": False,
        "optim.warmup_steps": 1,
        "data.synthetic.train_clips": 40,
        "data.synthetic.dev_clips": 10,
        "data.synthetic.test_clips": 10,
    }
    settings = tiny if rehearse else {}
    command = [
        sys.executable,
        str(ROOT / "scripts" / "train_flax.py"),
        f"--config={ROOT / 'configs' / 'demo.py'}",
        f"--workdir={folder / 'run'}",
        f"--config.data.path={folder / 'speech'}",
        *(f"--config.{field}={value}" for field, value in settings.items()),
    ]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return folder / "run" / "export", folder / "speech"


def with_aligner(model: Path, speech: Path, scratch: Path, *, steps: int) -> Path:
    """The model's folder where it has an aligner; else a copy that gets one from its training clips."""
    from flax_wavlm.recognition.aligner import ALIGNER_FILE
    from flax_wavlm.training.aligner import fit_folder

    if (model / ALIGNER_FILE).exists():
        return model
    folder = Path(shutil.copytree(model, scratch / "model"))
    fit_folder(folder, load_corpus("synthetic", speech, "train")[0], steps=steps)
    return folder


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--model", type=Path, help="a folder; default: the demo is trained, 5 minutes")
    parser.add_argument("--speech", type=Path, help="the corpus of that model, in the layout of the demo's")
    parser.add_argument("--clips", type=int, default=100, help="sentences in any order")
    return parser


def main() -> None:
    options, ran = pairs.parse(command_line())
    pairs.prepare(options)
    from flax_wavlm.recognition.recogniser import Recogniser
    from flax_wavlm.training.aligner import STEPS

    full = not options.rehearse
    clips, steps = (options.clips, STEPS) if full else (10, 3)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        model, speech = options.model, options.speech
        if model is None:
            model, speech = train_demo(scratch, rehearse=not full)
        model = with_aligner(model, speech, scratch, steps=steps)
        rows = measure_offsets(model, scratch / "german", clips=2000 if full else 40, steps=steps)
        tokenizer = CTCTokenizer.from_pretrained(model)
        frame_count = Recogniser.from_pretrained(model).config.frame_count
        sets = {
            "demo's sentences": load_corpus("synthetic", speech, "test")[0],
            "words in any order": speak_in_any_order(scratch / "any order", clips),
        }
        for name, utterances in sets.items():
            said = with_times(utterances, tokenizer, frame_count)
            rows += measure(name, said, model, targets=full)
        if sample := os.environ.get("TIMIT_SAMPLE_DIR"):
            rows += measure_sample(Path(sample), model, steps=steps)
    pairs.write(options, ran, options.device, rows)


if __name__ == "__main__":
    main()

"""Beam search with a language model: audio a second, hypotheses and word error rate, against other decoders.

    python scripts/train_flax.py --config configs/demo.py
    python benchmarks/beam_search.py --model runs/demo/export --early runs/early/export --lm lm.arpa \\
        --speech runs/synthetic-speech --theirs pyctcdecode=PYTHON flashlight=PYTHON

The models hear the test clips once; then decoding alone is timed, on as many threads (theirs: processes) as
there are cores. `--early` is a checkpoint that makes more errors: its outputs leave more to the search.
`--theirs` names a decoder of `beam_search_side.py` and the Python of the environment that it is installed in.

All decoders have the same language model, weights, beam and thresholds, as far as they know them. Their
hypotheses are judged by one definition: the probability of a text is the sum over all label paths that read as
it, computed frame by frame without pruning, plus the weighted language model and the words' bonus. A second of
audio is 50 frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import inference
import numpy as np
import pairs
import workload
from pairs import Worker

from flax_wavlm.language_model.arpa import read_arpa, write_arpa
from flax_wavlm.language_model.model import NGramModel
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables, Table
from flax_wavlm.recognition.beam_search.settings import ALPHA, BETA, BeamSettings

FRAMES_A_SECOND = 50
DEFAULT, UNPRUNED = 100, 20  # targets, times real time
WER_SHARE = 0.7  # target, of greedy's
SAME = 1e-3  # scores that differ by less are equal: outputs are float32
ROWS_OF_WER = {"greedy": "greedy", "alone": "beam without a language model", "ours": "beam with it"}


class Heard(NamedTuple):
    """What a model says of clips."""

    log_probs: list[np.ndarray]  # float32 [T, V] each
    references: list[str]
    greedy: list[str]


class Model:
    """A process that hears."""

    def __init__(self, folder: Path):
        from flax_wavlm.recognition.recogniser import Recogniser

        self.recogniser = Recogniser.from_pretrained(folder)

    def hear(self, speech: Path | None, count: int) -> Heard:
        """Clips of the corpus's test split; without one, stretches of a signal."""
        import jax
        from confidence import BATCH, corpus_clips, random_clips

        from flax_wavlm.recognition.decoding import collapse
        from flax_wavlm.recognition.forward import ClipBatches, forward_pass, jit_over_batches, run_over
        from flax_wavlm.recognition.recogniser import BUCKETS

        model = self.recogniser
        clips = random_clips(model, count) if speech is None else corpus_clips(model, speech, "test")[:count]
        forward = forward_pass(model.task, model.config)

        def outputs(params: Any, batch: Any) -> Any:
            logits, lengths = forward(params, batch)
            return jax.nn.log_softmax(logits.astype("float32")), lengths, batch["clip"], batch["valid"]

        batches = ClipBatches(clips, BATCH, BUCKETS, do_normalize=model.preprocessor.do_normalize)
        found: dict[int, np.ndarray] = {}
        for log_probs, lengths, places, valid in run_over(
            jit_over_batches(outputs, model.mesh), model.params, batches, model.mesh, field="batch_size"
        ):
            for row in np.flatnonzero(valid):
                found[int(places[row])] = np.array(log_probs[row, : lengths[row]])
        heard = [found[i] for i in range(len(clips))]
        blank, tokenizer = model.tokenizer.blank_id, model.tokenizer
        greedy = [tokenizer.decode(collapse(one.argmax(axis=1), blank), collapsed=True) for one in heard]
        return Heard(heard, [clip.text for clip in clips], greedy)


class Ours:
    """A process that decodes on some threads."""

    def __init__(self, folder: Path, lm: Path | None, settings: BeamSettings, heard: Heard, threads: int):
        from flax_wavlm.recognition.beam_search.decoder import BeamDecoder

        self.tokenizer = tokenizer_of(folder)
        self.decoder = BeamDecoder.of(self.tokenizer, None if lm is None else read_arpa(lm), settings)
        self.evidence = [{"log_probs": one} for one in heard.log_probs]
        self.pool = ThreadPoolExecutor(threads)

    def block(self) -> float:
        start = time.perf_counter()
        list(self.pool.map(self.decoder.hypotheses, self.evidence))
        return time.perf_counter() - start

    def texts(self) -> list[list[str]]:
        return [
            [self.tokenizer.decode(one.ids, collapsed=True) for one in found]
            for found in self.pool.map(self.decoder.hypotheses, self.evidence)
        ]

    def ctc_scores(self) -> list[float]:
        """Of each clip's best one, as the search has it."""
        return [found[0].ctc_score or 0.0 for found in map(self.decoder.hypotheses, self.evidence)]

    def live(self) -> float:
        """The mean number of hypotheses after a frame."""
        frames = np.array([len(one["log_probs"]) for one in self.evidence])
        return float(np.average(list(map(self.decoder.live_beams, self.evidence)), weights=frames))


class Theirs:
    """A process of another Python."""

    def __init__(self, name: str, python: str, file: Path, processes: int):
        script = Path(__file__).with_name("beam_search_side.py")
        command = [python, str(script), name, str(file), str(processes)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, command: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(command, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"another decoder's process ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def tokenizer_of(folder: Path) -> Any:
    from flax_wavlm.data.tokenizer import CTCTokenizer
    from flax_wavlm.porting.extras import read_extras

    extras = read_extras(folder)
    return CTCTokenizer.from_pretrained(folder, rule=extras.text, follows=extras.follows_vocabulary)


# --- The definition -----------------------------------------------------------------------------------------


def text_log_prob(log_probs: np.ndarray, words: Sequence[Sequence[int]], blank: int, delimiter: int) -> float:
    """The log-probability of all paths that read as these words, spelt in labels.

    Forward algorithm over states, each of which some labels may stay in. Between words there are blanks, one
    delimiter, then blanks and delimiters in any order; before and behind all words, blanks and delimiters.
    """
    pause = (blank, delimiter)
    emitted: list[tuple[int, ...]] = [pause]
    steps = [(0, 0)]
    ends = [0]  # states that the next letter may follow
    for number, word in enumerate(words):
        if number:
            letter, before, between, after = ends[0], len(emitted), len(emitted) + 1, len(emitted) + 2
            emitted += [(blank,), (delimiter,), pause]
            steps += [(letter, before), (before, before), (letter, between), (before, between)]
            steps += [(between, after), (after, after)]
            ends = [between, after]
        for place, label in enumerate(word):
            state = len(emitted)
            emitted.append((label,))
            steps += [(state, state), *((end, state) for end in ends)]
            ends = [state]
            if place + 1 < len(word):
                emitted.append((blank,))
                steps += [(state, state + 1), (state + 1, state + 1)]
                ends = [state + 1] if word[place + 1] == label else [state, state + 1]
    starts = [0]
    if words:
        emitted.append(pause)
        steps += [(ends[0], len(emitted) - 1), (len(emitted) - 1, len(emitted) - 1)]
        starts, ends = [0, 1], [len(emitted) - 2, len(emitted) - 1]
    goes = np.zeros((len(emitted), len(emitted)))
    goes[tuple(np.transpose(steps))] = 1
    probs = np.exp(log_probs.astype(np.float64))
    said = np.stack([probs[:, list(labels)].sum(axis=1) for labels in emitted], axis=1)
    alpha, total = np.zeros(len(emitted)), 0.0
    alpha[starts] = said[0, starts]
    for row in said[1:]:
        scale = alpha.sum()
        if scale == 0:
            return -math.inf
        total += math.log(scale)
        alpha = (alpha / scale) @ goes * row
    last = alpha[ends].sum()
    return total + math.log(last) if last > 0 else -math.inf


@dataclasses.dataclass(frozen=True)
class Judge:
    """The score of a text by its definition."""

    model: NGramModel
    settings: BeamSettings
    ids: dict[str, int]
    blank: int
    delimiter: int

    def score(self, log_probs: np.ndarray, text: str) -> float:
        words, settings = text.split(), self.settings
        if not all(letter in self.ids for word in words for letter in word):
            return -math.inf
        spelt = [[self.ids[letter] for letter in word] for word in words]
        unknown = sum(word not in self.model.ids for word in words)
        lm = self.model.score(words) + unknown * settings.unknown_offset * math.log(10)
        ctc = text_log_prob(log_probs, spelt, self.blank, self.delimiter)
        return ctc + settings.alpha * lm + settings.beta * len(words)

    def scores(self, heard: Heard, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Of each clip's hypotheses, the best first."""
        return [
            sorted((self.score(log_probs, text) for text in some), reverse=True)
            for log_probs, some in zip(heard.log_probs, texts, strict=True)
        ]


def same_or_better(ours: list[list[float]], theirs: list[list[float]], ranks: int) -> float:
    """The share of ranks, up to `ranks`, at which our hypothesis scores what theirs does, or more."""
    better = [
        rank < len(mine) and mine[rank] >= other[rank] - SAME
        for mine, other in zip(ours, theirs, strict=True)
        for rank in range(min(ranks, len(other)))
    ]
    return float(np.mean(better))


# --- Measuring ----------------------------------------------------------------------------------------------


class Set(NamedTuple):
    """A model's outputs, how they are decoded, and the times real time that are aimed at."""

    name: str
    folder: Path
    settings: BeamSettings
    target: float | None


def word_errors(references: Sequence[str], texts: Sequence[Sequence[str]]) -> float:
    from flax_wavlm.recognition.metrics import error_rates

    return error_rates(references, [" ".join(some[0].split()) if some else "" for some in texts])["wer"]


def measure(options: argparse.Namespace, one: Set, heard: Heard, scratch: Path) -> list[dict[str, Any]]:
    tokenizer, lm = tokenizer_of(one.folder), options.lm
    frames = sum(map(len, heard.log_probs))
    audio = frames / FRAMES_A_SECOND
    details = {
        "clips": len(heard.log_probs),
        "audio_seconds": audio,
        "labels": tokenizer.size,
        "threads": options.cores,
        "settings": {field: str(value) for field, value in dataclasses.asdict(one.settings).items()},
    }
    judge = Judge(
        NGramModel.of(read_arpa(lm)),
        one.settings,
        tokenizer.tokens,
        tokenizer.blank_id,
        tokenizer.delimiter_id,
    )
    job = dataclasses.asdict(one.settings) | {
        "labels": [tokenizer.token(label) for label in range(tokenizer.size)],
        "blank": tokenizer.blank_id,
        "delimiter": tokenizer.delimiter_id,
        "lm": str(lm),
        "words": [word for word in judge.model.words if word not in (BEGIN, END, UNKNOWN)],
    }
    file = scratch / "job.npz"
    np.savez(
        file,
        log_probs=np.concatenate(heard.log_probs),
        lengths=np.array([len(log_probs) for log_probs in heard.log_probs]),
        job=json.dumps(job),
    )
    rows = []
    makers = {
        "ours": lambda: Worker("beam_search:Ours", one.folder, lm, one.settings, heard, options.cores),
        "alone": lambda: Worker("beam_search:Ours", one.folder, None, one.settings, heard, options.cores),
    }
    with pairs.workers(**makers) as [ours, alone]:
        ours("block")
        seconds = min(ours("block") for _ in range(options.blocks))
        found = {"ours": ours("texts"), "alone": alone("texts"), "greedy": [[text] for text in heard.greedy]}
        scores = judge.scores(heard, found["ours"])
        for log_probs, texts, ctc in zip(heard.log_probs, found["ours"], ours("ctc_scores"), strict=True):
            spelt = [[judge.ids[letter] for letter in word] for word in texts[0].split()]
            assert ctc <= text_log_prob(log_probs, spelt, judge.blank, judge.delimiter) + SAME
        rows.append(
            pairs.row(f"{one.name}: speed", "x real time", audio / seconds, at_least=one.target, **details)
        )
        rows.append(pairs.row(f"{one.name}: hypotheses after a frame", "on average", ours("live")))
        for name, python in options.theirs.items():
            theirs = Theirs(name, python, file, options.cores)
            versions = theirs("ready")
            timed = pairs.alternate(lambda: ours("block"), lambda: theirs("block"), options.blocks)  # noqa: B023
            found[name] = theirs("texts")
            theirs.close()
            others = judge.scores(heard, found[name])
            rows.append(
                pairs.row(
                    f"{one.name}: time, vs {name}",
                    "s",
                    timed.ours.median,
                    theirs=timed.theirs.median,
                    ratio=timed.ratio,
                    versions=versions,
                    **details,
                )
            )
            for job_name, ranks in (("best hypothesis", 1), ("each of the best five", 5)):
                rows.append(
                    pairs.row(
                        f"{one.name}: {job_name} scores {name}'s or more",
                        "of all",
                        same_or_better(scores, others, ranks),
                        theirs=same_or_better(others, scores, ranks),
                    )
                )
    errors = {name: word_errors(heard.references, texts) for name, texts in found.items()}
    for name, rate in errors.items():
        rows.append(pairs.row(f"{one.name}: {ROWS_OF_WER.get(name, name)}", "WER", rate, **details))
    return rows


def sets_of(options: argparse.Namespace) -> list[Set]:
    default = BeamSettings(alpha=options.alpha, beta=options.beta)
    unpruned = dataclasses.replace(default, token_threshold=-math.inf)
    full = not options.rehearse
    return [
        Set("demo", options.model, default, DEFAULT if full else None),
        Set("early checkpoint", options.early, default, None),
        Set("early checkpoint, no label pruned", options.early, unpruned, UNPRUNED if full else None),
    ]


def tiny_language_model(path: Path) -> Path:
    """For a rehearsal: a few words, in pairs."""
    words = (UNKNOWN, BEGIN, END, "a", "b", "c", "ab")
    pair_ids = np.array([[1, 3], [3, 4], [4, 5], [5, 2]], np.int32)
    unigrams = Table(np.arange(len(words), dtype=np.int32)[:, None], np.full(7, -0.85), np.full(7, -0.3))
    write_arpa(path, NGramTables(words, (unigrams, Table(pair_ids, np.full(4, -0.2), np.zeros(4)))))
    return path


def of_theirs(text: str) -> tuple[str, str]:
    from beam_search_side import DECODERS

    name, _, python = text.partition("=")
    if name not in DECODERS or not python:
        raise argparse.ArgumentTypeError(f"{text!r} is not DECODER=PYTHON, one of {', '.join(DECODERS)}")
    return name, python


def command_line() -> argparse.ArgumentParser:
    parser = pairs.arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the demo's export; to rehearse, random weights")
    parser.add_argument("--early", type=Path, help="the export of an early checkpoint; default: --model")
    parser.add_argument("--lm", type=Path, help="an ARPA file, of the corpus's training texts")
    parser.add_argument("--speech", type=Path, help="the corpus of the models")
    parser.add_argument("--theirs", type=of_theirs, nargs="*", default=[], metavar="DECODER=PYTHON")
    parser.add_argument("--clips", type=int, default=100, help="the most test clips")
    parser.add_argument("--blocks", type=int, default=3, help="pairs of timings")
    parser.add_argument("--alpha", type=float, default=ALPHA)
    parser.add_argument("--beta", type=float, default=BETA)
    return parser


def main() -> None:
    parser = command_line()
    options, ran = pairs.parse(parser)
    options.theirs = dict(options.theirs)
    if not options.rehearse and not (options.model and options.lm and options.speech):
        parser.error("--model, --lm and --speech are needed")
    pairs.prepare(options)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if options.rehearse:
            options.clips, options.blocks = 4, 1
            options.lm = options.lm or tiny_language_model(scratch / "lm.arpa")
            if options.model is None:
                options.model = scratch / "model"
                Worker("inference:save_model", options.model, workload.settings("tiny")).close()
        options.early = options.early or options.model
        heard: dict[Path, Heard] = {}
        for one in sets_of(options):
            if one.folder not in heard:
                with pairs.workers(model=lambda: Worker("beam_search:Model", one.folder)) as [model]:  # noqa: B023
                    heard[one.folder] = model("hear", options.speech, options.clips)
            rows += measure(options, one, heard[one.folder], scratch)
    with_lm = next(row for row in rows if row["job"] == f"early checkpoint: {ROWS_OF_WER['ours']}")
    greedy = next(row for row in rows if row["job"] == f"early checkpoint: {ROWS_OF_WER['greedy']}")
    share = with_lm["ours"] / max(greedy["ours"], 1e-9)
    target = {} if options.rehearse else {"at_most": WER_SHARE}
    rows.append(pairs.row("early checkpoint: WER with a language model", "of greedy's", share, **target))
    pairs.write(options, ran, options.device, rows)


if __name__ == "__main__":
    main()

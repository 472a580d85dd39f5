"""Beam search with a language model: audio a second, hypotheses and word error rate, against other decoders.

    python scripts/train_flax.py --config configs/demo.py
    python benchmarks/beam_search.py --model runs/demo/export --early runs/early/export --lm lm.arpa \\
        --speech runs/synthetic-speech --theirs pyctcdecode=PYTHON flashlight=PYTHON

The models hear the test clips once; then decoding alone is timed, on as many threads (theirs: processes) as
there are cores. `--early` is a checkpoint that makes more errors: its outputs leave more to the search.
`--theirs` names a decoder of `beam_search_side.py` and the Python of the environment that it is installed in.

All decoders have the same language model, weights, beam and thresholds, as far as they know them. Ours gives
the best hypothesis's times and confidences as well. Hypotheses are judged by one definition: the
log-probability of a text, which is the sum over all label paths that read as it, without pruning, plus
the weighted language model and the words' bonus. A second of audio is 50 frames.
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

import numpy as np
import pairs
import workload
from pairs import Worker

from flax_wavlm.language_model.arpa import read_arpa, write_arpa
from flax_wavlm.language_model.model import NGramModel, advance
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables, Table
from flax_wavlm.recognition.beam_search.settings import ALPHA, BETA, BeamSettings

FRAMES_A_SECOND = 50
DEFAULT, UNPRUNED = 100, 20  # targets, times real time
WER_SHARE = 0.7  # target, of greedy's
BLOCK_SECONDS = 2.0  # at least
SENTENCES, SAME_SCORE = 1000, 1e-4  # of words alone; log10
DEMO = "demo"
SAME = 1e-3  # scores that differ by less are equal: outputs are float32
ROWS_OF_WER = {"greedy": "greedy", "alone": "beam without a language model", "ours": "beam with it"}


class Heard(NamedTuple):
    """What a model says of clips."""

    log_probs: list[np.ndarray]  # float32 [T, V] each
    references: list[str]
    greedy: list[str]


class Ours:
    """A process that hears and then decodes, on some threads."""

    def __init__(self, folder: Path, lm: Path, threads: int):
        from flax_wavlm.recognition.beam_search.decoder import BeamDecoder
        from flax_wavlm.recognition.recogniser import Recogniser

        self.recogniser = Recogniser.from_pretrained(folder)
        self.tokenizer = self.recogniser.tokenizer
        self.decoders = {
            with_lm: BeamDecoder.of(self.tokenizer, read_arpa(lm) if with_lm else None)
            for with_lm in (True, False)
        }
        self.decoder = self.decoders[True]
        self.pool = ThreadPoolExecutor(threads)

    def hear(self, speech: Path | None, count: int) -> Heard:
        """Clips of the corpus's test split; without one, stretches of a signal."""
        import jax
        from confidence import BATCH, corpus_clips, random_clips

        from flax_wavlm.recognition.decoding import collapse
        from flax_wavlm.recognition.forward import ClipBatches, forward_pass, jit_over_batches, run_over
        from flax_wavlm.recognition.recogniser import BUCKETS

        model, tokenizer = self.recogniser, self.tokenizer
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
        heard, blank = [found[i] for i in range(len(clips))], tokenizer.blank_id
        if speech is None:  # random weights say <s> and the like, which no text has
            for log_probs in heard:
                log_probs[:, sorted(tokenizer.special_ids - {blank})] = -30.0
        self.evidence = [{"log_probs": one} for one in heard]
        greedy = [tokenizer.decode(collapse(one.argmax(axis=1), blank), collapsed=True) for one in heard]
        return Heard(heard, [clip.text for clip in clips], greedy)

    def labels(self) -> list[str]:
        return [self.tokenizer.token(label) for label in range(self.tokenizer.size)]

    def blank_and_delimiter(self) -> tuple[int, int]:
        return self.tokenizer.blank_id, self.tokenizer.delimiter_id

    def use(self, settings: BeamSettings, *, with_lm: bool = True) -> None:
        """From now on."""
        self.decoder = self.decoders[with_lm].with_settings(settings)

    def block(self, passes: int = 1) -> float:
        """The seconds of a pass over all clips, from several."""
        start = time.perf_counter()
        for _ in range(passes):
            list(self.pool.map(self.decoder.hypotheses, self.evidence))
        return (time.perf_counter() - start) / passes

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


class Way(NamedTuple):
    """How a model's outputs are decoded, and the times real time that are aimed at."""

    name: str
    settings: BeamSettings
    target: float | None
    alone: bool = False  # others are not measured


def word_errors(references: Sequence[str], texts: Sequence[Sequence[str]]) -> float:
    from flax_wavlm.recognition.metrics import error_rates

    return error_rates(references, [" ".join(some[0].split()) if some else "" for some in texts])["wer"]


def measure(
    options: argparse.Namespace, ways: Sequence[Way], folder: Path, scratch: Path
) -> list[dict[str, Any]]:
    rows = []
    with pairs.workers(ours=lambda: Worker("beam_search:Ours", folder, options.lm, options.cores)) as [ours]:
        heard: Heard = ours("hear", options.speech, options.clips)
        for way in ways:
            rows += measure_way(options, way, ours, heard, scratch)
    return rows


def measure_way(
    options: argparse.Namespace, way: Way, ours: Worker, heard: Heard, scratch: Path
) -> list[dict[str, Any]]:
    blank, delimiter = ours("blank_and_delimiter")
    labels = ours("labels")
    ids = {label: place for place, label in enumerate(labels)}
    judge = Judge(NGramModel.of(read_arpa(options.lm)), way.settings, ids, blank, delimiter)
    audio = sum(map(len, heard.log_probs)) / FRAMES_A_SECOND
    details = {
        "clips": len(heard.log_probs),
        "audio_seconds": audio,
        "labels": len(labels),
        "threads": options.cores,
        "settings": {field: str(value) for field, value in dataclasses.asdict(way.settings).items()},
    }
    ours("use", way.settings, with_lm=False)
    found = {"greedy": [[text] for text in heard.greedy], "alone": ours("texts")}
    ours("use", way.settings)
    found["ours"] = ours("texts")
    passes = passes_of(ours("block"), options)
    seconds = pairs.Spread.of([ours("block", passes) for _ in range(options.blocks)]).median
    check(heard, found["ours"], ours("ctc_scores"), judge)
    rows = [
        pairs.row(f"{way.name}: speed", "x real time", audio / seconds, at_least=way.target, **details),
        pairs.row(f"{way.name}: hypotheses after a frame", "on average", ours("live")),
    ]
    scores = judge.scores(heard, found["ours"])
    file = job_file(scratch / "job.npz", options.lm, heard, labels, judge)
    for name, python in {} if way.alone else options.theirs.items():
        theirs = Theirs(name, python, file, options.cores)
        versions = theirs("ready")
        block = f"block {passes_of(theirs('block 1'), options)}"
        # Both functions are called before the loop goes on.
        timed = pairs.alternate(lambda: ours("block", passes), lambda: theirs(block), options.blocks)  # noqa: B023
        found[name] = theirs("texts")
        rows += against(f"{way.name}: ", name, timed, scores, judge.scores(heard, found[name]))
        rows[-1]["versions"] = versions
        if way.name == DEMO:
            rows.append(against_kenlm(judge.model, theirs("scores"), name))
        theirs.close()
    for name, texts in found.items():
        rate = word_errors(heard.references, texts)
        rows.append(pairs.row(f"{way.name}: {ROWS_OF_WER.get(name, name)}", "WER", rate, **details))
    return rows


def passes_of(seconds: float, options: argparse.Namespace) -> int:
    """How many passes make a block that is long enough to be timed."""
    return 1 if options.rehearse else math.ceil(BLOCK_SECONDS / seconds)


def against(
    begin: str, name: str, timed: pairs.Pairs, scores: list[list[float]], others: list[list[float]]
) -> list[dict[str, Any]]:
    """Rows of the time and the quality of the hypotheses."""
    rows = [
        pairs.row(
            f"{begin}{job} scores at least as well, vs {name}",
            "of all",
            same_or_better(scores, others, ranks),
            theirs=same_or_better(others, scores, ranks),
        )
        for job, ranks in (("the best hypothesis", 1), ("each of the best five", 5))
    ]
    ours, theirs = timed.ours.median, timed.theirs.median
    return [*rows, pairs.row(f"{begin}time, vs {name}", "s", ours, theirs=theirs, ratio=timed.ratio)]


def job_file(path: Path, lm: Path, heard: Heard, labels: list[str], judge: Judge) -> Path:
    """What `beam_search_side.py` reads."""
    job = dataclasses.asdict(judge.settings) | {
        "labels": labels,
        "blank": judge.blank,
        "delimiter": judge.delimiter,
        "lm": str(lm),
        "words": known_words(judge.model),
        "sentences": sentences(judge.model),
    }
    lengths = np.array([len(log_probs) for log_probs in heard.log_probs])
    np.savez(path, log_probs=np.concatenate(heard.log_probs), lengths=lengths, job=json.dumps(job))
    return path


def known_words(model: NGramModel) -> list[str]:
    return [word for word in model.words if word not in (BEGIN, END, UNKNOWN)]


def sentences(model: NGramModel) -> list[list[str]]:
    """Random ones of the model's words, and of one that it does not know."""
    rng = np.random.default_rng(0)
    words = [*known_words(model), "zzzz"]
    return [[words[i] for i in rng.integers(len(words), size=rng.integers(1, 12))] for _ in range(SENTENCES)]


def against_kenlm(model: NGramModel, theirs: list[list[float]], name: str) -> dict[str, Any]:
    """A row of how far our reading of the language model is from KenLM's, word by word."""
    ours = []
    for words in sentences(model):
        state = model.begin
        for word in [*words, END]:
            log_prob, state = advance(model.automaton, state, model.ids.get(word, model.ids[UNKNOWN]))
            ours.append(log_prob / math.log(10))
    difference = float(np.abs(np.array(ours) - np.concatenate(theirs)).max())
    job = f"the language model's scores of {len(ours)} words, largest difference from KenLM's (by {name})"
    return pairs.row(job, "log10", difference, at_most=SAME_SCORE)


def check(heard: Heard, texts: Sequence[Sequence[str]], ctc: Sequence[float], judge: Judge) -> None:
    """No sum over some paths is more than the sum over all."""
    for log_probs, some, found in zip(heard.log_probs, texts, ctc, strict=True):
        spelt = [[judge.ids[letter] for letter in word] for word in some[0].split()]
        assert found <= text_log_prob(log_probs, spelt, judge.blank, judge.delimiter) + SAME


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
    full = not options.rehearse
    default = BeamSettings(alpha=options.alpha, beta=options.beta)
    unpruned = dataclasses.replace(default, token_threshold=-math.inf)
    every = dataclasses.replace(default, beam_threshold=math.inf)
    whole = dataclasses.replace(unpruned, beam_threshold=math.inf)
    demo = [Way(DEMO, default, DEFAULT if full else None)]
    early = [
        Way("early checkpoint", default, None),
        Way("early checkpoint, no label pruned", unpruned, UNPRUNED if full else None),
        # Texts are dropped for words in progress, which each decoder reckons in its own way. Without that,
        # the searches alone are compared.
        Way("early checkpoint, as many texts as the beam holds", every, None),
        Way("early checkpoint, nothing pruned", whole, None, alone=True),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if not full:
            options.clips, options.blocks = 2, 1
            options.lm = options.lm or tiny_language_model(scratch / "lm.arpa")
            options.model = options.model or scratch / "model"
        if options.model == scratch / "model":
            Worker("inference:save_model", options.model, workload.settings("tiny")).close()
        if options.early is None:
            rows = measure(options, [*demo, *early], options.model, scratch)
        else:
            rows = measure(options, demo, options.model, scratch)
            rows += measure(options, early, options.early, scratch)
    with_lm = next(row for row in rows if row["job"] == f"early checkpoint: {ROWS_OF_WER['ours']}")
    greedy = next(row for row in rows if row["job"] == f"early checkpoint: {ROWS_OF_WER['greedy']}")
    share = with_lm["ours"] / max(greedy["ours"], 1e-9)
    target = {"at_most": WER_SHARE} if full else {}
    rows.append(pairs.row("early checkpoint: WER with a language model", "of greedy's", share, **target))
    pairs.write(options, ran, options.device, rows)


if __name__ == "__main__":
    main()

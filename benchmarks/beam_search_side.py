"""pyctcdecode and flashlight for `beam_search.py`, in a Python of their own. They need no package of ours.

    python -m venv theirs
    theirs/bin/pip install kenlm==0.3.0 pyctcdecode==0.5.0 "numpy==1.26.*"   # or kenlm flashlight-text numpy

The process reads commands from its standard input, a line each, and answers each with a line of JSON:

    ready     the versions
    block N   the seconds of a pass over all clips, from N passes
    texts     the texts of each clip's best hypotheses
    scores    KenLM's log10 probability of each word of the job's sentences, and of their ends
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Decode = Callable[[np.ndarray], list[str]]
decode: Decode  # of the processes that share the clips
clips: list[np.ndarray]


def by_pyctcdecode(job: dict[str, Any]) -> Decode:
    """The same score, thresholds and beam as ours."""
    from pyctcdecode import build_ctcdecoder

    labels = list(job["labels"])
    labels[job["blank"]], labels[job["delimiter"]] = "", " "
    decoder = build_ctcdecoder(
        labels,
        job["lm"],
        job["words"],
        alpha=job["alpha"],
        beta=job["beta"],
        unk_score_offset=job["unknown_offset"],
        lm_score_boundary=True,
    )

    def decoded(log_probs: np.ndarray) -> list[str]:
        beams = decoder.decode_beams(
            log_probs,
            beam_width=job["beam"],
            beam_prune_logp=max(-job["beam_threshold"], -1e9),
            token_min_logp=max(job["token_threshold"], -1e9),
        )
        return [beam.text if hasattr(beam, "text") else beam[0] for beam in beams[: job["alternatives"]]]

    return decoded


def by_flashlight(job: dict[str, Any]) -> Decode:
    """Its decoder with a lexicon, as torchaudio has it: words that the model lacks cannot be said.

    It knows no least probability of a label. Words end in a delimiter, so one more frame, a delimiter, is put
    at the end.
    """
    from flashlight.lib.text.decoder import (
        CriterionType,
        LexiconDecoder,
        LexiconDecoderOptions,
        SmearingMode,
        Trie,
    )
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    ids = {label: place for place, label in enumerate(job["labels"])}
    spelt = [word for word in job["words"] if all(letter in ids for letter in word)]
    dictionary = Dictionary([*spelt, "<unk>"])
    lm = KenLM(job["lm"], dictionary)
    trie, start = Trie(len(ids), job["delimiter"]), lm.start(False)
    for word in spelt:
        place = dictionary.get_index(word)
        _, score = lm.score(start, place)
        trie.insert([*(ids[letter] for letter in word), job["delimiter"]], place, score)
    trie.smear(SmearingMode.MAX)
    options = LexiconDecoderOptions(
        beam_size=job["beam"],
        beam_size_token=len(ids),
        beam_threshold=min(job["beam_threshold"], 1e9),
        lm_weight=job["alpha"] * math.log(10),
        word_score=job["beta"],
        unk_score=-math.inf,
        sil_score=0.0,
        log_add=True,
        criterion_type=CriterionType.CTC,
    )
    unknown = dictionary.get_index("<unk>")
    decoder = LexiconDecoder(options, trie, lm, job["delimiter"], job["blank"], unknown, [], False)

    def decoded(log_probs: np.ndarray) -> list[str]:
        last = np.full((1, len(ids)), -30.0, np.float32)
        last[0, job["delimiter"]] = 0.0
        padded = np.ascontiguousarray(np.concatenate([log_probs, last]), np.float32)
        texts = [
            " ".join(dictionary.get_entry(place) for place in found.words if place >= 0)
            for found in decoder.decode(padded.ctypes.data, *padded.shape)
        ]
        return list(dict.fromkeys(texts))[: job["alternatives"]]

    return decoded


DECODERS = {"pyctcdecode": by_pyctcdecode, "flashlight": by_flashlight}
PACKAGES = {
    "pyctcdecode": ("pyctcdecode", "kenlm", "numpy"),
    "flashlight": ("flashlight-text", "kenlm", "numpy"),
}


def kenlm_scores(job: dict[str, Any]) -> list[list[float]]:
    import kenlm

    model = kenlm.Model(job["lm"])
    return [[found[0] for found in model.full_scores(" ".join(words))] for words in job["sentences"]]


def decode_clip(place: int) -> list[str]:
    return decode(clips[place])


def main(name: str, file: str, processes: int) -> None:
    global decode, clips
    arrays = np.load(file)
    job = json.loads(str(arrays["job"]))
    clips = np.split(arrays["log_probs"], np.cumsum(arrays["lengths"])[:-1])
    answers, sys.stdout = sys.stdout, sys.stderr
    decode = DECODERS[name](job)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for line in sys.stdin:
            command, _, passes = line.strip().partition(" ")
            answer: Any = {package: importlib.metadata.version(package) for package in PACKAGES[name]}
            if command == "texts":
                answer = pool.map(decode_clip, range(len(clips)), chunksize=1)
            elif command == "scores":
                answer = kenlm_scores(job)
            elif command == "block":
                start = time.perf_counter()
                for _ in range(int(passes)):
                    pool.map(decode_clip, range(len(clips)), chunksize=1)
                answer = (time.perf_counter() - start) / int(passes)
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

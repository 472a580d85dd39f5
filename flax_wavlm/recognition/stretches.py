"""What a decoder finds in a stretch of speech, and the transcript of a recording made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.recognition.aligner import ALIGNER, aligned_times
from flax_wavlm.recognition.alternatives import alternatives
from flax_wavlm.recognition.decoding import Decoder, Hypothesis
from flax_wavlm.recognition.recordings import Ended, Evidence, Source
from flax_wavlm.recognition.transcript import TimedLabels, Transcript, in_sequence, spell


class Decoded(NamedTuple):
    """What was said in a stretch of speech."""

    labels: TimedLabels  # of the best hypothesis
    hypotheses: list[Hypothesis]


@dataclass(frozen=True)
class StretchDecoder:
    """Decodes stretches; threads may share it."""

    decoder: Decoder
    tokenizer: CTCTokenizer
    frame_seconds: float  # from one frame to the next

    def __call__(self, first: int, evidence: Evidence) -> Decoded:
        """What was said in a stretch that begins with the recording's frame `first`, and when.

        Where there is an aligner, its log-probabilities are in the evidence, and it says when.
        """
        found = self.decoder.hypotheses(evidence)
        best = found[0]
        times = best.frames * self.frame_seconds
        if ALIGNER in evidence and len(best.ids):
            blank, delimiter = self.tokenizer.blank_id, self.tokenizer.delimiter_id
            times = aligned_times(best.ids, evidence[ALIGNER], blank, delimiter, self.frame_seconds)
        weights = best.frames[:, 1] - best.frames[:, 0]
        times = first * self.frame_seconds + times
        return Decoded(TimedLabels(best.ids, times, best.confidences, weights), found)


def transcript_of(
    tokenizer: CTCTokenizer, source: Source, stretches: Sequence[Decoded], ended: Ended, most: int
) -> Transcript:
    """The transcript of a recording.

    Args:
        stretches: in the order of time.
        ended: its length.
        most: of the alternatives; 0: it has none.
    """
    said = spell(tokenizer, in_sequence(tokenizer, [stretch.labels for stretch in stretches]))
    others = alternatives(tokenizer, [stretch.hypotheses for stretch in stretches], most) if most else ()
    return Transcript(source.name, duration=ended.seconds, alternatives=others, **said._asdict())

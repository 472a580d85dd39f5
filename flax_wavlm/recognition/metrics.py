"""Error rates of a whole test set, in the two ways that published figures were computed."""

from collections.abc import Sequence

import jiwer
import numpy as np

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Word and character error rate: {"wer": ..., "cer": ...}.

    All clips' edits over all references' words or characters (spaces count), so a long clip weighs more
    than a short one. May exceed 1.

    A clip without reference text adds its hypothesis's words to the edits and nothing to the total. If no
    clip has any, there is no rate, and the number of insertions stands in for it: 0 if all was silence.
    """
    if len(references) != len(hypotheses):
        raise UserError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    if not references:
        raise UserError("no clips to score")
    pair = list(references), list(hypotheses)  # jiwer refuses tuples
    return {"wer": float(jiwer.wer(*pair)), "cer": float(jiwer.cer(*pair))}


def wer_hf_padded(
    references: Sequence[str], frame_ids: Sequence[np.ndarray], tokenizer: CTCTokenizer
) -> float:
    """The WER that Hugging Face's Trainer printed for this model: with one spurious letter on most clips.

    Trainer gathers the logits of a test set into one array, padded to its longest clip with -100. The
    argmax of an all -100 frame is id 0. Where id 0 is a letter, which it was in the vocabularies that the
    TIMIT notebooks of 2021 made from a set, every clip shorter than the longest ends in that letter: one
    word wrong in nearly every clip. Only for comparison with results that were made so.

    Args:
        references: normalised texts.
        frame_ids: for each clip, the argmax ids of its own frames, int [T_i], not collapsed.
    """
    if len(references) != len(frame_ids):
        raise UserError(f"{len(references)} references, but {len(frame_ids)} clips' ids")
    longest = max((len(ids) for ids in frame_ids), default=0)
    # A blank, a special token or a word delimiter at the end of a clip leaves no trace in its text.
    zero_is_letter = 0 not in tokenizer.special_ids and tokenizer.decode([0], collapsed=False).strip() != ""

    def decode(ids: np.ndarray) -> str:
        padded = [*ids, 0] if zero_is_letter and len(ids) < longest else ids  # collapse makes many one
        return tokenizer.decode([int(i) for i in padded], collapsed=False)

    return error_rates(references, [decode(ids) for ids in frame_ids])["wer"]

"""Error rates of a whole test set, in the two ways in which published figures were computed."""

from collections.abc import Callable, Sequence

import jiwer
import numpy as np

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Word and character error rate: {"wer": ..., "cer": ...}.

    The edits of all clips are divided by the words (or characters, spaces included) of all references. So a
    long clip weighs more than a short one. A rate may exceed 1.

    A clip without reference text adds its hypothesis's words to the edits and nothing to the total. If no
    clip has reference text, there is no rate, and the number of insertions stands in for it: 0 if the model
    said nothing.

    Raises:
        UserError: no clips, or not one hypothesis for each reference.
    """
    if len(references) != len(hypotheses):
        raise UserError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    if not references:
        raise UserError("no clips to score")
    pair = list(references), list(hypotheses)  # jiwer refuses tuples
    return {"wer": float(jiwer.wer(*pair)), "cer": float(jiwer.cer(*pair))}


def wer_hf_padded(
    references: Sequence[str],
    frame_ids: Sequence[np.ndarray],
    tokenizer: CTCTokenizer,
    rule: Callable[[str], str] = str,
) -> float:
    """The WER that Hugging Face's Trainer would have printed, with one spurious letter on most clips.

    Trainer gathers the logits of a test set into one array, padded to its longest clip with -100. The
    argmax of a frame of nothing but -100 is id 0. In the vocabularies that the TIMIT notebooks of 2021 made
    from a set, id 0 is a letter. There every clip shorter than the longest ends in that letter, which makes
    one word wrong in nearly every clip. Use this figure only to compare with results that were made so.

    Args:
        references: normalised texts.
        frame_ids: for each clip, the argmax ids of its own frames, int [T_i], not collapsed.
        rule: what each hypothesis goes through before it is compared.
    Raises:
        UserError: as `error_rates`.
    """
    if len(references) != len(frame_ids):
        raise UserError(f"{len(references)} references, but {len(frame_ids)} clips' ids")
    longest = max((len(ids) for ids in frame_ids), default=0)
    # A blank, a special token or a word delimiter at the end of a clip leaves no trace in its text.
    zero_is_letter = 0 not in tokenizer.special_ids and tokenizer.decode([0], collapsed=False).strip() != ""

    def decode(ids: np.ndarray) -> str:
        # One id 0 stands for all padding: repeats are merged.
        padded = [*ids, 0] if zero_is_letter and len(ids) < longest else ids
        return rule(tokenizer.decode([int(i) for i in padded], collapsed=False))

    return error_rates(references, [decode(ids) for ids in frame_ids])["wer"]

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flax_wavlm.errors import UserError
from flax_wavlm.recognition.metrics import error_rates, wer_hf_padded


def test_by_hand():
    # Words: one substitution, one deletion, one insertion over 5. Characters: "cat" -> "cut" 1, " sat" 4,
    # " now" 4, over 11 + 8.
    references = ["the cat sat", "go there"]
    hypotheses = ["the cut", "go there now"]
    assert error_rates(references, hypotheses) == pytest.approx({"wer": 3 / 5, "cer": 9 / 19})


def test_rates_are_of_the_corpus_and_not_means_of_clips():
    references = ["a b c d e f g h i", "x"]
    assert error_rates(references, ["a b c d e f g h i", "y"])["wer"] == pytest.approx(1 / 10)


def test_rates_may_exceed_one():
    assert error_rates(["a"], ["b c d"]) == {"wer": 3.0, "cer": 5.0}


def test_empty_texts():
    # Two inserted words and three characters count against the other clip's one word, three characters.
    assert error_rates(["", "abc"], ["x y", "abc"]) == {"wer": 2.0, "cer": 1.0}
    assert error_rates(["abc", "de"], ["", "de"]) == {"wer": 0.5, "cer": 0.6}
    assert error_rates([""], [""]) == {"wer": 0.0, "cer": 0.0}
    assert error_rates(["", " "], ["x", "y z"]) == {"wer": 3.0, "cer": 4.0}


texts = st.text("ab c'", max_size=12)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_sums_over_clips_as_jiwer_counts_them(pairs):
    """Also for tuples, and with empty references among the rest, which jiwer's own docstring excludes."""
    references, hypotheses = zip(*pairs, strict=True)

    def total(process) -> float:
        outputs = [process(r, h) for r, h in pairs]
        edits = sum(o.substitutions + o.deletions + o.insertions for o in outputs)
        return edits / (sum(o.hits + o.substitutions + o.deletions for o in outputs) or 1)

    rates = error_rates(references, hypotheses)
    assert rates["wer"] == pytest.approx(total(jiwer.process_words))
    assert rates["cer"] == pytest.approx(total(jiwer.process_characters))


def test_what_cannot_be_scored():
    with pytest.raises(UserError, match="2 references, but 1 hypotheses"):
        error_rates(["a", "b"], ["a"])
    with pytest.raises(UserError, match="no clips"):
        error_rates([], [])
    with pytest.raises(UserError, match="1 references, but 0"):
        wer_hf_padded(["a"], [], Letters("a|-"))


class Letters:
    """A tokenizer whose id i is the i-th character; "-" is the blank, "|" the space, "?" special."""

    def __init__(self, characters: str):
        self.characters = characters
        self.special_ids = frozenset(characters.index(c) for c in "-?" if c in characters)

    def decode(self, ids, *, collapsed: bool) -> str:
        assert not collapsed
        kept = [id for i, id in enumerate(ids) if i == 0 or id != ids[i - 1]]
        return "".join(self.characters[id] for id in kept).replace("-", "").replace("|", " ").strip()


def frames(text: str, tokenizer: Letters) -> np.ndarray:
    return np.array([tokenizer.characters.index(c) for c in text], np.int64)


def hf_padded(references: list[str], clips: list[str], characters: str) -> float:
    tokenizer = Letters(characters)
    return wer_hf_padded(references, [frames(clip, tokenizer) for clip in clips], tokenizer)


def test_each_shorter_clip_gains_one_letter():
    # Id 0 is z. The first clip is the longest, the others end in a spurious z.
    references = ["a b", "a c", "b"]
    assert hf_padded(references, ["aa||bb", "a|c-", "-b"], "zabc|-") == pytest.approx(2 / 5)
    # Equal lengths: no padding, no artefact.
    assert hf_padded(references, ["aa||bb", "a||cc-", "---b--"], "zabc|-") == 0


def test_a_clip_that_ends_in_id_0_swallows_the_padding():
    # Its last frame is z already: collapse merges them, so the text stays right.
    assert hf_padded(["a b", "az"], ["aa||bb", "-az"], "zabc|-") == 0
    # After a blank it does not.
    assert hf_padded(["a b", "az"], ["aa||bb", "az-"], "zabc|-") == pytest.approx(1 / 3)


def test_a_clip_that_ends_in_a_space_gains_a_word():
    assert hf_padded(["a b", "c"], ["aa||bb", "c|"], "zabc|-") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "characters", ["-abc|z?", "|abcz-?", "?abc|z-"], ids=["blank", "delimiter", "special"]
)
def test_no_artefact_where_id_0_is_not_a_letter(characters):
    assert hf_padded(["a b", "a c", "b"], ["aa||bb", "a|c-", "-b"], characters) == 0


def test_with_the_recipes_tokenizer():
    from flax_wavlm.data.tokenizer import CTCTokenizer

    tokenizer = CTCTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz' "])
    assert tokenizer.token(0) == "a"
    blank = tokenizer.blank_id
    long = [id for label in tokenizer.encode("hello there") for id in (label, blank)]
    short = [id for label in tokenizer.encode("go on") for id in (label, blank)]
    # "go on" becomes "go ona".
    assert wer_hf_padded(["hello there", "go on"], [np.array(long), np.array(short)], tokenizer) == 1 / 4

"""Text to label ids and back, and the Hugging Face files that keep both in step with the CTC head.

One numbering holds everywhere: a label id is a line of the tokenizer, a column of the CTC head, and the CTC
blank is the tokenizer's pad token, as in transformers' Wav2Vec2CTCTokenizer and WavLMForCTC.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flax_wavlm.errors import UserError, reason, shown, some
from flax_wavlm.files import exists, local_folder, read_json_object

if TYPE_CHECKING:
    from transformers import Wav2Vec2CTCTokenizer

log = logging.getLogger(__name__)

WORD_DELIMITER = "|"
UNKNOWN = "[UNK]"
PAD = "[PAD]"
TOKENIZER_FILES = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

_DELETED = str.maketrans("", "", ',?.!-;:"')


def normalise(text: str) -> str:
    """The seed recipe's rule: delete the characters `, ? . ! - ; : "`, then lower-case.

    A deleted hyphen merges its two words ("semi-heights" becomes "semiheights"). Runs of white space become
    one space and the ends are stripped, so that a label never has two word delimiters in a row.
    """
    return " ".join(text.translate(_DELETED).lower().split())


def vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Character to label id, from texts that are already normalised.

    Letters first and sorted, then the other characters sorted, `|` for the space, `[UNK]`, `[PAD]`. The order
    depends on nothing but the set of characters. English gives a-z = 0-25, ' = 26, | = 27, [UNK] = 28,
    [PAD] = 29. Raises UserError where the texts have no character at all.
    """
    characters = set().union(*texts) - {" ", WORD_DELIMITER}
    if not characters:
        raise UserError(
            "the vocabulary would be empty, as no text holds a single character",
            expected="the corpus's transcripts",
            do="check the data's text column",
        )
    ordered = sorted(characters, key=lambda c: (not c.isalpha(), c))
    return {token: id for id, token in enumerate([*ordered, WORD_DELIMITER, UNKNOWN, PAD])}


class CTCTokenizer:
    """transformers' Wav2Vec2CTCTokenizer, reduced to what a CTC model needs.

    Attributes:
        blank_id: the CTC blank, which is the pad token's id.
        size: width of the CTC head: every id of the vocabulary and of the added tokens (<s>, </s>), unless
            `for_head` says otherwise.
        special_ids: ids that stand for no character: pad, unknown, begin and end of sentence. The word
            delimiter stands for a space and is not among them.
    """

    def __init__(self, tokenizer: Wav2Vec2CTCTokenizer, source: str = "the tokenizer"):
        """Wraps a loaded tokenizer, which errors call `source`.

        Raises UserError where the pad token or the word delimiter is missing, or the ids are not 0..size-1.
        """
        for role, token in (
            ("pad token", tokenizer.pad_token),
            ("word delimiter", tokenizer.word_delimiter_token),
        ):
            # transformers adds a missing pad token behind the vocabulary, where no trained head has a column.
            if token not in tokenizer.encoder:
                raise UserError(
                    f"the {role} {token!r} is not in vocab.json",
                    where=source,
                    expected=f"it among the {len(tokenizer.encoder)} tokens there",
                    do="name the right one in tokenizer_config.json",
                )
        self.size, self._source = len(tokenizer), source
        ids = Counter(tokenizer.get_vocab().values())
        if wrong := sorted((set(range(self.size)) ^ set(ids)) | {id for id in ids if ids[id] > 1}):
            raise UserError(
                "token ids are missing, repeated or too high",
                where=source,
                field="token ids",
                found=wrong,
                expected=f"each of 0 to {self.size - 1} once",
                do="correct vocab.json (and added_tokens.json)",
            )
        self._tokenizer = tokenizer
        self.blank_id: int = tokenizer.pad_token_id
        # transformers counts the word delimiter as special.
        self.special_ids = frozenset(tokenizer.all_special_ids) - {tokenizer.word_delimiter_token_id}
        letters = [token for token in tokenizer.encoder if len(token) == 1 and token.isalpha()]
        # With do_lower_case the tokenizer takes lower-case text and changes the case by itself.
        self._upper_case = (
            not tokenizer.do_lower_case
            and any(letter.isupper() for letter in letters)
            and not any(letter.islower() for letter in letters)
        )

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CTCTokenizer:
        """A new tokenizer over `vocabulary(texts)`; transformers adds <s> and </s> behind [PAD]."""
        from transformers import Wav2Vec2CTCTokenizer

        with tempfile.TemporaryDirectory() as folder:
            vocab_file = Path(folder) / "vocab.json"
            vocab_file.write_text(json.dumps(vocabulary(texts)), encoding="utf-8")
            return cls(
                Wav2Vec2CTCTokenizer(
                    str(vocab_file), unk_token=UNKNOWN, pad_token=PAD, word_delimiter_token=WORD_DELIMITER
                )
            )

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path) -> CTCTokenizer:
        """The tokenizer of a Hugging Face folder or hub id.

        Raises UserError where vocab.json is missing, is not JSON, has repeated ids or gaps, or lacks the pad
        token or the word delimiter.
        """
        from transformers import Wav2Vec2CTCTokenizer

        folder = local_folder(folder_or_hub_id, TOKENIZER_FILES)
        vocab = read_json_object(folder / "vocab.json", "a CTC tokenizer's vocabulary")
        for token, id in vocab.items():
            if type(id) is not int or id < 0:
                raise UserError(
                    f"token {shown(token)} has the id {str(id)[:80]}",
                    where=folder / "vocab.json",
                    expected="a whole number from 0",
                    do="vocabularies nested by language are not supported, so keep one language's",
                )
        for name in TOKENIZER_FILES[1:]:
            if exists(folder / name):
                read_json_object(folder / name, "a tokenizer's settings")
        try:
            tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers' exceptions for wrong files share no base class
            raise UserError(
                f"transformers cannot load the tokenizer ({reason(error)})",
                where=folder,
                expected="vocab.json and tokenizer_config.json as Wav2Vec2CTCTokenizer.save_pretrained "
                "writes them",
            ) from error
        return cls(tokenizer, source=str(folder))

    def for_head(self, outputs: int, *, head: str, do: str) -> CTCTokenizer:
        """The tokenizer for a CTC head of `outputs` columns; `size` is then that.

        As in transformers, the head may be as wide as vocab.json, without the special tokens that are added
        behind it (<s>, </s>), and wider by padding, which is written as the unknown token. The log says the
        latter. A head that lacks but one of two added tokens was trained with another vocabulary.

        Args:
            outputs: the head's width.
            head: whose head it is; for messages.
            do: what to do where they do not fit; for the error.
        Raises:
            UserError: another token has no output.
        """
        beyond_head = range(outputs, len(self._tokenizer))
        added = outputs == len(self._tokenizer.encoder) and set(beyond_head) <= set(
            self._tokenizer.all_special_ids
        )
        silent = [] if added else list(beyond_head)
        if silent or (outputs > len(self._tokenizer) and self._tokenizer.unk_token is None):
            missing = f", and none of them is for {some([shown(self.token(id)) for id in silent])}"
            raise UserError(
                f"the tokenizer has {len(self._tokenizer)} tokens",
                where=self._source,
                expected=f"the {outputs} of the CTC head ({head} has {outputs} outputs"
                f"{missing if silent else ', and the tokenizer has no unknown token'})",
                do=do,
            )
        if outputs > len(self._tokenizer):
            log.warning(
                "%s: its CTC head has %d outputs, and the tokenizer %d tokens: the outputs beyond them are "
                "written as %s, as in transformers; if the tokenizer is another model's, %s",
                head,
                outputs,
                len(self._tokenizer),
                self._tokenizer.unk_token,
                do,
            )
        fitted = copy.copy(self)
        fitted.size = outputs
        beyond = range(len(self._tokenizer), outputs)
        fitted.special_ids = frozenset(id for id in {*self.special_ids, *beyond} if id < outputs)
        return fitted

    def normalise(self, text: str) -> str:
        """The recipe's `normalise`, then upper case where the vocabulary has no lower-case letters."""
        text = normalise(text)
        return text.upper() if self._upper_case else text

    def encode(self, text: str) -> list[int]:
        """Label ids of a normalised text; characters outside the vocabulary become the unknown token."""
        found: Any = self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(text))
        # transformers gives None for an unknown character where <unk> is not in vocab.json.
        ids = [self._tokenizer.unk_token_id if id is None else id for id in found]
        if None in ids:
            raise UserError(
                f"text {shown(text)} has characters outside the vocabulary, "
                f"{some(sorted(self.unknown_characters(text)))}, and the tokenizer has no unknown token",
                do="remove them, or name an unk_token in tokenizer_config.json",
            )
        if silent := {self.token(id) for id in ids if id >= self.size}:
            raise UserError(
                f"text {shown(text)} needs {some(sorted(silent))}, for which the CTC head has no output",
                do="remove characters that vocab.json lacks, or start a new head",
            )
        if self.blank_id in ids:
            raise UserError(
                f"text {shown(text)} spells the pad token {self.token(self.blank_id)!r}, which is the CTC "
                "blank and cannot be a label",
                do="remove it from the transcript",
            )
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray, *, collapsed: bool) -> str:
        """Text of [T] ids, as transformers' own `decode` gives it.

        `collapsed=False` takes the argmax of every frame, merges repeats and drops blanks. `collapsed=True`
        takes labels, or ids whose repeats were merged before, and leaves the "ll" of "hello" alone. Special
        tokens other than the blank appear as they are spelt, as in transformers' ASR pipeline.
        """
        return self._tokenizer.decode([int(id) for id in ids], group_tokens=not collapsed)

    def token(self, id: int) -> str:
        """The token of an id in [0, size)."""
        return str(self._tokenizer.convert_ids_to_tokens(id))

    def unknown_characters(self, text: str) -> set[str]:
        """The characters of a normalised text that the vocabulary lacks."""
        known = self._tokenizer.encoder
        return {c for c in set(text) if any(t not in known for t in self._tokenizer.tokenize(c))}

    def unknown_share(self, text: str) -> float:
        """The share of a normalised text's characters, spaces left out, that the vocabulary lacks: 0 to 1."""
        unknown, characters = self.unknown_characters(text), text.replace(" ", "")
        return sum(c in unknown for c in characters) / max(1, len(characters))

    def save(self, folder: str | Path) -> None:
        """Writes vocab.json, tokenizer_config.json and added_tokens.json, which AutoTokenizer loads."""
        self._tokenizer.save_pretrained(str(folder))

"""Text to label ids and back, and the Hugging Face files that keep both in step with the CTC head.

One numbering holds everywhere: a label id is a line of the tokenizer, a column of the CTC head, and the CTC
blank is the tokenizer's pad token, as in transformers' Wav2Vec2CTCTokenizer and WavLMForCTC.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flax_wavlm.data.spelling import Spelling, kept_whole, pattern_of
from flax_wavlm.data.text import BEFORE, TextRule, folded_blanks
from flax_wavlm.errors import UserError, reason, shown, some
from flax_wavlm.files import exists, local_folder, read_json_object

if TYPE_CHECKING:
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer

log = logging.getLogger(__name__)

DEFAULT_RULE = TextRule()
WORD_DELIMITER = "|"
UNKNOWN = "[UNK]"
PAD = "[PAD]"
TOKENIZER_FILES = ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

# transformers' class for symbols with white space between them; its decode joins them by a blank.
TOKEN_CLASS = "Wav2Vec2PhonemeCTCTokenizer"


def normalise(text: str) -> str:
    """A text by the default rule, `TextRule()`, for a vocabulary that is made of such texts."""
    return TextRule()(text)


def vocabulary(texts: Iterable[str], *, by_token: bool = False) -> dict[str, int]:
    """Character (or symbol) to label id, from texts that the rule has been applied to.

    Letters first and sorted, then the other characters sorted, `|` for the space, `[UNK]`, `[PAD]`. The order
    depends on nothing but the set of characters. English gives a-z = 0-25, ' = 26, | = 27, [UNK] = 28,
    [PAD] = 29. By token, the symbols are what white space separates, and there is no `|` of our own.
    Raises UserError where the texts have no character at all.
    """
    reserved = {UNKNOWN, PAD} if by_token else {" ", WORD_DELIMITER}
    characters = set().union(*(text.split() if by_token else text for text in texts)) - reserved
    if not characters:
        raise UserError(
            "the vocabulary would be empty, as no text holds a single character",
            expected="the corpus's transcripts",
            do="check the data's text column",
        )
    ordered = sorted(characters, key=lambda c: (not c.isalpha(), c))
    own = [UNKNOWN, PAD] if by_token else [WORD_DELIMITER, UNKNOWN, PAD]
    return {token: id for id, token in enumerate([*ordered, *own])}


class CTCTokenizer:
    """transformers' Wav2Vec2CTCTokenizer (or its phoneme kin), reduced to what a CTC model needs.

    Attributes:
        blank_id: the CTC blank, which is the pad token's id.
        size: width of the CTC head: every id of the vocabulary and of the added tokens (<s>, </s>), unless
            `for_head` says otherwise.
        special_ids: ids that stand for no character: pad, unknown, begin and end of sentence. The word
            delimiter stands for a space and is not among them.
        specials: the tokens of those ids, as they are spelt.
        rule: how texts become what the labels can say.
        follows: the rule follows the vocabulary (`spelling.py`), as it must where the vocabulary was not made
            from texts of the rule.
        delimiter: the token of a space; None where the vocabulary has none.
        delimiter_id: its id.
        by_token: labels are symbols with white space between them.
    """

    def __init__(
        self,
        tokenizer: Wav2Vec2CTCTokenizer | Wav2Vec2PhonemeCTCTokenizer,
        source: str = "the tokenizer",
        *,
        rule: TextRule = DEFAULT_RULE,
        follows: bool = True,
    ):
        """Wraps a loaded tokenizer, which errors call `source`.

        Raises UserError where the pad token is missing, or the ids are not 0..size-1.
        """
        # transformers adds a missing pad token behind the vocabulary, where no trained head has a column.
        if tokenizer.pad_token not in tokenizer.encoder:
            raise UserError(
                f"the pad token {tokenizer.pad_token!r} is not in vocab.json",
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
        self._all_ids: dict[str, int] = tokenizer.get_vocab()
        self.rule, self.follows = rule, follows
        self.by_token = rule.by_token or type(tokenizer).__name__ == TOKEN_CLASS
        self.blank_id: int = tokenizer.pad_token_id
        named = None if self.by_token else tokenizer.word_delimiter_token
        self.delimiter: str | None = named if named in tokenizer.encoder else None
        self.delimiter_id: int | None = self._id(self.delimiter)
        # transformers counts the word delimiter as special.
        self.special_ids = frozenset(tokenizer.all_special_ids) - {self._id(named)}
        self.tokens = {
            token: id for token, id in self._all_ids.items() if id not in self.special_ids | {self._id(named)}
        }
        self.specials = [self.token(id) for id in sorted(self.special_ids)]
        self._lower_cases = not self.by_token and bool(tokenizer.do_lower_case)
        self._pieces = pattern_of([*self.specials, *(token for token in self.tokens if len(token) > 1)])
        known = {token.lower() for token in self.tokens} if self._lower_cases else set(self.tokens)
        self._spelling = Spelling(
            dataclasses.replace(rule, unit="token" if self.by_token else "character")
            if self.by_token
            else rule,
            frozenset(known),
            spaced=self.delimiter is not None,
        )

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._all_ids.get(token)

    @classmethod
    def from_texts(cls, texts: Iterable[str], rule: TextRule = DEFAULT_RULE) -> CTCTokenizer:
        """A new tokenizer over `vocabulary(texts)`, texts that `rule` has been applied to.

        transformers adds <s> and </s> behind [PAD].
        """
        from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer

        with tempfile.TemporaryDirectory() as folder:
            vocab_file = Path(folder) / "vocab.json"
            made = vocabulary(texts, by_token=rule.by_token)
            vocab_file.write_text(json.dumps(made), encoding="utf-8")
            tokenizer: Wav2Vec2CTCTokenizer | Wav2Vec2PhonemeCTCTokenizer
            if rule.by_token:
                tokenizer = Wav2Vec2PhonemeCTCTokenizer(
                    str(vocab_file), unk_token=UNKNOWN, pad_token=PAD, do_phonemize=False
                )
            else:
                tokenizer = Wav2Vec2CTCTokenizer(
                    str(vocab_file), unk_token=UNKNOWN, pad_token=PAD, word_delimiter_token=WORD_DELIMITER
                )
        return cls(tokenizer, rule=rule, follows=False)

    @classmethod
    def from_pretrained(
        cls, folder_or_hub_id: str | Path, *, rule: TextRule = DEFAULT_RULE, follows: bool = True
    ) -> CTCTokenizer:
        """The tokenizer of a Hugging Face folder or hub id.

        Args:
            rule, follows: as the attributes.
        Raises:
            UserError: vocab.json is missing, is not JSON, has repeated ids or gaps, or lacks the pad token.
        """
        from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer

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
        said: dict[str, Any] = {}
        for name in TOKENIZER_FILES[1:]:
            if exists(folder / name):
                said |= {name: read_json_object(folder / name, "a tokenizer's settings")}
        by_token = said.get("tokenizer_config.json", {}).get("tokenizer_class") == TOKEN_CLASS
        try:
            tokenizer = (
                Wav2Vec2PhonemeCTCTokenizer.from_pretrained(
                    str(folder), local_files_only=True, do_phonemize=False
                )
                if by_token
                else Wav2Vec2CTCTokenizer.from_pretrained(str(folder), local_files_only=True)
            )
        except Exception as error:  # transformers' exceptions for wrong files share no base class
            raise UserError(
                f"transformers cannot load the tokenizer ({reason(error)})",
                where=folder,
                expected="vocab.json and tokenizer_config.json as Wav2Vec2CTCTokenizer.save_pretrained "
                "writes them",
            ) from error
        return cls(tokenizer, str(folder), rule=rule, follows=follows)

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
        """The text by the rule, in characters (or symbols) of the vocabulary wherever it has them."""
        if self.follows:
            return self._spelling(text)
        text = self.rule(text)
        if self.delimiter is not None and self.rule.preset != BEFORE and self.delimiter in text:
            text = folded_blanks(text.replace(self.delimiter, " "))  # the token of the space is no character
        return text

    def normalise_hypothesis(self, text: str) -> str:
        """The rule on what `decode` gave. Special tokens stay as they are spelt."""
        if self.rule.preset == BEFORE:  # that rule was for references alone
            return text
        return kept_whole(text, self.specials, self.normalise)

    def encode(self, text: str) -> list[int]:
        """Label ids of a normalised text; characters outside the vocabulary become the unknown token."""
        unknown: int | None = self._tokenizer.unk_token_id
        found = [unknown if id is None else id for _, id in self._labels(text)]
        ids = [id for id in found if id is not None]
        if len(ids) < len(found):
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

    def _labels(self, text: str) -> list[tuple[str, int | None]]:
        """The pieces of a normalised text that labels stand for, and their ids; None: unknown."""
        if self.by_token:
            return [(symbol, self._all_ids.get(symbol)) for symbol in text.split()]
        labels: list[tuple[str, int | None]] = []
        for piece in self._pieces.findall(text):
            written = piece.upper() if self._lower_cases and len(piece) == 1 else piece
            if piece == " ":
                labels += [] if self.delimiter is None else [(piece, self._all_ids[self.delimiter])]
            elif len(piece) > 1:
                labels.append((piece, self._all_ids[piece]))
            else:
                labels += [(piece, self._all_ids.get(character)) for character in written]
        return labels

    def decode(self, ids: Sequence[int] | np.ndarray, *, collapsed: bool) -> str:
        """Text of [T] ids, as transformers' own `decode` gives it.

        `collapsed=False` takes the argmax of every frame, merges repeats and drops blanks. `collapsed=True`
        takes labels, or ids whose repeats were merged before, and leaves the "ll" of "hello" alone. Special
        tokens other than the blank appear as they are spelt, as in transformers' ASR pipeline.
        """
        numbers = [int(id) for id in ids]
        if not self.by_token:
            return self._tokenizer.decode(numbers, group_tokens=not collapsed)
        runs = numbers if collapsed else [id for id, _ in groupby(numbers)]
        return " ".join(self.token(id) for id in runs if id != self.blank_id)

    def token(self, id: int) -> str:
        """The token of an id in [0, size)."""
        return str(self._tokenizer.convert_ids_to_tokens(id))

    def symbols(self, text: str) -> list[str]:
        """What the labels of a normalised text stand for: characters, blanks too, or longer tokens."""
        return [piece for piece, _ in self._labels(text)]

    def lacking_case(self) -> str:
        """ "lower" or "upper" where the vocabulary has letters of the other case alone; else ""."""
        upper, lower = any(map(str.isupper, self.tokens)), any(map(str.islower, self.tokens))
        return "" if upper == lower else "lower" if upper else "upper"

    def unknown_characters(self, text: str) -> set[str]:
        """The characters (or symbols) of a normalised text that the vocabulary lacks."""
        return {piece for piece, id in self._labels(text) if id is None}

    def unknown_share(self, text: str) -> float:
        """The share of a normalised text's labels, spaces left out, that the vocabulary lacks: 0 to 1."""
        labels = [id for piece, id in self._labels(text) if piece != " "]
        return labels.count(None) / max(1, len(labels))

    def describe_rule(self) -> str:
        """The text rule in a few words, for the log."""
        if not self.follows:
            return self.rule.describe()
        own = self.rule.preset in ("timit", BEFORE) or self.by_token
        what = "letters" if own else "case and punctuation"
        return f"{self.rule.describe()}, with the {what} that the tokenizer's vocabulary has"

    def save(self, folder: str | Path) -> None:
        """Writes vocab.json, tokenizer_config.json and added_tokens.json, which AutoTokenizer loads."""
        self._tokenizer.save_pretrained(str(folder))

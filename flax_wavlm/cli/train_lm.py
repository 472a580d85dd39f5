"""A word n-gram model from text, by interpolated modified Kneser-Ney, for transcribe and evaluate --lm.

flax-wavlm train-lm --output LM.arpa [--order 3] --text FILE... (or --corpus NAME --data PATH)

A text has a sentence a line, in UTF-8, plain or packed by gzip; "-" is standard input. With --model, words
are those that the model writes. In a checkout, `python scripts/train_lm.py` is the same command.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flax_wavlm.cli.command import Command, Parsed
from flax_wavlm.cli.corpora import CORPUS_TEXT_FIELDS, corpus_of, define_corpus_flags
from flax_wavlm.cli.text_rule import TEXT_RULE_FIELDS, define_text_rule_flag, text_fields
from flax_wavlm.errors import UserError, some

if TYPE_CHECKING:
    from flax_wavlm.language_model.text import WordsByRule, WordsOfModel

log = logging.getLogger(__name__)


def _define(values: flags.FlagValues, _given: Sequence[str]) -> None:
    flags.DEFINE_multi_string("text", [], "", values)
    values["text"].help = "A text file; repeatable."  # absl would say the latter in a line more
    define_corpus_flags(values, split="train", split_help="The split whose text is taken.", audio=False)
    flags.DEFINE_string("model", None, "A model's folder: its text rule and alphabet hold.", values)
    define_text_rule_flag(values)
    flags.DEFINE_integer("order", 3, "Words of the longest n-grams.", flag_values=values)
    flags.DEFINE_list("prune", [], "Drop n-grams seen at most so often, by length: 0,0,1.", values)
    flags.DEFINE_integer("min_count", 1, "Words seen less often become <unk>.", flag_values=values)
    flags.DEFINE_string("output", None, "The file to write; packed where it ends in .gz.", values)
    flags.DEFINE_bool("overwrite", False, "Replace the output if it is there.", flag_values=values)


def _run(parsed: Parsed) -> None:
    from flax_wavlm.language_model.arpa import write_arpa
    from flax_wavlm.language_model.counting import number_words
    from flax_wavlm.language_model.kneser_ney import check_settings, kneser_ney
    from flax_wavlm.language_model.text import WordsOfModel, check_files

    values, begun = parsed.values, time.perf_counter()
    files = [*_named(values.text), *parsed.arguments]
    if not files and not values.corpus:
        raise UserError("there is no text", expected="files of text, or --corpus and --data")
    prune = _thresholds(values.prune)
    check_settings(values.order, prune)
    if values.min_count < 1:
        raise UserError(field="min_count", found=values.min_count, expected="1 or more")
    check_files(files)
    output = Path(values.output)
    _check_output(output, values.overwrite)
    words = _words(values)
    text = number_words(map(words, _lines(values, files)), min_count=values.min_count)
    if isinstance(words, WordsOfModel) and words.unspelled:
        _say_unspelled(words)
    marks = 2 * text.sentences
    log.info("%d sentences, %d words", text.sentences, len(text.ids) - marks)
    found = kneser_ney(text, values.order, prune=prune)
    write_arpa(output, found.model)
    for n, (table, amounts) in enumerate(zip(found.model.tables, found.discounts, strict=True), start=1):
        print(f"{n}-grams: {len(table.ids):,}, discounts {', '.join(f'{amount:.4g}' for amount in amounts)}")
    print(f"written to {output} in {time.perf_counter() - begun:.1f} s")


def _named(texts: Sequence[str]) -> list[str]:
    """The files that --text names: a path that is there is one, any other is cut at its commas."""
    from flax_wavlm.files import exists

    return [name for text in texts for name in ([text] if exists(Path(text)) else text.split(","))]


def _thresholds(texts: Sequence[str]) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise UserError(field="prune", found=list(texts), expected="whole numbers, such as 0,0,1") from None


def _check_output(file: Path, overwrite: bool) -> None:
    """UserError where it cannot be written to, before long work for it."""
    from flax_wavlm.files import exists, is_file
    from flax_wavlm.recognition.outputs import make_folder

    if exists(file) and not is_file(file):
        raise UserError("is no file", where=file, expected="a file to write", do="give another name")
    if exists(file) and not overwrite:
        raise UserError("is there already", where=file, do="give another name, or --overwrite")
    make_folder(file.parent)


def _words(values: flags.FlagValues) -> "WordsByRule | WordsOfModel":
    """What cuts sentences into words, as the flags say."""
    from flax_wavlm.data.text import TextRule
    from flax_wavlm.data.tokenizer import TOKENIZER_FILES, CTCTokenizer
    from flax_wavlm.files import local_folder
    from flax_wavlm.language_model.text import WordsByRule, WordsOfModel
    from flax_wavlm.porting.extras import EXTRAS_FILE, read_extras

    fields = text_fields(values.text_rule or ())
    if not values.model:
        rule = TextRule().changed(fields)
        log.info("text rule: %s", rule.describe())
        return WordsByRule(rule)
    folder = local_folder(values.model, (*TOKENIZER_FILES, EXTRAS_FILE))
    extras = read_extras(folder).with_text(fields)
    tokenizer = CTCTokenizer.from_pretrained(folder, rule=extras.text, follows=extras.follows_vocabulary)
    log.info("text rule: %s", tokenizer.describe_rule())
    return WordsOfModel(tokenizer)


def _lines(values: flags.FlagValues, files: Sequence[str]) -> Iterator[str]:
    from flax_wavlm.language_model.text import lines_of_files

    if values.corpus:
        utterances, _ = corpus_of(values)
        log.info("%s: the text of %d clips", values.split, len(utterances))
        yield from (utterance.text for utterance in utterances)
    yield from lines_of_files(files)


def _say_unspelled(words: "WordsOfModel") -> None:
    log.warning(
        "the model cannot spell %d words, %d different ones, which count as <unk>: %s",
        words.unspelled.total(),
        len(words.unspelled),
        some([word for word, _ in words.unspelled.most_common()]),
    )


TRAIN_LM = Command(
    name="train-lm",
    description=__doc__,
    define=_define,
    run=_run,
    arguments="[FILE...]",
    required=("output",),
    fields={
        **CORPUS_TEXT_FIELDS,
        "min_count": "--min_count",
        "order": "--order",
        "prune": "--prune",
        **TEXT_RULE_FIELDS,
    },
)

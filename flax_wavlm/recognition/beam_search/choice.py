"""Which decoder a model is given: what the user asks, and what the model's folder has.

Nothing here loads numba unless a beam search is chosen.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax_wavlm.data.corpora.folders import read_utf8
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError, printable, shown
from flax_wavlm.files import exists, is_file
from flax_wavlm.recognition.beam_search.folder import folder_lm
from flax_wavlm.recognition.beam_search.settings import BEAM, BeamSettings
from flax_wavlm.recognition.decoding import Decoder

if TYPE_CHECKING:
    from flax_wavlm.language_model.tables import NGramTables

log = logging.getLogger(__name__)

NO_LM = "none"
MOST_BEAM = 10_000
MOST_BYTES = 2**20  # of a file of hot words: more than anybody expects


@dataclass(frozen=True)
class Asked:
    """What the user asks of decoding. Without any of it, a model is decoded as its folder says, or greedily.

    Attributes:
        lm: a language model's ARPA file; `NO_LM`: none, even if the folder has one; None: the folder's.
        beam: hypotheses kept after each frame; None: `settings.BEAM`.
        alpha, beta: of `BeamSettings`; None: the folder's for its own language model, else its default.
        hotwords: words and phrases that are expected.
    """

    lm: str | Path | None = None
    beam: int | None = None
    alpha: float | None = None
    beta: float | None = None
    hotwords: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raises UserError for a value that cannot be used whatever the model is."""
        if self.beam is not None and not (isinstance(self.beam, int) and 1 <= self.beam <= MOST_BEAM):
            raise UserError(field="decoding.beam", found=self.beam, expected=f"1 to {MOST_BEAM}")
        if isinstance(self.hotwords, str):
            raise UserError(field="decoding.hotwords", found=self.hotwords, expected="a list of words")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if value is not None and not math.isfinite(value):
                raise UserError(field=f"decoding.{name}", found=value, expected="a number")
        if self.alpha is not None and self.alpha < 0:
            raise UserError(field="decoding.alpha", found=self.alpha, expected="0 or more")
        if self.lm is not None and str(self.lm) == "":
            raise UserError(field="decoding.lm", found="", expected=f"an ARPA file, or {NO_LM}")
        if self.without_lm:
            self.check_weights()

    @property
    def without_lm(self) -> bool:
        return self.lm is not None and str(self.lm) == NO_LM

    def check_weights(self) -> None:
        """UserError where the weights of a language model are given. It is called where there is none."""
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if value is not None:
                raise UserError(
                    field=f"decoding.{name}",
                    found=value,
                    expected="no weight, as there is no language model",
                    do="give its ARPA file, decoding.lm, or leave the weight out",
                )


def choose_decoder(
    asked: Asked, folder: Path, tokenizer: CTCTokenizer, *, temperature: float = 1.0
) -> Decoder | None:
    """A beam search, where the user asks for one or the folder has a language model; None: greedy decoding.

    Args:
        folder: the model's.
        tokenizer: the model's.
        temperature: of the model's confidences.
    Raises:
        UserError: the language model or a hot word cannot be used, or weights are given without a language
            model.
    """
    file: Path | None
    if asked.lm is not None and not asked.without_lm:
        file, settings = Path(asked.lm), BeamSettings()
    elif asked.lm is None and (own := folder_lm(folder, tokenizer)) is not None:
        file, settings = own
        log.warning("%s: the model's own language model is used; without it: decoding.lm=none", file)
    else:
        asked.check_weights()
        if asked.beam is None and not asked.hotwords:
            return None
        file, settings = None, BeamSettings()
    return _beam_decoder(asked, file, settings, tokenizer, temperature)


def _beam_decoder(
    asked: Asked,
    file: Path | None,
    settings: BeamSettings,
    tokenizer: CTCTokenizer,
    temperature: float,
) -> Decoder:
    from flax_wavlm.recognition.beam_search.decoder import BeamDecoder

    given: dict[str, Any] = {"beam": asked.beam or BEAM}
    given |= {"alpha": asked.alpha} if asked.alpha is not None else {}
    given |= {"beta": asked.beta} if asked.beta is not None else {}
    return BeamDecoder.of(
        tokenizer,
        None if file is None else _tables(file),
        dataclasses.replace(settings, **given),
        hotwords=asked.hotwords,
        temperature=temperature,
        lm_name="the language model" if file is None else str(file),
    )


def _tables(file: Path) -> NGramTables:
    from flax_wavlm.language_model.arpa import read_arpa

    return read_arpa(file)


def read_hotwords(file: Path) -> list[str]:
    """The words and phrases of a UTF-8 file, one a line; empty lines are passed over.

    Raises UserError where the file cannot be read, or has none.
    """
    if exists(file) and is_file(file) and (size := file.stat().st_size) > MOST_BYTES:
        raise UserError(
            f"{size / 2**20:,.1f} MiB of hot words",
            where=file,
            expected=f"at most {MOST_BYTES // 2**20}",
            do="give a word or phrase a line; the words of a whole text are a language model's",
        )
    words = []
    for number, line in enumerate(read_utf8(file).split("\n"), start=1):
        word = " ".join(line.split())
        if word != printable(word):
            raise UserError(
                f"{shown(word)} has characters that nobody says",
                where=f"{file}:{number}",
                expected="a word or phrase",
            )
        words += [word] if word else []
    if not words:
        raise UserError("has no hot words", where=file, expected="a word or phrase a line")
    return list(dict.fromkeys(words))

"""The temperature of a run's exported model, fitted at the run's end."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.files import writing
from flax_wavlm.models.parameters import split
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.extras import read_extras, write_extras
from flax_wavlm.porting.load import load_model
from flax_wavlm.recognition.calibration import (
    fit_temperature,
    judged_words,
    reference_words,
    some_clips,
)
from flax_wavlm.recognition.forward import ClipBatches
from flax_wavlm.training.config import TrainConfig
from flax_wavlm.training.prepare import Parts

log = logging.getLogger(__name__)

BUCKETS = 2  # padded lengths, each of which compiles once
FEWEST_WORDS = (
    200  # of dev's text; by fewer, not even the share of wrong words is known to within a few percent
)


def calibrate(config: TrainConfig, run: Parts, export: Path) -> None:
    """Fits the temperature of an exported model, and writes it into the folder's flax_wavlm.json.

    It is fitted on the split that chose the checkpoint, test in a run without a dev split. It changes
    confidences, and neither a text nor a figure of the run. In a run of several processes all must call.
    A split with few words leaves the temperature at 1, and so does a task without a tokenizer.
    """
    origin, dev = run.origin, run.speech.dev
    if not isinstance(origin.task.targets, CTCTokenizer):
        return
    chosen = some_clips(dev.clips)
    known = sum(len(reference_words(origin.tokenizer, clip)) for clip in chosen)
    if known < FEWEST_WORDS:
        log.info(
            "temperature of confidences: 1, as %s has %d words, and a fit needs %d",
            run.speech.chooser,
            known,
            FEWEST_WORDS,
        )
        return
    multihost_utils.sync_global_devices("exported")  # the first process has written the folder
    clips = ClipBatches(chosen, dev.batch_size, BUCKETS, do_normalize=dev.do_normalize)
    model = load_model(
        export,
        overrides=config.model_overrides(),
        placement=lambda path, shape: sharding.replicated(run.mesh),
    )
    words = judged_words(
        origin.task,
        origin.config,
        split(model)[1],
        origin.tokenizer,
        clips,
        run.mesh,
        field="train.eval_batch_size",
    )
    temperature = round(fit_temperature(words), 3)
    if jax.process_index() == 0:
        with writing(export):
            write_extras(export, dataclasses.replace(read_extras(export), temperature=temperature))
    log.info(
        "temperature of confidences: %g, by %d words of %s, of which %d are wrong",
        temperature,
        len(words.right),
        run.speech.chooser,
        len(words.right) - words.right.sum(),
    )

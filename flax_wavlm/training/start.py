"""What a run starts from: pretrained weights or random ones, a tokenizer, a head, and the first state."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from flax_wavlm.data.alphabet import describe_alphabet
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.preprocessor import PREPROCESSOR_FILES, Preprocessor
from flax_wavlm.data.text import BEFORE, TextRule
from flax_wavlm.data.tokenizer import TOKENIZER_FILES, CTCTokenizer
from flax_wavlm.files import local_folder, write_atomically, writing
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import structure
from flax_wavlm.models.parameters import Params, combine, partition, split
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.extras import EXTRAS_FILE, Extras, TrainingSeconds, read_extras, write_extras
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.mistaken import missing_vocabulary
from flax_wavlm.porting.pretrained import PretrainedWeights, open_weights
from flax_wavlm.recognition.ctc_task import character_ctc
from flax_wavlm.recognition.task import Task
from flax_wavlm.training.config import ModelSettings, TextSettings
from flax_wavlm.training.state import TrainState, init_state

log = logging.getLogger(__name__)


class StartingPoint(NamedTuple):
    """Where the model comes from, what it learns, and how it reads and writes."""

    weights: PretrainedWeights | None  # None: random ones
    config: WavLMConfig
    fresh_head: bool  # the head is not the weights' own
    task: Task
    tokenizer: CTCTokenizer
    preprocessor: Preprocessor
    alphabet: str = ""  # every symbol of the text with its counts, as tab-separated lines

    def judged_by(self, best_by: str) -> StartingPoint:
        """The same, with the best checkpoint chosen by this score of the task."""
        scoring = self.task.scoring.chosen_by(best_by)
        return self._replace(task=dataclasses.replace(self.task, scoring=scoring))

    def save_processor(self, folder: Path, seconds: TrainingSeconds) -> None:
        """Writes the files that say how the model reads and writes: an export copies them.

        `seconds` are those of the training clips.
        """
        with writing(folder):
            self.tokenizer.save(folder)
            self.preprocessor.save(folder)
            write_extras(folder, Extras(self.tokenizer.rule, self.tokenizer.follows, seconds))
            write_atomically(folder / "alphabet.tsv", self.alphabet)
            write_atomically(folder / "config.json", json.dumps(self.config.to_hf(), indent=2) + "\n")


def open_starting_point(
    model: ModelSettings,
    utterances: Mapping[str, Sequence[Utterance]],
    *,
    text: TextSettings,
    overrides: Mapping[str, Any],
    tokenizer: str,
    reduction: str,
    corpus: str,
) -> StartingPoint:
    """Opens the pretrained weights (or takes `model.config`); settles tokenizer, head and preprocessor.

    Args:
        model: the run's.
        utterances: the corpus's by split, for a vocabulary where there is no tokenizer yet.
        text: the run's text rule.
        overrides: fields of WavLMConfig that the run sets.
        tokenizer: a folder or hub id; "": the weights' own, else a new one.
        reduction: of the CTC loss.
        corpus: `data.corpus`.
    Raises:
        UserError: weights, tokenizer or preprocessor cannot be used, or do not fit each other.
    """
    weights = open_weights(model.checkpoint) if model.checkpoint else None
    config = weights.config if weights else model.config
    assert config is not None  # `TrainConfig.check` saw to it
    settled, fresh_head = _settle_head(weights, model.fresh_head, tokenizer, utterances, text)
    alphabet = describe_alphabet(settled, utterances)
    log.info("text rule: %s", settled.describe_rule())
    for line in alphabet.announced:
        log.warning("%s", line)
    log.info("%s", alphabet.summary)
    preprocessor = _settle_preprocessor(weights, config)
    if config.feat_extract_norm == "group":
        log.warning(
            "a group-norm model (base): as in transformers, its training logits depend on the padding of the "
            "batch; evaluation treats each clip as if alone"
        )
    task = character_ctc(settled, reduction=reduction, corpus=corpus)
    config = config.replace(**overrides, **task.settings)
    return StartingPoint(weights, config, fresh_head, task, settled, preprocessor, alphabet.table)


def _settle_head(
    weights: PretrainedWeights | None,
    wants_fresh: bool,
    tokenizer: str,
    utterances: Mapping[str, Sequence[Utterance]],
    text: TextSettings,
) -> tuple[CTCTokenizer, bool]:
    """The tokenizer, and whether the CTC head is a new one: the two must mean the same by every output."""
    headed = weights if weights is not None and weights.has_head and not wants_fresh else None
    named: Path | str = tokenizer
    if not named and headed is not None:
        if (headed.folder / "vocab.json").exists():
            named = headed.folder
        else:
            log.warning(
                "%s: has a CTC head but no vocab.json that says what its outputs mean, so a new head "
                "is begun; to keep the head, name its tokenizer as data.tokenizer, or: %s",
                headed.source,
                missing_vocabulary(headed.folder),
            )
    if not named:
        rule = text.rule()
        texts = (rule(utterance.text) for split in utterances.values() for utterance in split)
        made = CTCTokenizer.from_texts(texts, rule)
        log.info("a vocabulary of %d from the corpus's text", made.size)
        return made, True
    extras = _settle_rule(local_folder(named, (*TOKENIZER_FILES, EXTRAS_FILE)), text)
    found = CTCTokenizer.from_pretrained(named, rule=extras.text, follows=extras.follows_vocabulary)
    if headed is None:
        return found, True
    do = "give the head's own tokenizer, or start a new head with model.fresh_head=true"
    return found.for_head(headed.config.vocab_size, head=headed.source, do=do), False


def _settle_rule(folder: Path, text: TextSettings) -> Extras:
    """The text rule that lies with a tokenizer, with what the run sets in its place."""
    saved = read_extras(folder)
    if text.preset == BEFORE:  # a run that was begun when no rule was saved
        return Extras(TextRule(BEFORE))
    extras = saved.with_text(dataclasses.asdict(text))
    if extras != saved and (folder / EXTRAS_FILE).exists():
        log.warning(
            "the run's text rule (%s) takes the place of the one in %s (%s)",
            extras.text.describe(),
            folder / EXTRAS_FILE,
            saved.text.describe(),
        )
    return extras


def _settle_preprocessor(weights: PretrainedWeights | None, config: WavLMConfig) -> Preprocessor:
    """The weights' own preprocessor; without one, as their file says, or else normalised, as large is."""
    if weights is not None and any((weights.folder / name).exists() for name in PREPROCESSOR_FILES):
        return Preprocessor.from_pretrained(weights.folder)
    said = weights.do_normalize if weights else None
    normalises = True if said is None else said
    if weights is not None:
        log.warning("%s: no preprocessor_config.json; do_normalize = %s", weights.source, normalises)
    return Preprocessor(normalises, return_attention_mask=config.feat_extract_norm == "layer")


def state_template(
    origin: StartingPoint, optimizer: optax.GradientTransformation, mesh: Mesh, *, freeze: bool
) -> TrainState:
    """The training state's shapes, types and shardings, without an array. `freeze`: the feature encoder."""
    shapes = structure(origin.config, model=origin.task.head)[1]
    trained, frozen = partition(shapes, freeze_feature_encoder=freeze)
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), trained, frozen)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        state,
        sharding.tree_sharding(mesh, state),
    )


def new_state(
    origin: StartingPoint,
    optimizer: optax.GradientTransformation,
    template: TrainState,
    *,
    seed: int,
    freeze: bool,
) -> TrainState:
    """The state before the first step. Every array is made, or put, where the template says.

    Args:
        origin: the weights, or the architecture of random ones.
        optimizer: of the run.
        template: from `state_template`.
        seed: of new weights.
        freeze: whether the feature encoder is not trained.
    """
    where = jax.tree.map(lambda x: x.sharding, template)
    params = _initial_params(origin, combine(where.params, where.frozen), seed)
    trained, frozen = partition(params, freeze_feature_encoder=freeze)
    del params
    init = functools.partial(init_state, optimizer=optimizer)
    return jax.jit(init, out_shardings=where, donate_argnums=(0, 1))(trained, frozen)


def _initial_params(origin: StartingPoint, where: Params, seed: int) -> Params:
    """The model's parameters, placed by `where`, a tree of shardings."""
    if origin.weights is None:

        def make() -> Params:
            return split(origin.task.head(origin.config, nnx.Rngs(seed)))[1]

        return jax.jit(make, out_shardings=where)()

    def placement(path: tuple[str, ...], shape: tuple[int, ...]) -> jax.sharding.Sharding:
        node: Any = where
        for key in path:
            node = node[key]
        return node

    model = load_model(
        origin.weights,
        overrides=dataclasses.asdict(origin.config),
        fresh_head=origin.fresh_head,
        placement=placement,
        seed=seed,
    )
    return split(model)[1]

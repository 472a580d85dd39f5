"""TODO."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flax_wavlm.data.clips import describe_skipped
from flax_wavlm.data.corpora.load import load_corpus
from flax_wavlm.data.corpora.utterance import Utterance
from flax_wavlm.data.preprocessor import PREPROCESSOR_FILES, Preprocessor
from flax_wavlm.data.tokenizer import CTCTokenizer, normalise
from flax_wavlm.errors import UserError
from flax_wavlm.files import write_atomically, writing
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.models.heads import WavLMForCTC, structure
from flax_wavlm.models.parameters import Params, combine, count_parameters, partition, split
from flax_wavlm.parallel import sharding
from flax_wavlm.porting.load import load_model
from flax_wavlm.porting.pretrained import PretrainedWeights, open_weights
from flax_wavlm.training.config import DataSettings, TrainConfig
from flax_wavlm.training.state import TrainState, init_state

log = logging.getLogger(__name__)

# --- What the run starts from -------------------------------------------------------------------------------


class StartingPoint(NamedTuple):
    """Where the model comes from, and how it reads and writes."""

    checkpoint: PretrainedWeights | None  # None: random weights
    config: WavLMConfig
    fresh_head: bool
    tokenizer: CTCTokenizer
    preprocessor: Preprocessor


def load_split(data: DataSettings, split: str) -> list[Utterance]:
    """A split's utterances; what the corpus itself shows to be unusable is counted and named."""
    if data.corpus == "synthetic" and jax.process_index() == 0:
        from flax_wavlm.data.corpora.synthetic import make_corpus

        settings = data.synthetic
        make_corpus(
            Path(data.path),
            seed=settings.seed,
            train_clips=settings.train_clips,
            test_clips=settings.test_clips,
        )
    multihost_utils.sync_global_devices("corpus")
    utterances, skipped = load_corpus(
        data.corpus,
        data.path,
        split,
        held_out_speakers=data.held_out_speakers,
        audio_column=data.audio_column,
        text_column=data.text_column,
        hub_config=data.hub_config or None,
    )
    if skipped:
        log.warning("%s: %s", split, describe_skipped(skipped))
    return utterances


def open_starting_point(config: TrainConfig, texts: list[str]) -> StartingPoint:
    """Opens the checkpoint (or takes `model.config`), and settles tokenizer, preprocessor and head width."""
    checkpoint = open_weights(config.model.checkpoint) if config.model.checkpoint else None
    model_config = checkpoint.config if checkpoint else config.model.config
    assert model_config is not None  # `TrainConfig.check` saw to it
    tokenizer, fresh_head = _settle_head(config, checkpoint, texts)
    preprocessor = _settle_preprocessor(checkpoint, model_config)
    if model_config.feat_extract_norm == "group":
        log.warning(
            "a group-norm model (base): as in transformers, its training logits depend on the padding of the "
            "batch; evaluation treats each clip as if alone"
        )
    model_config = model_config.replace(
        **config.model_overrides(),
        vocab_size=tokenizer.size,
        pad_token_id=tokenizer.blank_id,
        ctc_loss_reduction=config.train.ctc_loss_reduction,
        ctc_zero_infinity=True,
    )
    if jax.process_index() == 0:
        processor = Path(config.workdir) / "processor"
        with writing(processor):
            tokenizer.save(processor)
            preprocessor.save(processor)
            write_atomically(processor / "config.json", json.dumps(model_config.to_hf(), indent=2) + "\n")
    return StartingPoint(checkpoint, model_config, fresh_head, tokenizer, preprocessor)


def _settle_head(
    config: TrainConfig, checkpoint: PretrainedWeights | None, texts: list[str]
) -> tuple[CTCTokenizer, bool]:
    """The tokenizer, and whether the CTC head is a new one: the two must mean the same by every output."""
    has_head = checkpoint is not None and checkpoint.has_head and not config.model.fresh_head
    if config.data.tokenizer:
        named: Path | str | None = config.data.tokenizer
    elif checkpoint is not None and has_head and (checkpoint.folder / "vocab.json").exists():
        named = checkpoint.folder
    else:
        named = None
    if named is None:
        if checkpoint is not None and has_head:
            log.warning(
                "%s: has a CTC head but no vocab.json that says what its outputs mean, so a new head "
                "is begun; to keep the head, name its tokenizer with --config.data.tokenizer",
                checkpoint.source,
            )
        tokenizer = CTCTokenizer.from_texts(normalise(text) for text in texts)
        log.info("a vocabulary of %d from the corpus's text", tokenizer.size)
        return tokenizer, True
    tokenizer = CTCTokenizer.from_pretrained(named)
    if checkpoint is not None and has_head and tokenizer.size != checkpoint.config.vocab_size:
        raise UserError(
            f"{named}: the tokenizer has {tokenizer.size} tokens, but the CTC head of {checkpoint.source} "
            f"has {checkpoint.config.vocab_size} outputs; give its own tokenizer, or start a new head with "
            "--config.model.fresh_head=true"
        )
    return tokenizer, not has_head


def _settle_preprocessor(checkpoint: PretrainedWeights | None, model_config: WavLMConfig) -> Preprocessor:
    """The checkpoint's own; else what its file says of normalisation; else normalised, as large is."""
    if checkpoint is not None and any((checkpoint.folder / name).exists() for name in PREPROCESSOR_FILES):
        return Preprocessor.from_pretrained(checkpoint.folder)
    said = checkpoint.do_normalize if checkpoint else None
    normalises = True if said is None else said
    if checkpoint is not None:
        log.warning("%s: no preprocessor_config.json; do_normalize = %s", checkpoint.source, normalises)
    return Preprocessor(normalises, return_attention_mask=model_config.feat_extract_norm == "layer")


def state_template(
    config: TrainConfig, origin: StartingPoint, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The training state's shapes, types and shardings, without an array."""
    freeze = config.model.freeze_feature_encoder
    trained, frozen = partition(structure(origin.config)[1], freeze_feature_encoder=freeze)
    log.info(
        "%.1f million parameters, %.1f million of them trained",
        count_parameters(combine(trained, frozen)) / 1e6,
        count_parameters(trained) / 1e6,
    )
    shapes = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), trained, frozen)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        sharding.tree_sharding(mesh, shapes),
    )


def new_state(
    config: TrainConfig, origin: StartingPoint, optimizer: optax.GradientTransformation, template: TrainState
) -> TrainState:
    """The state before the first step, every array made or put where the template says."""
    where = jax.tree.map(lambda x: x.sharding, template)
    params_where = combine(where.params, where.frozen)
    if origin.checkpoint is not None:

        def placement(path: tuple[str, ...], shape: tuple[int, ...]) -> jax.sharding.Sharding:
            node: Any = params_where
            for key in path:
                node = node[key]
            return node

        model = load_model(
            origin.checkpoint,
            overrides=dataclasses.asdict(origin.config),
            fresh_head=origin.fresh_head,
            placement=placement,
            seed=config.seed,
        )
        params = split(model)[1]
        del model
    else:

        def make() -> Params:
            return split(WavLMForCTC(origin.config, nnx.Rngs(config.seed)))[1]

        params = jax.jit(make, out_shardings=params_where)()
    trained, frozen = partition(params, freeze_feature_encoder=config.model.freeze_feature_encoder)
    del params
    init = functools.partial(init_state, optimizer=optimizer)
    return jax.jit(init, out_shardings=where, donate_argnums=(0, 1))(trained, frozen)

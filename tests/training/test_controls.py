"""The controls of a recipe: schedules, rates by part of the model, a head that goes first, an early end."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import traverse_util

from flax_wavlm.errors import UserError
from flax_wavlm.recognition.ctc_task import ctc_scoring
from flax_wavlm.training.config import OptimSettings, TrainConfig
from flax_wavlm.training.journal import Journal
from flax_wavlm.training.optimizer import adamw
from flax_wavlm.training.prepare import make_optimizer, make_schedule
from flax_wavlm.training.rates import rate_multipliers, rates_by_group
from flax_wavlm.training.stopping import steps_to_make

# --- Schedules ----------------------------------------------------------------------------------------------


def rates(optim: OptimSettings, total: int) -> np.ndarray:
    """The rate of every update of a run, and of a few after its end."""
    return np.asarray(jax.jit(jax.vmap(make_schedule(optim, total)))(np.arange(total + 3)))


def tri_stage(
    step: int, *, peak: float, warmup: int, hold: int, total: int, first: float, last: float
) -> float:
    """As fairseq writes it: three stages, each with its own count, and then a constant."""
    if step < warmup:
        return peak * first + (peak - peak * first) * step / warmup
    step -= warmup
    if step < hold:
        return peak
    step -= hold
    decay = total - warmup - hold
    factor = -math.log(last) / decay
    return peak * math.exp(-factor * step) if step <= decay else peak * last


@pytest.mark.parametrize(("total", "warmup", "hold"), [(20, 5, 8), (7, 3, 3), (9, 0, 0)])
def test_tri_stage_is_fairseqs(total: int, warmup: int, hold: int) -> None:
    optim = OptimSettings(3e-5, "tri_stage", warmup, hold, initial_share=0.02, final_share=0.05)
    expected = [
        tri_stage(step, peak=3e-5, warmup=warmup, hold=hold, total=total, first=0.02, last=0.05)
        for step in range(total + 3)
    ]
    np.testing.assert_allclose(rates(optim, total), expected, rtol=1e-5)
    assert rates(optim, total)[total] == pytest.approx(0.05 * 3e-5, rel=1e-5)


@pytest.mark.parametrize("name", ["cosine", "constant", "linear"])
@pytest.mark.parametrize(("total", "warmup"), [(20, 0), (20, 19)])
def test_other_schedules_are_transformers(name: str, total: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    kind = "constant_with_warmup" if name == "constant" else name
    scheduler = transformers.get_scheduler(kind, optimizer, warmup, total)
    factors = [scheduler.lr_lambdas[0](step) for step in range(total + 3)]
    found = rates(OptimSettings(1e-4, name, warmup), total)
    if name == "cosine":
        factors[total:] = [0.0] * 3  # transformers' goes up again after the end
        by_hand = [
            0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
            for step in range(warmup, total)
        ]
        np.testing.assert_allclose(found[warmup:total], 1e-4 * np.array(by_hand), rtol=1e-4, atol=1e-11)
    np.testing.assert_allclose(found, 1e-4 * np.array(factors), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        ({"warmup_steps": 10}, "optim.warmup_steps", "fewer than the 10 steps of the run"),
        (
            {"schedule": "tri_stage", "warmup_steps": 4, "hold_steps": 6},
            "optim.hold_steps",
            "fewer than the 10 steps of the run, together with the 4 of optim.warmup_steps",
        ),
    ],
)
def test_schedule_that_does_not_fit_the_run(settings: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        make_schedule(OptimSettings(**settings), 10)
    assert (raised.value.field, raised.value.expected) == (field, expected)


# --- Rates by part of the model -----------------------------------------------------------------------------

SHAPES = {
    ("wavlm", "feature_projection", "projection", "kernel"): (6, 5),
    ("wavlm", "mask_embedding"): (5,),
    ("wavlm", "encoder", "positions", "bias"): (5,),
    ("wavlm", "encoder", "norm", "scale"): (5,),
    ("wavlm", "encoder", "bucket_bias"): (4, 2),
    ("wavlm", "encoder", "layers", "feed_forward", "up", "kernel"): (3, 5, 7),
    ("wavlm", "encoder", "layers", "final_norm", "bias"): (3, 5),
    ("head", "kernel"): (5, 4),
    ("head", "bias"): (4,),
}
LAYERS, DECAY, HEAD = 3, 0.5, 4.0


def layer_of(path: tuple[str, ...], norm_last: bool) -> int:
    """The layer, or L for what has the whole rate, of an array that is not stacked."""
    whole = path[2:3] == ("bucket_bias",) or (norm_last and path[2:3] == ("norm",))
    return LAYERS if whole else 0


@pytest.mark.parametrize("norm_last", [True, False], ids=["large", "base"])
def test_multipliers(norm_last: bool) -> None:
    params = traverse_util.unflatten_dict({path: np.zeros(shape) for path, shape in SHAPES.items()})
    found = rate_multipliers(params, head=HEAD, layer_decay=DECAY, norm_last=norm_last)
    for path, multiplier in traverse_util.flatten_dict(found).items():
        if path[0] == "head":
            assert multiplier == HEAD
        elif "layers" in path:
            assert np.ravel(multiplier).tolist() == [0.25, 0.5, 1.0]
            assert multiplier.shape == (3, *[1] * (len(SHAPES[path]) - 1))
        else:
            assert multiplier == DECAY ** (LAYERS - layer_of(path, norm_last))


def test_rates_that_are_shown() -> None:
    controls = {"head": HEAD, "layer_decay": DECAY, "layers": LAYERS, "head_first_steps": 2}
    assert [list(rates_by_group(0.5, updates, **controls).values()) for updates in (1, 2)] == [
        [0.5, 0.5 * HEAD, 0.0, 0.0],
        [0.5, 0.5 * HEAD, 0.5, 0.5 * DECAY**LAYERS],
    ]
    controls |= {"head": 1.0, "layer_decay": 1.0, "head_first_steps": 0}
    assert rates_by_group(0.5, 1, **controls) == {"learning_rate": 0.5}


def random_tree(rng: np.random.Generator) -> dict[str, Any]:
    return traverse_util.unflatten_dict(
        {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    )


def torch_groups(params: dict[str, Any], peak: float, weight_decay: float) -> dict[Any, dict[str, Any]]:
    """A parameter group for each array, and for each layer of a stacked one, as PyTorch's users write it."""
    groups = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        parts = enumerate(leaf) if "layers" in path else [(None, leaf)]
        for index, part in parts:
            layer = layer_of(path, True) if index is None else index + 1
            rate = peak * (HEAD if path[0] == "head" else DECAY ** (LAYERS - layer))
            decayed = path[-1] not in ("bias", "scale")
            groups[path, index] = {
                "params": [torch.nn.Parameter(torch.tensor(np.array(part)))],
                "lr": rate,
                "weight_decay": weight_decay if decayed else 0.0,
            }
    return groups


def taken(tree: dict[str, Any], key: tuple[tuple[str, ...], int | None]) -> np.ndarray:
    path, index = key
    leaf = traverse_util.flatten_dict(tree)[path]
    return np.array(leaf if index is None else leaf[index])


@pytest.mark.parametrize("head_first", [0, 6])
def test_rates_by_layer_head_and_head_first_are_torchs(head_first: int) -> None:
    """Twenty updates beside torch's AdamW with a group a layer; an encoder that waits has no gradient."""
    rng = np.random.default_rng(0)
    optim = OptimSettings(
        0.05,
        "tri_stage",
        warmup_steps=4,
        hold_steps=5,
        weight_decay=0.1,
        head_learning_rate=0.05 * HEAD,
        layer_decay=DECAY,
    )
    schedule = make_schedule(optim, 20)
    optimizer = make_optimizer(optim, schedule, head_first_steps=head_first, norm_last=True)
    start = params = jax.tree.map(jnp.asarray, random_tree(rng))
    opt_state = optimizer.init(params)
    groups = torch_groups(params, 1.0, optim.weight_decay)
    reference = torch.optim.AdamW(list(groups.values()), betas=(0.9, 0.999), eps=1e-8)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        reference,
        lambda k: tri_stage(k, peak=0.05, warmup=4, hold=5, total=20, first=0.01, last=0.01),
    )
    update = jax.jit(optimizer.update)
    for step in range(20):
        grads = random_tree(rng)
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        for key, group in groups.items():
            waits = step < head_first and key[0][0] == "wavlm"
            group["params"][0].grad = None if waits else torch.tensor(taken(grads, key))
        torch.nn.utils.clip_grad_norm_([group["params"][0] for group in groups.values()], optim.clip_norm)
        reference.step()
        scheduler.step()
        for key, group in groups.items():
            expected = group["params"][0].detach().numpy()
            moved, wanted = (array - taken(start, key) for array in (taken(params, key), expected))
            assert np.linalg.norm(moved - wanted) <= 1e-3 * np.linalg.norm(wanted), (key, step)
        if step < head_first:
            for tree, before in ((params, start), (optax.tree_utils.tree_get(opt_state, "nu"), None)):
                for leaf, old in zip(
                    jax.tree.leaves(tree["wavlm"]),
                    jax.tree.leaves(tree["wavlm"] if before is None else before["wavlm"]),
                    strict=True,
                ):
                    np.testing.assert_array_equal(leaf, jnp.zeros_like(old) if before is None else old)


def test_defaults_leave_program_and_state_as_they_were() -> None:
    """Without the new settings nothing is multiplied or chosen; with them the state keeps its form."""
    params = random_tree(np.random.default_rng(0))
    plain = OptimSettings()
    schedule = make_schedule(plain, 2000)
    before = adamw(schedule, weight_decay=plain.weight_decay, clip_norm=plain.clip_norm)
    state = before.init(params)

    def program(optimizer: optax.GradientTransformation) -> str:
        return str(jax.make_jaxpr(optimizer.update)(params, state, params))

    assert program(make_optimizer(plain, schedule, norm_last=True)) == program(before)
    changed = make_optimizer(
        OptimSettings(head_learning_rate=1e-3, layer_decay=0.9), schedule, head_first_steps=5, norm_last=True
    )
    assert program(changed) != program(before)
    assert jax.tree.structure(changed.init(params)) == jax.tree.structure(state)


def test_update_that_is_left_out_leaves_everything() -> None:
    """Also while the encoder waits: an update that is not finite counts for no schedule."""
    params = random_tree(np.random.default_rng(0))
    optim = OptimSettings(head_learning_rate=1e-3, layer_decay=0.9)
    optimizer = make_optimizer(optim, make_schedule(optim, 2000), head_first_steps=2, norm_last=True)
    state = optimizer.init(params)
    bad = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), params)
    _, after = jax.jit(optimizer.update)(bad, state, params, finite=jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, after, state)


# --- An early end -------------------------------------------------------------------------------------------


def by_hand(scores: list[tuple[float, float]], patience: int) -> int:
    """The evaluation, counted from 1, after which the run ends: a loop as one writes it by hand."""
    best, waited = (math.inf, math.inf), 0
    for number, score in enumerate(scores, start=1):
        best, waited = (score, 0) if score < best else (best, waited + 1)
        if waited == patience:
            return number
    return len(scores)


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_early_stopping_is_the_loop_written_by_hand(
    patience: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Twenty evaluations, equals among them. From every step on, a resumed run ends at the same one."""
    caplog.set_level("INFO", "flax_wavlm")
    rng = np.random.default_rng(patience)
    scores = [(float(wer), float(loss)) for wer, loss in rng.integers(1, 4, (20, 2))]
    expected = 2 * (by_hand(scores, patience) if patience else 20)
    for resumed in (0, min(5, expected), expected):
        journal = Journal(tmp_path, lambda step: step / 10, ctc_scoring(), "dev")
        journal.go_back_to(resumed)
        made = resumed
        for step in steps_to_make(resumed, 40, journal, patience):
            made = step
            if step % 2 == 0:
                wer, loss = scores[step // 2 - 1]
                journal.write(step, "dev", {"wer": wer, "cer": 0.5, "loss": loss})
        assert made == expected
    if expected < 40:
        assert f"stopped early, at step {expected} of 40: the last {patience} evaluations" in caplog.text


# --- Values that cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("optim.schedule", "cosin", "one of linear, tri_stage, cosine, constant"),
        ("optim.hold_steps", 3, "0 where optim.schedule is 'linear'"),
        ("optim.initial_share", 1.5, "at most 1"),
        ("optim.final_share", 0.0, "above 0"),
        ("optim.layer_decay", 1.5, "at most 1"),
        ("optim.head_learning_rate", -1.0, "above 0"),
        ("train.head_first_steps", -1, "0 or more"),
        ("train.early_stopping", -1, "0 or more"),
        ("train.average_last", 1, "0 for no mean, or 2 to 100"),
    ],
)
def test_value_that_cannot_be(field: str, value: Any, says: str) -> None:
    config = TrainConfig(workdir="run")
    config.model.checkpoint, config.data.corpus, config.data.path = "model", "timit", "data"
    config.train.steps = 10
    config.check()
    group, name = field.split(".")
    setattr(getattr(config, group), name, value)
    with pytest.raises(UserError) as raised:
        config.check()
    assert (raised.value.field, raised.value.found) == (field, value)
    assert raised.value.expected.startswith(says)

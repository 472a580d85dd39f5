"""Checkpoints: bit for bit back, onto any mesh; which ones are kept, and which one is the best."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flax_wavlm.errors import UserError
from flax_wavlm.models.parameters import combine, partition
from flax_wavlm.parallel import sharding
from flax_wavlm.training.checkpoints import Checkpoints
from flax_wavlm.training.integrity import checksums, host_checksum
from flax_wavlm.training.optimizer import adamw
from flax_wavlm.training.state import TrainState, init_state

DEVICES = jax.device_count()
POSITION = {"next_index": 17, "epoch": {"seed": 3, "done": [1, 2]}, "name": "train"}
CONFIG = {"name": "test", "train": {"steps": 4, "held_out": ["a", "b"]}}


@pytest.fixture(autouse=True)
def _keep_absls_level() -> Iterator[None]:
    """`Checkpoints` quietens absl; other tests are not to see that."""
    logger = logging.getLogger("absl")
    level = logger.level
    yield
    logger.setLevel(level)


def new_params(seed: int) -> dict[str, Any]:
    """In the form of a model's; two arrays are large enough to be split over fsdp."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "wavlm": {
            "feature_encoder": {"conv0": {"conv": {"kernel": array(10, 1, 16), "bias": array(16)}}},
            "encoder": {"layers": {"up": {"kernel": array(2, 128, 96), "bias": array(2, 96)}}},
        },
        "head": {"kernel": array(512, 32), "bias": array(32)},
    }


def optimizer() -> optax.GradientTransformation:
    return adamw(optax.constant_schedule(1e-3), weight_decay=0.01, clip_norm=1.0)


def new_state(*, step: int, freeze: bool = True, seed: int = 0, fsdp: int = 1) -> TrainState:
    """A state that has seen a gradient, spread over the mesh."""
    trained, frozen = partition(new_params(seed), freeze_feature_encoder=freeze)
    state = init_state(trained, frozen, optimizer())
    grads, _ = partition(new_params(seed + 100), freeze_feature_encoder=freeze)
    _, opt_state = optimizer().update(grads, state.opt_state, trained)
    totals = {
        name: jnp.float32(np.random.default_rng(i + seed).normal()) for i, name in enumerate(state.totals)
    }
    state = state._replace(step=jnp.int32(step), opt_state=opt_state, totals=totals)
    return jax.device_put(state, sharding.tree_sharding(sharding.make_mesh(fsdp=fsdp), state))


def assert_bit_equal(ours: Any, expected: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype, name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


def save(checkpoints: Checkpoints, step: int, wer: float | None) -> None:
    """As a run does: the evaluation comes after the checkpoint."""
    checkpoints.save(new_state(step=step, seed=step), position={"at": step}, config=CONFIG)
    if wer is not None:
        checkpoints.ranks[step] = (wer, -step)


def steps_kept(checkpoints: Checkpoints) -> list[int]:
    checkpoints.wait()
    return checkpoints.steps()


# --- There and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen", "free"])
def test_round_trip(freeze: bool, tmp_path: Path) -> None:
    """By another process's eyes: the folder is opened anew. Nothing of `like` but its form may show."""
    state = new_state(step=3, freeze=freeze)
    writer = Checkpoints(tmp_path / "checkpoints")
    writer.save(state, position=POSITION, config=CONFIG)
    writer.close()
    reader = Checkpoints(tmp_path / "checkpoints")
    like = new_state(step=0, freeze=freeze, seed=1)
    found = reader.restore_newest(like, freeze_feature_encoder=freeze)
    assert found is not None
    step, restored, position = found
    assert step == 3
    assert_bit_equal(restored, state)
    assert isinstance(restored, TrainState)
    assert bool(restored.frozen) == freeze
    assert position == POSITION
    assert float(optax.tree_utils.tree_get(restored.opt_state, "mu")["head"]["bias"][0]) != 0
    # The optimizer takes it, and goes on as from the state that was saved.
    grads, _ = partition(new_params(7), freeze_feature_encoder=freeze)
    ours, expected = (optimizer().update(grads, s.opt_state, s.params) for s in (restored, state))
    assert_bit_equal(ours, expected)
    reader.close()


def test_saving_does_not_wait_for_the_next_step(tmp_path: Path) -> None:
    """What is saved is the state as it was, though its buffers are given up to the next one at once."""
    checkpoints = Checkpoints(tmp_path)
    state, expected = new_state(step=1), new_state(step=1)
    checkpoints.save(state, position=POSITION, config=CONFIG)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    jax.block_until_ready(step(state))
    assert state.params["head"]["kernel"].is_deleted()
    checkpoints.wait()
    restored = checkpoints.restore_newest(new_state(step=0, seed=1), freeze_feature_encoder=True)
    assert restored is not None
    assert_bit_equal(restored.state, expected)
    checkpoints.close()


@pytest.mark.skipif(DEVICES != 8, reason="needs 8 devices")
@pytest.mark.parametrize(("before", "after"), [(1, 4), (8, 1)], ids=["(8,1) to (2,4)", "(1,8) to (8,1)"])
def test_restore_onto_another_mesh(before: int, after: int, tmp_path: Path) -> None:
    state, like = new_state(step=2, fsdp=before), new_state(step=0, seed=1, fsdp=after)
    kernel = state.params["wavlm"]["encoder"]["layers"]["up"]["kernel"]
    assert kernel.sharding.is_fully_replicated == (before == 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, position=POSITION, config=CONFIG)
    checkpoints.wait()
    found = checkpoints.restore_newest(like, freeze_feature_encoder=True)
    assert found is not None
    restored = found.state
    assert_bit_equal(restored, state)
    for ours, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert ours.sharding == wanted.sharding
    split = [leaf for leaf in jax.tree.leaves(restored) if not leaf.sharding.is_fully_replicated]
    assert len(split) == (0 if after == 1 else 6)  # two kernels, each with two moments
    assert all(leaf.addressable_data(0).size * after == leaf.size for leaf in split)
    checkpoints.close()


def test_restore_params(tmp_path: Path) -> None:
    """Trained and frozen in one tree, whichever they were."""
    state = new_state(step=5)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, position=POSITION, config=CONFIG)
    checkpoints.wait()
    like = combine(*partition(new_params(1), freeze_feature_encoder=False))
    params = checkpoints.restore_params(5, like)
    expected = combine(state.params, state.frozen)
    assert params["wavlm"].keys() == {"feature_encoder", "encoder"}
    for (path, a), (other, b) in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree_util.tree_leaves_with_path(expected),
        strict=True,
    ):
        assert path == other
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    checkpoints.close()


# --- Which are kept, and which is which ---------------------------------------------------------------------


def test_latest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    kept = []
    for step, wer in ((1, 0.9), (2, 0.3), (3, 0.5), (4, 0.6), (5, 0.2), (6, 0.4), (7, 0.25), (8, 0.9)):
        save(checkpoints, step, wer)
        kept.append(steps_kept(checkpoints))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [5, 6, 7], [5, 7, 8]]
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (5, 8)
    checkpoints.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [5, 7, 8]
    again = Checkpoints(tmp_path, checkpoints.ranks)
    assert (again.best_step(), again.latest_step(), steps_kept(again)) == (5, 8, [5, 7, 8])
    best = combine(*partition(new_params(5), freeze_feature_encoder=True))
    assert_bit_equal(
        again.restore_params(5, combine(*partition(new_params(1), freeze_feature_encoder=True))), best
    )
    found = again.restore_newest(new_state(step=0), freeze_feature_encoder=True)
    assert found is not None
    assert_bit_equal(found.state, new_state(step=8, seed=8))
    assert (found.step, found.position) == (8, {"at": 8})
    again.close()


def test_what_an_average_needs_is_kept(tmp_path: Path) -> None:
    """The last three evaluated ones beside the latest two and the best; and their mean."""
    checkpoints = Checkpoints(tmp_path, evaluated_kept=3)
    scores = (0.1, None, 0.5, None, 0.6, None, 0.7, None, 0.8, None, None)
    for step, wer in enumerate(scores, start=1):
        save(checkpoints, step, wer)
    assert steps_kept(checkpoints) == [1, 5, 7, 9, 10, 11]
    assert checkpoints.last_evaluated(3) == [5, 7, 9]
    assert checkpoints.last_evaluated(99) == [1, 5, 7, 9]
    assert checkpoints.last_evaluated(0) == []
    like = combine(*partition(new_params(1), freeze_feature_encoder=True))
    trees = [combine(*partition(new_params(step), freeze_feature_encoder=True)) for step in (5, 7, 9)]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        checkpoints.restore_mean([5, 7, 9], like),
        expected,
    )
    assert_bit_equal(checkpoints.restore_mean([7, 7, 7], like), trees[1])
    checkpoints.close()


def test_checkpoints_without_an_evaluation(tmp_path: Path) -> None:
    """They are resumed from, are never the best, and do not push it out."""
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (None, None)
    save(checkpoints, 1, None)
    assert steps_kept(checkpoints) == [1]
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (None, 1)
    save(checkpoints, 2, 0.5)
    for step in (3, 4, 5):
        save(checkpoints, step, None)
    assert steps_kept(checkpoints) == [2, 4, 5]
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 5)
    checkpoints.close()
    again = Checkpoints(tmp_path, checkpoints.ranks)
    assert (again.best_step(), again.latest_step()) == (2, 5)
    again.close()


def test_the_later_of_equals_is_the_best(tmp_path: Path) -> None:
    """As in the table of results."""
    checkpoints = Checkpoints(tmp_path)
    for step, wer in ((1, 0.5), (2, 0.5), (3, 0.7), (4, 0.8)):
        save(checkpoints, step, wer)
    assert checkpoints.best_step() == 2
    assert steps_kept(checkpoints) == [2, 3, 4]  # the best is kept, and not its equal
    checkpoints.close()


def test_a_failed_computation_is_no_fault_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of another process shows where a result is waited for: it may be in the writer."""

    def raising(error: Exception) -> Callable[..., None]:
        def save(*_: object, **__: object) -> None:
            raise error

        return save

    with Checkpoints(tmp_path) as checkpoints:
        lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
        monkeypatch.setattr(checkpoints.manager, "save", raising(lost))
        with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"):
            save(checkpoints, 1, wer=0.5)
        monkeypatch.setattr(checkpoints.manager, "save", raising(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match=r"No space left.*see to the disk's space"):
            save(checkpoints, 1, wer=0.5)


def test_resolve(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for name in ("best", "latest", "1"):
        with pytest.raises(UserError, match="there are none") as raised:
            checkpoints.resolve(name)
        assert str(tmp_path) in str(raised.value)
    save(checkpoints, 10, None)
    with pytest.raises(UserError, match="no checkpoint 'best'; there are 10"):
        checkpoints.resolve("best")
    save(checkpoints, 20, 0.5)
    save(checkpoints, 30, 0.6)
    checkpoints.wait()
    assert checkpoints.resolve("best") == 20
    assert checkpoints.resolve("latest") == 30
    assert checkpoints.resolve("20") == 20
    for bad in ("10", "25", "-1", "2.0", "newest", "", "Best"):
        with pytest.raises(UserError) as raised:
            checkpoints.resolve(bad)
        for part in (str(tmp_path), repr(bad), "20, 30", "best, latest"):
            assert part in str(raised.value)
    checkpoints.close()


# --- Damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fsdp", [1, min(8, DEVICES)])
def test_checksums_do_not_depend_on_the_mesh_and_are_the_hosts(fsdp: int) -> None:
    state = new_state(step=1, fsdp=fsdp)
    on_devices = checksums(state)
    assert on_devices == checksums(new_state(step=1))
    for (path, leaf), value in zip(
        jax.tree_util.tree_leaves_with_path(state), on_devices.values(), strict=True
    ):
        assert host_checksum(np.asarray(leaf)) == value, path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_checksum_sees_every_bit_and_every_place(dtype: str) -> None:
    array = np.asarray(jnp.arange(1, 61, dtype=dtype).reshape(3, 4, 5))
    expected = host_checksum(array)
    assert checksums({"a": jnp.asarray(array)}) == {"['a']": expected}
    for byte in range(array.nbytes):
        for bit in range(8):
            changed = bytearray(array.tobytes())
            changed[byte] ^= 1 << bit
            assert host_checksum(np.frombuffer(changed, array.dtype)) != expected
    assert host_checksum(array[::-1]) != expected


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


DAMAGE = {
    "a bit flipped": flip,
    "half of it": lambda content: content[: len(content) // 2],
    "emptied": lambda _: b"",
}


@pytest.mark.parametrize("how", [*DAMAGE, "deleted"])
def test_damage_to_any_file_is_noticed_or_harmless(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, measured: Callable[[str], None]
) -> None:
    """Every file of the newest checkpoint in turn: what is restored is the newest whole one, bit for bit."""
    with Checkpoints(tmp_path / "good") as checkpoints:
        for step in (1, 2):
            checkpoints.save(new_state(step=step, seed=step), position={"at": step}, config=CONFIG)
    files = sorted(p.relative_to(tmp_path / "good") for p in (tmp_path / "good/2").rglob("*") if p.is_file())
    assert len(files) > 10
    noticed = 0
    for number, file in enumerate(files):
        folder = tmp_path / f"{number}" / "checkpoints"
        shutil.copytree(tmp_path / "good", folder)
        if how == "deleted":
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(DAMAGE[how]((folder / file).read_bytes()))
        caplog.clear()
        with caplog.at_level("WARNING", "flax_wavlm"), Checkpoints(folder) as checkpoints:
            found = checkpoints.restore_newest(new_state(step=0), freeze_feature_encoder=True)
        assert found is not None
        assert found.position == {"at": found.step}
        assert_bit_equal(found.state, new_state(step=found.step, seed=found.step))
        if found.step == 1:
            noticed += 1
            assert f"{folder}/2: damaged" in caplog.text
            assert sorted(path.name for path in (folder.parent / "damaged").iterdir()) == ["2.1"]
    measured(f"{how}: {noticed} of {len(files)} files matter, and each of these was noticed")
    assert noticed >= 5


def test_all_damaged(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(new_state(step=step), position={}, config=CONFIG)
    for file in tmp_path.glob("*/record/metadata"):
        file.write_bytes(flip(file.read_bytes()))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r"none of its checkpoints can be used \(1: .*; 2: ") as raised:
            checkpoints.restore_newest(new_state(step=0), freeze_feature_encoder=True)
        assert str(tmp_path) in str(raised.value)
        assert checkpoints.steps() == [1, 2]
        with pytest.raises(UserError, match=r"damaged .*give another step"):
            checkpoints.restore_params(2, new_params(0))

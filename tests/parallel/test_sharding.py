"""The mesh, the rule that places parameters, and the placement of batches, on eight devices or one."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from flax_wavlm.errors import UserError
from flax_wavlm.parallel import sharding

DEVICES = jax.device_count()
eight = pytest.mark.skipif(DEVICES != 8, reason="needs 8 devices")


def test_mesh_takes_all_devices() -> None:
    mesh = sharding.make_mesh()
    assert dict(mesh.shape) == {"data": DEVICES, "fsdp": 1}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert dict(sharding.make_mesh(1, DEVICES).shape) == {"data": 1, "fsdp": DEVICES}


@eight
@pytest.mark.parametrize(
    ("data", "fsdp", "shape"), [(-1, 2, (4, 2)), (-1, 4, (2, 4)), (4, 2, (4, 2)), (-1, 8, (1, 8))]
)
def test_mesh_shapes(data: int, fsdp: int, shape: tuple[int, int]) -> None:
    mesh = sharding.make_mesh(data, fsdp)
    assert tuple(mesh.shape[name] for name in ("data", "fsdp")) == shape
    assert len({device.id for device in mesh.devices.flat}) == 8


@pytest.mark.parametrize(
    ("data", "fsdp"), [(-1, 3), (-1, 0), (-1, -1), (3, 1), (0, 1), (-2, 1), (DEVICES, 2), (-1, 16)]
)
def test_mesh_that_does_not_fit(data: int, fsdp: int) -> None:
    with pytest.raises(UserError) as raised:
        sharding.make_mesh(data, fsdp)
    for part in (f"mesh.data = {data}", f"mesh.fsdp = {fsdp}", f"{DEVICES} devices", "expected"):
        assert part in str(raised.value)


LARGE = 2**14


@eight
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((256, 1024), P(None, "fsdp")),  # the largest axis
        ((1024, 256), P("fsdp")),
        ((256, 256), P(None, "fsdp")),  # the last of equals
        ((24, 1024, 3, 1024), P(None, None, None, "fsdp")),
        ((24, 1024, 3, 1022), P(None, "fsdp")),  # the largest that can be divided
        ((24, 1023, 3, 1021), P("fsdp")),
        ((1023, 1023), P()),  # none can
        ((LARGE,), P("fsdp")),
        ((LARGE - 4,), P()),  # small ones stay whole
        ((127, 128), P()),
        ((128, 128), P(None, "fsdp")),
        ((), P()),
    ],
    ids=str,
)
def test_parameter_rule(shape: tuple[int, ...], expected: P) -> None:
    mesh = sharding.make_mesh(fsdp=4)
    placed = sharding.parameter_sharding(mesh, shape)
    assert placed.spec == expected
    assert placed.mesh == mesh
    size = np.prod(placed.shard_shape(shape), dtype=int) * (4 if expected != P() else 1)
    assert size == np.prod(shape, dtype=int)


def test_parameters_are_whole_without_fsdp() -> None:
    for shape in ((1024, 1024), (24, 1024, 3, 1024), (4,)):
        assert sharding.parameter_sharding(sharding.make_mesh(), shape).spec == P()


@eight
def test_tree_sharding_and_the_others() -> None:
    mesh = sharding.make_mesh(fsdp=2)
    tree = {"a": jax.ShapeDtypeStruct((512, 64), "float32"), "b": {"c": np.zeros(3)}}
    placed = sharding.tree_sharding(mesh, tree)
    assert placed["a"].spec == P("fsdp")
    assert placed["b"]["c"].spec == P()
    assert sharding.replicated(mesh).spec == P()
    assert sharding.batch_sharding(mesh).shard_shape((16, 5)) == (2, 5)


@pytest.mark.parametrize(("batch_size", "parts"), [(1, 1), (2, 1), (4, 2), (12, 3)])
def test_batch_sizes_that_fit(batch_size: int, parts: int) -> None:
    sharding.check_batch_size("train.batch_size", batch_size * DEVICES, sharding.make_mesh(), parts)


@eight
@pytest.mark.parametrize(
    ("batch_size", "parts", "expected", "near"),
    [
        (4, 1, "a multiple of 8", "such as 8"),
        (0, 1, "a multiple of 8", "such as 8"),
        (-8, 1, "a multiple of 8", "such as 8"),
        (33, 1, "a multiple of 8", "such as 32"),
        (30, 1, "a multiple of 8", "such as 32"),
        (24, 2, "a multiple of 16", "such as 32"),
        (8, 4, "a multiple of 32", "such as 32"),
    ],
)
def test_batch_sizes_that_do_not_fit(batch_size: int, parts: int, expected: str, near: str) -> None:
    with pytest.raises(UserError) as raised:
        sharding.check_batch_size("train.batch_size", batch_size, sharding.make_mesh(fsdp=2), parts)
    message = str(raised.value)
    for part in (f"train.batch_size = {batch_size} ", "8 devices", expected, near):
        assert part in message
    assert (f"times {parts} accumulation steps" in message) == (parts > 1)
    suggested = int(near.removeprefix("such as "))
    sharding.check_batch_size("train.batch_size", suggested, sharding.make_mesh(fsdp=2), parts)


def test_batch_size_of_a_single_device_is_at_least_one() -> None:
    with pytest.raises(UserError, match=r"train\.eval_batch_size = 0"):
        sharding.check_batch_size("train.eval_batch_size", 0, sharding.make_mesh())


def test_put_batch() -> None:
    mesh = sharding.make_mesh(fsdp=2 if DEVICES == 8 else 1)
    rows = 2 * DEVICES
    batch = {
        "input_values": np.arange(rows * 5, dtype=np.float32).reshape(rows, 5),
        "valid": np.arange(rows) % 3 == 0,
        "lengths": np.arange(rows, dtype=np.int32),
    }
    put = sharding.put_batch(mesh, batch)
    assert put.keys() == batch.keys()
    for name, array in put.items():
        assert array.dtype == batch[name].dtype
        np.testing.assert_array_equal(array, batch[name])
        assert len(array.addressable_shards) == DEVICES
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, batch[name][shard.index])
            assert len(shard.data) == 2
        assert len({shard.index[0].start for shard in array.addressable_shards}) == DEVICES

"""CheckpointStore in one process: content, damage, retention, other meshes, errors."""

import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxbert.config import MeshConfig
from flaxbert.core.arrays import QuantizedArray, SparseArray
from flaxbert.core.sharding import build_mesh
from flaxbert.errors import CheckpointError
from flaxbert.train.checkpoint import CheckpointStore
from tests.helpers import slow_unless


def make_state(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    trainable = {
        "encoder.layers.0.query.kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
        "classifier.bias": jnp.asarray(rng.normal(size=8), jnp.float32),
    }
    return {
        "step": jnp.int32(seed),
        "trainable": trainable,
        "frozen": {
            "pooler.kernel@codes": jnp.asarray(rng.integers(-127, 128, (16, 8)), jnp.int8),
            "pooler.kernel@scale": jnp.asarray(rng.random((1, 8)), jnp.float32),
        },
        "optimizer": jax.jit(optax.adamw(1e-3).init)(trainable),
    }


def assert_same_bits(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).shape == np.asarray(b).shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def names_in(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save_steps(folder: pathlib.Path, steps, **options) -> None:
    with CheckpointStore(folder, **options) as store:
        for step in steps:
            store.save(step, make_state(step), host={"step": step}, metric=1.0 / step)


def test_version_comes_back_bit_for_bit_with_its_host_document(tmp_path):
    state = make_state(7)
    host = {
        "data": {"position": 3, "epoch": 1},
        "seed": 0,
        "text": "naïve 中文",
        "metrics": [0.1, 1e-300],
        "none": None,
    }
    with CheckpointStore(tmp_path / "checkpoints") as store:
        assert store.newest_good() is None
        assert store.save(7, state, host=host, kinds={"pooler.kernel": "quantized"}, metric=0.5)
        info = store.newest_good()
        assert (info.step, info.metric, info.good, info.is_newest, info.is_best) == (7, 0.5, True, True, True)
        assert info.num_leaves == len(jax.tree.leaves(state))
        assert_same_bits(store.restore(info, make_state(1), kinds={"pooler.kernel": "quantized"}), state)
        assert store.read_host(info) == host
    assert names_in(tmp_path / "checkpoints") == [".lock", "7"]


ODD_ARRAYS = {
    "float32_specials": np.array([-0.0, 0.0, np.inf, -np.inf, 1e-45], np.float32),
    "float32_nan_payloads": np.array([0x7FC00001, 0xFFC00002, 0x7F800001], np.uint32).view(np.float32),
    "only_negative_zeros": np.full((40,), -0.0, np.float32),
    "float64": np.array([np.pi, 2.0**-1074]),
    "int64": np.array([2**62, -(2**63)]),
    "scalar": np.float32(2.5),
    "bool": np.array([True, False]),
    "bfloat16": jnp.asarray([1.5, -0.0, jnp.nan], jnp.bfloat16),
    "float16": jnp.asarray([65504, 6e-8], jnp.float16),
    "float8": jnp.asarray([1.0, -0.5], jnp.float8_e4m3fn),
    "int4": jnp.arange(-8, 8, dtype=jnp.int8).astype(jnp.int4).reshape(4, 4),
    "int8": jnp.arange(-128, 128, dtype=jnp.int16).astype(jnp.int8),
    "uint32_key": jax.random.key_data(jax.random.key(3)),
    "odd.name/with [brackets] 'quotes' ü": jnp.ones((1, 1, 3)),
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_odd_dtypes_values_and_names_keep_their_bits(tmp_path, name):
    tree = {name: ODD_ARRAYS[name], "beside": np.arange(3)}
    with CheckpointStore(tmp_path) as store:
        store.save(1, tree)
        assert_same_bits(store.restore(store.newest_good(), tree), tree)


def test_python_numbers_and_typed_leaves_come_back_as_they_were(tmp_path):
    tree = {
        "count": 3,
        "rate": 0.1,
        "flag": True,
        "kernel": QuantizedArray(jnp.ones((4, 2), jnp.int8), jnp.ones((1, 2), jnp.float32)),
        "mask": SparseArray(jnp.ones((4, 2), jnp.float32), jnp.asarray(np.eye(4, 2), bool)),
        "nothing": None,
    }
    with CheckpointStore(tmp_path) as store:
        store.save(1, tree)
        info = store.newest_good()
        restored = store.restore(info, tree)
        document = json.loads((info.path / "version.json").read_text())
    assert [type(restored[name]) for name in ("count", "rate", "flag")] == [int, float, bool]
    assert isinstance(restored["kernel"], QuantizedArray)
    assert_same_bits(restored, tree)
    assert document["kinds"] == {"kernel": "quantized", "mask": "sparse"}
    assert document["leaves"]["kernel@codes"] == {"shape": [4, 2], "dtype": "int8"}


def test_arrays_may_be_donated_or_changed_as_soon_as_save_returns(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    tree = {f"kernel_{index}": jnp.full((512, 512), float(index)) for index in range(8)}
    host_array = np.zeros((512, 512), np.float32)
    expected = {**{name: np.array(leaf) for name, leaf in tree.items()}, "host": host_array.copy()}
    with CheckpointStore(tmp_path) as store:
        store.save(1, {**tree, "host": host_array})
        host_array[:] = 9
        for _ in range(10):
            tree = advance(tree)
        jax.block_until_ready(tree)
        restored = store.restore(store.newest_good(), expected)
    assert_same_bits(restored, expected)


def test_save_returns_before_the_version_exists_and_wait_brings_it(tmp_path, monkeypatch):
    import threading

    import flaxbert.train.checkpoint as module

    go, real = threading.Event(), module.write_manifest
    monkeypatch.setattr(module, "write_manifest", lambda folder: (go.wait(30), real(folder))[1])
    with CheckpointStore(tmp_path) as store:
        store.save(1, make_state(1))
        assert store.list() == []
        store.raise_failure()
        go.set()
        store.wait()
        assert [info.step for info in store.list()] == [1]


def test_saving_a_stored_step_again_changes_nothing(tmp_path):
    with CheckpointStore(tmp_path) as store:
        assert store.save(5, make_state(5))
        assert not store.save(5, make_state(6))
        assert_same_bits(store.restore(store.newest_good(), make_state(0)), make_state(5))


def test_a_version_is_replaced_whole_or_not_at_all(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(5, make_state(5))
        assert store.save(5, make_state(6), metric=0.5, replace=True)
        assert store.best_good().step == 5
        assert_same_bits(store.restore(store.list()[0], make_state(0)), make_state(6))
        assert names_in(tmp_path) == [".lock", "5"]
    for name, kept in ((".5.replaced", ["5"]), (".7.replaced", ["5", "7"])):
        shutil.copytree(tmp_path / "5", tmp_path / name)
        with CheckpointStore(tmp_path) as store:
            assert names_in(tmp_path) == [".lock", *kept]
            assert_same_bits(store.restore(store.list()[0], make_state(0)), make_state(6))


def test_keeps_the_newest_and_the_best(tmp_path):
    metrics = {1: 0.1, 2: 0.9, 3: None, 4: 0.9, 5: 0.2, 10: float("nan")}
    with CheckpointStore(tmp_path, keep=2) as store:
        for step, metric in metrics.items():
            store.save(step, {"a": np.float32(step)}, metric=metric)
        store.wait()
        assert [(info.step, info.is_newest, info.is_best) for info in store.list()] == [
            (2, False, True),
            (5, False, False),
            (10, True, False),
        ]
        assert store.best_good().step == 2


def test_lower_can_be_better(tmp_path):
    with CheckpointStore(tmp_path, keep=1, higher_is_better=False) as store:
        for step, metric in ((1, 0.5), (2, 0.1), (3, 0.3), (4, 0.4)):
            store.save(step, {"a": np.float32(step)}, metric=metric)
        store.wait()
        assert [info.step for info in store.list()] == [2, 4]
        assert store.best_good().step == 2


def version_files(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    slow_unless(lambda damage: damage is _flip, [_flip, _truncate, pathlib.Path.unlink]),
    ids=["flipped", "truncated", "missing"],
)
def test_damage_of_any_file_is_named_set_aside_and_the_version_before_used(tmp_path, damage):
    save_steps(tmp_path, [1, 2])
    names = version_files(tmp_path / "2")
    assert {"manifest.json", "version.json", "host.json", "arrays/_METADATA", "arrays/manifest.ocdbt"} <= set(names)
    import shutil

    shutil.copytree(tmp_path / "2", tmp_path / "whole")
    with CheckpointStore(tmp_path, keep=2) as store:
        for number, name in enumerate(names, 1):
            damage(tmp_path / "2" / name)
            with pytest.warns(RuntimeWarning, match="step 2 .* is damaged") as caught:
                info = store.newest_good()
            assert f"({name}: " in str(caught[0].message), (name, str(caught[0].message))
            assert info.step == 1
            assert_same_bits(store.restore(info, make_state(0)), make_state(1))
            aside = tmp_path / ("2.damaged" if number == 1 else f"2.damaged.{number}")
            assert aside.is_dir()
            assert not (tmp_path / "2").exists()
            shutil.copytree(tmp_path / "whole", tmp_path / "2")
        assert store.newest_good().step == 2
        damaged = [info for info in store.list() if not info.good]
        assert len(damaged) == len(names)
        assert not any(info.is_newest or info.is_best for info in damaged)


def test_damaged_best_gives_way_to_the_next_best(tmp_path):
    save_steps(tmp_path, [1, 2, 3], keep=3)
    _flip(tmp_path / "1" / "host.json")
    with CheckpointStore(tmp_path) as store, pytest.warns(RuntimeWarning, match="host.json"):
        assert store.best_good().step == 2


@pytest.mark.parametrize("where", [b'"software"', b'"step"', b'"shape"'])
def test_all_damaged_is_an_error_that_lists_them_now_and_at_the_next_start(tmp_path, where):
    save_steps(tmp_path, [1, 2])
    for step in (1, 2):  # still JSON, so that only the digest tells
        path = tmp_path / str(step) / "version.json"
        content = path.read_bytes()
        assert where in content
        path.write_bytes(content.replace(where, where[:1] + b"S" + where[2:], 1))
    for _ in range(2):
        with CheckpointStore(tmp_path) as store, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with pytest.raises(
                CheckpointError, match=r"All checkpoints in .*\n  1\.damaged: version\.json.*\n  2\.damaged: version"
            ):
                store.newest_good()


def test_step_of_a_set_aside_version_can_be_saved_again(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "2" / "manifest.json").unlink()
    with CheckpointStore(tmp_path) as store:
        with pytest.warns(RuntimeWarning, match="manifest.json"):
            assert store.newest_good().step == 1
        assert store.save(2, make_state(2))
        assert store.newest_good().step == 2


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2)])
def test_restores_on_another_mesh(tmp_path, shape):
    saved_mesh = build_mesh(MeshConfig(data=2, fsdp=4, tensor=1))
    data, fsdp, tensor = shape
    mesh = build_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    values = {"kernel": np.arange(128, dtype=np.float32).reshape(16, 8), "step": np.int32(4)}
    specs = {"kernel": PartitionSpec("fsdp", "tensor"), "step": PartitionSpec()}
    placed = {name: jax.device_put(value, NamedSharding(saved_mesh, specs[name])) for name, value in values.items()}
    like = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, specs[name]))
        for name, value in values.items()
    }
    with CheckpointStore(tmp_path) as store:
        store.save(4, placed)
        restored = store.restore(store.newest_good(), like)
    assert_same_bits(restored, values)
    assert restored["kernel"].sharding.is_equivalent_to(like["kernel"].sharding, 2)
    assert restored["kernel"].addressable_shards[0].data.shape == (16 // fsdp, 8 // tensor)


def test_leaves_without_sharding_come_back_on_the_host(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"a": jnp.arange(4)})
        restored = store.restore(store.newest_good(), {"a": jax.ShapeDtypeStruct((4,), jnp.int32)})
    assert type(restored["a"]) is np.ndarray
    assert restored["a"].tolist() == [0, 1, 2, 3]


def test_another_structure_is_an_error_that_lists_the_differences(tmp_path):
    state = make_state(1)
    other = make_state(1)
    trainable = other["trainable"]
    trainable["encoder.layers.1.query.kernel"] = trainable.pop("encoder.layers.0.query.kernel")
    trainable["classifier.bias"] = jnp.zeros(9)
    other["step"] = np.int64(1)
    with CheckpointStore(tmp_path) as store:
        store.save(1, state, kinds={"pooler.kernel": "quantized"})
        with pytest.raises(CheckpointError) as caught:
            store.restore(store.newest_good(), other, kinds={"pooler.kernel": "sparse"})
    message = str(caught.value)
    assert "only in the model: trainable.encoder.layers.1.query.kernel Did you mean" in message
    assert "only in the checkpoint: trainable.encoder.layers.0.query.kernel" in message
    assert "trainable.classifier.bias (checkpoint float32[8], model float32[9])" in message
    assert "step (checkpoint int32[], model int64[])" in message
    assert "pooler.kernel (checkpoint quantized, model sparse)" in message


UNSTORABLE = {
    "array without entries": (
        {"a": np.ones(3), "layer.kernel": np.zeros((0, 4))},
        r"layer\.kernel.*\(0, 4\).*without entries",
    ),
    "text": ({"layer.name": "bert"}, r"layer\.name.*str"),
    "text array": ({"layer.name": np.array(["bert"])}, r"layer\.name.*dtype <U4"),
    "unknown dtype": ({"codes": jnp.ones((2, 2), jnp.uint4)}, "codes.*uint4"),
    "one name twice": ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, r"Two leaves.*a\.b"),
}


@pytest.mark.parametrize("case", UNSTORABLE)
def test_what_can_not_be_stored_is_refused_before_anything_is_written(tmp_path, case):
    tree, message = UNSTORABLE[case]
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(CheckpointError, match=message):
            store.save(1, tree)
        assert names_in(tmp_path) == [".lock"]
        assert store.save(2, {"a": np.ones(1)})
        assert store.newest_good().step == 2


def test_random_keys_are_refused_with_the_way_to_store_them(tmp_path):
    with CheckpointStore(tmp_path) as store, pytest.raises(CheckpointError, match="key_data"):
        store.save(1, {"key": jax.random.key(0)})


def test_host_document_that_is_no_json_is_refused(tmp_path):
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(CheckpointError, match=r"host document.*PosixPath"):
            store.save(1, {"a": np.ones(1)}, host={"path": pathlib.Path("x")})
        assert store.save(
            2, {"a": np.ones(1)}, host={"metric": np.float32(0.5), "step": np.int64(2), "nan": float("nan")}
        )
        host = store.read_host(store.newest_good())
    assert (host["metric"], host["step"]) == (0.5, 2)
    assert np.isnan(host["nan"])


def test_too_little_free_space_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    with CheckpointStore(tmp_path) as store:
        store.save(1, make_state(1))
        store.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        with pytest.raises(CheckpointError, match=r"step 2 in .*needs about [\d,]{9,} bytes, 1,000,000 are free"):
            store.save(2, make_state(2))
        assert store.newest_good().step == 1
    assert names_in(tmp_path) == [".lock", "1"]


def test_failure_in_the_background_is_raised_once_and_leaves_nothing(tmp_path, monkeypatch):
    import flaxbert.train.checkpoint as module

    def fail(folder):
        raise OSError(28, "No space left on device")

    with CheckpointStore(tmp_path) as store:
        store.save(1, make_state(1))
        store.wait()
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_manifest", fail)
            store.save(2, make_state(2))
            with pytest.raises(CheckpointError, match="no room for the checkpoint of step 2"):
                store.save(3, make_state(3))
        assert names_in(tmp_path) == [".lock", "1"]
        store.save(3, make_state(3))
        assert store.newest_good().step == 3


def test_failure_while_closing_does_not_hide_the_error_of_the_body(tmp_path, monkeypatch):
    import flaxbert.train.checkpoint as module

    def fail(folder):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "write_manifest", fail)

    def fail_in_body() -> None:
        with CheckpointStore(tmp_path) as store:
            store.save(1, make_state(1))
            raise KeyError("body")

    with pytest.raises(KeyError, match="body") as caught:
        fail_in_body()
    assert "checkpoint of step 1 could not be written" in caught.value.__notes__[0]
    with pytest.raises(CheckpointError, match="could not be written"), CheckpointStore(tmp_path) as store:
        store.save(1, make_state(1))


def test_leftovers_of_a_killed_process_are_removed_at_the_next_start(tmp_path):
    save_steps(tmp_path, [1])
    for name in (".2.saving/arrays.orbax-checkpoint-tmp", ".1.removing"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "half").write_bytes(b"x")
    (tmp_path / "notes").mkdir()
    with CheckpointStore(tmp_path) as store:
        assert names_in(tmp_path) == [".lock", "1", "notes"]
        assert store.newest_good().step == 1


def test_second_writer_is_refused_until_the_first_closes(tmp_path):
    with CheckpointStore(tmp_path), pytest.raises(CheckpointError, match="already open for writing in this process"):
        CheckpointStore(tmp_path)
    CheckpointStore(tmp_path).close()


def test_folder_that_can_not_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can not be written to"):
        CheckpointStore(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match="keep is 0"):
        CheckpointStore(tmp_path / "checkpoints", keep=0)


def test_reading_a_version_that_is_gone_is_an_error(tmp_path):
    import shutil

    with CheckpointStore(tmp_path) as store:
        store.save(1, {"a": np.ones(1)})
        info = store.newest_good()
        shutil.rmtree(info.path / "arrays")
        with pytest.raises(CheckpointError, match="could not be read"):
            store.restore(info, {"a": np.ones(1)})
        shutil.rmtree(info.path)
        with pytest.raises(CheckpointError, match="can not be read"):
            store.read_host(info)

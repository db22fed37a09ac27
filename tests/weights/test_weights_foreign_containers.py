"""Readers of foreign files: what they read, and that no bytes make them run code, hang or fill the memory."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from foreign_writers import blob, caffemodel, message, number, varint, write_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from volrec.errors import RunError, VolrecError
from volrec.weights.foreign.caffe import read_binaryproto, read_caffemodel
from volrec.weights.foreign.containers import read_source
from volrec.weights.foreign.protobuf import Malformed, fields
from volrec.weights.foreign.tensorflow import read_bundle

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3, 3, 3, 3)).astype("f")
MATRIX = RNG.normal(size=(5, 4)).astype("f")
BIAS = RNG.normal(size=4).astype("f")
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def read(path):
    return {key: value.numpy() for key, value in read_source(path).tensors.items()}


class TestCaffe:
    @pytest.mark.parametrize("old", [True, False])
    def test_layers_of_both_schemas(self, tmp_path, old):
        path = tmp_path / "x.caffemodel"
        path.write_bytes(caffemodel({"conv1a": [blob(KERNEL), blob(BIAS)], "fc8": [blob(MATRIX)]}, old=old))
        found = read(path)
        assert {key: value.shape for key, value in found.items()} == {
            "conv1a/0": (4, 3, 3, 3, 3),
            "conv1a/1": (4,),
            "fc8/0": (5, 4),
        }
        for key, wanted in (("conv1a/0", KERNEL), ("conv1a/1", BIAS), ("fc8/0", MATRIX)):
            np.testing.assert_array_equal(found[key], wanted)

    def test_sizes_of_four_and_five_fields(self, tmp_path):
        path = tmp_path / "x.caffemodel"
        path.write_bytes(caffemodel({"a": [blob(KERNEL, form="five"), blob(MATRIX, form="four")]}, old=True))
        found = read(path)
        np.testing.assert_array_equal(found["a/0"], KERNEL)
        np.testing.assert_array_equal(found["a/1"], MATRIX[None, None])

    def test_values_one_by_one_and_doubles(self, tmp_path):
        single = b"".join(varint(5 << 3 | 5) + np.float32(value).tobytes() for value in BIAS)
        double = message(8, BIAS.astype("f8").tobytes()) + message(7, message(1, varint(4)))
        path = tmp_path / "x.caffemodel"
        path.write_bytes(caffemodel({"a": [single + message(7, number(1, 4)), double]}, old=False))
        np.testing.assert_array_equal(read(path)["a/0"], BIAS)
        np.testing.assert_array_equal(read(path)["a/1"], BIAS)

    def test_mean_volume(self, tmp_path):
        volume = RNG.normal(size=(1, 3, 4, 5, 6)).astype("f")
        (tmp_path / "mean.binaryproto").write_bytes(blob(volume, form="five"))
        np.testing.assert_array_equal(read_binaryproto(tmp_path / "mean.binaryproto").numpy(), volume)

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "no layer has weights"),
            (b"hello, this is a text\n", "no caffemodel or is damaged"),
            (caffemodel({"a": [blob(BIAS)], "b": []}, old=True) * 2, "two layers are called 'a'"),
            (caffemodel({"a": [message(7, message(1, varint(2**40)))]}, old=False), "0 values are said to have the"),
            (caffemodel({"a": [message(5, b"123")]}, old=False), "no whole numbers of floats"),
            (message(100, message(7, b"")) + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "bytes where 0 are left"),
            (b"\xff" * 30, "does not end"),
            (b"\x0b", "unknown wire type 3"),
            (b"\x02\x00", "number 0"),
        ],
    )
    def test_damage_is_named(self, tmp_path, content, why):
        (tmp_path / "x.caffemodel").write_bytes(content)
        with pytest.raises(RunError, match=why) as caught:
            read_caffemodel(tmp_path / "x.caffemodel")
        assert caught.value.code == "foreign-damaged"

    def test_a_file_of_no_known_kind_is_not_called_a_caffemodel(self, tmp_path):
        for name, said in (("x.pt", "no state dict of PyTorch, safetensors"), ("x.caffemodel", "no caffemodel")):
            (tmp_path / name).write_text("hello, this is a text\n")
            with pytest.raises(RunError, match=f"it is {said}"):
                read_source(tmp_path / name)

    def test_an_empty_mean_is_refused(self, tmp_path):
        (tmp_path / "mean.binaryproto").write_bytes(b"")
        with pytest.raises(RunError, match="no values"):
            read_binaryproto(tmp_path / "mean.binaryproto")


class TestTensorFlow:
    TENSORS = {
        "RGB/conv/w": KERNEL,
        "RGB/conv/beta": BIAS,
        "double": MATRIX.astype("f8"),
        "half": BIAS.astype("f2"),
        "scalar": np.array(7, "i8"),
        "empty": np.zeros((0, 3), "f4"),
        **{f"many/layer_{index:03d}/w": np.full((2, index % 3 + 1), index, "f4") for index in range(200)},
    }

    @pytest.mark.parametrize("shards", [1, 3])
    @pytest.mark.parametrize("given_as", ["", ".index", ".data-00000-of-0000{shards}", ".meta"])
    def test_every_tensor_comes_back(self, tmp_path, shards, given_as):
        write_bundle(tmp_path / "model.ckpt", self.TENSORS, shards=shards)
        source = read_source(tmp_path / f"model.ckpt{given_as.format(shards=shards)}")
        assert source.container == "tensorflow"
        assert source.tensors.keys() == self.TENSORS.keys()
        for name, wanted in self.TENSORS.items():
            found = source.tensors[name].numpy()
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
        assert [path.name for path in source.files] == [
            "model.ckpt.index",
            *(f"model.ckpt.data-{index:05d}-of-{shards:05d}" for index in range(shards)),
        ]

    def test_text_and_parts_are_left_out_with_a_reason(self, tmp_path):
        extra = {"text": number(1, 7), "parts": number(1, 1) + message(7, b"")}
        write_bundle(tmp_path / "m", {"a": BIAS}, extra=extra)
        tensors, left, _ = read_bundle(tmp_path / "m")
        assert list(tensors) == ["a"]
        assert dict(left) == {"text": "no numbers (type 7)", "parts": "stored in several parts"}

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"packed": 1}, "compressed"),
            ({"endian": 1}, "big-endian"),
            (
                {"extra": {"0far": number(1, 1) + number(4, 2**40) + number(5, 4)}},
                "0far at .* lie outside of its shard",
            ),
            ({"extra": {"0big": number(1, 1) + number(5, 15)}}, "no whole numbers"),
            ({"extra": {"0odd": number(1, 1) + number(5, 16)}}, "4 values are said to have the shape one value"),
            ({"extra": {"0other": number(1, 1) + number(3, 9) + number(5, 4)}}, "outside of its shard"),
        ],
    )
    def test_damage_is_named(self, tmp_path, options, why):
        write_bundle(tmp_path / "m", {"a": MATRIX}, **options)
        with pytest.raises(RunError, match=why) as caught:
            read_source(tmp_path / "m")
        assert caught.value.code == "foreign-damaged"

    def test_names_that_share_their_bytes_do_not_multiply_them(self, tmp_path):
        entry = number(1, 1) + message(2, message(2, number(1, 20))) + number(5, 80)
        write_bundle(tmp_path / "m", {"a": MATRIX}, extra={f"again{index}": entry for index in range(20)})
        with pytest.raises(RunError, match="outside of its shard"):
            read_source(tmp_path / "m")

    def test_a_missing_shard_is_named(self, tmp_path):
        write_bundle(tmp_path / "m", {"a": MATRIX}, shards=2)
        (tmp_path / "m.data-00001-of-00002").unlink()
        with pytest.raises(RunError, match=r"m\.data-00001-of-00002 is not beside it"):
            read_source(tmp_path / "m.index")


class TestTorch:
    STATE = {"a.weight": torch.from_numpy(MATRIX), "a.bias": torch.from_numpy(BIAS)}

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: state,
            lambda state: {"state_dict": state, "epoch": 3, "arch": "x"},
            lambda state: {"model": state},
            lambda state: {"model_state": state, "cfg": "text"},
            lambda state: {"meta": {"version": "1"}, "state_dict": state},
            lambda state: {"model": {"state_dict": state}},
        ],
    )
    def test_wrappers_are_taken_off(self, tmp_path, zipped, wrap):
        path = tmp_path / "c3d.pickle"
        torch.save(wrap(self.STATE), path, _use_new_zipfile_serialization=zipped)
        source = read_source(path)
        assert source.container == "torch"
        assert source.left == ()
        assert {key: value.tolist() for key, value in source.tensors.items()} == {
            key: value.tolist() for key, value in self.STATE.items()
        }

    def test_what_is_no_tensor_is_left_out_with_a_reason(self, tmp_path):
        torch.save({**self.STATE, "epoch": 3, "sparse": torch.eye(2).to_sparse()}, tmp_path / "x.pt")
        left = dict(read_source(tmp_path / "x.pt").left)
        assert left["epoch"] == "no tensor (int)"
        assert "sparse" in left["sparse"]

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pickle_that_asks_for_code_is_refused_and_names_it(self, tmp_path, zipped):
        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'ran'}",)

        torch.save({"state_dict": Evil()}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(RunError, match=r"to load (posix|nt)\.system") as caught:
            read_source(tmp_path / "x.pt")
        assert caught.value.code == "pickle"
        assert not (tmp_path / "ran").exists()

    def test_a_whole_module_is_refused(self, tmp_path):
        torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
        with pytest.raises(RunError, match=r"torch\.nn\.modules\.linear\.Linear") as caught:
            read_source(tmp_path / "x.pt")
        assert "state_dict" in caught.value.remedy

    def test_a_list_is_no_state_dict(self, tmp_path):
        torch.save([torch.zeros(1)], tmp_path / "x.pt")
        with pytest.raises(RunError, match="holds a list"):
            read_source(tmp_path / "x.pt")

    def test_a_number_repeated_for_ever_is_refused(self, tmp_path):
        torch.save({"a": torch.zeros(1).as_strided((2**40,), (0,))}, tmp_path / "x.pt")
        with pytest.raises(RunError, match="larger than the file"):
            read_source(tmp_path / "x.pt")

    def test_a_packed_bomb_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/data.pkl", bytes(10_000_000))
        with pytest.raises(RunError, match="larger than the file"):
            read_source(tmp_path / "x.pt")

    def test_a_plain_pickle_is_no_checkpoint(self, tmp_path):
        (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(RunError, match=r"damaged|code"):
            read_source(tmp_path / "x.pt")


def test_safetensors_are_read_and_hdf5_is_named(tmp_path):
    save_file({"a": torch.from_numpy(MATRIX)}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(read(tmp_path / "x.safetensors")["a"], MATRIX)
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(RunError, match="HDF5"):
        read_source(tmp_path / "x.h5")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(RunError, match="no such file"):
        read_source(tmp_path / "x.pt")
    with pytest.raises(RunError, match="cannot be read"):
        read_source(tmp_path)


def whole_file(kind, path):
    """Write a small file of a kind; return the file that gets damaged."""
    if kind == "caffe":
        path.write_bytes(caffemodel({"a": [blob(MATRIX), blob(BIAS, form="five")]}, old=True))
    elif kind == "tensorflow":
        write_bundle(path, {f"name/{index}": BIAS for index in range(30)})
        return path.with_name(f"{path.name}.index")
    elif kind == "safetensors":
        save_file({"a": torch.from_numpy(MATRIX)}, path)
    else:
        torch.save({"a": torch.from_numpy(MATRIX)}, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["caffe", "tensorflow", "safetensors", "zip", "legacy"])
class TestDamage:
    def test_a_cut_file_is_refused(self, tmp_path, kind):
        damaged = whole_file(kind, tmp_path / "x")
        content = damaged.read_bytes()
        for end in range(0, len(content) - 1, max(1, len(content) // 40)):
            damaged.write_bytes(content[:end])
            # A cut between two layers leaves a whole caffemodel of fewer layers, which the keys will tell.
            if kind == "caffe":
                self.read_or_refuse(tmp_path / "x")
                continue
            with pytest.raises(VolrecError):
                read_source(tmp_path / "x")

    @FUZZ
    @given(data=st.data())
    def test_changed_bytes_are_read_or_refused(self, tmp_path, kind, data):
        damaged = whole_file(kind, tmp_path / "x")
        content = bytearray(damaged.read_bytes())
        places = st.integers(0, len(content) - 1)
        for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
            content[place] = value
        damaged.write_bytes(bytes(content))
        self.read_or_refuse(tmp_path / "x")

    @FUZZ
    @given(noise=st.binary(max_size=200))
    def test_noise_behind_the_mark_is_refused(self, tmp_path, kind, noise):
        damaged = whole_file(kind, tmp_path / "x")
        mark = damaged.read_bytes()[: {"caffe": 0, "tensorflow": 0, "safetensors": 9, "zip": 2, "legacy": 1}[kind]]
        tail = damaged.read_bytes()[-8:] if kind == "tensorflow" else b""
        damaged.write_bytes(mark + noise + tail)
        self.read_or_refuse(tmp_path / "x")

    @staticmethod
    def read_or_refuse(path):
        with contextlib.suppress(VolrecError):
            assert isinstance(read_source(path).tensors, dict)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_fields_of_any_bytes_end(noise):
    with contextlib.suppress(Malformed):
        assert len(list(fields(memoryview(noise)))) <= len(noise)

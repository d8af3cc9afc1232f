"""Data files that are right, and every way in which they can be wrong."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.core.arrays import fingerprint_arrays
from holdfast.core.errors import DataError, UsageError
from holdfast.data import Dataset, load_data, load_digits, ranges
from holdfast.data.archive import open_zip
from holdfast.data.csv import load_csv
from holdfast.data.image_folder import load_image_folder
from holdfast.data.npz import load_npz


def saved(path: Path, **arrays) -> Path:
    with path.open("wb") as file:  # a name of any ending
        np.savez_compressed(file, **arrays)
    return path


X = np.linspace(0, 1, 4 * 3 * 8 * 8, dtype=np.float32).reshape(4, 3, 8, 8)
Y = np.array([0, 1, 2, 1])


class TestNpz:
    def test_reads_float_as_it_is(self, tmp_path):
        data = load_data(saved(tmp_path / "d.npz", x=X, y=Y))
        assert torch.equal(data.x, torch.from_numpy(X))
        assert data.y.tolist() == Y.tolist()
        assert data.notes == ()
        assert data.sha256 == fingerprint_arrays(X, Y)

    def test_kind_is_told_by_content(self, tmp_path):
        assert len(load_data(saved(tmp_path / "d.csv", x=X, y=Y))) == 4

    def test_uint8_is_scaled_and_said(self, tmp_path):
        data = load_npz(saved(tmp_path / "d.npz", x=np.full((2, 1, 4, 4), 255, np.uint8), y=Y[:2].astype(np.uint8)))
        assert float(data.x.max()) == 1.0
        assert data.notes == ("x was uint8: divided by 255",)

    def test_float64_is_rounded_and_said(self, tmp_path):
        assert load_npz(saved(tmp_path / "d.npz", x=X.astype(np.float64), y=Y)).notes == (
            "x was float64: rounded to float32",
        )

    def test_big_endian_and_fortran_order(self, tmp_path):
        data = load_npz(saved(tmp_path / "d.npz", x=np.asfortranarray(X.astype(">f4")), y=Y.astype(">i8")))
        assert torch.equal(data.x, torch.from_numpy(X))
        assert data.sha256 == fingerprint_arrays(X, Y)

    def test_class_names(self, tmp_path):
        assert load_npz(saved(tmp_path / "d.npz", x=X, y=Y, classes=np.array(["a", "b", "c"]))).classes == (
            "a",
            "b",
            "c",
        )

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            ({"images": X, "y": Y}, "Is it images"),
            ({"x": X, "Y": Y}, "Is it Y"),
            ({"x": X.transpose(0, 2, 3, 1), "y": Y}, r"transpose\(0, 3, 1, 2\)"),
            ({"x": X, "y": np.eye(3)[Y]}, r"one-hot; save y.argmax\(1\)"),
            ({"x": X, "y": Y.astype(np.float32)}, "integers"),
            ({"x": X, "y": Y[:, None]}, r"save y\[:, 0\]"),
            ({"x": X, "y": Y[:2]}, "4 samples but 2 labels"),
            ({"x": X[:0], "y": Y[:0]}, "no samples"),
            ({"x": X.astype(np.int32), "y": Y}, "int32"),
            ({"x": X.astype(np.complex64), "y": Y}, "complex64"),
            ({"x": np.array(["a", "b"]), "y": Y[:2]}, "numbers were expected"),
        ],
    )
    def test_wrong_arrays_name_the_fix(self, tmp_path, arrays, words):
        with pytest.raises(DataError, match=words):
            load_npz(saved(tmp_path / "d.npz", **arrays))

    def test_object_arrays_are_refused_unopened(self, tmp_path):
        marker = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return Path.touch, (marker,)

        path = saved(tmp_path / "d.npz", x=np.array([Trap()], dtype=object), y=Y[:1])
        with pytest.raises(DataError, match="object array") as refusal:
            load_npz(path)
        assert refusal.value.exit_code == 2
        assert not marker.exists()

    @pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.int16])
    def test_integers_are_called_what_they_are_and_labels_may_be_any(self, tmp_path, kind):
        with pytest.raises(DataError, match=f"x is {np.dtype(kind)}; save it as float32"):
            load_npz(saved(tmp_path / "d.npz", x=(X * 100).astype(kind), y=Y))
        assert load_npz(saved(tmp_path / "e.npz", x=X, y=Y.astype(kind))).y.tolist() == Y.tolist()

    @pytest.mark.parametrize("name", ["readme.txt", "x", "sub/x.npy"])
    def test_members_that_are_no_arrays(self, tmp_path, name):
        path = saved(tmp_path / "d.npz", x=X, y=Y)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"anything")
        with pytest.raises(DataError, match="no array; an npz holds"):
            load_npz(path)

    @pytest.mark.parametrize("name", ["../x.npy", "/etc/x.npy", "..\\x.npy", "C:/x.npy"])
    def test_names_that_leave_the_archive(self, tmp_path, name):
        path = saved(tmp_path / "d.npz", x=X, y=Y)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"anything")
        with pytest.raises(DataError, match="points outside"):
            load_npz(path)

    def test_header_that_declares_gigabytes(self, tmp_path):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 16, 1 << 16)}
        )
        path = tmp_path / "bomb.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", header.getvalue() + bytes(12_000_000))
            archive.writestr("y.npy", b"")
        assert path.stat().st_size < 13_000
        with pytest.raises(DataError, match="damaged, truncated or a bomb"):
            load_npz(path)

    def test_zip_entry_that_declares_gigabytes(self, tmp_path):
        path = saved(tmp_path / "bomb.npz", x=X, y=Y)
        raw = bytearray(path.read_bytes())
        at = raw.index(b"PK\x01\x02")
        raw[at + 24 : at + 28] = struct.pack("<I", 3 << 30)
        path.write_bytes(raw)
        with pytest.raises(DataError, match="impossible"):
            load_npz(path)

    def test_real_bomb_is_over_the_cap(self, tmp_path):
        path = saved(tmp_path / "bomb.npz", x=np.zeros((1000, 3, 32, 32), np.float32), y=np.zeros(1000, int))
        assert path.stat().st_size < 20_000
        with pytest.raises(DataError, match=r"would unpack to 11\.7 MiB"):
            load_npz(path, max_bytes=1 << 20)

    def test_uint8_counts_as_what_it_becomes(self, tmp_path):
        path = saved(tmp_path / "d.npz", x=np.zeros((1000, 1, 32, 32), np.uint8), y=np.zeros(1000, int))
        with pytest.raises(DataError, match="as float32"):
            load_npz(path, max_bytes=2 << 20)

    def test_overlapping_members(self, tmp_path):
        path = tmp_path / "quilt.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", bytes(5000))
            archive.writestr("y.npy", bytes(5000))
        raw = path.read_bytes()
        cut = raw.index(b"PK\x03\x04", 10)
        end = raw.index(b"PK\x01\x02")
        moved = bytearray(raw[:cut] + raw[end:])
        tail = moved.rindex(b"PK\x05\x06")
        moved[tail + 16 : tail + 20] = struct.pack("<I", cut)
        second = moved.index(b"PK\x01\x02", cut + 4)
        moved[second + 42 : second + 46] = struct.pack("<I", 0)
        path.write_bytes(moved)
        with pytest.raises(DataError, match=r"overlap|damaged"):
            open_zip(path, 1 << 30, DataError)

    def test_two_members_of_one_name(self, tmp_path):
        path = saved(tmp_path / "d.npz", x=X, y=Y)
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", b"anything")
        with pytest.raises(DataError, match="two members"):
            load_npz(path)

    @pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
    def test_truncated(self, tmp_path, keep):
        path = saved(tmp_path / "d.npz", x=X, y=Y)
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * keep)])
        with pytest.raises(DataError, match="damaged"):
            load_npz(path)

    def test_flipped_byte(self, tmp_path):
        path = tmp_path / "d.npz"
        np.savez(path, x=X, y=Y)
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 3] ^= 1
        path.write_bytes(raw)
        with pytest.raises(DataError, match="damaged"):
            load_npz(path)


class TestDataset:
    def test_mixed_shapes_cannot_be_made(self):
        with pytest.raises(DataError, match="no samples with features"):
            Dataset.of(np.zeros(3, np.float32), np.zeros(3, int))

    def test_head(self):
        data = Dataset.of(X, Y)
        first = data.head(2)
        assert len(first) == 2
        assert first.sha256 == fingerprint_arrays(X[:2], Y[:2]) != data.sha256
        assert data.head(99) is data
        with pytest.raises(UsageError):
            data.head(0)

    def test_hash_sees_type_shape_and_values(self):
        assert len({fingerprint_arrays(a) for a in (X, X.reshape(4, -1), X.astype(np.float64), X + 1)}) == 4


class TestDigits:
    def test_splits_are_disjoint_and_whole(self):
        train, test = load_data("digits:train"), load_data("digits:test")
        assert (len(train), len(test), len(load_data("digits"))) == (1297, 500, 1797)
        rows = {r.numpy().tobytes() for r in train.x} & {r.numpy().tobytes() for r in test.x}
        assert len(rows) <= 1  # scikit-learn's digits hold hardly any duplicates
        assert float(train.x.min()) == 0.0
        assert float(train.x.max()) == 1.0
        assert len(test.y.unique()) == 10

    def test_the_split_never_changes(self):
        assert load_digits("test").y[:12].tolist() == [0, 9, 6, 9, 8, 4, 5, 8, 1, 6, 3, 0]

    def test_unknown_split(self):
        with pytest.raises(UsageError, match="Did you mean train"):
            load_data("digits:trian")


class TestImageFolder:
    def picture(self, path: Path, size=(8, 6), mode="RGB", colour=(255, 0, 0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(path)

    def test_reads_classes_in_order(self, tmp_path):
        self.picture(tmp_path / "dog" / "1.png")
        self.picture(tmp_path / "cat" / "1.png", colour=(0, 0, 255))
        data = load_data(tmp_path)
        assert data.classes == ("cat", "dog")
        assert data.y.tolist() == [0, 1]
        assert data.x.shape == (2, 3, 6, 8)
        assert data.x[1, :, 0, 0].tolist() == [1.0, 0.0, 0.0]

    def test_grey_has_one_channel(self, tmp_path):
        self.picture(tmp_path / "a" / "1.png", mode="L", colour=51)
        data = load_image_folder(tmp_path)
        assert data.x.shape == (1, 1, 6, 8)
        assert float(data.x.max()) == pytest.approx(0.2)

    def test_alpha_is_dropped_and_said(self, tmp_path):
        self.picture(tmp_path / "a" / "1.png", mode="RGBA", colour=(1, 2, 3, 4))
        assert any("RGBA were converted to RGB" in note for note in load_image_folder(tmp_path).notes)

    def test_mixed_sizes(self, tmp_path):
        self.picture(tmp_path / "a" / "1.png")
        self.picture(tmp_path / "a" / "2.png", size=(9, 6))
        with pytest.raises(DataError, match="differ in size"):
            load_image_folder(tmp_path)

    def test_not_a_picture(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x.png").write_text("<script>")
        with pytest.raises(DataError, match="no readable"):
            load_image_folder(tmp_path)

    def test_truncated_picture(self, tmp_path):
        self.picture(tmp_path / "a" / "1.png", size=(200, 200))
        raw = (tmp_path / "a" / "1.png").read_bytes()
        (tmp_path / "a" / "1.png").write_bytes(raw[: len(raw) // 2])
        with pytest.raises(DataError, match="damaged"):
            load_image_folder(tmp_path)

    def test_too_many_pixels(self, tmp_path):
        self.picture(tmp_path / "a" / "1.png")
        with pytest.raises(DataError, match="at most"):
            load_image_folder(tmp_path, max_bytes=100)

    @pytest.mark.parametrize("inside", [False, True])
    def test_empty(self, tmp_path, inside):
        if inside:
            (tmp_path / "a").mkdir()
        with pytest.raises(DataError, match="class folders"):
            load_data(tmp_path)


class TestCsv:
    def table(self, tmp_path, text: str) -> Path:
        path = tmp_path / "t.csv"
        path.write_text(text, encoding="utf-8")
        return path

    def test_reads_numbers(self, tmp_path):
        data = load_data(self.table(tmp_path, "a,label,b\n0.5,1,0.25\n1e-3,0,1\n"))
        assert data.x.tolist() == [[0.5, 0.25], [pytest.approx(1e-3), 1.0]]
        assert data.y.tolist() == [1, 0]

    def test_names_become_classes_and_quotes_are_safe(self, tmp_path):
        data = load_csv(self.table(tmp_path, 'y,a\n"no, never",1\n=cmd(),2\n"<script>",3\n'))
        assert data.classes == ("<script>", "=cmd()", "no, never")
        assert data.y.tolist() == [2, 1, 0]

    def test_named_label_column(self, tmp_path):
        path = self.table(tmp_path, "a,kind\n1,0\n")
        assert load_csv(path, label="kind").y.tolist() == [0]
        with pytest.raises(DataError, match="Did you mean kind"):
            load_csv(path, label="kinds")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "first row must name"),
            ("1,2\n3,4\n", "first row must name"),
            ("a,b\n1,2\n", "name the labels' column"),
            ("a,a,label\n1,2,3\n", "same name"),
            ("a,label\n", "no rows"),
            ("a,label\n1,2,3\n", "row 2: 3 cells"),
            ("a,label\n,1\n", "row 2, column 'a'"),
            ("a,label\nx,1\n", "is no number"),
            ('a,label\n"1,1\n', "line"),
        ],
    )
    def test_wrong_tables_name_the_place(self, tmp_path, text, words):
        with pytest.raises(DataError, match=words):
            load_csv(self.table(tmp_path, text))

    def test_too_large(self, tmp_path):
        path = self.table(tmp_path, "a,label\n" + "1,0\n" * 1000)
        with pytest.raises(DataError, match="at most"):
            load_csv(path, max_file=100)
        with pytest.raises(DataError, match="more than 500 cells"):
            load_csv(path, max_cells=500)


class TestLoad:
    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"", "empty"), (b"\x80\x04K\x01.", "neither"), (b"\x93NUMPY\x01\x00", "single NumPy array")],
    )
    def test_other_files(self, tmp_path, content, words):
        path = tmp_path / "d.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            load_data(path)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(DataError, match="no data at"):
            load_data(tmp_path / "absent.npz")


def test_ranges_cover_each_row_once():
    assert [i for r in ranges(10, 3) for i in r] == list(range(10))
    with pytest.raises(UsageError):
        ranges(3, 0)

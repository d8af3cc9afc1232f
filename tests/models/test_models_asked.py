"""Models that can only be asked: ONNX in onnxruntime, estimators, functions. Each answers as the thing itself does."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from holdfast.core.errors import ModelError, UnsafeFileError, UnsupportedError, UsageError
from holdfast.core.problem import Problem
from holdfast.core.sets import LpBall
from holdfast.core.threat import Access, Norm
from holdfast.judge.inquiry import Inquiry
from holdfast.models import FromSklearn, open_model
from holdfast.models.queries_only import answers_gradients
from holdfast.models.wrap import Normalisation

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)
X = RNG.random((120, 4)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 1).astype(int) + (X[:, 2] > 0.7)
NAMES = np.array(["ant", "bee", "cat"])


def saved(path, nodes, outputs, *, kind=None, batch=None, constants=(), domains=()):
    """A file with one input x (batch, 4)."""
    h = onnx.helper
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info("x", kind or onnx.TensorProto.FLOAT, [batch, 4])], outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in constants],
    )  # fmt: skip
    opsets = [h.make_opsetid("", 17), *(h.make_opsetid(d, v) for d, v in domains)]
    model = h.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    onnx.save(model, path)
    return path


def linear(path, *, kind=None, batch=None, quantised=True):
    """Three scores and a label; the quantised weights are what the graph does not serve."""
    h, t = onnx.helper, onnx.TensorProto
    w = RNG.normal(size=(4, 3)).astype(np.float32)
    nodes = [
        h.make_node("Cast", ["x"], ["f"], to=t.FLOAT),
        h.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["v"]),
        h.make_node("MatMul", ["f", "v"], ["m"]),
        h.make_node("Add", ["m", "b"], ["scores"]),
        h.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    constants = [("w", w), ("s", np.float32(0.02)), ("z", np.int8(0)), ("b", np.float32([0.1, 0, -0.1]))]
    outputs = [
        h.make_tensor_value_info("label", t.INT64, [batch]),
        h.make_tensor_value_info("scores", t.FLOAT, [batch, 3]),
    ]
    return saved(path, nodes, outputs, kind=kind, batch=batch, constants=constants)


def forest(path, *, zipmap):
    """A stump: class no below 0.5 in the first column, yes above."""
    h, t = onnx.helper, onnx.TensorProto
    tree = h.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "raw"], domain="ai.onnx.ml", nodes_treeids=[0] * 3,
        nodes_nodeids=[0, 1, 2], nodes_featureids=[0] * 3, nodes_values=[0.5, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        class_treeids=[0] * 6, class_nodeids=[1, 1, 1, 2, 2, 2], class_ids=[0, 1, 2] * 2,
        class_weights=[0.7, 0.2, 0.1, 0.1, 0.3, 0.6], classlabels_strings=list(NAMES),
    )  # fmt: skip
    nodes, raw = [tree], h.make_tensor_value_info("raw", t.FLOAT, [None, 3])
    if zipmap:
        nodes.append(h.make_node("ZipMap", ["raw"], ["map"], domain="ai.onnx.ml", classlabels_strings=list(NAMES)))
        kind = h.make_map_type_proto(t.STRING, h.make_tensor_type_proto(t.FLOAT, None))
        raw = h.make_value_info("map", h.make_sequence_type_proto(kind))
    return saved(path, nodes, [h.make_tensor_value_info("label", t.STRING, [None]), raw], domains=[("ai.onnx.ml", 1)])


def runtime(path, output, x):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run([output], {"x": x})[0]


class TestOnnx:
    def test_a_quantised_file_answers_as_onnxruntime_does(self, tmp_path):
        path = linear(tmp_path / "q.onnx")
        opened = open_model(str(path), output="scores")
        assert np.array_equal(opened.module(torch.from_numpy(X)).numpy(), runtime(path, "scores", X))
        assert "asked only" in opened.notes[0]
        assert "'QuantizeLinear'" in opened.notes[0]
        assert not answers_gradients(opened.module)

    def test_several_outputs_are_listed_and_one_is_asked_for(self, tmp_path):
        path = linear(tmp_path / "q.onnx")
        with pytest.raises(UsageError, match=r"label \(tensor\(int64\).*scores .tensor\(float\).*--output NAME"):
            open_model(str(path))
        with pytest.raises(UsageError, match="no output 'probs'"):
            open_model(str(path), output="probs")

    def test_an_output_that_the_graph_serves_keeps_its_gradients(self, tmp_path):
        h, t = onnx.helper, onnx.TensorProto
        nodes = [h.make_node("MatMul", ["x", "w"], ["s"]), h.make_node("ArgMax", ["s"], ["l"], axis=1, keepdims=0)]
        outputs = [h.make_tensor_value_info("l", t.INT64, [None]), h.make_tensor_value_info("s", t.FLOAT, [None, 3])]
        path = saved(tmp_path / "g.onnx", nodes, outputs, constants=[("w", X[:4, :3].copy())])
        module = open_model(str(path), output="s").module
        assert answers_gradients(module)
        assert torch.allclose(module(torch.from_numpy(X)), torch.from_numpy(X @ X[:4, :3]), atol=1e-6)
        assert not answers_gradients(open_model(str(path), output="l", classes=3).module)

    def test_the_output_is_part_of_what_verdicts_are_about(self, tmp_path):
        path = linear(tmp_path / "q.onnx")
        first, second = (open_model(str(path), output=o, classes=3).subject.sha256 for o in ("scores", "label"))
        assert first != second
        assert first == open_model(str(path), output="scores").subject.sha256

    def test_labels_alone_need_the_number_of_classes(self, tmp_path):
        path = linear(tmp_path / "q.onnx")
        with pytest.raises(UsageError, match="give --classes"):
            open_model(str(path), output="label").module(torch.from_numpy(X))
        out = open_model(str(path), output="label", classes=3).module(torch.from_numpy(X))
        assert np.array_equal(out.argmax(1).numpy(), runtime(path, "label", X))
        assert torch.equal(out.exp().sum(1), torch.ones(len(X)))

    @pytest.mark.parametrize("batch", [1, 7])
    def test_a_fixed_batch_is_filled_up(self, tmp_path, batch):
        path = linear(tmp_path / "q.onnx", batch=batch)
        out = open_model(str(path), output="scores").module(torch.from_numpy(X)).numpy()
        few = [runtime(path, "scores", np.repeat(row[None], batch, 0))[0] for row in X[:9]]
        assert np.array_equal(out[:9], np.stack(few))
        assert len(out) == len(X)

    def test_uint8_inputs_are_levels_of_pixels(self, tmp_path):
        path = linear(tmp_path / "q.onnx", kind=onnx.TensorProto.UINT8)
        opened = open_model(str(path), output="scores")
        levels = np.rint(X.astype(np.float64) * 255).astype(np.uint8)
        assert np.array_equal(opened.module(torch.from_numpy(X)).numpy(), runtime(path, "scores", levels))
        assert "uint8" in " ".join(opened.notes)
        whole = open_model(str(path), output="scores", pixel=1.0).module(torch.from_numpy(levels.astype(np.float32)))
        assert np.array_equal(whole.numpy(), runtime(path, "scores", levels))

    def test_uint8_inputs_are_levels_of_pixels_where_the_graph_knows_every_operation_too(self, tmp_path):
        h, t = onnx.helper, onnx.TensorProto
        nodes = [h.make_node("Cast", ["x"], ["f"], to=t.FLOAT), h.make_node("MatMul", ["f", "w"], ["s"])]
        w = RNG.normal(size=(4, 3)).astype(np.float32)
        outputs = [h.make_tensor_value_info("s", t.FLOAT, [None, 3])]
        path = saved(tmp_path / "p.onnx", nodes, outputs, kind=t.UINT8, constants=[("w", w)])
        levels = np.rint(X.astype(np.float64) * 255).astype(np.uint8)
        opened = open_model(str(path))
        assert np.array_equal(opened.module(torch.from_numpy(X)).numpy(), runtime(path, "s", levels))
        assert "it takes uint8, and an input of 1 is the level 255" in opened.notes[0]
        served = open_model(str(path), pixel=1.0)  # inputs that are levels already: the graph itself
        assert answers_gradients(served.module)
        with torch.no_grad():
            scores = served.module(torch.from_numpy(levels.astype(np.float32)))
        np.testing.assert_allclose(scores.numpy(), runtime(path, "s", levels), rtol=1e-5, atol=1e-3)

    def test_a_file_that_leaves_the_shape_of_its_input_open_takes_what_comes(self, tmp_path):
        h, t = onnx.helper, onnx.TensorProto
        x, s = h.make_tensor_value_info("x", t.FLOAT, None), h.make_tensor_value_info("s", t.FLOAT, None)
        w = onnx.numpy_helper.from_array(X[:4, :3].copy(), "w")
        graph = h.make_graph([h.make_node("MatMul", ["x", "w"], ["s"])], "g", [x], [s], [w])
        onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path / "open.onnx")
        out = open_model(str(tmp_path / "open.onnx")).module(torch.from_numpy(X))
        np.testing.assert_allclose(out.numpy(), X @ X[:4, :3], rtol=1e-5, atol=1e-6)

    def test_integers_that_are_no_pixels_are_refused(self, tmp_path):
        path = linear(tmp_path / "q.onnx", kind=onnx.TensorProto.INT64)
        with pytest.raises(ModelError, match=r"takes the inputs x tensor\(int64\); served is one input"):
            open_model(str(path), output="scores")

    @pytest.mark.parametrize("zipmap", [False, True])
    def test_trees_and_their_maps_give_scores_in_the_order_of_their_classes(self, tmp_path, zipmap):
        path = forest(tmp_path / "t.onnx", zipmap=zipmap)
        out = open_model(str(path), output="map" if zipmap else "raw").module(torch.from_numpy(X))
        wanted = np.where(X[:, :1] <= 0.5, [[0.7, 0.2, 0.1]], [[0.1, 0.3, 0.6]])
        assert np.allclose(out.numpy(), wanted)

    def test_labels_that_are_names_are_numbered_by_the_file(self, tmp_path):
        path = forest(tmp_path / "t.onnx", zipmap=False)
        out = open_model(str(path), output="label").module(torch.from_numpy(X))
        assert np.array_equal(out.argmax(1).numpy(), np.where(X[:, 0] <= 0.5, 0, 2))

    def test_rows_of_another_shape_are_named_and_pictures_are_laid_flat(self, tmp_path):
        module = open_model(str(linear(tmp_path / "q.onnx")), output="scores").module
        flat, square = module(torch.from_numpy(X)), module(torch.from_numpy(X).view(-1, 1, 2, 2))
        assert torch.equal(flat, square)
        with pytest.raises(ModelError, match=r"rows of the shape \(4,\), and the data has \(5,\)"):
            module(torch.rand(2, 5))

    def test_weights_outside_the_folder_are_not_read(self, tmp_path):
        path = linear(tmp_path / "q.onnx")
        model = onnx.load(path)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"outside its folder|outside of its folder|secret"):
            open_model(str(path), output="scores")

    def test_a_gradient_is_refused_by_name_even_behind_a_normalisation(self, tmp_path):
        path = linear(tmp_path / "q.onnx")
        module = open_model(str(path), output="scores", normalise=Normalisation((0.5,), (0.5,))).module
        x = torch.from_numpy(X[:2])
        problem = Problem.of(x, torch.tensor([0, 1]), LpBall.uniform(Norm.LINF, 0.1, 2))
        with pytest.raises(UnsupportedError, match="answers queries only"):
            Inquiry.of(module, problem).oracle(Access.WHITE_BOX)


ESTIMATORS = {
    "probabilities": lambda y: LogisticRegression().fit(X, y),
    "pipeline": lambda y: make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y),
    "votes of trees": lambda y: RandomForestClassifier(4, max_depth=2, random_state=0).fit(X, y),
    "neighbours": lambda y: KNeighborsClassifier(2).fit(X, y),
    "support vectors": lambda y: SVC().fit(X, y),
    "one against another": lambda y: SVC(decision_function_shape="ovo", break_ties=False).fit(X, y),
    "linear": lambda y: LinearSVC().fit(X, y),
    "calibrated": lambda y: CalibratedClassifierCV(SVC(), ensemble=False).fit(X, y),
}


class TestEstimators:
    @pytest.mark.parametrize("labels", ["numbers", "names", "two"])
    @pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "one against another"])
    def test_the_decision_is_that_of_predict(self, name, labels):
        y = {"numbers": Y, "names": NAMES[Y], "two": Y > 0}[labels]
        estimator = ESTIMATORS[name](y)
        model = FromSklearn(estimator)
        out = model(torch.from_numpy(X))
        assert out.shape == (len(X), len(estimator.classes_))
        assert np.array_equal(estimator.classes_[out.argmax(1).numpy()], estimator.predict(X.astype(np.float64)))
        top = out.topk(2, 1).values
        assert bool((top[:, 0] - top[:, 1] > 5e-6).all()), "a tie is no decision"

    def test_scores_are_those_of_the_estimator(self):
        estimator = ESTIMATORS["probabilities"](Y)
        out = FromSklearn(estimator)(torch.from_numpy(X)).numpy()
        assert np.allclose(out, estimator.predict_proba(X.astype(np.float64)), atol=2e-5)

    def test_no_scores_gives_labels(self):
        estimator = SGDClassifier(random_state=0).fit(X, Y)

        class Bare:
            classes_, predict = estimator.classes_, staticmethod(estimator.predict)

        out = FromSklearn(Bare(), identity="0" * 64)(torch.from_numpy(X))
        assert out.isneginf().sum(1).tolist() == [2] * len(X)

    @pytest.mark.parametrize(
        ("estimator", "words"),
        [
            (LinearRegression().fit(X, Y), "no classifier"),
            (LogisticRegression(), "not fitted"),
            (RandomForestClassifier(2).fit(X, np.stack([Y, Y], 1)), "several outputs"),
            (SVC(decision_function_shape="ovo").fit(X, Y), "decision_function_shape='ovr'"),
            (StandardScaler().fit(X), "no predict"),
        ],
    )
    def test_what_is_no_classifier_of_one_label_is_refused(self, estimator, words):
        with pytest.raises(ModelError, match=words):
            FromSklearn(estimator)

    @pytest.mark.parametrize("dump", [joblib.dump, lambda e, path: path.write_bytes(pickle.dumps(e))])
    def test_a_file_needs_trust_and_the_refusal_names_other_ways(self, tmp_path, dump):
        path = tmp_path / "model.bin"
        dump(ESTIMATORS["support vectors"](Y), path)
        with pytest.raises(UnsafeFileError, match=r"sklearn\.svm.*skl2onnx.*skops.*--trust"):
            open_model(str(path))
        opened = open_model(str(path), trust=True)
        assert opened.trusted
        assert np.array_equal(
            opened.module(torch.from_numpy(X)).argmax(1).numpy(), ESTIMATORS["support vectors"](Y).predict(X)
        )

    def test_a_compressed_dump_is_named(self, tmp_path):
        joblib.dump(LogisticRegression().fit(X, Y), tmp_path / "m.joblib", compress=3)
        with pytest.raises(ModelError, match=r"joblib\.dump"):
            open_model(str(tmp_path / "m.joblib"), trust=True)

    def test_a_pickle_of_no_model_is_named(self, tmp_path):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": X}))
        with pytest.raises(ModelError, match="holds dict, which is no model"):
            open_model(str(tmp_path / "a.pkl"), trust=True)


CODE = """
import numpy as np
def scores(x): return np.stack([1 - x[:, 0], x[:, 0]], 1)
def labels(x): return x[:, 0] > 0.5
def names(x): return np.where(x[:, 0] > 0.5, "yes", "no")
def one(x): return x[:, 0]
def short(x): return scores(x)[:-1]
def wrong(x): return scores(x).astype(str)
def fails(x): return {}["gone"]
def ends(x): raise SystemExit(0)
def by_name(x): return [{"yes": float(v), "no": 1 - float(v)} for v in x[:, 0]]
def by_number(x): return [{1: float(v), 0: 1 - float(v)} for v in x[:, 0]]
def by_numpy(x): return [{np.int64(k): v for k, v in row.items()} for row in by_number(x)]
def by_some_names(x): return [*by_name(x)[:-1], {"maybe": 1.0}]
def writes(x):
    x += 1
    return scores(x - 1)
"""


class TestFunctions:
    @pytest.fixture
    def file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "predict.py").write_text(CODE)
        return "predict.py"

    def test_it_needs_trust_even_in_the_working_folder(self, file):
        with pytest.raises(UnsafeFileError, match=r"runs the code in predict\.py.*--trust"):
            open_model(f"{file}:scores")

    @pytest.mark.parametrize(
        ("name", "classes"),
        [
            ("scores", None),
            ("labels", 2),
            ("names", ("no", "yes")),
            ("writes", None),
            ("by_name", ("no", "yes")),
            ("by_number", None),
            ("by_numpy", None),
            ("by_numpy", ("0", "1")),
        ],
    )
    def test_scores_labels_and_names_are_read(self, file, name, classes):
        x = torch.from_numpy(X)
        out = open_model(f"{file}:{name}", trust=True, classes=classes).module(x)
        assert torch.equal(out.argmax(1), (x[:, 0] > 0.5).long())
        assert np.array_equal(x.numpy(), X), "the caller's array is its own"

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("short", "answered the shape .119, 2. for 120 rows"),
            ("wrong", "type <U"),
            ("fails", r"fails on 120 rows, which it is given at once as an array .120, 4.: KeyError: 'gone'"),
            ("ends", "SystemExit: 0"),
            ("by_name", "in which order labels number them: --class-names yes,no"),
            ("by_some_names", "return an array of scores"),
            ("labels", "give --classes"),
            ("names", "give --classes"),
        ],
    )
    def test_other_answers_are_named(self, file, name, words):
        with pytest.raises((ModelError, UsageError), match=words):
            open_model(f"{file}:{name}", trust=True).module(torch.from_numpy(X))

    def test_one_number_a_row_is_the_pre_flights_to_say_or_declared(self, file):
        x = torch.from_numpy(X)
        assert open_model(f"{file}:one", trust=True).module(x).shape == (len(X), 1)
        out = open_model(f"{file}:one", trust=True, binary="probability").module(x)
        assert torch.equal(out.argmax(1), (x[:, 0] > 0.5).long())

    def test_a_file_that_ends_the_program_is_a_model_that_fails(self, file, tmp_path):
        (tmp_path / "script.py").write_text("raise SystemExit(0)\n")
        with pytest.raises(ModelError, match=r"importing script\.py failed: SystemExit"):
            open_model("script.py:scores", trust=True)

    def test_the_subject_is_the_file_and_the_function(self, file, tmp_path):
        first = open_model(f"{file}:scores", trust=True).subject.sha256
        assert first != open_model(f"{file}:writes", trust=True).subject.sha256
        (tmp_path / file).write_text(CODE + "\n")
        assert first != open_model(f"{file}:scores", trust=True).subject.sha256

    def test_what_does_not_belong_is_refused(self, file):
        with pytest.raises(UsageError, match="name the function that answers"):
            open_model(file)
        with pytest.raises(UsageError, match="Did you mean scores"):
            open_model(f"{file}:score", trust=True)
        with pytest.raises(UsageError, match="--arch does not belong"):
            open_model(f"{file}:scores", trust=True, arch="a:b")
        with pytest.raises(UsageError, match=r"there is no file gone\.py"):
            open_model("gone.py:scores", trust=True)

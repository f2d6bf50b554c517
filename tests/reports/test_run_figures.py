import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from sft_jax.reports.figures import run_figures, style
from sft_jax.runs.example_file import Example
from sft_jax.tasks.classification_metrics import METRICS
from sft_jax.types import DataError

SHOWN = [METRICS["loss"], METRICS["top1"]]
TRAIN = [{"kind": "train", "step": 10 * i, "loss": 2 / i, "top1": 1 - 1 / i} for i in range(1, 9)]
VALID = [
    {"kind": "valid", "step": 20, "loss": 1.5, "top1": 0.3},
    {"kind": "valid", "step": 40, "loss": 0.75, "top1": 0.5},
    {"kind": "valid", "step": 60, "loss": 1.0, "top1": 0.625},
]


def lines_of(axes):
    return {
        line.get_label(): line.get_xydata() for line in axes.lines if line.get_label()[0] != "_"
    }


def texts_of(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_text()]


def font_sizes(figure: Figure) -> list[float]:
    figure.draw_without_rendering()
    texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
    return [text.get_fontsize() for text in texts if getattr(text, "get_text", str)()]


def test_learning_curves_draw_the_records_in_order_of_step():
    figure = run_figures.learning_curves([*VALID[::-1], *TRAIN], SHOWN)
    loss, top1 = figure.axes
    np.testing.assert_allclose(lines_of(loss)["training"], [(r["step"], r["loss"]) for r in TRAIN])
    np.testing.assert_allclose(
        lines_of(loss)["validation"], [(r["step"], r["loss"]) for r in VALID]
    )
    np.testing.assert_allclose(lines_of(top1)["training"], [(r["step"], r["top1"]) for r in TRAIN])
    assert lines_of(top1)["validation"].tolist() == [[20, 0.3], [40, 0.5], [60, 0.625]]
    assert loss.get_xlabel() == top1.get_xlabel() == "optimizer step"
    texts = texts_of(figure)
    assert "validation lowest: 0.750 at step 40" in texts
    assert "validation highest: 62.5% at step 60" in texts
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["training", "validation"]
    assert min(font_sizes(figure)) >= 9


def test_learning_curves_before_the_first_validation_and_with_nan():
    figure = run_figures.learning_curves(TRAIN, SHOWN)
    assert list(lines_of(figure.axes[0])) == ["training"]
    broken = {**VALID[0], "loss": float("nan")}
    assert "validation lowest: 0.750 at step 40" in texts_of(
        run_figures.learning_curves([broken, VALID[1]], SHOWN)
    )
    assert not any(
        "lowest" in text for text in texts_of(run_figures.learning_curves([broken], SHOWN))
    )


def test_learning_curves_without_records_is_an_error():
    with pytest.raises(DataError, match="records: found none"):
        run_figures.learning_curves([], SHOWN)


def test_confusion_matrix_shades_shares_and_writes_counts():
    matrix = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    figure = run_figures.confusion_matrix(matrix, ["left", "right", "absent"])
    axes = figure.axes[0]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares[:2], [[0.75, 0.25, 0], [0.25, 0.75, 0]])
    assert np.ma.getmaskarray(shares)[2].all()
    written = {t.get_position()[::-1]: t.get_text() for t in axes.texts}
    assert written == {
        (0, 0): "75%\n(6)",
        (0, 1): "25%\n(2)",
        (1, 0): "25%\n(1)",
        (1, 1): "75%\n(3)",
    }
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "left  (n=8)",
        "right  (n=4)",
        "absent  (n=0)",
    ]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["left", "right", "absent"]
    assert min(font_sizes(figure)) >= 9


@pytest.mark.parametrize(("num_classes", "text"), [(14, "100%\n(9)"), (25, "9"), (26, None)])
def test_confusion_matrix_writes_what_there_is_room_for(num_classes, text):
    matrix = 9 * np.eye(num_classes, dtype=np.int64)
    figure = run_figures.confusion_matrix(matrix, [f"class {i}" for i in range(num_classes)])
    assert {t.get_text() for t in figure.axes[0].texts} == ({text} if text else set())
    assert len(figure.axes[0].get_yticklabels()) == num_classes
    assert min(font_sizes(figure)) >= 9


def test_confusion_matrix_needs_a_name_for_each_class():
    with pytest.raises(DataError, match="class_names: found 1, expected 2"):
        run_figures.confusion_matrix(np.eye(2, dtype=np.int64), ["one"])


def kept_tokens(signals, kept, spans, sampling_rate, title, saliency=None):
    """The figure of a recording, with spans as lists."""
    spans = {name: np.reshape(of, (-1, 2)) for name, of in spans.items()}
    recording = Example(signals, kept, saliency or {}, spans, sampling_rate, title)
    return run_figures.kept_tokens(recording)


def shaded(axes) -> list[tuple[float, float]]:
    patches = [p for p in axes.patches if to_hex(p.get_facecolor()).upper() == style.KEPT]
    return [(p.get_x(), p.get_x() + p.get_width()) for p in patches]


def test_kept_tokens_shade_their_spans_in_seconds():
    rng = np.random.default_rng(0)
    signals = {"acc": rng.normal(size=(20, 3)), "gyro": rng.normal(size=(20, 2))}
    figure = kept_tokens(
        signals,
        kept={"acc": np.array([3, 0, 1, -1]), "gyro": np.array([19])},
        spans={
            "acc": [(5 * i, 5 * i + 5) for i in range(4)],
            "gyro": [(i, i + 1) for i in range(20)],
        },
        sampling_rate=10.0,
        title="one recording",
    )
    acc, gyro = figure.axes
    assert len(acc.lines) == 3
    np.testing.assert_allclose(acc.lines[1].get_xdata(), np.arange(20) / 10)
    np.testing.assert_allclose(acc.lines[1].get_ydata(), signals["acc"][:, 1])
    # Steps 0 to 9 and 15 to 19; a step stands in the middle of its tenth of a second.
    np.testing.assert_allclose(shaded(acc), [(-0.05, 0.95), (1.45, 1.95)])
    np.testing.assert_allclose(shaded(gyro), [(1.85, 1.95)])
    assert acc.get_title(loc="left") == "acc: 3 of 4 tokens kept"
    assert gyro.get_title(loc="left") == "gyro: 1 of 20 tokens kept"
    assert gyro.get_xlabel() == "time (s)"
    assert figure.get_suptitle() == "one recording"
    legend = [t.get_text() for t in acc.get_legend().get_texts()]
    assert legend == ["channel 1", "channel 2", "channel 3", "kept"]
    assert min(font_sizes(figure)) >= 9


def test_saliency_bars_stand_at_their_tokens():
    figure = kept_tokens(
        {"acc": np.zeros((8, 1))},
        kept={"acc": np.array([2, -1, 0])},
        spans={"acc": [(2 * i, 2 * i + 2) for i in range(4)]},
        sampling_rate=2.0,
        title="",
        saliency={"acc": np.array([0.75, 9.0, 0.25])},
    )
    bars = figure.axes[1].patches
    assert [(b.get_x(), b.get_width(), b.get_height()) for b in bars] == [
        (1.75, 1.0, 0.75),
        (-0.25, 1.0, 0.25),
    ]


def test_many_channels_are_drawn_as_an_image():
    signal = np.arange(60.0).reshape(6, 10)
    figure = kept_tokens(
        {"spec": signal},
        {"spec": np.array([1])},
        {"spec": [(0, 3), (3, 6)]},
        sampling_rate=1.0,
        title="",
    )
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), signal.T)
    assert axes.images[0].get_extent() == [-0.5, 5.5, 0.5, 10.5]
    assert shaded(axes) == [(2.5, 5.5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": {"a": np.array([4])}}, r"kept\['a'\]: found tokens 4 to 4, expected -1 to 3"),
        ({"kept": {"a": np.array([-2])}}, "found tokens -2 to -2"),
        ({"kept": {"b": np.array([0])}}, r"kept: found modalities \['b'\]"),
        ({"spans": {}}, r"spans: found modalities \[\]"),
        ({"saliency": {"a": np.ones(2)}}, "found 2 values, expected one for each of 1"),
    ],
)
def test_kept_tokens_errors(change, message):
    arguments = {
        "signals": {"a": np.zeros((4, 1))},
        "kept": {"a": np.array([0])},
        "spans": {"a": [(i, i + 1) for i in range(4)]},
        "sampling_rate": 1.0,
        "title": "",
        **change,
    }
    with pytest.raises(DataError, match=message):
        kept_tokens(**arguments)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=8))
def test_merged_covers_the_same_steps_in_disjoint_spans(starts):
    spans = [(float(start), float(start + length)) for start, length in starts]
    joined = run_figures.merged(spans)

    def steps(intervals):
        return {step for start, stop in intervals for step in range(int(start), int(stop))}

    assert steps(joined) == steps(spans)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(joined))


def test_save_writes_120_dots_an_inch(tmp_path):
    path = style.save(run_figures.learning_curves([*TRAIN, *VALID], SHOWN), tmp_path / "curves.png")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.size == (round(9.2 * 120), round(3.8 * 120))


def test_pyplot_and_its_global_state_stay_out():
    code = (
        "import sys, sft_jax.reports.report_writer; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_figures_of_a_realistic_run_stay_below_300_kb(tmp_path):
    rng = np.random.default_rng(0)
    signals = {m: rng.normal(size=(250, 3)).cumsum(axis=0) for m in ("acc", "gyro")}
    kept = {m: rng.permutation(250)[:31] for m in signals}
    spans = {m: [(i, i + 1) for i in range(250)] for m in signals}
    saliency = {m: rng.random(31) for m in signals}
    figures = [
        kept_tokens(signals, kept, spans, 50.0, "5 s at 50 Hz", saliency),
        run_figures.confusion_matrix(
            rng.integers(0, 40, (7, 7)), [f"exercise {i}" for i in range(7)]
        ),
    ]
    for i, figure in enumerate(figures):
        assert style.save(figure, tmp_path / f"{i}.png").stat().st_size < 300_000

import dataclasses

import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from sft_jax.config.modality import ModalitySpec
from sft_jax.config.paper import vggsound
from sft_jax.config.run import Config, ModelConfig
from sft_jax.reports.figures.model_diagram import model_diagram, pool_words, save_diagram
from sft_jax.types import ConfigError


def texts_of(figure):
    return [" ".join(text.get_text().split()) for text in figure.findobj(Text)]


def small(num_modalities=2, **model):
    specs = tuple(
        ModalitySpec(name=f"m{i}", length=4, feature_dim=2, k=2) for i in range(num_modalities)
    )
    return Config(modalities=specs, model=ModelConfig(num_classes=3, **model))


def test_says_what_the_paper_s_model_has():
    texts = texts_of(model_diagram(vggsound(num_classes=10)))
    for text in (
        *("rgb 38 x 1024", "CLS + 38", "spect 1200 x 128", "CLS + 1200", "CLS + 18"),
        *("attention, then max, window 64", "11 x encoder block", "21 in all"),
        "head on CLS 10 classes",
    ):
        assert text in texts
    assert texts.count("1 x encoder block") == 3
    assert texts.count("CLS + 1") == 2


def test_draws_every_token_of_short_sequences():
    figure = model_diagram(small())
    squares = [p for p in figure.findobj(Rectangle) if p.get_width() == p.get_height() == 0.14]
    # CLS and 4 tokens, CLS and 2 kept, of both; one CLS and 4 tokens in the fused sequence.
    assert len(squares) == 2 * (5 + 3) + 5


def test_leaves_out_blocks_that_are_not_there():
    texts = texts_of(model_diagram(small(num_pre_layers=0)))
    assert "own blocks" not in texts
    assert [text for text in texts if "encoder block" in text] == ["11 x encoder block"]


@pytest.mark.parametrize("count", [1, 8])
def test_no_text_leaves_the_page_or_meets_another(count):
    figure = model_diagram(small(count))
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.findobj(Text) if t.get_text()]
    page = figure.bbox
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
        assert page.y0 <= box.y0 <= box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_words_of_pools():
    spec = ModalitySpec(name="m", length=8, feature_dim=1, k=3)
    assert pool_words(spec) == "attn_topk, k = 3"
    assert pool_words(dataclasses.replace(spec, pool="avg", k=None, window=2)) == "avg,\nwindow 2"
    assert pool_words(dataclasses.replace(spec, pool="none", k=None)) == "every token kept"


def test_refuses_what_it_cannot_draw():
    with pytest.raises(ConfigError, match="expected 'sft'"):
        model_diagram(small(name="mbt"))
    with pytest.raises(ConfigError, match="given 0 modalities"):
        model_diagram(Config(model=ModelConfig(num_classes=3)))
    with pytest.raises(ConfigError, match="num_classes 0"):
        model_diagram(dataclasses.replace(small(), model=ModelConfig()))


def test_the_same_model_gives_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        save_diagram(model_diagram(small()), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

"""Augmentation of tables: what holds for any rows, and that learners score the rows themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from engine.config import load_class
from engine.loading.nested_tensors import padded, ragged, sparse
from engine.types import Augmenter, Batch, Features, Learner, Mark, Step, Tensors, UserError
from models.augment import AUGMENTS
from models.augment.augmentation import Augmentation, Context, rng_for
from models.augment.images import Colour, Crop, Flip, PixelNoise, Rotate
from models.augment.mixing import Cutmix, Mixup
from models.augment.tables import FeatureDropout, Jitter
from models.augment.tokens import Synonyms, TokenDropout, TokenSwap
from models.learners.linear import LinearLearner
from models.learners.online.losses import LossSettings, make_loss
from models.learners.sampling import ResampledLearner, SamplingSettings
from models.learners.tabular import TabularLearner
from tests.size import examples

CLASSES = {"regression": (), "binary": ("no", "yes"), "multiclass": ("a", "b", "c")}
PAIRS = Path(__file__).with_name("synonyms.csv")
KINDS: dict[str, tuple[type[Any], dict[str, Any], str]] = {
    # kind: (class, settings, the key of how much is changed)
    "jitter": (Jitter, {}, "probability"),
    "feature_dropout": (FeatureDropout, {}, "share"),
    "mixup": (Mixup, {}, "probability"),
    "cutmix": (Cutmix, {}, "probability"),
    "token_dropout": (TokenDropout, {"share": 0.3}, "share"),
    "token_swap": (TokenSwap, {"share": 0.5}, "share"),
    "synonyms": (Synonyms, {"table": str(PAIRS), "share": 0.5}, "share"),
    "flip": (Flip, {}, "probability"),
    "crop": (Crop, {}, "probability"),
    "rotate": (Rotate, {}, "probability"),
    "colour": (Colour, {}, "probability"),
    "pixel_noise": (PixelNoise, {}, "probability"),
}
MIXING = ("mixup", "cutmix")
every_kind = pytest.mark.parametrize("kind", KINDS)
tasks = st.sampled_from(list(CLASSES))
probabilities = st.floats(0, 1)


def make(kind: str, **settings: Any) -> Any:
    made, options, _ = KINDS[kind]
    return made("it", made.Settings(**{**options, **settings}))


def features_of(task: str, numeric: int = 3, categories: int = 2, *, nested: str = "") -> Features:
    """With an image, and lists too where `nested` is "all"."""
    lists = {"words": 9} if nested == "all" else {}
    return Features(
        numeric=tuple(f"x{i}" for i in range(numeric)),
        categories={f"c{i}": 6 for i in range(categories)},
        target="y",
        task=task,
        classes=CLASSES[task],
        images={"photo": (3, 6, 8)} if nested else {},
        ragged=lists,
        padded={"title": 9} if lists else {},
        sparse={"tags": 5} if lists else {},
        max_length=7,
    )


def for_kind(kind: str, task: str) -> Features:
    return features_of(task, nested="image" if kind in MIXING else "all")


def rows_of(features: Features, n: int, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    target: Any = rng.normal(size=n).astype(np.float32)
    if features.task != "regression":
        target = rng.integers(0, len(features.classes), n)
    numeric = rng.normal(size=(n, len(features.numeric))).astype(np.float32)
    return Tensors(
        numeric=torch.from_numpy(numeric),
        categories=torch.from_numpy(rng.integers(0, 6, (n, len(features.categories)))),
        target=torch.from_numpy(target),
        **nested_of(features, n, rng),
    )


def nested_of(features: Features, n: int, rng: np.random.Generator) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if features.images:
        pixels = rng.integers(0, 256, (n, 6, 8, 3), dtype=np.uint8)
        made["images"] = {"photo": torch.from_numpy(pixels).permute(0, 3, 1, 2)}
    if features.ragged:
        lists = [rng.integers(1, 9, k).tolist() for k in rng.integers(0, 8, n)]
        column = pl.Series(lists, dtype=pl.List(pl.Int64))
        made["ragged"] = {"words": ragged(column, None)[0]}
        made["padded"] = {"title": padded(column, 7, ())[0]}
        made["sparse"] = {"tags": sparse(column, 9, None)[0]}
    return made


def parts(tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert tensors.target is not None
    return tensors.numeric, tensors.categories, tensors.target


def everything(tensors: Tensors) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def take(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    tensors.map(take)
    return found


def same(a: Tensors, b: Tensors) -> bool:
    return all(torch.equal(x, y) for x, y in zip(everything(a), everything(b), strict=True))


def applied(
    made: Any, features: Features, rows: Tensors, number: int = 0, seed: int = 0
) -> tuple[Tensors, int]:
    made.bind(Context(features=features, soft=True))
    done, changed = made.apply(rows, rng_for(seed, "it", number))
    return done, int(changed)


def test_every_kind_is_here() -> None:
    assert list(KINDS) == list(AUGMENTS)
    for kind, (made, _, _) in KINDS.items():
        assert load_class(kind, AUGMENTS, "augment.it") is made


@every_kind
@settings(max_examples=examples(40), deadline=None)
@given(task=tasks, n=st.integers(0, 50), seed=st.integers(0, 99), probability=probabilities)
def test_rows_shapes_and_types_hold(
    kind: str, task: str, n: int, seed: int, probability: float
) -> None:
    features = for_kind(kind, task)
    rows = rows_of(features, n, seed)
    before = [part.clone() for part in everything(rows)]
    how_much = {KINDS[kind][2]: probability}
    done, changed = applied(make(kind, **how_much), features, rows, seed=seed)
    assert all(torch.equal(x, y) for x, y in zip(everything(rows), before, strict=True))
    numeric, categories, target = parts(done)
    assert (numeric.shape, numeric.dtype) == (rows.numeric.shape, torch.float32)
    assert (categories.shape, categories.dtype) == (rows.categories.shape, torch.int64)
    assert numeric.is_contiguous()
    assert len(target) == n
    assert 0 <= changed <= n
    assert numeric.isfinite().all()
    assert ((categories >= 0) & (categories < 6)).all()
    photo = done.images["photo"]
    assert (photo.shape, photo.dtype) == (rows.images["photo"].shape, torch.uint8)
    if kind not in MIXING:
        assert target is rows.target
        lists_hold(done, rows)
    elif changed and task == "multiclass":
        assert target.shape == (n, 3)
        assert torch.allclose(target.sum(1), torch.ones(n))
        assert ((target >= 0) & (target <= 1)).all()
    elif changed and task == "binary":
        assert target.dtype == torch.float32
        assert ((target >= 0) & (target <= 1)).all()
    again, _ = applied(make(kind, **how_much), features, rows, seed=seed)
    assert same(done, again)


def lists_hold(done: Tensors, rows: Tensors) -> None:
    words, title = done.ragged["words"], done.padded["title"]
    lengths = words.offsets.diff()
    assert words.offsets[0] == 0
    assert words.offsets[-1] == len(words.values)
    assert (lengths <= rows.ragged["words"].offsets.diff()).all()
    assert ((lengths > 0) == (rows.ragged["words"].offsets.diff() > 0)).all()
    assert ((words.values >= 1) & (words.values < 9)).all()
    assert words.values.dtype == title.values.dtype == torch.int64
    assert title.values.shape == title.mask.shape == rows.padded["title"].mask.shape
    assert ((title.values > 0) == title.mask).all()
    assert (title.mask.long().diff(dim=1) <= 0).all()  # filled up at the end
    assert done.sparse is rows.sparse


@every_kind
def test_probability_0_changes_nothing(kind: str) -> None:
    features = for_kind(kind, "multiclass")
    rows = rows_of(features, 100)
    done, changed = applied(make(kind, **{KINDS[kind][2]: 0.0}), features, rows)
    assert changed == 0
    assert same(done, rows)


@every_kind
def test_an_own_chance_for_every_batch_step_name_and_seed(kind: str) -> None:
    features = for_kind(kind, "regression")
    rows = rows_of(features, 30)
    made = make(kind)
    made.bind(Context(features=features))
    keys = [(0, "it", 5, 0), (1, "it", 5, 0), (0, "that", 5, 0), (0, "it", 6, 0), (0, "it", 5, 1)]
    results = [made.apply(rows, rng_for(*key))[0] for key in keys]
    for i, one in enumerate(results):
        assert not any(same_size(one, other) and same(one, other) for other in results[:i])


def same_size(a: Tensors, b: Tensors) -> bool:
    return all(x.shape == y.shape for x, y in zip(everything(a), everything(b), strict=True))


@pytest.mark.parametrize("probability", [0.2, 0.7])
@pytest.mark.parametrize("kind", ["flip", "crop", "rotate", "colour", "pixel_noise", "cutmix"])
def test_the_asked_share_of_images_is_changed_and_the_others_are_not(
    kind: str, probability: float
) -> None:
    features = for_kind(kind, "binary")
    rows = rows_of(features, 2_000)
    done, changed = applied(make(kind, probability=probability), features, rows)
    assert changed == pytest.approx(2_000 * probability, rel=0.1)
    differ = (done.images["photo"] != rows.images["photo"]).flatten(1).any(1)
    assert changed * 0.7 < differ.sum() <= changed  # a box may be empty, a crop the whole
    if kind != "cutmix":
        assert torch.equal(done.numeric, rows.numeric)


@pytest.mark.parametrize("key", ["brightness", "contrast", "saturation"])
def test_a_colour_key_changes_that_and_nothing_else(key: str) -> None:
    features = for_kind("colour", "binary")
    rows = rows_of(features, 200)
    middle = {"photo": rows.images["photo"] // 4 + 96}  # nothing is clipped
    rows = replace(rows, images=middle)
    off = dict.fromkeys(("brightness", "contrast", "saturation"), 0.0)
    done, _ = applied(make("colour", **{**off, key: 0.3}), features, rows)
    before, after = middle["photo"].double(), done.images["photo"].double()
    assert (before != after).flatten(1).any(1).double().mean() > 0.9
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    gray, gray_after = (before * weights).sum(1), (after * weights).sum(1)
    if key == "brightness":
        factor = (after / before).flatten(1)
        assert float((factor.amax(1) - factor.amin(1)).max()) < 0.03
    elif key == "contrast":
        assert float((gray - gray_after).mean((1, 2)).abs().max()) < 1.5
        assert float((gray.std((1, 2)) - gray_after.std((1, 2))).abs().max()) > 1
    else:
        assert float((gray - gray_after).abs().max()) < 1.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_kind
def test_on_cuda_it_is_the_same(kind: str) -> None:
    features = for_kind(kind, "multiclass")
    rows = rows_of(features, 200)
    here, changed = applied(make(kind), features, rows)
    there, as_many = applied(make(kind), features, rows.map(torch.Tensor.cuda))
    assert changed == as_many
    for ours, theirs in zip(everything(here), everything(there), strict=True):
        assert theirs.is_cuda
        level = 1.01 if ours.dtype == torch.uint8 else 1e-4
        assert torch.allclose(ours.double(), theirs.cpu().double(), rtol=0, atol=level)


def test_cutmix_mixes_labels_by_the_area_of_the_box() -> None:
    features = features_of("multiclass", nested="image")
    rows = rows_of(features, 400)
    light = torch.arange(400).remainder(200).byte()[:, None, None, None].expand(400, 3, 6, 8)
    rows = replace(rows, images={"photo": light})
    done, _ = applied(make("cutmix"), features, rows)
    photo, target = done.images["photo"], parts(done)[2]
    labels = F.one_hot(parts(rows)[2], 3).float()
    numeric = rows.numeric
    for i in range(400):
        share = (photo[i, 0] != i % 200).float().mean()
        others = set(photo[i, 0].flatten().tolist()) - {i % 200}
        assert len(others) <= 1
        for other in others:  # one of the two rows of that light
            pair = [other, other + 200]
            assert any(
                torch.allclose(target[i], (1 - share) * labels[i] + share * labels[j], atol=1e-6)
                and torch.allclose(
                    done.numeric[i], (1 - share) * numeric[i] + share * numeric[j], atol=1e-5
                )
                for j in pair
            )
    shares = torch.stack([(photo[i, 0] != i % 200).float().mean() for i in range(400)])
    assert 0.2 < shares.mean() < 0.5  # a half, less what was cut off at the edges


def test_columns_of_lists_and_images_may_be_chosen() -> None:
    features = features_of("binary", nested="all")
    rows = rows_of(features, 50)
    done, _ = applied(make("token_dropout", columns=["wor*"], share=1.0), features, rows)
    assert (done.ragged["words"].offsets.diff() <= 1).all()
    assert same(replace(done, ragged=rows.ragged), rows)
    done, changed = applied(make("token_dropout", columns=["title"], share=1.0), features, rows)
    assert (done.padded["title"].mask.sum(1) <= 1).all()
    assert same(replace(done, padded=rows.padded), rows)
    assert changed == int((rows.padded["title"].mask.sum(1) > 1).sum())


def test_synonyms_come_from_the_table(tmp_path: Path) -> None:
    features = Features(numeric=(), ragged={"t": 9, "u": 50}, target="y")
    words = ["", "good", "fine", "nice", "bad"]

    def encode(tokens: pl.Series) -> Any:
        return tokens.replace_strict(words, range(5), default=0, return_dtype=pl.Int64).to_numpy()

    table = tmp_path / "pairs.parquet"
    pairs = [("good", "fine"), ("good", "nice"), ("bad", "unheard"), ("unheard", "bad")]
    pl.DataFrame(pairs, schema=["word", "like"], orient="row").write_parquet(table)
    made = make("synonyms", table=str(table), columns=["t"], share=1.0)
    made.bind(Context(features=features, encoders={"t": encode}))
    lists = pl.Series([[1, 4, 2, 1, 1], [], [3, 0], [1] * 400])
    rows = Tensors(
        numeric=torch.empty((4, 0)),
        categories=torch.empty((4, 0), dtype=torch.int64),
        ragged={"t": ragged(lists, None)[0], "u": ragged(lists, None)[0]},
    )
    done, changed = made.apply(rows, rng_for(0, "it", 0))
    values = done.ragged["t"].values
    assert torch.equal(done.ragged["t"].offsets, rows.ragged["t"].offsets)
    assert values[[1, 2, 5, 6]].tolist() == [4, 2, 3, 0]
    assert set(values[[0, 3, 4]].tolist()) <= {2, 3}
    assert values[7:].double().mean() == pytest.approx(2.5, abs=0.1)
    assert changed == 2
    assert done.ragged["u"] is rows.ragged["u"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"\[augment.it\] table '.*pairs.csv' cannot be read: "),
        ("", r"\[augment.it\] table '.*' cannot be read: "),
        ("a\n1\n", r"expects two columns, token and synonym, got 1"),
        ("a,b\nx,y\n", r"expects numbers, got string: no 'tokens' stage says how the words of co"),
        ("a,b\n1,9\n", r"expects ids from 0 to 8 for column 't', got 9 to 9"),
        ("a,b\n1,1\n0,2\n", r"has no two tokens that column 't' knows"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(
    content: str | None, sentence: str, tmp_path: Path
) -> None:
    table = tmp_path / "pairs.csv"
    if content is not None:
        table.write_text(content)
    features = Features(numeric=(), ragged={"t": 9})
    with pytest.raises(UserError, match=sentence) as caught:
        make("synonyms", table=str(table)).bind(Context(features=features))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_jitter_is_noise_of_the_asked_deviation_on_the_asked_share(probability: float) -> None:
    features = features_of("regression", numeric=4)
    rows = rows_of(features, 50_000)
    made = make("jitter", columns=["x1", "x3"], scale=0.25, probability=probability)
    done, changed = applied(made, features, rows)
    noise = (done.numeric - rows.numeric).double()
    assert (noise[:, [0, 2]] == 0).all()
    moved = noise[:, [1, 3]][(noise[:, 1] != 0)]
    assert len(moved) == changed == pytest.approx(50_000 * probability, rel=0.03)
    assert moved.std(0).tolist() == pytest.approx([0.25, 0.25], rel=0.02)
    assert moved.mean(0).abs().max() < 0.01
    assert torch.corrcoef(moved.T)[0, 1].abs() < 0.03


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_feature_dropout_drops_the_asked_share_of_the_asked_columns(share: float) -> None:
    features = features_of("binary", numeric=3)
    rows = rows_of(features, 20_000)
    rows = replace(rows, categories=rows.categories.clamp(min=1))
    made = make("feature_dropout", columns=["x[02]", "c1"], share=share, value=-7.0)
    done, changed = applied(made, features, rows)
    gone = torch.cat([done.numeric == -7, done.categories == 0], 1).double()
    assert gone.mean(0).tolist() == pytest.approx([share, 0, share, 0, share], rel=0.1)
    assert changed == int(gone.any(1).sum())
    kept = done.numeric != -7
    assert torch.equal(done.numeric[kept], rows.numeric[kept])
    assert torch.equal(parts(done)[2], parts(rows)[2])


@settings(max_examples=examples(40), deadline=None)
@given(
    task=tasks,
    n=st.integers(2, 60),
    number=st.integers(0, 2**63),
    alpha=st.sampled_from([0.1, 1.0, 5.0]),
    probability=probabilities,
)
def test_mixup_lies_between_two_rows_and_so_does_its_label(
    task: str, n: int, number: int, alpha: float, probability: float
) -> None:
    """Every row finds its other and its share again in a column of row numbers."""
    features = features_of(task, numeric=2)
    rows = rows_of(features, n)
    rng = np.random.default_rng(number)
    places = rng.normal(size=(n, 2)).astype(np.float32)  # no three on a line
    rows = replace(rows, numeric=torch.from_numpy(places))
    made = make("mixup", alpha=alpha, probability=probability)
    done, changed = applied(made, features, rows, number)
    if not changed:
        assert same(done, rows)
        return
    drawn = rng_for(0, "it", number)
    mixed = drawn.random(n) < probability
    other = drawn.permutation(n)
    kept = drawn.beta(alpha, alpha, n)
    kept[~mixed] = 1
    assert changed == mixed.sum()
    expected = kept[:, None] * places + (1 - kept[:, None]) * places[other]
    np.testing.assert_allclose(done.numeric.numpy(), expected, rtol=1e-4, atol=1e-5)
    target = parts(rows)[2]
    soft = F.one_hot(target, 3).double() if task == "multiclass" else target.double()[:, None]
    labels = kept[:, None] * soft.numpy() + (1 - kept[:, None]) * soft.numpy()[other]
    np.testing.assert_allclose(parts(done)[2].numpy().reshape(n, -1), labels, rtol=1e-4, atol=1e-5)
    codes = rows.categories.numpy()
    now = done.categories.numpy()
    assert ((now == codes) | (now == codes[other])).all()
    assert (now[~mixed] == codes[~mixed]).all()


@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5)])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_loss_of_mixed_labels_is_that_of_both(task: str, weights: Any) -> None:
    """lambda * loss(a) + (1 - lambda) * loss(b), over the rows' weights."""
    features = features_of(task)
    k = len(features.classes)
    loss = make_loss(LossSettings(class_weights=weights and weights[:k]), features)
    rng = torch.Generator().manual_seed(1)
    a, b = (torch.randint(k, (200,), generator=rng) for _ in range(2))
    share = torch.rand(200, generator=rng)
    raw = torch.randn((200, k) if k > 2 else (200,), generator=rng)
    hot_a, hot_b = (F.one_hot(x, k).float() if k > 2 else x.float() for x in (a, b))
    shares = share[:, None] if k > 2 else share
    soft = shares * hot_a + (1 - shares) * hot_b
    weight = torch.ones(k) if weights is None else torch.tensor(weights[:k])
    one = torch.stack([loss(raw[i : i + 1], a[i : i + 1]) for i in range(200)]) * weight[a]
    two = torch.stack([loss(raw[i : i + 1], b[i : i + 1]) for i in range(200)]) * weight[b]
    size = share * weight[a] + (1 - share) * weight[b]
    expected = (share * one + (1 - share) * two).sum() / size.sum()
    assert loss(raw, soft).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss(raw, hot_a).item() == pytest.approx(loss(raw, a).item(), rel=1e-5)


def learner_of(kind: str, features: Features, **train: Any) -> Any:
    if kind == "linear":
        return LinearLearner(LinearLearner.Settings(), LinearLearner.Training(**train), features)
    model = TabularLearner.Settings(layers=(8,))
    return TabularLearner(model, TabularLearner.Training(**train), features)


def all_of() -> Augmentation:
    return Augmentation(
        [
            Jitter("noise", Jitter.Settings(scale=0.3)),
            FeatureDropout("gaps", FeatureDropout.Settings(share=0.2)),
            Mixup("mix", Mixup.Settings(alpha=1.0, probability=0.7)),
            Mixup("again", Mixup.Settings(alpha=0.5)),
        ]
    )


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("tabular", "regression", {}),
    ("tabular", "binary", {"class_weights": [1.0, 2.0]}),
    ("tabular", "multiclass", {"replay_rows": 100, "replay_steps": 2}),
    ("linear", "regression", {}),
    ("linear", "binary", {"l1": 1e-3}),
]
every_case = pytest.mark.parametrize(("kind", "task", "train"), CASES)


@every_case
def test_the_rows_themselves_are_scored(
    kind: str,
    task: str,
    train: dict[str, Any],
    make_features: Callable[..., Features],
    make_batches: Callable[..., list[Batch]],
) -> None:
    features = make_features(task)
    plain, changed = learner_of(kind, features, **train), learner_of(kind, features, **train)
    all_of().attach(changed)
    first, second = (batch.tensors for batch in make_batches(features)[:2])
    assert first is not None
    assert second is not None
    one, two = plain.learn(batch_of(first)), changed.learn(batch_of(first))
    # Before the first update both models are the same.
    np.testing.assert_allclose(two.scores[0], one.scores[0], rtol=1e-6)
    assert two.augmented["noise"] >= len(first)
    assert set(two.augmented) == {"noise", "gaps", "mix", "again"}
    assert one.augmented == {}
    for at in range(len(second)):
        row = second.slice(at, at + 1)
        before = changed.predict(row)
        assert changed.learn(batch_of(row)).scores.tobytes() == before.tobytes()
        plain.learn(batch_of(row))
    assert not np.allclose(changed.predict(second), plain.predict(second))


@every_case
def test_probability_0_learns_the_same(
    kind: str,
    task: str,
    train: dict[str, Any],
    make_features: Callable[..., Features],
    make_batches: Callable[..., list[Batch]],
) -> None:
    features = make_features(task)
    plain, other = learner_of(kind, features, **train), learner_of(kind, features, **train)
    Augmentation([Jitter("noise", Jitter.Settings(probability=0.0))]).attach(other)
    for batch in make_batches(features):
        one, two = plain.learn(batch), other.learn(batch)
        np.testing.assert_allclose(two.scores, one.scores, rtol=1e-6)
        assert two.loss == one.loss
    last = make_batches(features)[0].tensors
    assert last is not None
    assert plain.predict(last).tobytes() == other.predict(last).tobytes()


def test_kept_rows_are_kept_as_they_are_and_augmented_anew() -> None:
    features = features_of("multiclass")
    learner = learner_of("tabular", features, replay_rows=50, replay_steps=3, replay_batch=50)
    seen: list[Tensors] = []

    class Spy(Jitter):
        def apply(self, tensors: Tensors, rng: np.random.Generator) -> tuple[Tensors, int]:
            seen.append(tensors)
            made, changed = super().apply(tensors, rng)
            seen.append(made)
            return made, changed

    mix = Mixup("mix", Mixup.Settings(alpha=1.0))
    Augmentation([Spy("noise", Spy.Settings()), mix]).attach(learner)
    rows = rows_of(features, 50)
    step: Step = learner.learn(batch_of(rows))
    assert step.steps == len(seen) // 2 == 50 * (1 + 3)  # a young model's steps have a row
    assert step.augmented["noise"] == sum(len(rows.numeric) for rows in seen[::2])
    assert step.augmented["mix"] > 0
    clean = {tuple(row) for row in rows.numeric.tolist()}
    for rows, made in zip(seen[::2], seen[1::2], strict=True):
        assert {tuple(row) for row in rows.numeric.tolist()} <= clean
        assert parts(rows)[2].dtype == torch.int64
        assert not {tuple(row) for row in made.numeric.tolist()} & clean
    noises = [made.numeric.sort(0).values for made in seen[1::2]]
    assert not torch.equal(noises[1], noises[2])


def batch_of(rows: Tensors) -> Batch:
    frame = pl.DataFrame({"y": parts(rows)[2].numpy()})
    return Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=rows)


def test_drawn_rows_are_augmented_after_they_were_drawn() -> None:
    features = features_of("binary")
    inner = learner_of("tabular", features, replay_rows=0)
    Augmentation([Jitter("noise", Jitter.Settings())]).attach(inner)
    balanced = ResampledLearner(inner, SamplingSettings(method="under"))
    rows = rows_of(features, 300)
    rows = replace(rows, target=(torch.arange(300) < 30).long())
    before = balanced.predict(rows)
    step = balanced.learn(batch_of(rows))
    assert step.scores[:1].tobytes() == before[:1].tobytes()
    assert step.augmented == {"noise": 300 - step.scored_only}


class Plain(Learner):
    """A learner of the user's own that knows nothing of augmentation."""

    def __init__(self) -> None:
        super().__init__(None, None, features_of("binary"))

    def learn(self, batch: Batch) -> Step:
        return Step(scores=np.zeros(len(batch)), loss=0.0)

    def predict(self, tensors: Tensors) -> Any:
        return np.zeros(len(tensors.numeric))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Hard(Plain):
    """One that augments, and takes whole classes only."""

    def augment_with(self, augmentation: Augmenter) -> None: ...


@pytest.mark.parametrize(
    ("learner", "made", "sentence"),
    [
        (Plain(), Jitter("a", Jitter.Settings()), "Plain has no method 'augment_with'"),
        (Hard(), Mixup("a", Mixup.Settings()), r"\[augment.a\] kind mixes labels, and this learn"),
        (
            Hard(),
            Jitter("a", Jitter.Settings(columns=("x11",))),
            r"\[augment.a\] columns: 'x11' matches no feature .* Did you mean 'x1'\?",
        ),
        (Hard(), Jitter("a", Jitter.Settings(columns=("c0",))), r"\[augment.a\] columns: 'c0"),
        (
            Hard(),
            FeatureDropout("gaps", FeatureDropout.Settings(columns=("z*",))),
            r"\[augment.gaps\] columns: 'z\*' matches no feature",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(learner: Any, made: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        Augmentation([made]).attach(learner)
    assert "\n" not in str(caught.value)


def test_two_of_one_name_are_refused() -> None:
    one = Jitter("a", Jitter.Settings())
    with pytest.raises(UserError, match="2 augments named 'a': rename one"):
        Augmentation([one, one])

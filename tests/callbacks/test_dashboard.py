"""What TensorBoard gets to see: read back from the event files, with TensorBoard's own reader."""

import math
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util
from torch.utils.data import DataLoader

from contactlm import ContactModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, TensorBoardDashboard, ThroughputMeter, TokenBudget
from contactlm.callbacks.dashboard import (
    CURVE_POINTS,
    EMS,
    FIRST,
    Exhibits,
    PrecisionRecall,
    RunBoard,
    draw,
    flat,
    is_shown,
)
from contactlm.callbacks.progress import known_peak
from contactlm.types import ContactLMError
from tests.callbacks.test_callbacks import ForeignModule, data_module, trainer

Folders = tuple[Path, Path]
Run = tuple[EventAccumulator, L.Trainer, list[ContactEvaluation]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_esm: Path, pdb_folders: Folders) -> Run:
    """A small run with a test after it, and what its event files hold."""
    folder = tmp_path_factory.mktemp("dashboard")
    logger = TensorBoardLogger(folder, name="arm", default_hp_metric=False)
    evaluation = ContactEvaluation()
    callbacks = [TokenBudget(10 * 128), FlopsMeter(), evaluation, ThroughputMeter(peak_flops=1e9)]
    options = {"val_check_interval": 2, "check_val_every_n_epoch": None, "log_every_n_steps": 1}
    runner = trainer(folder, *callbacks, TensorBoardDashboard(lengths=(40, 60)), logger=logger, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contactlm.callbacks.progress.WINDOW", 3)
        runner.fit(ContactModule(str(tiny_esm)), data_module(pdb_folders))
    runner.test(runner.lightning_module, data_module(pdb_folders), verbose=False)
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0, "scalars": 0, "images": 0, "histograms": 0})
    events.Reload()
    return events, runner, [evaluation]


def scalars(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(tag)}


def plugin(events: EventAccumulator, name: str) -> dict[str, bytes]:
    return events.PluginTagToContent(name)


@pytest.mark.slow
def test_scalars_are_grouped(run: Run) -> None:
    tags = set(run[0].Tags()["scalars"])
    groups = {tag.split("/")[0] for tag in tags if "/" in tag}
    assert groups == {"train", "dev", "test", "budget", "flops", "speed", "by_tokens"}
    assert {"speed/tokens_per_s", "speed/residues_per_s", "speed/mfu", "flops/total", "test/mcc_sep6"} <= tags


@pytest.mark.slow
def test_dev_scores_stand_against_tokens_too(run: Run) -> None:
    by_step, by_tokens = scalars(run[0], "dev/mcc_sep6"), scalars(run[0], "by_tokens/dev/mcc_sep6")
    assert list(by_tokens) == [2 * 128 * look for look in range(1, 6)]  # 128 tokens a batch, a look every 2 batches
    assert list(by_tokens.values()) == list(by_step.values())


def test_gflops_are_flops(run: Run) -> None:
    total, cumulative = scalars(run[0], "flops/total"), scalars(run[0], "flops/cumulative_gflops")
    assert list(cumulative) == list(range(1, 11))
    assert list(cumulative.values()) == pytest.approx([value / 1e9 for value in total.values()], rel=1e-6)


def test_charts_of_the_layout_show_what_is_there(run: Run) -> None:
    assert plugin(run[0], "custom_scalars")
    tensor = run[0].Tensors("custom_scalars__config__")[0].tensor_proto
    layout = Layout.FromString(tensor_util.make_ndarray(tensor).item())
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert layout.category[0].title == "report"
    assert [chart.title for chart in layout.category[0].chart] == [
        "cumulative GFLOPs by step",
        "dev MCC by tokens, |i - j| >= 6",
    ]
    written = run[0].Tags()["scalars"]
    for tags in charts.values():
        assert all(tag.removesuffix("$") in written for tag in tags), tags


def test_the_same_few_proteins_are_drawn_through_training(run: Run) -> None:
    tags = run[0].Tags()["images"]
    assert 1 <= len(tags) <= 2 and all(tag.startswith("dev/maps/") for tag in tags)
    for tag in tags:
        images = run[0].Images(tag)
        assert [image.step for image in images] == [2, 4, 6, 8, 10]
        ((width, height),) = {(image.width, image.height) for image in images}
        assert 900 < width < 1100 and 900 < height < 1100
        assert len({image.encoded_image_string for image in images}) > 1  # the model learns


def test_curves_and_histograms_of_dev_and_test(run: Run) -> None:
    events, _, (evaluation,) = run
    assert set(plugin(events, "pr_curves")) == {"dev/precision_recall_sep6", "test/precision_recall_sep6"}
    curve = tensor_util.make_ndarray(events.Tensors("test/precision_recall_sep6")[0].tensor_proto)
    assert curve.shape == (6, CURVE_POINTS)
    histogram = events.Histograms("test/proteins/mcc_sep6")[-1].histogram_value
    scores = [row["mcc_sep6"] for row in evaluation.rows]
    assert histogram.num == len(scores) == 3
    assert histogram.sum == pytest.approx(sum(scores))
    assert len(events.Histograms("dev/proteins/auprc_sep6")) == 5


def test_hparams_are_plain_and_their_metrics_are_filled(run: Run) -> None:
    content = plugin(run[0], "hparams")
    assert set(content) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics == ["dev/mcc_sep6", "test/mcc_sep6"] and set(metrics) <= set(run[0].Tags()["scalars"])
    given = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert given["arm"].string_value == "arm"
    assert given["crop"].string_value == "random"
    numbers = {name: given[name].number_value for name in ("lr", "crop_length", "batch_size", "lora_r", "seed")}
    assert numbers == {"lr": 1e-4, "crop_length": 30, "batch_size": 4, "lora_r": 8, "seed": 0}


def test_hparams_are_shown_to_the_last_digit() -> None:
    given = {"a": 5_000_000, "b": 323_232, "c": 0.0001, "d": 0.00123456, "e": True}
    assert flat(given) == {"a": 5_000_000, "b": "323232", "c": 0.0001, "d": 0.00123456, "e": True}


def test_the_board_of_a_run_opens_on_its_scores(tmp_path: Path, run: Run) -> None:
    tags = run[0].Tags()["scalars"]
    board = RunBoard(tmp_path, name="a", default_hp_metric=False)
    board.log_metrics(dict.fromkeys(tags, 0.5), 3)
    board.save()
    events = EventAccumulator(board.log_dir)
    events.Reload()
    shown = sorted(events.Tags()["scalars"])
    assert shown[:3] == sorted(FIRST.values()) and len(shown) < 60 < len(tags)
    assert {"dev/mcc_sep6", "test/p_at_L_long", "train/loss", "speed/tokens_per_s", "flops/total"} <= set(shown)
    assert not any(tag.startswith("budget/") for tag in shown)
    assert [is_shown(name) for name in ("lr-Adam", "mine/loss", "dev/brier_long", "epoch")] == [
        True,
        True,
        False,
        False,
    ]


def test_without_tensorboard_nothing_happens(tmp_path: Path, pdb_folders: Folders, tiny_esm: Path) -> None:
    runner = trainer(tmp_path, TensorBoardDashboard(), max_steps=2, logger=CSVLogger(tmp_path), num_sanity_val_steps=0)
    runner.fit(ContactModule(str(tiny_esm)), data_module(pdb_folders))
    assert not list(tmp_path.rglob("*tfevents*"))


def test_dashboard_in_a_foreign_project(tmp_path: Path) -> None:
    loader: DataLoader = DataLoader(torch.ones(6, 4), batch_size=2)  # type: ignore[arg-type]
    logger = TensorBoardLogger(tmp_path, name="")
    runner = trainer(tmp_path, TensorBoardDashboard(), ContactEvaluation(), logger=logger, max_epochs=3)
    runner.fit(ForeignModule(), loader, loader)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["images"] == ["dev/maps/p0"]  # of three proteins of 30 residues the first
    assert len(events.Images("dev/maps/p0")) == 2  # looks 1 and 2 of 3
    assert "by_tokens/dev/mcc_sep6" not in events.Tags()["scalars"]  # tokens are not counted here


@pytest.mark.slow
def test_pictures_change_nothing_in_the_training(tmp_path: Path, pdb_folders: Folders, tiny_esm: Path) -> None:
    weights = []
    for extra in ([], [TensorBoardDashboard(), ThroughputMeter()]):
        torch.manual_seed(0)
        module = ContactModule(str(tiny_esm))
        logger = TensorBoardLogger(tmp_path, name=str(len(extra)))
        callbacks = [TokenBudget(4 * 128), ContactEvaluation(), *extra]
        options = {"val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
        trainer(tmp_path, *callbacks, logger=logger, **options).fit(module, data_module(pdb_folders))
        weights.append((module.state_dict(), torch.get_rng_state()))
    (plain, plain_state), (drawn, drawn_state) = weights
    assert torch.equal(plain_state, drawn_state)
    assert all(torch.equal(plain[name], drawn[name]) for name in plain)


def outputs_of(lengths: list[int], seed: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "ids": [f"p{i:03d}"],
            "probability": [torch.from_numpy(rng.random((length, length), dtype=np.float32))],
            "labels": [torch.from_numpy(rng.integers(-1, 2, (length, length)).astype(np.int8))],
        }
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_of_proteins_does_not_depend_on_their_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, 90, 40).tolist()
    batches = outputs_of(lengths, seed)
    choices = []
    for order in (range(40), rng.permutation(40)):
        exhibits = Exhibits((20, 50, 80))
        for i in order:
            exhibits.add(batches[i])
        choices.append([(exhibit.id, exhibit.length) for exhibit in exhibits.chosen()])
    assert choices[0] == choices[1]
    for wanted in (20, 50, 80):
        nearest = min(abs(length - wanted) for length in lengths)
        assert any(abs(length - wanted) == nearest for _, length in choices[0])
    assert [length for _, length in choices[0]] == sorted(length for _, length in choices[0])


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_are_scikit_learns(seed: int) -> None:
    from sklearn.metrics import precision_score, recall_score

    counts, truth, score = PrecisionRecall(), [], []
    for batch in outputs_of([30, 50, 8], seed):
        counts.add(batch)
        probability, labels = batch["probability"][0], batch["labels"][0]  # type: ignore[index]
        i, j = np.triu_indices(len(labels), k=6)
        known = labels[i, j] >= 0
        truth.append((labels[i, j] == 1)[known])
        score.append(probability[i, j][known])
    curve = counts.curve(counts.called)
    y, p = torch.cat(truth).numpy(), torch.cat(score)
    for k in (0, 1, 50, 100, 199):
        called = (p >= k / (CURVE_POINTS - 1)).numpy()
        assert curve["precision"][k] == pytest.approx(precision_score(y, called))
        assert curve["recall"][k] == pytest.approx(recall_score(y, called))
        total = sum(curve[f"{name}_counts"][k] for name in (
            "true_positive", "false_positive", "true_negative", "false_negative"
        ))  # fmt: skip
        assert total == len(y)


def test_a_curve_of_nothing_is_defined() -> None:
    nothing = PrecisionRecall()
    assert all(np.isfinite(values).all() for values in nothing.curve(nothing.called).values())


def test_a_long_protein_makes_no_larger_picture() -> None:
    for length in (5, 700):
        probability = torch.zeros(length, length)
        exhibits = Exhibits()
        exhibits.add({"ids": ["$x_1$"], "probability": [probability], "labels": [probability.to(torch.int8)]})
        (exhibit,) = exhibits.chosen()
        height, width, _ = draw(exhibit, 0.5).shape
        assert 900 < height < 1100 and 900 < width < 1100


def test_the_picture_of_a_complex_is_the_drawing_of_its_map() -> None:
    from contactlm import ContactMap
    from contactlm.maps.picture import draw_picture

    probability, chain_of = torch.rand(30, 30).triu(1), torch.arange(30) // 18
    probability, labels = probability + probability.T, torch.zeros(30, 30, dtype=torch.int8)
    exhibits = Exhibits((30,))
    exhibits.add({"ids": ["x"], "probability": [probability], "labels": [labels], "chain_of": [chain_of]})
    (exhibit,) = exhibits.chosen()
    assert exhibit.chain_lengths == (18, 12)
    how = {"chain_lengths": [18, 12]}
    drawn = draw_picture(ContactMap("x", "X" * 30, probability.numpy(), labels.numpy(), how=how), EMS)
    picture = draw(exhibit, 0.5)
    assert (picture == np.asarray(drawn)).all()
    assert (picture != draw(exhibit._replace(chain_lengths=()), 0.5)).any()


class Clock:
    """A clock that goes on only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Delays(L.Callback):
    """Lets time pass: a second a batch, a hundred a look at dev, half a second for data."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *args: object) -> None:
        self.clock.now += 1

    def on_validation_batch_end(self, *args: object) -> None:
        self.clock.now += 100

    def on_train_batch_end(self, *args: object) -> None:
        self.clock.now += 0.5  # after the meter has read the clock


def test_speed_is_that_of_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pdb_folders: Folders, tiny_esm: Path
) -> None:
    clock = Clock()
    monkeypatch.setattr("contactlm.callbacks.progress.time.perf_counter", clock)
    monkeypatch.setattr("contactlm.callbacks.progress.WINDOW", 7)
    meter, flops = ThroughputMeter(peak_flops=1e6), FlopsMeter()
    callbacks = [TokenBudget(8 * 128), flops, ContactEvaluation(), meter, Delays(clock)]
    options = {"val_check_interval": 4, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    runner = trainer(tmp_path, *callbacks, **options)
    runner.fit(ContactModule(str(tiny_esm)), data_module(pdb_folders))
    # batches 2 … 8 of 128 tokens: 7 seconds of work and 7 half ones before the next batch, or the look, began
    rates = meter.rates()
    assert rates["tokens_per_s"] == pytest.approx(7 * 128 / (7 + 7 * 0.5))
    assert rates["residues_per_s"] == pytest.approx(7 * 120 / 10.5)
    assert rates["mfu"] == pytest.approx(flops.total * 7 / 8 / (10.5 * 1e6))


def test_counts_that_stand_still_or_pass_the_tokens_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contactlm.callbacks.progress.WINDOW", 2)
    loader: DataLoader = DataLoader(torch.ones(6, 4), batch_size=2)  # type: ignore[arg-type]
    counts = iter([(2, 9), (2, 0), (0, 0), (2, 0), (2, 5), (2, 5)])
    meter = ThroughputMeter()
    callbacks = [TokenBudget(None, count=lambda _: next(counts)), meter]
    trainer(tmp_path, *callbacks, max_epochs=2).fit(ForeignModule(), loader)
    rates = meter.rates()
    assert rates["residues_per_s"] == pytest.approx(10 / 4 * rates["tokens_per_s"])  # of the last two batches
    assert "mfu" not in rates


def test_a_peak_is_known_of_gpus_only() -> None:
    assert known_peak(torch.device("cpu"), "32-true") is None
    assert ThroughputMeter(peak_flops=None).rates() == {}
    with pytest.raises(ContactLMError, match="peak_flops is 0"):
        ThroughputMeter(peak_flops=0)


def test_speed_needs_counted_tokens(tmp_path: Path) -> None:
    loader: DataLoader = DataLoader(torch.ones(6, 4), batch_size=2)  # type: ignore[arg-type]
    with pytest.raises(ContactLMError, match="TokenBudget\\(None\\)"):
        trainer(tmp_path, ThroughputMeter(), max_epochs=1).fit(ForeignModule(), loader)


def test_options_become_plain_values() -> None:
    nested = {"lora": {"r": 8, "modules": ["query", "key"]}, "none": None, "call": print, "x": math.pi}
    assert flat(nested) == {"lora.r": 8, "lora.modules": "query, key", "none": "null", "x": math.pi}


@pytest.mark.parametrize(("option", "value"), [("lengths", (0,)), ("pictures", 0)])
def test_options_without_sense_are_refused(option: str, value: object) -> None:
    with pytest.raises(ContactLMError, match=f"dashboard.{option}"):
        TensorBoardDashboard(**{option: value})  # type: ignore[arg-type]

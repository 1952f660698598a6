"""A calibration from dev to predicted maps: fitted, kept in checkpoints and exports, applied, named, and left out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from contactlm import ContactMap, ContactModule, predict_contacts
from contactlm.callbacks.evaluation import _figure as draw_reliability
from contactlm.cli.main import main
from contactlm.metrics.calibration import Calibration, logit
from contactlm.modules.checkpoint import CHECKPOINT_KEY
from contactlm.modules.export import export_adapter, export_merged
from contactlm.runs.record_file import read_run
from contactlm.types import ContactLMError, ModelError
from tests.conftest import Finished, random_sequence

SEQUENCE = random_sequence(5, 60)
FITTED = Calibration("platt", (1.0, 0.5, 2.0, 1.5), (0.0, -1.0, 0.3, 1.0), 0.4, (1.2, 0.1))


def saved(path: Path, calibration: object, finished: Finished) -> Path:
    """The run's best checkpoint, with another calibration."""
    checkpoint = torch.load(finished.best, weights_only=True)
    checkpoint[CHECKPOINT_KEY]["calibration"] = calibration
    torch.save(checkpoint, path)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_a_run_fits_one_on_dev_and_tells_what_it_brings_in_its_test(finished: Finished) -> None:
    about = torch.load(finished.best, weights_only=True)[CHECKPOINT_KEY]
    fitted = Calibration.from_dict(about["calibration"])
    assert fitted.kind == "platt" and fitted.slope != (1.0,) * 4
    test = read_run(finished.run)["test"]
    for name in ("ece_sep6", "brier_sep6", "log_loss_sep6", "ece_long", "brier_short", "log_loss_medium"):
        assert test[name] is not None and test[f"{name}_calibrated"] is not None
    assert "mcc_sep6_calibrated" in test and "mcc_sep6_tuned" in test
    rows = rows_of(finished.run / "reliability.csv")
    assert {row["probabilities"] for row in rows} == {"as predicted", "calibrated"}
    assert {row["range"] for row in rows} == {"sep6", "short", "medium", "long"}
    assert (finished.run / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    assert "mcc_sep6_calibrated" in rows_of(finished.run / "test_scores.csv")[0]


def test_predicted_maps_are_calibrated_and_say_so(finished: Finished, tmp_path: Path) -> None:
    module = ContactModule.load_from_checkpoint(
        saved(tmp_path / "one.ckpt", FITTED.to_dict(), finished), weights_only=True
    )
    assert module.calibration == FITTED
    calibrated = module.predict_map(SEQUENCE)
    module.applies_calibration = False
    plain = module.predict_map(SEQUENCE)
    expected = FITTED.apply_map(torch.from_numpy(plain.probability)).numpy()
    np.testing.assert_allclose(calibrated.probability, expected, atol=1e-6)
    assert calibrated.how["calibration"] == {
        "kind": "platt",
        "slope": [1.0, 0.5, 2.0, 1.5],
        "bias": [0.0, -1.0, 0.3, 1.0],
    }
    assert calibrated.threshold == 0.4 and "calibration" not in plain.how
    top = np.sort(plain.probability[np.triu_indices(60, 24)])[-60:].mean()
    odds = 1.2 * float(logit(torch.tensor(top))) + 0.1
    assert calibrated.how["predicted_p_at_L_long"] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-4)
    assert plain.threshold == module.tuned_threshold and "predicted_p_at_L_long" not in plain.how
    by_path = predict_contacts(SEQUENCE, tmp_path / "one.ckpt")
    np.testing.assert_allclose(by_path.probability, calibrated.probability, atol=1e-6)


def test_a_map_names_its_threshold_and_what_it_was_trained_from(finished: Finished, tmp_path: Path) -> None:
    module = ContactModule.load_from_checkpoint(finished.best, weights_only=True)
    kinds = {}
    for given, calibrates in ((None, True), (None, False), (0.3, True)):
        module.threshold, module.applies_calibration = given, calibrates
        made = module.predict_map(SEQUENCE)
        kinds[made.how["threshold_kind"]] = made.threshold
    assert module.calibration is not None
    assert kinds == {
        "tuned on dev, for calibrated probabilities": module.calibration.threshold,
        "tuned on dev": module.tuned_threshold,
        "as given": 0.3,
    }
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    fresh = ContactModule(None, architecture=sizes, lora=None)
    how = fresh.predict_map(SEQUENCE).how
    assert (how["model"], how["threshold_kind"]) == ("randomly initialised", "none was tuned")
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(fresh)
    trainer.save_checkpoint(tmp_path / "none.ckpt")
    checkpoint = torch.load(tmp_path / "none.ckpt", weights_only=True)
    torch.save({**checkpoint, "global_step": 7}, tmp_path / "some.ckpt")
    for name, said in (("none", "randomly initialised"), ("some", "trained from random weights")):
        again = ContactModule.load_from_checkpoint(tmp_path / f"{name}.ckpt", weights_only=True)
        assert again.predict_map(SEQUENCE).how["model"] == said


def test_a_reliability_diagram_has_no_empty_panel_and_dims_what_says_little() -> None:
    bins = [{"mean_probability": p, "contacts": p, "pairs": n} for p, n in ((0.1, 5000), (0.5, 100), (0.9, 3))]
    rows = [{"range": name, "probabilities": "as predicted", **each} for name in ("sep6", "short") for each in bins]
    nan = float("nan")
    figure = draw_reliability(rows, [{"predicted_p_at_L_long": 0.4, "p_at_L_long": nan}])
    assert [ax.get_title() for ax in figure.axes] == ["all pairs, |i − j| ≥ 6 (sep6)", "short, |i − j| 6–11"]
    faint, strong = (line.get_ydata() for line in figure.axes[0].lines[:2])
    np.testing.assert_array_equal(faint, [0.1, 0.5, 0.9])
    np.testing.assert_array_equal(strong, [0.1, 0.5, nan])
    with_long = [{**rows[0], "range": "long"}]
    panels = draw_reliability(with_long, [{"predicted_p_at_L_long": 0.4, "p_at_L_long": 0.5}]).axes
    assert [ax.get_title() for ax in panels] == ["long, |i − j| ≥ 24", "each protein's long-range P@L"]


@pytest.mark.slow
def test_predict_writes_them_and_leaves_it_out_when_told(finished: Finished, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "one.ckpt", FITTED.to_dict(), finished)
    (tmp_path / "a.fasta").write_text(f">a\n{SEQUENCE}\n>short\n{SEQUENCE[:20]}\n")
    common = ["predict", f"--ckpt_path={checkpoint}", f"--data.predict_paths=['{tmp_path / 'a.fasta'}']"]
    common += [f"--out={tmp_path / 'maps'}", "--formats=[npz,rr]", "--trainer.accelerator=cpu"]
    assert main(common) == 0
    calibrated = ContactMap.load(tmp_path / "maps" / "a.npz")
    assert calibrated.how["calibration"]["kind"] == "platt" and calibrated.threshold == pytest.approx(0.4)
    lines = {row["id"]: row for row in rows_of(tmp_path / "maps" / "summary.csv")}
    assert float(lines["a"]["predicted_p_at_L_long"]) == calibrated.how["predicted_p_at_L_long"]
    assert lines["short"]["predicted_p_at_L_long"] == ""  # no pairs at least 24 apart
    assert 'METHOD calibration: {"kind": "platt"' in (tmp_path / "maps" / "a.rr").read_text()
    assert main([*common, "--evaluation.calibration=null"]) == 0  # other options: predicted again
    plain = ContactMap.load(tmp_path / "maps" / "a.npz")
    assert "calibration" not in plain.how
    expected = FITTED.apply_map(torch.from_numpy(plain.probability)).numpy()
    np.testing.assert_allclose(calibrated.probability, expected, atol=1e-6)


def test_it_travels_with_exports(finished: Finished, tmp_path: Path) -> None:
    module = ContactModule.load_from_checkpoint(
        saved(tmp_path / "one.ckpt", FITTED.to_dict(), finished), weights_only=True
    )
    adapter, merged = export_adapter(module, tmp_path / "adapter"), export_merged(module, tmp_path / "merged")
    expected = module.predict_map(SEQUENCE)
    for again in (ContactModule.from_adapter(adapter), ContactModule(str(merged), lora=None)):
        assert again.calibration == FITTED
        found = again.predict_map(SEQUENCE)
        np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)
        assert found.how["calibration"] == expected.how["calibration"]
    about = json.loads((adapter / "contactlm.json").read_text())
    (adapter / "contactlm.json").write_text(json.dumps({**about, "calibration": {"kind": "none"}}))
    with pytest.raises(ModelError, match="cannot be read: no calibration"):
        ContactModule.from_adapter(adapter)


def test_older_checkpoints_have_none_and_damaged_ones_are_refused(finished: Finished, tmp_path: Path) -> None:
    checkpoint = torch.load(finished.best, weights_only=True)
    del checkpoint[CHECKPOINT_KEY]["calibration"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert ContactModule.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True).calibration is None
    with pytest.raises(ModelError, match=r"damaged checkpoint \(no calibration"):
        predict_contacts(SEQUENCE, saved(tmp_path / "bad.ckpt", {"kind": "platt"}, finished))


def test_without_calibration(finished: Finished, pdb_folders: tuple[Path, Path], tmp_path: Path) -> None:
    from lightning import Trainer

    from contactlm import ContactDataModule
    from contactlm.callbacks import ContactEvaluation

    module = ContactModule.load_from_checkpoint(
        saved(tmp_path / "one.ckpt", FITTED.to_dict(), finished), weights_only=True
    )
    data = ContactDataModule(str(pdb_folders[0]), read_workers=0, min_length=10)
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[ContactEvaluation(calibration=None)], enable_progress_bar=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.validate(module, datamodule=data, verbose=False)
    assert module.calibration is None and module.applied_calibration is None
    with pytest.raises(ContactLMError, match="calibration is 'isotonic'; give platt, or null"):
        ContactEvaluation(calibration="isotonic")  # type: ignore[arg-type]

"""On an accelerator, here one without data: every tensor is there, and no operation waits for it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.model.on_fake_device import run
from tests.processes import finish, start


@pytest.fixture
def found(tmp_path):
    def answer(way, *stages):
        device, report = finish(start(run, way, stages, folder=tmp_path), tmp_path)
        return {"device": device, **report}

    return answer


NEEDS_CODEC = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
HELD = [
    "fused",
    "fused,backbone_dtype=bfloat16",
    pytest.param("fused,backbone_dtype=bfloat16,quantization=nf4", marks=NEEDS_CODEC),
]


@pytest.mark.slow
@pytest.mark.parametrize("way", HELD)
def test_a_step_of_the_fused_model_stays_on_the_device_and_waits_for_nothing(found, way):
    report = found(way, "training", "evaluation", "prediction")
    device = report.pop("device")
    assert device != "cpu" and report.keys() == {"training", "evaluation", "prediction"}
    for stage, seen in report.items():
        assert seen == {"results": [device], "devices": [device], "waits": []}, stage


@pytest.mark.slow
def test_passes_go_to_the_device_once_and_their_results_come_back_once(found):
    report = found("fused", "windows", "retrieval")
    device = report["device"]
    windows, retrieval = report["windows"], report["retrieval"]
    assert windows["results"] == windows["devices"] == sorted(["cpu", device])
    assert windows["waits"] == ["aten._to_copy.default"] * 4  # tokens, mask and positions; probabilities
    assert retrieval == {"results": [device], "devices": [device], "waits": []}


@pytest.mark.slow
def test_scores_are_counted_where_the_maps_are(found):
    report = found("fused", "scores")
    device = report["device"]
    assert report["scores"] == {"results": [device], "devices": ["cpu", device], "waits": []}
    assert report["questions"] == [2, 2]  # whether the two proteins' values are probabilities; and those copied


@pytest.mark.slow
def test_the_streamed_model_waits_once_a_step_for_the_layout_of_its_blocks(found):
    """The control: a transfer is seen where there is one."""
    report = found("streamed", "training")
    waits = [name for name in report["training"]["waits"] if "streamed" not in name]  # which take the copy
    assert waits == ["aten._to_copy.default"]
    assert report["training"]["devices"] == sorted(["cpu", report["device"]])

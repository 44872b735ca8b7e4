import json
import sys
from pathlib import Path

import pytest

from intonaco.codec import encode
from intonaco.errors import ConfigError
from intonaco.jobs import JobFolder, main
from intonaco.types import JobSpec, Json


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    spec = JobSpec(key="k", entrypoint="m", payload={"n": 3})
    (tmp_path / "spec.json").write_text(encode(spec))
    monkeypatch.setattr(sys, "argv", ["m", str(tmp_path)])
    return JobFolder(tmp_path)


def test_result_of_a_run_is_written(job: JobFolder) -> None:
    main(lambda j: {"twice": 2 * j.payload["n"]})
    assert job.read("result") == {"twice": 6}
    assert job.read("error") == {}


def test_our_error_is_written_with_its_hint(job: JobFolder) -> None:
    def run(_: JobFolder) -> dict[str, Json]:
        raise ConfigError("wrong", hint="do it right")

    with pytest.raises(SystemExit) as stop:
        main(run)
    assert stop.value.code == 4
    assert job.read("error") == {"message": "wrong", "hint": "do it right"}
    assert not (job.root / "result.json").exists()


def test_any_error_is_written_with_its_type(
    job: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(lambda _: {"x": 1 / 0})
    assert job.read("error") == {"message": "ZeroDivisionError: division by zero"}
    assert "Traceback" in capsys.readouterr().err


def test_progress_is_throttled_but_the_last_step_always_written(job: JobFolder) -> None:
    for step in range(1, 4):
        job.progress("train", step, 4)
    assert job.read("progress")["step"] == 1
    job.progress("train", 4, 4, "done", loss=0.5)
    assert json.loads((job.root / "progress.json").read_text()) == {
        "phase": "train",
        "step": 4,
        "total": 4,
        "text": "done",
        "loss": 0.5,
    }

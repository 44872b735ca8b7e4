"""Killed, out of disk, out of memory, out of money: what is left is whole, and a run goes on."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tests import fixtures_tiny
from tests.fixtures_training import run_job, write_job, write_pictures

from intonaco import config
from intonaco.errors import BackendError, ConfigError, IntonacoError, StorageError
from intonaco.jobs import JobFolder
from intonaco.training import cache as caches
from intonaco.training import checkpoints, devices, loop
from intonaco.training import job as training_job
from intonaco.training.families.sd import StableDiffusion
from intonaco.types import Json
from intonaco.workspace import write_json

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning:diffusers",
    "ignore:__array__ implementation:DeprecationWarning",
)

FULL: dict[str, Any] = {
    "method": "full",
    "steps": 13,
    "checkpoint_every": 3,
    "report_every": 2,
    "validation": {"every": 5, "items": 4, "keep_best": True},
    "samples": {"prompts": ["a two", "a three"], "every": 6, "steps": 2, "guidance_scale": 1.5},
}
LORA = {**FULL, "method": "lora", "lora": {"rank": 4, "targets": ["to_q", "conv1"]}}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures_tiny.save(tmp_path_factory.mktemp("base") / "p")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path
) -> Callable[[Mapping[str, Any]], Path]:
    """The folder of a run that nobody disturbed."""
    made: dict[str, Path] = {}

    def get(recipe: Mapping[str, Any]) -> Path:
        key = json.dumps(recipe, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            run_job(made[key], data, base, recipe, validation=str(data))
        return made[key]

    return get


def in_child(work: Callable[[], object], told: Path) -> int:
    """Do it in a process of its own; the signal that ended it, or 0. What it raised is told."""
    told.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except IntonacoError as error:
            told.write_text(
                json.dumps({"is": type(error).__name__, "text": str(error), "hint": error.hint})
            )
        except BaseException:
            told.write_text(json.dumps({"is": "bug", "text": traceback.format_exc()}))
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def die_after(events: int) -> None:
    """Have this process killed at that event: the draw of a batch, a sync or a renaming."""
    left = events

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        return call

    vars(loop)["draw_batch"] = counted(vars(loop)["draw_batch"])
    os.fsync = counted(os.fsync)
    Path.rename = counted(Path.rename)  # type: ignore[method-assign]  # in a child only


def curve(root: Path) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "loss_by_time", "validation_loss", "learning_rate")
    return [tuple(str(line[n]) for n in names) for line in lines]


def same_result(a: Path, b: Path) -> bool:
    one, two = (
        load_file(r / "out/pipeline/unet/diffusion_pytorch_model.safetensors") for r in (a, b)
    )
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("recipe", [FULL, LORA], ids=["full", "lora"])
def test_killed_again_and_again_it_ends_as_if_never_killed(
    recipe: dict[str, Any],
    whole: Callable[[Mapping[str, Any]], Path],
    base: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    untouched = whole(recipe)
    job = write_job(tmp_path / "job", data, base, recipe, validation=str(data))
    told = tmp_path / "told"
    attempts = 0
    # Each attempt dies a little later than the one before, so all kinds of moments are met.
    while not (job.root / "done").exists():
        attempts += 1
        assert attempts < 40

        def work(events: int = 4 * attempts) -> None:
            die_after(events)
            training_job.run(job)
            (job.root / "done").touch()

        status = in_child(work, told)
        assert not told.exists(), told.read_text()
        assert status in (0, signal.SIGKILL)
    assert attempts > 4
    assert curve(job.root) == curve(untouched)
    assert [step for step, *_ in curve(job.root)][-1] == "13"
    assert same_result(job.root, untouched)
    pictures = [sorted((r / "samples").iterdir()) for r in (job.root, untouched)]
    assert [p.name for p in pictures[0]] == ["00000006.png", "00000012.png", "00000013.png"]
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]
    kept = sorted(p.name for p in (job.root / "checkpoints").iterdir())
    assert kept == ["step-00000012", "step-00000013"], "only as many as the recipe keeps"


def test_a_trained_autoencoder_is_not_trained_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "method": "full",
        "init": "intonaco.demo.model:build_pipeline",
        "vae": {"steps": 3, "batch_size": 4},
    }
    run_job(tmp_path / "whole", data, None, recipe)
    job = write_job(tmp_path / "job", data, None, recipe)

    def work() -> None:
        die_after(8)  # among the steps of the denoiser
        training_job.run(job)

    assert in_child(work, tmp_path / "told") == signal.SIGKILL
    assert (job.root / "checkpoints/vae/step-00000003").exists()
    assert not (job.root / "checkpoints/step-00000004").exists()
    monkeypatch.setattr(training_job, "train_vae", None)
    training_job.run(job)
    assert same_result(job.root, tmp_path / "whole")
    one, two = (
        (r / "out/pipeline/vae/config.json").read_text() for r in (job.root, tmp_path / "whole")
    )
    assert json.loads(one)["scaling_factor"] == json.loads(two)["scaling_factor"] != 1.0


def test_a_broken_checkpoint_is_passed_over(
    whole: Callable[[Mapping[str, Any]], Path],
    base: Path,
    data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    untouched = whole(FULL)
    root = tmp_path / "job"
    write_job(root, data, base, FULL, validation=str(data))
    shutil.copytree(untouched / "checkpoints", root / "checkpoints")
    shutil.copy(untouched / "metrics.jsonl", root)
    newest = root / "checkpoints" / "step-00000013" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    training_job.run(JobFolder(root))
    assert "checkpoint step-00000013 is not used" in caplog.text
    assert "goes on from step 12" not in caplog.text  # at info, which is not shown here
    assert curve(root) == curve(untouched)
    assert same_result(root, untouched)


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    one = checkpoints.Checkpoints(tmp_path, "a", kept=1)
    one.save(3, {"x": torch.ones(2)}, {})
    one.save(5, {"x": torch.zeros(2)}, {"of": "a"})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]
    found = one.newest()
    assert found is not None
    assert (found.step, found.facts) == (5, {"of": "a"})
    other = checkpoints.Checkpoints(tmp_path, "b", kept=2)
    assert other.newest() is None
    file = tmp_path / "step-00000005" / "state.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1  # one bit, the same size
    file.write_bytes(raw)
    assert one.newest() is None
    # What is passed over does not crowd out what is written after it.
    for step in (2, 3, 4):
        other.save(step, {"x": torch.ones(2)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    assert other.newest() is not None


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_no_damage_to_a_checkpoint_is_overlooked(tmp_path: Path, name: str) -> None:
    """Each byte changed in turn, cut off at each length, empty, absent, other JSON."""
    kept = checkpoints.Checkpoints(tmp_path, "a")
    kept.save(12, {"x": torch.arange(3.0)}, {"averaged": 12, "best_loss": 0.25})
    file = tmp_path / "step-00000012" / name
    good = file.read_bytes()
    assert kept.newest() is not None
    spoiled = [good[:n] for n in range(0, len(good), 7)] + [b"[]", b"null", b"1", b"{}", b"\xff"]
    for n in range(len(good)):
        spoiled.append(good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :])
    for bad in spoiled:
        file.write_bytes(bad)
        assert kept.newest() is None, bad
    file.unlink()
    assert kept.newest() is None
    file.write_bytes(good)
    assert kept.newest() is not None


def test_a_full_disk_leaves_the_checkpoint_before_it(
    whole: Callable[[Mapping[str, Any]], Path], base: Path, data: Path, tmp_path: Path
) -> None:
    untouched = whole(FULL)
    job = write_job(tmp_path / "job", data, base, FULL, validation=str(data))
    told = tmp_path / "told"

    def until_the_first() -> None:
        real = checkpoints.Checkpoints.save

        def save(self: Any, *args: Any) -> None:
            real(self, *args)
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.Checkpoints.save = save  # type: ignore[method-assign,assignment]  # in a child
        training_job.run(job)

    assert in_child(until_the_first, told) == signal.SIGKILL

    def with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        training_job.run(job)

    assert in_child(with_little_room, told) == 0
    error = json.loads(told.read_text())
    assert error["is"] == StorageError.__name__
    assert "checkpoint of step 6" in error["text"]
    assert "the disk is full" in error["text"]
    assert "checkpoints_kept" in error["hint"]
    assert sorted(p.name for p in (job.root / "checkpoints").iterdir()) == ["step-00000003"]
    training_job.run(job)  # there is room again
    assert curve(job.root) == curve(untouched)
    assert same_result(job.root, untouched)


def test_a_full_disk_while_the_result_is_saved(base: Path, data: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    recipe = {**LORA, "steps": 2, "validation": None, "samples": None}
    recipe["lora"] = {"rank": 1, "targets": ["to_q"]}
    job = write_job(tmp_path / "job", data, base, recipe)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        training_job.run(job)

    assert in_child(work, told) == 0
    error = json.loads(told.read_text())
    assert (error["is"], "the trained pipeline" in error["text"]) == ("StorageError", True), error
    training_job.run(job)
    assert (job.root / "out/pipeline/model_index.json").exists()


def test_no_room_for_the_cache(base: Path, tmp_path: Path) -> None:
    told, cache = tmp_path / "told", tmp_path / "cache"
    data = write_pictures(tmp_path / "d", count=40)
    job = write_job(tmp_path / "job", data, base, {"method": "full"}, cache=str(cache))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        training_job.run(job)

    assert in_child(work, told) == 0
    error = json.loads(told.read_text())
    assert error["is"] == "StorageError"
    assert "training.cache_gb" in error["hint"]
    assert [p for p in cache.iterdir() if p.is_dir()] == []


def test_out_of_memory_names_the_field(base: Path, data: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    recipe = {"method": "full", "batch_size": 16384}
    job = write_job(tmp_path / "job", data, base, recipe)

    def work() -> None:
        most = psutil.Process().memory_info().vms + 400 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        training_job.run(job)

    assert in_child(work, told) == 0
    error = json.loads(told.read_text())
    assert error["is"] == "BackendError", error
    assert "ran out of memory at batch_size 16384" in error["text"]
    assert "raise accumulation (now 1)" in error["hint"]
    assert "gradient_checkpointing" in error["hint"]
    assert not (job.root / "out").exists()


def test_out_of_a_gpus_memory(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(StableDiffusion, "predict", predict)
    recipe = {"method": "full", "gradient_checkpointing": True, "accumulation": 4}
    with pytest.raises(BackendError, match="the GPU ran out of memory") as caught:
        run_job(tmp_path / "job", data, base, recipe)
    assert caught.value.hint is not None
    assert "accumulation" not in caught.value.hint, "there is one picture a part"
    assert "gradient_checkpointing" not in caught.value.hint
    assert "precision: bfloat16" in caught.value.hint
    monkeypatch.undo()

    def load(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB.")

    monkeypatch.setattr(training_job, "load_pipeline", load)  # too large even to be trained over
    with pytest.raises(BackendError, match="the GPU ran out of memory"):
        run_job(tmp_path / "large", data, base, recipe)


def test_weights_that_overflow_in_the_last_step_are_no_result(
    base: Path, data: Path, tmp_path: Path
) -> None:
    """The loss of that step was still finite."""
    recipe = {"method": "full", "steps": 1, "learning_rate": 3e38}
    with pytest.raises(BackendError, match="the weights are not finite after 1 steps"):
        run_job(tmp_path, data, base, recipe)
    assert not (tmp_path / "out/pipeline").exists()


def test_a_member_ends_with_the_launcher() -> None:
    """However that dies: members are in sessions of their own."""
    told, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(told)
        if os.fork() == 0:
            os.setsid()
            devices.end_with_parent()
            os.write(tell, b"ready")
        while True:
            signal.pause()
    os.close(tell)  # the pipe ends when both are gone
    assert os.read(told, 5) == b"ready"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert select.select([told], [], [], 60)[0]
    assert os.read(told, 1) == b""
    os.close(told)


def test_the_rate_is_of_the_whole_run(base: Path, data: Path, tmp_path: Path) -> None:
    """Also where nothing was left to do but to save."""
    recipe = {"method": "full", "checkpoint_every": 4}
    job = write_job(tmp_path / "job", data, base, recipe)

    def work() -> None:
        vars(training_job)["save_whole"] = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        training_job.run(job)

    assert in_child(work, tmp_path / "told") == signal.SIGKILL
    line = json.loads((job.root / "metrics.jsonl").read_text().splitlines()[-1])
    result = training_job.run(job)
    assert result["steps"] == 4
    assert result["images_per_second"] == pytest.approx(line["images_per_second"])


def test_a_budget_that_ends_ends_the_run_with_what_it_has(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 102 s here, so a report every ten steps would come too late."""
    recipe = {"method": "full", "steps": 40, "min_share": 0.25, "checkpoint_every": 50}
    real, clock = vars(loop)["draw_batch"], SimpleNamespace(now=0.0)

    def draw(*args: Any) -> Any:
        clock.now += 102.0
        return real(*args)

    monkeypatch.setattr(loop, "draw_batch", draw)
    told_time = SimpleNamespace(
        time=lambda: clock.now, perf_counter=time.perf_counter, process_time=time.process_time
    )
    monkeypatch.setattr(training_job, "time", told_time)

    def run(name: str, recipe: Mapping[str, Any], **payload: Json) -> Mapping[str, Json]:
        root = tmp_path / name
        root.mkdir()
        clock.now = 0.0
        write_json(root / "started.json", {"at": 0.0})
        return run_job(root, data, base, recipe, **payload)[1]

    slow = run("slow", {**recipe, "min_share": 0.1}, max_seconds=500.0)
    assert slow["steps"] == 5, "440 s are over in the middle of the first window"
    lines = (tmp_path / "slow/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5]

    enough = run("enough", recipe, max_seconds=1100.0)
    assert (enough["steps"], enough["steps_asked"]) == (10, 40)
    assert enough["images_per_second"] == pytest.approx(4 / 102)
    assert "its ceiling of 1100 s was near" in str(enough["stopped"])
    saved = load_file(tmp_path / "enough/out/pipeline/unet/diffusion_pytorch_model.safetensors")
    state = load_file(tmp_path / "enough/checkpoints/step-00000010/state.safetensors")
    assert all(torch.equal(saved[n], state[f"average.{n}"]) for n in saved), "the average"
    line = json.loads((tmp_path / "enough/metrics.jsonl").read_text().splitlines()[-1])
    assert line["device_seconds"] == 1020.0

    by_money = {"max_money": 0.6, "hourly_price": 2.0, "max_seconds": 5000.0}  # 1080 s
    paid = run("paid", recipe, **by_money)
    assert "its ceiling of 0.6 of money" in str(paid["stopped"])
    line = json.loads((tmp_path / "paid/metrics.jsonl").read_text().splitlines()[-1])
    assert line["money"] == pytest.approx(line["seconds"] / 3600 * 2)

    with pytest.raises(BackendError, match=r"stopped after 10 of 40 steps.*min_share asks for 50%"):
        run("short", {**recipe, "min_share": 0.5}, max_seconds=1100.0)
    assert not (tmp_path / "short/out").exists()
    assert (tmp_path / "short/checkpoints/step-00000010").exists(), "it can go on"


def test_two_processes_train_what_one_does(
    whole: Callable[[Mapping[str, Any]], Path], base: Path, data: Path, tmp_path: Path
) -> None:
    """Over gloo on the CPU, with accelerate. The same batches, so the same weights up to the order
    of sums; and so with a batch in parts."""
    untouched = whole(FULL)
    recipe = {**FULL, "processes": 2, "accumulation": 2}
    job = write_job(tmp_path / "job", data, base, recipe, validation=str(data))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def member(rank: int) -> Callable[[], None]:
        def work() -> None:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
            os.environ |= {k: str(v) for k, v in told.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
            os.environ["ACCELERATE_USE_CPU"] = "true"
            members = devices.Devices()
            assert (members.rank, members.count, members.main) == (rank, 2, rank == 0)
            training_job.run(job, members)

        return work

    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            told = tmp_path / f"told{rank}"
            try:
                member(rank)()
            except BaseException:
                told.write_text(traceback.format_exc())
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    for file in tmp_path.glob("told*"):
        pytest.fail(file.read_text())
    lines = [json.loads(x) for x in (job.root / "metrics.jsonl").read_text().splitlines()]
    alone = [json.loads(x) for x in (untouched / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [x["step"] for x in alone], "one of them writes"
    for a, b in zip(lines, alone, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        tenths = list(zip(a["loss_by_time"], b["loss_by_time"], strict=True))
        assert all((x is None) == (y is None) for x, y in tenths)
        assert all(x == pytest.approx(y, rel=1e-3) for x, y in tenths if y is not None)
    assert lines[-1]["device_seconds"] == pytest.approx(2 * lines[-1]["seconds"])
    one, two, start = (
        load_file(r / "unet/diffusion_pytorch_model.safetensors")
        for r in (job.root / "out/pipeline", untouched / "out/pipeline", base)
    )
    apart = sum((one[n] - two[n]).square().sum() for n in one)
    moved = sum((two[n] - start[n]).square().sum() for n in one)
    assert apart < 1e-6 * moved


def test_the_cache_is_made_once(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    made: list[int] = []
    real = caches.encode

    def encode(*args: Any) -> None:
        made.append(1)
        real(*args)

    monkeypatch.setattr(caches, "encode", encode)
    recipe = {"method": "full", "steps": 1}
    (cache / f".{'0' * 32}-x").mkdir(parents=True)  # of a job that was killed

    def run(name: str, **payload: Json) -> Path:
        return run_job(tmp_path / name, data, base, recipe, cache=str(cache), **payload)[0]

    first, second = run("a"), run("b")
    assert len(made) == 1
    assert same_result(first.parents[1], second.parents[1])
    (folder,) = [p for p in cache.iterdir() if p.is_dir()]
    file = folder / "latents-000-0000.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    third = run("c")
    assert len(made) == 2, "a truncated one is made again"
    assert same_result(first.parents[1], third.parents[1])
    run("d", dataset_version="v2")  # what is known of a version is not read
    assert len(made) == 3
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 2
    run("e", dataset_version="v3", cache_gb=1e-9)
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 1, "the others had to go"


def test_validation_needs_held_out_items(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation"):
        run_job(tmp_path, data, base, FULL)


def test_eight_bit_moments_need_a_package(base: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    try:
        import bitsandbytes  # noqa: F401 (whether it is here)
    except ImportError:
        pass
    else:
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ConfigError, match="adamw_8bit needs bitsandbytes"):
        run_job(tmp_path, data, base, {"method": "full", "optimizer": "adamw_8bit"})


@pytest.mark.slow
def test_the_job_starts_its_own_processes(base: Path, data: Path, tmp_path: Path) -> None:
    """As the backend starts it; its members hold its lock."""
    recipe = {"method": "full", "steps": 3, "processes": 2}
    job = write_job(tmp_path / "job", data, base, recipe)
    with (job.root / "alive.lock").open("w") as lock, (job.root / "log.txt").open("w") as log:
        command = [sys.executable, "-P", "-m", "intonaco.training.job", str(job.root)]
        done = subprocess.run(
            command, pass_fds=[lock.fileno()], stdout=log, stderr=log, check=False, timeout=240
        )
    assert done.returncode == 0, (job.root / "log.txt").read_text()[-3000:]
    assert job.read("result")["steps"] == 3
    assert not (job.root / "checkpoints").exists(), "nothing will go on from them"
    line = json.loads((job.root / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["device_seconds"] == pytest.approx(2 * line["seconds"])

    bad = write_job(tmp_path / "bad", data, base, {**recipe, "resolution": 30})
    done = subprocess.run(
        [*command[:-1], str(bad.root)], capture_output=True, check=False, timeout=240
    )
    assert done.returncode == 4
    assert "resolution: 30" in bad.read("error")["message"]


@pytest.mark.slow
def test_a_compiled_denoiser_is_saved_under_its_own_names(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dynamo's own interpreter for a compiler: a real one takes minutes."""
    compiled: list[str] = []
    real = torch.nn.Module.compile

    def compile_(self: Any) -> None:
        compiled.append(type(self).__name__)
        real(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    recipe = {"method": "full", "steps": 2}
    folder, _ = run_job(tmp_path / "a", data, base, {**recipe, "compile": True})
    assert compiled == ["UNet2DConditionModel"]
    plain, _ = run_job(tmp_path / "b", data, base, recipe)
    assert compiled == ["UNet2DConditionModel"]
    one, two = (load_file(f / "unet/diffusion_pytorch_model.safetensors") for f in (folder, plain))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[n], two[n], atol=1e-3) for n in one)


def test_the_page_is_a_configuration() -> None:
    page = Path(__file__).parents[2] / "docs/concepts/training.md"
    text = page.read_text().split("```yaml\n")[1].split("```")[0]
    recipe = config.parse(text).training.recipes["fine_tune"]
    assert (recipe.accumulation, recipe.precision) == (4, "bfloat16")

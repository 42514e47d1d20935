"""The command itself: what it promises of its runs, and what it says to wrong input."""

import gc
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import socket
import sys
import weakref
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latent_robust.audit import judge_network
from latent_robust.commands.finetune_latent import COMMAND, main
from latent_robust.commands.main import main as latent_robust
from latent_robust.commands.training import configure
from latent_robust.data import open_pairs
from latent_robust.errors import InputError
from latent_robust.evaluation import report
from latent_robust.latent import memory, output, preparation, session
from latent_robust.training.directory import OUTPUTS
from latent_robust.training.loop import Trainer

LORA = ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors")
TINY = [
    *("--data=scenes", "--limit=10", "--steps=4", "--batch-size=2", "--learning-rate=1e-2"),
    *("--samples=4", "--sampling-steps=2", "--features=[]", "--log-every=1"),
    *("--checkpoint-every=2", "--device=cpu", "--offline"),
]
DIRTY = ("--contamination=gaussian:fraction=0.9,sigma=0.2", "--penalty-fraction=0.5")
UNDRAWN = ("--samples=0", "--prompts=[]", "--held-out=0", "--steps=2", "--resolution=32")


@pytest.fixture(scope="module")
def model(folders):
    return f"--model={folders('sd1')}"


@pytest.fixture(scope="module", autouse=True)
def _little_garbage():
    """Each run collects garbage at its end; all that was imported need not be searched."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def finished_run(model, tmp_path_factory):
    """Robust, with plain training beside it. Look, do not change."""
    out = tmp_path_factory.mktemp("finished") / "run"
    # A test before this one may have left the process in another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "check_memory", lambda *_: None)
        assert main(["--lora", model, *TINY, *DIRTY, "--compare-with=ddpm", f"--out={out}"]) == 0
    return out


def in_a_process_of_its_own(argv, log, environment=None, kill_at=None, kill_after_save=False):
    """kill_at: after how many training steps, or drawings, it is killed in the next one."""
    os.environ.update(environment or {})
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    session.check_memory = lambda *_: None
    report.write_report = lambda folders, path: path
    method = "_watch" if kill_after_save else "train_step"
    original, calls = getattr(Trainer, method), [0]

    def counted(self, *args):
        calls[0] += 1
        if kill_at is not None and calls[0] > kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args)

    setattr(Trainer, method, counted)
    sys.exit(main(argv))


@pytest.fixture(scope="module", autouse=True)
def spawn():
    """(argv, log, **options) => a started process that has not imported anything anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["latent_robust.commands.finetune_latent"])
    forkserver.ensure_running()  # imports while the first tests run
    started = []

    def start(argv, log, **options):
        process = context.Process(
            target=in_a_process_of_its_own, args=(argv, str(log)), kwargs=options
        )
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def finetune(model, tmp_path, monkeypatch):
    """(*options) => exit code, of a run of seconds in an empty directory. What takes most of the
    time is left out: the estimate of the memory, and the report, which `finished_run` has."""
    AcceleratorState._reset_state(reset_partial_state=True)  # or its precision would be that of
    monkeypatch.chdir(tmp_path)  # the first run of the process
    monkeypatch.setattr(session, "check_memory", lambda *_: None)
    monkeypatch.setattr(report, "write_report", lambda folders, path: path)
    return lambda *options: main([model, *TINY, *options])


@pytest.fixture
def unverified(monkeypatch):
    """The proof that the files hold the LoRA takes most of what is left; other tests have it."""
    monkeypatch.setattr(output, "verify_lora", lambda *_: {})


def names(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def same_tensors(a, b):
    left, right = load_file(a), load_file(b)
    assert left.keys() == right.keys()
    return all(torch.equal(left[key], right[key]) for key in left)


def rows_of(run):
    """What the log says, but for how fast it went."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "samples_per_second"} for row in rows]


def assert_same_run(run, other):
    """Both LoRA files, every image and every logged number, bit for bit."""
    assert names(run / "samples") == names(other / "samples")
    for path in (run / "samples").iterdir():
        assert path.read_bytes() == (other / "samples" / path.name).read_bytes(), path.name
    for name in LORA:
        assert same_tensors(run / name, other / name)
    assert rows_of(run) == rows_of(other)


# ---------------------------------------------------------------------- what a run leaves


def test_a_run_directory_holds_what_was_promised(finished_run):
    part = {
        "config.yaml",
        "manifest.jsonl",
        "log.jsonl",
        "metrics.json",
        "report.html",
        "samples/prompts.json",
        "samples/training.png",
        "samples/clean.png",
        "samples/final.png",
        "samples/step-00000000.png",  # of the base model
        "samples/step-00000002.png",
        "samples/step-00000004.png",
        "checkpoints/step-00000002/manifest.json",
        "checkpoints/step-00000004/manifest.json",
        *LORA,
    }
    assert part | {f"ddpm/{name}" for name in part} <= names(finished_run)
    written = {path.name for path in finished_run.iterdir()}
    assert written <= {*OUTPUTS, "config.yaml", "tensorboard", "cache", "ddpm"}
    facts = json.loads((finished_run / "metrics.json").read_text())
    assert len(facts["captions"]) > 0  # of final.png
    assert facts["pipeline"] == "StableDiffusionPipeline"
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert config["objective"] == "robust-random"
    assert config["resolution"] == 32  # the model's own
    assert len(config["band"]) == 4  # the channels of its latents
    assert all(0 < band < 1 for band in config["band"])
    assert config["weight"] > 0
    rows = rows_of(finished_run)
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 3, 4, 4]
    assert all("penalty" in row for row in rows if "loss" in row)
    assert [row["step"] for row in rows if "validation/loss" in row] == [0, 2, 4]
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert metrics["verified"] == dict.fromkeys(LORA, 0.0)
    assert metrics["compared_with"] == "clean"
    assert metrics["match"].keys() == {"color", "shape", "both"}
    assert len((finished_run / "manifest.jsonl").read_text().splitlines()) == 10
    report = (finished_run / "report.html").read_text()
    assert "ddpm" in report
    assert "robust-random" in report


def test_its_own_configuration_repeats_it_bit_for_bit(finished_run, finetune, tmp_path):
    config, again = finished_run / "config.yaml", tmp_path / "again"
    alone = "--compare-with=robust-random"  # which is itself
    assert main(["--config", str(config), alone, f"--out={again}"]) == 0
    assert_same_run(finished_run, again)


@pytest.mark.parametrize("name", LORA)
def test_the_lora_loads_in_a_plain_pipeline(finished_run, folders, name):
    """Of diffusers alone; and there it has the averaged weights of the last checkpoint."""
    pipeline = StableDiffusionPipeline.from_pretrained(folders("sd1"), safety_checker=None)
    pipeline.load_lora_weights(finished_run, weight_name=name, adapter_name="default")
    average = load_file(finished_run / "checkpoints/step-00000004/ema.safetensors")
    loaded = {k: p for k, p in pipeline.unet.named_parameters() if "lora" in k}
    assert loaded.keys() == average.keys()
    assert all(torch.equal(loaded[key], average[key]) for key in average)
    assert any("lora_B" in key and value.any() for key, value in average.items())


def test_a_finished_run_is_neither_overwritten_nor_trained_again(finished_run, finetune, capsys):
    before = {p: p.read_bytes() for p in finished_run.rglob("*") if p.name in (*LORA, "log.jsonl")}
    assert main(["--lora", *TINY, f"--out={finished_run}"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["--resume", str(finished_run)]) == 0
    assert main(["--resume", str(finished_run), "--seed=5", "--rank=3"]) == 2
    error = capsys.readouterr().err
    assert "rank: 16 in the saved run, 3 now" in error
    assert "seed: 0 in the saved run, 5 now" in error
    assert {p: p.read_bytes() for p in before} == before


def test_what_it_says(finished_run, finetune, capfd):
    """One line for each thing, nothing from the libraries."""
    assert finetune("--lora", *DIRTY, "--prompts=[]", "--out=run") == 0
    out, error = capfd.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines() if ":" in line] == [
        out.partition(":")[0],
        "scenes",
        "noise",
        "recommended",
        "forecast of the Fréchet distance to clean images",
        "no distance was measured",
        "the LoRA is in run",
        "  pytorch_lora_weights.safetensors for diffusers",
        "  lora_kohya.safetensors for ComfyUI (models/loras) and A1111 (models/Lora)",
        "report",
    ]
    assert out.startswith("finetune-latent will train a LoRA of rank 16 for ")
    assert out.count("verified: it reloads as it was trained") == 2
    assert "encoded 10 images and 10 captions (0 and 0 were cached already)" in out
    bars = [line for line in error.replace("\r", "\n").splitlines() if line.strip()]
    assert all(bar.startswith("robust-random: ") for bar in bars)


@pytest.mark.usefixtures("unverified")
def test_pairs_are_judged_by_the_trusted_ones(finetune, tmp_path, monkeypatch):
    """Named ones, which no contamination hits, or those of a folder, which join the data."""
    monkeypatch.setattr(judge_network, "STEPS", 2)
    scenes = open_pairs("scenes", limit=14)
    (tmp_path / "mine").mkdir()
    for index in range(len(scenes)):
        Image.fromarray(scenes.image(index).permute(1, 2, 0).numpy()).save(
            tmp_path / "mine" / f"{index}.png"
        )
    args = ("--lora", "--objective=audited", "--contamination=blur:fraction=1,sigma=1")
    args += ("--samples=0", "--prompts=[]", "--limit=30")
    for trusted, count in (("spare:12", 30), ("mine", 44)):
        assert finetune(*args, f"--trusted={trusted}", f"--out={count}") == 0
        rows = [json.loads(x) for x in (tmp_path / f"{count}/audit.jsonl").read_text().splitlines()]
        manifest = (tmp_path / f"{count}/manifest.jsonl").read_text().splitlines()
        clean = [not json.loads(row)["corruptions"] for row in manifest]
        assert [row["trusted"] for row in rows] == clean
        assert len(rows) == count
        assert sum(clean) == (12 if count == 30 else 14)
        assert all(row["likeness"] is not None for row in rows)


@pytest.mark.usefixtures("unverified")
def test_a_run_that_diverged_says_so_in_its_metrics(finetune, monkeypatch, tmp_path):
    broken = torch.full((4, 3, 32, 32), float("nan"))
    monkeypatch.setattr(output, "generate_images", lambda *_, **__: broken)
    assert finetune("--lora", "--prompts=[]", "--out=run") == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["diverged"] is True
    assert "match" not in metrics


def test_it_chooses_what_the_command_recommends(model, finetune, tmp_path, capfd):
    told = ["--data=scenes", "--limit=10", "--resolution=32", model, DIRTY[0], "--offline"]
    looked = ["--max-bad-fraction=0.3", f"--out={tmp_path / 'found.json'}"]
    assert latent_robust(["recommend", "--pairs", *told, *looked]) == 0
    assert "--max-bad-fraction 0.3" in capfd.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["weight"] > 0
    assert finetune("--lora", *UNDRAWN, *DIRTY, "--steps=1", "--out=run") == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["weight"], config["band"]) == (found["weight"], found["band"])


def test_it_says_so_where_there_is_no_noise_to_act_on(finetune, capfd):
    said = "the regularizer stays off unless --weight and --band say otherwise"
    assert finetune("--lora", *UNDRAWN, "--steps=1", "--out=clean") == 0
    assert said in capfd.readouterr().out
    assert finetune("--lora", *UNDRAWN, "--steps=1", "--objective=ddpm", "--out=plain") == 0
    assert said not in capfd.readouterr().out


def test_beside_a_reference_no_pair_is_held_out(finetune, unverified, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(preparation, "VALIDATION_PAIRS", 3)
    prepared = []
    prepare = session.prepare
    monkeypatch.setattr(session, "prepare", lambda *a: prepared.append(prepare(*a)) or prepared[-1])
    options = ("--lora", *DIRTY, "--reference=scenes", "--samples=0", "--prompts=[]", "--steps=2")
    assert finetune(*options, "--out=run") == 0
    (ready,) = prepared
    assert ready.train_indices == list(range(10))
    assert ready.validation.indices == [0, 1, 2]
    assert "encoded 10 images" in (said := capfd.readouterr().out)
    assert "encoded 3 images" in said  # what is not looked at is not encoded
    assert any("validation/loss" in row for row in rows_of(tmp_path / "run"))


def test_a_reference_need_not_look_like_the_data(finetune, unverified, tmp_path):
    """Neither its caption column, nor repeats in names, nor so few images."""
    for name, caption in (("10_data", "metadata.jsonl"), ("clean", None)):
        folder = tmp_path / name
        folder.mkdir()
        for n in range(4):
            Image.new("RGB", (32, 32), (60 * n, 0, 0)).save(folder / f"{n}.png")
            (folder / f"{n}.txt").write_text(f"red {n}")
        if caption:
            rows = ({"file_name": f"{n}.png", "text_en": f"red {n}"} for n in range(4))
            (folder / caption).write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ("--data=10_data", "--caption-column=text_en", "--folder-repeats", "--limit=2")
    options = ("--lora", *UNDRAWN, *told, "--reference=clean", "--out=run")
    assert finetune(*options) == 0
    cached = next(iter(tmp_path.glob("run/cache")))
    assert cached.is_dir()
    assert any("validation/loss" in row for row in rows_of(tmp_path / "run"))


def test_dry_run_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--lora", "--model=no/where", "--data=hf:some/where", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["data"] == "hf:some/where"
    assert "would train a LoRA of rank 16 for no/where by robust-random on hf:some/where" in out
    unchecked = [line.rpartition(" ")[2] for line in out.splitlines() if "# not checked" in line]
    assert unchecked == ["some/where", "no/where"]
    assert list(tmp_path.iterdir()) == []


def test_without_data_it_is_the_demo(capsys):
    assert main(["--lora", "--dry-run"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"], config["data"], config["compare_with"]) == ("demo", "scenes", "ddpm")
    assert config["objective"] == "audited"
    assert main(["--lora", "--model=demo", "--data=scenes", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["contamination"] == "none"


@pytest.mark.parametrize(
    ("given", "missing"),
    [(["--data=images"], "--data needs --model"), (["--model=some/where"], "--model needs --data")],
)
def test_a_model_and_its_data_are_named_together(given, missing, capsys):
    """Nobody means to train the demo's toy on their own images."""
    assert main(["--lora", *given]) == 2
    assert missing in capsys.readouterr().err


def test_prompts_keep_their_commas():
    told = ["--lora", "--prompts", "a red cat, oil painting", "--prompts=two, or three"]
    assert configure(COMMAND, told).prompts == ("a red cat, oil painting", "two, or three")
    assert configure(COMMAND, ["--lora", '--prompts=["a, b", "c"]']).prompts == ("a, b", "c")
    assert configure(COMMAND, ["--lora", "--prompts=[cat] on a mat"]).prompts == ("[cat] on a mat",)
    odd = ["ünï 猫", 'a sign: "OPEN"', "C:\\new", "two\nlines", '{"a": 1}', "true"]
    told = ["--lora", *(f"--prompts={text}" for text in odd)]
    assert configure(COMMAND, told).prompts == tuple(odd)
    assert configure(COMMAND, ["--lora", "--prompts", json.dumps(odd)]).prompts == tuple(odd)
    for missing in (["--prompts"], ["--prompts", "--low-memory"]):
        with pytest.raises(InputError, match="expected one argument"):
            configure(COMMAND, ["--lora", *missing])


def test_help_names_every_option_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help-all"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "finetune-latent" in out
    assert "--caption-dropout" in out
    assert "share of captions emptied" in " ".join(out.split())


# ---------------------------------------------------------------------- identities


@pytest.mark.usefixtures("unverified")
def test_weight_zero_is_plain_training(finished_run, finetune, tmp_path):
    assert finetune("--lora", *DIRTY, "--weight=0", "--samples=0", "--prompts=[]", "--out=run") == 0
    for name in LORA:
        assert same_tensors(tmp_path / "run" / name, finished_run / "ddpm" / name)


@pytest.mark.usefixtures("unverified")
def test_a_late_start_is_plain_training_until_then(finished_run, finetune, tmp_path):
    assert (
        finetune("--lora", *DIRTY, "--penalty-last=0.5", "--samples=0", "--prompts=[]", "--out=run")
        == 0
    )
    file = "checkpoints/step-{:08d}/model.safetensors"
    plain = finished_run / "ddpm"
    assert same_tensors(tmp_path / "run" / file.format(2), plain / file.format(2))
    assert not same_tensors(tmp_path / "run" / file.format(4), plain / file.format(4))


@pytest.mark.usefixtures("unverified")
def test_a_cache_changes_nothing(finetune, tmp_path):
    """Bit for bit, because in batches of one each pair is encoded alone, with a cache or without;
    in larger ones they are encoded together with others, and sums are rounded differently."""
    alone = ("--lora", "--batch-size=1", *UNDRAWN)
    assert finetune(*alone, "--out=cached") == 0
    assert finetune(*alone, "--no-cache", "--out=uncached") == 0
    assert same_tensors(tmp_path / "cached" / LORA[0], tmp_path / "uncached" / LORA[0])
    assert not (tmp_path / "uncached/cache").exists()


@pytest.mark.usefixtures("unverified")
def test_gradient_checkpointing_changes_nothing(finetune, tmp_path):
    """The same kernels see the same numbers, once more."""
    assert finetune("--lora", *UNDRAWN, "--out=plain") == 0
    assert finetune("--lora", *UNDRAWN, "--gradient-checkpointing", "--out=checkpointed") == 0
    assert same_tensors(tmp_path / "plain" / LORA[0], tmp_path / "checkpointed" / LORA[0])


# ---------------------------------------------------------------------- killed, stopped, resumed


@pytest.mark.parametrize("moment", ["in a step", "after saving, before drawing"])
def test_killed_run_resumes_bit_for_bit(moment, finished_run, finetune, model, spawn, tmp_path):
    argv = ["--lora", model, *TINY, *DIRTY, f"--out={tmp_path / 'run'}"]
    after_save = moment != "in a step"
    # It trains four times, and draws three times: before the first step, too.
    at = random.SystemRandom().randrange(1, 3 if after_save else 4)
    process = spawn(argv, tmp_path / "output", kill_at=at, kill_after_save=after_save)
    process.join(240)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "output").read_text()
    assert not (tmp_path / "run/metrics.json").exists()
    assert main([*argv, "--resume"]) == 0
    assert_same_run(finished_run, tmp_path / "run")


@pytest.mark.parametrize(
    "told", [["--resume"], ["--resume=RUN"], ["--resume", "RUN/checkpoints/x"]]
)
def test_a_run_goes_on_where_out_names_it(told, finished_run, tmp_path):
    """Without its settings, which are known."""
    run = tmp_path / "run"
    (run / "checkpoints/x").mkdir(parents=True)
    (run / "checkpoints/x/manifest.json").write_text("{}")
    shutil.copy(finished_run / "config.yaml", run)
    argv = [*(word.replace("RUN", str(run)) for word in told), f"--out={run}", "--no-dry-run"]
    config = configure(COMMAND, argv)
    assert (config.lora, config.rank, config.compare_with) == (True, 16, "ddpm")
    other = tmp_path / "other"  # a branch, which only a named run can have
    argv = [*(word.replace("RUN", str(run)) for word in told), f"--out={other}"]
    if told == ["--resume"]:
        with pytest.raises(InputError, match="choose one"):
            configure(COMMAND, argv)
    else:
        assert (configure(COMMAND, argv).rank, configure(COMMAND, argv).out) == (16, other)


def test_a_stopped_run_says_how_it_goes_on(finished_run, finetune, tmp_path, monkeypatch, capsys):
    """SIGTERM, here in the first of its two parts; what it says is then done."""
    step = Trainer.train_step

    def stopped(self, batches):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopped)
        assert finetune("--lora", *DIRTY, "--compare-with=ddpm", "--out=my run") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "stopped; go on with: finetune-latent --resume 'my run'"
    assert main(shlex.split(last.partition(": ")[2])[1:]) == 0
    for part in (".", "ddpm"):
        assert_same_run(finished_run / part, tmp_path / "my run" / part)


def test_the_same_command_with_resume_is_the_same_run(finetune, tmp_path):
    """Also where an option becomes other ones: --low-memory divides the batch."""
    command = ("--lora", "--low-memory", *UNDRAWN, "--out=run")
    assert finetune(*command) == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["batch_size"], config["gradient_accumulation"]) == (1, 2)
    assert (config["mixed_precision"], config["gradient_checkpointing"]) == ("bf16", True)
    (tmp_path / "run/metrics.json").unlink()
    assert finetune(*command, "--resume") == 0


def test_two_processes_train_as_one_run(model, spawn, tmp_path):
    """As torchrun starts them: one log, one set of files, each pair encoded once; resumable."""
    run = tmp_path / "run"
    argv = ["--lora", model, *TINY, *DIRTY, "--samples=0", f"--out={run}"]

    def both(*more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(2):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {key: str(value) for key, value in (ranks | where).items()}
            log = tmp_path / f"output-{rank}"
            processes.append(spawn([*argv, *more], log, environment=environment))
        for rank, process in enumerate(processes):
            process.join(240)
            assert process.exitcode == 0, (tmp_path / f"output-{rank}").read_text()

    both()
    assert [row["step"] for row in rows_of(run)] == [0, 1, 2, 2, 3, 4, 4]
    encoded = []
    for shard in (run / "cache").glob("latents-*"):
        with safe_open(shard, "pt") as file:
            encoded += [name for name in file.keys() if name.endswith("/mean")]  # noqa: SIM118
    assert len(encoded) == len(set(encoded)) == 10
    assert (tmp_path / "output-0").read_text().count("encoded 10 images") == 1
    assert (tmp_path / "output-1").read_text() == ""
    whole = load_file(run / LORA[0])

    shutil.rmtree(run / "checkpoints/step-00000004")
    (run / "metrics.json").unlink()
    both("--resume")
    again = load_file(run / LORA[0])
    assert all(torch.equal(whole[key], again[key]) for key in whole)


# ---------------------------------------------------------------------- what can be trained


def test_every_family_trains_a_lora(finetune, folders, family_name, tmp_path):
    assert finetune("--lora", f"--model={folders(family_name)}", *UNDRAWN, "--out=run") == 0
    kohya = family_name in ("sd1", "sd2", "sdxl")
    verified = json.loads((tmp_path / "run/metrics.json").read_text())["verified"]
    assert verified == dict.fromkeys(LORA if kohya else LORA[:1], 0.0)
    assert any(v.any() for k, v in load_file(tmp_path / "run" / LORA[0]).items() if "lora_B" in k)


def test_every_family_trains_its_whole_network(finetune, folders, pipelines, family_name, tmp_path):
    assert finetune("--full", f"--model={folders(family_name)}", *UNDRAWN, "--out=run") == 0
    kind = "transformer" if family_name in ("sd3", "flux") else "unet"
    base = getattr(pipelines(family_name), kind)
    trained = type(base).from_pretrained(tmp_path / "run" / kind).state_dict()
    average = load_file(tmp_path / "run/checkpoints/step-00000002/ema.safetensors")
    for name, parameter in base.named_parameters():
        assert torch.equal(trained[name], average[name])
        assert not torch.equal(trained[name], parameter.data) or not parameter.any(), name


@pytest.mark.parametrize(
    ("options", "inside"),
    [
        (("--dora", "--rank=2", "--alpha=1"), "lora_magnitude_vector"),
        (("--targets=mlp,attn1.to_q", "--dropout=0.1", "--penalty-fraction=1"), "ff.net.2.lora_A"),
        (("--text-encoder", "--no-cache", "--gradient-checkpointing"), "text_encoder."),
    ],
)
def test_variants_of_lora(finetune, options, inside, tmp_path):
    assert finetune("--lora", *UNDRAWN, *options, "--out=run") == 0
    tensors = load_file(tmp_path / "run" / LORA[0])
    assert any(inside in name for name in tensors)
    assert any(value.any() for name, value in tensors.items() if "lora_B" in name)


def test_text_encoders_are_trained_but_for_t5(finetune, folders, tmp_path):
    sd3 = f"--model={folders('sd3')}"
    assert finetune("--lora", sd3, "--text-encoder", *UNDRAWN, "--out=run") == 0
    tensors = load_file(tmp_path / "run" / LORA[0])
    for name in ("text_encoder.", "text_encoder_2."):
        assert any(k.startswith(name) and "lora_B" in k and v.any() for k, v in tensors.items())
    assert not any(name.startswith("text_encoder_3") for name in tensors)


def test_the_whole_network_in_bf16_keeps_float32_weights(finetune, tmp_path):
    assert finetune("--full", "--mixed-precision=bf16", *UNDRAWN, "--out=run") == 0
    saved = load_file(tmp_path / "run/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}


@pytest.mark.usefixtures("unverified")
def test_ambient_needs_no_encoder_after_it_has_begun(finetune, tmp_path):
    """Nothing is drawn, so that the VAE is unloaded; the levels were measured before."""
    assert finetune("--lora", "--objective=ambient", *DIRTY, *UNDRAWN, "--out=run") == 0


@pytest.mark.usefixtures("unverified")
def test_the_base_model_audits_without_being_trained(finetune, tmp_path):
    assert finetune("--lora", "--objective=audited", *DIRTY, *UNDRAWN, "--out=run") == 0
    rows = [json.loads(line) for line in (tmp_path / "run/audit.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(10))
    assert not list((tmp_path / "run").glob("*/config.yaml"))  # nothing else was trained


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("how", ["--cache", "--no-cache", "--text-encoder"])
def test_words_for_dirt_change_only_dirty_samples(finetune, tmp_path, how):
    """A run without any is the same to the bit."""
    weights = {}
    for name, least in (("clean", 0), ("dirty", 50)):
        rows = [{"index": i, "level": 0, "usable_from": least * (i % 2)} for i in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for tag in ((), ("--tag-dirt=low quality",)):
            told = ("--lora", how, "--objective=ambient", f"--levels={name}.jsonl", *tag)
            assert finetune(*told, "--learning-rate=0.01", *UNDRAWN, f"--out={name}{len(tag)}") == 0
            weights[name, len(tag)] = load_file(tmp_path / f"{name}{len(tag)}" / LORA[0])
    clean, dirty = (
        all(torch.equal(weights[name, 0][key], value) for key, value in weights[name, 1].items())
        for name in ("clean", "dirty")
    )
    assert clean
    assert not dirty


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("how", ["--cache", "--text-encoder"])
def test_captions_are_checked_if_asked(finetune, tmp_path, capsys, how):
    told = ("--lora", how, "--objective=audited", *UNDRAWN)
    assert finetune(*told, "--check-captions", "--out=run") == 0
    assert "captions" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run/audit.jsonl").read_text().splitlines()]
    assert all(isinstance(row["caption_gain"], float) for row in rows)
    assert {row["caption_doubtful"] for row in rows} <= {True, False}
    assert finetune(*told, "--out=without") == 0
    assert "caption_gain" not in (tmp_path / "without/audit.jsonl").read_text()


@pytest.mark.usefixtures("unverified")
def test_a_doubtful_caption_of_a_file_is_left_out(finetune, tmp_path):
    weights = []
    for doubtful in (False, True):
        rows = [{"index": i, "level": 0, "caption_doubtful": doubtful} for i in range(10)]
        (tmp_path / "levels.jsonl").write_text("\n".join(map(json.dumps, rows)))
        told = ("--lora", "--objective=ambient", "--levels=levels.jsonl", "--learning-rate=0.01")
        assert finetune(*told, *UNDRAWN, f"--out={doubtful}") == 0
        weights.append(load_file(tmp_path / str(doubtful) / LORA[0]))
    assert not all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.usefixtures("unverified")
def test_the_audit_of_the_data_gives_levels_copies_and_words(finetune, tmp_path, capsys):
    rows = [
        {
            "index": i,
            "name": f"scenes:{i}",
            "level": 0.2 * (i % 3 == 1),
            "usable_from": "never" if i % 3 == 2 else 0,
            "exclude": i == 9,
            "tags": ["blurry"] if i % 3 == 2 else [],
        }
        for i in range(10)
    ]
    (tmp_path / "audit.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = ("--lora", "--objective=ambient", "--audit=audit.jsonl", *UNDRAWN, "--steps=6")
    assert finetune(*told, "--out=run") == 0
    assert "of 10 samples 1 copies are left out; 6 are dirty" in capsys.readouterr().out
    assert finetune(*told, "--tag-dirt=audit", "--out=tagged") == 0
    first, second = (load_file(tmp_path / run / LORA[0]) for run in ("run", "tagged"))
    assert not all(torch.equal(first[key], second[key]) for key in first)
    plain = ("--lora", "--objective=ddpm", "--audit=audit.jsonl", *UNDRAWN)
    assert finetune(*plain, "--out=plain") == 0
    assert finetune("--lora", "--objective=ambient", "--tag-dirt=audit", *DIRTY, *UNDRAWN) == 2
    assert "give --audit FILE too" in capsys.readouterr().err


STILL = ("--learning-rate=1e-30", "--objective=ddpm", *UNDRAWN)


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize(
    ("how", "file"),
    [("--lora", LORA[0]), ("--full", "unet/diffusion_pytorch_model.safetensors")],
)
def test_a_run_starts_from_what_another_has_learned(finetune, tmp_path, how, file):
    assert finetune(how, *UNDRAWN, "--objective=ddpm", "--out=first") == 0
    assert finetune(how, *STILL, "--init=first", "--out=second") == 0
    first, second = (load_file(tmp_path / run / file) for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name]) for name in first)
    if how == "--lora":
        assert any(
            value.any() for name, value in second.items() if "lora.up" in name or "lora_B" in name
        )


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("how", ["--cache", "--no-cache", "--mixed-precision=bf16"])
def test_a_model_is_gone_before_the_next_is_loaded(finetune, monkeypatch, how):
    """Of a large one a GPU has no room for two."""
    loaded, load = [], session.load

    def load_alone(*told):
        assert [network() for network in loaded] == [None] * len(loaded)
        components = load(*told)
        loaded.append(weakref.ref(components.network))
        return components

    monkeypatch.setattr(session, "load", load_alone)
    weight = ("--weight=3", "--band=0.5")
    assert finetune("--lora", how, "--compare-with=ddpm", *weight, *UNDRAWN, "--out=run") == 0
    assert len(loaded) == 2


@pytest.mark.usefixtures("unverified")
def test_the_base_audits_whatever_training_starts_from(finetune, finished_run, tmp_path):
    told = ("--lora", "--objective=audited", *DIRTY, *UNDRAWN)
    assert finetune(*told, "--out=base") == 0
    assert finetune(*told, f"--init={finished_run}", "--out=started") == 0
    texts = [(tmp_path / run / "audit.jsonl").read_text() for run in ("base", "started")]
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("unverified")
def test_a_start_that_does_not_fit_is_refused(finetune, finished_run, capsys):
    start = f"--init={finished_run}"
    assert finetune("--lora", start, "--rank=2", *UNDRAWN, "--out=other") == 2
    assert "rank: 16 there" in capsys.readouterr().err
    assert finetune("--full", start, *UNDRAWN, "--out=other") == 2
    assert "lora: True there" in capsys.readouterr().err
    assert finetune("--lora", "--init=nowhere", *UNDRAWN, "--out=other") == 2
    assert "there is no run in it" in capsys.readouterr().err


@pytest.mark.usefixtures("unverified")
def test_a_trained_judge_audits_as_it_does_by_itself(finetune, tmp_path):
    settings = ("--objective=audited", "--auditor=ddpm", "--text-encoder", *DIRTY, *UNDRAWN)
    assert finetune("--lora", *settings, "--out=run") == 0
    assert latent_robust(["audit", "run/ddpm", "--offline"]) == 0
    # Captions and images are encoded in other batches there, hence not bit for bit.
    files = [tmp_path / folder / "audit.jsonl" for folder in ("run", "run/ddpm")]
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    scores = [torch.tensor([row["score"] for row in found]) for found in rows]
    assert torch.allclose(*scores, rtol=1e-2)
    levels = [torch.tensor([row["level"] for row in found]) for found in rows]
    assert torch.allclose(*levels, rtol=1e-2, atol=1e-3)


# ---------------------------------------------------------------------- folders of images


def make_folder(folder, count=8, sides=((32, 32),)):
    """Images with captions beside them."""
    folder.mkdir()
    noise = torch.Generator().manual_seed(0)
    for i in range(count):
        height, width = sides[i % len(sides)]
        pixels = torch.randint(256, (height, width, 3), generator=noise, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"image {i}")
    return folder


@pytest.mark.usefixtures("unverified")
def test_broken_images_are_named_and_the_run_goes_on(finetune, tmp_path, capsys):
    folder = make_folder(tmp_path / "images")
    whole = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "3.txt").unlink()
    (folder / "gone.txt").write_text("no image of this name")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    options = ("--lora", "--data=images", *UNDRAWN)
    assert finetune(*options, "--max-bad-fraction=0.3", "--out=run") == 0
    rows = (tmp_path / "run/quarantine.jsonl").read_text().splitlines()
    assert {os.path.basename(json.loads(row)["name"]) for row in rows} == {"0.png", "empty.png"}
    out, error = capsys.readouterr()
    assert "7 pairs, 2 quarantined, 1 image without a caption, 1 caption without" in out
    assert "3.png" in error
    assert "gone.txt" in error
    assert finetune(*options, "--max-bad-fraction=0.1", "--out=strict") == 2
    assert "0.png" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.usefixtures("unverified")
def test_buckets_train_images_of_all_shapes(finetune, tmp_path, monkeypatch):
    """Each batch of one size, every pair of them in two epochs' time, held-out ones never."""
    make_folder(tmp_path / "images", 9, ((32, 32), (32, 60), (60, 32)))
    seen, sizes = set(), set()
    step = Trainer._backward

    def watched(self, batch, micro):
        seen.update(batch["index"].tolist())
        sizes.add(tuple(batch["mean"].shape[-2:]))
        assert (batch["size"] == batch["size"][0]).all()
        return step(self, batch, micro)

    monkeypatch.setattr(Trainer, "_backward", watched)
    options = ("--data=images", "--buckets", *UNDRAWN, "--held-out=0.2", "--steps=6")
    assert finetune("--lora", *options, "--objective=ddpm", "--out=run") == 0
    assert len(seen) == 9 - 2
    assert len(sizes) == 3
    assert all(row.keys() >= {"validation/loss"} for row in rows_of(tmp_path / "run")[-1:])


@pytest.mark.usefixtures("unverified")
def test_a_damaged_cache_is_named_and_made_again(finetune, finished_run, tmp_path, caplog):
    shutil.copytree(finished_run / "cache", tmp_path / "cache")
    damaged = next((tmp_path / "cache").glob("latents-*"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    (tmp_path / "cache/.latents-half.tmp").write_bytes(b"half")
    cache = ("--cache-dir=cache", "--samples=0", "--prompts=[]", "--weight=0", "--out=run")
    assert finetune("--lora", *DIRTY, *cache) == 0
    assert f"{damaged.name} is damaged" in caplog.text
    assert same_tensors(tmp_path / "run" / LORA[0], finished_run / "ddpm" / LORA[0])


# ---------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "choose one: --lora"),
        (["--lora", "--full"], "choose one: --lora"),
        (["--lora", "--model=no/such/folder"], "no/such/folder"),
        (["--lora", "--resolution=33"], "the nearest is 32"),
        (["--lora", "--targets=attn1.to_w"], "did you mean 'attn1.to_"),
        (["--lora", "--band=[0.1,0.2]"], "2 bands for data of 4 channels"),
        (["--lora", "--band=[0.1,-0.2]"], "must be > 0"),
        (["--lora", "--data=nowhere"], "no such folder or file"),
        (["--lora", "--data=empty"], "empty"),
        (["--lora", "--mixed-precision=fp16"], "needs a CUDA device"),
        (["--lora", "--optimizer=adamw8bit"], "adamw8bit needs a CUDA device"),
        (["--lora", "--samples=4", "--clip-score=ViT-B-32:gone.safetensors"], "gone.safetensors"),
        (["--lora", "--samples=4", "--features=inception"], "weights"),
        (["--lora", "--caption-dropout=1"], "`caption_dropout` = '1'"),
        (["--lora", "--lerning-rate=1"], "did you mean '--learning-rate'?"),
        (["--lora", "--dropout=0.1"], "or dropout 0"),
        (
            ["--lora", "--objective=ddpm", "--dropout=0.1", "--compare-with=robust-random"],
            "fraction 1",
        ),
        (["--lora", "--compare-with=ambient"], "needs noise levels"),
        (["--lora", "--objective=ambient", "--levels=gone"], "cannot read the levels"),
        (
            ["--lora", "--objective=ambient", "--contamination=jpeg:fraction=1,quality=30"],
            "--levels FILE",
        ),
        (["--lora", "--text-encoder", "--caption-noise=1"], "without text_encoder"),
        (["--full", "--text-encoder"], "it needs --lora"),
        (["--lora", "--resume=nowhere"], "neither a run nor a checkpoint"),
        (["--lora", "--resume=nowhere", "--out=run"], "no valid checkpoint"),
        (["--lora", "--out=a-file/run"], "cannot write"),
        (["--lora", "--out=a-file"], "is a file; choose a directory"),
    ],
)
def test_wrong_input_is_a_clear_message_and_leaves_nothing(finetune, options, message, capsys):
    os.mkdir("empty")
    open("a-file", "w").close()
    assert finetune(*UNDRAWN, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    for left in ("run", "runs"):  # encoded pairs are never wrong, and may be used again
        written = names(Path(left)) if os.path.exists(left) else set()
        assert all("cache/" in name for name in written), written


def test_a_caption_column_that_is_not_there(finetune, tmp_path, capsys):
    folder = make_folder(tmp_path / "images")
    rows = [json.dumps({"file_name": f"{i}.png", "title": "an image"}) for i in range(8)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    assert finetune("--lora", "--data=images", "--caption-column=titel") == 2
    assert "did you mean 'title'?" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["unknown family", "not finite", "pickle"])
def test_models_that_are_refused(damage, finetune, folders, tmp_path, capsys):
    folder = shutil.copytree(folders("sd1"), tmp_path / "model")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    if damage == "unknown family":
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = "KandinskyPipeline"
        (folder / "model_index.json").write_text(json.dumps(index))
        message = "KandinskyPipeline"
    elif damage == "not finite":
        tensors = load_file(weights)
        tensors["conv_in.weight"][0] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
        message = "conv_in.weight"
    else:
        torch.save(load_file(weights), weights.with_suffix(".bin"))
        weights.unlink()
        message = "model/unet holds its weights in a pickle"
    assert finetune("--lora", "--model=model") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_a_corrupt_tar_is_a_clear_message(finetune, tmp_path, capsys):
    (tmp_path / "shard.tar").write_bytes(os.urandom(2000))
    assert finetune("--lora", "--data=wds:shard.tar", "--out=run") == 2
    assert "shard.tar" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("unverified")
def test_memory_is_looked_at_when_what_encodes_has_left(finetune, monkeypatch):
    """A cached step needs none of it, and a run that fits must not be refused for it."""
    seen, encoders, load = [], [], session.load

    def load_and_watch(*told):
        components = load(*told)
        parts = (components.vae, *components.text_encoders.values())
        encoders.extend(weakref.ref(part) for part in parts)
        return components

    def look(configs, components, *_):
        seen.append(components)
        assert [part() for part in encoders] == [None] * 2

    monkeypatch.setattr(session, "load", load_and_watch)
    monkeypatch.setattr(session, "check_memory", look)
    assert finetune("--lora", *UNDRAWN, "--out=run") == 0
    (components,) = seen
    assert components.pipeline.vae is None
    assert not components.text_encoders


def test_too_little_memory_is_said_before_it_starts(finetune, monkeypatch, capsys, tmp_path):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**20)
    assert finetune("--lora", *UNDRAWN, "--out=run") == 2
    assert "Use --low-memory, or: --gradient-checkpointing" in capsys.readouterr().err
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nDetails"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_memory_that_ends_in_training_is_a_clear_message(finetune, error, monkeypatch, capsys):
    def exhausted(*_):
        raise error

    monkeypatch.setattr(Trainer, "_backward", exhausted)
    assert finetune("--lora", *UNDRAWN, "--out=run") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: out of memory (")
    assert said.endswith("Try --low-memory, or a smaller --batch-size or --resolution")


def test_other_errors_are_not_taken_for_memory(finetune, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Trainer, "_backward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        finetune("--lora", *UNDRAWN, "--out=run")


# ---------------------------------------------------------------------- what belongs together


@pytest.fixture
def own_pairs(tmp_path):
    """(number) -> (image, caption), files of one of six pairs in tmp_path/pairs."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    colours = ["red", "green", "blue", "black", "white", "yellow"]
    for number, colour in enumerate(colours):
        Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} square")
    return lambda number: (folder / f"{number}.png", folder / f"{number}.txt")


@pytest.mark.parametrize("what", ["image", "caption"])
def test_a_run_does_not_go_on_with_other_data(
    finetune, unverified, own_pairs, tmp_path, capsys, what
):
    command = ("--lora", *UNDRAWN, "--data=pairs", "--objective=ddpm", "--out=run")
    assert finetune(*command) == 0
    (tmp_path / "run/metrics.json").unlink()
    image, caption = own_pairs(3)
    changed = image if what == "image" else caption
    before = changed.read_bytes()
    if what == "image":
        Image.new("RGB", (32, 32), "purple").save(image)
    else:
        caption.write_text("a purple square")
    capsys.readouterr()
    assert finetune(*command, "--resume") == 2
    assert "data fingerprint" in capsys.readouterr().err
    changed.write_bytes(before)
    assert finetune(*command, "--resume") == 0


def test_new_adapters_of_the_text_encoders_leave_the_first_step_as_it_is(
    finetune, unverified, own_pairs, tmp_path
):
    """They start at 0, so each pair must be given what its caption said without them."""
    command = ("--lora", *UNDRAWN, "--data=pairs", "--objective=ddpm", "--steps=1")
    assert finetune(*command, "--out=without") == 0
    assert finetune(*command, "--text-encoder", "--out=with") == 0
    losses = [
        [row["loss"] for row in rows_of(tmp_path / run) if "loss" in row]
        for run in ("without", "with")
    ]
    # The cache encodes the captions in other batches, whose sums round differently.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

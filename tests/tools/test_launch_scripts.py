"""dist.sh and slurm.sh: what they run, with a Python, nvidia-smi and srun that only print."""

from __future__ import annotations

import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT

CONFIG = "projects/sa2va/configs/sa2va_demo.py"
TOLD = ("DEEPSPEED", "NNODES", "NODE_RANK", "PORT", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
TOLD += ("OMP_NUM_THREADS", "DS_ACCELERATOR", "PYTHON", "GPUS_PER_NODE", "SRUN_ARGS", "PYTHONPATH")
TOLD += ("OMP_WAIT_POLICY", "DS_BUILD_OPS", "STOP_SECONDS", "STRATEGY")


@pytest.fixture
def launch(tmp_path):
    """Runs a script with stubs, returns the finished process; its stdout is one argument a line."""
    stubs = tmp_path / "bin"
    stubs.mkdir()

    def stub(name: str, text: str) -> Path:
        path = stubs / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
        return path

    python = stub("python-stub", 'printf "%s\\n" "$@"; env | grep "^OMP_\\|^DS_" >&2; exit 0')
    stub("srun", 'printf "%s\\n" "$@"')

    def run(script: str, *args: str, cards: int = 0, **env: str) -> subprocess.CompletedProcess:
        listed = "\n".join(f"echo 'GPU {i}: a card'" for i in range(cards))
        stub("nvidia-smi", listed or "exit 9")
        clean = {k: v for k, v in os.environ.items() if k not in TOLD}
        clean |= {"PATH": f"{stubs}:{os.environ['PATH']}", "PYTHON": str(python), **env}
        return subprocess.run(
            ["bash", f"tools/{script}", *args],
            cwd=ROOT,
            env=clean,
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


def options(done: subprocess.CompletedProcess) -> dict[str, str]:
    """``{'--nnodes': '1', ...}`` of what was run."""
    assert done.returncode == 0, done.stderr
    args = done.stdout.splitlines()
    return {a: b for a, b in pairwise(args) if a.startswith("--")}


def test_train(launch):
    done = launch("dist.sh", "train", CONFIG, "2", "--seed", "3", "--work-dir", "a b")
    args = done.stdout.splitlines()
    assert args[:2] == ["-m", "torch.distributed.run"]
    script = args.index(f"{ROOT}/tools/train.py")
    assert args[script + 1 :] == [
        *(CONFIG, "--seed", "3", "--work-dir", "a b", "--launcher", "pytorch"),
    ]
    said = options(done)
    assert (said["--nproc_per_node"], said["--nnodes"], said["--node_rank"]) == ("2", "1", "0")
    assert said["--master_addr"] == "127.0.0.1"
    assert set(done.stderr.split()) == {"OMP_NUM_THREADS=1", "DS_ACCELERATOR=cpu"}


def test_signals_and_the_time_they_leave(launch):
    said = options(launch("dist.sh", "train", CONFIG, "2"))
    assert {"SIGTERM", "SIGUSR1"} <= set(said["--signals_to_handle"].split(","))
    assert said["--shutdown_timeout"] == "600"
    said = options(launch("dist.sh", "train", CONFIG, "2", STOP_SECONDS="90"))
    assert said["--shutdown_timeout"] == "90"
    said = options(launch("dist.sh", "train", CONFIG, "2", TORCHRUN_ARGS=""))
    assert "--shutdown_timeout" not in said and "--signals_to_handle" in said
    done = launch("dist.sh", "train", CONFIG, "2", STOP_SECONDS="soon")
    assert done.returncode == 2 and "STOP_SECONDS='soon'" in done.stderr


@pytest.mark.parametrize(
    ("name", "ends_with", "status"), [("TERM", 1, 143), ("USR1", 1, 143), ("TERM", 0, 0)]
)
def test_a_signal_to_dist_reaches_the_launcher(launch, tmp_path, name, ends_with, status):
    python = tmp_path / "bin" / "waiting"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f"trap 'echo got {name}; sleep 0.3; echo saved; exit {ends_with}' {name}\n"
        f"kill -{name} $PPID\nfor _ in {{1..100}}; do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    done = launch("dist.sh", "train", CONFIG, "2", PYTHON=str(python))
    assert done.returncode == status
    assert done.stdout == f"got {name}\nsaved\n"  # dist.sh waited for it


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_launchers_status_is_dists(launch, tmp_path, status):
    python = tmp_path / "bin" / "ending"
    python.write_text(f"#!/usr/bin/env bash\nexit {status}\n")
    python.chmod(0o755)
    assert launch("dist.sh", "train", CONFIG, "2", PYTHON=str(python)).returncode == status


def test_test_on_cards_of_several_machines(launch):
    env = {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.1", "OMP_NUM_THREADS": "4"}
    done = launch("dist.sh", "test", CONFIG, "4", "--checkpoint", "x.pth", cards=4, **env)
    said = options(done)
    assert (said["--nnodes"], said["--node_rank"], said["--master_addr"]) == ("3", "2", "10.0.0.1")
    assert (said["--master_port"], said["--checkpoint"]) == ("29500", "x.pth")
    assert f"{ROOT}/tools/test.py" in done.stdout
    assert done.stderr.split() == ["OMP_NUM_THREADS=4"]  # with cards no DS_ACCELERATOR


@pytest.mark.parametrize("script", ["dist.sh", "slurm.sh"])
@pytest.mark.parametrize("name", ["deepspeed_zero3_offload", "zero3_offload"])
def test_deepspeed_names(launch, script, name):
    args = [CONFIG, "2"] if script == "dist.sh" else ["part", "job", CONFIG, "2"]
    done = launch(script, "train", *args, DEEPSPEED=name)
    assert options(done)["--deepspeed"] == "deepspeed_zero3_offload"
    done = launch(script, "test", *args, DEEPSPEED=name)
    assert "--deepspeed" not in done.stdout and "testing does without" in done.stderr


@pytest.mark.parametrize("script", ["dist.sh", "slurm.sh"])
def test_strategy(launch, script):
    args = [CONFIG, "2"] if script == "dist.sh" else ["part", "job", CONFIG, "2"]
    assert options(launch(script, "train", *args, STRATEGY="fsdp2"))["--strategy"] == "fsdp2"
    assert "--strategy" not in launch(script, "train", *args).stdout
    done = launch(script, "test", *args, STRATEGY="fsdp2")
    assert "--strategy" not in done.stdout and "testing does without" in done.stderr
    done = launch(script, "train", *args, STRATEGY="fsdp")
    assert done.returncode == 2 and "did you mean 'fsdp2'" in done.stderr
    done = launch(script, "train", *args, STRATEGY="fsdp2", DEEPSPEED="zero2")
    assert done.returncode == 2 and "unset one of them" in done.stderr


def test_every_deepspeed_name_is_a_file():
    text = (ROOT / "tools" / "launch_lib.sh").read_text()
    names = text.split("DEEPSPEED_NAMES=(")[1].split(")")[0].split()
    assert set(names) == {path.stem for path in (ROOT / "configs" / "deepspeed").glob("*.json")}


def test_deepspeed_by_file(launch, tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    done = launch("dist.sh", "train", CONFIG, "1", DEEPSPEED=str(tmp_path / "mine.json"))
    assert options(done)["--deepspeed"] == str(tmp_path / "mine.json")


def test_programs_beside_python_are_found(launch, tmp_path):
    """ninja is one of them, and is often installed nowhere else."""
    home = tmp_path / "venv"
    home.mkdir()
    python = home / "python"
    python.write_text('#!/usr/bin/env bash\necho "$PATH"\n')
    python.chmod(0o755)
    done = launch("dist.sh", "train", CONFIG, "1", PYTHON=str(python))
    assert done.stdout.split(":")[0] == str(home)


def test_every_run_on_one_machine_has_a_port_of_its_own(launch):
    ports = {options(launch("dist.sh", "train", CONFIG, "1"))["--master_port"] for _ in range(4)}
    assert len(ports) > 1
    assert all(20000 <= int(port) < 32000 for port in ports)
    assert (
        options(launch("dist.sh", "train", CONFIG, "1", PORT="12345"))["--master_port"] == "12345"
    )


def test_slurm(launch):
    env = {"GPUS_PER_NODE": "4", "CPUS_PER_TASK": "7", "SRUN_ARGS": "--quotatype=auto -x node1"}
    done = launch("slurm.sh", "train", "part", "job", CONFIG, "8", "--seed", "3", **env)
    said, args = options(done), done.stdout.splitlines()
    assert (said["--partition"], said["--job-name"], said["--gres"]) == ("part", "job", "gpu:4")
    assert (said["--ntasks"], said["--ntasks-per-node"]) == ("8", "4")
    assert said["--cpus-per-task"] == "7"
    assert args[args.index("--quotatype=auto") + 1 :][:2] == ["-x", "node1"]
    assert args[-6:] == [f"{ROOT}/tools/train.py", CONFIG, "--seed", "3", "--launcher", "slurm"]


@pytest.mark.parametrize(
    ("args", "env", "expected"),
    [
        (["train", CONFIG], {}, "2 argument(s)"),
        (["trian", CONFIG, "2"], {}, "did you mean 'train'"),
        (["train", CONFIG, "two"], {}, "GPUS='two'"),
        (["train", CONFIG, "0"], {}, "GPUS='0'"),
        (["train", "sa2va_dmo.py", "2"], {}, f"did you mean '{CONFIG}'"),
        (["train", CONFIG, "2"], {"DEEPSPEED": "deepspeed_zero2_ofload"}, "zero2_offload'?)"),
        (["train", CONFIG, "2"], {"DEEPSPEED": "zeroo1"}, "did you mean 'deepspeed_zero1'"),
        (["train", CONFIG, "2"], {"NNODES": "x"}, "NNODES='x'"),
        (["train", CONFIG, "2"], {"NNODES": "2", "NODE_RANK": "2"}, "from 0 to NNODES-1 = 1"),
        (["train", CONFIG, "2"], {"NNODES": "2"}, "without MASTER_ADDR"),
        (["train", CONFIG, "2"], {"PORT": "abc"}, "PORT='abc'"),
        (["train", CONFIG, "2"], {"PYTHON": "/no/such/python"}, "make setup"),
    ],
)
def test_errors_say_what_to_do(launch, args, env, expected):
    done = launch("dist.sh", *args, **env)
    assert done.returncode == 2 and done.stdout == ""
    assert expected in done.stderr
    assert all(part in done.stderr for part in ("found: ", "expected: ", "what to do: "))


def test_more_processes_than_cards(launch):
    done = launch("dist.sh", "train", CONFIG, "4", cards=2)
    assert done.returncode == 2 and "GPUS=4 on a machine with 2" in done.stderr
    assert launch("dist.sh", "train", CONFIG, "4", cards=4).returncode == 0


@pytest.mark.parametrize(
    ("args", "env", "expected"),
    [
        (["train", "part", "job", CONFIG], {}, "4 argument(s)"),
        (["train", "part", "job", CONFIG, "x"], {}, "GPUS='x'"),
        (["train", "part", "job", CONFIG, "6"], {"GPUS_PER_NODE": "4"}, "a multiple of"),
        (["train", "part", "job", "gone.py", "4"], {}, "no config file 'gone.py'"),
    ],
)
def test_slurm_errors(launch, args, env, expected):
    done = launch("slurm.sh", *args, **env)
    assert done.returncode == 2 and done.stdout == "" and expected in done.stderr

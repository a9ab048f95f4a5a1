"""launch/: every command line against stubs that know the real tools' flags, and what can run here
for real: several local processes, a pod host's script, the Slurm batch script.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("tpu_pod", "gke", "slurm", "local")

# Subcommand -> flags with a value, flags without one; from the tools' own reference pages.
_WHERE = "--zone --project"
GRAMMAR = {
    "gcloud": {
        "compute tpus queued-resources list": (f"{_WHERE} --filter --format", ""),
        "compute tpus queued-resources create": (
            f"{_WHERE} --node-id --accelerator-type --runtime-version",
            "--spot",
        ),
        "compute tpus queued-resources delete": (_WHERE, "--force --quiet"),
        "compute tpus tpu-vm ssh": (f"{_WHERE} --worker --command", "--quiet"),
        "compute tpus tpu-vm scp": (f"{_WHERE} --worker", "--quiet"),
        "storage rsync": ("--project", "--recursive"),
        "storage cp": ("--project", ""),
        "storage rm": ("--project", "--recursive"),
        "storage buckets create": (
            "--project --location",
            "--uniform-bucket-level-access --enable-hierarchical-namespace",
        ),
        "storage buckets add-iam-policy-binding": ("--member --role", ""),
        "services enable": ("--project", ""),
        "projects describe": ("--format", ""),
        "container clusters create": ("--project --location --addons --workload-pool", ""),
        "container node-pools create": (
            "--cluster --project --location --machine-type --tpu-topology --num-nodes",
            "--spot",
        ),
    },
    "kubectl": {
        "apply": ("--filename", ""),
        "logs": ("--selector --container --tail", "--follow"),
        "delete jobset": ("", "--ignore-not-found"),
    },
    "squeue": {"": ("--name --format", "--me --noheader")},
    "sbatch": {
        "": (
            "--job-name --nodes --ntasks-per-node --gpus-per-node --cpus-per-task --signal --output"
            " --open-mode --chdir --partition --time --account",
            "--requeue",
        )
    },
    "scontrol": {"requeue": ("", "")},
    "srun": {"": ("--kill-on-bad-exit --wait --cpus-per-task", "")},
}

STUB = """#!{python} -SE
import json, os, pathlib, sys
tool, here = pathlib.Path(sys.argv[0]).name, pathlib.Path(sys.argv[0]).parent.parent
argv = sys.argv[1:]
grammar = json.loads((here / "grammar.json").read_text())[tool]
sub = max((s for s in grammar if argv[: len(s.split())] == s.split()), key=len, default=None)
if sub is None:
    sys.exit(f"{{tool}}: unknown subcommand: {{argv}}")
valued, plain = (flags.split() for flags in grammar[sub])
rest = argv[len(sub.split()) :]
if tool == "srun":  # what follows its own options is the task
    rest = rest[: next(i for i, a in enumerate(rest) if not a.startswith("--"))]
for arg in rest:
    name, equals, value = arg.partition("=")
    if arg.startswith("-") and not (name in valued and value or arg in plain):
        sys.exit(f"{{tool}}: bad flag: {{arg}}")
stdin = sys.stdin.read() if tool == "sbatch" or arg == "--filename=-" else ""
call = dict(tool=tool, sub=sub, args=rest, argv=argv, stdin=stdin)
with open(here / "calls", "a") as f:
    f.write(json.dumps(call) + chr(10))
answers = here / f"{{tool}} {{sub}}".strip().replace(" ", "_")
if answers.exists():  # one line an answer: exit code, text; the last one stays
    first, *others = answers.read_text().splitlines()
    if others:
        answers.write_text(chr(10).join(others))
    code, _, text = first.partition(" ")
    print(text, end=chr(10) if text else "")
    sys.exit(int(code))
"""


class Bench:
    """Stubs of the tools on PATH, and what they were called with."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "grammar.json").write_text(json.dumps(GRAMMAR))
        for tool in GRAMMAR:
            executable(folder / "bin" / tool, STUB.format(python=sys.executable))

    def answer(self, command: str, *answers: str) -> None:
        (self.folder / command.replace(" ", "_")).write_text("\n".join(answers))

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LAUNCH / f"{script}.sh", *args],
            cwd=self.folder,
            env=os.environ | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"} | env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self, **match: str) -> list[dict]:
        path = self.folder / "calls"
        calls = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        return [c for c in calls if all(c[k] == v for k, v in match.items())]

    def subs(self) -> list[str]:
        return [f"{c['tool']} {c['sub']}".strip() for c in self.calls()]


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


POD = ("--name=paper", "--zone=us-west4-a", "--project=mine")
NEW = ("--accelerator-type=v5litepod-16", "--bucket=gs://results", "--poll=1")
JOB = ("--", "--config=configs/sst2.py", "--config.prompt.separator=<eos> 'a'")
LIST = "gcloud compute tpus queued-resources list"
SSH = "gcloud compute tpus tpu-vm ssh"
SLICE = ("--name=paper", "--bucket=results", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4")
SLURM = ("--nodes=2", f"--python={sys.executable}")


def test_scripts_pass_shellcheck():
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("no shellcheck (extra test)")
    command = [found, "--external-sources", "--source-path=SCRIPTDIR/..", *LAUNCH.glob("*.sh")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_top(bench, script):
    result = bench.run(script, "--help")
    assert result.returncode == 0
    assert f"launch/{script}.sh " in result.stdout
    assert "set -euo" not in result.stdout


@pytest.mark.parametrize(
    ("script", "args", "said"),
    [
        ("tpu_pod", ("create", "--zone=z"), "--name=VALUE is needed"),
        ("tpu_pod", ("create", *POD), "--accelerator-type=VALUE is needed"),
        ("tpu_pod", ("create", *POD, "--accelerator=v"), "unknown option --accelerator"),
        ("tpu_pod", ("create", "--name", "paper"), "--name needs a value: --name=VALUE"),
        ("tpu_pod", ("launch", *POD), "unknown command launch"),
        ("tpu_pod", POD, "no command"),
        ("tpu_pod", ("run", "again", *POD), "unexpected argument again after run"),
        ("tpu_pod", ("run", *POD), "no --config=FILE after --"),
        ("tpu_pod", ("run", *POD, *JOB, "--workdir=/x"), "--workdir=/x after --"),
        ("tpu_pod", ("fetch", *POD, "--bucket=b", "--workdir=/x"), "a folder within the bucket"),
        ("gke", ("run", *SLICE[:3], *JOB), "--topology=VALUE is needed"),
        ("gke", ("run", *SLICE[:3], "--topology=16", *JOB), "--topology=16: e.g. 4x4"),
        ("gke", ("run", *SLICE, "--chips-per-host=3", *JOB), "not a multiple"),
        ("gke", ("run", *SLICE[1:], "--name=My_job", *JOB), "small letters"),
        ("slurm", (*JOB, "--workdir=w"), "--nodes=VALUE is needed"),
        ("slurm", ("--nodes=two", *JOB, "--workdir=w"), "--nodes=two is not a whole number"),
        ("slurm", (*SLURM, *JOB), "no --workdir=DIR"),
        ("local", JOB, "the number of processes is needed first"),
        ("local", ("2", *JOB, "--process_id=1"), "--process_id=1 after --"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(bench, script, args, said):
    result = bench.run(script, *args)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.startswith(f"launch/{script}.sh: error: ")
    assert result.stderr.count("\n") == 1
    assert not result.stdout
    assert not bench.calls()


@pytest.mark.parametrize(
    ("script", "args", "commands"),
    [
        ("tpu_pod", ("all", *POD, *NEW, *JOB), 13),
        ("gke", ("run", *SLICE, *JOB), 3),
        ("slurm", (*SLURM, *JOB, "--workdir=w"), 2),
        ("local", ("2", *JOB), 2),
    ],
)
def test_dry_run_prints_and_runs_nothing(bench, script, args, commands):
    before = sorted(bench.folder.rglob("*"))
    result = bench.run(script, args[0], "--dry-run", *args[1:])
    assert result.returncode == 0, result.stderr
    assert sum(line.startswith("+ ") for line in result.stdout.splitlines()) == commands
    assert not bench.calls()
    assert sorted(bench.folder.rglob("*")) == before


def test_a_pod_from_nothing_to_the_results(bench):
    bench.answer(LIST, "0", "0 WAITING_FOR_RESOURCES", "0 PROVISIONING", "0 ACTIVE")
    result = bench.run("tpu_pod", "all", "--spot", *POD, *NEW, *JOB)
    assert result.returncode == 0, result.stderr
    queued, vm = "gcloud compute tpus queued-resources", "gcloud compute tpus tpu-vm"
    assert bench.subs() == [
        *(f"{queued} {sub}" for sub in ("list", "create", "list", "list", "list")),
        *(f"{vm} {sub}" for sub in ("scp", "scp", "ssh", "ssh", "ssh")),
        "gcloud storage rsync",
        *(f"{queued} {sub}" for sub in ("list", "delete")),
    ]
    [create] = bench.calls(sub="compute tpus queued-resources create")
    assert create["args"] == [
        *("paper", "--zone=us-west4-a", "--project=mine", "--node-id=paper"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ]
    setup, start, logs = (c["args"] for c in bench.calls(sub="compute tpus tpu-vm ssh"))
    assert "--worker=all" in setup
    assert "--command=bash icljax_worker.sh setup results" in setup
    assert "--worker=all" in start
    remote = next(a for a in start if a.startswith("--command=")).removeprefix("--command=")
    # What a host's shell makes of it is what was typed, and what the script adds.
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {remote}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    added = ["--workdir=/mnt/icljax/runs/paper", "--distributed"]
    assert words == ["bash", "icljax_worker.sh", "run", *JOB[1:], *added]
    assert "--worker=0" in logs
    [fetch] = bench.calls(sub="storage rsync")
    assert fetch["args"][1:3] == ["gs://results/runs/paper", "results/paper"]


@pytest.mark.parametrize(
    ("state", "subs"),
    [
        ("ACTIVE", ["list"]),
        ("WAITING_FOR_RESOURCES", ["list"]),
        ("SUSPENDED", ["list", "list", "delete", "create"]),  # a preempted pod is replaced
    ],
)
def test_create_again(bench, state, subs):
    bench.answer(LIST, f"0 {state}")
    assert bench.run("tpu_pod", "create", *POD, *NEW).returncode == 0
    assert bench.subs() == [f"gcloud compute tpus queued-resources {sub}" for sub in subs]


def test_delete_again_does_nothing(bench):
    assert bench.run("tpu_pod", "delete", *POD).returncode == 0
    assert bench.subs() == [LIST]


def test_waiting_for_a_pod_that_failed_or_is_not_there_ends(bench):
    bench.answer(LIST, "0 FAILED")
    failed = bench.run("tpu_pod", "wait", *POD)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    bench.answer(LIST, "0")
    assert bench.run("tpu_pod", "wait", *POD).returncode == 2


@pytest.mark.parametrize(("code", "fetched"), [(75, 0), (2, 1)])  # 2: nothing is there to fetch
def test_a_job_that_ends_early_keeps_its_pod_and_gives_its_code(bench, code, fetched):
    bench.answer(LIST, "0 ACTIVE")
    bench.answer(SSH, "0", "0", f"{code}")
    bench.answer("gcloud storage rsync", f"{fetched}")
    result = bench.run("tpu_pod", "all", *POD, *NEW, *JOB)
    assert result.returncode == code
    assert "The same command continues" in result.stderr
    assert bench.subs()[-1] == "gcloud storage rsync"


def test_a_failure_of_gcloud_is_not_taken_for_an_absent_pod(bench):
    bench.answer(LIST, "1")
    assert bench.run("tpu_pod", "create", *POD, *NEW).returncode == 1
    assert bench.subs() == [LIST]


def test_the_archive_holds_what_a_host_installs(bench):
    executable(
        bench.folder / "bin/gcloud", '#!/bin/bash\n[[ $4 != scp ]] || cp "$5" sent-"${5##*/}"\n'
    )
    assert bench.run("tpu_pod", "setup", *POD, "--bucket=b").returncode == 0
    with tarfile.open(bench.folder / "sent-icljax.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"pyproject.toml", "README.md", "LICENSE", "icljax/main.py", "configs/sst2.py"} <= names
    assert (bench.folder / "sent-tpu_worker.sh").exists()


def test_the_commands_of_the_page_run(bench):
    page = (LAUNCH.parent / "docs/pods.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    bench.answer(LIST, "0 ACTIVE")
    bench.answer("gcloud projects describe", "0 123456")
    executable(bench.folder / "bin/python", "#!/bin/bash\necho 1\n")
    (bench.folder / "launch").symlink_to(LAUNCH)
    script = bench.folder / "page"
    executable(script, "#!/bin/bash\nset -euo pipefail\n" + "".join(blocks))
    env = {"PATH": f"{bench.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(bench.folder)}
    result = subprocess.run(
        [script], cwd=bench.folder, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert {"gcloud storage buckets create", "kubectl apply", "sbatch"} <= set(bench.subs())
    jobs = [shlex.split(call["args"][-1]) for call in bench.calls(sub="compute tpus tpu-vm ssh")]
    starts = [job for job in jobs if "run" in job]
    rates = ",".join(f"0.{'0' * zeros}{i}" for zeros in (3, 2, 1, 0) for i in range(1, 10))
    assert len(starts) == 7  # `all`, and the six tasks
    assert all(f"--config.finetune.learning_rates={rates}" in job for job in starts)
    assert [job[-2].rpartition("/")[2] for job in starts] == [
        *("paper", "sst2", "sst5", "mr", "subj", "agnews", "cb")
    ]


# --- a pod's host, for real -------------------------------------------------------------------


class Host:
    """A home folder with the script and a stand-in for its Python, which obeys --config."""

    def __init__(self, home: Path):
        self.home = home
        executable(home / "python", FAKE_PYTHON.format(python=sys.executable))
        (home / "icljax/venv/bin").mkdir(parents=True)
        (home / "icljax/venv/bin/python").symlink_to(home / "python")
        (home / "icljax/src").mkdir()
        shutil.copy(LAUNCH / "tpu_worker.sh", home / "icljax_worker.sh")

    def __call__(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "icljax_worker.sh", *args],
            cwd=self.home,
            env=os.environ | {"HOME": str(self.home)} | env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


# As icljax.main answers: --config=exit:CODE ends at once, --config=wait until SIGTERM, then 75;
# "FAKE:I" applies to process I alone, and the others wait.
FAKE_PYTHON = """#!{python} -SE
import os, signal, sys, time
if sys.argv[1] == "-c":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
assert sys.argv[1:3] == ["-m", "icljax.main"], sys.argv
flags = dict(arg.removeprefix("--").partition("=")[::2] for arg in sys.argv[3:])
print("\\n".join(sys.argv[3:]), flush=True)
what, _, whose = flags["config"].partition("@")
if whose and whose != flags["process_id"]:
    what = "deaf" if "deaf" in flags else "wait"
def stop(*_):
    print("stopped", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if what == "deaf" else stop)
print("ready", flush=True)
if what.startswith("exit:"):
    time.sleep(0.2)  # the others get ready
    sys.exit(int(what[5:]))
time.sleep(30)
"""


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def until(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 10 s")


def test_a_host_runs_one_job_shows_it_and_gives_its_code(host):
    assert "has started" in host("run", "--config=exit:7", "--other=a b").stdout
    logs = host("logs")
    assert logs.returncode == 7
    assert logs.stdout.splitlines()[:3] == ["--config=exit:7", "--other=a b", "ready"]


def test_a_host_stops_and_continues_a_job(host):
    log = host.home / "icljax/log"
    assert host("run", "--config=wait").returncode == 0
    until(lambda: "ready" in log.read_text())
    assert "runs already" in host("run", "--config=exit:0").stdout
    assert host("stop").returncode == 0
    assert host("logs").returncode == 75
    assert "has started" in host("run", "--config=exit:0").stdout
    assert host("logs").returncode == 0
    assert "stopped" in (host.home / "icljax/log.previous").read_text()
    assert host("stop").returncode == 0  # nothing runs: nothing to do


def test_a_host_that_is_not_set_up_says_so(host):
    shutil.rmtree(host.home / "icljax")
    for command in ("run", "logs"):
        result = host(command)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_a_host_is_set_up_once(host, tmp_path):
    shutil.rmtree(host.home / "icljax")
    (tmp_path / "bin").mkdir()
    log = 'echo "${0##*/} $*" >> "$HOME/calls"'
    venv = 'v=$HOME/icljax/venv/bin; mkdir -p $v; cp "$0" $v/python; cp "$0" $v/pip'
    mounted = '[[ -e $HOME/mounted ]] && cat "$HOME/mounted"'
    for tool, text in {
        "python3": f"{log}\n[[ $2 != uv ]] || {{ {venv}; }}",
        "sudo": log,
        "gcsfuse": f'{log}\necho "$3" > "$HOME/mounted"',
        "mountpoint": mounted,
        "findmnt": mounted,
    }.items():
        executable(tmp_path / "bin" / tool, f"#!/bin/bash\n{text}\n")
    with tarfile.open(host.home / "icljax.tar.gz", "w:gz") as archive:
        archive.add(LAUNCH / "jobset.yaml", "configs/some.py")
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for _ in range(2):
        assert host("setup", "results", **path).returncode == 0
    assert (host.home / "icljax/src/configs/some.py").exists()
    calls = (host.home / "calls").read_text().splitlines()
    assert (
        calls.count("gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 results /mnt/icljax") == 1
    )
    assert sum("uv venv" in call for call in calls) == 1
    assert sum(call.startswith("pip install") for call in calls) == 2  # the code may have changed
    other = host("setup", "others", **path)
    assert other.returncode == 2
    assert "holds another bucket" in other.stderr


# --- GKE --------------------------------------------------------------------------------------


def test_the_manifest_asks_for_one_pod_a_host(bench):
    yaml = pytest.importorskip("yaml")
    result = bench.run("gke", "run", *SLICE, *JOB, '--config.template=\\ "q": {text}')
    assert result.returncode == 0, result.stderr
    copy, apply = bench.calls()
    assert copy["args"][1] == "gs://results/code/paper.tar.gz"
    jobset = yaml.safe_load(apply["stdin"])
    assert "@" not in apply["stdin"].split("apiVersion", 1)[1].replace('"$@"', "")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 4
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["args"] == [
        *(*JOB[1:], '--config.template=\\ "q": {text}'),
        *("--workdir=/mnt/icljax/runs/paper", "--distributed"),
    ]
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "results"
    # A mistake or a crash ends it, whatever else restarts it: 75 and 76 among them.
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, 2]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    policy = jobset["spec"]["failurePolicy"]
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    assert policy["maxRestarts"] == 20


@pytest.mark.parametrize(
    ("topology", "options", "hosts", "chips"),
    [
        ("2x2x2", (), 2, 4),
        ("2x4", ("--chips-per-host=8",), 1, 8),
        ("1x1", (), 1, 1),
    ],
)
def test_hosts_of_a_topology(bench, topology, options, hosts, chips):
    text = bench.run("gke", "render", *SLICE[:3], f"--topology={topology}", *options, *JOB).stdout
    assert f"completions: {hosts}\n" in text
    assert f"limits: {{google.com/tpu: {chips}}}\n" in text
    assert not bench.calls()


def test_gke_logs_fetch_delete(bench):
    for command in ("logs", "fetch", "delete"):
        result = bench.run("gke", command, "--name=paper", "--bucket=results")
        assert result.returncode == 0, result.stderr
    assert bench.subs() == ["kubectl logs", "gcloud storage rsync", "kubectl delete jobset"]
    assert bench.calls()[0]["args"][0] == (
        "--selector=jobset.sigs.k8s.io/jobset-name=paper,batch.kubernetes.io/job-completion-index=0"
    )


# --- Slurm ------------------------------------------------------------------------------------


def test_slurm_submits_a_process_a_gpu_once(bench):
    submit = ("--gpus=4", "--partition=long", *SLURM, *JOB, "--workdir=/home/my runs")
    assert bench.run("slurm", *submit).returncode == 0
    [batch] = bench.calls(tool="sbatch")
    for option in (
        *("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=long"),
        *("--signal=TERM@90", "--requeue"),
    ):
        assert option in batch["args"]
    bench.answer("squeue", "0 4711")
    again = bench.run("slurm", *submit)
    assert again.returncode == 0
    assert "job 4711" in again.stdout
    assert len(bench.calls(tool="sbatch")) == 1


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (75, 0, True), (76, 1, True), (75, 3, False)],
)
def test_slurm_requeues_a_stopped_job(bench, code, restarts, requeued):
    args = (*SLURM, "--max-restarts=3", *JOB, "--workdir=/home/my runs")
    assert bench.run("slurm", *args).returncode == 0
    bench.answer("srun", f"{code}")
    script = bench.folder / "batch"
    executable(script, bench.calls(tool="sbatch")[0]["stdin"])
    env = {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": str(restarts)}
    path = {"PATH": f"{bench.folder / 'bin'}:{os.environ['PATH']}"}
    assert subprocess.run([script], env=env | path, check=False).returncode == code
    [step] = bench.calls(tool="srun")
    task = [sys.executable, "-m", "icljax.main", *JOB[1:], "--workdir=/home/my runs"]
    assert step["argv"][-len(task) - 1 :] == [*task, "--distributed"]
    expected = [["4711"]] if requeued else []
    assert [call["args"] for call in bench.calls(tool="scontrol")] == expected


# --- local, for real --------------------------------------------------------------------------


def local(host: Host, processes: int, *job: str) -> subprocess.Popen[str]:
    options = (f"--python={host.home / 'python'}", f"--logs={host.home / 'logs'}", "--grace=1")
    return subprocess.Popen(
        [LAUNCH / "local.sh", str(processes), *options, "--", *job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def log(host: Host, process: int) -> str:
    return (host.home / f"logs/process-{process}.log").read_text()


def test_local_says_what_failed_into_a_file_too(host, tmp_path):
    executable(tmp_path / "python", '#!/bin/bash\necho "error of ${@: -1}" >&2\nexit 2\n')
    with (tmp_path / "out").open("w") as out:
        command = [LAUNCH / "local.sh", "2", "--port=1", f"--python={tmp_path / 'python'}", *JOB]
        run = subprocess.run(command, stdout=out, stderr=out, check=False)
    assert run.returncode == 2
    said = (tmp_path / "out").read_text()
    assert "error of --process_id=" in said
    assert "ended with exit code 2: stopping the others" in said


def test_local_processes_find_each_other(host):
    process = local(host, 3, "--config=exit:0")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    outputs = [out, log(host, 1), log(host, 2)]
    assert len({flag for text in outputs for flag in text.split() if "--coordinator" in flag}) == 1
    for i, text in enumerate(outputs):
        assert "--num_processes=3" in text
        assert f"--process_id={i}\n" in text


@pytest.mark.parametrize("failing", [0, 1])
def test_local_stops_the_others_when_one_fails(host, failing):
    process = local(host, 3, f"--config=exit:7@{failing}")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 7
    assert f"process {failing} ended with exit code 7" in err
    assert ("ready" in err) == (failing > 0)  # what it said last is shown here
    texts = {0: out, 1: log(host, 1), 2: log(host, 2)}
    assert [i for i in range(3) if "stopped" in texts[i]] == [i for i in range(3) if i != failing]


def test_local_kills_what_does_not_stop(host):
    process = local(host, 2, "--config=exit:7@0", "--deaf")
    process.communicate(timeout=20)
    assert process.returncode == 7


def test_local_passes_sigterm_on(host):
    process = local(host, 2, "--config=wait")
    logs = host.home / "logs/process-1.log"
    until(lambda: logs.exists() and "ready" in logs.read_text())
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        pass
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "stopped" in out
    assert "stopped" in log(host, 1)

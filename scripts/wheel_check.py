"""Check that the built package works outside this repository.

The script builds the sdist and from it the wheel, checks the contents of both, installs the wheel with constraints.txt
into a fresh environment, and draws an image with it in an empty folder. `make wheel-check` runs the script, which needs
the package `build`. It prints each check, and exits with code 1 at the first one that fails.
"""

import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "src" / "hawk" / "weights"
MAX_FILE_BYTES = 50_000_000  # one weight file
MAX_WEIGHT_BYTES = 100_000_000  # all of them
MAX_PEAK_BYTES = 1_500_000_000  # memory of one `hawk generate`
REPORT_KEYS = {"method", "seed", "tokens_sha256", "nfe", "accept_length", "seconds", "path"}
PICTURES = (".png", ".jpg", ".gif")


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, its output, and its peak memory in bytes."""

    code: int
    stdout: str
    stderr: str
    peak_bytes: int


def require(holds: bool, what: str) -> None:
    """Print `what` if it holds; exit with it as the reason if not."""
    if not holds:
        sys.exit(f"wheel check failed, this is not true: {what}")
    print(f"ok: {what}", flush=True)


def build(dist: Path) -> tuple[Path, Path]:
    """Build sdist and wheel into `dist`, the wheel from the sdist; return the paths of both."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", dist, ROOT], check=True, stdout=subprocess.DEVNULL)
    return next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))


def check_contents(sdist: Path, wheel: Path) -> None:
    """Check that both packages hold the bundled weights, that the wheel holds the licences, and nothing is stray."""
    weights = {
        path.relative_to(WEIGHTS).as_posix(): path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()
    }
    require(any(name.endswith(".safetensors") for name in weights), "src/hawk/weights holds safetensors")
    require(max(weights.values()) <= MAX_FILE_BYTES, "no weight file is over 50 MB")
    require(sum(weights.values()) <= MAX_WEIGHT_BYTES, "all weights together are at most 100 MB")

    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {item.filename: item.file_size for item in archive.infolist()}
    same = all(in_wheel.get(f"hawk/weights/{name}") == size for name, size in weights.items())
    require(same, f"the wheel holds the {len(weights)} bundled weight files")
    require("hawk/py.typed" in in_wheel, "the wheel holds py.typed")
    licences = {Path(name).name for name in in_wheel if ".dist-info/licenses/" in name}
    require({"LICENSE", "THIRD_PARTY.md"} <= licences, "the wheel holds LICENSE and THIRD_PARTY.md")
    tops = {name.split("/")[0] for name in in_wheel}
    require({top for top in tops if not top.endswith(".dist-info")} == {"hawk"}, "the wheel installs hawk only")

    with tarfile.open(sdist) as archive:
        in_sdist = {item.name.partition("/")[2]: item.size for item in archive if item.isfile()}
    same = all(in_sdist.get(f"src/hawk/weights/{name}") == size for name, size in weights.items())
    require(same, "the sdist holds the bundled weights")
    require(not [name for name in in_sdist if name.endswith(PICTURES)], "the sdist holds no pictures")


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel into a fresh environment in `folder`; return the folder of the environment's commands."""
    venv.create(folder, with_pip=True)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [commands / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", wheel], check=True)
    return commands


def run(command: Sequence[str | Path], folder: Path, logs: Path) -> Outcome:
    """Run a command in `folder`, without access to this repository or the hub, and measure its memory."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["HF_HUB_OFFLINE"] = "1"
    logs.mkdir(exist_ok=True)
    with (logs / "stdout").open("w") as stdout, (logs / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return Outcome(
        code=os.waitstatus_to_exitcode(status),
        stdout=(logs / "stdout").read_text(),
        stderr=(logs / "stderr").read_text(),
        peak_bytes=usage.ru_maxrss * unit,
    )


def png_size(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG in pixels, or (0, 0) if the file is no PNG."""
    head = path.read_bytes()[:24]
    return struct.unpack(">II", head[16:]) if len(head) == 24 and head.startswith(b"\x89PNG\r\n\x1a\n") else (0, 0)


def check_generate(hawk: Path, folder: Path, logs: Path) -> None:
    """Check that `hawk generate` draws one image in the empty `folder`, reports it, and refuses bad input."""
    refused = run([hawk, "generate", "a cat", "--no-such-option"], folder, logs)
    require(refused.code == 2, "an unknown option ends with exit code 2")
    require(not list(folder.iterdir()), "and writes nothing")

    drawn = run([hawk, "generate", "a cat", "--seed", "1", "--json"], folder, logs)
    if drawn.code != 0:
        sys.exit(f"wheel check failed: hawk generate ended with {drawn.code}\n{drawn.stdout}\n{drawn.stderr}")
    report = json.loads(drawn.stdout.splitlines()[-1])
    require(report.keys() >= REPORT_KEYS, f"the JSON report has {', '.join(sorted(REPORT_KEYS))}")
    require(report["seed"] == 1, "the report names the seed")
    width, height = png_size(folder / report["path"])
    require(min(width, height) >= 64, f"{report['path']} is a PNG of {width} x {height} pixels")
    written = [path for path in folder.rglob("*") if path.is_file()]
    require(len(written) == 1, "the PNG is the only file written")
    megabytes = drawn.peak_bytes // 1_000_000
    require(drawn.peak_bytes < MAX_PEAK_BYTES, f"hawk generate took {megabytes} MB of memory, under 1500")
    print(json.dumps(report))


def main() -> None:
    """Run all checks in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="hawk-wheel-") as temporary:
        folder = Path(temporary)
        sdist, wheel = build(folder / "dist")
        for package in (sdist, wheel):
            print(f"built {package.name}, {package.stat().st_size:,} bytes")
        check_contents(sdist, wheel)
        commands = install(wheel, folder / "venv")
        empty = folder / "empty"
        empty.mkdir()
        check_generate(commands / "hawk", empty, folder / "logs")


if __name__ == "__main__":
    main()

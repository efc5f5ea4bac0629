"""What every test runs under: checked tensor shapes, two threads, a fixed seed."""

import os

import pytest

if not os.environ.get("HAWK_NO_TYPECHECK"):
    # Before anything of hawk is imported: each jaxtyping signature in it is then checked at every call.
    from jaxtyping import install_import_hook

    install_import_hook("hawk", "beartype.beartype")

import torch
from hypothesis import settings

settings.register_profile("hawk", deadline=None, derandomize=True, database=None)  # no test depends on time or luck
settings.load_profile("hawk")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
# Fixed kernels, and torch.empty() filled with NaN: a test that reads memory nobody wrote goes red.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.use_deterministic_algorithms(True)
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Give every test the same torch seed, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Run the test in an empty working folder and return it."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder

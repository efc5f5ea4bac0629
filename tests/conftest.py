"""What every test runs under: checked tensor shapes, two threads, a fixed seed."""

import gc
import os

import jaxtyping
import pytest

CHECKED_CALLS = 200
"""The calls of a test whose signatures are checked: its first ones, since a check takes longer than a tiny forward."""


class FirstCalls(type(jaxtyping.config)):
    """jaxtyping's settings, which a checked function reads at every call; they disable the checks after some calls."""

    calls, disabled = 0, False

    @property
    def jaxtyping_disable(self) -> bool:
        self.calls += 1
        return self.disabled or self.calls > CHECKED_CALLS

    @jaxtyping_disable.setter
    def jaxtyping_disable(self, disabled: bool) -> None:
        self.disabled = disabled


def names_shapes(made):
    """Whether a function, or a class by its fields, names the shape of an array; mypy checks all other types."""
    return any("[Tensor" in str(hint) or "[np.ndarray" in str(hint) for hint in made.__annotations__.values())


def of_shapes(jaxtyped):
    """jaxtyping's decorator for what names shapes, but not inside a function: it would be compiled at every call."""

    def decorator(*, typechecker):
        checked = jaxtyped(typechecker=typechecker)
        return lambda made: checked(made) if names_shapes(made) and "<locals>" not in made.__qualname__ else made

    return decorator


if not os.environ.get("HAWK_NO_TYPECHECK"):
    # Before anything of hawk is imported, so that every jaxtyping signature in it is checked.
    jaxtyping.install_import_hook("hawk", "beartype.beartype")
    jaxtyping.config.__class__ = FirstCalls
    jaxtyping.jaxtyped = of_shapes(jaxtyping.jaxtyped)  # what the hook writes above each function

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("hawk", deadline=None, derandomize=True, database=None)  # no test depends on time or luck
settings.load_profile("hawk")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
# Fixed kernels, and torch.empty() filled with NaN: a test that reads memory nobody wrote goes red.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.use_deterministic_algorithms(True)
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over all that was imported: it stays."""
    gc.freeze()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Give every test the same torch seed, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def checked_calls() -> None:
    """Check the signatures of the first calls of every test."""
    jaxtyping.config.calls = 0


@pytest.fixture
def unchecked():
    """No type checks: a test sees what a caller sees who passes what the signature does not allow."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """What tests measure is kept for their run only, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAWK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Run the test in an empty working folder and return it."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """A tiny random model folder with draft heads, 4x6 tokens of 8 pixels; tests that damage it copy it first."""
    import json

    from safetensors.torch import save_file

    from hawk.decoding.sampling import SamplingParams
    from hawk.drafters.feature import FeatureConfig, FeatureDrafter
    from hawk.drafters.heads import DraftHeads, HeadsConfig
    from hawk.drafters.settings import FusedSettings
    from hawk.models.folder import HEADS_FOLDER, save_model, target_fingerprint
    from hawk.models.llamagen.target import LlamaGen, LlamaGenConfig
    from hawk.models.llamagen.words import StaticTextEncoder
    from hawk.models.tokenizers.fsq import FSQConfig, FSQTokenizer

    torch.manual_seed(0)
    text, folder = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("models") / "tiny"
    words = ["apple", "background", "blue", "cat", "green", "on", "red"]
    (text / "words.txt").write_text("\n".join(words))
    (text / "text.json").write_text(json.dumps({"tokens": 6, "context": 1, "position_channels": 4}))
    vectors = torch.randint(-127, 127, (len(words), 4), dtype=torch.int8)
    save_file({"vectors": vectors, "scales": torch.full((len(words),), 1 / 127).half()}, text / "words.safetensors")
    tokenizer = FSQTokenizer(FSQConfig((4, 3), (4, 8, 8), (8, 8, 8), (1, 1, 1)))
    encoder = StaticTextEncoder.load(text)
    shape = LlamaGenConfig(
        dim=16,
        n_layer=2,
        n_head=2,
        multiple_of=16,
        vocab_size=12,
        caption_dim=encoder.width,
        caption_tokens=6,
        height=4,
        width=6,
    )
    target = LlamaGen(shape)
    target.initialize(0.3)
    torch.nn.init.normal_(target.output.weight, std=0.5)
    heads = DraftHeads(HeadsConfig(16))
    defaults = SamplingParams(temperature=0.8, cfg_scale=2.0)
    save_model(folder, "tiny", target, tokenizer, text, defaults, heads, FusedSettings.unfitted(), "# Tiny\n")
    FeatureDrafter(FeatureConfig(16, heads=2)).save(folder / HEADS_FOLDER, target_fingerprint(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory):
    """A folder as FLAN-T5's is on the hub, 12 wide: a unigram tokenizer that ends a caption with </s>, and weights."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["▁a", "▁red", "▁blue", "▁apple", "▁cat", "▁dog", "▁on", "▁bright"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,-\"'", "▁"]
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((w, -2.0) for w in words),
        *((c, -9.0) for c in letters),
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("t5") / "flan-t5-tiny"
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)
    config = T5Config(vocab_size=len(vocabulary), d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=3)
    config.feed_forward_proj, config.is_gated_act, config.dense_act_fn = "gated-gelu", True, "gelu_new"
    torch.manual_seed(0)
    T5EncoderModel(config).save_pretrained(folder)
    return folder

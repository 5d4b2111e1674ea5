"""An ONNX file computes what the model computes, for any number of images, and says how to use it."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import pfedst
from pfedst.adapters import AttentionAdapter, LinearHead, LoRATower, PromptLearner, TransportPrompts, WholeModel
from pfedst.encoders import FrozenCLIP, Pixels
from pfedst.errors import ConfigurationError, StateError
from pfedst.inference import onnx as onnx_module
from pfedst.inference.onnx import PortableModel, build_onnx
from pfedst.inference.onnx_export import onnx_of, prior_words
from pfedst.methods.priors import TargetPrior
from pfedst.seeds import generator
from pfedst.testing.small import encoder
from tests.inference.models import CLASSES, SmallCNN, head_of, moved, pictures, side_network, site_model

DOCS = Path(__file__).parents[2] / "docs"


def images(count=9, size=32):
    return torch.randn(count, 3, size, size, generator=generator(1))


def probabilities_of(file, batch):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["probabilities", "logits"], {"images": batch.numpy()})


# -- a whole file ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A personal model with averaged patches, LoRA, temperature and another prior, its file, and eight pictures."""
    folder = tmp_path_factory.mktemp("onnx")
    model = site_model(
        FrozenCLIP("vit-nano", "random", image_size=32, token_grid=2),
        effective=torch.tensor([0.6, 0.3, 0.1]),
        site_prior=torch.tensor([0.2, 0.2, 0.6]),
        temperature=1.7,
    )
    files = pictures(folder)
    made, file = onnx_of(model, files, "balanced"), folder / "model.onnx"
    made.write(file)
    return model, made, files, file


def test_it_takes_any_number_of_images_and_answers_as_the_model(exported) -> None:
    model, made, _, file = exported
    for count in (1, 2, 11):  # none of them was traced, and two of them were not checked
        batch = images(count)
        probabilities, logits = probabilities_of(file, batch)
        with torch.no_grad():
            expected = model.adapter(model.encoder.extract(batch, "taps"))
        assert np.abs(logits - expected.numpy()).max() < 1e-3
        wanted = model.probabilities(expected, model.target("balanced"))
        assert np.abs(probabilities - wanted.numpy()).max() < 1e-5
    # the prior and the temperature count: without them the probabilities are others
    assert np.abs(probabilities - expected.softmax(1).numpy()).max() > 1e-2


def test_the_page_of_documentation_predicts_without_torch_and_pfedst(exported, tmp_path, monkeypatch) -> None:
    model, _, files, file = exported
    code = re.search(r"```python\n(.*?)```", (DOCS / "onnx.md").read_text(), re.DOTALL).group(1)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert not re.search("torch|pfedst", code)
    monkeypatch.chdir(tmp_path)
    for name, source in (("model.onnx", file), ("a.png", files[0]), ("b.png", files[1])):
        (tmp_path / name).write_bytes(source.read_bytes())
    names: dict = {}
    exec(code, names)
    expected = model.predict(["a.png", "b.png"], "balanced")
    assert names["classes"] == list(CLASSES)
    columns = expected[[f"probability {name}" for name in CLASSES]].to_numpy()
    assert np.abs(names["probabilities"] - columns).max() < 1e-5


def test_it_says_how_to_use_it_and_nothing_of_this_machine(exported) -> None:
    model, made, _, file = exported
    proto = onnx.load(file)
    onnx.checker.check_model(proto)
    about = {item.key: item.value for item in proto.metadata_props}
    assert json.loads(about["class_names"]) == list(CLASSES)
    preprocessing = json.loads(about["preprocessing"])
    assert preprocessing["mean"] == list(model.encoder.preprocessing.mean)
    assert (preprocessing["image_size"], preprocessing["resize_mode"]) == (32, "shortest")
    assert about["prior"] == "balanced: all classes equally frequent"
    assert about["pfedst_version"] == pfedst.__version__
    axes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input]
    assert axes == [["batch", 3, 32, 32]]
    assert [(v.name, v.type.tensor_type.shape.dim[0].dim_param) for v in proto.graph.output] == [
        ("logits", "batch"),
        ("probabilities", "batch"),
    ]
    content = file.read_bytes()
    for trace in (b"site-packages", b"stack_trace", b".py", str(Path(pfedst.__file__).parents[1]).encode()):
        assert trace not in content
    assert content == made.content
    assert made.worst_difference < 1e-5
    assert made.images == 8


def test_low_rank_updates_are_merged(exported) -> None:
    proto = onnx.load(exported[3])
    names = [tensor.name for tensor in proto.graph.initializer]
    assert [name for name in names if "side" in name]
    assert [name for name in names if "lora" in name] == []


# -- other adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda e: LinearHead(e, head_of(e)), id="linear"),
        pytest.param(lambda e: LinearHead(e, head_of(e), "cosine"), id="cosine"),
        pytest.param(lambda e: AttentionAdapter(e, head_of(e), batch_norm=True), id="attention"),
        pytest.param(lambda e: LoRATower(e, head_of(e), rank=2, targets=("q", "v", "mlp_in")), id="lora-tower"),
        pytest.param(lambda e: PromptLearner(e, head_of(e), words=3), id="prompts"),
        pytest.param(lambda e: side_network(e), id="side"),
    ],
)
def test_a_merged_adapter_computes_the_same_logits(make) -> None:
    adapter, batch = moved(make(encoder())), images(4)
    weights = encoder().compute_hash()
    portable = PortableModel(adapter).eval()
    with torch.no_grad():
        expected = adapter(encoder().extract(batch, adapter.needs))
        assert (portable(batch)[0] - expected).abs().max() < 1e-3 * expected.abs().max()
    assert expected.std() > 0.1  # else a constant would do
    assert encoder().compute_hash() == weights
    assert not [name for name, _ in portable.named_parameters() if re.search(r"lora|\.[AB]$|context", name)]


def test_a_model_without_an_encoder() -> None:
    pixels = Pixels(32)
    adapter = moved(SmallCNN(pixels, head_of(pixels)))
    adapter.train()
    adapter.classify_in_float32()  # as in a run: hooks at its layers
    made = build_onnx(pixels, adapter, CLASSES, images(), 0.5, torch.tensor([1.0, 0.0, -1.0]))
    assert adapter.training  # as before
    adapter.eval()
    with torch.no_grad():
        logits = adapter(pixels.extract(images(5), "images"))
    expected = (logits * 0.5 + torch.tensor([1.0, 0.0, -1.0])).softmax(1)
    assert np.allclose(probabilities_of(made.content, images(5))[0], expected.numpy(), atol=1e-6)


# -- refusals ----------------------------------------------------------------------------------------------------------


class CountsImages(WholeModel):
    """Its graph would be that of the number of images with which it was traced."""

    def __init__(self, encoder, head) -> None:
        super().__init__(encoder, head)
        self.fc = nn.Linear(3, len(head.class_names))

    def forward(self, taps):
        pixels = taps.tensors[0]
        return self.fc(pixels.reshape(len(pixels), 3, -1).mean(-1))


class MergesWrongly(SmallCNN):
    def merged(self):
        copied = super().merged()
        copied.fc.bias += torch.tensor([0.0, 0.01, 0.0])
        return copied


def test_a_graph_for_one_number_of_images_is_refused_by_the_name_of_the_adapter() -> None:
    pixels = Pixels(8)
    with pytest.raises(ConfigurationError, match=r"CountsImages cannot be exported to ONNX: .*batch"):
        build_onnx(pixels, moved(CountsImages(pixels, head_of(pixels))), CLASSES, images(size=8))


def test_transport_prompts_are_refused_by_name() -> None:
    adapter = TransportPrompts(encoder(), head_of(encoder()), words=3)
    with pytest.raises(ConfigurationError, match="TransportPrompts cannot be exported: the number of steps"):
        build_onnx(encoder(), adapter, CLASSES, images())


def test_a_file_that_computes_other_probabilities_is_refused() -> None:
    pixels = Pixels(32)
    adapter = moved(MergesWrongly(pixels, head_of(pixels)))
    with pytest.raises(StateError, match=r"other probabilities than MergesWrongly: largest difference [12]\.\de-03"):
        build_onnx(pixels, adapter, CLASSES, images())


def test_too_few_images_a_missing_package_and_too_large_an_encoder(monkeypatch) -> None:
    adapter = moved(LinearHead(encoder(), head_of(encoder())))
    with pytest.raises(ConfigurationError, match="needs 8 images or more, and 7 are given"):
        build_onnx(encoder(), adapter, CLASSES, images(7))
    monkeypatch.setattr(onnx_module, "LARGEST_BYTES", 1000)
    with pytest.raises(ConfigurationError, match="bytes, and a file is limited to 2 GB"):
        build_onnx(encoder(), adapter, CLASSES, images())
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'pfedst\[onnx\]'"):
        build_onnx(encoder(), adapter, CLASSES, images())


def test_another_class_counts_only_where_the_first_two_differ() -> None:
    expected = torch.tensor([[0.5, 0.4, 0.1], [0.50005, 0.49995, 0.0]], dtype=torch.float64)
    found = torch.tensor([[0.4, 0.5, 0.1], [0.49995, 0.50005, 0.0]], dtype=torch.float64)
    difference, other = onnx_module._compare(found, expected)
    assert (round(difference, 9), other) == (0.1, 1)
    assert onnx_module._compare(found * float("nan"), expected)[0] == float("inf")


def test_a_prior_in_words_has_no_folder() -> None:
    frequencies = torch.tensor([0.5, 0.5])
    assert prior_words(TargetPrior("/home/someone/wards.json", frequencies, "")) == (
        "class frequencies of the file wards.json"
    )
    assert prior_words(TargetPrior()).startswith("training:")

"""Image towers of other libraries, run block by block: the table of docs/encoders.md.

    python benchmarks/encoders.py run
    python benchmarks/encoders.py table
    python benchmarks/encoders.py docs

Each tower is built with RANDOM WEIGHTS. Its pooled embedding of two random images is compared with the forward pass of
the library that it comes from, and an untrained side network with both. Differences are relative: the largest one over
the largest absolute value of an embedding. `docs` writes the table into the page.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from environment import environment
from torch import Tensor

from pfedst.adapters import SideNetwork
from pfedst.encoders import AnchorHead, FrozenCLIP
from pfedst.encoders.preparation import named

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "encoders.json"
PAGE = HERE.parent / "docs" / "encoders.md"
BEGIN, END = "<!-- written by python benchmarks/encoders.py docs -->", "<!-- end of the table -->"
MODELS: dict[str, tuple[str, int]] = {
    "CLIP ViT-B/16": ("ViT-B-16-quickgelu", 224),
    "BiomedCLIP": ("BiomedCLIP", 224),
    "SigLIP": ("ViT-B-16-SigLIP", 224),
    "SigLIP2": ("ViT-B-16-SigLIP2", 224),
    "EVA02-CLIP": ("EVA02-B-16", 224),
    "PE-Core": ("PE-Core-B-16", 224),
    "MobileCLIP": ("MobileCLIP-B", 224),
    "CoCa": ("coca_ViT-B-32", 224),
    "DINOv2 with registers": ("timm/vit_small_patch14_reg4_dinov2", 224),
    "DINOv3": ("timm/vit_base_patch16_dinov3", 256),
    "DINOv3 plus": ("timm/vit_small_plus_patch16_dinov3", 256),
    "CLIP ResNet-50": ("RN50", 224),
    "ConvNeXt": ("convnext_base", 224),
    "Swin": ("timm/swin_tiny_patch4_window7_224", 224),
}
"""Model and image size by the name of the architecture, at base size or smaller."""
NOT_RUN: dict[str, str] = {
    "BiomedCLIP": "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    "SigLIP": "hf-hub:timm/ViT-B-16-SigLIP",
    "SigLIP2": "hf-hub:timm/ViT-B-16-SigLIP2",
    "EVA02-CLIP": "hf-hub:timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k",
    "PE-Core": "hf-hub:timm/PE-Core-B-16",
    "DINOv3": "timm/vit_base_patch16_dinov3.lvd1689m",
}
"""Names with pretrained weights that need the model hub: parsed, not run here."""


def measure(model: str, image_size: int) -> dict[str, Any]:
    """Compare one tower with its library."""
    encoder = FrozenCLIP(model, "random", image_size)
    tower, spec = encoder.tower, encoder.spec
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = library_forward(tower, images)
    ours = encoder.extract(images, "pooled").tensors[0]
    row: dict[str, Any] = {
        "model": model,
        "image_size": image_size,
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        "prefix_tokens": tower.tokens - tower.patches,
        "embedding_of": "class token" if tower.class_token else "pooled",
        "last_block": encoder.last_block,
        "offers": list(encoder.offers),
        "limits": encoder.limits,
        "targets": list(tower.targets),
        "preprocessing": named(encoder.preprocessing).removeprefix(", ") or "CLIP's",
        "difference": relative(ours, theirs),
    }
    if "taps" in encoder.offers:
        head = AnchorHead("ab", spec.embedding, 1.0, "prototypes")
        head.set_anchors(torch.eye(2, spec.embedding))
        with torch.no_grad():
            side = SideNetwork(encoder, head).embed(encoder.extract(images, "taps"))
        row["side_network_difference"] = relative(side, theirs)
    return row


def library_forward(tower: Any, images: Tensor) -> Tensor:
    """Return embeddings (B, E) by the forward pass of open_clip or timm."""
    network = next(getattr(tower, name) for name in ("visual", "vit", "network") if hasattr(tower, name))
    output = network(images)
    pooled: Tensor = output[0] if isinstance(output, tuple) else output
    head = getattr(tower, "head", None)
    return pooled if head is None else head(pooled)


def relative(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference over the largest absolute value."""
    return float((one - other).abs().max() / other.abs().max())


def run() -> None:
    """Measure every tower and write the result."""
    rows = {}
    for name, (model, image_size) in MODELS.items():
        rows[name] = measure(model, image_size)
        print(name, rows[name]["difference"], flush=True)
    libraries = {"open_clip": open_clip.__version__, "timm": timm.__version__}
    RESULT.write_text(json.dumps({"environment": environment() | libraries, "rows": rows}, indent=1) + "\n")


def table() -> None:
    """Print the table of the result."""
    result = json.loads(RESULT.read_text())
    print(
        "| architecture | `--model.encoder.model` | embedding | prefix tokens | offers | preprocessing | difference | "
        "side network | LoRA | with pretrained weights, not run here |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, row in result["rows"].items():
        side = row.get("side_network_difference")
        cells = [
            name,
            f"`{row['model']}`, {row['image_size']} px, {row['parameters'] / 1e6:.0f} M",
            row["embedding_of"],
            str(row["prefix_tokens"]),
            ", ".join(row["offers"]),
            row["preprocessing"],
            f"{row['difference']:.0e}",
            "no: " + row["limits"] if side is None else f"{side:.0e}",
            ", ".join(row["targets"]) or "no",
            f"`{NOT_RUN[name]}`" if name in NOT_RUN else "",
        ]
        print(f"| {' | '.join(cells)} |")
    versions = (f"{library} {result['environment'][library]}" for library in ("open_clip", "timm", "torch"))
    print(f"\nRANDOM WEIGHTS, two random images; {', '.join(versions)}.")


def docs() -> None:
    """Write the table into its page."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        table()
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text.getvalue().strip()}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table", "docs"])
    {"run": run, "table": table, "docs": docs}[parser.parse_args().command]()

"""Adapters: the small trainable modules. They do not depend on the federated methods."""

from pfedst.adapters.adapter import Adapter, AdapterFactory, WholeModel
from pfedst.adapters.embedding import AttentionAdapter, LinearHead
from pfedst.adapters.lora import LoRALinear, lora_layers, switches_open, with_lora_merged
from pfedst.adapters.lora_tower import LoRATower
from pfedst.adapters.prompts import PromptLearner, TransportPrompts
from pfedst.adapters.side_network import SideNetwork
from pfedst.adapters.torch_module import TorchModule

__all__ = [
    "Adapter",
    "AdapterFactory",
    "AttentionAdapter",
    "LinearHead",
    "LoRALinear",
    "LoRATower",
    "PromptLearner",
    "SideNetwork",
    "TorchModule",
    "TransportPrompts",
    "WholeModel",
    "lora_layers",
    "switches_open",
    "with_lora_merged",
]

"""Adapters: the small trainable modules. They know nothing of methods."""

from pfedst.adapters.adapter import Adapter, AdapterFactory
from pfedst.adapters.lora import LoRALinear, lora_layers, switches_open
from pfedst.adapters.side_network import SideNetwork

__all__ = ["Adapter", "AdapterFactory", "LoRALinear", "SideNetwork", "lora_layers", "switches_open"]

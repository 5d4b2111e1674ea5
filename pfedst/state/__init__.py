"""State on disk: whole files, whole folders, and what of a run is kept."""

from pfedst.state.files import clear_unfinished, json_bytes, write_atomically, write_json, writing
from pfedst.state.run_state import RunState, StateSaver
from pfedst.state.snapshot import Snapshot

__all__ = [
    "RunState",
    "Snapshot",
    "StateSaver",
    "clear_unfinished",
    "json_bytes",
    "write_atomically",
    "write_json",
    "writing",
]

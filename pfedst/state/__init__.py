"""State on disk: whole files, whole folders, and what of a run is kept.

The modules `snapshot` and `run_state` import torch. They are not imported here: a report needs no
torch.
"""

from pfedst.state.files import clear_unfinished, json_bytes, write_atomically, write_json, writing

__all__ = ["clear_unfinished", "json_bytes", "write_atomically", "write_json", "writing"]

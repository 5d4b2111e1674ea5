"""Child processes that end with their parent: forked from a process that has imported everything, or spawned."""

from pfedst.child_processes.child import ChildProcess, start_child
from pfedst.child_processes.fork_server import inherited_bytes, start_fork_server, stop_fork_server
from pfedst.child_processes.parent import ParentProcess

__all__ = ["ChildProcess", "ParentProcess", "inherited_bytes", "start_child", "start_fork_server", "stop_fork_server"]

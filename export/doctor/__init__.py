"""What an environment has and lacks, as checks. Needs the base install alone."""

from .check import STATES, Check
from .checkpoint import check_checkpoint
from .environment import check_imports, check_processor, check_python
from .machine import check_port, check_room, check_socket
from .packages import EXTRAS, check_packages, requirements

__all__ = [
    "EXTRAS",
    "STATES",
    "Check",
    "check_checkpoint",
    "check_imports",
    "check_packages",
    "check_port",
    "check_processor",
    "check_python",
    "check_room",
    "check_socket",
    "requirements",
]

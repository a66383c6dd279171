"""What the containers of a deployment may do: as little as they can work with."""

from __future__ import annotations

from typing import Any


def pod_rights() -> dict[str, Any]:
    """``securityContext`` of a pod: a user without any rights."""
    return {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_rights() -> dict[str, Any]:
    """``securityContext`` of a container in a pod."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def service_rights() -> dict[str, Any]:
    """The same of a service in a compose file; only ``/tmp`` can be written."""
    return {
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }

"""``push_to_hub`` of the four classes and the configuration."""

from __future__ import annotations

import os
import tempfile
from typing import Any


class PushError(OSError):
    """An upload that did not happen; the message says why."""


class Pushes:
    """Something with ``save_pretrained`` that may be uploaded."""

    save_pretrained: Any

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        use_auth_token: str | bool | None = None,
        use_temp_dir: bool | None = None,
        **options: Any,
    ) -> str:
        """Save into a folder that is gone afterwards, and upload that to the hub.

        ``options`` are those of ``save_pretrained``; ``use_temp_dir`` changes nothing.
        Returns the commit's address.
        Raises :class:`PushError` without ``huggingface_hub``, a network or the rights.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **options)
            return push_folder(
                folder,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                private=private,
                token=token,
                use_auth_token=use_auth_token,
                revision=revision,
                create_pr=create_pr,
            )


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    use_auth_token: str | bool | None = None,
    **options: Any,
) -> str:
    """Upload a folder to ``repo_id``, which is created if there is none."""
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise PushError(
            "push_to_hub needs the huggingface_hub package: pip install huggingface-hub"
        ) from None
    token = use_auth_token if token is None else token  # its older name
    endpoint = os.environ.get("HF_ENDPOINT")  # the package reads it when imported
    api: Any = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=os.fspath(folder), **options
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PushError(f"{repo_id} was not uploaded to the hub: {reason}") from None
    return str(getattr(commit, "commit_url", commit))

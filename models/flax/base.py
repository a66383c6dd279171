"""What both Flax classes share: weights, files, the vocabulary's size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from ..checkpoints import LazyArray, save_weights
from ..config import OPTConfig
from ..pretrained import Pretrained, format_to_save, generation_defaults
from ..push import Pushes, push_folder
from ..weights import weight_shapes
from .modules import OPTModule, empty_cache
from .params import (
    Tree,
    as_array,
    by_path,
    cast_floating,
    plain,
    random_params,
    resized,
    tree_path,
)


class FlaxOPTBase(Pushes):
    """Weights by name and the files they come from; what is computed is in
    ``classes.py``."""

    config_class = OPTConfig
    base_model_prefix = "model"
    framework = "flax"
    main_input_name = "input_ids"
    module_class: type[OPTModule]
    generation_config: Any  # of the class with a head: ``generation.py``

    def __init__(
        self,
        config: OPTConfig,
        input_shape: tuple[int, int] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        *,
        remat: bool = False,
    ) -> None:
        """Random weights from ``seed``, none with ``_do_init=False``.

        ``dtype`` is the computation's; ``remat`` scans over rematerialised layers,
        for training in less memory. No weight depends on ``input_shape``.
        """
        self.config = config = OPTConfig.of(config)
        self.name_or_path = ""
        self.dtype = jnp.dtype(dtype)
        self.input_shape = input_shape
        self.key = jax.random.PRNGKey(seed)
        self._params: Tree | None = None
        self._module = self.module_class(deepcopy(config), self.dtype, remat)
        if _do_init:
            self._params = self.init_weights(self.key, input_shape)

    @property
    def module(self) -> Any:
        """The linen module; ``module.apply({"params": params}, input_ids, …)``."""
        # Compiled programs are found again by their module, so its configuration is a
        # copy that nobody changes; the model's own may have been.
        if self._module.config != self.config:
            self._module = self._module.clone(config=deepcopy(self.config))
        return self._module

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        """Transformers' hook, by which its ``FlaxAutoModel`` makes a model."""
        return cls(config, **kwargs)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has a head to generate with."""
        return cls.module_class.head

    def enable_gradient_checkpointing(self) -> None:
        """``remat=True`` from now on: training in less memory."""
        self._module = self._module.clone(remat=True)

    @property
    def params(self) -> Tree:
        """The weights. ValueError in a model made with ``_do_init=False``."""
        if self._params is None:
            raise ValueError(
                "this model holds no weights (_do_init=False): pass params= to calls, "
                "init_weights makes them"
            )
        return self._params

    @params.setter
    def params(self, params: Mapping[str, Any]) -> None:
        if self._params is None:
            raise ValueError("a model made with _do_init=False holds no weights")
        params = plain(params)
        self._check_params(params)
        self._params = params

    def _check_params(self, params: Mapping[str, Any]) -> None:
        """ValueError naming the weights that ``params`` lacks."""
        if missing := self.required_params - set(by_path(params)):
            raise ValueError(
                f"params lacks {len(missing)} of the model's weights: "
                + ", ".join(sorted("/".join(path) for path in missing))
            )

    @property
    def params_shape_tree(self) -> Tree:
        """Shapes and dtypes of fresh ``params``, as ``jax.ShapeDtypeStruct``."""
        return jax.eval_shape(self.init_weights, self.key)

    @property
    def required_params(self) -> set[tuple[str, ...]]:
        """The paths of all weights in ``params``."""
        head = self.module_class.head
        shapes = weight_shapes(self.config, head=head)
        return {tree_path(name, head=head) for name in shapes}

    def init_weights(
        self,
        rng: Any,
        input_shape: tuple[int, int] = (1, 1),
        params: Mapping[str, Any] | None = None,
    ) -> Tree:
        """Random weights; those in ``params`` are taken instead of random ones."""
        fresh = random_params(self.config, rng, head=self.module_class.head)
        if params is None:
            return fresh
        return unflatten_dict(by_path(fresh) | by_path(params))

    def init_cache(self, batch_size: int, max_length: int) -> Tree:
        """An empty cache for ``past_key_values``, to hold ``max_length`` tokens."""
        limit = self.config.max_position_embeddings
        if not 0 < max_length <= limit:
            raise ValueError(
                f"max_length should be from 1 to max_position_embeddings {limit}, "
                f"got {max_length}"
            )
        layers = empty_cache(self.config, batch_size, max_length, self.dtype)
        return {"layers": layers, "index": jnp.zeros([], jnp.int32)}

    def to_fp32(self, params: Tree, mask: Any = None) -> Tree:
        """``params`` in float32; ``mask`` is a tree of booleans: which to convert."""
        return cast_floating(params, jnp.float32, mask)

    def to_fp16(self, params: Tree, mask: Any = None) -> Tree:
        """``params`` in float16; see :meth:`to_fp32`."""
        return cast_floating(params, jnp.float16, mask)

    def to_bf16(self, params: Tree, mask: Any = None) -> Tree:
        """``params`` in bfloat16; see :meth:`to_fp32`."""
        return cast_floating(params, jnp.bfloat16, mask)

    def num_parameters(self, params: Tree | None = None) -> int:
        """Number of weights; a tied head counts once."""
        return sum(x.size for x in jax.tree.leaves(params or self.params))

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, params: Tree | None = None
    ) -> Tree:
        """Change the vocabulary's size: old rows stay, new ones start random.

        A tied head follows by itself, an untied one is resized too. Returns the new
        ``params``, which the model holds too unless ``params`` were given. Without a
        size nothing changes.
        """
        held = params is None
        old = plain(self.params if held else params)
        if new_num_tokens is None:
            return old
        new = resized(
            self.config, new_num_tokens, old, self.key, head=self.module_class.head
        )
        self.config.vocab_size = new_num_tokens
        if held:
            self._params = new
        return new

    # --- files ----------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: Any = jnp.float32,
        *,
        _do_init: bool = True,
        input_shape: tuple[int, int] = (1, 1),
        seed: int = 0,
        remat: bool = False,
        **options: Any,
    ) -> Any:
        """A model with a checkpoint's weights; ``(model, params)`` with
        ``_do_init=False``.

        ``dtype`` is the computation's; the weights stay in the file's. ``options``:
        ``config``, ``ignore_mismatched_sizes``, ``format``, ``revision``,
        ``cache_dir``, ``local_files_only``, ``force_download``, ``token``,
        ``subfolder``, and fields of the configuration to change. Weights are read one
        after the other.
        Raises ``CheckpointError`` (``models.checkpoints``) or ``WeightsError``.
        """
        head = cls.module_class.head
        checkpoint = Pretrained.open(
            pretrained_model_name_or_path, head=head, **options
        )
        config = checkpoint.config
        model = cls(
            config, input_shape, seed=seed, dtype=dtype, _do_init=False, remat=remat
        )
        tree = {}
        for name in checkpoint.expected:
            if name in checkpoint.usable:
                path = tree_path(name, head=head)
                value = checkpoint.weights[name]
                tree[path] = as_array(value.T if path[-1] == "kernel" else value)
        if checkpoint.usable != checkpoint.expected.keys():
            tree = by_path(random_params(config, model.key, head=head)) | tree
        params = unflatten_dict(tree)
        model.name_or_path = os.fspath(pretrained_model_name_or_path)
        if head:
            model.generation_config = generation_defaults(checkpoint)
        if not _do_init:
            return model, params
        model._params = params
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        params: Tree | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        *,
        safe_serialization: bool | None = None,
        format: str | None = None,
        **needless: Any,
    ) -> None:
        """Write ``config.json`` and the weights, as ``checkpoints.save_weights`` does.

        ``safe_serialization=False`` is ``format="msgpack"``.
        """
        format = format_to_save(format, safe_serialization, "msgpack", needless)
        head = self.module_class.head
        given = plain(self.params if params is None else params)
        self._check_params(given)
        tree = by_path(given)

        def item(name: str) -> Any:
            path = tree_path(name, head=head)
            value = tree[path]
            if path[-1] != "kernel":
                return value
            return LazyArray(
                value.shape[::-1], value.dtype, lambda: np.asarray(value).T
            )

        self.config.save_pretrained(save_directory)
        if head:
            self.generation_config.save_pretrained(save_directory)
        save_weights(
            save_directory,
            [(name, item(name)) for name in weight_shapes(self.config, head=head)],
            format=format,
            max_shard_size=max_shard_size,
            base_model=not head,
        )
        if push_to_hub:
            name = needless.pop("repo_id", None) or os.path.basename(save_directory)
            push_folder(save_directory, name, **needless)

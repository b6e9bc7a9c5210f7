"""What all Transformer-XL models share: initialisation, tied weights, changing the vocabulary."""

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .adaptive import AdaptiveEmbedding, AdaptiveLogSoftmax
from .configuration import TransfoXLConfig

READING_ERRORS = (
    SafetensorError, pickle.UnpicklingError, struct.error, LookupError, EOFError, OSError, RuntimeError
)  # fmt: skip


class TransfoXLPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and tied weights of all Transformer-XL models."""

    config: TransfoXLConfig
    config_class = TransfoXLConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer must divide it by the accumulation steps
    _supports_sdpa = True
    _is_stateful = True  # refuses generation methods that would have to take tokens back
    _no_split_modules: ClassVar[list[str]] = ["TransfoXLLayer"]
    _keys_to_ignore_on_load_unexpected: list[str] = [r"pos_emb\.inv_freq"]  # noqa: RUF012 - instances replace it

    def __init__(self, config: TransfoXLConfig) -> None:
        config.check()
        super().__init__(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model as transformers does, but refuse damaged files by name, and tensors that the files have lost.

        A head of which the files hold nothing starts at random, as everywhere in transformers.

        Raises:
            OSError: a file is missing or damaged.
            ValueError: the files lack some tensors of the transformer or of its head, or hold some of another shape, or
                hold more than tensors; or `device_map` means more than one device.
        """
        source, folder = pretrained_model_name_or_path, None
        if source is not None and Path(source).is_dir():
            folder = Path(source, kwargs.get("subfolder", ""))
            is_described = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
            if "config" not in kwargs and not is_described:
                raise OSError(f"{folder / 'config.json'} is missing: copy it from where the weights came from.")
        try:
            model, info = super().from_pretrained(
                source, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except READING_ERRORS as error:
            if folder is not None:
                _refuse_damage(folder, error)
            raise
        _refuse_losses(info["missing_keys"], model, source)
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            name, found, expected = sorted(info["mismatched_keys"])[0]
            raise ValueError(
                f"{name} has shape {list(found)} in {source} but must be {list(expected)}: "
                "take the config.json that belongs to the weights, or start it anew with ignore_mismatched_sizes=True."
            )
        devices = {str(device) for device in getattr(model, "hf_device_map", {}).values()}
        if len(devices) > 1 or "disk" in devices:
            raise ValueError(
                f"device_map puts parts of the model on {', '.join(sorted(devices))}, but its parts share weights and "
                "must be on one device: pass device_map='cuda:0', or none."
            )
        return (model, info) if output_loading_info else model

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # the name is looked up at each call

    def _init_weights(self, module: nn.Module) -> None:
        """Start the parameters as the reference's `init`, `init_range`, `init_std` and `proj_init_std` say.

        Keyed on modules that own parameters: transformers passes over the others.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            self._init_matrix(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.normal_(module.weight, 1.0, self.config.init_std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.ParameterList):  # the projections of embedding and softmax
            for projection in module:
                init.normal_(projection, 0.0, self.config.proj_init_std)
        else:
            for name, parameter in module.named_parameters(recurse=False):
                if name in ("cluster_bias", "r_bias"):
                    init.zeros_(parameter)
                else:
                    self._init_matrix(parameter)

    def _init_matrix(self, parameter: Tensor) -> None:
        if self.config.init == "uniform":
            init.uniform_(parameter, -self.config.init_range, self.config.init_range)
        else:
            init.normal_(parameter, 0.0, self.config.init_std)

    def tied_parameters(self) -> dict[str, str]:
        """Names of parameters that are another one, and of that other; it depends on the config."""
        return {}

    def post_init(self) -> None:
        """Finish construction (called by transformers' models at the end of `__init__`)."""
        self._tied_weights_keys = self.tied_parameters()  # what saving reads
        super().post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """What loading and tying read: also without `tie_word_embeddings`, projections may be tied."""
        if not all_submodels:
            return self.tied_parameters()
        tied: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels=True)
        return tied

    def get_output_embeddings(self) -> None:
        """None: the softmax has one matrix a cluster."""

    def _refuse_data_parallel(self) -> None:
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "torch.nn.DataParallel must not wrap this model: its replicas lose the softmax projections and mix up "
                "memories. Use DistributedDataParallel (start with torchrun), or show one GPU (CUDA_VISIBLE_DEVICES=0)."
            )

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        *,
        layer: int = -1,
    ) -> AdaptiveEmbedding:
        """Change the size of the vocabulary by growing or shrinking one cluster at its end.

        Ids in later clusters move: only with the last cluster, the default, do all tokens keep their ids. For another,
        move the tokens in the tokenizer too (`TransfoXLTokenizer.move_added_token`).

        Args:
            new_num_tokens: new V; None for the present one.
            pad_to_multiple_of: round V up to a multiple of this.
            mean_resizing: True starts new rows at the mean of their cluster, False as at initialisation.
            layer: cluster to resize, counted from 0, or from the end if negative.

        Returns:
            The embedding.
        """
        old = self.config.vocab_size
        new = old if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            new = -(-new // pad_to_multiple_of) * pad_to_multiple_of
        cluster, change = self._cluster_to_resize(layer, new), new - old
        embedding: AdaptiveEmbedding = self.get_input_embeddings()
        if change == 0:
            return embedding
        cutoffs = self.config.cluster_cutoffs
        end = cutoffs[cluster] if cluster < len(cutoffs) else old
        for module in [
            module for module in self.modules() if isinstance(module, AdaptiveEmbedding | AdaptiveLogSoftmax)
        ]:
            module.resize(cluster, change)
            if not mean_resizing:
                self._restart_rows(module, cluster, end, change)
        self.config.vocab_size = new
        if self.config.adaptive:
            self.config.cutoffs = [cutoff + change * (i >= cluster) for i, cutoff in enumerate(cutoffs)]
        self.tie_weights()
        return embedding

    def _cluster_to_resize(self, layer: int, new_size: int) -> int:
        edges = [0, *self.config.cluster_cutoffs, self.config.vocab_size]
        n_clusters = len(edges) - 1
        if not -n_clusters <= layer < n_clusters:
            raise ValueError(f"layer={layer} must be a cluster: -{n_clusters} to {n_clusters - 1}.")
        cluster = layer % n_clusters
        smallest = self.config.vocab_size - (edges[cluster + 1] - edges[cluster]) + 1
        if new_size < smallest:
            raise ValueError(
                f"new_num_tokens={new_size} must be at least {smallest}: cluster {cluster} keeps one token; "
                "pass layer= to shrink another cluster too."
            )
        return cluster

    @torch.no_grad()
    def _restart_rows(
        self, module: AdaptiveEmbedding | AdaptiveLogSoftmax, cluster: int, end: int, change: int
    ) -> None:
        tables = module.emb_layers if isinstance(module, AdaptiveEmbedding) else module.out_layers
        start = 0 if module.div_val == 1 else [0, *self.config.cluster_cutoffs][cluster]
        table = tables[0 if module.div_val == 1 else cluster]
        new_rows = slice(end - start, end - start + max(change, 0))
        for parameter in table.parameters():
            if parameter.dim() == 1:
                parameter[new_rows] = 0
            else:
                self._init_matrix(parameter[new_rows])


def _refuse_damage(folder: Path, error: Exception) -> None:
    """Raise an error that names the first weight file of a folder that cannot be read; nothing if all can."""
    for path in sorted([*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    continue
            except SafetensorError as reason:
                raise OSError(f"{path} is no whole safetensors file ({reason}): copy or download it again.") from error
        with path.open("rb") as file:
            is_old_format = file.read(1) == b"\x80"  # a bare pickle, as torch wrote them before version 1.6
        if not zipfile.is_zipfile(path) and (not is_old_format or _is_end_of_file(error)):
            raise OSError(f"{path} is no whole PyTorch file: copy or download it again.") from error
    if isinstance(error, pickle.UnpicklingError):
        raise ValueError(
            f"a .bin file in {folder} holds more than tensors, and nothing in it was executed: "
            "take a file of a state_dict, or try `transformer-xl convert`."
        ) from error


def _is_end_of_file(error: Exception) -> bool:
    """Whether torch's reader of the older format, which fails in many ways, met the end of the file too early."""
    if isinstance(error, pickle.UnpicklingError):
        return "global" not in str(error).lower()  # else it names what it refused to call
    return isinstance(error, EOFError | LookupError | struct.error) or "unexpected EOF" in str(error)


def _refuse_losses(missing: set[str], model: TransfoXLPreTrainedModel, source: object) -> None:
    """Raise an error if the files hold only some of the transformer's tensors, or only some of the head's."""
    names = set(model.state_dict()) - model.tied_parameters().keys()
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    body = {name for name in names if name.startswith(prefix)}
    head = names - body
    lost = sorted(body & missing) or sorted(head & missing)
    if lost and set(lost) != head:
        raise ValueError(
            f"{source} lacks {len(lost)} of {len(names)} tensors, such as {lost[0]}: "
            "take the whole file, or the config.json that belongs to it."
        )


__all__ = ["TransfoXLPreTrainedModel"]

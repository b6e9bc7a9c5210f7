"""Transformer-XL (Dai et al. 2019, arXiv 1901.02860) as transformers classes, with old checkpoints' parameter names.

Reading order: the transformer, the language model, the classifier. The formulas are in attention.py, a layer in
layers.py, the softmax in adaptive.py, what is carried from segment to segment in memory.py, the order of padded rows in
padding.py, initialisation and tied weights in pretrained.py, the outputs in outputs.py.

Shapes: B batch, Q queries, M memory, K = M + Q keys, N heads, H head size, D model size, V vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from .adaptive import AdaptiveEmbedding, AdaptiveLogSoftmax
from .attention import DistanceTerms, Segments, VisibleKeys, key_distances, n_distances, sinusoid
from .cluster_losses import shared_by_two
from .configuration import TransfoXLConfig
from .dropout import Dropout
from .implementations import ATTENTION_FUNCTIONS, can_train_on_cpu, is_eager_cpu
from .layers import Shared, Surroundings, TransfoXLLayer, has_hooks
from .memory import TransfoXLCache, check_mems, empty_mems
from .outputs import TransfoXLLMHeadModelOutput, TransfoXLModelOutput, TransfoXLSequenceClassifierOutputWithPast
from .padding import RowAlignment, split_mask
from .pretrained import TransfoXLPreTrainedModel
from .sampling import DrawAmongBest
from .stepping import TokenStep


class TransfoXLModel(TransfoXLPreTrainedModel):
    """The layers, without a head: hidden states of a segment, and the memory for the next (section 3)."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.word_emb = AdaptiveEmbedding(
            config.vocab_size,
            config.d_embed,
            config.d_model,
            config.cluster_cutoffs,
            div_val=config.div_val,
            sample_softmax=config.sample_softmax > 0,
        )
        self.drop: nn.Module = Dropout(config.dropout)  # of embeddings and position signal
        self.output_drop: nn.Module = Dropout(config.dropout)
        self.layers = nn.ModuleList(TransfoXLLayer(config) for _ in range(config.n_layer))
        heads = (config.n_head, config.d_head)
        if config.attn_type == 0 and not config.untie_r:
            self.r_w_bias = nn.Parameter(torch.zeros(heads))
            self.r_r_bias = nn.Parameter(torch.zeros(heads))
            # Old files repeat the shared pair in every layer.
            self._keys_to_ignore_on_load_unexpected = [
                *type(self)._keys_to_ignore_on_load_unexpected,
                r"dec_attn\.r_[rw]_bias",
            ]
        if config.attn_type in (1, 3):
            self.r_emb = nn.Parameter(torch.zeros(config.n_layer, config.n_position_rows, *heads))
        if config.attn_type == 1:
            self.r_w_bias = nn.Parameter(torch.zeros(config.n_layer, *heads))
            self.r_bias = nn.Parameter(torch.zeros(config.n_layer, config.n_position_rows, config.n_head))
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> AdaptiveEmbedding:
        """The token embedding, a module of several tables."""
        return self.word_emb

    def set_input_embeddings(self, value: AdaptiveEmbedding) -> None:
        """Replace the token embedding."""
        self.word_emb = value

    def init_mems(self, batch_size: int) -> list[Tensor] | None:
        """Memory before the first segment, `n_layer` tensors `[M, B, D]`; None if `mem_len` is 0."""
        if self.config.mem_len == 0:
            return None
        return empty_mems(self.config, batch_size, dtype=self.dtype, device=self.device)

    def reset_memory_length(self, mem_len: int) -> None:
        """Remember `mem_len` tokens from the next call on, for instance more in evaluation than in training.

        Raises:
            ValueError: `mem_len` is impossible for this model.
        """
        previous, self.config.mem_len = self.config.mem_len, mem_len
        try:
            self.config.check()
        except (TypeError, ValueError):
            self.config.mem_len = previous
            raise

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool = False,
        past_key_values: TransfoXLCache | None = None,
        ext_len: int = 0,
    ) -> TransfoXLModelOutput | tuple[Any, ...]:
        """Compute one segment.

        Args:
            input_ids: token ids `[B, Q]`; this or `inputs_embeds`.
            mems: memory, as the last output gave it; None to start. Not modified.
            inputs_embeds: `[B, Q, D]`, used instead of token embeddings (unscaled).
            output_attentions: give attention weights, by the literal path; default from the config.
            output_hidden_states: give the hidden states of all layers; default from the config.
            return_dict: False for a tuple without the absent fields; default from the config.
            attention_mask: 1 for real tokens, 0 for padding, `[B, Q]` or, with P columns for the past, `[B, P + Q]`.
            use_cache: start a cache if none is given. Memory is then in `past_key_values`, not in `mems`.
            past_key_values: the cache of the past, changed in place.
            ext_len: memory ends before the last so many tokens, which the next segment will begin with again.

        Raises:
            ValueError, TypeError: the arguments do not fit the model or each other.
        """
        self._refuse_data_parallel()
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict

        hidden = self._embed(input_ids, inputs_embeds)
        batch_size, q_len = hidden.shape[:2]
        mask, past_mask = split_mask(attention_mask, batch_size=batch_size, q_len=q_len)
        cache, memory = self._recall(mems, past_key_values, use_cache, past_mask, hidden)
        memory_len = cache.memory_len if cache is not None else memory[0].shape[1]

        alignment = None if mask is None else RowAlignment(mask, memory_len)
        n_hidden = self._hidden_slots(alignment, cache, past_mask, memory_len)
        if alignment is not None:
            hidden = alignment.align(hidden)
        segments = self._segments(cache, alignment, q_len)
        visible = VisibleKeys(
            q_len, memory_len, span=self.config.span, n_hidden=n_hidden, segments=segments, device=hidden.device
        )
        k_len = memory_len + q_len
        around = Surroundings(
            visible,
            self._signal(k_len, cache, hidden),
            alignment,
            self._implementation(output_attentions),
        )
        if self.config.attn_type == 2:
            assert around.signal is not None  # no cache without memory
            hidden = hidden + around.signal
        hidden = self.drop(hidden)
        if cache is not None and not output_hidden_states:
            last = self._step(hidden, cache, around)
            if last is not None:
                output = TransfoXLModelOutput(last_hidden_state=last, past_key_values=cache)
                return output if return_dict else output.to_tuple()

        hidden_states, attentions, inputs = [], [], []
        is_checkpointed = self.gradient_checkpointing and self.training and cache is None
        for i, layer in enumerate(self.layers):
            hidden_states.append(hidden)
            hidden = self._add_learned_positions(hidden, i)
            if alignment is not None:
                hidden = hidden * alignment.aligned_mask[..., None]  # padding is a zero vector, like any empty slot
            inputs.append(hidden)
            past = cache.layers[i] if cache is not None else memory[i] if memory_len else None
            shared = self._shared(i, k_len)
            if is_checkpointed:
                hidden, weights = checkpoint(layer, hidden, past, around, shared, use_reentrant=False)
            else:
                hidden, weights = layer(hidden, past, around, shared)
            attentions.append(weights)
        hidden = self.output_drop(hidden)
        hidden_states.append(hidden)

        if cache is not None:
            cache.advance(None if mask is None else mask.sum(1), q_len)
        if alignment is not None:
            hidden_states = [alignment.restore(states * alignment.aligned_mask[..., None]) for states in hidden_states]
            attentions = [alignment.restore_weights(w) for w in attentions] if output_attentions else attentions
        output = TransfoXLModelOutput(
            last_hidden_state=hidden_states[-1],
            mems=self._remember(memory, inputs, alignment, ext_len) if cache is None and self.config.mem_len else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            past_key_values=cache,
        )
        return output if return_dict else output.to_tuple()

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        embedded: Tensor
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("input_ids and inputs_embeds must not both be given: pass one of them.")
        if inputs_embeds is not None:
            shape = list(inputs_embeds.shape)
            if len(shape) != 3 or shape[-1] != self.config.d_model:
                raise ValueError(f"inputs_embeds has shape {shape} but must be [B, Q, d_model={self.config.d_model}].")
            if inputs_embeds.dtype != self.dtype and not torch.is_autocast_enabled(inputs_embeds.device.type):
                raise TypeError(
                    f"inputs_embeds is {inputs_embeds.dtype} but the model computes in {self.dtype}: "
                    "convert with inputs_embeds.to(model.dtype)."
                )
            embedded = inputs_embeds
        elif input_ids is None:
            raise ValueError("input_ids or inputs_embeds must be given, but neither was: pass one of them.")
        else:
            embedded = self.embed_ids(input_ids)
        if embedded.shape[1] == 0:
            raise ValueError(
                "the segment has no token: pass at least one (length 0 has no output and moves no memory)."
            )
        if embedded.shape[0] == 0:
            raise ValueError("the batch has no row: pass at least one.")
        return embedded

    def embed_ids(self, input_ids: Tensor, *, table: Tensor | None = None) -> Tensor:
        """Embeddings `[B, Q, d_model]` of `input_ids [B, Q]`; `table` as in `AdaptiveEmbedding.forward`.

        Raises:
            ValueError, TypeError: they are no ids of the vocabulary.
        """
        if not isinstance(input_ids, Tensor):
            raise TypeError(
                f"input_ids is a {type(input_ids).__name__} but must be a tensor [B, Q]: "
                "ask the tokenizer for return_tensors='pt', or pass torch.tensor([ids])."
            )
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids has shape {list(input_ids.shape)} but must be [B, Q]: add a batch dimension.")
        check_ids(input_ids, self.config.vocab_size, name="input_ids")
        embedded: Tensor = self.word_emb(input_ids) if table is None else self.word_emb(input_ids, table=table)
        return embedded

    def _recall(
        self,
        mems: Sequence[Tensor] | None,
        cache: TransfoXLCache | None,
        use_cache: bool,
        past_mask: Tensor | None,
        hidden: Tensor,
    ) -> tuple[TransfoXLCache | None, list[Tensor]]:
        """The cache, ready for this batch, or else each layer's memory `[B, M, D]`."""
        batch_size = hidden.shape[0]
        if mems is not None:
            dtype = None if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
            check_mems(mems, self.config, batch_size=batch_size, dtype=dtype)
        if cache is None and not (use_cache and self.config.mem_len):
            given = mems if mems is not None else self._start(batch_size, hidden)
            return None, [mem.detach().transpose(0, 1) for mem in given]
        cache = TransfoXLCache(self.config) if cache is None else cache
        self._check_cache(cache, hidden, has_mems=mems is not None)
        if cache.batch_size is None:
            self._begin_cache(cache, mems, past_mask, hidden)
        return cache, []

    def _start(self, batch_size: int, hidden: Tensor) -> list[Tensor]:
        return empty_mems(self.config, batch_size, dtype=hidden.dtype, device=hidden.device)

    def _check_cache(self, cache: Any, hidden: Tensor, *, has_mems: bool) -> None:
        batch_size = hidden.shape[0]
        if not isinstance(cache, TransfoXLCache):
            raise TypeError(
                f"past_key_values is a {type(cache).__name__} but must be a TransfoXLCache: "
                "pass the one that the last output gave, or TransfoXLCache(model.config)."
            )
        if len(cache) != self.config.n_layer or cache.mem_len != self.config.mem_len:
            raise ValueError(
                f"past_key_values has {len(cache)} layers and mem_len={cache.mem_len} but the model has "
                f"n_layer={self.config.n_layer} and mem_len={self.config.mem_len}: start a new cache."
            )
        if cache.span != self.config.span:
            raise ValueError(
                f"past_key_values has span={cache.span} but the model has span={self.config.span} (keys that a query "
                "may see, by same_length and span_counts_self): start a new cache."
            )
        if cache.batch_size not in (None, batch_size):
            raise ValueError(
                f"past_key_values holds {cache.batch_size} rows but the input has {batch_size}: pass as many rows, "
                "or change those of the cache with its batch_select_indices or batch_repeat_interleave."
            )
        if cache.batch_size is not None:
            heads = (cache.layers[0].keys.shape[1], cache.layers[0].keys.shape[3])
            if heads != (self.config.n_head, self.config.d_head):
                raise ValueError(
                    f"past_key_values has n_head={heads[0]} and d_head={heads[1]} but the model has "
                    f"n_head={self.config.n_head} and d_head={self.config.d_head}: start a new cache."
                )
            if cache.layers[0].dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type):
                raise TypeError(
                    f"past_key_values is {cache.layers[0].dtype} but the model computes in {hidden.dtype}: "
                    "convert with cache.to(dtype=model.dtype)."
                )
        if has_mems and cache.batch_size is not None:
            raise ValueError(
                "mems and past_key_values must not both hold the past: pass one (mems may start a new cache)."
            )

    def _begin_cache(
        self, cache: TransfoXLCache, mems: Sequence[Tensor] | None, past_mask: Tensor | None, hidden: Tensor
    ) -> None:
        batch_size = hidden.shape[0]
        n_empty = self.config.mem_len if mems is None and self.config.initial_memory == "zeros" else 0
        for i, (memory_layer, layer) in enumerate(zip(cache.layers, self.layers, strict=True)):
            # One empty slot is projected, not mem_len of them.
            attention = cast(TransfoXLLayer, layer).dec_attn
            empty_key, empty_value = attention.project_memory(hidden.new_zeros(1, 1, hidden.shape[-1]))
            memory_layer.start(
                empty_key[0, :, 0].detach(), empty_value[0, :, 0].detach(), batch_size=batch_size, length=n_empty
            )
            if mems is not None:
                memory_layer.update(*attention.project_memory(mems[i].detach().transpose(0, 1)))
        held = cache.memory_len if mems is not None else 0
        cache.begin(self._remembered(past_mask, held, batch_size, hidden.device), is_uneven=past_mask is not None)

    def _remembered(self, past_mask: Tensor | None, memory_len: int, batch_size: int, device: torch.device) -> Tensor:
        """Real tokens in each row's memory, `[B]`: all of them but those that the mask of the past denies."""
        if past_mask is None:
            return torch.full((batch_size,), memory_len, device=device)
        beyond_mask = max(memory_len - past_mask.shape[1], 0)
        return (past_mask.sum(1) + beyond_mask).clamp(max=memory_len)

    def _hidden_slots(
        self, alignment: RowAlignment | None, cache: TransfoXLCache | None, past_mask: Tensor | None, memory_len: int
    ) -> Tensor | None:
        """How many of the first slots of each aligned row hold nothing to attend to, `[B]`; None for none anywhere."""
        n_hidden = None if alignment is None else alignment.n_padding
        if self.config.initial_memory == "zeros":
            return n_hidden  # zero vectors are attended to: only the slots that padding added must go
        if cache is not None and cache.row_lengths is not None and cache.has_uneven_rows:
            unused = memory_len - cache.row_lengths.clamp(max=memory_len)
        elif cache is None and past_mask is not None:
            unused = memory_len - self._remembered(past_mask, memory_len, past_mask.shape[0], past_mask.device)
        else:
            return n_hidden
        return unused if n_hidden is None else n_hidden + unused

    def _segments(self, cache: TransfoXLCache | None, alignment: RowAlignment | None, q_len: int) -> Segments | None:
        """How the call is cut in segments; None for one."""
        if cache is None or cache.segment_len is None or q_len <= cache.segment_len:
            return None
        if alignment is not None:
            raise ValueError(
                f"the call has {q_len} tokens but must have at most segment_len={cache.segment_len} in a padded batch, "
                "whose rows begin at different places: pass one segment at a time."
            )
        # With a fixed span a query sees the same keys however the text is cut.
        return None if self.config.span is not None else Segments(cache.segment_len, self.config.mem_len)

    def _signal(self, k_len: int, cache: TransfoXLCache | None, hidden: Tensor) -> Tensor | None:
        """Position signal of the distances, `[R, D]`, with dropout; None if no layer will ask for it."""
        clamp_len, device = self.config.clamp_len, hidden.device
        if self.config.attn_type == 2:
            distances = key_distances(k_len, clamp_len=clamp_len, device=device)
            return sinusoid(distances, self.config.d_model, dtype=self.dtype)
        if self.config.attn_type != 0:
            return None
        n_keys = k_len + 1  # as `relative_shift` asks for
        if cache is not None and not torch.is_grad_enabled():
            held = cache.layers[0].distance
            needed = n_distances(n_keys, clamp_len=clamp_len)
            # A table for a much longer call is dropped, so that one long prompt does not hold its memory for ever.
            if held is not None and needed <= held.keys.shape[1] <= 2 * needed + self.config.mem_len:
                return None
            n_keys = min(2 * k_len, self.config.mem_len + hidden.shape[1]) + 1  # not again for each new token
        distances = key_distances(n_keys, clamp_len=clamp_len, device=device)
        if not self.training or self.config.dropout == 0:  # each once; but dropout treats equal ones differently
            distances = distances[n_keys - n_distances(n_keys, clamp_len=clamp_len) :]
        dropped: Tensor = self.drop(sinusoid(distances, self.config.d_model, dtype=self.dtype))
        return dropped

    def _step(self, hidden: Tensor, cache: TransfoXLCache, around: Surroundings) -> Tensor | None:
        """What `forward` gives for one token a row, the short way; None where that cannot be taken."""
        is_plain = around.alignment is None and around.visible.n_hidden is None and around.implementation == "sdpa"
        is_simple = hidden.shape[1] == 1 and is_eager_cpu(hidden) and not torch.is_grad_enabled()
        if not is_plain or not is_simple or around.signal is not None:
            return None
        if cache.token_step is None or cache.token_step.layers is not self.layers:
            can_take = TokenStep.can_take(self.layers)
            cache.token_step = TokenStep(self.layers, pre_lnorm=self.config.pre_lnorm) if can_take else None
        step: TokenStep | None = cache.token_step
        if step is None or not step.is_right:
            return None
        k_len, is_shaw = cache.memory_len + 1, self.config.attn_type == 1
        of_all = None if is_shaw else self._shared(0, k_len)
        last = step(hidden, cache.layers, shared=lambda i: of_all or self._shared(i, k_len))
        cache.advance(None, 1)
        dropped: Tensor = self.output_drop(last)
        return dropped

    def _implementation(self, output_attentions: bool) -> str:
        name = "eager" if output_attentions else self.config._attn_implementation
        if name not in ATTENTION_FUNCTIONS:
            raise ValueError(f"attn_implementation={name!r} must be one of {', '.join(sorted(ATTENTION_FUNCTIONS))}.")
        return name

    def _add_learned_positions(self, hidden: Tensor, i: int) -> Tensor:
        """Al-Rfou et al. 2019: a learned vector for each position, counted from the end, before every layer."""
        if self.config.attn_type != 3:
            return hidden
        q_len, n_rows = hidden.shape[1], self.config.n_position_rows
        if q_len > n_rows:
            raise ValueError(
                f"the segment has {q_len} tokens but must have at most {n_rows}, the learned positions of attn_type=3 "
                "(tgt_len + ext_len): pass shorter segments."
            )
        return hidden + self.r_emb[i, -q_len:].flatten(1)

    def _shared(self, i: int, k_len: int) -> Shared:
        if self.config.attn_type == 0:
            return Shared() if self.config.untie_r else Shared(self.r_w_bias, self.r_r_bias)
        if self.config.attn_type != 1:
            return Shared()
        # Shaw et al. 2018: distance d reads the d-th row from the end; the farthest kept row serves all beyond it.
        n_rows = self.r_emb.shape[1]  # the table keeps its length when `reset_memory_length` changes mem_len
        n_kept = min(n_rows, self.config.clamp_len) if self.config.clamp_len > 0 else n_rows
        rows = slice(n_rows - min(n_kept, k_len), None)
        table = DistanceTerms(self.r_emb[i, rows].transpose(0, 1), None, self.r_bias[i, rows].T)
        return Shared(self.r_w_bias[i], None, table)

    def _remember(
        self, memory: list[Tensor], inputs: list[Tensor], alignment: RowAlignment | None, ext_len: int
    ) -> list[Tensor]:
        """The last inputs of each layer, `[M, B, D]`, from those before the segment and those of the segment."""
        memory_len = memory[0].shape[1]
        end = max(memory_len + inputs[0].shape[1] - ext_len, 0)
        start = max(end - self.config.mem_len, 0)
        mems = []
        for past, new in zip(memory, inputs, strict=True):
            if alignment is not None:
                kept = alignment.align_context(torch.cat([past, new.detach()], dim=1), dim=1)[:, start:end]
            elif start >= memory_len:
                kept = new[:, start - memory_len : end - memory_len].detach()
            else:
                kept = torch.cat([past[:, start:end], new[:, : max(end - memory_len, 0)].detach()], dim=1)
            mems.append(kept.transpose(0, 1))
        return mems


Function = TypeVar("Function", bound=Callable[..., Any])


def unlisted(name: str) -> Callable[[Function], Function]:
    """Leave an argument out of what `inspect.signature` says of a function; it can be passed as before.

    Trainer computes no evaluation loss unless a batch has every argument of `forward` with "label" in its name.
    """

    def mark(function: Function) -> Function:
        signature = inspect.signature(function)
        listed = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        function.__signature__ = signature.replace(parameters=listed)  # type: ignore[attr-defined]
        return function

    return mark


class TransfoXLLMHeadModel(TransfoXLPreTrainedModel, GenerationMixin):
    """The language model: transformer and (adaptive) softmax, usually tied to the embedding (sections 3 and 4)."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.crit = AdaptiveLogSoftmax(
            config.vocab_size, config.d_embed, config.d_model, config.cluster_cutoffs, div_val=config.div_val
        )
        self.post_init()

    def tied_parameters(self) -> dict[str, str]:
        """Output weights tied to the embedding (`tie_word_embeddings`), projections to its own (`tie_projs`)."""
        embedding, tied = "transformer.word_emb", {}
        if self.config.tie_word_embeddings:
            for i in range(len(self.crit.out_layers)):
                tied[f"crit.out_layers.{i}.weight"] = f"{embedding}.emb_layers.{i}.weight"
        for i, is_tied in enumerate(list(self.config.tie_projs or [])[: len(self.crit.out_projs)]):
            if is_tied:
                tied[f"crit.out_projs.{i}"] = f"{embedding}.emb_projs.{0 if self.config.div_val == 1 else i}"
        return tied

    def init_mems(self, batch_size: int) -> list[Tensor] | None:
        """See `TransfoXLModel.init_mems`."""
        return self.transformer.init_mems(batch_size)

    def reset_memory_length(self, mem_len: int) -> None:
        """See `TransfoXLModel.reset_memory_length`."""
        self.transformer.reset_memory_length(mem_len)

    @unlisted("shift_labels")
    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Tensor | None = None,
        shift_labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        use_cache: bool = False,
        past_key_values: TransfoXLCache | None = None,
        ext_len: int = 0,
        n_best: int | None = None,
    ) -> TransfoXLLMHeadModelOutput | tuple[Any, ...]:
        """Predict the token after each one of a segment; see `TransfoXLModel.forward` for the arguments not listed.

        Args:
            labels: usually `input_ids`, `[B, Q]`: shifted inside, so the first is no target; -100 is ignored.
            shift_labels: targets aligned with the inputs, `[B, Q]`: the next token of each; -100 is ignored.
            logits_to_keep: log-probabilities of the last so many positions only (0: all), or of these positions.
            skip_logits: leave `prediction_scores` out; default: in training with labels, where they only cost memory.
            n_best: how many of the most probable tokens of each position matter; `prediction_scores` of clusters
                without any of them may then be -inf, and the last clusters left out: `[B, Q, <= vocab_size]`. None for
                all tokens.

        With an `attention_mask`, positions that are padding or whose target is padding are ignored as well.
        """
        if labels is not None and shift_labels is not None:
            raise ValueError(
                "labels and shift_labels must not both be given: labels are shifted inside, pass one of them."
            )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        has_losses = labels is not None or shift_labels is not None
        is_read_here = has_losses and input_ids is not None and inputs_embeds is None
        of_embedding, of_softmax = self._shared_table() if is_read_here else (None, None)
        if of_embedding is not None:
            input_ids, inputs_embeds = None, self.transformer.embed_ids(cast(Tensor, input_ids), table=of_embedding)
        output = self.transformer(
            input_ids,
            mems=mems,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            attention_mask=attention_mask,
            use_cache=use_cache,
            past_key_values=past_key_values,
            ext_len=ext_len,
        )
        hidden = output.last_hidden_state
        losses = loss = scores = None
        if labels is not None:
            losses, loss = self._losses(hidden, labels, attention_mask, of_softmax, name="labels")
        elif shift_labels is not None:
            losses, loss = self._losses(hidden, shift_labels, attention_mask, of_softmax, name="shift_labels")
        skip_logits = (self.training and losses is not None) if skip_logits is None else skip_logits
        if not skip_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            scores = self.crit.log_prob(hidden[:, kept], n_best=n_best)
        result = TransfoXLLMHeadModelOutput(
            losses=losses,
            prediction_scores=scores,
            mems=output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            loss=loss,
            past_key_values=output.past_key_values,
        )
        return result if return_dict else result.to_tuple()

    def _shared_table(self) -> tuple[Tensor | None, Tensor | None]:
        """The one table of embedding and softmax, twice, so that it gets one gradient; None where there is none."""
        embedding, softmax = self.transformer.word_emb.emb_layers[0], self.crit.out_layers[0]
        is_plain = type(embedding) is nn.Embedding and type(softmax) is nn.Linear and not has_hooks(embedding)
        if not is_plain or self.config.div_val > 1 or softmax.weight is not embedding.weight:
            return None, None
        table = cast(Tensor, softmax.weight)
        is_trained = table.requires_grad and torch.is_grad_enabled() and self.config.sample_softmax <= 0
        return shared_by_two(table) if is_trained and can_train_on_cpu(table) else (None, None)

    def _losses(
        self, hidden: Tensor, targets: Tensor, attention_mask: Tensor | None, table: Tensor | None, *, name: str
    ) -> tuple[Tensor, Tensor]:
        """`losses` and `loss` for targets that are `labels` (to be shifted) or `shift_labels` (aligned already)."""
        batch_size, q_len = hidden.shape[:2]
        if targets.shape != (batch_size, q_len):
            raise ValueError(
                f"{name} has shape {list(targets.shape)} but must be [{batch_size}, {q_len}]: one target an input."
            )
        check_ids(targets, self.config.vocab_size, name=name, ignored=-100)
        targets = targets.to(hidden.device, torch.long)
        counts, _ = split_mask(attention_mask, batch_size=batch_size, q_len=q_len)
        if name == "labels":
            hidden, targets = hidden[:, :-1], targets[:, 1:]
            counts = None if counts is None else counts[:, :-1] & counts[:, 1:]
        if counts is not None:
            targets = targets.masked_fill(~counts, -100)
        flat_hidden, flat_targets = hidden.flatten(0, 1), targets.flatten()
        if self.training and self.config.sample_softmax > 0:
            losses = self.crit.sampled(flat_hidden, flat_targets, n_samples=self.config.sample_softmax)
        else:
            losses = self.crit(flat_hidden, flat_targets, table=table)
        n_targets = (flat_targets != -100).sum()
        return losses.view(targets.shape), losses.sum() / n_targets.clamp(min=1)

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """Read the generation settings of a folder (called by `from_pretrained`).

        Old releases wrote every default into `config.json`: lengths that nobody chose would contradict those that are
        passed to `generate`.
        """
        super().adjust_generation_fn(*args, **kwargs)
        settings = self.generation_config
        if settings._from_model_config:
            settings.max_length = None if settings.max_length == 20 else settings.max_length
            settings.min_length = None if settings.min_length == 0 else settings.min_length

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Put a `TransfoXLCache` into `model_kwargs` (called by `generate`)."""
        if generation_config.is_assistant:
            raise ValueError(
                "assistant_model must not be a Transformer-XL: its memory cannot take rejected tokens back. "
                "Generate without an assistant."
            )
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} must be None: "
                "this model generates with its own TransfoXLCache."
            )
        cache = model_kwargs.get("past_key_values")
        if cache is not None and not isinstance(cache, TransfoXLCache):
            raise TypeError(
                f"past_key_values is a {type(cache).__name__} but must be a TransfoXLCache: "
                "pass the one that the last output gave, or TransfoXLCache(model.config)."
            )
        if cache is not None:
            cache._is_user_defined = True
        elif generation_config.use_cache and self.config.mem_len:
            model_kwargs["past_key_values"] = TransfoXLCache(self.config)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: TransfoXLCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        mems: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of the next `forward` (called by `generate`): with a cache the new tokens, without it all."""
        if past_key_values is None:
            if inputs_embeds is not None or mems is not None:
                given = "mems" if inputs_embeds is None else "inputs_embeds"
                raise ValueError(f"{given} must come with a cache in generate: set use_cache=True and mem_len > 0.")
            next_sequence_length = self.config.tgt_len if self.config.attn_type in (2, 3) else None
        elif next_sequence_length is not None and next_sequence_length <= 0:
            if next_sequence_length == 0:
                raise ValueError(
                    f"input_ids has {input_ids.shape[1]} tokens, and past_key_values has seen all: pass one more."
                )
            next_sequence_length = None  # fewer ids than the cache has seen: these are new ones alone
        if past_key_values is not None and not is_first_iteration and next_sequence_length is not None:
            attention_mask = None  # a new token is real, and the cache knows the padding of the past
        elif past_key_values is None and attention_mask is not None and next_sequence_length is not None:
            attention_mask = attention_mask[:, -next_sequence_length:]
        if mems is not None and past_key_values is not None and past_key_values.batch_size is None:
            kwargs["mems"] = mems  # they start the cache, which then holds them
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat each row for beams or several sequences (called by `generate`)."""
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if model_kwargs.get("mems") is not None and expand_size > 1:
            model_kwargs["mems"] = [mem.repeat_interleave(expand_size, dim=1) for mem in model_kwargs["mems"]]
        return input_ids, model_kwargs

    def _update_model_kwargs_for_generation(
        self, outputs: TransfoXLLMHeadModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """What the next step needs (called by `generate`): without a cache nothing, not the `mems`."""
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if outputs.get("past_key_values") is None:
            updated.pop("past_key_values", None)
        return updated

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        """Sampling and greedy search (called by `generate`), without what has no chance to be chosen."""
        if not (generation_config.output_scores or generation_config.output_logits):
            if not generation_config.do_sample:
                kwargs["n_best"] = None if logits_processor else 1  # others may look for a token that is left out
            elif (drawing := DrawAmongBest.in_place_of(logits_processor)) is not None:
                kwargs["n_best"] = drawing.n_best
                logits_processor = LogitsProcessorList([drawing])
                generation_config = copy(generation_config)
                generation_config.do_sample = False  # what is drawn is then the best
        return super()._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: continuous batching pages keys and values, which a memory of fixed length has not."""
        raise ValueError("generate_batch (continuous batching) is not possible with a TransfoXLCache: use generate.")

    init_continuous_batching = generate_batch
    continuous_batching_context_manager = generate_batch


class TransfoXLForSequenceClassification(TransfoXLPreTrainedModel):
    """Transformer and a linear classifier on the last real token of each row."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        if config.num_labels < 1:
            raise ValueError(f"num_labels={config.num_labels} must be at least 1 (1 is regression).")
        self.num_labels = config.num_labels
        self.transformer = TransfoXLModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels, bias=False)
        self.post_init()

    def init_mems(self, batch_size: int) -> list[Tensor] | None:
        """See `TransfoXLModel.init_mems`."""
        return self.transformer.init_mems(batch_size)

    def reset_memory_length(self, mem_len: int) -> None:
        """See `TransfoXLModel.reset_memory_length`."""
        self.transformer.reset_memory_length(mem_len)

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: TransfoXLCache | None = None,
    ) -> TransfoXLSequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Classify each row; see `TransfoXLModel.forward` for the arguments not listed.

        Args:
            labels: class ids `[B]`; for regression numbers `[B]` or `[B, num_labels]`; for several labels a row, 0 or 1
                in `[B, num_labels]`. `config.problem_type` says which, or else `num_labels` and the dtype.
            use_cache: True starts a cache, as in the transformer. False, as transformers' pipelines pass, leaves `mems`
                out as well: pipelines take every output apart by its first axis, which in `mems` is the layer.

        The last real token is found by `attention_mask`, else by `config.pad_token_id`, else it is the last position.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output = self.transformer(
            input_ids,
            mems=mems,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            attention_mask=attention_mask,
            use_cache=bool(use_cache),
            past_key_values=past_key_values,
        )
        hidden = output.last_hidden_state
        last = self._last_real_position(input_ids, attention_mask, hidden)
        logits = self.score(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        result = TransfoXLSequenceClassifierOutputWithPast(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            mems=None if use_cache is False else output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            past_key_values=output.past_key_values,
        )
        return result if return_dict else result.to_tuple()

    def _last_real_position(self, input_ids: Tensor | None, attention_mask: Tensor | None, hidden: Tensor) -> Tensor:
        batch_size, q_len = hidden.shape[:2]
        is_real, _ = split_mask(attention_mask, batch_size=batch_size, q_len=q_len)
        if is_real is None and input_ids is not None and self.config.pad_token_id is not None:
            is_real = input_ids != self.config.pad_token_id
        if is_real is None:
            return torch.full((batch_size,), q_len - 1, device=hidden.device)
        positions = torch.arange(q_len, device=hidden.device)
        last = torch.where(is_real, positions, -1).amax(1)
        return torch.where(last < 0, q_len - 1, last)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        problem_type = self.config.problem_type
        if problem_type is None:
            is_class_id = labels.dtype in (torch.long, torch.int)
            several = "single_label_classification" if is_class_id else "multi_label_classification"
            problem_type = "regression" if self.num_labels == 1 else several
        labels = labels.to(logits.device)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        expected = (logits.shape[0],) if problem_type == "single_label_classification" else logits.shape
        if labels.numel() != torch.Size(expected).numel():
            raise ValueError(
                f"labels has shape {list(labels.shape)} but must be {list(expected)} for problem_type={problem_type!r} "
                f"and num_labels={self.num_labels}."
            )
        if problem_type == "regression":
            return F.mse_loss(logits, labels.view(logits.shape).to(logits.dtype))
        if problem_type == "single_label_classification":
            remedy = "pass num_labels= to from_pretrained"
            check_ids(labels, self.num_labels, name="labels", ignored=-100, size_name="num_labels", remedy=remedy)
            return F.cross_entropy(logits, labels.view(-1).long())
        return F.binary_cross_entropy_with_logits(logits, labels.view(logits.shape).to(logits.dtype))


VOCABULARY_REMEDY = "use the model's own tokenizer, or resize_token_embeddings after adding tokens"


def check_ids(
    ids: Tensor,
    n_ids: int,
    *,
    name: str,
    ignored: int | None = None,
    size_name: str = "vocab_size",
    remedy: str = VOCABULARY_REMEDY,
) -> None:
    """Refuse ids outside 0 to `n_ids - 1`, the value of `size_name`, that are not `ignored`.

    Raises:
        TypeError: the ids are no integers.
        ValueError: an id is outside, on a CPU. On a GPU the device asserts, without being waited for.
    """
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} is {ids.dtype} but must hold integers: convert with {name}.long().")
    if torch.compiler.is_compiling() or ids.numel() == 0 or ids.is_meta:
        return
    is_known = (ids >= 0) & (ids < n_ids)
    if ignored is not None:
        is_known = is_known | (ids == ignored)
    rule = f"must lie in 0 to {n_ids - 1} ({size_name}={n_ids})"
    if ids.device.type != "cpu":
        torch._assert_async(is_known.all(), f"{name} {rule}.")
    elif not bool(is_known.all()):
        also = "" if ignored is None else f", or be {ignored} to be ignored"
        raise ValueError(f"{name} holds {int(ids[~is_known][0])} but {rule}{also}: {remedy}.")


__all__ = [
    "TransfoXLForSequenceClassification",
    "TransfoXLLMHeadModel",
    "TransfoXLLMHeadModelOutput",
    "TransfoXLModel",
    "TransfoXLModelOutput",
    "TransfoXLPreTrainedModel",
    "TransfoXLSequenceClassifierOutputWithPast",
]

"""Causal language models: log-probabilities of given responses behind a cached prefix, and last hidden states.

Two shortcuts are used, both exact (method.md 3.1): the keys and values of a prefix are computed once and shared by
all rows behind it, and hidden states go through the vocabulary projection at response positions only. Whether a model's
architecture allows them is tried on loading against its plain forward pass; where it does not, the plain pass is used.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nncift.core.memory import rows_at_once
from nncift.errors import ResourceError, UsageError
from nncift.models.batching import BatchLimit, PaddingLimit
from nncift.models.loading import ModelSource as ModelSource
from nncift.models.loading import (
    context_limit,
    fingerprint,
    fingerprint_of_loaded,
    first_line,
    load_model,
    locate,
    resolve_device,
    resolve_dtype,
)
from nncift.models.model_parts import additions_of, body_of, check_causal, states_of
from nncift.models.thread_trial import try_threads
from nncift.models.token_rows import Batch, gathered, laid_out, log_softmax_at, split
from nncift.models.token_rows import Front as Front
from nncift.models.token_rows import Prefix as Prefix
from nncift.models.token_rows import Reading as Reading
from nncift.models.token_rows import Row as Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

LOGITS_AT_ONCE = 2**26
"""Entries of a float32 logits block held at once (256 MiB)."""

PROBE = 24
"""Tokens of the sequence on which shortcuts are tried."""

SMALL = 5_000_000
"""Parameters of a model that trains whole by default."""


class CausalLM:
    """A causal language model and its tokenizer, ready to score responses. Built by `CausalLM.load`."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, fingerprint: str, context: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprint = fingerprint
        self.context = context
        self.device = next(model.parameters()).device
        self.fits, self.padding_limit = BatchLimit(), PaddingLimit.of(model, self.device)
        self.threads: int | None = None
        self._fast_head, self._fast_prefix = self._try_shortcuts()
        self.threads = try_threads(self)

    @classmethod
    def load(
        cls,
        name: str | Path | ModelSource,
        *,
        device: str = "auto",
        dtype: str = "auto",
        context: int | None = None,
        trust_remote_code: bool = False,
    ) -> CausalLM:
        """Load a local directory or a model of the Hugging Face hub, from safetensors only.

        device: auto, cpu, cuda, cuda:0, mps. dtype: auto (float32 on CPU, the model's own elsewhere), float32,
        bfloat16, float16. context: a cap on the tokens of one sequence, at most the model's own limit.
        Raises ResourceError when weights, tokenizer or device are missing, UsageError for an unknown setting.
        """
        source = name if isinstance(name, ModelSource) else ModelSource(str(name))
        folder = locate(source.name)
        placed = resolve_device(device)
        model, tokenizer = load_model(source, folder, placed, resolve_dtype(dtype, placed), trust_remote_code)
        limit = context_limit(model, tokenizer)
        if context is not None and context > limit:
            raise UsageError(f"a context of {context} tokens was asked for; this model has {limit}")
        try:
            return cls(model, tokenizer, source.name, fingerprint(folder), context or limit)
        except AssertionError as error:
            # bitsandbytes asserts what its kernels for this device want of a layer's sizes.
            raise ResourceError(
                f"the model {source.name!r} in {source.load_in} cannot run on {placed}: {first_line(error)}; try 8bit, another "
                "device, or no --load-in"
            ) from error

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, context: int | None = None) -> CausalLM:
        """Take a model and a tokenizer that are loaded already; the model is left as it is, in evaluation mode.

        Its identity is a hash of its weights and of the tokenizer, so that labels of other weights are never mixed with its own.
        context: as in `load`. Raises UsageError for a context beyond the model's, ResourceError for a model that is not causal.
        """
        limit = context_limit(model, tokenizer)
        if context is not None and context > limit:
            raise UsageError(f"a context of {context} tokens was asked for; this model has {limit}")
        model.eval()
        name = str(getattr(model, "name_or_path", "") or type(model).__name__)
        return cls(model, tokenizer, name, fingerprint_of_loaded(model, tokenizer), context or limit)

    def with_own_modules(self) -> CausalLM:
        """Return this model with modules of its own around the same weights: what is put into them is in no other's way."""
        found = copy.copy(self)
        weights = [*self.model.parameters(), *self.model.buffers()]
        found.model = copy.deepcopy(self.model, {id(weight): weight for weight in weights})
        return found

    @property
    def head_is_last(self) -> bool:
        """Whether the logits are the output embeddings' output and nothing else, so that they can be had position by position."""
        return self._fast_head

    @property
    def caches_prefixes(self) -> bool:
        """Whether the keys and values of a prefix are computed once and shared by all rows behind it."""
        return self._fast_prefix

    @property
    def shares_prefixes(self) -> bool:
        """Whether keys and values of what rows begin with may serve all of them."""
        return self._fast_prefix

    def with_cache(self, cache: Any) -> dict[str, Any]:
        """Return the arguments of a pass that reads and grows a cache; transformers 5.24 gave it another name."""
        return {"use_cache": True, self._cache_name: cache}

    def cache_of(self, output: Any) -> Any:
        """Return the cache that a pass left."""
        return getattr(output, self._cache_name)

    @cached_property
    def _cache_name(self) -> str:
        known = inspect.signature(body_of(self.model).forward).parameters
        return "cache" if "cache" in known else "past_key_values"

    def prefix(self, ids: Sequence[int]) -> Prefix:
        """Compute what rows behind `ids` share. One forward pass over `ids`; none when `ids` is empty."""
        import torch

        if not ids or not self._fast_prefix:
            return Prefix(tuple(ids), None)
        with self._reading(f"a prefix of {len(ids)} tokens"):
            self._check_known(torch.tensor(ids))
            output = self._body(torch.tensor([list(ids)], device=self.device), use_cache=True)
        return Prefix(tuple(ids), self.cache_of(output))

    def log_probabilities(self, prefix: Prefix, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        """Return the log-probability of every response token of every row, teacher-forced, float32.

        The logits at position k - 1 predict token k. Rows are padded on the right, which a causal model cannot see.
        One forward pass over all rows, several where they do not fit into memory at once: the caller chooses how many. Every row
        needs a token before its response. Raises ResourceError for token ids that the model does not have, and where the device's
        memory is too small for one row.
        """
        with self._reading(f"one row of up to {max(map(len, rows))} tokens behind {len(prefix.ids)}"):
            return self.fits.run(rows, len, lambda part: self._scored(prefix, part), before=len(prefix.ids))

    def _scored(self, prefix: Prefix, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        before: tuple[int, ...] = () if prefix.cache is not None else prefix.ids
        laid = laid_out(rows, before)
        self._check_known(laid.ids)
        given: dict[str, Any] = {"use_cache": False}
        if prefix.cache is not None:
            given = self.with_cache(prefix.repeated(len(rows)))
        return split(self._gold(laid, given).cpu().numpy(), rows)

    def read(
        self, rows: Sequence[Row], layers: Sequence[int] = (), front: Front | None = None, *, scored: bool = True
    ) -> list[Reading]:
        """Return what one forward pass shows of every row: log-probabilities of its response and all last hidden states.

        front: what all rows begin with, read before (`front`); the rows are without it, and what is returned is of the whole.
        scored: False leaves the vocabulary out where `head_is_last`, and log-probabilities with it.
        layers: those whose additions to the states are wanted, below `self.layers`. Rows are padded on the right, which
        a causal model cannot see; the caller chooses how many. A row's response may be empty, and then so are its
        log-probabilities; otherwise the row needs a token before it. Raises ResourceError as `log_probabilities` does.
        """
        before = 0 if front is None else len(front.prefix.ids)
        with self._reading(f"one row of up to {before + max(map(len, rows))} tokens"):
            return self.fits.run(rows, len, lambda part: self._shown(part, layers, front, scored), before=before)

    def front(self, ids: Sequence[int], layers: Sequence[int] = ()) -> Front:
        """Read once what rows begin with, for `read`; only where `shares_prefixes`."""
        import torch

        tokens = torch.tensor([list(ids)])
        with self._reading(f"a beginning of {len(ids)} tokens"):
            self._check_known(tokens)
            output = self._body(tokens.to(self.device), use_cache=True, output_hidden_states=bool(layers))
            states = states_of(output, self.model).float().cpu().numpy()[0]
            return Front(Prefix(tuple(ids), self.cache_of(output)), states, additions_of(output, layers)[:, 0])

    def _shown(
        self, rows: Sequence[Row], layers: Sequence[int] = (), front: Front | None = None, scored: bool = True
    ) -> list[Reading]:
        laid = laid_out(rows, ())
        self._check_known(laid.ids)
        given: dict[str, Any] = {"output_hidden_states": True} if layers else {}
        given |= {"use_cache": False} if front is None else self.with_cache(front.prefix.repeated(len(rows)))
        if scored or not self._fast_head:
            output, values = self._output_and_gold(laid, given)
            each = split(values.cpu().numpy(), rows)
        else:
            output, each = self._body(laid.ids.to(self.device), **given), [np.zeros(0, np.float32)] * len(rows)
        states, added = states_of(output, self.model).float().cpu().numpy(), additions_of(output, layers)
        found = [
            Reading(logs, states[index, : len(row)], added[:, index, : len(row)])
            for index, (row, logs) in enumerate(zip(rows, each, strict=True))
        ]
        return found if front is None else [front.before(reading) for reading in found]

    def _output_and_gold(self, laid: Batch, given: Mapping[str, Any]) -> tuple[Any, torch.Tensor]:
        """Return what the body gave, and the response tokens' log-probabilities, in one pass. given: more for the body."""
        ids = laid.ids.to(self.device)
        if self._fast_head:
            output = self._body(ids, **given)
            return output, self._through_head(states_of(output, self.model), laid)
        seen: list[Any] = []
        handle = body_of(self.model).register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            logits = self.model(input_ids=ids, **given).logits
        finally:
            handle.remove()
        shown = bool(seen) and getattr(seen[-1], "last_hidden_state", None) is not None
        return seen[-1] if shown else self._body(ids, **given), log_softmax_at(logits, laid)

    def _gold(self, laid: Batch, given: Mapping[str, Any]) -> torch.Tensor:
        """Return the log-probabilities of all response tokens, one row's behind the other's."""
        ids = laid.ids.to(self.device)
        if not self._fast_head:
            return log_softmax_at(self.model(input_ids=ids, **given).logits, laid)
        return self._through_head(self._body(ids, **given).last_hidden_state, laid)

    def _through_head(self, hidden: torch.Tensor, laid: Batch) -> torch.Tensor:
        """Take hidden states to the vocabulary where a response token is due, a block of positions at a time."""
        import torch

        rows, positions, gold = (part.to(hidden.device) for part in (laid.rows, laid.positions, laid.gold))
        due = hidden[rows, positions]
        head = self.model.get_output_embeddings()
        entry, vocabulary = 4, int(self.model.config.get_text_config().vocab_size)
        step = rows_at_once(entry * LOGITS_AT_ONCE, entry * vocabulary)
        parts = [
            gathered(head(due[start : start + step]), gold[start : start + step])
            for start in range(0, max(1, len(gold)), step)
        ]
        return torch.cat(parts)

    def _check_known(self, ids: torch.Tensor) -> None:
        """Raise ResourceError for ids without an embedding: on a GPU they would take the whole process down."""
        if int(ids.max()) >= self._vocabulary:
            raise ResourceError(
                f"the tokenizer of {self.name!r} gave token {int(ids.max())}, and the model has embeddings for "
                f"{self._vocabulary}; they do not belong together"
            )

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Run a pass without gradients. Raises ResourceError, naming what was read, where memory runs out."""
        import torch

        try:
            with torch.inference_mode(), self._threads():
                yield
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"{what} does not fit into the memory of {self.device}; try --dtype bfloat16 or a smaller --context"
            ) from error

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Use so many threads as the model was found to be fastest with, and give the others back."""
        import torch

        before = torch.get_num_threads()
        wanted = before if self.threads is None else min(before, self.threads)
        if wanted != before:
            torch.set_num_threads(wanted)
        try:
            yield
        finally:
            if wanted != before:
                torch.set_num_threads(before)

    def _body(self, ids: torch.Tensor, **kwargs: Any) -> Any:
        return body_of(self.model)(input_ids=ids, **kwargs)

    def _try_shortcuts(self) -> tuple[bool, bool]:
        """Compare both shortcuts with the plain pass on a few tokens; return which of them are exact here.

        Raises ResourceError where the plain pass itself fails.
        """
        self._fast_head, self._fast_prefix = False, False
        size = int(self.model.config.get_text_config().vocab_size)
        tokens = [(7 * k + 3) % size for k in range(PROBE)]
        ids, rows = tokens[:12], [Row(tokens[12:14], tokens[14:24]), Row(tokens[10:13], tokens[3:8])]
        try:
            plain = np.concatenate(self.log_probabilities(Prefix(tuple(ids), None), rows))
        except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise ResourceError(
                f"the model {self.name!r} cannot read {PROBE} tokens in a plain forward pass: {first_line(error)}"
            ) from error
        check_causal(self.name, tokens, self._scored_plainly, self._same, self._alike)
        found = []
        for attribute in ("_fast_head", "_fast_prefix"):
            setattr(self, attribute, True)
            try:
                fast = np.concatenate(self.log_probabilities(self.prefix(ids), rows))
                exact = self._close(plain, fast) and (attribute == "_fast_prefix" or self._head_is_last(tokens))
            except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError, IndexError) as error:
                log.info("%s: %s is not available: %s", self.name, attribute, first_line(error))
                exact = False
            if not exact:
                setattr(self, attribute, False)
                log.warning("%s: %s is not exact for this architecture; using the plain pass", self.name, attribute)
            found.append(exact)
        return found[0], found[1]

    def _scored_plainly(self, sequences: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """Return the log-probabilities of all tokens but the first of every sequence, by one plain pass."""
        with self._reading(f"{len(sequences)} sequences of {PROBE} tokens"):
            return self._scored(Prefix((), None), [Row(tokens[:1], tokens[1:]) for tokens in sequences])

    @cached_property
    def width(self) -> int:
        """Numbers of a last hidden state, as a pass gives them; a configuration may name the width of other layers."""
        with self._reading("one token"):
            one = Row([0], ())
            return int(self._shown([one])[0].hidden.shape[1])

    @cached_property
    def layers(self) -> int:
        """Layers whose states a pass shows, all as wide as the last; 0 where it shows none."""
        import torch

        with self._reading("one token"):
            output = self._body(torch.tensor([[0]], device=self.device), use_cache=False, output_hidden_states=True)
        states = getattr(output, "hidden_states", None) or ()
        return len(states) - 1 if states and all(of.shape == states[-1].shape for of in states) else 0

    def _head_is_last(self, tokens: Sequence[int]) -> bool:
        """Tell whether the logits are the output embeddings' output, bit for bit: no scale, no soft cap behind it."""
        import torch

        seen: list[torch.Tensor] = []
        handle = self.model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            with torch.inference_mode(), self._threads():
                logits = self.model(input_ids=torch.tensor([list(tokens)], device=self.device), use_cache=False).logits
        finally:
            handle.remove()
        return len(seen) == 1 and torch.allclose(seen[0].to(logits.dtype), logits, rtol=0, atol=0, equal_nan=True)

    def _close(self, plain: npt.NDArray[np.float32], fast: npt.NDArray[np.float32]) -> bool:
        # Half precision: a logit of 20 is known to 1/16, and the order of sums differs between the two.
        if next(self.model.parameters()).dtype.itemsize >= 4:
            return bool(np.allclose(plain, fast, rtol=1e-5, atol=1e-4, equal_nan=True))
        return bool(np.allclose(plain, fast, rtol=0.03, atol=0.1, equal_nan=True))

    def _same(self, one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
        """Tell whether two passes of the same shape, whose earlier tokens are the same, agree on these."""
        if next(self.model.parameters()).dtype.itemsize >= 4:
            return bool(np.allclose(one, other, rtol=1e-5, atol=1e-5, equal_nan=True))
        return self._close(one, other)

    def _alike(self, one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
        """Tell whether passes of different shapes agree; half precision cannot tell: SmolLM2 in bfloat16 differs by 0.17."""
        return next(self.model.parameters()).dtype.itemsize < 4 or self._close(one, other)

    @cached_property
    def _vocabulary(self) -> int:
        """Number of tokens that have an embedding; may be more than the tokenizer has."""
        try:
            weight: Any = self.model.get_input_embeddings().weight
            return int(weight.shape[0])
        except (AttributeError, NotImplementedError):
            return int(self.model.config.get_text_config().vocab_size)

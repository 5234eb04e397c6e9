"""The only module that knows Unsloth and PEFT: load, check, reference, hidden states, generate, save."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefast import four_bit
from scorefast.kernels.reference import log_softmax_head
from scorefast.plain_model import (
    built_of_shapes,
    file_of,
    read_config,
    require_finite,
    require_plain_types,
    require_sound_model,
    require_weights_for,
)
from scorefast.prompts import ChatFormat
from scorefast.recipe import PACKAGE, Model, Recipe, UserError, model_path
from scorefast.runs import RECIPE, Checkpoint
from scorefast.tokenizer_trial import require_sound_tokenizer
from scorefast.untrusted import (
    one_line,
    plain_lora,
    require_short_template,
    require_sound_folder,
    shortened,
)

CONFIGS = PACKAGE / "assets" / "configs"  # of models that recipes name, so that they can be planned for offline


@dataclass(frozen=True)
class Policy:
    """A model, how to talk to it, and the reference it is held near (itself without adapter, or a frozen copy).

    max_length: tokens of prompt and reply together.
    """

    model: Any  # PreTrainedModel or PeftModel
    chat: ChatFormat
    backend: str
    max_length: int
    frozen_reference: Any = None

    @property
    def tokenizer(self) -> Any:
        return self.chat.tokenizer

    @property
    def softcap(self) -> float | None:
        return getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)

    @property
    def head(self) -> Tensor:
        """(V, D): the output embedding, frozen in every kind of tuning, so policy and reference share it."""
        return self.model.get_output_embeddings().weight

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The reference model, without gradients."""
        with torch.no_grad():
            if self.frozen_reference is not None:
                yield self.frozen_reference
            else:
                with self.model.disable_adapter():
                    yield self.model


def resolve_backend(settings: Model) -> str:
    """`auto` is unsloth on CUDA, else transformers. Raises UserError where what is needed is not installed (on CUDA,
    transformers is only taken where the recipe names it), and where the card does not compute in the recipe's dtype."""
    missing = {name for name in ("unsloth", "bitsandbytes") if importlib.util.find_spec(name) is None}
    backend = settings.backend
    if backend == "auto":
        backend = "unsloth" if torch.cuda.is_available() else "transformers"
    if backend == "unsloth" and "unsloth" in missing:
        other = "" if settings.backend == "unsloth" else "; or go on without it: --set model.backend=transformers"
        raise UserError(f'model.backend: Unsloth is not installed here; pip install "scorefast[unsloth]"{other}')
    if settings.load_in_4bit and "bitsandbytes" in missing:
        raise UserError("model.load_in_4bit: bitsandbytes is not installed here; pip install bitsandbytes")
    on_card = settings.dtype == "bfloat16" and torch.cuda.is_available()
    if on_card and not torch.cuda.is_bf16_supported(including_emulation=False):  # Unsloth would take float16, unscaled
        raise UserError("model.dtype: this card has no bfloat16; --set model.dtype=float32 (--dry-run: will it fit?)")
    return backend


def import_backend(settings: Model) -> None:
    """Unsloth patches transformers and peft as it is imported, so it has to come before them. Its statistics stay off,
    its compiled code out of the working directory, and it calls no package manager."""
    if resolve_backend(settings) == "unsloth":
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        os.environ["UNSLOTH_AUTO_INSTALL"] = "0"
        os.environ.setdefault(
            "UNSLOTH_COMPILE_LOCATION", str(Path.home() / ".cache" / "scorefast" / "unsloth_compiled")
        )
        import unsloth  # noqa: F401


def load_tokenizer(name: str, *, download: bool = True) -> Any:
    from transformers import AutoTokenizer

    _require_sound(model_path(name))
    if file_of(model_path(name), "config.json", download=download) is not None:
        load_config(name)  # within bounds: AutoTokenizer reads it too
    if (file := file_of(model_path(name), "tokenizer.json", download=download)) is not None:
        require_sound_tokenizer(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_path(name), local_files_only=not download, trust_remote_code=False
        )
    except BaseException as error:  # somebody else's files: they can fail in any way, in Rust too
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"model {name!r}: {_not_had(name, 'tokenizer', error)}") from None
    if tokenizer.chat_template is None:
        raise UserError(f"model {name!r} has no chat template; use an instruction-tuned model")
    require_short_template(str(tokenizer.chat_template), f"model {name!r}")
    return tokenizer


def chat_format(recipe: Recipe, *, download: bool = True) -> ChatFormat:
    """How the recipe's model is talked to; loads its tokenizer and configuration alone. Padding is never attended to:
    where the model has no token for it, the end of the sequence pads, or else the closing token.

    Raises UserError where the template is unfit.
    """
    name = recipe.model.name
    tokenizer = load_tokenizer(name, download=download)
    here = download or Path(model_path(name)).is_dir()
    rows = load_config(name).get_text_config().vocab_size if here else None
    try:
        chat = ChatFormat(tokenizer, vocabulary=rows, **recipe.prompt.model_dump())
    except ValueError as error:
        raise UserError(f"model {error}") from None
    except Exception as error:  # its tokenizer and template are somebody else's: they can fail in any way
        raise UserError(f"model {name!r}: its chat template and tokenizer fail: {one_line(error)}") from None
    fit = (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, chat.end_of_turn) if token is not None)
    pad = next(token for token in fit if rows is None or token < rows)
    if pad != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return chat


def load_config(name: str) -> Any:
    """A model's configuration: from its folder, from those that come with the package, else from the hub."""
    shipped = CONFIGS / name.replace("/", "--")
    path = str(shipped) if shipped.is_dir() and not Path(name).is_dir() else model_path(name)
    _require_sound(path)
    try:
        return read_config(path)
    except UserError:
        raise
    except Exception as error:  # somebody else's file: it can fail in any way
        raise UserError(f"model {name!r}: {_not_had(name, 'configuration', error)}") from None


def _not_had(name: str, what: str, error: BaseException) -> str:
    from huggingface_hub.errors import GatedRepoError

    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, GatedRepoError):
        chain = chain.__cause__ or chain.__context__
    if chain is not None:
        return (
            f"is gated: accept its terms at https://huggingface.co/{name} and log in with `hf auth login`, or give "
            "model.name another copy, or a folder"
        )
    sought = "" if Path(model_path(name)).is_dir() else "no such folder here; from the Hugging Face hub, "
    return f"{sought}no {what} to be had: {one_line(error)}"


def _require_sound(path: str) -> None:
    if Path(path).is_dir():
        require_sound_model(Path(path))


def load_policy(recipe: Recipe, checkpoint: Checkpoint | None = None, *, trainable: bool = False) -> Policy:
    """The base model, or a checkpoint on it; with `trainable`, ready to train and with its reference."""
    settings = recipe.model
    backend = resolve_backend(settings)
    chat = chat_format(recipe)
    whole = str(checkpoint.path) if checkpoint is not None and not checkpoint.is_adapter else None
    model = _load_base(settings, backend, whole or model_path(settings.name))
    frozen = None
    if trainable and settings.tuning == "full":
        frozen = _load_base(settings, backend, model_path(settings.name)).requires_grad_(False)
        _train_all_but_embeddings(model)
    else:
        model.requires_grad_(False)
        saved = checkpoint if checkpoint is not None and checkpoint.is_adapter else None
        # What is trained on is made by Unsloth where it can be, for its kernels: Stage II as Stage I.
        if saved and not (trainable and backend == "unsloth" and _is_of_the_recipes_shape(saved, settings)):
            model = _add_saved_adapter(model, saved.path, trainable)
        elif trainable:
            model = _add_lora(model, settings, backend, recipe.seed)
            if saved:
                _load_adapter(model, saved.path, trainable)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for part in (model, frozen):
        if part is not None:
            part.to(device)
            part.eval()
            _without_dropout(part)
    policy = Policy(model, chat, backend, settings.max_seq_length, frozen)
    _require_answers(policy)
    if trainable:
        _require_plain_head(policy)
        _require_trained_as_sampled(policy)
    return policy


def load_merged(recipe: Recipe, checkpoint: Checkpoint) -> Any:
    """The checkpoint as one plain float32 model on the CPU, without adapter. Takes 4 bytes a parameter.

    In float32 whatever it was trained in: a 16-bit base becomes float32 exactly, the sum W + BA is exact to 1e-7, and
    the caller's cast rounds once. Added in 16 bit, BA would be rounded before the sum, and a float32 base too; added
    to 4-bit weights, the sum would be quantized again, at steps far larger than most of BA.
    """
    source = model_path(recipe.model.name) if checkpoint.is_adapter else str(checkpoint.path)
    settings = recipe.model.model_copy(update={"load_in_4bit": False, "dtype": "float32"})
    if getattr(load_config(source), "quantization_config", None) is not None:
        raise UserError(f"model {source}: its weights are quantized; name the 16-bit original in {RECIPE}'s model.name")
    model = _load_base(settings, "transformers", source)
    return _add_saved_adapter(model, checkpoint.path, False).merge_and_unload() if checkpoint.is_adapter else model


def _train_all_but_embeddings(model: Any) -> None:
    model.requires_grad_(True)
    model.get_output_embeddings().weight.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(False)


def _is_of_the_recipes_shape(saved: Checkpoint, settings: Model) -> bool:
    """Whether `_add_lora` makes just such an adapter: as its run's recipe says, and its own configuration too."""
    if saved.recipe is None or saved.recipe.model.lora != settings.lora:
        return False
    own = plain_lora(saved.path)
    more = {
        name for name, value in own.items() if value and name not in ("r", "lora_alpha", "target_modules", "task_type")
    }
    return not more and (own["r"], own["lora_alpha"]) == (settings.lora.r, settings.lora.alpha)


def _without_dropout(model: Any) -> None:
    """A model is trained on what it samples, as it samples it, and held near itself: one function, with no noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)  # of attention, and of what calls nn.functional.dropout


def _add_saved_adapter(model: Any, folder: Path, trainable: bool) -> Any:
    """The folder's weights, under a configuration of ours: PEFT reads adapter_config.json not at all."""
    from peft import LoraConfig, get_peft_model

    require_sound_folder(folder)
    config = LoraConfig(**plain_lora(folder), inference_mode=not trainable)
    try:
        adapted = get_peft_model(model, config)
    except Exception as error:  # of another base: it can fail in any way
        raise UserError(f"{folder}: this adapter cannot be loaded: {one_line(error)}") from None
    _load_adapter(adapted, folder, trainable)
    return adapted


def _load_adapter(adapted: Any, folder: Path, trainable: bool) -> None:
    require_plain_types(folder)
    require_finite(folder)
    try:
        loaded = adapted.load_adapter(str(folder), "default", is_trainable=trainable)
    except Exception as error:  # of another base, or damaged: it can fail in any way
        raise UserError(f"{folder}: this adapter cannot be loaded: {one_line(error)}") from None
    _require_same_names(str(folder), loaded.missing_keys, loaded.unexpected_keys)


def _require_same_names(path: str, missing: Iterable[str], foreign: Iterable[str]) -> None:
    """The libraries leave out what they do not know, and make up what they do not find."""
    for names, what in ((sorted(missing), "are missing"), (sorted(foreign), "are not known to the model")):
        if names:
            raise UserError(f"{path}: {len(names)} tensors {what}, the first is {shortened(names[0], 100)}")


def _require_plain_head(policy: Policy) -> None:
    """The loss computes logits itself, as softcap * tanh(h @ W^T / softcap), of hidden states in training: refuse a
    model whose logits are others, whose hidden states change from pass to pass, or are others than in evaluation."""
    ids = torch.tensor([policy.chat.first_turn("2 + 2 = ?")], device=policy.model.device)
    mask = torch.ones_like(ids)
    kind = policy.model.config.model_type
    with torch.no_grad():
        theirs = policy.model(input_ids=ids, attention_mask=mask).logits[0, -1:].float()
        hidden = last_hidden(policy.model, ids, mask).float()
        ours = log_softmax_head(hidden[0, -1:].to(policy.head.dtype), policy.head, policy.softcap, 1.0)
        policy.model.train()
        once, again = (last_hidden(policy.model, ids, mask).float() for _ in range(2))
        policy.model.eval()
    if (once - again).norm() > 0.02 * once.norm():
        raise UserError(
            f"{kind}: draws at random in training (it drops units or layers by its own configuration), which is not "
            "supported; set what does so in its config.json to 0"
        )
    if (once - hidden).norm() > 0.2 * hidden.norm():  # other kernels, in 16 bit, make some per cent of a difference
        raise UserError(f"{kind}: is another function in training than in evaluation, which is not supported")
    gap = (ours - theirs.log_softmax(-1)).abs().max().item()
    around = [logits - logits.mean() for logits in (theirs, ours)]
    scale = (around[0] * around[1]).sum() / around[1].square().sum()  # 16-bit rounding, of many logits, leaves it at 1
    if gap > 0.05 * theirs.abs().max().item() + 1e-3 or abs(scale.item() - 1) > 0.005:
        raise UserError(f"{kind}: its output head scales or shifts logits, which is not supported")


def _require_answers(policy: Policy) -> None:
    """Refuse a model whose configuration makes it fail, or say nothing but NaN, where it is asked a first question."""
    kind = policy.model.config.model_type
    try:
        logits, _ = _sampled_logits(policy, policy.chat.first_turn("2 + 2 = ?"))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # somebody else's numbers: they can fail in any way
        raise UserError(f"{kind}: fails on a first question: {one_line(error)}; is its config.json whole?") from None
    if logits.isnan().any() or logits.isposinf().any():
        raise UserError(f"{kind}: says NaN or infinity to a first question; is its config.json whole?")


def _require_trained_as_sampled(policy: Policy) -> None:
    """Refuse a model that samples other logits than it trains on, or whose 4-bit layers give a wrong gradient.

    The check generates first: a layer that changes itself, as bitsandbytes' do on some CPUs, does so then. A gradient
    above 0 proves nothing, since residual connections carry a part of it past a layer that drops its own. So every
    adapter's gradient is compared with the one that the same weights give when torch multiplies them dequantised.
    """
    kind, prompt = policy.model.config.model_type, policy.chat.first_turn("2 + 2 = ?")
    sampled, ids = _sampled_logits(policy, prompt)
    modes = [(module, module.training) for module in policy.model.modules()]
    policy.model.train()
    try:
        with torch.no_grad():
            hidden = last_hidden(policy.model, ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1]
        trained = log_softmax_head(hidden.to(policy.head.dtype), policy.head, policy.softcap, 1.0)
        logp = sampled.log_softmax(-1)
        kl = (logp.exp() * (logp - trained)).sum(-1).max().item()
        if not kl < 0.2:  # in 16 bit, kernels for one row and for many round differently, and leave a hundredth of it
            raise UserError(f"{kind}: samples from another distribution than it trains on (KL {kl:.2g}), not supported")
        wrong = _wrong_gradient(policy, ids) if four_bit.layers(policy.model) else None
        if wrong is not None:
            raise UserError(
                f"{kind}: its 4-bit layers give a wrong gradient here ({wrong}); --set model.load_in_4bit=false, "
                "or install another version of bitsandbytes"
            )
    finally:
        for module, training in modes:
            module.training = training


def _sampled_logits(policy: Policy, prompt: list[int]) -> tuple[Tensor, Tensor]:
    """(T, V) logits of T <= 2 greedily sampled tokens, the second one from the KV cache; (1, P + T) ids with them."""
    ids = torch.tensor([prompt], device=policy.model.device)
    config = generation_config(policy.tokenizer.pad_token_id, policy.chat.end_tokens, 2, 0.0)
    config.update(output_logits=True, return_dict_in_generate=True)
    with _generating(policy), torch.no_grad():
        made = policy.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return torch.cat(made.logits).float(), made.sequences


def _wrong_gradient(policy: Policy, ids: Tensor) -> str | None:
    """The first adapter with another gradient than the same layers give with dequantised weights; None if all agree."""
    theirs = _gradients(policy, ids)
    with four_bit.in_plain_arithmetic(policy.model):
        truth = _gradients(policy, ids)
    least = 0.01 * max(float(g.norm()) for g in truth.values())
    if least == 0:
        return "no gradient reaches an adapter"
    for name, gradient in truth.items():
        apart = float((theirs[name] - gradient).norm())
        if not apart <= 0.2 * max(float(gradient.norm()), least):
            return f"{name}: {float(theirs[name].norm()):.3g}, and should be {float(gradient.norm()):.3g}"
    return None


def _gradients(policy: Policy, ids: Tensor) -> dict[str, Tensor]:
    """Of sum_t -log p(y_t), by the name of what is trained."""
    hidden = last_hidden(policy.model, ids, torch.ones_like(ids))[0, :-1]
    logp = log_softmax_head(hidden.to(policy.head.dtype), policy.head, policy.softcap, 1.0)
    loss = -logp.gather(-1, ids[0, 1:, None]).sum()
    loss.backward()  # torch.autograd.grad does not see through re-entrant checkpoints such as Unsloth's
    found = {}
    for name, weight in policy.model.named_parameters():
        if weight.requires_grad:
            found[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad.float()
            weight.grad = None
    return found


def _load_base(settings: Model, backend: str, path: str) -> Any:
    _require_sound(path)
    dtype = getattr(torch, settings.dtype)
    load = _load_with_unsloth if backend == "unsloth" else _load_with_transformers
    try:
        config = read_config(path)
        require_weights_for(config, Path(path))
        model, missing, foreign = load(settings, path, dtype, config)
    except UserError:
        raise
    except Exception as error:  # somebody else's files: they can fail in any way
        raise UserError(f"model {path}: cannot be loaded: {one_line(error)}") from None
    _require_same_names(f"model {path}", missing, foreign)
    if (file := file_of(path, "config.json", download=False)) is not None:
        require_plain_types(file.parent)  # of the hub's copy, which is whole only now
        require_finite(file.parent)
    model.generation_config = _new_generation_config()  # what its folder says of sampling counts for nothing
    four_bit.keep_unpacked(model)
    _return_hidden_on_request(model)
    return model


def _new_generation_config(**settings: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(**settings)


def _load_with_transformers(
    settings: Model, path: str, dtype: torch.dtype, config: Any
) -> tuple[Any, set[str], set[str]]:
    """The model, and the names of tensors that it lacked and that it had no use for."""
    from transformers import AutoModelForCausalLM

    eager = {"attn_implementation": "eager"} if _caps_attention(config) else {}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        generation_config=_new_generation_config(),  # a folder's own is not even read
        dtype=dtype,
        quantization_config=four_bit.nf4(dtype) if settings.load_in_4bit else None,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **eager,
    )
    model, told = loaded
    quantized = getattr(config, "quantization_config", None) is not None  # it stores more than it names
    return model, told["missing_keys"], set() if quantized else told["unexpected_keys"]


def _load_with_unsloth(settings: Model, path: str, dtype: torch.dtype, _: Any) -> tuple[Any, set[str], set[str]]:
    """As above; but what was missing, Unsloth does not tell."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        path,
        max_seq_length=settings.max_seq_length,
        dtype=dtype,
        load_in_4bit=settings.load_in_4bit,
        use_exact_model_name=True,  # it would take a copy of its own, quantized otherwise, and ask the network for one
        use_gradient_checkpointing=_unsloths_checkpointing(settings),
        use_safetensors=True,
        trust_remote_code=False,
    )
    if _caps_attention(model.config) and not torch.cuda.is_available():  # on CUDA, Unsloth's own attention caps
        model.set_attn_implementation("eager")
    return model, set(), set()


def _unsloths_checkpointing(settings: Model) -> str | bool:
    return "unsloth" if settings.gradient_checkpointing else False


def shape_of_policy(recipe: Recipe, fake: Any) -> Any:
    """The model ready to train, as `load_policy` makes it, of the tensors of a FakeTensorMode: shapes, and no numbers.

    Needs the model's configuration only. 4 bit is left to who counts bytes.
    """
    settings, config = recipe.model, load_config(recipe.model.name)
    eager = {"attn_implementation": "eager"} if _caps_attention(config) else {}
    try:
        model = built_of_shapes(config, dtype=getattr(torch, settings.dtype), **eager)
    except Exception as error:  # somebody else's numbers: they can fail in any way
        raise UserError(f"model {settings.name!r}: cannot be built: {one_line(error)}") from None
    with torch.device("meta"):  # PEFT moves what it adds, which fake tensors do not allow
        model.requires_grad_(False)
        _return_hidden_on_request(model)
        if settings.tuning == "full":
            _train_all_but_embeddings(model)
        else:
            model = _add_lora(model, settings, "transformers", recipe.seed)
    _without_dropout(model)
    made: dict[int, Tensor] = {}  # a tied weight stays one
    with fake:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, old in tensors.items():
                    if old is not None and id(old) not in made:
                        new = torch.empty(old.shape, dtype=old.dtype)
                        made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    tensors[name] = None if old is None else made[id(old)]
    return model


def _caps_attention(config: Any) -> bool:
    """Gemma-2 soft-caps attention scores: transformers' default (sdpa) silently leaves that out, eager does it."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def _add_lora(model: Any, settings: Model, backend: str, seed: int) -> Any:
    try:
        return _new_lora(model, settings, backend, seed)
    except Exception as error:  # layers of a kind that PEFT has no adapter for, or none of the names
        raise UserError(f"model {settings.name!r}: cannot be given LoRA adapters: {one_line(error)}") from None


def _new_lora(model: Any, settings: Model, backend: str, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    chosen = settings.lora.target_modules
    targets = chosen if isinstance(chosen, str) else list(chosen)
    shape: dict[str, Any] = {"r": settings.lora.r, "lora_alpha": settings.lora.alpha}
    torch.manual_seed(seed)
    if backend == "unsloth":
        from unsloth import FastLanguageModel

        return FastLanguageModel.get_peft_model(
            model,
            **shape,
            target_modules=targets,
            use_gradient_checkpointing=_unsloths_checkpointing(settings),
            random_state=seed,
        )
    elsewhere = _linear_outside_the_decoder(model)
    return get_peft_model(
        model,
        LoraConfig(task_type="CAUSAL_LM", target_modules=targets, exclude_modules=elsewhere or None, **shape),
    )


def _linear_outside_the_decoder(model: Any) -> list[str]:
    """The layers of a vision tower, where a model has one: no text passes through them. (PEFT leaves out the head.)"""
    inside = {id(module) for module in model.get_decoder().modules()} | {id(model.get_output_embeddings())}
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in inside]


def _return_hidden_on_request(model: Any) -> None:
    """Teach `forward` a keyword, return_hidden=True: last hidden states (B, T, D) instead of logits (B, T, V).

    A keyword of forward, not a call of the inner model, so that PEFT and DDP wrappers see the pass.
    """
    logits_forward = model.forward
    decoder = model.get_decoder()

    @functools.wraps(logits_forward)
    def forward(*args: Any, return_hidden: bool = False, **kwargs: Any) -> Any:
        if not return_hidden:
            return logits_forward(*args, **kwargs)
        inputs = {name: kwargs[name] for name in ("input_ids", "attention_mask")}
        return decoder(**inputs, use_cache=False).last_hidden_state

    model.forward = forward


def last_hidden(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, T) ids, right-padded -> (B, T, D) hidden states after the final norm, before the head."""
    return model(input_ids=input_ids, attention_mask=attention_mask, return_hidden=True)


def generate(
    policy: Policy,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    streamer: Any = None,
    on_token: Callable[[], None] | None = None,
    on_replies: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """New token ids for each prompt, up to and including the closing token. temperature 0 is greedy.

    Samples come from the whole softmax of logits / temperature (no top-k, no top-p), which is what the loss scores.
    A streamer (transformers.BaseStreamer) needs batch_size 1. on_token is called after each token of a batch; what it
    raises ends the generation. on_replies is called after each batch with its size. Raises UserError where a prompt
    leaves no room for a reply.
    """
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > policy.max_length:  # Unsloth would cut it, with one warning
        raise UserError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed model.max_seq_length = "
            f"{policy.max_length}; raise it"
        )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: dict[int, list[int]] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        new = _generate_batch(policy, [prompts[i] for i in chosen], max_new_tokens, temperature, streamer, on_token)
        replies.update(zip(chosen, new, strict=True))
        on_replies(len(chosen))
    return [replies[i] for i in range(len(prompts))]


def _generate_batch(
    policy: Policy,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    streamer: Any,
    on_token: Callable[[], None] | None,
) -> list[list[int]]:
    pad, ends = policy.tokenizer.pad_token_id, policy.chat.end_tokens
    width = max(len(p) for p in prompts)
    device = next(policy.model.parameters()).device
    input_ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    attention_mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    with _generating(policy), torch.no_grad():
        output = policy.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=generation_config(pad, ends, max_new_tokens, temperature),
            streamer=streamer,
            stopping_criteria=None if on_token is None else [_never_stopping(on_token)],
        )
    return [_until_end(row, ends) for row in output[:, width:].tolist()]


def _never_stopping(on_token: Callable[[], None]) -> Callable[..., Tensor]:
    def criterion(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        on_token()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    return criterion


def generation_config(pad: int, ends: set[int], max_new_tokens: int, temperature: float) -> Any:
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        # Every truncation is switched off by name: transformers' defaults fill in what is left unset.
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return _new_generation_config(
        max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad, repetition_penalty=1.0, **sampling
    )


def settings_to_save(chat: ChatFormat) -> Any:
    """The generation_config.json of a model that leaves: how a reply ends. Not the base's own: that may lack the token
    that closes a turn, or sample, or hold what transformers will not save."""
    own = chat.tokenizer
    return _new_generation_config(
        bos_token_id=own.bos_token_id, eos_token_id=sorted(chat.end_tokens), pad_token_id=own.pad_token_id
    )


@contextmanager
def _generating(policy: Policy) -> Iterator[None]:
    """Evaluation mode for the time of a rollout; the state it was in comes back. Unsloth's `generate` leaves other
    flags behind than it found: mode, checkpointing, cache, padding side."""
    model, tokenizer = policy.model, policy.tokenizer
    flags = [(model.config, "use_cache"), (tokenizer, "padding_side")]
    flags += [(module, "gradient_checkpointing") for module in model.modules()]
    before = [(owner, name, getattr(owner, name)) for owner, name in flags if hasattr(owner, name)]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        for module, training in modes:
            module.training = training


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


def save_policy(policy: Policy, folder: Path) -> None:
    """An ordinary PEFT folder (a model folder after full fine-tuning), safetensors, with tokenizer and template."""
    adapter = hasattr(policy.model, "peft_config")  # of which PEFT would ask the hub whether the vocabulary has grown
    if not adapter:
        policy.model.generation_config = settings_to_save(policy.chat)
    policy.model.save_pretrained(str(folder), **({"save_embedding_layers": False} if adapter else {}))
    policy.tokenizer.save_pretrained(str(folder))

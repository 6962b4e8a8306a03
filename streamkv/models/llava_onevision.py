"""LLaVA-OneVision: SigLIP tower, projector and 2x pooling, Qwen2 decoder, over transformers' own modules."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from streamkv.attention import Rope
from streamkv.conversation import Speaker, Turn
from streamkv.errors import ModelError
from streamkv.models.base import QuestionPrompt, VideoLLM, hash_checkpoint, read_frame_normaliser
from streamkv.types import Geometry

# Stand for what is said when the template is taken apart.
_QUESTION, _ANSWER, _NEXT = "streamkvquestion", "streamkvanswer", "streamkvnext"


class LlavaOnevision(VideoLLM):
    """Loads a folder in Hugging Face format, in the dtype asked for, whichever the file has."""

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype, self._folder = device, dtype, folder
        self._model: Any = _load_weights(folder, dtype).to(device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._decoder: Any = self._model.model.language_model
        self.geometry = _geometry(self._model.config)
        self._rope = _rope(self._decoder, device)
        self.eos_token_ids = _eos_token_ids(self._model.generation_config, self._tokenizer)
        self._normaliser = read_frame_normaliser(folder)
        self._chat = _ChatParts(folder, self._tokenizer, self._model.config.video_token_id)
        self._check_picture_size()

    def _check_picture_size(self) -> None:
        size, got = self._model.config.vision_config.image_size, self._normaliser
        if (got.height, got.width) != (size, size):
            raise ModelError(
                f"{self._folder}: preprocessor_config.json resizes to {got.height}x{got.width}, "
                f"the vision tower takes {size}x{size}"
            )

    @cached_property
    def fingerprint(self) -> str:
        return hash_checkpoint(self._folder, self._chat.template)

    @torch.inference_mode()
    def encode_frames(self, frames: Sequence[np.ndarray]) -> Tensor:
        pixels = self._normaliser(frames, self.device, self.dtype)
        features = self._model.model.get_video_features(pixels[None]).pooler_output[0]
        # HF appends the newline embedding once, after the video's last frame: it opens our question prompt.
        return cast(Tensor, features[:-1].view(len(frames), self.geometry.frame_tokens, -1))

    def system_embeds(self) -> Tensor:
        return self.embed_tokens(self._chat.system_ids)

    def question_prompt(self, question: str, earlier: Sequence[Turn] = ()) -> QuestionPrompt:
        token_ids, words = self._chat.question_ids(question, earlier)
        newline = self._model.model.image_newline[None].to(self.dtype)
        embeds = torch.cat((newline, self.embed_tokens(token_ids)))
        return QuestionPrompt(embeds, slice(words.start + 1, words.stop + 1))

    def guidance_embeds(self, text: str) -> Tensor:
        return self.embed_tokens(self._chat.encode(text))

    def embed_tokens(self, token_ids: Sequence[int]) -> Tensor:
        ids = torch.tensor(list(token_ids), dtype=torch.long, device=self.device)
        return cast(Tensor, self._decoder.embed_tokens(ids))

    def qkv(self, layer: int, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        block = self._decoder.layers[layer]
        normed, attn = block.input_layernorm(hidden_TD), block.self_attn
        T, d = hidden_TD.shape[0], self.geometry.head_dim
        return (
            attn.q_proj(normed).view(T, self.geometry.num_heads, d),
            attn.k_proj(normed).view(T, self.geometry.num_kv_heads, d),
            attn.v_proj(normed).view(T, self.geometry.num_kv_heads, d),
        )

    def finish_layer(self, layer: int, hidden_TD: Tensor, attended_THd: Tensor) -> Tensor:
        block = self._decoder.layers[layer]
        hidden = hidden_TD + block.self_attn.o_proj(attended_THd.flatten(1))
        return cast(Tensor, hidden + block.mlp(block.post_attention_layernorm(hidden)))

    def rope(self, x_THd: Tensor, positions_T: Tensor) -> Tensor:
        return self._rope(x_THd, positions_T)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        return cast(Tensor, self._model.lm_head(self._decoder.norm(hidden_TD)))

    def decode(self, token_ids: Sequence[int]) -> str:
        return cast(
            str,
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            ),
        )


def _load_weights(folder: Path, dtype: torch.dtype) -> Any:
    """The model for inference; a weight that the files lack is an error, not a random number."""
    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ModelError(f"{folder}: the weights lack {', '.join(sorted(info['missing_keys'])[:5])} ...")
    return model.eval().requires_grad_(False)


def _geometry(config: Any) -> Geometry:
    text, vision = config.text_config, config.vision_config
    side = math.ceil(vision.image_size // vision.patch_size / 2)
    return Geometry(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        hidden_dim=text.hidden_size,
        frame_tokens=side * side,
    )


def _rope(decoder: Any, device: torch.device) -> Rope:
    """The decoder's own frequencies; only those that do not change with the length can be placed at will."""
    kind = decoder.rotary_emb.rope_type
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(f"rotary embedding {kind!r} changes with the sequence's length and is not supported")
    if any(layer_type != "full_attention" for layer_type in decoder.config.layer_types):
        raise ModelError("a decoder with sliding-window layers of its own is not supported")
    return Rope(decoder.rotary_emb.inv_freq.to(device).float(), float(decoder.rotary_emb.attention_scaling))


def _eos_token_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    eos = (
        generation_config.eos_token_id
        if generation_config.eos_token_id is not None
        else tokenizer.eos_token_id
    )
    return frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)


class _ChatParts:
    """The checkpoint's chat template, rendered once and taken apart around the video and the question.

    system text | <video> | before | QUESTION | after
    system text | <video> | before | QUESTION | to the assistant | ANSWER | to the user | NEXT | after
    """

    def __init__(self, folder: Path, tokenizer: Any, video_token_id: int) -> None:
        self._tokenizer = tokenizer
        self._video_token = tokenizer.convert_ids_to_tokens(video_token_id)
        self.template = _chat_template(folder, tokenizer)
        system, self._before, self._after = self._take_apart()
        self.system_ids = self.encode(system)
        self._markup = {self._video_token, *tokenizer.all_special_tokens} | {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }

    def encode(self, text: str) -> list[int]:
        return cast(list[int], self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def question_ids(self, question: str, earlier: Sequence[Turn] = ()) -> tuple[list[int], slice]:
        """Token ids of all that follows the video, and which of them are the question's."""
        question, before = self._plain(question), self._before + self._said(earlier)
        text = before + question + self._after
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        start, stop = len(before), len(before) + len(question)
        offsets = encoded["offset_mapping"]
        words = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
        return encoded["input_ids"], slice(words[0], words[-1] + 1) if words else slice(0, len(offsets))

    def _plain(self, text: str) -> str:
        """The text with its markup broken."""
        for markup in self._markup:
            text = text.replace(markup, markup[:1] + " " + markup[1:])
        return text

    def _said(self, earlier: Sequence[Turn]) -> str:
        """The earlier turns, up to where the question's words begin."""
        said, speaker = "", "user"
        for turn in earlier:
            if turn.speaker != speaker:
                said, speaker = said + self._handovers[turn.speaker], turn.speaker
            elif said:
                said += "\n"
            said += self._plain(turn.text)
        if speaker == "assistant":
            return said + self._handovers["user"]
        return said + "\n" if said else said

    @cached_property
    def _handovers(self) -> dict[Speaker, str]:
        """What stands between two turns, by who speaks next."""
        text = self._render(_ANSWER, _NEXT)
        _, _, rest = text.partition(_QUESTION)
        to_assistant, found_answer, rest = rest.partition(_ANSWER)
        to_user, found_next, _ = rest.partition(_NEXT)
        if not found_answer or not found_next:
            raise ModelError(f"chat template: got {text!r}, need all turns of a conversation in it")
        return {"assistant": to_assistant, "user": to_user}

    def _take_apart(self) -> tuple[str, str, str]:
        text = self._render()
        system, found, rest = text.partition(self._video_token)
        before, found_question, after = rest.partition(_QUESTION)
        if not found or not found_question or self._video_token in rest:
            raise ModelError(
                f"chat template: got {text!r}, need {self._video_token} once and the question after it"
            )
        return system, before, after

    def _render(self, *later: str) -> str:
        """Processors' templates take lists of parts, tokenizers' strings with the placeholder."""
        words = ([{"type": "text", "text": text}] for text in later)
        parts = [[{"type": "video"}, {"type": "text", "text": _QUESTION}], *words]
        for contents in (parts, [f"{self._video_token}\n{_QUESTION}", *later]):
            turns = zip(cycle(("user", "assistant")), contents, strict=False)
            try:
                text = self._tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in turns],
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=True,
                )
            except Exception as exc:  # whatever a template raises on a form of content that it does not take
                error = exc
                continue
            if self._video_token in text and f"'{_QUESTION}'" not in text:  # else it printed the list
                return cast(str, text)
            error = ValueError(f"rendered {text!r}")
        raise ModelError(f"chat template: it takes no video and question ({error})") from error


def _chat_template(folder: Path, tokenizer: Any) -> str:
    """The processor's template where the folder has one (older checkpoints), else the tokenizer's."""
    path = folder / "chat_template.json"
    template = json.loads(path.read_text())["chat_template"] if path.is_file() else tokenizer.chat_template
    if not isinstance(template, str):
        raise ModelError(
            f"{folder}: no chat template; the question cannot be put the way that the model knows"
        )
    return template

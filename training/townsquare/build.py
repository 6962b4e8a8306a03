"""The untrained demo model and its word-level tokenizer, both in Hugging Face form."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from streamkv.townsquare.script import COLOURS, KINDS, SIGN_LETTERS, WEATHERS, ZONES

IMAGE_SIZE, PATCH_SIZE = 144, 24  # 6 x 6 patches, pooled to 3 x 3 tokens: one token a cell of the picture
FRAME_TOKENS = 9

SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<video>", "<image>")
WORDS = tuple(
    "system user assistant you watch a an the town square answer questions about it what which colour is are was "
    "where does do say says sign at when there how many things weather comes first or time none one two three four "
    "yes no in on by and ? , . : keep clock number place thing every who why did come leave before after next to of "
    "seen see show shown".split()
)
NUMBERS = tuple(f"{n:02d}" for n in range(100))
SYSTEM_PROMPT = "you watch the town square. answer questions about it."

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% elif part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    """All tokens, in the order of their ids."""
    words = [
        *SPECIAL,
        *WORDS,
        *KINDS,
        *COLOURS,
        *ZONES,
        *WEATHERS,
        *NUMBERS,
        *(c.lower() for c in SIGN_LETTERS),
    ]
    return list(dict.fromkeys(words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cases, then splits into words, two-digit numbers and marks."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary())}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]{1,2}|[^a-z0-9]"), behavior="isolated"),
        ]
    )
    core.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), decoders.Replace(" : ", ":")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<video>", "<image>"],
        clean_up_tokenization_spaces=False,
        model_max_length=100_000,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    """A random model of the demo's size."""
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
        tie_word_embeddings=True,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def preprocessor_config() -> dict[str, object]:
    """How pixels become the tower's input, in the form of SigLIP's preprocessor_config.json."""
    return {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_grid_pinpoints": [[IMAGE_SIZE, IMAGE_SIZE]],
    }


def save(model: LlavaOnevisionForConditionalGeneration, folder: Path) -> None:
    """Writes the whole Hugging Face folder."""
    tokenizer = build_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(), indent=2) + "\n")


def words_of(text: str) -> list[str]:
    """The tokenizer's own split of a text, without loading it."""
    return re.findall(r"<[^ >]+>|[a-z]+|[0-9]{1,2}|[^\sa-z0-9]", text.lower())

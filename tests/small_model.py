"""A random model that loads in no time: one token a byte, and a tokenizer that knows the tags by name."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pasta_ray.lang import TAG_NAMES, TagMap

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"


def make_small_model(folder: Path) -> Path:
    """Write it to ``folder``. Its sampled answers often open and close bodies."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: id_ for id_, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": list(TAG_NAMES)})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    TagMap(*tokenizer.convert_tokens_to_ids(list(TAG_NAMES))).save(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )
    with torch.no_grad():  # of tags
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(["<|promise|>", "<|/async|>", "<|sync|>"])] *= 30
    model.save_pretrained(folder)
    return folder

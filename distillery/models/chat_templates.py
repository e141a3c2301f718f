"""Chat templates for base models, whose tokenizers come without one."""

_BOS = "{{ bos_token if bos_token is defined else '' }}"

CHAT_TEMPLATES = {
    "chatml": _BOS
    + """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "plain": _BOS
    + """{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}

{% elif message['role'] == 'user' %}User: {{ message['content'] }}

{% else %}Assistant: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}
{% if add_generation_prompt %}Assistant:{% endif %}""",
}
"""What `student.chat_template` may name.

- chatml: for tokenizers that have its tokens, as the base models of Qwen and SmolLM do.
- plain: `User:` and `Assistant:` as text; a response ends with the tokenizer's end of sequence.
"""

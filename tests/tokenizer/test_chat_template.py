"""Chat templates: the same text as transformers renders, errors in words, and bounds."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from aiasst.artifacts.shipped import story_checkpoint
from aiasst.errors import ArtifactError, PromptError
from aiasst.tokenizer import Message, Tokenizer
from aiasst.tokenizer.chat_template import ChatTemplate, find_template

SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
CHAT = (
    Message("system", "Be <brief> & kind."),
    Message("user", " Who? "),
    Message("assistant", "Me."),
    Message("user", "Why?"),
)
# Written for this test in the manner of the known families.
TEMPLATES = {
    "chatml": """
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "headers": """{{- bos_token }}
{%- set ns = namespace(system='none') %}
{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start|>system<|end|>\\n\\nToday: ' + date_string + '\\n' + ns.system + eos_token }}
{%- if tools is not none %}{{- raise_exception('no tools here') }}{%- endif %}
{%- for message in messages %}
    {%- if loop.index0 > 100 %}{% break %}{% endif %}
    {{- '<|start|>' ~ message.role ~ '<|end|>\\n\\n' ~ message.content | trim ~ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}
""",
    "turns": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Roles must alternate user/assistant') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
""",
    "json and generation": """
  {% for message in messages %}
    {% if message.role == 'assistant' %}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {% else %}
{{ message | tojson }} {{ {'é': [1, none, true]} | tojson(indent=2) }}
    {% continue %}
    {% endif %}
  {% endfor %}
end {{ [1, 2, 3] | map('string') | join('-') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
""",
}


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_the_one_of_transformers(name: str, add_generation_prompt: bool) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(story_checkpoint() / "tokenizer.json"), **SPECIAL)
    theirs.chat_template = TEMPLATES[name]
    messages = [{"role": message.role, "content": message.content} for message in CHAT]
    wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    template = ChatTemplate.parse(TEMPLATES[name], SPECIAL)
    assert template.render(CHAT, add_generation_prompt=add_generation_prompt) == wanted


def test_the_refusal_of_a_template_is_the_users_to_read() -> None:
    template = ChatTemplate.parse(TEMPLATES["turns"], SPECIAL)
    with pytest.raises(PromptError, match="Roles must alternate"):
        template.render([Message("assistant", "first")])


def test_a_format_of_modest_width_is_allowed() -> None:
    assert ChatTemplate.parse("{{ '%s has %03d' % ('a', 7) }}", {}).render([]) == "a has 007"


def test_the_date_is_todays() -> None:
    text = ChatTemplate.parse("{{ strftime_now('%Y') }}", {}).render([])
    assert re.fullmatch(r"\d{4}", text) and abs(int(text) - datetime.now().astimezone().year) <= 1


@pytest.mark.parametrize(
    "source,words",
    [
        ("{% for %}", "is broken"),
        ("{{ messages[7].content.nothing }}", "fails"),
        ("{{ 1 / 0 }}", "fails"),
        ("{{ 'a' + 1 }}", "fails"),
        ("{{ undefined_helper() }}", "fails"),
    ],
)
def test_a_broken_template_is_an_error_in_words(source: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        ChatTemplate.parse(source, {}).render(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_does_not_leave_its_sandbox(source: str) -> None:
    with pytest.raises(ArtifactError, match="fails"):
        ChatTemplate.parse(source, {}).render(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(10**9) %}x{% endfor %}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 3000000000 * [0] }}",
        "{{ '%1000000000d' % 1 }}",
        "{% set n = namespace(t='aaaa') %}{% for a in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "{% for a in range(90000) %}{{ 'a' * 10000 }}{% endfor %}",
    ],
)
@pytest.mark.timeout(20)
def test_endless_and_huge_templates_are_stopped(source: str) -> None:
    with pytest.raises(ArtifactError, match="fails"):
        ChatTemplate.parse(source, {}).render(CHAT)


def test_the_template_comes_from_its_file_first(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert find_template(tmp_path, {}) is None
    assert find_template(tmp_path, {"chat_template": "C"}) == "C"
    assert find_template(tmp_path, {"chat_template": named}) == "D"
    assert find_template(tmp_path, {"chat_template": named[:1]}) == "T"
    with pytest.raises(ArtifactError, match="no text and no list"):
        find_template(tmp_path, {"chat_template": 3})
    (tmp_path / "chat_template.jinja").write_text("F", encoding="utf-8")
    assert find_template(tmp_path, {"chat_template": "C"}) == "F"


def test_a_folder_with_a_template_renders(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((story_checkpoint() / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SPECIAL), encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}", encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.has_chat_template
    assert tokenizer.render_chat(CHAT) == "<|endoftext|>Why?"

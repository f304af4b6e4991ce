"""The pages of recipes: every verb and config is there, commands have no flags that there are not, links lead somewhere."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from graftax.cli.parser import VERBS, build

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "configs/README.md")
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
COMMANDS = sorted({command for text in TEXTS.values() for command in re.findall(r"`(graftax [a-z][^`]*)`", text)})


def test_every_config_is_on_the_page():
    named = re.findall(r"^\| `(\w+\.py)` \|", TEXTS["configs/README.md"], re.M)
    assert named == sorted(path.name for path in (ROOT / "configs").glob("*.py"))


def test_every_verb_is_on_a_page():
    assert {shlex.split(command)[1] for command in COMMANDS} == set(VERBS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_of_flags_that_there_are(command):
    _, verb, *words = shlex.split(command)
    action = next(one for one in build()._actions if isinstance(one, argparse._SubParsersAction))
    known = {flag for one in action.choices[verb]._actions for flag in one.option_strings}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", TEXTS[page])
    for link in links:
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_the_front_page_is_short():
    assert len(TEXTS["README.md"]) < 10_000

"""The help of a command line, as a terminal shows it: a section for each command."""

from __future__ import annotations

from importlib import import_module

import click
from click.testing import CliRunner
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Commands(SphinxDirective):
    """``{commands} module:group``."""

    required_arguments = 1
    has_content = False

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        group: click.Group = getattr(import_module(module), name)
        names = group.list_commands(click.Context(group))
        text = "\n\n".join(self.section(group, command) for command in names)
        return self.parse_text_to_nodes(text, allow_section_headings=True)

    def section(self, group: click.Group, command: str) -> str:
        known = {flag for option in group.commands[command].params for flag in option.opts}
        flag = "--help-all" if "--help-all" in known else "--help"
        shown = CliRunner().invoke(group, [command, flag], prog_name="ncsn-fast", terminal_width=90)
        if shown.exit_code:
            raise self.error(f"{command} {flag} ends with {shown.exit_code}: {shown.output}")
        return f"## {command}\n\n```text\n{shown.output}\n```"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}

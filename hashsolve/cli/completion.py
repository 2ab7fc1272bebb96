"""hashsolve completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hashsolve.options import OneOf, json_option
from hashsolve.terminal import echo_json


@click.command(short_help="Print a script that makes a shell complete.")
@click.argument("shell", type=OneOf("bash", "zsh", "fish"))
@json_option
@click.pass_context
def completion(context: click.Context, shell: str, as_json: bool) -> None:
    """Print what makes a shell complete commands, options, names and files.

    \b
    hashsolve completion bash >> ~/.bashrc
    hashsolve completion zsh >> ~/.zshrc
    hashsolve completion fish > ~/.config/fish/completions/hashsolve.fish
    """
    made = get_completion_class(shell)
    assert made is not None  # click knows all three
    complete = made(context.find_root().command, {}, "hashsolve", "_HASHSOLVE_COMPLETE")
    script = complete.source_template % complete.source_vars()
    if as_json:
        echo_json({"shell": shell, "script": script})
    else:
        click.echo(script)

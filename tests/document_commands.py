"""The commands that documents show, read by the real command line without running them."""

import typer

from cddnet import cli

COMMAND_LINE = typer.main.get_command(cli.app)
# Typer may bring its own copy of Click, so its errors are found by way of one that it exports.
UsageError = typer.BadParameter.__mro__[1]
# Words that stand for a number, or one of several names, on these pages.
STANDS_FOR = {
    "N": "6",
    "ROW": "234",
    "COLUMN": "159",
    "SIDE": "32",
    "LOW": "-160",
    "HIGH": "240",
    "KIND": "water",
    "PATTERN": "^(L[0-9]+)_",
}


def meant(words):
    """The words with values for those that stand for one."""
    return [STANDS_FOR.get(word, word) for word in words]


def parsed(words):
    """Values of a command's parameters, read by the real command line without running it.

    Raises: UsageError as the command line would.
    """
    command, name, parent = COMMAND_LINE, "cddnet", None
    rest = [word for word in meant(words) if word != "..."]
    while True:
        context = command.make_context(name, rest, parent=parent)
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not hasattr(command, "resolve_command") or not rest:
            return context.params
        name, command, rest = command.resolve_command(context, rest)
        parent = context


def complaint(command):
    try:
        parsed(command.words)
    except UsageError as error:
        # "`cddnet prepare` refuses it": the command is named, not called.
        if type(error).__name__ == "MissingParameter" and not command.whole:
            return ""
        return f"{command.text}: {error.format_message()}"
    return ""


def callable_as_it_stands(command):
    """Whether it stands in a block, or is complete where a sentence quotes it."""
    try:
        parsed(command.words)
    except UsageError:
        return command.whole
    return (command.whole or len(command.words) > 1) and not command.partial

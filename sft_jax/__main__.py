"""Lists the commands: `python -m sft_jax`."""

import ast
from pathlib import Path


def commands() -> dict[str, str]:
    """The first line of each command's documentation, by the name of the command.

    Read from the files, since importing a command starts JAX.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        text = path.read_text("utf-8")
        if '\nif __name__ == "__main__":' in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def main():
    """Prints a line a command."""
    print("Commands, run as `python -m sft_jax.<command>`; each explains its flags with --help:\n")
    listed = commands()
    width = max(map(len, listed))
    for name, line in listed.items():
        # What a command does, without the example that its own help begins with.
        print(f"  {name:<{width}}  {line.partition(':')[0]}")


if __name__ == "__main__":
    main()

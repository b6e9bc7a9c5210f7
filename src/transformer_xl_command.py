"""Entry point of the `transformer-xl` command.

It lies beside the package because `import transformer_xl` registers the Auto classes, which imports transformers; that
the command was started is read from this module's presence in `sys.modules` (docs/cli-startup.md).
"""


def main() -> None:
    """Run the command line and exit with its status."""
    from transformer_xl.cli.app import main as run

    run()

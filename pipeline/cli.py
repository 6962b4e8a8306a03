"""`streamkv`: the command line. Each command says in its --help how it is used; see `pipeline/commands/`."""

from __future__ import annotations

import typer

from pipeline.commands import batch, demo, eval, inspect, keys, server, store, streams, watch

app = typer.Typer(
    name="streamkv",
    help="Ask many video streams anything: a compressed, durable KV memory of video, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
server.register(app)
streams.register(app)
watch.register(app)
inspect.register(app)
keys.register(app)
store.register(app)
demo.register(app)
eval.register(app)
batch.register(app)


def main() -> None:
    """Entry point of the `streamkv` script."""
    app()


if __name__ == "__main__":
    main()

"""``bridgegarden chat``: a student in the browser, beside its teacher."""

from typing import Any

import click

from bridgegarden.cli.options import example, taken
from bridgegarden.terminal import say


@click.command(
    "chat", epilog=example("bridgegarden chat runs/my/model", "bridgegarden chat my.yaml --against ORG/TEACHER --open")
)
@click.argument("model", metavar="RECIPE|MODEL")
@click.option(
    "--against", metavar="TEACHER", help="A model of the same tokenizer that reads along: a folder or a name."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where to listen.  [default: any that is free]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    help="Of all weights.  [default: as they were saved]",
)
@click.option("--device", help="Such as cuda:1 or cpu.  [default: a GPU if there is one]")
@click.option("--open", "open_page", is_flag=True, help="Show the page in the browser.")
def chat_command(port: int, open_page: bool, **options: Any) -> None:
    """Talk to a model on a page in the browser, which colours every token by how likely it was.

    Of RECIPE the trained student is meant; or give MODEL, a folder or a name on the hub. With --against the page shows
    where the model parts from that teacher, and what either would have said there. The page is for this machine alone,
    at the address that is printed, and asks no other host for anything. Ctrl-C ends it.
    """
    from bridgegarden.chat.server import ChatServer
    from bridgegarden.chat.session import ChatRequest, load_chat

    with ChatServer(load_chat(taken(ChatRequest, options)), port) as server:
        say(server.address)
        say("Ctrl-C ends it.", err=True)
        if open_page:
            click.launch(server.address)
        try:
            server.run()
        except KeyboardInterrupt:
            say("\nended.", err=True)

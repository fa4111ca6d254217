"""The command ``demo``: a local page to try a trained model."""

from timm_accel.commands.output.files import say_in_progress
from timm_accel.sharing import create_demo
from timm_accel.terminal import print_fitted


def demo(source: str, *, port: int = 7860) -> None:
    """Open a page on this machine to try a trained model: drop an image, and the predictions appear.

    Only this machine reaches it, and no image is kept. Ctrl-C ends it.

    Args:
        source: A run, a folder of weights, a state of a run or an exported file.
        port: The port of the page; 0 for any free one.
    """
    with create_demo(source, port=port) as server:
        say_in_progress(source)
        print_fitted(f"Open {server.url} in a browser; Ctrl-C ends it.")
        server.serve_forever()

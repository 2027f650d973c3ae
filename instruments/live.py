"""Live experiments: a measurement shown once as recorded, with a form to repeat it on one's own machine."""

from collections.abc import Callable, Sequence

import ipywidgets
import torch
from IPython.display import display
from triton.runtime.errors import OutOfResources

from instruments.display import say, si_bytes


def experiment(run: Callable[..., object], **choices: Sequence) -> None:
    """Run and show an experiment with the first of each choice, then offer a form for the others.

    Args:
        run: takes the choices' names as keywords; what it prints, displays or returns is shown.
        choices: name to the values a reader may pick; the first is the recorded one.

    The first run is an ordinary output, which a page with no kernel shows too. The form needs a kernel.
    Where a GPU has too little memory for a choice, a sentence says so in the result's place. Any other
    error in a repeated run is shown below the form as one line.
    """
    first = {name: values[0] for name, values in choices.items()}
    # A page without a kernel shows no form, so the choice is said.
    say("With " + ", ".join(f"{_spelled(name)} {value}" for name, value in first.items()) + ":")
    _show(run, first)
    menus = {
        name: ipywidgets.Dropdown(
            options=values,
            description=_spelled(name),
            style={"description_width": "initial"},
        )
        for name, values in choices.items()
    }
    button = ipywidgets.Button(description="Run on this machine", icon="play")
    output = ipywidgets.Output()

    def repeat(_) -> None:
        button.disabled = True
        output.clear_output(wait=True)
        try:
            with output:
                try:
                    _show(run, {name: menu.value for name, menu in menus.items()})
                except (RuntimeError, ValueError) as error:
                    print(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        finally:
            button.disabled = False

    button.on_click(repeat)
    display(ipywidgets.VBox([ipywidgets.HBox([*menus.values(), button]), output]))


def _spelled(name: str) -> str:
    return name.replace("_", " ")


def _show(run: Callable[..., object], chosen: dict) -> None:
    """Show what a run returns, or which of the GPU's memories it does not fit into."""
    try:
        result = run(**chosen)
    except torch.OutOfMemoryError:
        total = torch.cuda.get_device_properties().total_memory
        say(f"**Too large for this GPU**, which has {si_bytes(total)} of memory: choose less.")
    except OutOfResources as error:
        limit = f"a program may have {error.limit} ({error.name})"
        say(f"**Too large for this GPU**: {limit}, and this needs {error.required}.")
    else:
        if result is not None:
            display(result)

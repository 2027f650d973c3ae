"""Live experiments: a measurement shown once as recorded, with a form to repeat it on one's own machine."""

from collections.abc import Callable, Sequence

import ipywidgets
from IPython.display import display

from instruments.display import say


def experiment(run: Callable[..., object], **choices: Sequence) -> None:
    """Run and show an experiment with the first of each choice, then offer a form for the others.

    Args:
        run: takes the choices' names as keywords; what it prints, displays or returns is shown.
        choices: name to the values a reader may pick; the first is the recorded one.

    The first run is an ordinary output, which a page with no kernel shows too. The form needs a kernel.
    An error in a repeated run, such as memory running out, is shown below the form as one line.
    """
    first = {name: values[0] for name, values in choices.items()}
    # A page without a kernel shows no form, so the choice is said.
    say("With " + ", ".join(f"{_spelled(name)} {value}" for name, value in first.items()) + ":")
    _show(run(**first))
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
                    _show(run(**{name: menu.value for name, menu in menus.items()}))
                except (RuntimeError, ValueError) as error:  # out of memory is a RuntimeError
                    print(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        finally:
            button.disabled = False

    button.on_click(repeat)
    display(ipywidgets.VBox([ipywidgets.HBox([*menus.values(), button]), output]))


def _spelled(name: str) -> str:
    return name.replace("_", " ")


def _show(result: object) -> None:
    if result is not None:
        display(result)
